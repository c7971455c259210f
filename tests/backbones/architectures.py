"""A tiny random model of every decoder-only architecture of transformers that can be built on a CPU.

A row of the table is a name and what its configuration has beside the shape that all of them share. The name is the
model type unless ``kind`` names another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY, WIDTH, BLOCKS = 200, 64, 2
PAD, END, START = 0, 1, 2
# Far shorter than the rows of the sweep, so that a window that is lost shows.
WINDOW = 8

# What each configuration takes where it has a key of that name, or another name for it.
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "ffn_hidden_size": 96,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "bos_token_id": START,
    # Mixtures of experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    # Attention over a compressed cache.
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    # Linear attention and state spaces.
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "state_size": 8,
    "query_pre_attn_scalar": 16,
}
# Values drawn at random would differ between two passes.
DROPOUTS = ("drop", "pdrop", "jitter_noise", "layerdrop")

FULL = ["full_attention"] * 2
MIXED = ["sliding_attention", "full_attention"]
SLIDING = {"sliding_window": WINDOW, "layer_types": MIXED}
LINEAR = ["linear_attention", "full_attention"]
MULTIPLIED = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1}
LATENT_CACHE = {"head_dim": 8, "num_key_value_heads": 4}
GEMMA_3N = {
    "num_hidden_layers": 4,
    "sliding_window": WINDOW,
    "layer_types": MIXED * 2,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": VOCABULARY,
}
GEMMA_4 = {
    "kind": "gemma4_text",
    **SLIDING,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "global_head_dim": 16,
}
ZAMBA = {
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "hybrid"] * 2,
    "attention_hidden_size": 2 * WIDTH,
    "attention_head_dim": 32,
    "num_key_value_heads": 4,
}


def _each(names: str, own: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Rows whose names are separated by spaces, all alike."""
    return {name: dict(own or {}) for name in names.split()}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    # --- every token attends to all before it ------------------------------------------------------------------------
    **_each(
        "llama phi3 olmo olmo2 stablelm cohere granite smollm3 glm glm4 ernie4_5 hunyuan_v1_dense nemotron arcee gemma "
        "seed_oss apertus helium diffllama bitnet persimmon phi cwm jais2 nanochat biogpt doge hyperclovax hrm_text "
        "moshi ministral3 qwen2 gpt2 gpt_bigcode gpt_neox_japanese bloom qwen3 laguna"
    ),
    "llama_untied": {"kind": "llama", "tie_word_embeddings": False},
    "llama_tied": {"kind": "llama", "tie_word_embeddings": True},
    "mistral_full": {"kind": "mistral", "sliding_window": None},
    "starcoder2_full": {"kind": "starcoder2", "sliding_window": None},
    "gemma3_text_full": {"kind": "gemma3_text", "sliding_window": WINDOW, "layer_types": FULL},
    "vaultgemma_full": {"kind": "vaultgemma", "layer_types": FULL},
    "phi3_partial": {"kind": "phi3", "partial_rotary_factor": 0.5},
    "granite_mult": {"kind": "granite", "logits_scaling": 8.0, **MULTIPLIED},
    "internlm3": {"num_local_experts": None},
    "gpt_neox": {"rotary_pct": 0.5},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8, "n_ctx": 128},
    "opt": {"word_embed_proj_dim": WIDTH},
    "opt_proj": {"kind": "opt", "word_embed_proj_dim": 32},
    "opt_postln": {"kind": "opt", "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    "mpt": {"expansion_ratio": 2, "max_seq_len": 128},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False},
    "falcon7b": {"kind": "falcon", "multi_query": True, "new_decoder_architecture": False, "alibi": False},
    "falcon_alibi": {
        "kind": "falcon",
        "alibi": True,
        "new_decoder_architecture": False,
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
    },
    "xglm": {},
    "ctrl": {"dff": 96},
    "openai-gpt": {},
    "minicpm3": {**LATENT_CACHE, "scale_emb": 12.0, "dim_model_base": 16},
    "youtu": LATENT_CACHE,
    "bert_decoder": {"kind": "bert", "is_decoder": True},
    "bert_encoder": {"kind": "bert"},
    "xlnet": {"d_inner": 96},
    # --- some layers see a window ------------------------------------------------------------------------------------
    **_each("mistral starcoder2 granite_swa", {"sliding_window": WINDOW}),
    **_each("ministral gemma3_text vaultgemma olmo3 cohere2 gemma2", SLIDING),
    "qwen2_swa": {"kind": "qwen2", "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "gemma3n_text": {
        **GEMMA_3N,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "intermediate_size": [96] * 4,
        "altup_num_inputs": 2,
    },
    "gemma4_text": {**GEMMA_3N, "global_head_dim": 16},
    "gemma4_dense": GEMMA_4,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "exaone4": {**SLIDING, "sliding_window_pattern": 2},
    "modernbert-decoder": {**SLIDING, "local_attention": WINDOW},
    "llama4_text": {
        "attention_chunk_size": WINDOW,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
        "intermediate_size_mlp": 96,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "num_attention_heads": 2,
        "attention_head_size": 16,
        "feed_forward_size": 96,
        "axial_pos_embds": True,
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [32, 32],
        "is_decoder": True,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "hash_seed": 0,
        "num_buckets": 4,
    },
    # --- mixtures of experts -----------------------------------------------------------------------------------------
    **_each(
        "mixtral qwen3_moe olmoe granitemoe glm4_moe minimax_m2 phimoe flex_olmo solar_open mimo_v2_flash "
        "hunyuan_v1_moe cohere2_moe"
    ),
    "qwen2_moe": {"decoder_sparse_step": 1},
    "granitemoe_mult": {"kind": "granitemoe", "logits_scaling": 6.0, **MULTIPLIED},
    "granitemoeshared": {"shared_intermediate_size": 32},
    "glm4_moe_lite": LATENT_CACHE,
    "deepseek_v2": {**LATENT_CACHE, "topk_method": "greedy"},
    "deepseek_v3": LATENT_CACHE,
    # So many heads that hardly any token scores zero with all of them: which of those are kept is chance.
    "deepseek_v32": {**LATENT_CACHE, "index_n_heads": 16, "index_head_dim": 16, "index_topk": 4},
    "axk1": LATENT_CACHE,
    "longcat_flash": {**LATENT_CACHE, "num_layers": 1},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "jetmoe": {"kv_channels": 16},
    **_each("gpt_oss dots1 exaone_moe", SLIDING),
    "zaya": {"num_experts_per_tok": 1},
    "afmoe": {**SLIDING, "num_dense_layers": 1},
    "gemma4_moe": {**GEMMA_4, "enable_moe_block": True, "top_k_experts": 2},
    # --- states instead of, or beside, keys and values ---------------------------------------------------------------
    "mamba": {"expand": 2, "conv_kernel": 4, "time_step_rank": 4},
    "falcon_mamba": {"expand": 2, "conv_kernel": 4, "time_step_rank": 4},
    "mamba2": {"num_heads": 8, "n_groups": 1, "expand": 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_expand": 2, "shared_intermediate_size": 32},
    "jamba": {
        "num_hidden_layers": 4,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "bamba": {"attn_layer_indices": [1]},
    "zamba2": {
        **ZAMBA,
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "mamba_ngroups": 1,
        "num_mem_blocks": 1,
        "use_shared_attention_adapter": False,
        "adapter_rank": 8,
        "use_mem_rope": True,
    },
    "zamba": {**ZAMBA, "n_mamba_heads": 2, "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "block_types": ["recurrent", "recurrent", "attention"],
        "lru_width": WIDTH,
        "attention_window_size": WINDOW,
    },
    "rwkv": {"attention_hidden_size": WIDTH, "context_length": 128},
    "xlstm": {
        "embedding_dim": WIDTH,
        "num_heads": 2,
        "num_blocks": BLOCKS,
        "qk_dim_factor": 1.0,
        "v_dim_factor": 1.0,
        "mode": "inference",
        "return_last_states": True,
        "autocast_kernel_dtype": "float32",
        "inference_state_dtype": "float32",
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "inkling_text": {
        "swa_head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "sliding_window_size": WINDOW,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    **_each("qwen3_next qwen3_5_text olmo_hybrid", {"layer_types": LINEAR}),
    "kimi_linear": {**LATENT_CACHE, "layer_types": LINEAR, "linear_head_dim": 16, "linear_num_heads": 2},
    "minimax": {"layer_types": LINEAR, "block_size": 8},
    "falcon_h1": {"mamba_d_ssm": 128},
    "falcon_h1_mult": {
        "kind": "falcon_h1",
        "mamba_d_ssm": 128,
        "embedding_multiplier": 5.65,
        "lm_head_multiplier": 0.04,
    },
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "layer_types": ["mamba", "attention"],
    },
    # --- with a part for pictures ------------------------------------------------------------------------------------
    "gemma3_mm": {"kind": "gemma3", "text": "gemma3_text"},
    "qwen3_5_mm": {"kind": "qwen3_5", "text": "qwen3_5_text"},
}

# What sets apart the rows whose name is not a model type.
VARIANTS = {
    "llama_untied": "table and head apart",
    "llama_tied": "table and head tied",
    "mistral_full": "no sliding window",
    "starcoder2_full": "no sliding window",
    "gemma3_text_full": "no sliding layers",
    "vaultgemma_full": "no sliding layers",
    "phi3_partial": "rotary positions on half of a head",
    "granite_mult": "multipliers other than 1",
    "granitemoe_mult": "multipliers other than 1",
    "opt_proj": "table narrower than the blocks",
    "opt_postln": "table narrower than the blocks, norms after them",
    "falcon7b": "as Falcon-7B",
    "falcon_alibi": "ALiBi positions",
    "bert_decoder": "is_decoder set",
    "bert_encoder": "is_decoder not set",
    "qwen2_swa": "sliding windows",
    "granite_swa": "sliding windows",
    "gemma4_dense": "no inputs for each layer",
    "gemma4_moe": "experts",
    "falcon_h1_mult": "multipliers other than 1",
    "gemma3_mm": "with its part for pictures",
    "qwen3_5_mm": "with its part for pictures",
}

PICTURES: dict[str, dict[str, Any]] = {
    "gemma3": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": VOCABULARY - 1,
        "boi_token_index": VOCABULARY - 2,
        "eoi_token_index": VOCABULARY - 3,
    },
    "qwen3_5": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "num_position_embeddings": 16,
        },
        "image_token_id": VOCABULARY - 1,
        "video_token_id": VOCABULARY - 2,
        "vision_start_token_id": VOCABULARY - 3,
        "vision_end_token_id": VOCABULARY - 4,
    },
}


def tiny_config(name: str) -> PreTrainedConfig:
    """The configuration of an architecture of the table."""
    own = dict(ARCHITECTURES[name])
    family: Any = CONFIG_MAPPING[own.pop("kind", name)]
    if "text" in own:
        special = {"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": START}
        text = tiny_config(own["text"]).to_dict()
        return family(text_config=text, **PICTURES[family.model_type], **special)
    keys, named = set(family().to_dict()), dict(getattr(family, "attribute_map", None) or {})
    settings = {named.get(key, key): value for key, value in SHAPE.items()}
    settings = {key: value for key, value in settings.items() if key in keys}
    settings |= {key: 0.0 for key in keys if any(part in key for part in DROPOUTS)}
    return family(**(settings | own))


# Numbers that a family sets with care: time constants, gates, kernels. They stay, but for a little noise on equal ones.
CAREFUL = (
    *("A_log", "dt_bias", ".D", "time_decay", "time_first", "time_mix", "lambda_", "recurrent_param", "igate", "fgate"),
    *("dt_proj", "altup", "logit_scale"),
)


@torch.no_grad()
def enliven(model: nn.Module, seed: int = 3) -> None:
    """Weights so large that every token, place and bias shows in the scores: fresh ones would hide errors."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor, spread: float) -> Tensor:
        return spread * torch.randn(like.shape, generator=generator)

    table, head = model.get_input_embeddings().weight, getattr(model.get_output_embeddings(), "weight", None)
    for name, weight in model.named_parameters():
        if any(part in name for part in CAREFUL):
            if "time_decay" not in name and not weight.std(unbiased=False):
                weight.add_(noise(weight, 0.1))
        elif name.endswith(("bias", "bias_")) or "sinks" in name:
            weight.copy_(noise(weight, 0.15))
        elif weight.ndim == 1:
            weight.add_(noise(weight, 0.1))
        elif weight is table:
            weight.copy_(noise(weight, 0.5))
        elif "conv" in name and weight.ndim == 3:
            weight.copy_(noise(weight, 0.4))
        else:
            weight.copy_(noise(weight, 0.3 if weight is head else 0.16))


def tiny_model(name: str) -> PreTrainedModel:
    """A model of the table with lively random weights, in float32."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(name), attn_implementation="eager")
    enliven(model)
    return model.eval()
