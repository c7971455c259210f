"""Configuration of LOTUS's model."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from unspoken.methods.configuration import LatentConfig


@strict
class LotusConfig(LatentConfig):
    """Configuration of `LotusForCausalLM`.

    Args:
        iterations: passes over all latents after the first one.
        add_row: a latent is the sum of the latent row and its own output; false takes the output alone.
    """

    model_type = "lotus"

    iterations: int = 6
    add_row: bool = True
