"""What the explorer shows of planted chains, what it keeps, and what a page without a model offers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_words import TASK, tiny_word_system

from unspoken.explorer import exploring, record
from unspoken.explorer.edits import Delete, Edit, Mix, Move, Noise, StepEdit, Swap, Truncate, Weigh, Zero
from unspoken.explorer.exploring import Between, Changed, Explorer
from unspoken.explorer.opening import first_contents

SIZE = 5  # of the planted task's test set


class PlantedChain(list[Any]):
    """Readings of latents; the chain between two is the fraction alone."""

    record = None
    stopped = SimpleNamespace(name="END")

    def steps(self, top: int) -> list[Any]:
        return list(self)

    def distances(self, pieces: Sequence[Sequence[int]]) -> list[float | None]:
        return [0.123456 if index < len(pieces) else None for index in range(len(self))]

    def mixed(self, other: Any, fraction: float) -> float:
        return fraction


class PlantedSystem:
    """Answers by the number of a question; from a chain between two by the fraction."""

    def __init__(self, chain: Sequence[Any] = (), *, explicit: bool = False, same_stack: bool = True) -> None:
        tokenizer = SimpleNamespace(decode=lambda ids: "+".join(map(str, ids)))
        self.texts = SimpleNamespace(task=None, tokenizer=tokenizer, prompt_format=None)
        self.explicit, self.speaker = explicit, SimpleNamespace(same_stack=same_stack)
        self.chain, self.asked = PlantedChain(chain), []  # type: ignore[var-annotated]

    def answer(self, question: Any, chain: Any = None, **how: Any) -> Any:
        if isinstance(question, list):
            return [self._answer("low" if fraction < 0.5 else "high") for fraction in chain]
        self.asked.append(question)
        return self._answer(question)

    def _answer(self, text: str) -> Any:
        return SimpleNamespace(text=text, chain=self.chain, cost="1 pass", tokens=[7, 8])


class PlantedTask:
    """Numbered problems, each with the explicit chain 1, 2, 3, 4, 5 and the answer 6, 7."""

    tests = ("test", "other")

    def size(self, test: str) -> int | None:
        return SIZE if test == "test" else None

    def sample(self, test: str, numbers: Any) -> list[str]:
        return [f"{test} {number}" for number in numbers]

    def questions(self, problems: list[str]) -> list[str]:
        return problems

    def spans(self, problems: Any, prompt_format: Any) -> list[Any]:
        return [SimpleNamespace(chain=[1, 2, 3, 4, 5])]

    def rows(self, problems: Any, prompt_format: Any) -> dict[str, Any]:
        import torch

        return {"input_ids": torch.tensor([[4, 5, 6, 7]]), "answer_mask": torch.tensor([[0, 0, 1, 1]])}


def reading(tokens: int = 8) -> Any:
    weights = [(chr(97 + index), 0.123456 + index) for index in range(tokens)]
    return SimpleNamespace(tokens=weights, rows=weights, entropy=0.123456, norm=1.000049)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every problem has a right answer."""
    monkeypatch.setattr(exploring, "verdict", lambda *_: {"expected": "6", "correct": False})


def explorer(system: PlantedSystem, **settings: Any) -> Explorer:
    return Explorer(system, task=PlantedTask(), **settings)  # type: ignore[arg-type]


@pytest.mark.usefixtures("judged")
def test_a_latent_is_shown_to_four_digits_with_six_tokens_and_three_rows() -> None:
    silent = {**vars(reading()), "entropy": None}
    made = explorer(PlantedSystem([reading(), SimpleNamespace(**silent)]), rate=4)
    first, second = made.changed({"problem": 0})["steps"]
    assert first["tokens"] == [(letter, 0.1235 + index) for index, letter in enumerate("abcdef")]
    assert first["rows"] == [("a", 0.1235), ("b", 1.1235), ("c", 2.1235)]
    assert (first["entropy"], first["norm"], first["distance"]) == (0.1235, 1.0, 0.1235)
    assert (second["entropy"], second["distance"], second["piece"]) == (None, None, None)
    assert first["names"] is None and first["decoded"] is None


@pytest.mark.usefixtures("judged")
@pytest.mark.parametrize(
    ("system", "rate", "pieces"),
    [
        # The tokens of a latent are those of the chunk after its own; of an explicit chain every token is its own.
        (PlantedSystem([reading()] * 3), 2, ["3+4", "5", None]),
        (PlantedSystem([reading()] * 3), 5, [None, None, None]),
        (PlantedSystem([reading()] * 3), None, [None, None, None]),
        (PlantedSystem([reading()] * 3, explicit=True), None, ["1", "2", "3"]),
        (PlantedSystem([reading()] * 3, same_stack=False), None, ["6", "7", None]),
    ],
)
def test_a_latent_stands_above_its_piece_of_the_explicit_chain(
    system: PlantedSystem, rate: int | None, pieces: list[str | None]
) -> None:
    steps = explorer(system, rate=rate).changed({"problem": 0})["steps"]
    assert [step["piece"] for step in steps] == pieces
    # What is decoded from a latent is known where each token of an answer has one.
    decoded = [None] * 3 if system.speaker.same_stack else ["7", "8", None]
    assert [step["decoded"] for step in steps] == decoded


@pytest.mark.usefixtures("judged")
def test_nothing_is_known_of_a_question_that_the_task_has_not_read() -> None:
    (step,) = explorer(PlantedSystem([reading()]), rate=2).changed({"problem": "how many?"})["steps"]
    assert step["piece"] is None


@pytest.mark.usefixtures("judged")
def test_a_tree_names_what_is_large_enough_to_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Explorer, "_tree", lambda *_: {})
    weights = [("a", 0.05), ("b", -0.05), ("c", 0.04996), ("d", 0.04994), ("e", -0.2), ("f", 0.0), ("g", 0.3)]
    step = SimpleNamespace(**{**vars(reading()), "tokens": weights})
    system = PlantedSystem([step])
    system.texts.tokenizer = range(9)
    (read,) = explorer(system).changed({"problem": 0})["steps"]
    assert read["names"] == {"a": 0.05, "b": -0.05, "c": 0.05, "e": -0.2, "g": 0.3}


def test_test_problems_have_numbers_from_zero() -> None:
    made = explorer(PlantedSystem())
    assert [made.question(number) for number in (0, SIZE - 1)] == ["test 0", "test 4"]
    for number in (-1, SIZE):
        with pytest.raises(ValueError, match=f"there is no test problem {number}; they are numbered from 0, to 4"):
            made.question(number)
    with pytest.raises(ValueError, match="records no task"):
        Explorer(PlantedSystem()).question(0)  # type: ignore[arg-type]


def test_a_question_is_checked_before_it_is_read() -> None:
    checked: list[str] = []
    made = Explorer(PlantedSystem(), check=checked.append)  # type: ignore[arg-type]
    answer = made.changed({"problem": "how many?"})
    assert checked == ["how many?"]
    assert (answer["question"], answer["text"], answer["changed"]) == ("how many?", "how many?", False)
    assert (answer["expected"], answer["correct"], answer["tree"]) == (None, None, None)


def test_the_answers_of_sixty_four_problems_are_kept_those_that_were_read_last() -> None:
    system = PlantedSystem()
    made = Explorer(system)  # type: ignore[arg-type]
    for number in (*range(64), 0, 64):
        made.changed({"problem": f"question {number}"})
    assert len(system.asked) == 65
    made.changed({"problem": "question 0"})
    made.changed({"problem": "question 2"})
    assert len(system.asked) == 65
    made.changed({"problem": "question 1"})  # the one that nobody read for the longest time
    assert len(system.asked) == 66


def test_between_two_problems_an_answer_flips_where_it_changes() -> None:
    made = explorer(PlantedSystem([reading()] * 2)).between({"problem": 0, "other": 1, "points": 4})
    assert [(point["fraction"], point["text"]) for point in made["points"]] == [
        (0.0, "low"),
        (0.3333, "low"),
        (0.6667, "high"),
        (1.0, "high"),
    ]
    assert made["flips"] == [{"low": 0.3333, "high": 0.6667, "from": "low", "to": "high"}]
    assert made["lengths"] == [2, 2]


# --- what may be asked -----------------------------------------------------------------------------------------------


def test_points_between_two_problems_have_bounds() -> None:
    assert Between(problem=0, other=1).points == 21
    assert [Between(problem=0, other=1, points=points).points for points in (2, 41)] == [2, 41]
    for points in (1, 42):
        with pytest.raises(ValueError, match=f"points is {points}; it must be from 2 to 41"):
            Between(problem=0, other=1, points=points)


def test_a_request_has_at_most_thirty_two_changes() -> None:
    assert len(Changed(problem=0, edits=(Zero(step=0),) * 32).edits) == 32
    with pytest.raises(ValueError, match="there are 33 edits; at most 32"):
        Changed(problem=0, edits=(Zero(step=0),) * 33)


def test_noise_has_bounds() -> None:
    assert Noise(step=0, amount=0.0).seed == 0
    assert Noise(step=0, amount=100.0, seed=1).amount == 100
    for amount, seed in ((-0.001, 0), (100.001, 0), (1.0, -1)):
        with pytest.raises(ValueError, match=f"amount is {amount} and seed {seed}; give 0 to 100"):
            Noise(step=0, amount=amount, seed=seed)


@pytest.mark.parametrize(
    ("edit", "start"),
    [
        (Zero(step=2), None),
        (Zero(step=2, rest="write"), 3),
        (Swap(step=0, problem=1, rest="write"), 1),
        (Weigh(step=1, token="a", weight=1, rest="write"), 2),
        (Move(step=1, to=3, rest="write"), 4),
        (Move(step=3, to=1, rest="write"), 4),
        (Move(step=3, to=1), None),
        (Delete(step=1), None),
        (Truncate(steps=1), None),
        (Mix(problem=1, fraction=0.5), None),
    ],
)
def test_the_model_writes_on_after_the_last_step_that_was_changed(edit: Edit, start: int | None) -> None:
    chain = tiny_word_system(fixed=True).answer(TASK.sample("test", [0])[0].question).chain
    assert edit.written_from(chain) == start
    if isinstance(edit, StepEdit):
        assert type(edit)(**{**vars(edit), "rest": "keep"}).written_from(chain) is None


@pytest.mark.parametrize(
    ("silent", "rows", "targets", "shown"),
    [
        (True, True, None, (True, True, "hidden states")),
        (True, False, None, (False, False, "hidden states")),
        (True, False, "a target", (True, False, "directions of table rows")),
        (False, True, None, (False, True, "hidden states")),
        (False, False, "a target", (False, False, "directions of table rows")),
    ],
)
def test_weights_can_be_changed_of_silent_chains_that_are_made_of_rows(
    silent: bool, rows: bool, targets: str | None, shown: tuple[bool, bool, str]
) -> None:
    system = SimpleNamespace(name="model", chain_kind="hidden", silent=silent, mixes_rows=rows, targets=targets)
    contents = first_contents(SimpleNamespace(system=system, task=None))  # type: ignore[arg-type]
    assert (contents["weighs"], contents["mixes"], contents["latents"]) == shown
    assert (contents["silent"], contents["numbered"], contents["model"]) == (silent, False, "model")


# --- a page without a model ------------------------------------------------------------------------------------------


def offered(lengths: Sequence[int], problems: int) -> list[dict[str, Any]]:
    """The changes that a page offers of the chain of problem 1, whose latents have so many tokens."""
    steps = [{"tokens": [("abcde"[index], 0.5) for index in range(length)]} for length in lengths]
    return list(record._changes(steps, 1, problems))


def of_kind(changes: Sequence[dict[str, Any]], kind: str, *keys: str) -> list[Any]:
    """The values of a kind of change, each once."""
    values = [tuple(change[key] for key in keys) for change in changes if change["kind"] == kind]
    return list(dict.fromkeys(values))


def test_a_page_offers_every_single_change_of_a_chain() -> None:
    changes = offered([5, 2, 0], problems=3)
    assert of_kind(changes, "delete", "step") == [(0,), (1,), (2,)]
    assert of_kind(changes, "truncate", "steps") == [(1,), (2,), (3,)]
    assert of_kind(changes, "zero", "step", "rest")[:3] == [(0, "write"), (0, "keep"), (1, "write")]
    assert of_kind(changes, "swap", "step", "problem")[:3] == [(0, 0), (0, 2), (1, 0)]
    assert sorted(of_kind(changes, "move", "step", "to")) == [(0, 1), (1, 0), (1, 2), (2, 1)]
    assert of_kind(changes, "noise", "amount") == [(0,), (0.5,), (1,), (1.5,), (2,)]
    # The first three tokens of a latent, or as many as it has.
    assert of_kind(changes, "weigh", "step", "token") == [(0, "a"), (0, "b"), (0, "c"), (1, "a"), (1, "b")]
    assert of_kind(changes, "weigh", "weight") == [(0,), (0.25,), (0.5,), (0.75,), (1,)]
    assert of_kind(changes, "mix", "problem") == [(0,), (2,)]
    assert of_kind(changes, "mix", "fraction") == [(index / 20,) for index in range(21)]
    # Of the chain as it is none is left out: 3 steps with 10 kinds of rest, 25 weights twice, 42 mixtures.
    assert len(changes) == 3 * 2 + 2 * (3 + 6 + 4 + 15 + 25) + 42
    assert not of_kind(offered([1], problems=2), "move", "step")


def test_numbers_of_changes_are_written_as_a_script_writes_them() -> None:
    written = {record._key(change["fraction"]) for change in offered([], problems=2)}
    assert {"[0]", "[0.05]", "[0.5]", "[1]"} <= written and not {"[0.0]", "[1.0]"} & written
    assert record._key(0, [{"kind": "zero", "token": "é"}]) == '[0,[{"kind":"zero","token":"é"}]]'


@pytest.mark.parametrize("problems", [1, 9])
def test_a_page_has_two_to_eight_problems(tmp_path: Path, problems: int) -> None:
    with pytest.raises(ValueError, match=f"problems is {problems}; a page has 2 to 8"):
        record.write_record("nowhere", tmp_path / "page.html", problems=problems)


@pytest.mark.parametrize("problems", [2, 3, 8])
def test_a_page_holds_every_problem_and_what_lies_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problems: int
) -> None:
    asked: list[Any] = []

    class Planted:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def changed(self, request: dict[str, Any]) -> dict[str, Any]:
            asked.append(request["problem"])
            keys = ("question", "expected", "own", "tree", "text", "value", "changed", "correct", "cost", "stopped")
            return {**dict.fromkeys(keys, "same"), "steps": []}

        def between(self, request: dict[str, Any]) -> dict[str, Any]:
            return {"points": request["points"]}

    written: list[dict[str, Any]] = []
    opened: list[Any] = []
    monkeypatch.setattr(record, "open_system", lambda *args, **how: opened.append((args, how)))
    monkeypatch.setattr(record, "task_of", lambda *_: None)
    monkeypatch.setattr(record, "compression_rate", lambda *_: None)
    monkeypatch.setattr(record, "Explorer", Planted)
    monkeypatch.setattr(record, "first_contents", lambda _: {})
    monkeypatch.setattr(record, "render", lambda start: written.append(start["frozen"]) or "page")
    target = tmp_path / "new" / "deeper" / "page.html"
    record.write_record("model", target, **({} if problems == 3 else {"problems": problems}))
    assert target.read_text() == "page"
    assert opened == [(("model", None), {"stage": None, "seed": 0, "device": "auto"})]
    record.write_record("model", target, problems=problems)  # the folder may be there
    (frozen, _) = written
    assert sorted(set(asked)) == list(range(problems))
    assert len(frozen["problems"]) == problems and frozen["tokens"] == 3
    assert set(frozen["between"]) == {
        json.dumps([one, other], separators=(",", ":"))
        for one in range(problems)
        for other in range(problems)
        if one != other
    }
    assert frozen["between"]["[0,1]"] == {"points": 21}
