"""The ends of every range that a setting states are allowed, and the next values beyond them are refused."""

from __future__ import annotations

from typing import Any

import pytest

from unspoken.tasks import TreeSearchConfig
from unspoken.tasks.arithmetic import ArithmeticConfig
from unspoken.tasks.cups import CupsConfig
from unspoken.tasks.grammar import GrammarConfig
from unspoken.tasks.logic import LogicConfig
from unspoken.tasks.prose import ProseConfig

# Configuration, further settings, setting, ends of its range, and values beyond.
RANGES: list[tuple[Any, dict[str, Any], str, list[Any], list[Any]]] = [
    (CupsConfig, {"swaps": (3,)}, "cups", [2, 9], [1, 10]),
    (CupsConfig, {"cups": 2}, "swaps", [(3,), (3, 40)], [(1,), (2,), (2, 3), (41,)]),
    (CupsConfig, {}, "swaps", [(1,), (40,), (1, 40)], [(0,), (41,), (0, 40), (1, 41)]),
    (ArithmeticConfig, {}, "steps", [(1,), (6,)], [(0,), (7,)]),
    (ArithmeticConfig, {}, "largest", [20, 100_000], [19, 100_001]),
    (LogicConfig, {"concepts": 26}, "hops", [(1,), (8,)], [(0,), (9,)]),
    # Two lines of three steps, and four concepts beside them.
    (LogicConfig, {"hops": (3,), "edges": 1000}, "concepts", [10], [9, 1000]),
    (LogicConfig, {"concepts": 20}, "edges", [20], [19]),
    (LogicConfig, {}, "spelled", [0.0, 1.0], [-0.01, 1.01]),
    (TreeSearchConfig, {}, "depth", [2, 3, 4], [1, 5]),
    (TreeSearchConfig, {"depth": 3}, "targets", [0, 4], [-1, 5]),
    (TreeSearchConfig, {"targets": 2}, "certain", [0.0, 1.0], [-0.01, 1.01]),
    (TreeSearchConfig, {"targets": 2, "repeat_targets": False}, "certain", [0.0], [0.01]),
    (GrammarConfig, {}, "levels", [3, 4, 5], [2, 6]),
    (GrammarConfig, {}, "rules", [2, 3, 4], [1, 5]),
    # Half of the 27 symbols of the shortest string of three levels.
    (GrammarConfig, {"levels": 3}, "steps", [2, 12], [0, 1, 13, 14]),
    (GrammarConfig, {"levels": 4}, "steps", [40], [42]),
    (ProseConfig, {"train": "a.txt"}, "vocabulary", [258, 65_536], [257, 65_537]),
    (ProseConfig, {"train": "a.txt"}, "length", [2, 1024], [1, 1025]),
    # An end stands before a sentence and one after it.
    (
        ProseConfig,
        {"train": "a.txt"},
        "sentence_tokens",
        [(11, 11), (11, 1022)],
        [(11, 1023), (12, 11), (11,), (11, 12, 13)],
    ),
    (ProseConfig, {"train": "a.txt", "sentence_tokens": (5, 9)}, "prime", [0, 4], [-1, 5]),
]


@pytest.mark.parametrize(
    ("config", "others", "name", "ends", "beyond"), RANGES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_range_ends_where_it_says(
    config: Any, others: dict[str, Any], name: str, ends: list[Any], beyond: list[Any]
) -> None:
    for value in ends:
        assert getattr(config(**others, **{name: value}), name) == value
    for value in beyond:
        with pytest.raises(ValueError, match=name):
            config(**others, **{name: value})
