"""What checkpoints are selected by, from planted answers, losses and readings."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unspoken.chain import LatentChain, StopReason
from unspoken.tasks.task import Grades
from unspoken.training import validation
from unspoken.training.validation import validator_of

PAD = 0


class Model(nn.Linear):
    device = torch.device("cpu")


class Problems(list[int]):
    def select(self, chosen: Any) -> Problems:
        return Problems(self[number] for number in chosen)


class Task:
    """Problem n has n as its answer, twice: a token counts where it is right."""

    def __init__(self, held_out: int | None = None, *, symbols: bool = True) -> None:
        self.held_out, self.symbols, self.graded = held_out, symbols, list[tuple[Any, list[int]]]()

    def size(self, split: str) -> int | None:
        assert split == "validation"
        return self.held_out

    def prompts(self, problems: Problems, _: Any) -> Any:
        return (list(problems),)

    def rows(self, problems: Problems, _: Any) -> Any:
        return {"of": list(problems)}

    def grade(self, answers: Any, problems: Problems) -> Grades:
        self.graded.append((answers, list(problems)))
        if isinstance(answers, list):
            return Grades(
                correct=torch.tensor([answer == str(one) for answer, one in zip(answers, problems, strict=True)])
            )
        right = answers == torch.tensor(problems)[:, None]
        return Grades(correct=right.all(dim=1), per_symbol=right if self.symbols else None)


class Stage:
    """The loss of a batch is the number of its first problem."""

    def __init__(self, *, given: Any = None, readings: dict[str, float] | None = None) -> None:
        self.given, self.measured = given, readings or {}

    def collate(self, _: Any, split: str) -> Any:
        assert split == "validation"
        return lambda indices: {"first": torch.tensor(float(indices[0]))}

    def loss(self, forward: Any, batch: Any) -> Any:
        assert forward.func is nn.Linear.forward
        return batch["first"], {"half": batch["first"] / 2}

    def teacher_chain(self, *_: Any) -> Any:
        return self.given

    def readings(self, model: Any, context: Any, rows: Any) -> dict[str, float]:
        assert rows()["of"] == [0, 1, 2, 3, 4]
        return self.measured


def chain_of(count: int) -> LatentChain:
    """Chains of one and of two latents in turn, of which every second ends by itself."""
    mask = torch.tensor([[True, number % 2 == 1] for number in range(count)])
    stop = torch.tensor([StopReason.END if number % 2 else StopReason.CAP for number in range(count)])
    return LatentChain(latents=torch.zeros(count, 2, 3), mask=mask, stop=stop)


def measure(
    monkeypatch: pytest.MonkeyPatch,
    task: Task,
    stage: Stage,
    answers: Any,
    *,
    count: int = 5,
    has_chain: bool = False,
    selected_by: str = "symbols",
    replaced: int = 0,
) -> dict[str, Any]:
    """Answers of two problems at a time."""
    asked: list[Any] = []

    def respond(problems: list[int], chain: Any = None) -> Any:
        asked.append((problems, chain))
        tokens = torch.tensor([answers[number] for number in problems])
        return SimpleNamespace(filled=lambda _: tokens, chain=chain_of(len(problems)))

    system = SimpleNamespace(respond=respond, targets=None, silent=True, replaced=replaced)
    monkeypatch.setattr(validation, "system_of", lambda *_: system)
    monkeypatch.setattr(
        validation, "first_examples", lambda *_, **given: [given["tokens"].tolist(), given["correct"].tolist()]
    )
    context: Any = SimpleNamespace(
        traits=SimpleNamespace(continues=False, selected_by=selected_by),
        task=task,
        lineage=SimpleNamespace(objective=stage),
        has_chain=has_chain,
        batch_size=2,
        prompt_format=SimpleNamespace(decode=lambda tokens: [str(row[0]) for row in tokens.tolist()]),
        tokenizer=SimpleNamespace(pad_token_id=PAD),
        sample=lambda indices, split: Problems(indices.tolist()) if split == "validation" else None,
    )
    reading = validator_of(context, count)(Model(1, 1))  # type: ignore[arg-type]
    assert [problems for problems, _ in asked] == [[0, 1], [2, 3], [4]]
    assert all(chain is stage.given for _, chain in asked)
    return reading


# Problems 0 and 3 have both symbols right, 1 and 4 one of them, 2 none.
ANSWERS = [[0, 0], [1, 0], [0, 0], [3, 3], [4, 0]]


def test_symbols_and_the_loss_select(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = measure(monkeypatch, Task(), Stage(), ANSWERS)
    loss = (2 * 0 + 2 * 2 + 1 * 4) / 5
    assert reading.pop("chains") == [[[0, 0], [1, 0]], [True, False]]
    assert reading == pytest.approx(
        {"exact_match": 0.4, "symbols": 0.6, "half": loss / 2, "score": 0.6 - loss / (1000 * 10)}
    )


def test_whole_answers_select_where_the_task_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for task, selected_by in ((Task(), "answers"), (Task(symbols=False), "symbols")):
        reading = measure(monkeypatch, task, Stage(), ANSWERS, selected_by=selected_by)
        assert "symbols" not in reading
        assert reading["score"] == pytest.approx(0.4 - 1.6 / (1000 * 5))


def test_the_loss_alone_selects_where_several_answers_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = measure(monkeypatch, Task(), Stage(), ANSWERS, selected_by="loss")
    assert reading["score"] == pytest.approx(-1.6 / (1000 * 5))
    assert reading["exact_match"] == 0.4


def test_a_very_large_loss_counts_less_than_one_symbol(monkeypatch: pytest.MonkeyPatch) -> None:
    class Diverged(Stage):
        def loss(self, forward: Any, batch: Any) -> Any:
            return torch.tensor(1e9), {}

    reading = measure(monkeypatch, Task(), Diverged(), ANSWERS)
    assert reading["score"] == pytest.approx(0.6 - 100 / (1000 * 10))


def test_answers_after_a_chain_are_graded_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains have 1, 2, 1, 2 and 1 latents; the readings of the stage come along."""
    task = Task(symbols=False)
    reading = measure(monkeypatch, task, Stage(readings={"rank": 3.0}), ANSWERS, has_chain=True)
    assert [answers for answers, _ in task.graded] == [["0", "1"], ["0", "3"], ["4"]]
    assert "chains" in reading
    del reading["chains"]
    assert reading == pytest.approx({"exact_match": 0.8, "ended": 0.4, "latents": 1.4, "rank": 3.0, "score": 0.8})


def test_given_chains_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = measure(monkeypatch, Task(symbols=False), Stage(given="right chains"), ANSWERS, has_chain=True)
    assert reading == {"exact_match": 0.8, "score": 0.8}


def test_symbols_that_latents_stand_for_are_not_graded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more symbol before the others: padding, and no part of the score."""
    task = Task()
    reading = measure(monkeypatch, task, Stage(), ANSWERS, replaced=1)
    assert task.graded[1][0].tolist() == [[PAD, 0, 0], [PAD, 3, 3]]
    assert reading["exact_match"] == pytest.approx(0.4)
    assert reading["symbols"] == pytest.approx(0.6)


def test_no_more_problems_are_asked_for_than_are_held_out() -> None:
    def context(held_out: int | None) -> Any:
        return SimpleNamespace(
            traits=SimpleNamespace(continues=False),
            task=Task(held_out),
            lineage=SimpleNamespace(objective=Stage()),
            has_chain=True,
            batch_size=2,
            prompt_format=None,
            sample=lambda indices, _: Problems(indices.tolist()),
        )

    for held_out in (5, 6, None):
        validator_of(context(held_out), 5)
    with pytest.raises(ValueError, match=r"validation_problems is 5, but the data holds 4 out"):
        validator_of(context(4), 5)


# --- running text ----------------------------------------------------------------------------------------------------


class Predicts(Stage):
    def __init__(self, loss: float) -> None:
        super().__init__()
        self.value = loss

    def collate(self, _: Any, split: str) -> Any:
        assert split == "validation"
        return lambda indices: {"input_ids": torch.zeros(len(indices), 3, dtype=torch.long)}

    def loss(self, forward: Any, batch: Any) -> Any:
        return torch.tensor(self.value), {"term": torch.tensor(2.0)}

    def readings(self, model: Any, context: Any, rows: Any) -> dict[str, float]:
        return {"nearest_row": 0.25}


def predicted(monkeypatch: pytest.MonkeyPatch, stage: Stage, *, size: int | None = None, **of_system: Any) -> Any:
    system = SimpleNamespace(**{"targets": None, "has_talker": False, **of_system})
    monkeypatch.setattr(validation, "system_of", lambda *_: system)
    context: Any = SimpleNamespace(
        traits=SimpleNamespace(continues=True),
        task=SimpleNamespace(size=lambda _: size),
        lineage=SimpleNamespace(objective=stage),
        batch_size=2,
        tokenizer=SimpleNamespace(eos_token_id=1),
    )
    return validator_of(context, 4)(Model(1, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "rows"), [(None, 4), (4, 4), (3, 3), (9, 4)])
def test_a_language_model_is_measured_by_its_loss(monkeypatch: pytest.MonkeyPatch, size: int | None, rows: int) -> None:
    def next_tokens(_: Any, batch: Any, at_once: int) -> Any:
        assert (len(batch["input_ids"]), at_once) == (rows, 2)
        return {"loss": np.array([1.0, 2.0]), "accuracy": np.array([0.5, 0.0])}

    monkeypatch.setattr(validation, "next_tokens", next_tokens)
    reading = predicted(monkeypatch, Predicts(0.0), size=size)
    assert reading == pytest.approx({"token_accuracy": 0.25, "perplexity": math.exp(1.5), "score": -1.5})
    monkeypatch.setattr(validation, "next_tokens", lambda *_: {"loss": np.array([800.0]), "accuracy": np.array([0.0])})
    assert predicted(monkeypatch, Predicts(0.0))["perplexity"] == pytest.approx(math.exp(20))


def test_a_reasoner_is_measured_by_its_nearest_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = predicted(monkeypatch, Predicts(3.0), targets="table")
    assert reading == pytest.approx({"nearest_row": 0.25, "term": 2.0, "score": 0.25 - 3 / (1000 * 4)})
    reading = predicted(monkeypatch, Predicts(1e9), targets="table", size=2)
    assert reading["score"] == pytest.approx(0.25 - 100 / (1000 * 2))


def test_a_talker_is_measured_by_the_tokens_that_it_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens without a latent and the end of text are not counted: two of three are right."""
    mask = torch.tensor([[True, True, True], [True, True, False]])
    right = torch.tensor([[5, 6, 1], [7, 1, 9]])
    decoded = torch.tensor([[5, 0, 0], [7, 1, 9]])
    monkeypatch.setattr(validation, "forced_chain", lambda *_: SimpleNamespace(mask=mask))
    monkeypatch.setattr(validation, "answer_tokens", lambda _: right)
    monkeypatch.setattr(validation, "decoded", lambda *_: SimpleNamespace(tokens=decoded))
    reading = predicted(monkeypatch, Predicts(3.0), targets="table", has_talker=True)
    assert reading == pytest.approx({"token_accuracy": 2 / 3, "term": 2.0, "score": 2 / 3 - 3 / 4000})


def test_mixtures_are_measured_behind_the_first_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A latent for each step after the root; chains that are too short are left out."""
    seen: list[int] = []

    def measured(latents: torch.Tensor, *_: Any) -> Any:
        seen.extend(latents[0, :, 0].int().tolist())
        return SimpleNamespace(summary=lambda: {"share": 0.5, "note": "text"})

    monkeypatch.setattr(validation, "measure", measured)
    latents = torch.arange(4.0)[None, :, None]
    targets, right = SimpleNamespace(target_table=None), SimpleNamespace(right=torch.zeros(1, 3))
    both = validation._mixtures(targets, right, latents, latents[:, :3])  # type: ignore[arg-type]
    assert both == {"forced_share": 0.5}
    assert seen == [1, 2, 3]
    assert set(validation._mixtures(targets, right, latents, latents)) == {"forced_share", "rollout_share"}  # type: ignore[arg-type]


def test_the_task_decides_what_is_right_where_no_latent_stands_for_a_symbol(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any answer that begins right."""

    class Lenient(Task):
        def grade(self, answers: Any, problems: Problems) -> Grades:
            grades = super().grade(answers, problems)
            assert grades.per_symbol is not None
            return Grades(correct=grades.per_symbol[:, 0], per_symbol=grades.per_symbol)

    reading = measure(monkeypatch, Lenient(), Stage(), ANSWERS)
    assert (reading["exact_match"], reading["symbols"]) == (0.8, pytest.approx(0.6))
