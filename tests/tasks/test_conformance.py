"""What every task of the catalogue owes the rest of the package, checked once for all of them."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unspoken.tasks import (
    ArithmeticConfig,
    CompetitionConfig,
    GradeSchoolConfig,
    GrammarConfig,
    JsonlConfig,
    LogicConfig,
    ProseConfig,
    TreeSearchConfig,
)
from unspoken.tasks.catalogue import TASKS
from unspoken.tasks.cups import CupsConfig
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.spans import Spans
from unspoken.tasks.task import Grades, Problems, Task
from unspoken.tasks.tokenizing import byte_pairs

MANY = 40  # problems of a split that are looked at, if it has so many


def rows(first: int, count: int, **columns: Callable[[int], Any]) -> list[dict[str, Any]]:
    return [{name: make(n) for name, make in columns.items()} for n in range(first, first + count)]


def written(path: Path, content: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return str(path)


def word_problems(first: int, count: int) -> list[dict[str, Any]]:
    return rows(
        first,
        count,
        question=lambda n: f"Ann has {n} pears and finds {n + 1}, “ripe” ones. How many pears has she?",
        steps=lambda n: [f"<<{n}+{n + 1}={2 * n + 1}>>"],
        answer=lambda n: str(2 * n + 1),
    )


def grade_school(folder: Path) -> GradeSchoolConfig:
    train = written(folder / "train.jsonl", word_problems(0, 60))
    return GradeSchoolConfig(
        train=train, validation_rows=9, tests=(written(folder / "asked.jsonl", word_problems(100, 5)),)
    )


def competition(folder: Path) -> CompetitionConfig:
    train = rows(
        0,
        60,
        problem=lambda n: f"What is ${n}^2$?",
        cot=lambda n: f"<think>\nSquare it. {n} times {n}.\n</think>",
        cot_answer=lambda n: f"It is \\boxed{{{n * n}}}.",
    )
    test = rows(100, 5, problem=lambda n: f"What is ${n}^2$?", answer=lambda n: str(n * n))
    return CompetitionConfig(
        train=written(folder / "chains.jsonl", train),
        validation_rows=9,
        tests=(written(folder / "MATH.jsonl", test),),
        profile="as_released",
    )


def jsonl(folder: Path) -> JsonlConfig:
    return JsonlConfig(train=written(folder / "mine.jsonl", word_problems(0, 60)), vocabulary=280, grader="number")


@dataclass
class Case:
    """A task and how its text becomes tokens; without a tokenizer of its own it gets a backbone's."""

    config: Any
    task: Any = field(init=False)
    prompt_format: PromptFormat | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.task = self.config.build()
        if self.task.tokenizer is None:
            texts = ["Ann has 3 pears and finds 4. How many? <<3+4=7>> \\boxed{7} What is $3^2$? Square it."]
            backbone = byte_pairs(texts, 270, ("[PAD]", "[EOS]"), what="texts")
            self.prompt_format = PromptFormat(tokenizer=backbone)

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", *self.task.tests)

    @property
    def tokenizer(self) -> Any:
        return self.task.tokenizer if self.prompt_format is None else self.prompt_format.tokenizer

    @property
    def markers(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if self.task.traits.markers is None:
            return (), ()
        actual = (self.prompt_format or PromptFormat(tokenizer=self.task.tokenizer)).markers
        return actual.open, actual.end

    def problems(self, split: str = "train", most: int = MANY) -> Any:
        size = self.task.size(split)
        return self.task.sample(split, range(most if size is None else min(most, size)))

    def spans(self, problems: Any) -> list[Spans]:
        return self.task.spans(problems, self.prompt_format)

    def text(self, tokens: tuple[int, ...]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False)

    def right_answers(self, problems: Any) -> Any:
        """What `grade` calls right: tokens, or texts."""
        if self.task.traits.markers is not None:
            return [f"So it is \\boxed{{{problem.answer}}}." for problem in problems]
        answers = [torch.tensor(spans.chain + spans.answer) for spans in self.spans(problems)]
        return torch.nn.utils.rnn.pad_sequence(answers, batch_first=True)


CASES: dict[str, Callable[[Path], Any]] = {
    "tree_search": lambda _: TreeSearchConfig(),
    "tree_search, ambiguous": lambda _: TreeSearchConfig(depth=3, targets=3, shuffle_edges=True),
    "grammar": lambda _: GrammarConfig(levels=3, rules=3),
    "prose": lambda _: ProseConfig(train="python-help", vocabulary=400, length=32),
    "arithmetic": lambda _: ArithmeticConfig(),
    "logic": lambda _: LogicConfig(hops=(2, 3), concepts=12, edges=18, spelled=0.5),
    "cups": lambda _: CupsConfig(),
    "grade_school": grade_school,
    "competition": competition,
    "jsonl": jsonl,
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(CASES[request.param](tmp_path_factory.mktemp("data")))


def test_every_task_of_the_catalogue_is_checked() -> None:
    assert {name.partition(",")[0] for name in CASES} == {config.kind for config in TASKS}


def test_the_catalogue_is_read_without_torch() -> None:
    read = "import sys, unspoken.tasks.catalogue as catalogue; catalogue.task_configs()"
    heavy = "print(*{'torch', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", f"{read}; {heavy}"], check=True, capture_output=True, text=True)
    assert done.stdout == "\n"


def test_the_protocol_is_followed(case: Case) -> None:
    assert isinstance(case.task, Task)
    assert isinstance(case.problems(), Problems)
    assert case.task.config == case.config
    assert case.task.traits == case.config.traits
    assert case.task.tests
    assert len(set(case.splits)) == len(case.splits)
    assert hash(case.config) == hash(case.config)


@pytest.mark.parametrize("name", ["sample", "spans", "prompts", "rows", "talker_rows"])
def test_what_is_not_named_is_the_first_seed_the_training_split_and_the_chain(case: Case, name: str) -> None:
    meant = {"seed": 0, "split": "train", "chain": True, "prompt_format": None}
    methods = [vars(kind)[name] for kind in type(case.task).__mro__ if name in vars(kind)]
    assert methods
    for parameters in (inspect.signature(method).parameters for method in methods):
        defaults = {key: one.default for key, one in parameters.items() if one.default is not one.empty}
        assert defaults.items() <= meant.items() | {("kind", "texts")}


def test_the_fingerprint_names_the_data(case: Case, tmp_path: Path) -> None:
    again = case.config.build()
    assert again.fingerprint == case.task.fingerprint
    assert len(again.fingerprint) == 16
    others = [make(tmp_path).build().fingerprint for make in CASES.values()]
    assert len(set(others)) == len(CASES)


# --- problems --------------------------------------------------------------------------------------------------------


def test_a_problem_is_a_function_of_settings_seed_split_and_index(case: Case) -> None:
    again = case.config.build()
    for split in case.splits:
        size = case.task.size(split)
        indices = [7, 0, 3, 12] if size is None else [size - 1, 0, 1]
        spans = case.spans(case.task.sample(split, indices, 1))
        assert spans == case.task.spans(again.sample(split, np.array(indices), 1), case.prompt_format)
        single = [case.spans(case.task.sample(split, [index], 1))[0] for index in reversed(indices)]
        assert spans == single[::-1]


def test_training_problems_depend_on_the_seed(case: Case) -> None:
    indices = range(8)
    first, second = (case.spans(case.task.sample("train", indices, seed)) for seed in (0, 1))
    assert first != second


def test_some_of_a_batch_are_chosen_in_order(case: Case) -> None:
    problems = case.problems()
    spans = case.spans(problems)
    chosen = problems.select([5, 0, 5])
    assert len(chosen) == 3
    assert case.spans(chosen) == [spans[5], spans[0], spans[5]]
    assert case.task.questions(chosen) == [case.task.questions(problems)[row] for row in (5, 0, 5)]
    assert len(problems.select([])) == 0


def test_no_problem_is_in_two_splits(case: Case) -> None:
    held = {
        split: {spans.prompt + spans.chain + spans.answer for spans in case.spans(case.problems(split))}
        for split in case.splits
    }
    assert all(held.values())
    for one, other in combinations(case.splits, 2):
        assert not held[one] & held[other], (one, other)


def test_a_split_ends_where_its_size_says(case: Case) -> None:
    for split in case.splits:
        size = case.task.size(split)
        assert size is None or size > 0
        if size is not None and split != "train":
            with pytest.raises(IndexError):
                case.task.sample(split, [size])
    for ask in (case.task.size, lambda split: case.task.sample(split, [0])):
        with pytest.raises(ValueError, match="there is no split 'exam'; this task has"):
            ask("exam")


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_spans_are_the_text(case: Case) -> None:
    problems = case.problems()
    for question, spans in zip(case.task.questions(problems), case.spans(problems), strict=True):
        if case.task.traits.continues:
            assert question == case.task.text(spans.prompt + spans.chain + spans.answer)
        else:
            assert case.text(spans.prompt) == question
    if case.task.traits.markers is None:
        return
    for problem, spans in zip(problems, case.spans(problems), strict=True):
        assert case.text(spans.chain) == problem.chains[0]
        assert "".join(problem.steps) == problem.chains[0]
        output = problem.solution or f"\\boxed{{{problem.answer}}}"
        assert case.text(spans.answer).removesuffix("[EOS]").strip() == output


def test_steps_are_the_chain(case: Case) -> None:
    traits = case.task.traits
    for spans in case.spans(case.problems()):
        assert all(spans.steps)
        assert spans.merged is None or spans.merged != tuple(token for step in spans.steps for token in step)
        assert bool(spans.steps) == traits.has_steps
        if traits.fixed_steps is not None:
            assert len(spans.steps) == traits.fixed_steps
            assert {len(step) for step in spans.steps} == {1}


def test_prompts_are_those_of_the_spans_padded_on_the_left(case: Case) -> None:
    problems = case.problems()
    ids, mask = case.task.prompts(problems, case.prompt_format)
    assert ids.dtype == mask.dtype == torch.long
    assert ids.shape == mask.shape
    prompts = [spans.prompt for spans in case.spans(problems)]
    assert [tuple(row[real.bool()].tolist()) for row, real in zip(ids, mask, strict=True)] == prompts
    assert mask.sum(dim=0).min() > 0  # no column is padding alone
    assert (mask.diff(dim=1) >= 0).all()
    assert (ids[mask == 0] == case.tokenizer.pad_token_id).all()


def test_rows_hold_the_spans(case: Case) -> None:
    problems, (opened, end) = case.problems(), case.markers
    batch = case.task.rows(problems, case.prompt_format)
    assert list(batch) == ["input_ids", "attention_mask", "answer_mask"]
    assert len({values.shape for values in batch.values()}) == 1
    assert batch["answer_mask"].dtype == torch.bool
    for row, spans in enumerate(case.spans(problems)):
        real = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
        learned = batch["input_ids"][row][batch["answer_mask"][row]].tolist()
        assert tuple(learned) == spans.chain + end + spans.answer
        text = spans.prompt + opened + spans.chain + end + spans.answer
        assert tuple(real[: len(text)]) == text


def test_rows_without_a_chain_learn_the_answer_alone(case: Case) -> None:
    problems, (opened, end) = case.problems(), case.markers
    if not case.task.traits.has_chain:
        with pytest.raises(AssertionError, match="no chain to leave out"):
            case.task.rows(problems, chain=False)
        return
    batch = case.task.rows(problems, case.prompt_format, chain=False)
    for row, spans in enumerate(case.spans(problems)):
        assert tuple(batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()) == (
            spans.prompt + opened + end + spans.answer
        )
        assert tuple(batch["input_ids"][row][batch["answer_mask"][row]].tolist()) == spans.answer


def test_a_talker_s_rows_have_the_form_of_rows(case: Case) -> None:
    batch = case.task.talker_rows(range(MANY), 1, "train", case.prompt_format)
    assert list(batch) == ["input_ids", "attention_mask", "answer_mask"]
    assert batch["input_ids"].shape[0] == MANY
    assert batch["answer_mask"].any(dim=1).all()
    assert not (batch["answer_mask"] & ~batch["attention_mask"].bool()).any()
    # Nothing could predict the first token of a row.
    first = batch["attention_mask"].argmax(dim=1)
    assert not batch["answer_mask"][torch.arange(MANY), first].any()
    if case.task.traits.talker_tokens is None:
        plain = case.task.rows(case.task.sample("train", range(MANY), 1), case.prompt_format)
        assert all(torch.equal(batch[name], plain[name]) for name in batch)


def test_what_is_known_beforehand_is_right(case: Case) -> None:
    traits = case.task.traits
    if traits.vocabulary_size is not None:
        assert len(case.task.tokenizer) == traits.vocabulary_size
    if traits.row_tokens is not None:
        batch = case.task.rows(case.task.sample("train", range(400)))
        # A language model reads all of a text, so none of it is a prompt.
        before = 0.0 if traits.continues else float(batch["attention_mask"].sum()) / 400
        if not traits.continues:
            first = batch["answer_mask"].int().argmax(dim=1) - batch["attention_mask"].int().argmax(dim=1)
            before = float(first.double().mean())
        total = float(batch["attention_mask"].sum()) / 400
        assert traits.row_tokens == pytest.approx((before, total - before), rel=0.04)
    if traits.talker_tokens is not None and not traits.continues:
        batch = case.task.talker_rows(range(400))
        means = tuple(float(batch[name].sum()) / 400 for name in ("attention_mask", "answer_mask"))
        assert traits.talker_tokens == pytest.approx(means, rel=0.06)


# --- grades ----------------------------------------------------------------------------------------------------------


def test_right_answers_are_right_and_changed_ones_wrong(case: Case) -> None:
    problems = case.problems(case.task.tests[0])
    right = case.right_answers(problems)
    grades = case.task.grade(right, problems)
    assert isinstance(grades, Grades)
    assert grades.correct.dtype == torch.bool
    assert grades.correct.tolist() == [True] * len(problems)
    changed = [0, len(problems) - 1]
    if isinstance(right, torch.Tensor):
        right[changed, 0] += 1
    else:
        for row in changed:
            right[row] = right[row].replace("}", "7}")
    again = case.task.grade(right, problems)
    assert again.correct.tolist() == [row not in changed for row in range(len(problems))]
    if grades.per_symbol is not None:
        assert grades.per_symbol.all()
        assert torch.where(~again.per_symbol[:, 0])[0].tolist() == changed
        assert again.per_symbol[:, 1:].all()


def test_answers_of_another_kind_or_number_are_refused(case: Case) -> None:
    problems = case.problems()
    right = case.right_answers(problems)
    other = ["text"] * len(problems) if isinstance(right, torch.Tensor) else torch.zeros(len(problems), 3)
    with pytest.raises(ValueError, match="this task grades"):
        case.task.grade(other, problems)
    with pytest.raises(ValueError, match=f"{len(problems) - 1} (answers|texts) for {len(problems)} problems"):
        case.task.grade(right[:-1], problems)


# --- typed problems --------------------------------------------------------------------------------------------------


def test_a_problem_s_text_is_read_back(case: Case) -> None:
    problems = case.problems(case.task.tests[0])
    if not case.task.traits.answerable:
        with pytest.raises(ValueError, match="typed") as error:
            case.task.parse(case.task.questions(problems)[0])
        assert "\n" not in str(error.value)
        return
    for question, spans in zip(case.task.questions(problems), case.spans(problems), strict=True):
        again = case.task.parse(f"  {question}\n")
        assert case.task.questions(again) == [question]
        assert case.spans(again)[0].prompt == spans.prompt


def test_only_a_task_without_a_tokenizer_needs_a_prompt_format(case: Case) -> None:
    if case.prompt_format is None:
        assert case.task.spans(case.problems()) == case.spans(case.problems())
        return
    for tokens in (case.task.spans, case.task.prompts):
        with pytest.raises(ValueError, match="brings no tokenizer; give the prompt_format of a pretrained backbone"):
            tokens(case.problems())
