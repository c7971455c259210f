"""Very small models with lively random weights, one a family.

Fresh weights are so small that a chain repeats its first token for ever, which would hide errors of the cache and of
positions; these weights are larger, and their seed is one with which chains wander. They are not as large as they
could be: in a chaotic chain the rounding of float32 grows tenfold a step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from unspoken.backbone import UnspokenConfig
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel

# GPT-2 is here for its absolute positions: the rotary families forgive a row that counts from the wrong place.
FAMILIES = ("unspoken", "llama", "qwen2", "gpt2")
SEED_AND_SPREAD = {
    "unspoken": (2, 0.6),
    "llama": (2, 0.2),
    "qwen2": (6, 0.2),
    "gpt2": (8, 0.5),
    "talker": (21, 0.6),
}
VOCABULARY = 20
PAD, END = 0, 1
WIDTH = 16


def tiny_config(family: str, **settings: Any) -> PreTrainedConfig:
    """Two blocks of width 16 over twenty tokens."""
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "eos_token_id": END,
    }
    if family == "unspoken":
        return UnspokenConfig(**(shape | {"attention_size": 24, "num_attention_heads": 2} | settings))
    if family == "gpt2":
        silent = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        shape["n_inner"] = shape.pop("intermediate_size")
        return GPT2Config(**(shape | silent | {"num_attention_heads": 4, "bos_token_id": 2} | settings))
    # Fewer key heads than query heads, so that the cache of grouped attention is in the test too.
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 2}
    return {"llama": LlamaConfig, "qwen2": Qwen2Config}[family](**(shape | settings))


@torch.no_grad()
def enliven(model: nn.Module, family: str) -> None:
    """Draw every weight anew: matrices and biases from a normal, gains around one."""
    seed, std = SEED_AND_SPREAD[family]
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 or name.endswith("bias"):
            parameter.normal_(0, std, generator=generator)
        else:
            parameter.copy_(1 + std * torch.randn(parameter.shape, generator=generator))


def tiny_language_model(family: str, attention: str = "eager", **settings: Any) -> PreTrainedModel:
    """A causal language model with a head."""
    model = AutoModelForCausalLM.from_config(tiny_config(family, **settings), attn_implementation=attention)
    enliven(model, family)
    model.eval()
    return model


def tiny_recurrent_model() -> PreTrainedModel:
    """A causal language model of which one layer has a recurrent state and one attends."""
    config = Lfm2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
    )
    return AutoModelForCausalLM.from_config(config)


def tiny_reasoner(family: str = "unspoken", attention: str = "eager", *, unit_tokens: bool = True) -> JepaReasonerModel:
    """A Reasoner whose target table is its own table."""
    settings = {"l2_output": True, "unit_embeddings": unit_tokens} if family == "unspoken" else {}
    config = JepaReasonerConfig(
        backbone_config=tiny_config(family, **settings), unit_tokens=unit_tokens, pad_token_id=PAD, eos_token_id=END
    )
    model = JepaReasonerModel._from_config(config, attn_implementation=attention)
    enliven(model, family)
    model.start_target()
    return model.eval()


def tiny_pair(
    variant: str = "mono",
    family: str = "unspoken",
    attention: str = "eager",
    *,
    vocabulary: int = VOCABULARY,
    **talker: Any,
) -> JepaReasonerForCausalLM:
    """A Reasoner with its Talker."""
    settings = {"l2_output": True} if family == "unspoken" else {}
    config = JepaReasonerConfig(
        backbone_config=tiny_config(family, vocab_size=vocabulary, **settings),
        talker_config=tiny_config("unspoken", vocab_size=vocabulary, **talker),
        talker_kind=variant,
        talker_encoder_layers=2,
        pad_token_id=PAD,
        eos_token_id=END,
        max_latents=8,
    )
    model = JepaReasonerForCausalLM._from_config(config, attn_implementation=attention)
    enliven(model, family)
    model.reasoner.start_target()
    return model.eval()


def prompts(rows: int = 6, length: int = 5, seed: int = 0) -> Tensor:
    """Random tokens that are neither padding nor end."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
