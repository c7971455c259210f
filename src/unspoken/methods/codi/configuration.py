"""Configuration of CODI's model."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from unspoken.methods.configuration import SelfDistilledConfig


@strict
class CodiConfig(SelfDistilledConfig):
    """Configuration of `CodiForCausalLM`."""

    model_type = "codi"
