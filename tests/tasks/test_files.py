"""Rows of files: where each stands in words, what of them is held out, and how those that are left out are shown."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from unspoken.tasks import JsonlConfig, JsonlTask
from unspoken.tasks.files import HUB_NAME, FileConfig, chosen, hub_rows, read_source, row_fields, set_name, tenth_of
from unspoken.tasks.overlap import seen_in_training
from unspoken.tasks.problems import ReasoningProblem, check_numbers

GOOD, BAD = {"question": "Q?", "answer": "1"}, {"question": "", "answer": "1"}
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".csv.gz")


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), plain)
    elif plain.suffix == ".csv":
        with plain.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif plain.suffix == ".json":
        plain.write_text(json.dumps(rows))
    else:
        plain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(plain.read_bytes()))
    return str(path)


# --- where a row stands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("place", [1, 2, 5])
def test_a_malformed_row_has_a_number_that_counts_from_one(tmp_path: Path, suffix: str, place: int) -> None:
    rows = [BAD if number == place else GOOD for number in range(1, 6)]
    path = written(tmp_path / f"exam{suffix}", rows)
    word = "line" if "jsonl" in suffix else "row"
    with pytest.raises(ValueError, match="field 'question' is ''; it must be text; fix the row, or set skip") as error:
        JsonlConfig(tests=(path,)).build()
    assert str(error.value).startswith(f"{path}, {word} {place}: ")


def test_blank_lines_count_where_lines_do(tmp_path: Path) -> None:
    lines, table = tmp_path / "exam.jsonl", tmp_path / "exam.csv"
    lines.write_text(f"\n{json.dumps(GOOD)}\n\n\n{json.dumps(BAD)}\n")
    table.write_text("question,answer\n\nQ?,1\n\n\n,1\n")
    for path, place in ((lines, "line 5"), (table, "row 2")):
        with pytest.raises(ValueError, match=f"{path}, {place}: field"):
            JsonlConfig(tests=(str(path),)).build()


def test_a_row_of_the_hub_has_a_number_and_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, **how: Any) -> list[dict[str, Any]]:
        asked.append((name, config, how))
        return [GOOD, BAD]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(ValueError, match=r"^owner/set, test row 2: field 'question' is ''"):
        JsonlConfig(tests=("owner/set",)).build()
    assert asked == [("owner/set", None, {"split": "test", "streaming": False})]
    rows, digest = read_source("owner/set:en@exam", "train")
    assert [where for where, _ in rows] == ["owner/set:en@exam, train row 1", "owner/set:en@exam, train row 2"]
    assert asked[1] == ("owner/set", "en", {"split": "exam", "streaming": False})
    assert hub_rows("owner/set", "train", streaming=True) == [GOOD, BAD]
    assert asked[2] == ("owner/set", None, {"split": "train", "streaming": True})
    # The order of a row's fields is no content.
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", lambda *_, **__: [dict(reversed(GOOD.items())), BAD])
    assert read_source("owner/set", "train")[1] == digest


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/exam.jsonl", "exam"),
        ("data/exam.csv.gz", "exam"),
        ("exam.v2.json", "exam.v2"),
        ("owner/set", "set"),
        ("owner/set:en@test", "set"),
        ("some folder/exam", "exam"),
    ],
)
def test_a_test_set_is_named_after_its_file(source: str, name: str) -> None:
    assert set_name(source) == name


def test_a_name_on_the_hub_has_an_owner_a_set_and_perhaps_a_configuration_and_a_split() -> None:
    match = HUB_NAME.fullmatch("owner/set.v1:en-US@test")
    assert match is not None
    assert match.groupdict() == {"name": "owner/set.v1", "config": "en-US", "split": "test"}
    for other in ("set", "a/b/c", "owner/set:", "owner/ set"):
        assert HUB_NAME.fullmatch(other) is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"not JSON \("),
        ("3", "a row must be an object with named fields, not int"),
        ([1], "a row must be an object with named fields, not list"),
        ({"a": "\ud800"}, r"half a character \(U\+D800"),
        (ValueError("it has 3 cells"), "it has 3 cells"),
    ],
)
def test_what_is_no_row(row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row_fields(row)
    assert row_fields('{"a": "é"}') == {"a": "é"}


# --- what is held out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "held"),
    [(0, 1), (1, 1), (9, 1), (19, 1), (20, 2), (99, 9), (4999, 499), (5000, 500), (5010, 500), (10**6, 500)],
)
def test_a_tenth_is_held_out_one_at_least_and_500_at_most(rows: int, held: int) -> None:
    assert tenth_of(rows) == held


def test_sizes_that_can_be_set_begin_at_none_and_at_one(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.jsonl", [{"question": f"Q{n}?", "answer": n} for n in range(6)])
    task = JsonlConfig(train=path, validation_rows=0, test_rows=1).build()
    assert task.sizes() == {"train": 5, "validation": 0, "held_out": 1}
    for settings, message in (
        ({"validation_rows": -1}, "validation_rows is -1; it cannot be negative"),
        ({"test_rows": 0}, "test_rows is 0; it must be at least 1"),
        ({"vocabulary": 259}, r"vocabulary is 259; it must be from 260 \(4 markers and 256 bytes\) to 65536"),
        ({"vocabulary": 65_537}, "vocabulary is 65537"),
    ):
        with pytest.raises(ValueError, match=message):
            JsonlConfig(train=path, **settings)
    for vocabulary in (260, 65_536):
        assert JsonlConfig(train=path, vocabulary=vocabulary).vocabulary == vocabulary
    assert FileConfig(train=path).tests == ()
    with pytest.raises(ValueError, match=r"test_rows is 6, which leaves nothing of the 6 rows of .*mine"):
        JsonlConfig(train=path, validation_rows=0, test_rows=6).build()


def test_rows_outside_a_split_are_refused() -> None:
    rows = [ReasoningProblem(question=f"Q{n}?", chains=(), answer="1", key=str(n)) for n in range(3)]
    assert [problem.key for problem in chosen(rows, [2, 0], "exam")] == ["2", "0"]
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"index {index} is outside split 'exam' of 3 problems"):
            chosen(rows, [0, index], "exam")


def test_a_negative_index_is_no_training_row(tmp_path: Path) -> None:
    task = JsonlConfig(train=written(tmp_path / "mine.jsonl", [{"question": f"Q{n}?", "answer": n} for n in range(6)]))
    with pytest.raises(IndexError, match="index -2 is outside split 'train'; indices count from 0"):
        task.build().sample("train", [0, -1, -2])
    assert len(task.build().sample("train", [0, 100])) == 2


def test_a_row_that_stands_twice_has_a_key_of_its_own(tmp_path: Path) -> None:
    other = {"question": "Q?", "answer": "2"}
    task = JsonlConfig(tests=(written(tmp_path / "exam.jsonl", [GOOD, other, GOOD, GOOD, other]),)).build()
    keys = [problem.key for problem in task.sample("exam", range(5))]
    assert keys[2:] == [f"{keys[0]}:2", f"{keys[0]}:3", f"{keys[1]}:2"]
    assert keys[0] != keys[1]


# --- what is left out ------------------------------------------------------------------------------------------------


def test_three_rows_are_shown_of_those_that_are_left_out_for_one_reason(tmp_path: Path) -> None:
    path = written(tmp_path / "exam.jsonl", [GOOD, *[{**GOOD, "answer": True}] * 5])
    task = JsonlConfig(tests=(path,), skip_malformed=True).build()
    assert task.dropped == {"exam: malformed": 5}
    (shown,) = task.left_out.values()
    message = "column 'answer' is True; it must be text or a number"
    assert shown == [f"{path}, line {number}: {message}" for number in (2, 3, 4)]


def test_what_is_shown_of_a_row_ends_after_200_characters(tmp_path: Path) -> None:
    test = written(tmp_path / "exam.jsonl", [{"question": "w" * 9 + " x" * 95 + end, "answer": 1} for end in ("", "y")])
    rows = [*(json.loads(line) for line in Path(test).read_text().splitlines()), GOOD, {**GOOD, "question": "R?"}]
    task = JsonlConfig(train=written(tmp_path / "mine.jsonl", rows), tests=(test,), validation_rows=0).build()
    shown = task.left_out["train: question of a test set"]
    assert [len(text) for text in shown] == [199, 200]
    rows = [{"question": "w" * 11 + " x" * 95, "answer": 1}]
    test = written(tmp_path / "exam.jsonl", rows)
    task = JsonlConfig(train=written(tmp_path / "mine.jsonl", [*rows, GOOD]), tests=(test,), validation_rows=0).build()
    assert task.left_out["train: question of a test set"] == ["w" * 11 + " x" * 92 + " ..."]


def test_an_overlap_is_of_training_rows_and_test_sets_that_end(tmp_path: Path) -> None:
    test = written(tmp_path / "exam.jsonl", [GOOD])
    alone = JsonlConfig(tests=(test,)).build()
    sizes: Any = SimpleNamespace(
        tests=("exam",), size=lambda split: None if split == "train" else 1, sample=alone.sample
    )
    assert seen_in_training(sizes) is None  # endless training rows
    rows = [{"question": f"Q{n} {'x ' * n}?", "answer": n} for n in range(5)]
    trained: JsonlTask = JsonlConfig(
        train=written(tmp_path / "mine.jsonl", rows), tests=(test,), validation_rows=0
    ).build()
    seen = seen_in_training(trained)
    assert seen is not None
    assert (seen["rows"], list(seen["tests"]), seen["words"]) == (5, ["exam"], 13)
    endless: Any = SimpleNamespace(
        tests=("exam",), size=lambda split: 5 if split == "train" else None, sample=trained.sample
    )
    assert seen_in_training(endless) is None


@pytest.mark.parametrize("numbers", [(), (0,), (1, 1), (5,), (2, 5), (-1, 2)])
def test_a_list_of_numbers_has_different_ones_up_to_its_end(numbers: tuple[int, ...]) -> None:
    for allowed in ((1,), (4,), (4, 1, 2)):
        check_numbers("steps", allowed, 4)
    with pytest.raises(ValueError, match=r"steps is \(.*\); it must list different numbers from 1 to 4"):
        check_numbers("steps", numbers, 4)
