"""Device, precision, attention kernel and threads for this machine, chosen by measurement."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]
Attention = Literal["eager", "sdpa"]

# Set to 1, it makes a machine with bfloat16 instructions choose as one without them does.
NO_BF16 = "UNSPOKEN_NO_BF16"

_DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Rows and columns of the measured product. On a processor that emulates bfloat16 (1 GFLOP/s) one takes 30 ms.
_CPU_SIZE, _GPU_SIZE = 256, 4096
_REPEATS = 5
# Tokens from which on the fused CPU kernel is faster than plain attention in bfloat16; in float32 it always is.
_FUSED_FROM = 192


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Something the machine decided, and why."""

    value: str
    reason: str


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" is the first GPU, or else the CPU.

    Args:
        name: "auto", "cpu", "cuda", "cuda:N" or "mps"; a device stands for itself.

    Raises:
        ValueError: there is no such device here.
    """
    if isinstance(name, torch.device) and name != torch.device("cuda"):
        return name
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        known = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        known += ["mps"] if torch.backends.mps.is_available() else []
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"device {name!r} is not available here ({reason}); choose auto or {', '.join(known)}"
        ) from None
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


@lru_cache
def product_rate(precision: Precision, device: torch.device, threads: int = 1) -> float:
    """Floating-point operations a second of a square matrix product, in the type that is asked for.

    The best of a few products, which take some milliseconds together. The numbers of CPU and GPU are not comparable,
    since their products have different sizes.

    Args:
        precision: the type of both factors.
        device: what multiplies.
        threads: of a CPU. Beside other jobs a product of several threads waits for each of them to get a core, which
            hides how fast it is: 3 GFLOP/s were measured where one thread had 200.
    """
    size = _CPU_SIZE if device.type == "cpu" else _GPU_SIZE
    left, right = (torch.ones(size, size, dtype=_DTYPES[precision], device=device) for _ in range(2))
    best, before = math.inf, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(_REPEATS + 1):
            _synchronize(device)
            began = time.perf_counter()
            left @ right
            _synchronize(device)
            best = min(best, time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return 2 * size**3 / best


def rates_in_words(device: torch.device) -> str:
    """Both product rates, for people."""
    bf16, fp32 = (product_rate(precision, device) / 1e9 for precision in ("bf16", "fp32"))
    where = "one thread of the CPU" if device.type == "cpu" else device.type
    return f"{bf16:,.{0 if bf16 >= 10 else 1}f} GFLOP/s in bfloat16 and {fp32:,.0f} in float32 on {where}"


def choose_precision(device: torch.device) -> Choice:
    """bfloat16 where the device multiplies it faster than float32, else float32."""
    if os.environ.get(NO_BF16, "0") not in ("", "0"):
        return Choice(value="fp32", reason=f"{NO_BF16} is set")
    faster = product_rate("bf16", device) > product_rate("fp32", device)
    return Choice(value="bf16" if faster else "fp32", reason=f"matrix products run at {rates_in_words(device)}")


def much_slower(precision: Precision, device: torch.device) -> bool:
    """Whether the other precision multiplies ten times as fast here."""
    other: Precision = "fp32" if precision == "bf16" else "bf16"
    return product_rate(precision, device) * 10 < product_rate(other, device)


def choose_attention(precision: Precision, device: torch.device, length: int) -> Choice:
    """The attention kernel that is fastest for rows of so many tokens.

    Forward and backward together on two cores, batches of 8,192 tokens, four heads of 64 (`docs/benchmarks.md`): in
    float32 the fused kernel takes 45 to 71 % of the time of plain attention at 32 to 128 tokens and less beyond; in
    bfloat16 it takes 2 to 5 times as long up to 128 tokens and less from 256 on.
    """
    if device.type != "cpu":
        return Choice(value="sdpa", reason=f"{device.type} has fused kernels")
    if precision == "fp32":
        return Choice(value="sdpa", reason="the fused kernel is the faster one in float32 on a CPU")
    if length >= _FUSED_FROM:
        return Choice(value="sdpa", reason=f"rows of {length} tokens, {_FUSED_FROM} or more, on a CPU in bfloat16")
    return Choice(value="eager", reason=f"rows of {length} tokens, fewer than {_FUSED_FROM}, on a CPU in bfloat16")


def usable_threads() -> int:
    """Threads that this process may really run at once: torch's own count within affinity and container limits."""
    limits = [torch.get_num_threads()]
    if hasattr(os, "sched_getaffinity"):
        limits.append(len(os.sched_getaffinity(0)))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        limits.append(max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no such file, or "max"
    return min(limits)
