"""Swapped cups: chains follow the swaps, splits share no swaps, and what cannot be read is refused by name."""

from __future__ import annotations

import re

import pytest

from unspoken.tasks.cups import CupsConfig

TASK = CupsConfig(cups=4, swaps=(1, 3)).build()


def test_a_chain_by_hand() -> None:
    (problem,) = TASK.parse("Cups hold D A C B. Swap 1 3. Swap 4 1. Which ball is in cup 4?")
    assert problem.steps == ("C A D B.", " B A D C.")
    assert problem.chains == ("C A D B. B A D C.",)
    assert problem.answer == "C"
    assert TASK.grade(["It is \\boxed{C}."], [problem]).correct.tolist() == [True]
    assert TASK.grade(["\\boxed{B}"], [problem]).correct.tolist() == [False]


def test_every_chain_ends_in_the_answer_and_lengths_are_as_frequent() -> None:
    problems = TASK.sample("train", range(200))
    for problem in problems:
        asked = int(re.search(r"cup (\d+)", problem.question)[1])  # type: ignore[index]
        assert problem.steps[-1].strip(" .").split(" ")[asked - 1] == problem.answer
        assert TASK.parse(problem.question)[0].chains == problem.chains
    assert 70 < sum(len(problem.steps) == 3 for problem in problems) < 130


def test_no_sequence_of_swaps_is_in_two_splits() -> None:
    asked = {
        split: {problem.question.partition(".")[2] for problem in TASK.sample(split, range(300))}
        for split in ("train", "validation", "test")
    }
    assert not asked["train"] & asked["test"]
    assert not asked["train"] & asked["validation"]
    assert not asked["validation"] & asked["test"]


@pytest.mark.parametrize(("cups", "swaps"), [(2, 3), (3, 1), (9, 1)])
def test_the_fewest_problems_are_enough_for_every_split(cups: int, swaps: int) -> None:
    task = CupsConfig(cups=cups, swaps=(swaps,)).build()
    for split in ("train", "validation", "test"):
        assert [len(problem.steps) for problem in task.sample(split, range(3))] == [swaps] * 3


@pytest.mark.parametrize("changes", [{"cups": 1}, {"cups": 10}, {"swaps": ()}, {"swaps": (2, 2)}, {"swaps": (0,)}])
def test_impossible_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="it must"):
        CupsConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Where is the ball?",
        "Cups hold A B C. Swap 1 3. Which ball is in cup 2?",
        "Cups hold A B C D. Swap 1 5. Which ball is in cup 2?",
        "Cups hold A B C D. Swap 1 3. Which ball is in cup 0?",
        "Cups hold A B C C. Swap 1 3. Which ball is in cup 2?",
    ],
)
def test_what_is_no_question_is_refused_with_an_example(text: str) -> None:
    example = TASK.sample("train", [0])[0].question
    with pytest.raises(ValueError, match=re.escape(f"this is no question about 4 cups; ask like {example!r}")):
        TASK.parse(text)
