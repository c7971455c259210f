"""Configuration of the two models that make labels together."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from unspoken.methods.latent_sft.stages import LatentShape
from unspoken.tasks.spans import Markers


@strict
class LatentSFTConfig(PreTrainedConfig):
    """Configuration of `LatentSFTModel`.

    Args:
        base_config: of encoder and decoder, which have the same shape.
        shape: fields of `LatentShape`.
        open_ids, end_ids: tokens of the markers around the chain.
        has_encoder: stage 1 has one, stage 2 has not.
    """

    model_type = "latent_sft"
    sub_configs_defaults = {"base_config": SubConfigSpec(config_class=AutoConfig, model_type="unspoken")}

    base_config: dict[str, Any] | PreTrainedConfig | None = None
    shape: dict[str, Any] | None = None
    open_ids: list[int] | None = None
    end_ids: list[int] | None = None
    has_encoder: bool = True
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    @property
    def latent_shape(self) -> LatentShape:
        """What a latent is."""
        return LatentShape(**(self.shape or {}))

    @property
    def markers(self) -> Markers:
        """Tokens around the chain."""
        return Markers(open=tuple(self.open_ids or ()), end=tuple(self.end_ids or ()))
