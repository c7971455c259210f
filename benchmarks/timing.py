"""Fair timing: contenders take turns within one process, so that drift of the machine cancels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from unspoken.machine import Precision, choose_attention, choose_precision

# What the library would choose here; every contender of a comparison has it.
PRECISION: Precision = "bf16" if choose_precision(torch.device("cpu")).value == "bf16" else "fp32"
ATTENTION = choose_attention(PRECISION, torch.device("cpu"), 128).value
DTYPE = torch.bfloat16 if PRECISION == "bf16" else torch.float32


def rounded(model: torch.nn.Module, precision: Precision = PRECISION) -> Callable[..., Any]:
    """A model's forward as the Trainer calls it: under autocast, which the loss is not."""
    device = next(model.parameters()).device.type

    def forward(**inputs: Any) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            return model(**inputs)

    return forward


def interleaved(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender, one after another in every round."""
    for step in steps.values():
        step()
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(over: list[float], under: list[float]) -> float:
    """Median of round-by-round ratios."""
    return round(statistics.median(a / b for a, b in zip(over, under, strict=True)), 3)


def timed(call: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call, after one to warm up."""
    call()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def matmul_rate(size: int = 2048) -> float:
    """FLOP/s of one matrix product in the chosen precision: the best of several."""
    left, right = torch.randn(size, size).to(DTYPE), torch.randn(size, size).to(DTYPE)
    best = float("inf")
    for _ in range(12):
        began = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
