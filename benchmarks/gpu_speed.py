"""How fast is it on a GPU, and what keeps it from being faster?

One model for everything: the shape of SmolLM2-135M (30 blocks of width 576, 49,152 tokens), random weights, bfloat16.

* ``rates``: what the card can do. A large matrix product does 2 n^3 operations on 3 n^2 numbers, so multiplication
  alone limits it: in float32, in TF32 (19 bits of every factor) and in bfloat16. The products of one block at the
  number of tokens of a training step are narrow (576 columns), so each number that is read is used fewer times; no step
  of this model can go beyond their rate. A copy of memory is what limits decoding.
* ``training``: steps as the Trainer takes them: forward under bfloat16 autocast, backward, clipping, optimiser, on rows
  of much the same length. Floating-point operations are those of `unspoken plan`, without padding, optimiser, norms and
  look-ups. Aim: next token and SST at 40 % of the bfloat16 product or more. In eager mode every operation is a kernel
  of its own that reads and writes memory; ``compiled`` is the same step with every block compiled by itself, which
  fuses what lies between the products.
* ``decoding``: a step of a batch reads all weights once and every row's own keys and values. At batch 1 that is 269 MB,
  0.1 ms of memory traffic, but about a thousand kernels: a host that starts one in 5 microseconds needs 5 ms. So
  starting them is what such a step costs, unless one captured graph starts them all. Compared, on the same model: our
  engine (superpositions of ten tokens; explicit chain), the library's ``generate`` with a growing cache and with a
  static, compiled one, and the bare step as one captured graph, which is the limit. All but the last read the prompt
  too. Aim: no slower a step than the faster ``generate``. A chain of a quarter of the steps shows what a chain costs
  before its first step: prompt, cache, and whatever is recorded or captured for it alone.
* ``decoding``, waits at the largest batch: a host that reads a number back waits for every kernel before it, and starts
  none meanwhile. Counted a step: the warnings of torch's sync debug mode, by the place in the code that they come from;
  the numbers read, which a CPU can count too; and the kernels and their time, which no step can be faster than.
* ``answering``: questions, chains and answers as long as GSM8K-Aug's. An explicit chain of 30 tokens, three of the end
  marker and nine of the answer are 42 passes; Latent-SFT at two tokens a latent has 27: 1.56 times fewer, and the
  prompt is the same. Aim: at least 1.5 times as fast.

Times are medians over rounds in which the contenders take turns, each timed until the device is idle, after calls to
warm up. Whatever fails becomes an entry ``error``, and the rest goes on. After every measurement all of them so far are
printed as a line of JSON, so that a process that is stopped leaves what it found; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_decoding import answering, decoding
from gpu_measure import FULL, TOY, Found, Notes, Size, repeated, text_of
from methods import Step, batch_of, model_of, real_and_placed
from numpy.typing import NDArray

from unspoken.methods.latent_sft.stages import Labels
from unspoken.placement import moved
from unspoken.training.context import context_of
from unspoken.training.plan import plan
from unspoken.training.recipe import Recipe, load
from unspoken.training.stages import row_lengths

COMPILED = ("next_token", "sst")


# --- what the card can do --------------------------------------------------------------------------------------------


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products may be rounded to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def product_rate(size: Size, dtype: torch.dtype, *, rounded: bool = False) -> float:
    """TFLOP/s of a large square product of random numbers."""
    n = size.product
    left, right = (torch.randn(n, n, device=size.device).to(dtype) for _ in range(2))
    with tf32(rounded):
        return round(2 * n**3 / repeated(size, lambda: left @ right) / 1e12, 4)


def block_rate(size: Size) -> float:
    """TFLOP/s of the bfloat16 products of one block at as many tokens as a training step has."""
    config, tokens = size.config(), 128 * size.rows[0]
    wide, inner = config.hidden_size, config.intermediate_size
    keys = wide // config.num_attention_heads * config.num_key_value_heads
    shapes = [(wide, wide), (wide, keys), (wide, keys), (wide, wide), (wide, inner), (wide, inner), (inner, wide)]
    pairs = [
        (torch.randn(tokens, k, device=size.device).bfloat16(), torch.randn(k, n, device=size.device).bfloat16())
        for k, n in shapes
    ]
    seconds = repeated(size, lambda: [left @ right for left, right in pairs])
    return round(sum(2 * tokens * k * n for k, n in shapes) / seconds / 1e12, 4)


def copy_rate(size: Size) -> float:
    """GB/s of copying, read and written bytes together."""
    source = torch.zeros(16 * size.product**2, dtype=torch.uint8, device=size.device)
    target = torch.empty_like(source)
    return round(2 * source.numel() / repeated(size, lambda: target.copy_(source)) / 1e9, 1)


def rates(size: Size, notes: Notes) -> None:
    """Matrix products and memory."""
    notes.add("device", lambda: _device(size))
    notes.add("bfloat16_tflops", lambda: product_rate(size, torch.bfloat16))
    notes.add("tf32_tflops", lambda: product_rate(size, torch.float32, rounded=True))
    notes.add("float32_tflops", lambda: product_rate(size, torch.float32))
    notes.add("block_bfloat16_tflops", lambda: block_rate(size))
    notes.add("copy_gbytes", lambda: copy_rate(size))


def _device(size: Size) -> Found:
    found: Found = {"kind": size.device, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if size.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "name": card.name,
            "multiprocessors": card.multi_processor_count,
            "capability": f"{card.major}.{card.minor}",
        }
    return found


# --- training --------------------------------------------------------------------------------------------------------


def recipe_of(size: Size) -> Recipe:
    """The stages, on a backbone of our configuration: a folder without weights, since none are loaded."""
    folder = tempfile.mkdtemp(prefix="gpu-speed-")
    size.config().save_pretrained(folder)
    return load(str(Path(__file__).with_name("gpu.yaml")), overrides=[f"backbone={folder}"])


def alike(recipe: Recipe, rows: int) -> NDArray[np.int64]:
    """Indices of that many problems of much the same length, as ``group_by_length`` puts them into one batch."""
    lengths = row_lengths(context_of(recipe, recipe.stages[0]))(np.arange(8 * rows))
    return np.argsort(lengths, kind="stable")[4 * rows : 5 * rows]


def fitting(size: Size, recipe: Recipe, name: str) -> tuple[Step, int]:
    """A stage's step that was taken once, with the largest batch that fits, and its rows."""
    stage = recipe.stage(name)
    for rows in size.rows:
        try:
            batch = moved(batch_of(recipe, stage, alike(recipe, rows)), torch.device(size.device))
            model = model_of(recipe, stage, recipe.attention, size.device)
            step = Step(stage, model, batch, "bf16")
            step()
            return step, rows
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    raise MemoryError(f"not even {size.rows[-1]} rows fit")


def trained(size: Size, recipe: Recipe, name: str, peak: Any, *, compiled: bool = False) -> Found:
    """Speed of one stage's step, and its share of a rate in TFLOP/s, if that is known."""
    facts = next(entry for entry in plan(recipe)["models"] if entry["stage"] == name)
    if size.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step, rows = fitting(size, recipe, name)
    if compiled:
        torch._dynamo.reset()
        # On a CPU the tracing is tried, and no compiler is needed.
        how = {} if size.device == "cuda" else {"backend": "eager"}
        for part in step.model.modules():
            if type(part).__name__.endswith("DecoderLayer"):
                part.compile(**how)
    seconds = repeated(size, step)
    real, placed = real_and_placed(step.batch)
    flops = facts["flops"] / facts["tokens"] * real
    return {
        "rows": rows,
        "tokens": real,
        "padding": round(1 - real / placed, 4),
        "milliseconds": round(1000 * seconds, 2),
        "tokens_per_second": round(real / seconds),
        "tflops": round(flops / seconds / 1e12, 4),
        "share_of_bfloat16_product": round(flops / seconds / 1e12 / peak, 4) if isinstance(peak, float) else None,
        "peak_gbytes": round(torch.cuda.max_memory_allocated() / 1e9, 1) if size.device == "cuda" else None,
    }


def training(size: Size, notes: Notes) -> None:
    """Every stage, and the first two compiled."""
    peak = notes.add("bfloat16_tflops", lambda: product_rate(size, torch.bfloat16))
    recipe = recipe_of(size)
    for stage in recipe.stages:
        if not isinstance(stage.objective, Labels):
            notes.add(stage.name, partial(trained, size, recipe, stage.name, peak))
    if size.device == "cuda":
        # Its mask is never written out; there is no backward pass of it on a CPU.
        flexible = replace(recipe, attention="flex_attention")
        notes.add("union_flex_attention", partial(trained, size, flexible, "union", peak))
    for name in COMPILED:
        notes.add(f"{name}_compiled", partial(trained, size, recipe, name, peak, compiled=True))


PARTS: dict[str, Callable[[Size, Notes], None]] = {
    "rates": rates,
    "training": training,
    "answering": answering,
    "decoding": decoding,
}


def main() -> None:
    """Measure the parts that are asked for."""
    parser = argparse.ArgumentParser(description="Speed on a GPU; the last line is one JSON object.")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--toy", action="store_true", help="a tiny model on the CPU, to see that it works")
    given = parser.parse_args()
    if unknown := [name for name in given.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; known here: {', '.join(PARTS)}")
    found: Found = {"benchmark": "gpu_speed"}
    for name in given.parts or PARTS:
        notes = Notes(found, name)
        try:
            PARTS[name](TOY if given.toy else FULL, notes)
        except Exception as error:  # of what comes before the first measurement
            notes.found["error"] = text_of(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
