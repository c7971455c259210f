"""Configuration of CoLaR's model."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from unspoken.methods.configuration import LatentConfig


@strict
class ColarConfig(LatentConfig):
    """Configuration of `ColarForCausalLM`; ``latents`` is the cap of a chain.

    Args:
        compression: tokens that a latent stands for where nothing else is asked for.
        speed_ids: for each compression from 1, the tokens after a prompt that name it.
        head_width: of the layers between in the latent head; the model's own if None.
        deterministic: the latent head has a mean alone.
        floor: smallest standard deviation that a latent is drawn with, in units of the table's.
        root_mean: a group is the sum of its rows over the root of their number; otherwise over the number.
    """

    model_type = "colar"

    latents: int = 64
    compression: int = 2
    speed_ids: list[list[int]] | None = None
    head_width: int | None = None
    deterministic: bool = False
    floor: float = 0.0
    root_mean: bool = True
