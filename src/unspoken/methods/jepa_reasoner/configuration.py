"""What a JEPA-Reasoner folder records beyond its weights."""

from __future__ import annotations

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from unspoken.backbone import UnspokenConfig


@strict
class JepaReasonerConfig(PreTrainedConfig):
    """Configuration of the Reasoner and, once it has been trained, its Talker.

    Args:
        backbone_config: any decoder-only transformers config: the Reasoner's blocks.
        unit_tokens: table rows are normalised before they enter the first block, so that tokens and looped latents
            share one scale (docs/methods/jepa_reasoner.md, open point 8). If False, rows enter as they
            are, and latents get the rows' mean norm.
        input_scale: the shared scale; the square root of the latent width if None.
        max_latents: cap of a chain when `generate` is given no length.
        open_ids: tokens between every prompt of training and its first latent, ``<think>`` in word problems. The caller
            of `generate` appends them to the prompt.
        talker_kind: ``"mono"`` (one pass, latents in, tokens out) or ``"dual"`` (encoder over latents, causal decoder
            with cross-attention).
        talker_config: shape of the Talker's blocks; its width is the latent width. None before stage 3.
        talker_encoder_layers: blocks of the Dual-Talker's encoder.
    """

    model_type = "jepa_reasoner"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="unspoken"),
        "talker_config": SubConfigSpec(config_class=UnspokenConfig, optional=True),
    }

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    unit_tokens: bool = True
    input_scale: float | None = None
    max_latents: int = 64
    open_ids: list[int] | None = None
    talker_kind: Literal["mono", "dual"] = "mono"
    talker_config: dict[str, Any] | PreTrainedConfig | None = None
    talker_encoder_layers: int = 1
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @property
    def latent_dim(self) -> int:
        """Width of a latent."""
        assert isinstance(self.backbone_config, PreTrainedConfig)
        return self.backbone_config.hidden_size

    @property
    def end_id(self) -> int:
        """The one token whose table row ends a chain."""
        if isinstance(self.eos_token_id, int):
            return self.eos_token_id
        raise ValueError(f"eos_token_id is {self.eos_token_id!r}; a JEPA-Reasoner needs exactly one")
