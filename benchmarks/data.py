"""How fast is what a training step waits for, on one core?

* Problems of every task that is made up, from an index to the tensors of a batch. Tree search and grammar are array
  operations on hashed counters, a batch at a time; word problems are made and spelled one by one.
* Labels: superpositions of ten entries, written with every block forced to disk, opened (which reads and hashes all of
  it) and read a row at a time in random order, out of the page cache.

The last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unspoken.methods.latent_sft.label_store import LabelStore, LabelWriter
from unspoken.methods.latent_sft.labels import LabelIdentity
from unspoken.tasks import ArithmeticConfig, GrammarConfig, LogicConfig, TreeSearchConfig
from unspoken.tasks.task import Task

BATCH, ROWS, LATENTS, KEPT = 64, 4096, 12, 10


def batch_of(task: Task, indices: NDArray[np.int64]) -> object:
    """Problems as rows of text, with their explicit chains where they have any."""
    return task.rows(task.sample("train", indices))


def makers() -> dict[str, Callable[[NDArray[np.int64]], object]]:
    """Of every task, what turns indices into a batch."""
    return {
        config.kind: partial(batch_of, config.build())
        for config in (TreeSearchConfig(), GrammarConfig(), ArithmeticConfig(), LogicConfig())
    }


def rate(make: Callable[[NDArray[np.int64]], object], rounds: int) -> int:
    """Problems a second."""
    speeds = []
    for start in range(rounds + 2):
        indices = np.arange(start * BATCH, (start + 1) * BATCH)
        began = time.perf_counter()
        make(indices)
        speeds.append(BATCH / (time.perf_counter() - began))
    return round(statistics.median(speeds[2:]))


def labels(rows: int) -> dict[str, float]:
    """Rows and megabytes a second of a label store."""
    identity = LabelIdentity(
        data="made up",
        split="train",
        seed=0,
        tokenizer="none",
        rate=2,
        latent="superposition",
        width=KEPT,
        top_k=KEPT,
        temperature=1.0,
        readout="head",
        encoder="none",
        decoder="none",
        precision="float32",
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(50_000, (rows, LATENTS, KEPT), generator=generator)
    weights = torch.rand((rows, LATENTS, KEPT), generator=generator).softmax(dim=-1)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "labels"
        began = time.perf_counter()
        writer = LabelWriter(folder, identity, rows=rows)
        for row in range(rows):
            writer.append(str(row), ids[row], weights[row])
        writer.finish()
        writer.publish()
        written = time.perf_counter() - began
        megabytes = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
        began = time.perf_counter()
        store = LabelStore.open(folder, identity)
        opened = time.perf_counter() - began
        order = np.random.default_rng(0).permutation(rows).tolist()
        began = time.perf_counter()
        for row in order:
            store[row, str(row)]
        read = time.perf_counter() - began
    return {
        "written_rows_per_second": round(rows / written),
        "written_megabytes_per_second": round(megabytes / written, 1),
        "checked_megabytes_per_second": round(megabytes / opened, 1),
        "read_rows_per_second": round(rows / read),
        "read_megabytes_per_second": round(megabytes / read, 1),
    }


def main(rounds: int) -> None:
    """Run everything and print the JSON line."""
    torch.set_num_threads(1)
    result = {
        "benchmark": "data",
        "threads": 1,
        "batch": BATCH,
        "problems_per_second": {name: rate(make, rounds) for name, make in makers().items()},
        "labels": {"rows": ROWS, "latents": LATENTS, "entries": KEPT, **labels(ROWS)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
