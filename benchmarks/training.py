"""How fast does SST train, compared with what?

Three figures, all measured in turn within one process (A B C A B C ...), so that drift of the machine cancels:

* SST against the same stack trained by next-token cross-entropy. SST has no head and no softmax over the vocabulary,
  but normalises its outputs and looks up target rows: it should cost the same or less.
* The same stack against a GPT-2 of equal shape out of transformers. What we do differently on a CPU: plain attention
  (for short sequences the fused kernel is slower in bfloat16), no dropout, no biases.
* Achieved floating-point operations a second of a width-512 stack against the rate of a large bfloat16 matrix product
  measured in the same run: how much of the machine is used.

The last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable

import numpy as np
import torch
from timing import interleaved, matmul_rate, ratio, rounded
from transformers import GPT2Config, GPT2LMHeadModel

from unspoken.backbone import UnspokenConfig, UnspokenForCausalLM
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.jepa_reasoner.stages import SST
from unspoken.reasoning.flops import stack_flops
from unspoken.tasks import TreeSearchConfig


def step_of(model: torch.nn.Module, objective: NextToken | SST, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """One forward and backward pass in the chosen precision; the optimiser is the same for all and left out."""

    def step() -> None:
        loss, _ = objective.loss(rounded(model), batch)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def against_others(rounds: int) -> tuple[dict[str, list[float]], int]:
    """Seconds of each contender at width 256 on the same tree-search problems, and tokens a step."""
    torch.manual_seed(0)
    shape = {"vocab_size": 21, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
    ours = UnspokenConfig(**shape, attention_size=256, intermediate_size=1024, attn_implementation="eager")
    batch = problems(64)
    coupled = UnspokenForCausalLM(ours)
    reasoner = JepaReasonerModel._from_config(
        JepaReasonerConfig(backbone_config=ours, eos_token_id=1, pad_token_id=0), attn_implementation="eager"
    )
    reasoner.start_target()
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=21,
            n_embd=256,
            n_layer=6,
            n_head=4,
            n_inner=1024,
            n_positions=128,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    seconds = interleaved(
        {
            "sst": step_of(reasoner, SST(), batch),
            "next_token": step_of(coupled, NextToken(), batch),
            "gpt2": step_of(gpt2, NextToken(), batch),
        },
        rounds,
    )
    return seconds, batch["input_ids"].numel()


def problems(rows: int) -> dict[str, torch.Tensor]:
    """Tree-search problems as a batch."""
    task = TreeSearchConfig().build()
    return task.rows(task.sample("train", np.arange(rows)))


def main(rounds: int) -> None:
    """Run everything and print the JSON line."""
    seconds, tokens = against_others(rounds)
    wide = UnspokenForCausalLM(
        UnspokenConfig(
            vocab_size=21,
            hidden_size=512,
            attention_size=512,
            intermediate_size=2048,
            num_hidden_layers=6,
            num_attention_heads=8,
            attn_implementation="eager",
        )
    )
    wide_batch = problems(128)
    wide_seconds = interleaved({"wide": step_of(wide, NextToken(), wide_batch)}, max(3, rounds // 3))["wide"]
    rows, length = wide_batch["input_ids"].shape
    forward = stack_flops(wide.model, length) + 2 * length * wide.lm_head.weight.numel()
    flops = 3 * rows * forward / statistics.median(wide_seconds)
    rate = matmul_rate()
    print(
        json.dumps(
            {
                "benchmark": "training",
                "threads": torch.get_num_threads(),
                "sst_tokens_per_second": round(tokens / statistics.median(seconds["sst"])),
                "next_token_tokens_per_second": round(tokens / statistics.median(seconds["next_token"])),
                "gpt2_tokens_per_second": round(tokens / statistics.median(seconds["gpt2"])),
                "sst_over_next_token": ratio(seconds["next_token"], seconds["sst"]),
                "ours_over_gpt2": ratio(seconds["gpt2"], seconds["next_token"]),
                "width_512_gflops": round(flops / 1e9, 1),
                "matmul_gflops": round(rate / 1e9, 1),
                "share_of_matmul_rate": round(flops / rate, 3),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
