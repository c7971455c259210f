"""Configuration of PCCoT's model."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from unspoken.methods.configuration import SelfDistilledConfig


@strict
class PccotConfig(SelfDistilledConfig):
    """Configuration of `PccotForCausalLM`.

    Args:
        iterations: passes over all latents after the first one.
    """

    model_type = "pccot"

    latents: int = 24
    iterations: int = 3
