"""Published shapes of models and measured lengths of data, for plans of recipes whose files cannot be loaded."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from unspoken.methods.cost import Lengths

# From their publishers' config.json; keys that change no count are left out.
_SHAPES: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "meta-llama/Llama-3.2-1B-Instruct": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    # What `unspoken train prose --size paper --set backbone.layers=42 --stage pretrain` makes.
    "runs/prose-paper/seed-0/pretrain/model": {
        "model_type": "unspoken",
        "vocab_size": 50257,
        "hidden_size": 1280,
        "attention_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 42,
        "num_attention_heads": 20,
    },
}

# Five hundred rows, with the chat template and the tokenizer of SmolLM2; one that does not part digits has fewer.
_LENGTHS = {"whynlp/gsm8k-aug": Lengths(prompt=98.4, chain=29.5, end=3.0, answer=8.6, steps=2.7)}


def published_shape(backbone: str) -> PreTrainedConfig | None:
    """The configuration of a model that a shipped recipe names; None for any other."""
    shape = _SHAPES.get(backbone)
    return None if shape is None else AutoConfig.for_model(**shape)


def measured_lengths(source: str | None) -> Lengths | None:
    """Lengths of the problems that a shipped recipe trains on; None for any other."""
    return _LENGTHS.get(source or "")
