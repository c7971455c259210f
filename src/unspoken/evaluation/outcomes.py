"""Which problems every system answered rightly, small enough to be kept in results and compared between runs.

Results have ``outcomes``: by test set ``problems`` (how many), ``fingerprint`` (of what is asked and what is right),
``right`` (system -> a text a seed, see `packed`) and ``cost`` (system -> means a problem: ``latent_steps``,
``sequential_passes``, ``flops``, ``seconds``, the last in a batch and of the first seed).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unspoken.evaluation.significance import Outcomes
from unspoken.tasks.task import Problems, Task

# What the two systems of tree search and the grammar are called in results.
JEPA_REASONER, COUPLED = "jepa-reasoner", "coupled"
# What runs are compared by: the keys of ``cost``, in the order of the top of this file.
COSTS = ("latent_steps", "sequential_passes", "flops", "seconds")
TIMED = 128  # problems, the first ones, that are answered against the clock in a batch


def packed(outcomes: Outcomes) -> str:
    """Outcomes ``[P]`` in {0, 1} in hexadecimal: a bit a problem, the first one highest, filled up with zeros."""
    return np.packbits(outcomes > 0.5).tobytes().hex()


def unpacked(text: str, problems: int) -> Outcomes:
    """The reverse of `packed`.

    Raises:
        ValueError: the text is not of that many problems.
    """
    if len(text) != 2 * -(-problems // 8):
        raise ValueError(f"outcomes of {len(text)} digits do not fit {problems} problems; the results file is damaged")
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), count=problems)
    return bits.astype(np.float64)


def fingerprint_of(problems: Iterable[bytes]) -> str:
    """Names a list of problems by its content, whatever else a task is made of: sixteen hexadecimal digits."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(hashlib.sha256(problem).digest())
    return digest.hexdigest()[:16]


def fingerprint(task: Task, problems: Problems) -> str:
    """Names the problems of a task by what is asked and what is right."""
    if task.traits.has_chain:
        texts = ([problem.question, problem.answer] for problem in problems)  # type: ignore[attr-defined]
        return fingerprint_of(json.dumps(text).encode() for text in texts)
    return fingerprint_of(row.tobytes() for row in task.rows(problems)["input_ids"].numpy())


def outcomes_of(
    fingerprint: str, right: Mapping[str, Sequence[Outcomes]], costs: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """The part of one test set, as described at the top of this file; systems without a cost are left out of it."""
    (count,) = {len(seed) for seeds in right.values() for seed in seeds} or {0}
    return {
        "problems": count,
        "fingerprint": fingerprint,
        "right": {system: [packed(seed) for seed in seeds] for system, seeds in right.items()},
        "cost": {system: dict(spent) for system, spent in costs.items()},
    }


def compared(spent: Mapping[str, float]) -> dict[str, float]:
    """The entry of one system in ``cost``, out of what `unspoken.evaluation.cost` counts and times."""
    given = {**spent, "seconds": spent["seconds_batched"]}
    return {name: given[name] for name in COSTS}
