"""Configuration of models that write latents made of hidden states before they answer."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from unspoken.methods.self_distillation import Projection


@strict
class LatentConfig(PreTrainedConfig):
    """Configuration of a `LatentModel`.

    Args:
        base_config: of the causal language model, any decoder-only one.
        latents: in every chain.
        open_ids, end_ids: tokens of the markers around the chain.
    """

    sub_configs_defaults = {"base_config": SubConfigSpec(config_class=AutoConfig, model_type="unspoken")}

    base_config: dict[str, Any] | PreTrainedConfig | None = None
    latents: int = 6
    open_ids: list[int] | None = None
    end_ids: list[int] | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


@strict
class SelfDistilledConfig(LatentConfig):
    """Configuration of a `SelfDistilledModel`.

    Args:
        projection: fields of `Projection`; None feeds hidden states back as they are.
    """

    projection: dict[str, Any] | None = None

    @property
    def latent_projection(self) -> Projection | None:
        """What makes a latent of a hidden state."""
        return None if self.projection is None else Projection(**self.projection)
