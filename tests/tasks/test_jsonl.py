"""A user's own files, in every format, with everything that files have wrong."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from unspoken.tasks import JsonlConfig, JsonlTask
from unspoken.tasks.grading import boxed
from unspoken.tasks.overlap import seen_in_training
from unspoken.training.recipe import Recipe, dump, parse

FORMATS = ("jsonl", "json", "csv", "parquet")
ROWS: list[dict[str, Any]] = [
    {"question": 'Zoë says, "3, 4 or 5?" How many choices?', "steps": ["Count: 3, 4, 5.", "That is 3."], "answer": "3"},
    {"question": "First line\nsecond line, 2 + 2 = ?", "steps": ["<<2+2=4>>"], "answer": "4"},
    {"question": "東京の人口は?", "steps": ["約1400万人。", "言い換えると 14,000,000。"], "answer": "14,000,000"},
    {"question": "Half of one?", "steps": ["1/2", "is 0.5"], "answer": "0.5"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """The rows in the format that the suffix names; a table holds lists as JSON."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:  # as spreadsheets write it
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            for row in rows:
                cells = {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
                table.writerow(cells)
    return str(path)


def many(count: int = 40, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"question": f"What is {n} and {n}?", "cot": f"Double it. That is {2 * n}.", "answer": 2 * n}
        for n in range(first, first + count)
    ]


def every(task: JsonlTask, split: str) -> list[Any]:
    return sorted(task.sample(split, range(task.size(split))), key=lambda problem: problem.question)


def build(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> JsonlTask:
    return JsonlConfig(train=write(folder / "mine.jsonl", rows), **settings).build()


def refused(message: str, config: JsonlConfig) -> None:
    with pytest.raises(ValueError, match=message) as error:
        config.build()
    assert "\n" not in str(error.value)


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_problems(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"mine.{suffix}", ROWS)
    task = JsonlConfig(tests=(path,)).build()
    assert (task.tests, task.size("mine")) == (("mine",), 4)
    for problem, row in zip(task.sample("mine", range(4)), ROWS, strict=True):
        assert problem.question == row["question"]
        assert problem.answer == row["answer"]
        assert problem.chains == ("\n".join(row["steps"]),)
        assert [step.strip() for step in problem.steps] == row["steps"]
    with pytest.raises(ValueError, match="no split 'train'"):
        task.size("train")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_chain_that_is_one_text_is_cut_into_sentences_and_lines(tmp_path: Path, suffix: str) -> None:
    row = {"question": "Q?", "cot": "<think>One is 1. Two is 2.\nThree</think>", "answer": "3"}
    (problem,) = JsonlConfig(tests=(write(tmp_path / f"mine.{suffix}", [row]),)).build().sample("mine", [0])
    assert problem.chains == ("One is 1. Two is 2.\nThree",)
    assert problem.steps == ("One is 1.", " Two is 2.", "\nThree")


@pytest.mark.parametrize(
    ("cot", "steps"),
    [
        (["One is 1. Two is 2.", "Three."], ("One is 1. Two is 2.", "\nThree.")),
        ('["One is 1. Two is 2.", "Three."]', ("One is 1. Two is 2.", "\nThree.")),
        (["One is 1. Two is 2."], ("One is 1. Two is 2.",)),
        ('["One is 1. Two is 2."]', ("One is 1. Two is 2.",)),
        ("[3, 4]", ("[3, 4]",)),
        ("[3] is odd. So?", ("[3] is odd.", " So?")),
    ],
)
def test_steps_of_a_list_stay_whole_and_a_text_in_brackets_is_a_text(
    tmp_path: Path, cot: Any, steps: tuple[str, ...]
) -> None:
    path = write(tmp_path / "mine.jsonl", [{"question": "Q?", "cot": cot, "answer": "3"}])
    assert JsonlConfig(tests=(path,)).build().sample("mine", [0])[0].steps == steps


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("answer", "text"),
    [(18, "18"), (18.0, "18"), (0.25, "0.25"), (-3, "-3"), (" yes ", "yes"), (10**20 * 1.0, "1" + "0" * 20)],
)
def test_an_answer_may_be_a_number(tmp_path: Path, suffix: str, answer: Any, text: str) -> None:
    path = write(tmp_path / f"mine.{suffix}", [{"question": "Q?", "answer": answer}])
    assert JsonlConfig(tests=(path,)).build().sample("mine", [0])[0].answer == text


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    rows = [{"prompt": row["question"], "reasoning": row["cot"], "target": row["answer"]} for row in many()]
    path = write(tmp_path / "mine.csv", rows)
    named = JsonlConfig(
        train=path, question_column="prompt", chain_column="reasoning", answer_column="target", grader="number"
    ).build()
    usual = build(tmp_path, many(), grader="number")
    for split in ("train", "validation", "held_out"):
        assert every(named, split) == every(usual, split)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_packed_file_gives_the_same_problems(tmp_path: Path, suffix: str) -> None:
    plain = write(tmp_path / f"mine.{suffix}", ROWS)
    packed = tmp_path / f"other.{suffix}.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    task = JsonlConfig(tests=(plain, str(packed))).build()
    assert task.tests == ("mine", "other")
    both = [[(row.question, row.chains, row.answer) for row in task.sample(name, range(4))] for name in task.tests]
    assert both[0] == both[1]


def test_a_table_needs_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert JsonlConfig(tests=(write(tmp_path / "mine.csv", ROWS),)).build().size("mine") == 4
    (tmp_path / "mine.parquet").write_bytes(b"")
    refused(
        r"to read .*mine.parquet, install the extra: pip install 'unspoken\[hub\]'",
        JsonlConfig(tests=(str(tmp_path / "mine.parquet"),)),
    )


# --- splits ----------------------------------------------------------------------------------------------------------


def test_without_a_test_set_one_is_cut_from_the_rows_and_named(tmp_path: Path) -> None:
    task = build(tmp_path, many(40))
    assert task.tests == ("held_out",)
    assert [task.size(split) for split in ("train", "validation", "held_out")] == [32, 4, 4]
    asked = [problem.question for split in ("train", "validation", "held_out") for problem in every(task, split)]
    assert sorted(asked) == sorted(row["question"] for row in many(40))


def test_a_test_set_may_have_the_name_of_what_is_not_cut(tmp_path: Path) -> None:
    tests = (write(tmp_path / "held_out.jsonl", ROWS),)
    task = build(tmp_path, many(40), tests=tests)
    assert (task.tests, task.size("held_out")) == (("held_out",), len(ROWS))


def test_the_sizes_of_what_is_held_out_can_be_set(tmp_path: Path) -> None:
    task = build(tmp_path, many(40), validation_rows=0, test_rows=10)
    assert [task.size(split) for split in ("train", "validation", "held_out")] == [30, 0, 10]
    assert [build(tmp_path, many(9)).size(split) for split in ("train", "validation", "held_out")] == [7, 1, 1]
    large = build(tmp_path, many(6000))
    assert [large.size(split) for split in ("train", "validation", "held_out")] == [5000, 500, 500]


def test_what_is_held_out_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    for split in ("train", "validation", "held_out"):
        assert every(build(tmp_path, many()), split) == every(build(tmp_path, many()[::-1]), split)


def test_too_few_rows_to_hold_any_out_are_refused(tmp_path: Path) -> None:
    refused(
        "test_rows is 1, which leaves nothing of the 2 rows of .* to train on; hold out fewer",
        JsonlConfig(train=write(tmp_path / "mine.csv", many(2))),
    )
    refused(
        "validation_rows is 40, which leaves nothing of the 40 rows",
        JsonlConfig(train=write(tmp_path / "mine.csv", many(40)), validation_rows=40),
    )


def test_a_question_with_several_rows_is_in_one_split(tmp_path: Path) -> None:
    rows = many(30)
    again = [{**row, "cot": f"Again. {row['cot']}"} for row in rows]
    task = build(tmp_path, [*rows, *rows, *again])
    held = {
        split: {problem.question for problem in every(task, split)} for split in ("train", "validation", "held_out")
    }
    assert sum(map(len, held.values())) == 30
    assert sum(task.size(split) for split in held) == 90
    keys = [problem.key for split in held for problem in every(task, split)]
    assert len(set(keys)) == 90


def test_training_rows_that_ask_a_test_question_are_left_out_and_counted(tmp_path: Path) -> None:
    test = write(tmp_path / "exam.csv", many(5, first=38))
    task = build(tmp_path, many(40), tests=(test,), validation_rows=3)
    assert task.tests == ("exam",)
    assert task.dropped == {"train: question of a test set": 2}
    assert [len(rows) for rows in task.left_out.values()] == [2]
    assert [task.size(split) for split in ("train", "validation", "exam")] == [35, 3, 5]
    seen = seen_in_training(task)
    assert seen is not None
    assert seen["tests"]["exam"]["problem_keys"] == []
    refused(
        "every question of .*mine.jsonl is one of a test set",
        JsonlConfig(train=write(tmp_path / "mine.jsonl", many(3, first=38)), tests=(test,)),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "neither train nor tests names a file"),
        ({"train": "a.csv", "tests": ("b.csv", "sub/b.jsonl")}, "2 splits are named 'b'"),
        ({"train": "a.csv", "tests": ("train.csv",)}, "2 splits are named 'train'"),
        ({"train": "a.csv", "tests": ("b.csv",), "test_rows": 5}, "test_rows is set, but tests names test sets"),
        ({"train": "a.csv", "test_rows": 0}, "test_rows is 0; it must be at least 1"),
        ({"train": "a.csv", "validation_rows": -1}, "validation_rows is -1; it cannot be negative"),
        (
            {"train": "a.csv", "vocabulary": 100},
            r"vocabulary is 100; it must be from 260 \(4 markers and 256 bytes\) to",
        ),
        ({"tests": ("a.csv",), "vocabulary": 300}, "train names no rows to learn it from"),
        ({"train": "a.csv", "grader": "maths"}, "grader is 'maths'; choose one of"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JsonlConfig(**settings)


# --- what is wrong with a row ----------------------------------------------------------------------------------------

GOOD = {"question": "Q?", "steps": ["a"], "answer": "1"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"line 2: not JSON \("),
        ("[1]", "line 2: a row must be an object with named fields, not list"),
        (
            {"prompt": "Q?", "answer": "1"},
            r"line 2: column 'question' is missing \(the row has 'prompt', 'answer'; set task.",
        ),
        ({"question": "Q?"}, r"line 2: column 'answer' is missing \(the row has 'question'; set task.answer_column to"),
        ({**GOOD, "question": "  "}, "line 2: field 'question' is '  '; it must be text"),
        ({**GOOD, "question": 3}, "line 2: field 'question' is 3; it must be text"),
        ({**GOOD, "answer": ""}, "line 2: column 'answer' is blank"),
        ({**GOOD, "answer": True}, "line 2: column 'answer' is True; it must be text or a number"),
        ({**GOOD, "answer": None}, "line 2: column 'answer' is None; it must be text or a number"),
        ({**GOOD, "answer": float("nan")}, "line 2: column 'answer' is nan; it must be text or a number"),
        ({**GOOD, "answer": "a}b"}, "line 2: the answer 'a}b' has braces that do not balance, so no box can hold it"),
        ({**GOOD, "steps": 3}, "line 2: column 'steps' is 3; it must be text or a list of texts"),
        ({**GOOD, "steps": ["a", 3]}, r"line 2: column 'steps' is \['a', 3\]; it must be text or a list of texts"),
        ({**GOOD, "steps": ["a", " "]}, "line 2: column 'steps' has a blank step"),
        ({**GOOD, "steps": []}, "line 2: the row has no chain in column 'steps', but the earlier rows have one"),
    ],
)
def test_a_broken_row_is_named_with_its_file(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [GOOD, row, *({**GOOD, "question": f"Q{n}?"} for n in range(9))]
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    config = JsonlConfig(train=str(path))
    refused(f"{re.escape(str(path))}, {message}", config)
    refused("fix the row, or set skip_malformed to leave such rows out", config)
    left = JsonlConfig(train=str(path), skip_malformed=True).build()
    assert left.dropped == {"train: malformed": 1}
    assert sum(left.size(split) for split in ("train", "validation", "held_out")) == 10


def test_a_chain_where_the_first_row_has_none_is_refused(tmp_path: Path) -> None:
    rows = [{"question": "Q?", "answer": "1"}, GOOD]
    refused(
        "line 2: the row has a chain in column 'steps', but the earlier rows have none",
        JsonlConfig(train=write(tmp_path / "mine.jsonl", rows)),
    )


@pytest.mark.parametrize(
    ("grader", "answer", "message"),
    [
        ("number", "many", "the answer 'many' is not a number, which the grader 'number' needs"),
        ("choice", "Paris", r"the answer 'Paris' is not a label such as B or \(B\)"),
        ("string", ".", "the answer '.' is blank"),
    ],
)
def test_an_answer_that_its_grader_could_not_read_is_refused(
    tmp_path: Path, grader: str, answer: str, message: str
) -> None:
    path = write(tmp_path / "mine.csv", [{"question": "Q?", "answer": answer}])
    refused(f"mine.csv, row 1: {message}", JsonlConfig(tests=(path,), grader=grader))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("question,answer\nA?,1\nB?,2,3\n", "row 2: it has 3 cells, and the header 2"),
        ("question,answer\nA?,1\nB?\n", "row 2: column 'answer' is missing"),
        ("question,answer\n\n\nA?,1\n,2\n", "row 2: field 'question' is ''"),
        ('question,answer\n"A?,1\n', r"line 2: not CSV \(unexpected end of data\)"),
        ("question,question,answer\nA?,B?,1\n", "the header names 'question' twice"),
        ("A?,1\nB?,2\n", "row 1: column 'question' is missing .the row has 'A\\?', '1'"),
        ("question;answer\nA?;1\n", "row 1: column 'question' is missing .the row has 'question;answer'"),
        ("question,answer\n", "has no usable row .it is empty"),
        ("", "has no usable row .it is empty"),
    ],
)
def test_a_broken_table_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(content)
    refused(f"mine.csv.*{message}", JsonlConfig(tests=(str(path),)))


# The archive carries no time: its bytes name the test, and two workers must collect the same names.
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.jsonl", b"", "has no usable row .it is empty"),
        ("mine.json", b"[]", "has no usable row .it is empty"),
        ("mine.json", b'[{"question": ', "mine.json, line 1: not a JSON list"),
        ("mine.jsonl", b"\xff\xfe", "cannot read .*mine.jsonl: .*; it must be JSON in UTF-8"),
        ("mine.csv", b"question,answer\n\xe9?,1\n", "cannot read .*mine.csv: .*; it must be CSV in UTF-8"),
        ("mine.parquet", b"question,answer", "mine.parquet: not Parquet .*; fix the file"),
        ("mine.jsonl.gz", b"no archive", "cannot read .*mine.jsonl.gz: Not a gzipped file"),
        ("mine.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], "cannot read .*mine.jsonl.gz: .*ended before"),
        (
            "mine.tsv",
            b"question\tanswer\n",
            r"cannot read .*mine.tsv: it is not JSON, and the suffix .tsv stands .*CSV \(.csv\) and",
        ),
        ("mine", b"question\tanswer\n", r"cannot read .*mine: it is not JSON, and a name without suffix stands for no"),
        ("mine.xlsx", b"PK\x03\x04\xff", r"cannot read .*mine.xlsx: .*supported: JSON lines .* Parquet \(.parquet\)"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(message, JsonlConfig(tests=(str(tmp_path / name),)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "half \\ud83d of it", "answer": "1"}', r"half a character \(U\+D83D, a surrogate\)"),
        ('{"question": "Q?", "answer": "1", "other": ["\\udc00"]}', r"half a character \(U\+DC00"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
    ],
)
def test_a_row_that_breaks_tokenizers_or_parsers_is_named_and_can_be_left_out(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "Q?", "answer": "1"}\n' + line + "\n")
    refused(f"mine.jsonl, line 2: .*{message}", JsonlConfig(tests=(str(path),)))
    task = JsonlConfig(tests=(str(path),), skip_malformed=True).build()
    assert (task.size("mine"), task.dropped) == (1, {"mine: malformed": 1})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("gone.jsonl", "gone.csv", "gone.parquet"):
        refused(f"there is no file .*{name}", JsonlConfig(train=str(tmp_path / name)))


# --- grades ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grader", "answer", "given", "right"),
    [
        ("number", "1,000", "1000.0", True),
        ("number", "1,000", "500+500", False),
        ("math", "1000", "500+500", True),
        ("string", "New York", "new  york.", True),
        ("string", "New York", "York", False),
        ("choice", "(B)", "b) Paris", True),
        ("choice", "(B)", "C", False),
        ("operator:contains", "x", "yes", False),
    ],
)
def test_the_chosen_grader_is_asked(tmp_path: Path, grader: str, answer: str, given: str, right: bool) -> None:
    path = write(tmp_path / "mine.csv", [{"question": "Q?", "answer": answer}])
    task = JsonlConfig(tests=(path,), grader=grader).build()
    problems = task.sample("mine", [0])
    if grader == "operator:contains":  # looks for a problem in a text
        with pytest.raises(ValueError, match=r"'operator:contains' failed on problem mine:.*TypeError"):
            task.grade([f"\\boxed{{{given}}}"], problems)
    else:
        assert task.grade([f"So \\boxed{{{given}}}."], problems).correct.tolist() == [right]
        assert task.grade([given], problems).correct.tolist() == [False]


# --- a tokenizer of its own ------------------------------------------------------------------------------------------


def test_a_tokenizer_is_learned_from_the_training_rows(tmp_path: Path) -> None:
    config = JsonlConfig(train=write(tmp_path / "mine.jsonl", many(60)), vocabulary=275)
    task = config.build()
    tokenizer: Any = task.tokenizer
    assert len(tokenizer) == 275
    assert config.traits.own_vocabulary
    assert not config.traits.natural_language
    for text in ("What is 123 and 123?", 'Zoë: "3, 4"\n\t 東京', "", " x "):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert all(len(token) == 1 for token in tokenizer.tokenize(text) if any(map(str.isdecimal, token)))
    assert [tokenizer(marker)["input_ids"] for marker in ("[PAD]", "[EOS]", "<think>", "</think>")] == [
        [0],
        [1],
        [2],
        [3],
    ]
    # A box survives what leaves special tokens out.
    assert boxed(tokenizer.decode(tokenizer(r"\boxed{12}")["input_ids"], skip_special_tokens=True)) == "12"


def test_a_tokenizer_is_made_once_and_again_where_the_file_changes(tmp_path: Path) -> None:
    config = JsonlConfig(train=write(tmp_path / "mine.jsonl", many(60)), vocabulary=275)
    task = config.build()
    assert config.build() is task
    assert config.build().tokenizer is task.tokenizer
    elsewhere = JsonlConfig(train=write(tmp_path / "copy.jsonl", many(60)), vocabulary=275).build()
    assert elsewhere is not task
    assert elsewhere.fingerprint == task.fingerprint
    assert elsewhere.tokenizer.get_vocab() == task.tokenizer.get_vocab()
    changed = Path(write(tmp_path / "mine.jsonl", many(60, first=1000)))
    os.utime(changed, ns=(0, 0))
    assert config.build().fingerprint != task.fingerprint


def test_too_few_texts_for_a_vocabulary_are_refused(tmp_path: Path) -> None:
    task = build(tmp_path, many(5), vocabulary=2000)
    with pytest.raises(ValueError, match=r"task.vocabulary is 2000, but the training rows give only \d+ entries"):
        _ = task.tokenizer


def test_without_a_vocabulary_the_backbone_brings_the_tokenizer(tmp_path: Path) -> None:
    task = build(tmp_path, many())
    assert task.tokenizer is None
    assert task.traits.natural_language
    assert not task.traits.own_vocabulary


# --- in a recipe -----------------------------------------------------------------------------------------------------

LINE = """
name: mine
size: tiny
task: {kind: jsonl, train: mine.jsonl, grader: number%s}
backbone: %s
stages:
  - {name: cot, objective: {kind: next_token}, steps: 2}
"""
SHAPE = "{hidden_size: 16, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}"


def test_a_recipe_may_name_a_file() -> None:
    recipe = parse(LINE % (", vocabulary: 300", SHAPE), "line")
    assert isinstance(recipe, Recipe)
    assert recipe.task == JsonlConfig(train="mine.jsonl", grader="number", vocabulary=300)
    assert parse(dump(recipe), "again") == recipe
    assert parse(LINE % ("", "owner/model"), "line").task == JsonlConfig(train="mine.jsonl", grader="number")


@pytest.mark.parametrize(
    ("vocabulary", "backbone", "message"),
    [
        ("", SHAPE, "backbone: jsonl problems are natural language; give a pretrained model"),
        (", vocabulary: 300", "owner/model", "backbone: jsonl has a vocabulary of its own; give a shape"),
        (", vocabulary: 3", SHAPE, "task: vocabulary is 3; it must be from 260"),
        (", vocab: 300", SHAPE, "task.vocab is not a known key; did you mean 'vocabulary'?"),
    ],
)
def test_a_tokenizer_and_a_backbone_must_fit(vocabulary: str, backbone: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(LINE % (vocabulary, backbone), "line")
