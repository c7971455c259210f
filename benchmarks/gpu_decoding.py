"""Decoding and answering of `gpu_speed.py`, and what a step waits for."""

from __future__ import annotations

import statistics
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpu_measure import Found, Notes, Size, turns, waited
from timing import ratio
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import GenerationConfig, PreTrainedModel, StaticCache

from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import Reasoner, StopRule, rollout
from unspoken.training.shapes import measured_lengths

LENGTHS = "whynlp/gsm8k-aug"


# --- the limit -------------------------------------------------------------------------------------------------------


class BareStep:
    """The stack, the thought and its way back into the stack; every tensor keeps its place, so that it can be captured.

    Nothing is recorded, nobody asks whether a row is done, and no row is padded.

    Args:
        reasoner: whose step it is.
        ids: prompts ``[B, T]``.
        steps: how many are taken at most.
    """

    @torch.no_grad()
    def __init__(self, reasoner: Reasoner, ids: Tensor, steps: int) -> None:
        self.reasoner, self.steps = reasoner, steps
        self.length = ids.shape[1]
        self.places = torch.arange(self.length + steps, device=ids.device)
        self.cache = StaticCache(config=reasoner.stack.config, max_cache_len=len(self.places))
        self.position = torch.arange(self.length, device=ids.device)[None]
        self.first = self._thought(reasoner.embed_prompt(ids))
        self.position = self.position.new_full((1, 1), self.length)
        self.feed = self.first.clone()

    def _thought(self, inputs: Tensor) -> Tensor:
        seen = self.places[None, None, None] <= self.position[:, None, :, None]
        hidden = self.reasoner.stack(
            inputs_embeds=inputs,
            attention_mask=seen.expand(len(inputs), -1, -1, -1),
            position_ids=self.position.expand(len(inputs), -1),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return self.reasoner.step(hidden).next_input[:, None].to(inputs.dtype)

    def _step(self) -> None:
        self.feed.copy_(self._thought(self.feed))
        self.position.add_(1)

    def _back(self) -> None:
        """To the state after the prompt."""
        self.feed.copy_(self.first)
        self.position.fill_(self.length)
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.length)

    @torch.no_grad()
    def run(self) -> Tensor:
        """All steps, one operation after another; what was fed back ``[B, steps + 1, D]``."""
        self._back()
        fed = [self.first]
        for _ in range(self.steps):
            self._step()
            fed.append(self.feed.clone())
        return torch.cat(fed, dim=1)

    @torch.no_grad()
    def captured(self) -> Callable[[], Tensor]:
        """All steps as replays of one CUDA graph; the last thing that was fed back."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()

        def replay() -> Tensor:
            self._back()
            for _ in range(self.steps):
                graph.replay()
            return self.feed

        return replay


# --- decoding --------------------------------------------------------------------------------------------------------


def reasoner_of(size: Size, model: PreTrainedModel, **how: Any) -> CausalLMReasoner:
    """A reasoner whose chains have a fixed length, since random weights would stop anywhere."""
    last = size.config().vocab_size - 1
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(last, last, last), fixed=True, **how)
    return CausalLMReasoner(model=model, settings=settings)


def generated(model: PreTrainedModel, ids: Tensor, steps: int, **how: Any) -> Callable[[], object]:
    """Greedy decoding of transformers."""
    mask = torch.ones_like(ids)
    config = GenerationConfig(max_new_tokens=steps, do_sample=False, pad_token_id=0, **how)
    return lambda: model.generate(ids, attention_mask=mask, generation_config=config)


def decoded(size: Size, model: PreTrainedModel, batch: int) -> Found:
    """Every way to decode, at one batch size."""
    torch._dynamo.reset()  # a static cache is compiled for one shape
    ids, stop = size.ids(batch, size.prompt), StopRule(max_latents=size.steps, fixed=True)
    latent, explicit = (reasoner_of(size, model, top_k=kept) for kept in (10, 1))

    def bare() -> Callable[[], object]:
        step = BareStep(latent, ids, size.steps)
        return step.captured() if size.device == "cuda" else step.run

    short = StopRule(max_latents=size.steps // 4, fixed=True)
    seconds, found = turns(
        size,
        {
            "latents": lambda: partial(rollout, latent, ids, None, stop),
            "latents_of_a_short_chain": lambda: partial(rollout, latent, ids, None, short),
            "latents_not_captured": lambda: partial(rollout, latent, ids, None, stop, static=False),
            "explicit_chain": lambda: partial(rollout, explicit, ids, None, stop),
            "generate_growing_cache": lambda: generated(model, ids, size.steps),
            "generate_static_compiled": lambda: generated(model, ids, size.steps, cache_implementation="static"),
            "captured_graph_of_bare_step": bare,
        },
    )
    for name, taken in seconds.items():
        median, steps = statistics.median(taken), short.max_latents if name.endswith("short_chain") else size.steps
        found[name] = {
            "milliseconds_per_step": round(1000 * median / steps, 4),
            "steps_per_second": round(batch * steps / median, 1),
        }
    library = [seconds[name] for name in seconds if name.startswith("generate")]
    for ours in ("latents", "explicit_chain"):
        if ours in seconds and library:
            found[ours]["over_faster_generate"] = ratio(seconds[ours], min(library, key=statistics.median))
        if ours in seconds and "captured_graph_of_bare_step" in seconds:
            found[ours]["over_captured_graph"] = ratio(seconds[ours], seconds["captured_graph_of_bare_step"])
    return found


def decoding(size: Size, notes: Notes) -> None:
    """Waits first, since they are quick, then every batch size; a profiler is slow, so it comes last."""
    model = size.model()
    loops = loops_of(size, model)
    if size.device == "cuda":
        for name, loop in loops.items():
            notes.add(f"waits_of_{name}", partial(_warned, size, loop))
    for batch in size.batches:
        notes.add(f"batch_{batch}", partial(decoded, size, model, batch))
    for name, loop in loops.items():
        notes.add(f"operations_of_{name}", partial(_profiled, size, loop))


# --- waits -----------------------------------------------------------------------------------------------------------


def loops_of(size: Size, model: PreTrainedModel) -> dict[str, Callable[[int], object]]:
    """Loops of so many steps; what a step waits for is a long one less a short one, over the steps between them."""
    ids, latent = size.ids(size.batches[-1], size.prompt), reasoner_of(size, model, top_k=10)

    def thinking(steps: int, fixed: bool) -> object:
        return rollout(latent, ids, None, StopRule(max_latents=steps, fixed=fixed))

    return {
        "chain_of_fixed_length": partial(thinking, fixed=True),
        "chain_that_may_stop": partial(thinking, fixed=False),
        "words_after_a_chain": lambda steps: latent.respond(ids, max_latents=1, max_tokens=steps, config=never(size)),
        "generate": lambda steps: generated(model, ids, steps)(),
    }


def never(size: Size) -> GenerationConfig:
    """A configuration in which no token ends an answer."""
    return GenerationConfig(eos_token_id=size.config().vocab_size, pad_token_id=0)


def _per_step(size: Size, count: Callable[[int], Counter[str]]) -> Found:
    """What is counted in a long loop and not in a short one, over the steps between them."""
    few, many = size.steps // 2, size.steps
    count(many)
    short, long = count(few), count(many)
    return {name: round((number - short[name]) / (many - few), 3) for name, number in long.most_common()}


def _warned(size: Size, loop: Callable[[int], object]) -> Found:
    """How often a step makes the host wait for the device, by the place in the code, as torch warns of it."""

    def count(steps: int) -> Counter[str]:
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                loop(steps)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places = [f"{one.filename}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]
        return Counter({"all": len(places)}) + Counter(places)

    return _per_step(size, count)


def _profiled(size: Size, loop: Callable[[int], object]) -> Found:
    """Numbers that a step reads back, and the kernels that it runs."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if size.device == "cuda" else [])]

    def count(steps: int) -> Counter[str]:
        with profile(activities=activities) as seen:
            waited(size.device, lambda: loop(steps))()
        events = seen.events() or []
        kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        return Counter(
            {
                "numbers_read": sum(event.name == "aten::_local_scalar_dense" for event in events),
                "kernels": len(kernels),
                "kernel_microseconds": round(sum(event.time_range.elapsed_us() for event in kernels)),
            }
        )

    return _per_step(size, count)


# --- answering -------------------------------------------------------------------------------------------------------


def answered(size: Size, model: PreTrainedModel, batch: int) -> Found:
    """Time of a batch of answers by every kind of chain."""
    lengths = measured_lengths(LENGTHS)
    assert lengths is not None
    chain, answer = round(lengths.chain), round(lengths.answer)
    ids = size.ids(batch, round(lengths.prompt) - 1)  # the open marker is one token
    kinds: dict[str, Found] = {
        "explicit_chain": {"top_k": 1, "max_latents": chain},
        "soft_thinking": {"top_k": 10, "max_latents": chain},
        "latent_sft": {"top_k": 10, "max_latents": -(-chain // 2)},
        "coconut": {"feed": "hidden", "max_latents": 6},
    }

    def respond(how: Found) -> Callable[[], object]:
        reasoner = reasoner_of(size, model, **how)
        return lambda: reasoner.respond(ids, max_tokens=answer, config=never(size))

    seconds, found = turns(size, {name: partial(respond, how) for name, how in kinds.items()})
    for name, taken in seconds.items():
        median = statistics.median(taken)
        found[name] = {"milliseconds": round(1000 * median, 2), "answers_per_second": round(batch / median, 1)}
        if "explicit_chain" in seconds:
            found[name]["over_explicit_chain"] = ratio(seconds["explicit_chain"], taken)
    return found


def answering(size: Size, notes: Notes) -> None:
    """Every batch size."""
    model = size.model()
    for batch in size.batches:
        notes.add(f"batch_{batch}", partial(answered, size, model, batch))
