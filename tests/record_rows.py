"""Digests of the rows that tasks make, compared by tests/tasks/test_recorded_rows.py.

``PYTHONPATH=src python tests/record_rows.py`` records them anew in tests/tasks/recorded_rows.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from recorded import digest
from tiny_prose import corpus

from unspoken.tasks import GrammarConfig, LogicConfig, ProseConfig, TreeSearchConfig
from unspoken.tasks.arithmetic import ArithmeticConfig
from unspoken.tasks.cups import CupsConfig
from unspoken.tasks.dataset import by_length
from unspoken.tasks.prompt_format import PromptFormat

SPLITS = ("train", "validation", "test")
MADE: dict[str, Any] = {
    "two cups": CupsConfig(cups=2, swaps=(3, 4, 40)),
    "nine cups": CupsConfig(cups=9, swaps=(7,)),
    "arithmetic of one step": ArithmeticConfig(steps=(1,), largest=20, operations=("subtract", "divide")),
    "arithmetic of six steps": ArithmeticConfig(
        steps=(6,), largest=5000, operations=("add", "subtract", "multiply", "divide")
    ),
    "logic of one hop": LogicConfig(hops=(1,), concepts=6, edges=6),
    "logic of many edges": LogicConfig(hops=(4, 8), concepts=41, edges=400),
    "logic, all spelled": LogicConfig(hops=(2,), concepts=9, edges=30, spelled=1.0),
    "trees of two levels": TreeSearchConfig(depth=2, targets=0, shuffle_edges=True),
    "trees of three levels": TreeSearchConfig(depth=3, targets=2, certain=0.5),
    "four leaves once each": TreeSearchConfig(depth=3, targets=4, repeat_targets=False, shuffle_edges=True),
    "grammar of three levels": GrammarConfig(levels=3, steps=12),
    "grammar of four rules": GrammarConfig(levels=4, rules=4, grammar_seed=2, steps=8),
}


def _made(config: Any) -> Callable[[Path], Any]:
    """Rows, prompts and rows of a Talker for two seeds of every split, with some indices far apart."""

    def content(_: Path) -> Any:
        task, parts = config.build(), []
        for split in SPLITS:
            for seed in (0, 3):
                problems = task.sample(split, [0, 1, 2, 3, 11, 10**6], seed)
                parts += [task.rows(problems), list(task.prompts(problems)), task.questions(problems)]
                parts.append([(spans.prompt, spans.steps, spans.answer) for spans in task.spans(problems)])
                parts.append(task.talker_rows([5, 6, 9], seed, split))
        return parts

    return content


def _keys(config: Any) -> Callable[[Path], Any]:
    """All that is known of problems in words."""

    def content(_: Path) -> Any:
        task = config.build()
        return [list(task.sample(split, range(12), 7)) for split in SPLITS]

    return content


def _questions(_: Path) -> Any:
    """Trees with several questions, and what is known of their answers."""
    task, open_task = TreeSearchConfig().build(), TreeSearchConfig(depth=3, targets=3).build()
    unnamed = TreeSearchConfig(depth=3, targets=0).build()
    problems, several = task.sample("train", range(6), 1), open_task.sample("test", range(6), 1)
    return [
        *(task.question_rows(problems, questions) for questions in (1, 3, 8)),
        *(made.marginals(these).tolist() for made, these in ((task, problems), (open_task, several))),
        *(task.draw(problems, row) for row in range(3)),
        open_task.draw(several, 2),
        unnamed.marginals(unnamed.sample("test", range(2))).tolist(),
        task.tree_hash(problems.names_BM).tolist(),
    ]


def _grammar(_: Path) -> Any:
    """The rules themselves, and lengths and means."""
    grammars = [
        GrammarConfig(levels=levels, rules=rules, grammar_seed=seed).build().grammar
        for levels, rules, seed in ((3, 2, 0), (3, 4, 5), (4, 3, 1), (5, 2, 3), (5, 4, 0))
    ]
    return [(made.rules, made.lengths, made.mean_length, made.choices) for made in grammars]


def _prose(folder: Path) -> Any:
    """Texts and sentences of a small corpus, over the end of an epoch, and the tokenizer."""
    task = ProseConfig(train=str(corpus(folder)), vocabulary=300, length=24, sentence_tokens=(14, 30), prime=4).build()
    parts: list[Any] = [sorted(task.tokenizer.get_vocab().items())]
    for kind in ("texts", "sentences"):
        size = task.size("train", kind)  # type: ignore[arg-type]
        assert size is not None
        for split, indices in (("train", [0, 3, size - 1, size, size + 5]), ("validation", [0, 2]), ("test", [1])):
            for seed in (0, 3):
                rows = task.sample(split, indices, seed, kind=kind)  # type: ignore[arg-type]
                parts += [[row.tolist() for row in rows], task.rows(rows)]
        parts.append([task.size(split, kind) for split in SPLITS])  # type: ignore[arg-type]
    return [*parts, task.talker_rows([4, 2], 1)]


def _order(_: Path) -> Any:
    """Places of samples in batches of like length."""
    lengths = np.random.default_rng(5).integers(1, 60, 300)
    orders = [
        by_length(lambda at: lengths[at], size=300, batch_size=size, seed=seed) for size, seed in ((4, 0), (3, 2))
    ]
    return [order(np.arange(300)).tolist() for order in orders]


def _plain(_: Path) -> Any:
    """Rows of word problems without their chains, and the markers."""
    task = ArithmeticConfig().build()
    layout = PromptFormat(tokenizer=task.tokenizer)
    problems = task.sample("train", range(5))
    return [task.rows(problems, chain=False), layout.markers, layout.box]


FORMS: dict[str, Callable[[Path], Any]] = {
    **{name: _made(config) for name, config in MADE.items()},
    **{f"problems of {name}": _keys(MADE[name]) for name in ("two cups", "logic of many edges", "logic, all spelled")},
    "several questions of a tree": _questions,
    "grammars": _grammar,
    "prose": _prose,
    "batches of like length": _order,
    "rows without a chain": _plain,
}


def digest_of(name: str, folder: Path) -> str:
    """The digest of what a task makes now."""
    return digest(FORMS[name](folder))


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        digests = {form: digest_of(form, Path(scratch)) for form in FORMS}
    recorded = Path(__file__).parent / "tasks" / "recorded_rows.json"
    recorded.write_text(json.dumps(digests, indent=2) + "\n")
