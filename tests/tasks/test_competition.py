"""Files of competition problems become word problems, whose answers are expressions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unspoken.tasks.competition import CompetitionConfig, CompetitionTask
from unspoken.tasks.grading import graded
from unspoken.tasks.problems import ReasoningTask

SAID = "Half of it is $\\frac{1}{2}$, so the answer is \\boxed{\\frac{1}{2}}."


def save(path: Path, rows: list[Any], *, lines: bool = False) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def long(number: int, **changes: Any) -> dict[str, Any]:
    """A training row like those of Latent-SFT."""
    cot = f"<think>\nLet us halve {number}.\n</think>"
    return {"problem": f"Halve {number}/{number}.", "cot": cot, "cot_answer": SAID, **changes}


def turns(question: str, answer: Any) -> dict[str, Any]:
    """A test row as a chat."""
    return {"prompt": [{"from": "user", "value": question}], "final_answer": answer}


def task(**settings: Any) -> CompetitionTask:
    return CompetitionConfig(**{"validation_rows": 0, **settings}).build()


# --- reading -----------------------------------------------------------------------------------------------------


def test_tests_need_no_training_rows(tmp_path: Path) -> None:
    polar = "\\left( 3, \\frac{\\pi}{2} \\right)"
    hub = {"problem": "What is $\\pi^0$? ", "solution": "It is \\boxed{1}.", "answer": "1", "level": 1}
    made = task(
        tests=(
            save(tmp_path / "math500.json", [turns("Polar form?", polar), turns("Sum?", "42")]),
            save(tmp_path / "aime2024.json", [turns("How many?", "073"), turns("How few?", 73)]),
            save(tmp_path / "hub.jsonl", [hub], lines=True),
        )
    )
    assert isinstance(made, ReasoningTask)
    assert made.tokenizer is None
    assert made.tests == ("math500", "aime2024", "hub")
    read = [[(one.question, one.answer, one.chains) for one in made.sample(name, range(2))] for name in made.tests[:2]]
    assert read == [
        [("Polar form?", polar, ()), ("Sum?", "42", ())],
        [("How many?", "073", ()), ("How few?", "73", ())],
    ]
    assert made.sample("hub", [0])[0].question == "What is $\\pi^0$?"
    with pytest.raises(ValueError, match="no split 'train'; this task has aime2024, hub, math500"):
        made.size("train")


@pytest.mark.parametrize(("profile", "solution"), [("as_released", SAID), ("boxed_only", "")])
def test_a_profile_says_what_stands_behind_the_chain(tmp_path: Path, profile: str, solution: str) -> None:
    (problem,) = task(train=save(tmp_path / "r1.json", [long(7)]), profile=profile).sample("train", [0])
    assert problem.chains == ("Let us halve 7.",)
    assert problem.solution == solution
    assert problem.answer == "\\frac{1}{2}"


def test_profiles_are_different_data(tmp_path: Path) -> None:
    path = save(tmp_path / "r1.json", [long(7)])
    released, boxed = (task(train=path, profile=profile) for profile in ("as_released", "boxed_only"))
    assert released.fingerprint != boxed.fingerprint
    assert released.sample("train", [0])[0].key != boxed.sample("train", [0])[0].key


def test_validation_rows_leave_the_training_rows(tmp_path: Path) -> None:
    rows = [long(number) for number in range(40)]
    made = task(train=save(tmp_path / "r1.json", rows), validation_rows=10)
    again = task(train=save(tmp_path / "other.json", rows[::-1]), validation_rows=10)
    held = {one.question for one in made.sample("validation", range(made.size("validation")))}
    remaining = [one.question for one in made.sample("train", range(30))]
    assert (len(held), len(set(remaining)), made.size("train")) == (10, 30, 30)
    assert not held & set(remaining)
    assert held == {one.question for one in again.sample("validation", range(10))}
    second = [one.question for one in made.sample("train", range(30, 60))]
    assert sorted(second) == sorted(remaining)
    assert second != remaining


def test_rows_that_are_alike_have_different_keys(tmp_path: Path) -> None:
    made = task(train=save(tmp_path / "r1.json", [long(7), long(7)]))
    assert len({one.key for one in made.sample("train", range(2))}) == 2


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (long(1, cot_answer="It is 1/2."), r"row 2: field 'cot_answer' has no complete \\boxed"),
        (long(1, cot="<think></think>"), "row 2: field 'cot' is empty between its markers"),
        (long(1, problem=" "), "row 2: field 'problem' is ' '; it must be text"),
        (turns("Why?", "1"), "row 2: a training row needs the fields problem, cot and cot_answer"),
    ],
)
def test_a_malformed_training_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = save(tmp_path / "r1.json", [long(7), row])
    with pytest.raises(ValueError, match=message) as refused:
        task(train=path)
    assert "\n" not in str(refused.value)
    left = task(train=path, skip_malformed=True)
    assert (left.size("train"), left.dropped) == (1, {"train: malformed": 1})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Why?"}, "unknown fields 'question'; known are"),
        ({"prompt": [], "final_answer": "1"}, "'prompt' must be a list of one turn"),
        ({"prompt": [{"from": "user"}], "final_answer": "1"}, "field 'value' is missing"),
        ({"problem": "Why?", "answer": 1.5}, "field 'answer' is 1.5; it must be text"),
        ({"problem": "Why?"}, "field 'answer' is missing"),
    ],
)
def test_a_malformed_test_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(tests=(save(tmp_path / "set.json", [row]),))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "neither train nor tests"),
        ({"train": "a.json", "validation_rows": -1}, "cannot be negative"),
        ({"tests": ("a/x.json", "b/x.json")}, "2 splits are named 'x'"),
        ({"tests": ("train.json",)}, "2 splits are named 'train'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompetitionConfig(**settings)


def test_a_missing_file_and_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        task(tests=(str(tmp_path / "none.json"),))
    with pytest.raises(ValueError, match="leaves nothing of the 1 rows"):
        task(train=save(tmp_path / "r1.json", [long(7)]), validation_rows=1)


def test_an_index_outside_a_test_set_is_refused(tmp_path: Path) -> None:
    made = task(tests=(save(tmp_path / "set.json", [turns("Why?", "1")]),))
    with pytest.raises(IndexError, match="index 1 is outside split 'set'"):
        made.sample("set", [1])


# --- grading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\pi/2)", "(3,\\pi/3)"),
        ("1,-2", "-2, 1", "2, 1"),
        ("4+2x^2", "2x^2+4", "2x+4"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", "(2, 1)"),
        ("[-2,7]", "x \\in [-2,7]", "[-2,7)"),
        ("\\text{Evelyn}", "Evelyn", "Angela"),
        ("073", "73", "37"),
    ],
)
def test_answers_are_compared_in_value(tmp_path: Path, answer: str, right: str, wrong: str) -> None:
    made = task(tests=(save(tmp_path / "set.json", [turns("Why?", answer)]),))
    problems = made.sample("set", [0]) * 2
    assert graded([f"So \\boxed{{{right}}}.", f"\\boxed{{{wrong}}}"], problems).tolist() == [True, False]
