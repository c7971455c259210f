"""What does each method cost, to train and to ask?

Every method at one shape (`methods.yaml`: width 256, six blocks), on the same word problems, with random weights and
fixed seeds; contenders take turns within one process.

* Training: whole steps, as the Trainer takes them: forward in the chosen precision, backward, clipping, optimiser.
  Tokens are those that a method reads of the problems, padding left out: Latent-SFT's first stage reads each chain
  twice, Coconut reads its latents one after another. Floating-point operations are those of `unspoken plan`, which
  counts no padding, no optimiser and of attention only what the mask lets through, so their share of the rate of a
  large bfloat16 matrix product (measured in the same process) has everything in it that keeps a step from that rate.
* Answering: chains and answers of fixed length, since a model of random weights would stop anywhere, in float32 as
  models are measured and served. A chain has the mean length of the explicit ones, or what the method makes of it.
* Memory: highest resident memory of a process of its own above what it held before, which is Python and libraries.
  So it holds weights, gradients, optimiser state, activations, and the kernels that are loaded on the way.

The last line is one JSON object.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timing import ATTENTION, PRECISION, interleaved, matmul_rate, ratio, rounded
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from unspoken.machine import Precision
from unspoken.methods.jepa_reasoner.stages import SST
from unspoken.methods.latent_sft.stages import Labels, Stage2, shape_of
from unspoken.methods.rows import Rows, compact_rows
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import StopRule
from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.training.context import base_config, context_of
from unspoken.training.optimizers import build_optimizer
from unspoken.training.plan import plan
from unspoken.training.recipe import Recipe, Stage, load

ANSWER = 6  # tokens
SIZES = (1, 8, 32)


@cache
def recipe() -> Recipe:
    """Shapes and stages."""
    return load(str(Path(__file__).with_name("methods.yaml")))


@cache
def problems() -> tuple[list[ReasoningProblem], PromptFormat]:
    """The problems of one batch, which are also those whose lengths a plan goes by."""
    prompt_format = PromptFormat(tokenizer=recipe().tokenizer())
    some: Any = recipe().task.build().sample("train", np.arange(recipe().stages[0].batch_size))
    return some, prompt_format


def model_of(of: Recipe, stage: Stage, attention: str = ATTENTION, device: str = "cpu") -> PreTrainedModel:
    """The stage's model with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        return _built(replace(of, attention=attention), stage)


def _built(of: Recipe, stage: Stage) -> PreTrainedModel:
    """On top of the untrained models of the stages before it; a pretrained backbone gives its shape alone."""
    auto: Any = AutoModelForCausalLM
    base = partial(auto.from_config, base_config(of), attn_implementation=of.attention)
    start = None
    if stage.start is not None:
        before = of.stage(stage.start)
        start = before.objective.exported(_built(of, before))
    return stage.objective.build(start, replace(context_of(of, stage), base=base))


# --- training --------------------------------------------------------------------------------------------------------


def batch_of(of: Recipe, stage: Stage, indices: NDArray[np.int64]) -> dict[str, Any]:
    """What the stage reads of some problems; labels are random."""
    context = context_of(of, stage)
    if not isinstance(stage.objective, Stage2):
        return stage.objective.collate(context)(indices)
    spans = context.task.spans(context.sample(indices), context.prompt_format)
    shape, tokenizer = shape_of(context.lineage), context.tokenizer
    rows = compact_rows(spans, context.markers, rate=shape.rate, pad_id=tokenizer.pad_token_id)
    slots = int(rows.slots.sum())
    if shape.latent == "hidden":
        return {"decoder": rows, "weights": torch.randn(slots, base_config(of).hidden_size), "ids": None}
    kept = shape.top_k
    assert kept is not None
    ids = torch.randint(len(tokenizer), (slots, kept))
    return {"decoder": rows, "weights": torch.randn(slots, kept).softmax(dim=-1), "ids": ids}


def real_and_placed(batch: dict[str, Any]) -> tuple[int, int]:
    """Tokens and latents of a batch, without and with padding."""
    real = [part.real for part in batch.values() if isinstance(part, Rows)]
    real += [batch[name] for name in ("attention_mask", "latent_mask", "text_mask") if name in batch]
    return sum(int(part.sum()) for part in real), sum(part.numel() for part in real)


class Step:
    """One training step of a stage, again and again on one batch, where the model is."""

    def __init__(self, stage: Stage, model: PreTrainedModel, batch: dict[str, Any], precision: Precision) -> None:
        self.objective = stage.objective
        self.model: Any = model.train()
        self.batch = batch
        self.forward = rounded(self.model, precision)
        self.optimizer = build_optimizer(self.model, stage.optimizer, precision)
        self.clip = stage.optimizer.clip
        self.updates: list[float] = []

    def __call__(self) -> None:
        self.objective.loss(self.forward, self.batch)[0].backward()
        began = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        if isinstance(self.objective, SST):
            self.model.update_target(self.objective.momentum)
        self.optimizer.zero_grad()
        self.updates.append(time.perf_counter() - began)


def step_of(stage: Stage) -> Step:
    """A stage's step on the problems of one batch."""
    batch = batch_of(recipe(), stage, np.arange(stage.batch_size))
    return Step(stage, model_of(recipe(), stage), batch, PRECISION)


def trained() -> list[Stage]:
    """The stages that take steps."""
    return [stage for stage in recipe().stages if not isinstance(stage.objective, Labels)]


def training(rounds: int) -> dict[str, Any]:
    """Speed of every stage, beside next-token training."""
    steps = {stage.name: step_of(stage) for stage in trained()}
    peak = matmul_rate()
    seconds = interleaved(dict(steps), rounds)
    peak = max(peak, matmul_rate())
    flops = {entry["stage"]: entry["flops"] for entry in plan(recipe())["models"]}
    base = real_and_placed(steps["next_token"].batch)[0]
    found: dict[str, Any] = {}
    for name, step in steps.items():
        real, placed = real_and_placed(step.batch)
        median = statistics.median(seconds[name])
        found[name] = {
            "tokens_per_second": round(real / median),
            # Of tokens a second, and of problems a second.
            "over_next_token": round(ratio(seconds["next_token"], seconds[name]) * real / base, 3),
            "problems_over_next_token": ratio(seconds["next_token"], seconds[name]),
            "gflops": round(flops[name] / median / 1e9, 1),
            "share_of_matmul_rate": round(flops[name] / median / peak, 3),
            "update_share": round(statistics.median(step.updates[2:]) / median, 3),
            "padding": round(1 - real / placed, 3),
        }
    return {"matmul_gflops": round(peak / 1e9, 1), "stages": found}


# --- answering -------------------------------------------------------------------------------------------------------


@cache
def chain_length() -> int:
    """Mean length of the explicit chains, in tokens."""
    some, prompt_format = problems()
    return round(statistics.mean(len(prompt_format.spans(one).chain) for one in some))


def speaking(**how: Any) -> Callable[[Tensor, Tensor], object]:
    """A causal language model that writes a fixed number of latents and then a fixed number of tokens."""
    _, prompt_format = problems()
    markers = prompt_format.markers
    settings = LatentGenerationConfig(open_ids=markers.open, end_ids=markers.end, fixed=True, **how)
    reasoner = CausalLMReasoner(model=model_of(recipe(), recipe().stage("next_token")).eval(), settings=settings)
    never = GenerationConfig(
        eos_token_id=len(prompt_format.tokenizer), pad_token_id=prompt_format.tokenizer.pad_token_id
    )
    return lambda ids, mask: reasoner.respond(ids, mask, max_tokens=ANSWER, config=never)


def paired() -> Callable[[Tensor, Tensor], object]:
    """JEPA-Reasoner with a Mono-Talker: a latent for every token of chain, end marker and answer, then one pass."""
    pair: Any = model_of(recipe(), recipe().stage("mono_talker")).eval()
    marker = problems()[1].markers.end
    stop = StopRule(max_latents=chain_length() + len(marker) + ANSWER, fixed=True)
    return lambda ids, mask: pair.speak(pair.reason(ids, mask, stop))


# By name, what makes a method that is ready to answer.
ANSWERING: dict[str, Callable[[], Callable[[Tensor, Tensor], object]]] = {
    "explicit_chain": lambda: speaking(top_k=1, max_latents=chain_length()),
    "soft_thinking": lambda: speaking(top_k=10, max_latents=chain_length()),
    "latent_sft": lambda: speaking(top_k=10, max_latents=-(-chain_length() // 2)),
    "coconut": lambda: speaking(feed="hidden", max_latents=6),
    "jepa_mono_talker": paired,
}


def answering(rounds: int) -> dict[str, Any]:
    """Time of one answer alone, and answers a second in batches."""
    methods = {name: build() for name, build in ANSWERING.items()}
    some, prompt_format = problems()
    found: dict[str, Any] = {name: {} for name in methods}
    for size in SIZES:
        ids, mask = prompt_format.prompts(some[:size])
        seconds = interleaved(
            {name: partial(respond, ids, mask) for name, respond in methods.items()},
            rounds,
        )
        for name, taken in seconds.items():
            if size == 1:
                found[name]["milliseconds_alone"] = round(1000 * statistics.median(taken), 1)
            found[name][f"answers_per_second_batch_{size}"] = round(size / statistics.median(taken), 1)
            found[name][f"over_explicit_chain_batch_{size}"] = ratio(seconds["explicit_chain"], taken)
    return found


# --- memory ----------------------------------------------------------------------------------------------------------


def _grown(kind: str, name: str) -> float:
    """Megabytes by which two steps, or one batch of answers, raise the highest resident memory of this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if kind == "training":
        step = step_of(recipe().stage(name))
        step()
        step()
    else:
        some, prompt_format = problems()
        ANSWERING[name]()(*prompt_format.prompts(some[: max(SIZES)]))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return grown / (1e6 if sys.platform == "darwin" else 1e3)


def memory() -> dict[str, dict[str, int]]:
    """Peak megabytes of every method, each in a process that has done nothing else."""
    names = {"training": [stage.name for stage in trained()], "answering": list(ANSWERING)}
    found: dict[str, dict[str, int]] = {kind: {} for kind in names}
    for kind, listed in names.items():
        for name in listed:
            # Forked, so the libraries are there; nothing may have been computed yet, or its threads would be missing.
            with multiprocessing.get_context("fork").Pool(1) as pool:
                found[kind][name] = round(pool.apply(_grown, (kind, name)))
    return found


def main(rounds: int) -> None:
    """Run everything and print the JSON line."""
    peaks = memory()
    trainings, answers = training(rounds), answering(rounds)
    for name, peak in peaks["training"].items():
        trainings["stages"][name]["peak_megabytes"] = peak
    for name, peak in peaks["answering"].items():
        answers[name]["peak_megabytes_batch_32"] = peak
    result = {
        "benchmark": "methods",
        "threads": torch.get_num_threads(),
        "batch": len(problems()[0]),
        "chain": chain_length(),
        "answer": ANSWER,
        "training": trainings,
        "answering": answers,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
