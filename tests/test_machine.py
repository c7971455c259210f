"""What the machine chooses, and by what measurement."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from unspoken import machine
from unspoken.machine import choose_attention, choose_precision, much_slower, product_rate, resolve_device

CPU = torch.device("cpu")


def with_rates(monkeypatch: pytest.MonkeyPatch, *, bf16: float, fp32: float) -> None:
    monkeypatch.delenv(machine.NO_BF16, raising=False)
    rates = {"bf16": bf16, "fp32": fp32}
    monkeypatch.setattr(machine, "product_rate", lambda precision, _device: rates[precision])


def test_a_rate_is_that_of_the_quickest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six products of 256 rows and columns: two operations for each of 256 x 256 x 256 terms."""
    took, now, read = [9.0, 4.0, 2.0, 3.0, 5.0, 4.0], [0.0], [0]

    def clock() -> float:
        now[0] += took[read[0] // 2] if read[0] % 2 else 100.0
        read[0] += 1
        return now[0]

    monkeypatch.setattr(machine.time, "perf_counter", clock)
    assert product_rate.__wrapped__("fp32", CPU) == 2 * 256**3 / 2.0
    assert read == [12]


def test_a_rate_is_that_of_one_thread_and_the_process_keeps_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before, used = torch.get_num_threads(), list[int]()
    torch.set_num_threads(2)
    clock = machine.time.perf_counter
    monkeypatch.setattr(machine.time, "perf_counter", lambda: used.append(torch.get_num_threads()) or clock())
    try:
        product_rate.__wrapped__("fp32", CPU)
        assert set(used) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_rate_is_operations_over_seconds() -> None:
    # No processor that runs these tests is slower or faster than this, even under load.
    assert 1e8 < product_rate("fp32", CPU) < 1e14
    assert 1e7 < product_rate("bf16", CPU) < 1e15


@pytest.mark.parametrize(
    ("bf16", "fp32", "chosen"),
    [(500e9, 150e9, "bf16"), (1e9, 75e9, "fp32"), (151e9, 150e9, "bf16"), (150e9, 150e9, "fp32")],
)
def test_the_faster_type_is_chosen_and_both_rates_are_the_reason(
    monkeypatch: pytest.MonkeyPatch, bf16: float, fp32: float, chosen: str
) -> None:
    with_rates(monkeypatch, bf16=bf16, fp32=fp32)
    choice = choose_precision(CPU)
    assert choice.value == chosen
    assert f"{fp32 / 1e9:.0f} in float32" in choice.reason


def test_bfloat16_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with_rates(monkeypatch, bf16=500e9, fp32=150e9)
    monkeypatch.setenv(machine.NO_BF16, "1")
    assert choose_precision(CPU).value == "fp32"
    monkeypatch.setenv(machine.NO_BF16, "0")
    assert choose_precision(CPU).value == "bf16"


def test_ten_times_slower_is_much_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    with_rates(monkeypatch, bf16=7e9, fp32=75e9)
    assert much_slower("bf16", CPU)
    assert not much_slower("fp32", CPU)
    for rate in (7.5e9, 8e9):
        with_rates(monkeypatch, bf16=rate, fp32=75e9)
        assert not much_slower("bf16", CPU)


@pytest.mark.parametrize(
    ("precision", "device", "length", "kernel"),
    [
        ("bf16", "cpu", 64, "eager"),
        ("bf16", "cpu", 191, "eager"),
        ("bf16", "cpu", 192, "sdpa"),
        ("bf16", "cpu", 512, "sdpa"),
        ("fp32", "cpu", 64, "sdpa"),
        ("bf16", "cuda", 64, "sdpa"),
    ],
)
def test_attention_follows_precision_device_and_length(
    precision: machine.Precision, device: str, length: int, kernel: str
) -> None:
    assert choose_attention(precision, torch.device(device), length).value == kernel


def test_a_device_that_is_not_there_is_refused_in_one_line() -> None:
    assert resolve_device("cpu") == CPU
    for name in ("cuda:99", "nonsense"):
        message = rf"device '{name}' is not available here \(.+\); choose auto or cpu"
        with pytest.raises(ValueError, match=message) as refusal:
            resolve_device(name)
        assert "\n" not in str(refusal.value)


def test_no_more_threads_than_the_process_may_use() -> None:
    assert 1 <= machine.usable_threads() <= len(os.sched_getaffinity(0))


def test_a_container_s_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    of_this_process = {0: set(range(64))}
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: of_this_process[process], raising=False)
    monkeypatch.setattr(Path, "read_text", lambda _: "250000 100000\n")
    assert machine.usable_threads() == 3
    monkeypatch.setattr(Path, "read_text", lambda _: "0 100000\n")
    assert machine.usable_threads() == 1
    monkeypatch.setattr(Path, "read_text", lambda _: "max 100000\n")
    assert machine.usable_threads() == 64
