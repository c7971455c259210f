"""How fast are tree-search problems made, on one core?

A batch is a few array operations on hashed counters; what remains per sample is the sorting of fifteen numbers. The
last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import time

import numpy as np
import torch

from unspoken.tasks import TreeSearchConfig


def main() -> None:
    """Time batches of several sizes."""
    torch.set_num_threads(1)
    task = TreeSearchConfig().build()
    result: dict[str, object] = {"benchmark": "data", "threads": 1}
    for size in (64, 1024):
        speeds = []
        for start in range(20):
            began = time.perf_counter()
            task.encode(task.sample("train", np.arange(start * size, (start + 1) * size)))
            speeds.append(size / (time.perf_counter() - began))
        result[f"samples_per_second_batch_{size}"] = round(statistics.median(speeds[2:]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
