"""Texts are documents laid end to end, sentences stand alone, and row i is the same however it is asked for."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_prose import corpus, paragraphs

from unspoken.tasks import ProseConfig, ProseTask
from unspoken.tasks.prose import EOS, PAD

SMALL: dict[str, Any] = {"vocabulary": 320, "length": 24, "sentence_tokens": (14, 30), "prime": 4}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


def task(train: Path | str | tuple[str, ...], **settings: Any) -> ProseTask:
    return ProseConfig(train=str(train) if isinstance(train, Path) else train, **(SMALL | settings)).build()


def rows(made: ProseTask, split: str, **kind: Any) -> list[list[int]]:
    size = made.size(split, **kind)
    assert size
    return [row.tolist() for row in made.sample(split, range(size), **kind)]


def documents(made: ProseTask, split: str) -> list[str]:
    """What the texts of a split say; the last document may be cut."""
    ids = [token for row in rows(made, split) for token in row]
    ends = [position for position, token in enumerate(ids) if token == EOS]
    return [made.text(ids[a + 1 : b]) for a, b in zip([-1, *ends], ends, strict=False)]


def sixteenth(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[0] % 16


# --- texts -------------------------------------------------------------------------------------------------------


def test_texts_are_the_documents_of_their_split_end_to_end(file: Path) -> None:
    made, every = task(file), paragraphs(300)
    for split, classes in (("validation", {14}), ("test", {15})):
        expected = [text for text in every if sixteenth(text) in classes]
        actual = documents(made, split)
        assert actual == expected[: len(actual)]
        assert len(expected) - len(actual) <= 2, "no more than the end is lost"
        assert {len(row) for row in rows(made, split)} == {24}
        assert not any(PAD in row for row in rows(made, split))
    trained = documents(made, "train")
    assert len(trained) > 200
    assert set(trained) <= {text for text in every if sixteenth(text) < 14}


def test_a_split_that_fills_its_texts_ends_with_its_last_token(file: Path) -> None:
    total = sum(map(len, task(file)._known("texts", "validation")))
    length = next(number for number in range(2, total + 1) if total % number == 0)
    made = task(file, length=length)
    texts = rows(made, "validation")
    assert len(texts) * length == total
    assert [token for text in texts for token in text] == [
        token for document in made._known("texts", "validation") for token in document.tolist()
    ]


def test_a_row_is_the_same_however_it_is_asked_for(file: Path) -> None:
    size = task(file).size("train")
    assert size
    expected = [3, size + 5, 0, 2 * size + 1, 3]
    together = ProseTask(task(file).config, (file.read_text(),)).sample("train", expected, seed=7)
    alone = ProseTask(task(file).config, (file.read_text(),))
    for index, row in zip(expected, together, strict=True):
        assert alone.sample("train", [index], seed=7)[0].tolist() == row.tolist()


def test_epochs_and_seeds_have_an_order_of_their_own(file: Path) -> None:
    made = task(file)
    size = made.size("train", "sentences")
    assert size

    def epoch(number: int, seed: int) -> list[tuple[int, ...]]:
        some = range(number * size, (number + 1) * size)
        return [tuple(row.tolist()) for row in made.sample("train", some, seed, kind="sentences")]

    orders = [epoch(0, 0), epoch(1, 0), epoch(0, 1)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    first = [made.sample("test", range(5), seed)[0].tolist() for seed in (0, 1)]
    assert first[0] == first[1]


def test_sentences_stand_between_two_ends(file: Path) -> None:
    made = task(file)
    actual = rows(made, "validation", kind="sentences")
    assert all(row[0] == row[-1] == EOS and 14 <= len(row) - 2 <= 30 and EOS not in row[1:-1] for row in actual)
    own = [text for text in paragraphs(300) if sixteenth(text) == 14]
    every = {piece for text in own for piece in re.findall(r"[^.!?]+[.!?]", text)}
    output = {made.text(row) for row in actual}
    assert output <= {piece.strip() for piece in every}
    assert len(output) == len(actual)
    # Those that are left out are too short or too long.
    for piece in {piece.strip() for piece in every} - output:
        tokens: Any = made.tokenizer
        assert not 14 <= len(tokens(piece)["input_ids"]) <= 30


def test_a_batch_is_padded_on_the_left(file: Path) -> None:
    batch = task(file).rows([np.array([1, 5, 6, 1]), np.array([1, 7, 1])])
    assert batch["input_ids"].tolist() == [[1, 5, 6, 1], [PAD, 1, 7, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert batch["answer_mask"].tolist() == [[False, True, True, True], [False, False, True, True]]
    assert batch["answer_mask"].dtype == torch.bool


def test_the_first_rows_of_a_split_are_all_where_there_are_fewer(file: Path) -> None:
    made = task(file)
    size = made.size("validation")
    assert size is not None
    for most, count in ((0, 1), (1, 1), (size - 1, size - 1), (size, size), (size + 9, size)):
        first = made.first("validation", most)
        assert [row.tolist() for row in first] == rows(made, "validation")[:count]
    sentences = made.first("test", 2, kind="sentences")
    assert [row.tolist() for row in sentences] == rows(made, "test", kind="sentences")[:2]
    with pytest.raises(IndexError, match=f"the validation split has {size} texts, and not all of .* are among them"):
        made.sample("validation", [0, size])
    with pytest.raises(IndexError):
        made.sample("validation", [-1])


def test_tokens_after_the_first_are_graded_up_to_the_end_of_each_row(file: Path) -> None:
    made, problems = task(file), [np.array([1, 5, 6, 1]), np.array([1, 7, 1])]
    for answers, correct in (
        ([[5, 6, 1], [7, 1, 9]], [True, True]),
        ([[5, 6, 2], [7, 1, 0]], [False, True]),
        ([[9, 6, 1], [7, 2, 0]], [False, False]),
        ([[5, 6], [7, 1]], [False, True]),
        ([[5, 6, 1, 8], [3, 1, 8, 8]], [True, False]),
    ):
        grades = made.grade(torch.tensor(answers), problems)
        assert grades.correct.tolist() == correct
        assert grades.per_symbol is None
    grades = made.grade(torch.tensor([[5, 6, 1], [7, 6, 1]]), [problems[0]] * 2)
    assert grades.per_symbol is not None
    assert grades.per_symbol.tolist() == [[True, True, True], [False, True, True]]
    none = made.grade(torch.zeros((0, 3), dtype=torch.long), [])
    assert none.per_symbol is not None
    assert (none.correct.shape, none.per_symbol.shape) == ((0,), (0, 0))


# --- tokenizer ---------------------------------------------------------------------------------------------------


def test_the_tokenizer_is_the_same_every_time_and_writes_everything(file: Path) -> None:
    one, two = (ProseTask(task(file).config, (file.read_text(),)).tokenizer for _ in range(2))
    assert one.backend_tokenizer.to_str() == two.backend_tokenizer.to_str()
    assert len(one) == 320
    assert (one.pad_token_id, one.eos_token_id, one.padding_side) == (PAD, EOS, "left")
    text = "Übermorgen – 7 “stones” 🙂"
    assert task(file).text(one(text)["input_ids"]) == text


def test_what_looks_like_a_marker_in_a_text_is_text(tmp_path: Path) -> None:
    path = tmp_path / "marked.txt"
    path.write_text("\n\n".join(f"{text} [EOS] [PAD] end." for text in paragraphs(100)))
    made = task(path)
    ids = [token for row in rows(made, "train") for token in row]
    assert PAD not in ids
    assert ids.count(EOS) <= 100
    assert "[EOS] [PAD] end." in made.text(ids[: ids.index(EOS)])


# --- identity ----------------------------------------------------------------------------------------------------


def test_a_corpus_is_known_by_its_content(tmp_path: Path) -> None:
    first = corpus(tmp_path, 60)
    before, mark = task(first), task(first).fingerprint
    assert task(first) is before
    second = tmp_path / "copy.txt"
    second.write_text(first.read_text())
    assert task(second).fingerprint == mark
    first.write_text(first.read_text() + "\n\nOne more.")
    assert task(first).fingerprint != mark
    assert task(second, length=25).fingerprint != mark


def test_the_help_of_python_is_a_corpus() -> None:
    made = task("python-help", vocabulary=1024)
    assert (made.size("test") or 0) > 200
    assert (made.size("test", "sentences") or 0) > 50


# --- the hub -----------------------------------------------------------------------------------------------------


class Streamed:
    """What the library gives for a streamed data set."""

    def __init__(self, texts: list[str], read: list[str]) -> None:
        self.texts = texts
        self.read = read

    def shuffle(self, seed: int, buffer_size: int) -> Streamed:
        order = np.random.default_rng(seed).permutation(len(self.texts))
        return Streamed([self.texts[position] for position in order], self.read)

    def __iter__(self) -> Iterator[dict[str, str]]:
        for text in self.texts:
            self.read.append(text)
            yield {"text": text}


def streams(monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[str]]:
    asked: list[Any] = []
    read: list[str] = []

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> Streamed:
        asked.append((name, config, split, streaming))
        return Streamed(paragraphs(200, seed=len(name)), read)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked, read


def test_a_data_set_on_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, read = streams(monkeypatch)
    config = ProseConfig(train="some/stream:en", **SMALL)
    made = ProseTask(config, (None,))
    assert made.size("train") is None
    assert len(made.tokenizer) == 320
    assert set(asked) == {("some/stream", "en", "train", True)}
    read.clear()
    forwards = [made.sample("train", [index], seed=3)[0].tolist() for index in range(40)]
    assert len(set(read)) == len(read) < 200, "one pass, and no further than it must"
    again = ProseTask(config, (None,))
    assert [row.tolist() for row in again.sample("train", [39, 0, 17], seed=3)] == [
        forwards[index] for index in (39, 0, 17)
    ]
    assert again.sample("train", [0], seed=4)[0].tolist() != forwards[0]
    own = [text for text in paragraphs(200, seed=len("some/stream")) if sixteenth(text) == 15]
    assert made.text(made.sample("test", [0])[0]).startswith(own[0][:20])


def test_a_stream_is_shuffled_ten_thousand_at_a_time_by_seed_and_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled: list[tuple[int, int]] = []

    class Kept(Streamed):
        def shuffle(self, seed: int, buffer_size: int) -> Streamed:
            shuffled.append((seed, buffer_size))
            return super().shuffle(seed, buffer_size)

    rows = Kept(paragraphs(20), [])
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: rows))
    made = ProseTask(ProseConfig(train="some/stream", **SMALL), (None,))
    for seed, epoch in ((3, 0), (3, 1), (4, 0)):
        list(made._documents("train", seed, epoch))
    # A tokenizer is learned from the first epoch of the first seed.
    list(made._documents("train"))
    assert shuffled.pop() == (2968811710, 10_000)
    assert shuffled == [(1576890651, 10_000), (457190280, 10_000), (1490961094, 10_000)]
    assert list(made._documents("test", 3, 0)) == [text for text in paragraphs(20) if sixteenth(text) == 15]
    assert len(shuffled) == 3


def test_a_tokenizer_is_learned_from_ten_thousand_training_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Ordered(Streamed):
        def shuffle(self, seed: int, buffer_size: int) -> Streamed:
            return self

    rows = Ordered([f"{number:x}" for number in range(13_000)], read)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: rows))
    made = ProseTask(ProseConfig(train="some/stream", **(SMALL | {"vocabulary": 258})), (None,))
    assert len(made.tokenizer) == 258
    assert sum(sixteenth(text) < 14 for text in read) == 10_000
    assert sixteenth(read[-1]) < 14


def test_documents_of_several_sources_come_in_turn(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    streams(monkeypatch)
    made = task(("some/stream", str(file)))
    assert made.streamed
    streamed = [text for text in paragraphs(200, seed=len("some/stream")) if sixteenth(text) == 15]
    filed = [text for text in paragraphs(300) if sixteenth(text) == 15]
    actual = list(made._documents("test", 0, 0))
    assert sorted(actual) == sorted([*streamed, *filed])
    assert actual.index(filed[-1]) > actual.index(streamed[0])
    assert actual.index(streamed[-1]) > actual.index(filed[0])


def test_a_stream_without_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"title": "no text"}]
    fake = SimpleNamespace(load_dataset=lambda *_, **__: SimpleNamespace(shuffle=lambda **_: rows, __iter__=None))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(ValueError, match="the fields title, but no field 'text'"):
        ProseTask(ProseConfig(train="some/other", **SMALL), (None,)).sample("train", [0])


# --- one clear line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": ()}, "train is empty"),
        ({"train": "gone.txt"}, r"there is no file gone\.txt; give a text file by task\.train"),
        ({"train": "data/gone.txt"}, r"there is no file data/gone\.txt"),
        ({"vocabulary": 200}, r"vocabulary is 200; it must be from 258 \(2 markers and 256 bytes\)"),
        ({"length": 1}, "length is 1; it must lie between 2 and 1024"),
        ({"sentence_tokens": (9, 5)}, r"sentence_tokens is \[9, 5\]"),
        ({"sentence_tokens": (4, 9), "prime": 4}, "prime is 4 and the shortest sentence has 4 tokens"),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ProseConfig(**({"train": "python-help"} | SMALL | settings)).build()
    assert "\n" not in str(caught.value)


def test_too_little_text_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("Only this.")
    with pytest.raises(ValueError, match=r"give only \d+ entries; lower it, or give more text"):
        _ = task(path).tokenizer
    with pytest.raises(ValueError, match="no split 'tests'; this task has train, validation, test"):
        task(corpus(tmp_path)).sample("tests", [0])
    with pytest.raises(IndexError, match=r"the test split has \d+ texts"):
        task(corpus(tmp_path)).sample("test", [10_000])
    with pytest.raises(ValueError, match="the validation split has no sentences; give more text"):
        task(corpus(tmp_path), sentence_tokens=(500, 600)).first("validation", 3, kind="sentences")
