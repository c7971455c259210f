"""A report on this machine: versions, devices and their measured speed, the settings chosen by that, missing extras."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, get_args

import torch
from rich.console import Console

from unspoken.draw.formats import duration, quantity
from unspoken.draw.table import write_line
from unspoken.machine import Precision, choose_attention, choose_precision, product_rate, resolve_device, usable_threads
from unspoken.provenance import processor
from unspoken.tasks import TreeSearchTask
from unspoken.training.plan import plan
from unspoken.training.recipe import load

PACKAGES = ("unspoken", "torch", "transformers", "tokenizers", "accelerate", "peft", "numpy")
# What each extra of the package is for, and the modules that it brings.
EXTRAS = {
    "hub": ("data sets by their name on the hub", ("datasets",)),
    "harness": ("tasks of lm-evaluation-harness", ("lm_eval",)),
    "serve": ("the server for OpenAI clients", ("fastapi", "uvicorn")),
}

# How long the demo takes: its FLOPs by the plan, which counts every step although a stage ends early, over the product
# rate and a factor, and a rest that no product rate changes. Fitted to two measured runs on two cores of an AMD EPYC,
# each the mean of three seeds, start and measuring included: 92 s at 289 GFLOP/s in bfloat16, 127 s at 153 in float32.
_USE = 0.81
_REST = 53.0  # seconds


def diagnose(device_name: str = "auto") -> dict[str, Any]:
    """Inspect the machine and measure it, which takes some seconds.

    Args:
        device_name: what would compute, see `unspoken.machine.resolve_device`.

    Returns:
        ``versions`` by package, None where one is not installed, Python among them; ``processor``; ``gpus``, a line
        each; ``device`` and ``threads``; ``rates``, floating-point operations a second by precision, of one thread of
        a CPU; ``precision`` and ``attention``, each with ``value`` and ``reason``; ``extras`` by name, each with
        ``purpose``, ``installed`` and the ``command`` that installs it; ``demo`` with ``command``, ``flops`` and
        ``seconds``, about, None on a GPU.

    Raises:
        ValueError: there is no such device, or it cannot compute.
    """
    threads = usable_threads()
    torch.set_num_threads(threads)
    device = resolve_device(device_name)
    try:
        rates = {name: product_rate(name, device) for name in get_args(Precision)}
        precision = choose_precision(device)
    except RuntimeError as error:
        raise ValueError(
            f"{device} cannot compute ({str(error).strip().splitlines()[0]}): see whether its driver fits "
            f"torch {torch.__version__}, or hide it by setting CUDA_VISIBLE_DEVICES to nothing"
        ) from None
    chosen: Precision = "bf16" if precision.value == "bf16" else "fp32"
    demo = _demo(chosen, device)
    attention = choose_attention(chosen, device, demo.pop("row_length"))
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "processor": processor(),
        "gpus": _gpus(),
        "device": str(device),
        "threads": threads,
        "rates": rates,
        "precision": {"value": precision.value, "reason": precision.reason},
        "attention": {"value": attention.value, "reason": attention.reason},
        "extras": {
            name: {
                "purpose": purpose,
                "installed": all(find_spec(module) is not None for module in modules),
                "command": f"pip install 'unspoken[{name}]'",
            }
            for name, (purpose, modules) in EXTRAS.items()
        },
        "demo": demo,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """Name and memory of every GPU that torch can use."""
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus]


def _demo(precision: Precision, device: torch.device) -> dict[str, Any]:
    """What ``make demo`` costs here."""
    recipe = load("tree-search", "tiny")
    task = recipe.task.build()
    assert isinstance(task, TreeSearchTask)
    flops = sum(stage["flops"] for stage in plan(recipe)["models"])
    seconds = None
    if device.type == "cpu":
        threads = recipe.threads or usable_threads()
        seconds = _REST + flops / (_USE * product_rate.__wrapped__(precision, device, threads))
    return {
        "command": "unspoken run tree-search --size tiny",
        "flops": flops,
        "seconds": seconds,
        "row_length": task.prompt_length + task.answer_length,
    }


# --- printing ----------------------------------------------------------------------------------------------------


def print_diagnosis(facts: dict[str, Any], console: Console) -> None:
    """Print the facts of `diagnose` as a few short lists."""
    versions = {name: number or "not installed" for name, number in facts["versions"].items()}
    title = f"unspoken {versions.pop('unspoken')}"
    _list(title, list(versions.items()), console)
    rates, of = facts["rates"], " on one thread" if facts["device"] == "cpu" else ""
    _list(
        "machine",
        [
            ("processor", facts["processor"]),
            ("GPU", "; ".join(facts["gpus"]) or _no_gpu()),
            ("float32", f"{quantity(rates['fp32'])}FLOP/s, measured{of}"),
            ("bfloat16", f"{quantity(rates['bf16'])}FLOP/s, measured{of}"),
        ],
        console,
    )
    _list(
        "chosen here, where a recipe sets nothing else",
        [
            ("device", facts["device"]),
            ("threads", str(facts["threads"])),
            *((name, f"{facts[name]['value']}: {facts[name]['reason']}") for name in ("precision", "attention")),
        ],
        console,
    )
    _list(
        "extras",
        [
            (name, f"{'installed' if extra['installed'] else 'missing: ' + extra['command']} ({extra['purpose']})")
            for name, extra in facts["extras"].items()
        ],
        console,
    )
    demo = facts["demo"]
    seconds = demo["seconds"]
    takes = "not estimated on a GPU" if seconds is None else f"takes about {duration(seconds)} here"
    _list("demo", [("make demo", takes), ("", demo["command"])], console)


def _no_gpu() -> str:
    return "none" if torch.version.cuda or torch.version.hip else "none; this build of torch has no support for one"


def _list(title: str, rows: Sequence[tuple[str, str]], console: Console) -> None:
    """Labels and values. A long value is wrapped below itself on a terminal, and stays one line in a pipe."""
    width = max(len(label) for label, _ in rows)
    write_line("", console)
    write_line(title, console, "bold")
    for label, value in rows:
        start = f"  {label:<{width}}  "
        indent = " " * len(start)
        wrapped = textwrap.fill(value, console.width, initial_indent=indent, subsequent_indent=indent)[len(start) :]
        write_line(wrapped if console.is_terminal else value, console, label=start)
