"""Checks of problems out of files, with problems whose lengths are planted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unspoken.tasks.spans import Markers, Spans
from unspoken.training import problem_checks
from unspoken.training.problem_checks import (
    _longest,
    _read_long_rows,
    answered_splits,
    beyond_caps,
    beyond_positions,
    name_of,
    require_room,
    require_written_chains,
)


class Rows(list[Any]):
    def select(self, chosen: Any) -> Rows:
        return Rows(self[number] for number in chosen)


class Task:
    tests = ("test", "far")

    def __init__(self, *lengths: tuple[int, int, int]) -> None:
        self.lengths = lengths

    def size(self, split: str) -> int | None:
        return {"train": len(self.lengths), "validation": 3, "test": 5, "far": None}[split]

    def spans(self, problems: Rows, _: Any) -> list[Spans]:
        made = [self.lengths[one.number] for one in problems]
        return [Spans(prompt=(3,) * p, steps=((4,) * c,), answer=(5,) * a) for p, c, a in made]


def problem(number: int) -> Any:
    return SimpleNamespace(number=number, question=f"problem {number}", chains=("x" * 10,), solution=None, answer="7")


def planted(monkeypatch: pytest.MonkeyPatch, task: Task, *, writes: bool = True, at_marker: bool = True) -> Any:
    objective = SimpleNamespace(writes_tokens=writes, ends_at_marker=at_marker)
    context = SimpleNamespace(
        has_chain=True,
        pretrained=True,
        task=task,
        traits=SimpleNamespace(from_files=True),
        prompt_format=SimpleNamespace(prompt=lambda _: [1, 2, 3]),
        markers=Markers(open=(8,), end=(4, 9)),
        tokenizer=SimpleNamespace(convert_ids_to_tokens=str),
        backbone_config=lambda: SimpleNamespace(max_position_embeddings=30),
        max_answer=5,
        max_latents=8,
        lineage=SimpleNamespace(objective=SimpleNamespace(rows_of=lambda indices, _: indices)),
        sample=lambda indices, *_: Rows(problem(int(number)) for number in indices),
    )
    recipe = SimpleNamespace(
        stages=[SimpleNamespace(objective=objective)],
        task=SimpleNamespace(build=lambda: task, traits=context.traits),
        evaluation=SimpleNamespace(validation_problems=4, problems=6),
        backbone="a model",
    )
    monkeypatch.setattr(problem_checks, "context_of", lambda *_: context)
    return SimpleNamespace(recipe=recipe, context=context)


def test_no_more_problems_are_answered_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planted(monkeypatch, Task())
    assert answered_splits(made.recipe) == {"validation": 3, "test": 5, "far": 6}


SIX = [(3, 8, 5), (3, 9, 5), (3, 10, 6), (3, 10, 6), (3, 8, 5), (3, 8, 5)]


def test_answers_and_chains_beyond_the_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planted(monkeypatch, Task(*SIX))
    lines = beyond_caps(made.recipe)
    assert [line.partition(",")[0] for line in lines] == [
        "validation: 1 of 3 right answers are longer than evaluation.max_answer 5",
        "validation: 2 of 3 chains are longer than evaluation.max_latents 8",
        "test: 2 of 5 right answers are longer than evaluation.max_answer 5",
        "test: 3 of 5 chains are longer than evaluation.max_latents 8",
        "far: 2 of 6 right answers are longer than evaluation.max_answer 5",
        "far: 3 of 6 chains are longer than evaluation.max_latents 8",
    ]
    # The first of the longest ones is named.
    assert lines[1].endswith("the longest has 10 tokens, of 'problem 2'")
    assert lines[0].endswith("the longest has 6 tokens, of 'problem 2'")
    silent = planted(monkeypatch, Task(*SIX), writes=False)
    assert all("chains" not in line for line in beyond_caps(silent.recipe))
    made.context.has_chain = False
    monkeypatch.setattr(problem_checks, "context_of", lambda *_: made.context)
    assert beyond_caps(made.recipe) == []


def test_problems_are_read_a_thousand_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem_checks, "_AT_ONCE", 2)
    made = planted(monkeypatch, Task(*SIX))
    read = [one.number for one, _ in problem_checks._problems(made.context, "test", 5)]
    assert read == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("at_marker", "most", "refused"), [(True, 2, True), (True, 1, False), (False, 2, False)])
def test_a_chain_holds_no_token_of_the_end_marker(
    monkeypatch: pytest.MonkeyPatch, at_marker: bool, most: int, refused: bool
) -> None:
    made = planted(monkeypatch, Task((3, 0, 2), (3, 2, 2)), at_marker=at_marker)
    monkeypatch.setattr(problem_checks, "_MOST_MARKED", most)
    if refused:
        with pytest.raises(
            ValueError, match="'4', also occurs in the chain of 'problem 1', so generation would stop there"
        ):
            require_written_chains(made.recipe)
    else:
        require_written_chains(made.recipe)


def test_ten_thousand_chains_are_searched_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[Any] = []
    monkeypatch.setattr(problem_checks, "_problems", lambda _, *given: searched.append(given) or [])
    for rows in (9_999, 10_001, 10**6):
        require_written_chains(planted(monkeypatch, Task(*[(3, 0, 2)] * rows)).recipe)
    assert searched == [("train", 9_999), ("train", 10_000), ("train", 10_000)]


def test_a_question_is_quoted_up_to_sixty_letters() -> None:
    sixty = "word " * 11 + "words"
    assert name_of(SimpleNamespace(question=sixty)) == repr(sixty)  # type: ignore[arg-type]
    assert name_of(SimpleNamespace(question=f"{sixty}!")) == repr("word " * 10 + "word ...")  # type: ignore[arg-type]


def test_rows_beyond_the_positions_of_a_model_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly thirty positions fit."""
    made = planted(monkeypatch, Task((10, 10, 10), (10, 11, 10), (9, 20, 4)))
    assert beyond_positions(made.recipe) == [
        "train: 2 problems are longer than the 30 positions that a model was trained with; the longest has 33 tokens, "
        "'problem 2'"
    ]
    assert beyond_positions(planted(monkeypatch, Task((10, 10, 10))).recipe) == []


def test_a_problem_is_at_most_as_long_as_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens around the question and three of markers; the chain counts twice, and the answer has an end."""
    made = planted(monkeypatch, Task())
    one = problem(5)
    assert _longest(made.context)(one) == 3 + 3 + len("problem 5") + 2 * 10 + len(r"\boxed{7}") + 1
    one.solution = "it is 7"
    assert _longest(made.context)(one) == 3 + 3 + len("problem 5") + 2 * 10 + len("it is 7") + 1


@pytest.mark.parametrize(("length", "read"), [(45, False), (44, True)])
def test_rows_that_may_be_longer_than_a_table_are_made(
    monkeypatch: pytest.MonkeyPatch, length: int, read: bool
) -> None:
    made, seen = planted(monkeypatch, Task(*SIX)), list[int]()

    class Data:
        first = 4

        def __len__(self) -> int:
            return 5

        def make(self, indices: Any) -> None:
            seen.extend(indices.tolist())

    data: Any = Data()
    monkeypatch.setattr(problem_checks, "_AT_ONCE", 2)
    _read_long_rows(made.context, data, length)
    assert seen == ([4, 5, 6, 7, 8] if read else [])

    def refuse(indices: Any) -> None:
        raise ValueError(f"row {indices.tolist()} does not fit")

    data.make = refuse
    if read:
        with pytest.raises(ValueError, match=r"the training problem 'problem 4': row \[4\] does not fit"):
            _read_long_rows(made.context, data, length)


def test_few_problems_are_read_twice_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = planted(monkeypatch, Task((1, 1, 1))), list[int]()
    data: Any = type(
        "Data", (), {"first": 0, "__len__": lambda _: 9, "make": lambda _, given: seen.extend(given.tolist())}
    )()
    _read_long_rows(made.context, data, 1)
    assert seen == [0, 1]


@pytest.mark.parametrize(("positions", "fits"), [(17, True), (16, False), (None, True)])
def test_prompts_leave_positions_for_what_follows(
    monkeypatch: pytest.MonkeyPatch, positions: int | None, fits: bool
) -> None:
    """The longest prompt has seven tokens; ten steps follow."""
    made = planted(monkeypatch, Task((3, 1, 1), (7, 1, 1), (9, 1, 1)))
    system = SimpleNamespace(positions=positions, max_tokens=5, steps_after_prompt=lambda tokens: 2 * tokens)
    monkeypatch.setattr(problem_checks, "system_of", lambda *_: system)
    monkeypatch.setattr(problem_checks, "positions_in_a_table", lambda _: None)
    model: Any = np
    if fits:
        require_room(model, made.context, None, {"test": 2})  # type: ignore[arg-type]
    else:
        with pytest.raises(ValueError, match=r"the test problem 'problem 1' has 7 tokens, and up to 10 further steps"):
            require_room(model, made.context, None, {"test": 2})  # type: ignore[arg-type]


@pytest.mark.parametrize(("from_files", "has_chain"), [(False, True), (True, False), (False, False)])
def test_made_up_problems_and_those_without_chains_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch, from_files: bool, has_chain: bool
) -> None:
    made = planted(monkeypatch, Task((40, 0, 50), (40, 40, 50)))
    made.context.has_chain, made.context.traits.from_files = has_chain, from_files
    monkeypatch.setattr(problem_checks, "system_of", lambda *_: SimpleNamespace(positions=1, max_tokens=1))
    monkeypatch.setattr(problem_checks, "positions_in_a_table", lambda _: 1)
    require_room(np, made.context, None, {"test": 2})  # type: ignore[arg-type]
    require_written_chains(made.recipe)
    assert (beyond_caps(made.recipe), beyond_positions(made.recipe)) == ([], [])


@pytest.mark.parametrize(("pretrained", "limit"), [(False, 30), (True, None)])
def test_positions_are_counted_of_pretrained_models_that_have_a_limit(
    monkeypatch: pytest.MonkeyPatch, pretrained: bool, limit: int | None
) -> None:
    made = planted(monkeypatch, Task((10, 11, 10)))
    made.context.pretrained = pretrained
    made.context.backbone_config = lambda: SimpleNamespace(max_position_embeddings=limit)
    assert beyond_positions(made.recipe) == []
