"""What does a latent cost?

* Cached against uncached: without a cache, step n runs the whole prefix again, so a chain of N costs O(N^2) passes of
  tokens. With one it costs N passes of one position.
* Batch 1, 8, 64: a small batch waits for memory, a large one computes.
* Flat in chain length: a cached step reads keys and values of everything before it, which is a small part of the work
  as long as the width is large against the length; the cost of the last of 512 latents should be that of the first.

The last line is one JSON object.
"""

from __future__ import annotations

import json
import sys
from functools import partial

import torch
from timing import timed

from unspoken.backbone import UnspokenConfig
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.reasoning.engine import LatentStep, StopRule

STEPS = 32


def build() -> JepaReasonerModel:
    """A Reasoner of the small size; speed does not depend on training."""
    torch.manual_seed(0)
    shape = UnspokenConfig(
        vocab_size=21,
        hidden_size=256,
        attention_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=1024,
        attn_implementation="eager",
    )
    model = JepaReasonerModel._from_config(
        JepaReasonerConfig(backbone_config=shape, eos_token_id=1, pad_token_id=0), attn_implementation="eager"
    )
    model.start_target()
    return model.eval()


@torch.no_grad()
def uncached(model: JepaReasonerModel, prompt: torch.Tensor, steps: int) -> None:
    """The naive loop: everything again at every step."""
    inputs = model.embed_prompt(prompt)
    for _ in range(steps):
        hidden = model.stack(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1]
        latent_step: LatentStep = model.step(hidden)
        inputs = torch.cat([inputs, latent_step.next_input[:, None]], dim=1)


def against_uncached(model: JepaReasonerModel, batch: int, rounds: int) -> dict[str, float]:
    """Latents a second of a batch with a cache and without one."""
    prompt = torch.randint(6, 21, (batch, 46))
    cached = timed(lambda: model.reason(prompt, None, StopRule(max_latents=STEPS, fixed=True)), rounds)
    naive = timed(lambda: uncached(model, prompt, STEPS), max(1, rounds // 3))
    return {
        "latents_per_second": round(batch * STEPS / cached),
        "uncached_latents_per_second": round(batch * STEPS / naive),
        "cached_over_uncached": round(naive / cached, 2),
    }


def main(rounds: int) -> None:
    """Run everything and print the JSON line."""
    model = build()
    result: dict[str, object] = {"benchmark": "rollout", "threads": torch.get_num_threads()}
    for batch in (1, 8, 64):
        result[f"batch_{batch}"] = against_uncached(model, batch, rounds)
    for batch in (1, 8):
        prompt = torch.randint(6, 21, (batch, 46))
        seconds = {
            steps: timed(partial(model.reason, prompt, None, StopRule(max_latents=steps, fixed=True)), rounds)
            for steps in (32, 64, 128, 256, 512)
        }
        result[f"milliseconds_per_latent_batch_{batch}"] = {s: round(1000 * v / s, 3) for s, v in seconds.items()}
        late = (seconds[512] - seconds[256]) / 256
        early = (seconds[64] - seconds[32]) / 32
        result[f"late_over_early_latent_batch_{batch}"] = round(late / early, 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
