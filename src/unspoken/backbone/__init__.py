"""The decoder we train from scratch; importing it registers it with the transformers auto classes."""

from unspoken.backbone.configuration import UnspokenConfig
from unspoken.backbone.modeling import UnspokenForCausalLM, UnspokenModel

__all__ = ["UnspokenConfig", "UnspokenForCausalLM", "UnspokenModel"]
