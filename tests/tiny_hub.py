"""Very small models of the families that can be found on the hub, with lively random weights."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY, WIDTH = 60, 32
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    # Mixtures of experts.
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
GPT = {"n_positions": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 4}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8}
FALCON_H1 = {"mamba_d_ssm": 64, "embedding_multiplier": 3.0, **MAMBA}
PER_LAYER = {
    **SLIDING,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
    "global_head_dim": 8,
}
ZAMBA_2 = {
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "layers_block_type": ["mamba", "hybrid"] * 2,
    "mamba_d_state": 8,
    "n_mamba_heads": 8,
    "mamba_headdim": 8,
    "mamba_ngroups": 1,
    "chunk_size": 8,
    "num_mem_blocks": 1,
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
    "adapter_rank": 4,
}
MINICPM_3 = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "head_dim": 4,
    "scale_emb": 12.0,
    "dim_model_base": 8,
}
# State spaces and their steps are left as they are drawn; others make them grow without bound.
KEPT = ("A_log", "dt_bias", ".D", "time_", "recurrent_param", "dt_proj")


def tiny_hub_model(kind: str, attention: str | None = "eager", **settings: Any) -> PreTrainedModel:
    """A causal language model of two blocks of a model type of the library."""
    cls = CONFIG_MAPPING[kind]
    known = set(cls().to_dict()) - set(cls.attribute_map)
    config = cls(**{name: value for name, value in SHAPE.items() if name in known} | settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return enlivened(model)


@torch.no_grad()
def enlivened(model: PreTrainedModel) -> PreTrainedModel:
    """Draw every weight anew, larger than fresh ones are."""
    generator = torch.Generator().manual_seed(3)
    table: nn.Parameter = model.get_input_embeddings().weight
    for name, weight in model.named_parameters():
        if any(part in name for part in KEPT):
            continue
        if weight is table:
            weight.normal_(0, 0.5, generator=generator)
        elif weight.ndim == 1 and not name.endswith("bias"):
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
        else:
            weight.normal_(0, 0.2, generator=generator)
    return model.eval()


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random tokens that are neither padding nor end."""
    return torch.randint(9, VOCABULARY - 4, shape, generator=torch.Generator().manual_seed(seed))


# --- a folder as the hub has it, and a user's own data ------------------------------------------------------------


def save_tokenizer(folder: Path, markers: tuple[str, ...] = ("<think>", "</think>")) -> int:
    """One token a character after padding, end and the markers; how many there are."""
    tokens = ["~pad", "~end", *markers, *string.printable]
    words = Tokenizer(models.WordLevel({token: place for place, token in enumerate(tokens)}, unk_token="~pad"))
    whole = "|".join([*markers, "~end"])
    words.pre_tokenizer = pre_tokenizers.Split(Regex(whole + r"|[\s\S]"), behavior="isolated")
    words.decoder = decoders.Fuse()
    special = {"pad_token": "~pad", "eos_token": "~end"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return len(tokens)


def save_hub_folder(folder: Path, kind: str = "llama", **settings: Any) -> Path:
    """A tiny pretrained model with its tokenizer."""
    rows = save_tokenizer(folder, **settings)
    tiny_hub_model(kind, vocab_size=rows, max_position_embeddings=256).save_pretrained(folder)
    return folder


def save_problems(file: Path, rows: int = 40) -> Path:
    """A user's own problems, a JSON object a line."""
    problems = [
        {"question": f"What is {n} plus {n % 7}?", "steps": [f"{n}+{n % 7}={n + n % 7}", "done"], "answer": n + n % 7}
        for n in range(rows)
    ]
    file.write_text("".join(f"{json.dumps(problem)}\n" for problem in problems))
    return file
