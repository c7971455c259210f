"""Configuration of the two models that make labels together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from unspoken.methods.latent_sft.layout import Markers
from unspoken.methods.latent_sft.superposition import Readout


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """What a latent is, and how it is taught. Fixed when a line of stages starts, and the same in all of them.

    Attributes:
        rate: tokens of the explicit chain that one latent stands for (r).
        top_k: entries of a superposition; null keeps the whole vocabulary.
        temperature: of the read-out.
        readout: "head" (the paper's formula) or "table" (the published code).
        latent: "superposition", or "hidden" for the ablation without the vocabulary step, ``Z_i = h_i``.
        induction_mask, supervision_mask: false replaces the mask by a plain causal one (the ablations).
        positions: of the decoder; "two_track" or "plain" (section 4.3).
        chunk_sees: what chunk text may see besides its latent and itself; "none" is the paper's.
    """

    rate: int = 2
    top_k: int | None = 10
    temperature: float = 1.0
    readout: Readout = "head"
    latent: Literal["superposition", "hidden"] = "superposition"
    induction_mask: bool = True
    supervision_mask: bool = True
    positions: Literal["two_track", "plain"] = "two_track"
    chunk_sees: Literal["none", "first_token", "prompt"] = "none"

    def __post_init__(self) -> None:
        if self.rate < 1:
            raise ValueError(f"rate is {self.rate}; a latent stands for at least 1 token")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or null for the whole vocabulary")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be positive")


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
