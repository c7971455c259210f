"""Configuration of CoLaR's model."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class ColarConfig(PreTrainedConfig):
    """Configuration of `ColarForCausalLM`.

    Args:
        base_config: of the causal language model, any decoder-only one.
        compression: tokens that a latent stands for where nothing else is asked for.
        speed_ids: for each compression from 1, the tokens after a prompt that name it.
        open_ids, end_ids: tokens of the markers around the chain.
        max_latents: cap of a chain.
        head_width: of the layers between in the latent head; the model's own if None.
        deterministic: the head has a mean alone.
        floor: the smallest standard deviation of the head.
        root_mean: a group is the sum of its rows over the root of their number; otherwise over the number.
    """

    model_type = "colar"
    sub_configs_defaults = {"base_config": SubConfigSpec(config_class=AutoConfig, model_type="unspoken")}

    base_config: dict[str, Any] | PreTrainedConfig | None = None
    compression: int = 5
    speed_ids: list[list[int]] | None = None
    open_ids: list[int] | None = None
    end_ids: list[int] | None = None
    max_latents: int = 64
    head_width: int | None = None
    deterministic: bool = False
    floor: float = 0.1
    root_mean: bool = True
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
