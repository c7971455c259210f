"""Files of four formats become word problems; what cannot be read is named, with its place."""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unspoken.tasks.grade_school import GradeSchoolConfig, GradeSchoolTask
from unspoken.tasks.problems import ReasoningTask
from unspoken.tasks.task import left_out_in_words

TOLD = "Ann has 5+3=<<5+3=8>>8 pears.\nThat is $8*2=<<8*2=16>>16.\n#### 16"
WANTED = {"question": "Ann's pears?", "answer": TOLD}


def augmented(number: int, **changes: Any) -> dict[str, Any]:
    """A row like those of GSM8k-Aug."""
    steps = [f"<<{number}+3={number + 3}>>", f"<<{number + 3}*2={2 * number + 6}>>"]
    return {"question": f"Twice {number} and 3?", "steps": steps, "answer": str(2 * number + 6), **changes}


def save(path: Path, rows: list[Any], *, lines: bool = False) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def task(train: str, **settings: Any) -> GradeSchoolTask:
    return GradeSchoolConfig(train=train, **{"validation_rows": 0, **settings}).build()


@pytest.fixture
def hundred(tmp_path: Path) -> str:
    return save(tmp_path / "hundred.json", [augmented(number) for number in range(100)])


# --- formats ---------------------------------------------------------------------------------------------------


def test_gsm8k_aug_rows(tmp_path: Path) -> None:
    made = task(save(tmp_path / "aug.json", [augmented(5)]))
    (problem,) = made.sample("train", [0])
    assert problem.question == "Twice 5 and 3?"
    assert problem.chains == ("<<5+3=8>> <<8*2=16>>",)
    assert problem.answer == "16"
    assert made.tokenizer is None


def test_gsm8k_rows_with_equations(tmp_path: Path) -> None:
    (problem,) = task(save(tmp_path / "gsm.jsonl", [WANTED], lines=True)).sample("train", [0])
    assert problem.question == "Ann's pears?"
    assert problem.chains == ("<<5+3=8>> <<8*2=16>>",)
    assert problem.answer == "16"


def test_gsm8k_rows_with_prose(tmp_path: Path) -> None:
    (problem,) = task(save(tmp_path / "gsm.jsonl", [WANTED], lines=True), chains="prose").sample("train", [0])
    assert problem.chains == ("Ann has 5+3=8 pears.\nThat is $8*2=16.",)


def test_rows_of_test_sets_need_no_chain(tmp_path: Path, hundred: str) -> None:
    tests = (
        save(tmp_path / "hard.jsonl", [{"input": "Much?", "code": "x", "target": -9867630.0}], lines=True),
        save(tmp_path / "multi.jsonl", [{"input": "Many?", "target": 39}], lines=True),
        save(tmp_path / "svamp.json", [{"Body": "Ann has 76.", "Question": "Left?", "Equation": "x", "Answer": 51.0}]),
        save(tmp_path / "gsm.jsonl", [{"question": "Why?", "answer": "So.\n#### 1,234"}], lines=True),
    )
    made = task(hundred, tests=tests)
    assert made.tests == ("hard", "multi", "svamp", "gsm")
    rows = [made.sample(name, [0])[0] for name in made.tests]
    assert [row.question for row in rows] == ["Much?", "Many?", "Ann has 76. Left?", "Why?"]
    assert [row.answer for row in rows] == ["-9867630", "39", "51", "1234"]
    assert all(row.chains == () for row in rows)
    assert made.dropped == {}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1,234", "1234"),
        ("1,234,567.50", "1234567.5"),
        ("18.0", "18"),
        ("18.", "18"),
        (" 18 ", "18"),
        ("$18", "18"),
        ("-$18", "-18"),
        (".5", "0.5"),
        ("100", "100"),
        ("0.0", "0"),
        ("-0", "0"),
        ("007", "7"),
        (18, "18"),
        (0.25, "0.25"),
        (1e20, "100000000000000000000"),
        (1e-7, "0.0000001"),
        ("4/5", "4/5"),
        ("5:45", "5:45"),
        ("1,2", "1,2"),
        ("1_000", "1_000"),
        ("1e999999999", "1e999999999"),
    ],
)
def test_a_number_has_one_spelling(tmp_path: Path, hundred: str, written: str | float, read: str) -> None:
    made = task(hundred, tests=(save(tmp_path / "aug.json", [augmented(5, answer=written)]),))
    assert made.sample("aug", [0])[0].answer == read


def test_a_file_may_have_windows_lines_a_mark_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "gsm.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(WANTED).encode() + b"\r\n\r\n" + json.dumps(WANTED).encode() + b"\r\n"
    )
    assert task(str(path)).size("train") == 2


def test_a_question_may_hold_any_character(tmp_path: Path) -> None:
    # Some characters end a line for Python's splitlines, but not for JSON.
    row = {"question": "Janet’s\u2028 3 €?", "answer": "<<1+1=2>>\n#### 2"}
    path = tmp_path / "gsm.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert task(str(path)).sample("train", [0])[0].question == row["question"]


# --- rows that are left out or refused -------------------------------------------------------------------------


def test_training_rows_whose_chain_does_not_end_in_the_answer_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        augmented(1),
        augmented(2, answer="10.00"),
        augmented(3, answer="13"),
        augmented(4, steps=[]),
        augmented(5, steps=["<<7.2*1=7.2=16>>"]),
        augmented(6, steps=["<<6*3=18(rounded)>>"]),
        {"question": "No equation?", "answer": "It is 3.\n#### 3"},
    ]
    made = task(save(tmp_path / "aug.json", rows))
    assert sorted(row.answer for row in made.sample("train", range(3))) == ["10", "16", "8"]
    assert made.dropped == {"train: chain does not end in the answer": 2, "train: no chain": 2}
    assert made.left_out["train: no chain"] == [
        f"{tmp_path}/aug.json, row 4: Twice 4 and 3?",
        f"{tmp_path}/aug.json, row 7: No equation?",
    ]


def test_of_many_rows_that_are_left_out_the_first_three_are_shown(tmp_path: Path) -> None:
    rows = [augmented(1), *(augmented(number, question=f"{number}? " + "long " * 100, steps=[]) for number in range(9))]
    made = task(save(tmp_path / "aug.json", rows))
    assert made.dropped == {"train: no chain": 9}
    shown = left_out_in_words(made)
    assert [line[: line.index("?")] for line in shown] == [
        f"left out (train: no chain): {tmp_path}/aug.json, row {number + 2}: {number}" for number in range(3)
    ]
    assert all("\n" not in line and len(line) < 240 for line in shown)


@pytest.mark.parametrize(
    ("worked", "kept"),
    [
        ("So it is 16.", True),
        ("So it is $16 a day.", True),
        ("It is 8*2=16", True),
        ("She pays $1,016 less 1,000, or 16.00.", True),
        ("It is 16 pears for 2 people.", True),
        ("It is 16 pears. There are 2 people.", False),
        ("It is 10-16", True),
        ("It is -16", False),
        ("It is 0.16", False),
        ("It is .16", False),
        ("Nothing to see.", False),
    ],
)
def test_prose_must_end_in_the_answer_too(tmp_path: Path, worked: str, kept: bool) -> None:
    rows = [WANTED, {"question": "Q?", "answer": f"{worked}\n#### 16"}]
    made = task(save(tmp_path / "gsm.jsonl", rows, lines=True), chains="prose")
    assert made.size("train") == 1 + kept
    assert sum(made.dropped.values()) == 1 - kept


BROKEN: list[tuple[Any, str]] = [
    ({"question": "Q?", "steps": ["<<1+1=2>>"]}, "'answer' is missing"),
    ({"steps": ["<<1+1=2>>"], "answer": "2"}, "'question' is missing"),
    ({"input": "Q?"}, "'target' is missing"),
    ({"Body": "B.", "Answer": 1.0}, "'Question' is missing"),
    (augmented(1, question=5), "'question' is 5; it must be text"),
    (augmented(1, question=" "), "'question' is ' '; it must be text"),
    (augmented(1, steps="<<1+1=2>>"), "'steps' is '<<1"),
    (augmented(1, steps=[1]), "'steps' is"),
    (augmented(1, steps=["One and one is 2."]), "the steps are prose, but chains is 'equations'"),
    (augmented(1, answer="many"), "there is no number in it"),
    (augmented(1, answer=None), "'answer' is None; it must be a number or text"),
    (augmented(1, answer=True), "'answer' is True; it must be a number or text"),
    ({"input": "Q?", "target": float("nan")}, "there is no number in it"),
    ({"question": "Q?", "answer": "It is 18."}, "no '#### number' at its end"),
    ({"question": "Q?", "answer": "It is 18.\n####"}, "there is no number in it"),
    ({"text": "Q?", "label": 1}, "unknown fields 'text', 'label'; known are question, steps"),
    ({}, r"unknown fields \(none\)"),
    (["Q?", "2"], "not list"),
    (None, "not NoneType"),
]


@pytest.mark.parametrize(("row", "message"), BROKEN)
@pytest.mark.parametrize("lines", [True, False])
def test_a_malformed_row_is_refused_with_its_place(tmp_path: Path, row: Any, message: str, lines: bool) -> None:
    path = save(tmp_path / "rows.json", [augmented(5), row], lines=lines)
    with pytest.raises(ValueError, match=message) as caught:
        task(path)
    assert str(caught.value).startswith(f"{path}, {'line' if lines else 'row'} 2: ")
    assert "skip_malformed" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_line_that_is_not_json_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(WANTED) + "\n\n" + '{"question": \n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3: not JSON"):
        task(str(path))


def test_malformed_rows_are_skipped_and_counted_on_request(tmp_path: Path) -> None:
    rows = [augmented(5), *(row for row, _ in BROKEN), augmented(6)]
    train = save(tmp_path / "rows.json", rows)
    test = tmp_path / "few.jsonl"
    test.write_text(json.dumps(WANTED) + "\nnot json\n")
    made = task(train, tests=(str(test),), skip_malformed=True)
    assert made.size("train") == 2
    assert made.size("few") == 1
    assert made.dropped == {"train: malformed": len(BROKEN), "few: malformed": 1}


def test_a_list_that_is_not_json_is_refused_even_so(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n{"question": "Q?"},\n{"question"\n]')
    with pytest.raises(ValueError, match=r"rows\.json, line 4: not a JSON list"):
        task(str(path), skip_malformed=True)


def test_a_file_that_is_missing_or_no_text_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*gone\.jsonl.*owner/name\[:config\]\[@split\] on the hub"):
        task(str(tmp_path / "gone.jsonl"))
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="must be JSON in UTF-8"):
        task(str(tmp_path / "binary.json"))
    with pytest.raises(ValueError, match="cannot read"):
        task(str(tmp_path))
    for content in ("", "[]"):
        (tmp_path / "empty.json").write_text(content)
        with pytest.raises(ValueError, match="no usable row"):
            task(str(tmp_path / "empty.json"))


# --- splits and order ------------------------------------------------------------------------------------------


def test_validation_does_not_depend_on_the_order_of_the_file(tmp_path: Path, hundred: str) -> None:
    rows = [augmented(number) for number in range(100)]
    random.Random(0).shuffle(rows)
    first = task(hundred, validation_rows=10)
    second = task(save(tmp_path / "shuffled.json", rows), validation_rows=10)
    held = [{row.question for row in made.sample("validation", range(10))} for made in (first, second)]
    assert held[0] == held[1]
    trained = {row.question for row in first.sample("train", range(90))}
    assert len(trained) == 90
    assert not trained & held[0]


def test_validation_hardly_changes_when_rows_are_added(tmp_path: Path, hundred: str) -> None:
    more = save(tmp_path / "more.json", [augmented(number) for number in range(105)])
    held = [
        {row.question for row in task(path, validation_rows=10).sample("validation", range(10))}
        for path in (hundred, more)
    ]
    assert len(held[0] & held[1]) >= 5


def test_a_question_that_occurs_twice_is_on_one_side(tmp_path: Path) -> None:
    rows = [augmented(number) for number in range(20)] + [augmented(number, answer="1") for number in range(20)]
    rows += [augmented(number, steps=[f"<<2*{number}+6={2 * number + 6}>>"]) for number in range(20)]
    made = task(save(tmp_path / "aug.json", rows), validation_rows=5)
    held = {row.question for row in made.sample("validation", range(made.size("validation")))}
    trained = {row.question for row in made.sample("train", range(made.size("train")))}
    assert made.size("validation") == 6
    assert made.size("train") == 34
    assert not held & trained


def test_too_few_training_rows_are_refused(hundred: str) -> None:
    with pytest.raises(ValueError, match=r"validation_rows is 100, .*hold out fewer"):
        task(hundred, validation_rows=100)
    with pytest.raises(ValueError, match="cannot be negative"):
        task(hundred, validation_rows=-1)


def test_every_epoch_has_every_training_row_once_in_an_order_of_its_own(hundred: str) -> None:
    made = task(hundred)
    epochs = [
        [row.question for row in made.sample("train", range(epoch * 100, epoch * 100 + 100), seed)]
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    ]
    assert all(len(set(epoch)) == 100 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_order_and_batching_change_nothing(hundred: str) -> None:
    made = task(hundred)
    indices = np.random.default_rng(0).integers(0, 10**12, size=30)
    full = made.sample("train", indices, seed=5)
    assert [task(hundred).sample("train", [int(index)], seed=5)[0] for index in indices] == full
    assert made.sample("train", indices[::-1].copy(), seed=5) == full[::-1]
    assert made.sample("train", []) == []


def test_test_sets_have_the_order_of_their_file_and_end(tmp_path: Path, hundred: str) -> None:
    path = save(tmp_path / "multi.jsonl", [{"input": f"{n}?", "target": n} for n in range(10)], lines=True)
    made = task(hundred, tests=(path,), validation_rows=3)
    for seed in (0, 1):
        assert [row.answer for row in made.sample("multi", range(10), seed)] == [str(n) for n in range(10)]
    for split, index in [("multi", 10), ("multi", -1), ("validation", 3), ("train", -1)]:
        with pytest.raises(IndexError, match=f"index {index} is outside split '{split}'"):
            made.sample(split, [0, index])


def test_keys_name_rows(tmp_path: Path) -> None:
    # MultiArith holds some rows twice; a store of labels needs a name for each.
    rows = [augmented(1), augmented(2), augmented(2), augmented(2, steps=["<<2*2+6=10>>"])]
    keys = [row.key for row in task(save(tmp_path / "one.json", rows)).sample("train", range(4))]
    again = [row.key for row in task(save(tmp_path / "two.json", rows[::-1])).sample("train", range(4), 1)]
    assert len(set(keys)) == 4
    assert sorted(keys) == sorted(again)


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path: Path, hundred: str) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    copy = moved / "other.json"
    copy.write_bytes(Path(hundred).read_bytes())
    test = save(tmp_path / "multi.jsonl", [{"input": "Q?", "target": 1}], lines=True)
    base = task(hundred).fingerprint
    assert task(str(copy)).fingerprint == base
    changed = save(tmp_path / "changed.json", [augmented(number) for number in range(101)])
    others = [task(changed), task(hundred, validation_rows=1), task(hundred, tests=(test,))]
    others.append(task(hundred, skip_malformed=True))
    assert len({base, *(other.fingerprint for other in others)}) == 5


def test_a_fingerprint_is_that_of_recorded_results(tmp_path: Path) -> None:
    path = save(tmp_path / "gsm.jsonl", [WANTED], lines=True)
    prints = {chains: task(path, chains=chains).fingerprint for chains in ("equations", "prose")}
    assert prints == {"equations": "947b686703bc82a5", "prose": "b4da0463b5ea1b53"}


def test_it_is_a_word_task(hundred: str) -> None:
    assert isinstance(task(hundred), ReasoningTask)


def test_names_of_splits_are_clear(tmp_path: Path, hundred: str) -> None:
    with pytest.raises(ValueError, match="2 splits are named 'gsm'"):
        GradeSchoolConfig(train=hundred, tests=("a/gsm.json", "b/gsm.jsonl"))
    for name in ("train", "validation"):
        with pytest.raises(ValueError, match=f"2 splits are named '{name}'"):
            GradeSchoolConfig(train=hundred, tests=(f"{name}.jsonl",))
    made = task(hundred)
    for ask in (made.size, lambda split: made.sample(split, [0])):
        with pytest.raises(ValueError, match="no split 'test'; this task has train, validation"):
            ask("test")


def test_a_typed_question_is_a_problem_without_chain(hundred: str) -> None:
    (problem,) = task(hundred).parse(" How many? ")
    assert (problem.question, problem.chains, problem.answer) == ("How many?", (), "")
    with pytest.raises(ValueError, match="empty"):
        task(hundred).parse("\n")


# --- the hub ---------------------------------------------------------------------------------------------------


def test_a_name_that_is_no_file_is_read_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> list[dict[str, Any]]:
        assert not streaming
        asked.append((name, config, split))
        return [augmented(1), augmented(2)] if split == "train" else [WANTED]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    made = task("somebody/aug", tests=("openai/gsm8k:main",))
    assert asked == [("somebody/aug", None, "train"), ("openai/gsm8k", "main", "test")]
    assert (made.size("train"), made.size("gsm8k")) == (2, 1)
    assert made.sample("gsm8k", [0])[0].answer == "16"
    assert made.fingerprint == task("somebody/aug", tests=("openai/gsm8k:main",)).fingerprint


def test_a_name_unknown_to_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> list[dict[str, Any]]:
        raise FileNotFoundError(f"{name} does not exist,\nor is gated")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ValueError, match=r"no file data/gone, and the hub .*does not exist, or is gated") as caught:
        task("data/gone")
    assert "\n" not in str(caught.value)


def test_a_split_of_the_hub_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> list[dict[str, Any]]:
        asked.append((name, config, split))
        return [augmented(1)] if name.startswith("somebody") else [{"input": "Q?", "code": "", "target": 2.0}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    made = task("somebody/aug:all@train-part", tests=("reasoning-machines/gsm-hard@train",))
    assert asked == [("somebody/aug", "all", "train-part"), ("reasoning-machines/gsm-hard", None, "train")]
    assert made.tests == ("gsm-hard",)
    assert made.sample("gsm-hard", [0])[0].answer == "2"


def test_rows_of_multiarith_as_the_hub_has_them(tmp_path: Path, hundred: str) -> None:
    row = {"question": "Paige had 11 songs.", "final_ans": "39"}
    made = task(hundred, tests=(save(tmp_path / "MultiArith.json", [row]),))
    (problem,) = made.sample("MultiArith", [0])
    assert (problem.question, problem.answer, problem.chains) == ("Paige had 11 songs.", "39", ())


class OwnError(Exception):
    """Of a library, and of no class that Python has."""


@pytest.mark.parametrize("error", [RuntimeError("Dataset scripts are no longer supported"), OwnError("two\nlines")])
def test_whatever_the_library_raises_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ValueError, match=r"Dataset scripts are no longer|two lines") as caught:
        task("somebody/script")
    assert "\n" not in str(caught.value)
    assert "[@split]" in str(caught.value)


def test_a_malformed_row_of_the_hub_has_a_place_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [augmented(1), {"text": "Q?"}]
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: rows))
    with pytest.raises(ValueError, match=r"^somebody/aug, train row 2: unknown fields 'text'"):
        task("somebody/aug")


# --- the real files --------------------------------------------------------------------------------------------


@pytest.mark.skipif("UNSPOKEN_DATA" not in os.environ, reason="UNSPOKEN_DATA does not point to the real files")
@pytest.mark.parametrize(
    ("train", "chains", "rows", "kept"),
    [
        ("gsm8k_aug_7500.json", "equations", 7500, 7000),
        ("gsm8k_train.jsonl", "equations", 7473, 6900),
        ("gsm8k_train.jsonl", "prose", 7473, 7400),
    ],
)
def test_the_real_files_are_read_in_full(train: str, chains: Any, rows: int, kept: int) -> None:
    folder = Path(os.environ["UNSPOKEN_DATA"])
    names = ("gsm8k_test.jsonl", "gsm_hard.jsonl", "svamp.json", "multiarith.jsonl")
    made = task(str(folder / train), tests=tuple(str(folder / name) for name in names), chains=chains)
    assert [made.size(name) for name in made.tests] == [1319, 1319, 1000, 600]
    assert kept < made.size("train") == rows - sum(made.dropped.values())
    keys = Counter(row.key for split in ("train", *made.tests) for row in made.sample(split, range(made.size(split))))
    assert keys.most_common(1)[0][1] == 1
    first = {name: made.sample(name, [0])[0].answer for name in made.tests}
    assert first == {"gsm8k_test": "18", "gsm_hard": "-9867630", "svamp": "51", "multiarith": "39"}
