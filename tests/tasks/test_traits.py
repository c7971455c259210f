"""What every configuration states before a problem is made: methods and recipes decide by it what can be trained."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from unspoken.tasks import GrammarConfig, JsonlConfig, ProseConfig, TreeSearchConfig
from unspoken.tasks.arithmetic import ArithmeticConfig
from unspoken.tasks.competition import CompetitionConfig
from unspoken.tasks.cups import CupsConfig
from unspoken.tasks.grade_school import GradeSchoolConfig
from unspoken.tasks.logic import LogicConfig
from unspoken.tasks.task import Traits, left_out_in_words, rows_in_words, split_of

PLAIN: dict[str, Any] = {
    "own_vocabulary": False,
    "natural_language": False,
    "has_chain": True,
    "has_lengths": True,
    "answerable": True,
    "continues": False,
    "from_files": False,
    "selected_by": "exact_match",
    "markers": None,
    "fixed_steps": None,
    "chain_cap": None,
    "answer_cap": None,
    "row_tokens": None,
    "talker_tokens": None,
    "vocabulary_size": None,
    "questions": 1,
}
WORDS: dict[str, Any] = {"markers": ("<think>", "</think>")}
FILES: dict[str, Any] = {"natural_language": True, "from_files": True, **WORDS}
TREES: dict[str, Any] = {"own_vocabulary": True, "has_chain": False, "has_lengths": False}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "cups": (CupsConfig(), WORDS),
    "arithmetic": (ArithmeticConfig(), WORDS),
    "logic": (LogicConfig(), {**WORDS, "questions": 16}),
    "grade school": (GradeSchoolConfig(train="a.jsonl"), FILES),
    "competition": (CompetitionConfig(tests=("a.jsonl",)), FILES),
    "jsonl": (JsonlConfig(train="a.jsonl"), FILES),
    "jsonl with a vocabulary": (
        JsonlConfig(train="a.jsonl", vocabulary=300),
        {"own_vocabulary": True, "from_files": True, "vocabulary_size": 300, **WORDS},
    ),
    # Fourteen edges of three tokens less one comma, four more of root and markers, one target; four names and the end.
    "tree search": (
        TreeSearchConfig(),
        {**TREES, "chain_cap": 10, "answer_cap": 10, "row_tokens": (46, 5), "questions": 8},
    ),
    # Six edges, and three targets.
    "ambiguous tree search": (
        TreeSearchConfig(depth=3, targets=3),
        {**TREES, "selected_by": "loss", "chain_cap": 8, "answer_cap": 8, "row_tokens": (24, 4)},
    ),
    "prose": (
        ProseConfig(train="python-help"),
        {
            "own_vocabulary": True,
            "has_chain": False,
            "has_lengths": False,
            "answerable": False,
            "continues": True,
            "selected_by": "loss",
            "row_tokens": (0, 128),
            # A sentence of 16 to 40 tokens stands between two ends, of which the second is learned.
            "talker_tokens": (30, 29),
            "vocabulary_size": 4096,
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_traits_of_a_configuration(name: str) -> None:
    config, expected = CASES[name]
    assert asdict(config.traits) == {**PLAIN, **expected}


@pytest.mark.parametrize(
    ("settings", "steps"), [({"levels": 3}, 4), ({"levels": 3, "rules": 3, "steps": 12}, 12), ({"levels": 4}, 4)]
)
def test_the_traits_of_a_grammar(settings: dict[str, int], steps: int) -> None:
    config = GrammarConfig(**settings)
    mean = config.build().grammar.mean_length
    traits = asdict(config.traits)
    row, talker = traits.pop("row_tokens"), traits.pop("talker_tokens")
    assert traits == {
        **{name: value for name, value in PLAIN.items() if name not in ("row_tokens", "talker_tokens")},
        "own_vocabulary": True,
        "has_chain": False,
        "answerable": False,
        "selected_by": "symbols",
        "fixed_steps": steps // 2,
        "chain_cap": steps,
        "answer_cap": steps,
    }
    # A prompt ends anywhere from the middle to the last place that leaves all steps.
    prompt = (mean / 2 + (mean - steps)) / 2
    assert row == pytest.approx((prompt, mean + 1 - prompt))
    assert talker == pytest.approx((mean + 1, sum(range(1, steps + 1)) / steps))


@pytest.mark.parametrize(
    ("traits", "steps"),
    [(Traits(), True), (Traits(has_chain=False), False), (Traits(has_chain=False, fixed_steps=2), True)],
)
def test_steps_are_those_of_a_chain_or_of_a_fixed_number(traits: Traits, steps: bool) -> None:
    assert traits.has_steps is steps


def test_a_dual_talker_gets_ten_tokens_of_a_sentence_as_in_the_paper() -> None:
    config = ProseConfig(train="a.txt")
    assert (config.prime, config.sentence_tokens) == (10, (16, 40))


def test_files_hold_out_500_training_rows_where_nothing_is_set() -> None:
    assert GradeSchoolConfig(train="a.jsonl").validation_rows == 500
    assert CompetitionConfig(train="a.jsonl").validation_rows == 500
    assert JsonlConfig(train="a.jsonl").validation_rows is JsonlConfig(train="a.jsonl").test_rows is None
    for config in (GradeSchoolConfig(train="a"), CompetitionConfig(train="a"), JsonlConfig(train="a")):
        assert config.skip_malformed is False


@pytest.mark.parametrize("name", CASES)
def test_the_first_seed_is_meant_where_none_is_named(name: str) -> None:
    config, _ = CASES[name]
    if config.traits.from_files:
        return
    task = config.build()
    first, again = task.spans(task.sample("train", range(3))), task.spans(task.sample("train", range(3), 0))
    assert first == again
    plain, named = task.talker_rows(range(3)), task.talker_rows(range(3), 0, "train")
    assert all(torch.equal(plain[key], named[key]) for key in named)


def test_the_last_two_classes_of_hashes_are_validation_and_test() -> None:
    for classes in (8, 16):
        splits = [split_of(number, classes) for number in range(2 * classes)]
        assert splits == [*["train"] * (classes - 2), "validation", "test"] * 2


def test_rows_and_what_is_left_out_in_words() -> None:
    class Counted:
        dropped = {"train: no chain": 1200, "exam: malformed": 1}
        left_out = {"train: no chain": ["a", "b"], "exam: malformed": ["c"]}

        def sizes(self) -> dict[str, int | None]:
            return {"train": 7000, "exam": 12}

    task: Any = Counted()
    assert rows_in_words(task) == "rows: 7,000 train, 12 exam; left out: 1,200 (train: no chain), 1 (exam: malformed)"
    assert left_out_in_words(task) == [
        "left out (train: no chain): a",
        "left out (train: no chain): b",
        "left out (exam: malformed): c",
    ]
    task.dropped = {}
    assert rows_in_words(task) == "rows: 7,000 train, 12 exam"
