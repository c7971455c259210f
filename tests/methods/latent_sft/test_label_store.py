"""A label comes back as it went in, for its own problem, or not at all."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unspoken.backbone.folder import MANIFEST, read_manifest, write_manifest
from unspoken.methods.latent_sft import label_store
from unspoken.methods.latent_sft.label_store import LabelStore, LabelWriter
from unspoken.methods.latent_sft.labels import Label, LabelIdentity, differing_facts
from unspoken.storage import write_json

FACTS: dict[str, Any] = {
    "data": "5eed",
    "split": "train",
    "seed": 0,
    "tokenizer": "70c",
    "rate": 2,
    "latent": "superposition",
    "width": 3,
    "top_k": 3,
    "temperature": 1.0,
    "readout": "head",
    "encoder": "e1",
    "decoder": "d1",
    "precision": "float32",
}
CHANGES: dict[str, dict[str, Any]] = {
    "data": {"data": "5eee"},
    "split": {"split": "validation"},
    "seed": {"seed": 1},
    "tokenizer": {"tokenizer": "70d"},
    "rate": {"rate": 4},
    "latent": {"latent": "hidden"},
    "width": {"width": 2},
    "top_k": {"top_k": None},
    "temperature": {"temperature": 0.9},
    "readout": {"readout": "table"},
    "encoder": {"encoder": "e2"},
    "decoder": {"decoder": "d2"},
    "precision": {"precision": "bfloat16"},
}
KINDS = [("superposition", "float32"), ("superposition", "bfloat16"), ("hidden", "float32"), ("hidden", "bfloat16")]
BLOCK = "rank-00000/block-00000.safetensors"
LENGTHS = [3, 1, 4, 0, 5, 9, 2]


@pytest.fixture(autouse=True)
def _disk_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power, and what a killed process wrote, the kernel keeps."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


Problem = tuple[str, tuple[Tensor, ...]]


def identity(**changes: Any) -> LabelIdentity:
    return LabelIdentity(**{**FACTS, **changes})


def some_problems(lengths: list[int] = LENGTHS, latent: str = "superposition") -> list[Problem]:
    """Keys and labels of so many latents each."""
    draw = torch.Generator().manual_seed(7)

    def label(n: int) -> tuple[Tensor, ...]:
        numbers = torch.randn(n, 3, generator=draw)
        ids = torch.randint(0, 2**31 - 1, (n, 3), generator=draw)
        return (numbers,) if latent == "hidden" else (ids, numbers.softmax(dim=-1))

    return [(f"problem {row}", label(n)) for row, n in enumerate(lengths)]


def append(writer: LabelWriter, problem: Problem) -> None:
    key, label = problem
    (writer.append if writer.identity.latent == "superposition" else writer.append_vectors)(key, *label)


def write(
    folder: Path, problems: list[Problem], made_of: LabelIdentity | None = None, world: int = 1, block: int = 2
) -> None:
    """Write, or continue to write, all ranks."""
    for rank in reversed(range(world)):
        writer = LabelWriter(
            folder, made_of or identity(), rows=len(problems), rank=rank, world=world, rows_per_block=block
        )
        for row in range(writer.next_row, writer.own_rows.stop):
            append(writer, problems[row])
        writer.finish()
    writer.publish()


def assert_holds(store: LabelStore, problems: list[Problem]) -> None:
    assert len(store) == len(problems)
    assert store.lengths.tolist() == [len(label[0]) for _, label in problems]
    for row, (key, label) in enumerate(problems):
        read = store[row, key]
        if store.identity.latent == "hidden":
            assert (read.ids, read.weights) == (None, None)
            actual, required = (read.vectors,), label
        else:
            assert read.vectors is None
            actual, required = (read.ids, read.weights), label
        for tensor, expected in zip(actual, required, strict=True):
            assert tensor is not None
            if expected.is_floating_point():
                expected = expected.to(getattr(torch, store.identity.precision)).float()  # noqa: PLW2901
            assert tensor.dtype == expected.dtype
            assert torch.equal(tensor, expected)


def hidden_folder(folder: Path) -> Path:
    (actual,) = folder.parent.glob(".*.unfinished")
    return actual


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("latent", "precision"), KINDS)
@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_what_any_number_of_ranks_wrote_is_read_back(tmp_path: Path, world: int, latent: str, precision: str) -> None:
    made_of = identity(latent=latent, precision=precision)
    problems = some_problems(latent=latent)
    write(tmp_path / "labels", problems, made_of, world)
    assert len(list((tmp_path / "labels").glob("rank-*"))) == world
    assert_holds(LabelStore.open(tmp_path / "labels", made_of), problems)


def test_a_block_holds_what_the_module_s_table_says(tmp_path: Path) -> None:
    made_of = identity(width=2, top_k=2)
    writer = LabelWriter(tmp_path / "labels", made_of, rows=2)
    writer.append("a", torch.tensor([[7, 5]]), torch.tensor([[0.75, 0.25]]))
    writer.append("bé", torch.tensor([[1, 2], [3, 4]]), torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    writer.finish()
    writer.publish()
    block = load_file(tmp_path / "labels" / BLOCK)
    assert {name: values.dtype for name, values in block.items()} == {
        "offsets": torch.int64,
        "keys": torch.int64,
        "ids": torch.int32,
        "weights": torch.float32,
    }
    assert block["offsets"].tolist() == [0, 1, 3]
    assert block["ids"].tolist() == [[7, 5], [1, 2], [3, 4]]
    assert block["weights"].tolist() == [[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]]
    hashes = struct.unpack("<2q", bytes.fromhex("40f89e395b66422f" + "574af02d10032202"))  # b2sum -l 64
    assert block["keys"].tolist() == [[hashes[0], 1], [hashes[1], 3]]
    manifest = read_manifest(tmp_path / "labels")
    assert {name: manifest[name] for name in ("rows", "ranks")} == {"rows": 2, "ranks": 1}
    assert list(manifest["files"]) == [BLOCK]
    assert LabelIdentity(**manifest["identity"]) == made_of


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), max_size=12),
    world=st.integers(1, 4),
    block=st.integers(1, 5),
    kind=st.sampled_from(KINDS),
)
def test_any_lengths_ranks_and_blocks_give_the_same_store(
    lengths: list[int], world: int, block: int, kind: tuple[str, str]
) -> None:
    made_of = identity(latent=kind[0], precision=kind[1])
    problems = some_problems(lengths, kind[0])
    with tempfile.TemporaryDirectory() as position:
        write(Path(position) / "labels", problems, made_of, world, block)
        assert_holds(LabelStore.open(Path(position) / "labels", made_of), problems)


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("lengths", [[], [4], [0]])
def test_empty_stores_and_stores_of_one_row(tmp_path: Path, lengths: list[int], world: int) -> None:
    write(tmp_path / "labels", some_problems(lengths), world=world)
    assert_holds(LabelStore.open(tmp_path / "labels", identity()), some_problems(lengths))


def test_a_tensor_may_be_filled_again_before_its_block_is_written(tmp_path: Path) -> None:
    problems = some_problems([2, 2, 2])
    writer = LabelWriter(tmp_path / "labels", identity(), rows=3, rows_per_block=3)
    ids, weights = torch.empty(2, 3, dtype=torch.int32), torch.empty(2, 3)
    for key, label in problems:
        ids.copy_(label[0])
        weights.copy_(label[1])
        writer.append(key, ids, weights)
    writer.finish()
    writer.publish()
    assert_holds(LabelStore.open(tmp_path / "labels", identity()), problems)


def test_bfloat16_weights_are_taken_as_they_are(tmp_path: Path) -> None:
    ids = torch.arange(3).expand(8, 3)
    weights = torch.randn(8, 3).softmax(dim=-1).bfloat16()
    write(tmp_path / "labels", [("key", (ids, weights))])
    read = LabelStore.open(tmp_path / "labels", identity())[0, "key"].weights
    assert read is not None
    assert torch.equal(read, weights.float())


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_row_is_read_only_under_its_own_key(tmp_path: Path) -> None:
    write(tmp_path / "labels", some_problems(), world=2)
    store = LabelStore.open(tmp_path / "labels", identity())
    for row in range(len(store)):
        for shift in (-1, 1):  # the problems after one was lost or added before this row
            with pytest.raises(ValueError, match=rf"row {row} was not written for 'problem {row + shift}'"):
                store[row, f"problem {row + shift}"]
    with pytest.raises(ValueError, match=r"row 2 was not written for ''"):
        store[2, ""]
    for row in (-1, 7):
        with pytest.raises(IndexError, match=rf"row {row} is outside .* 7 rows"):
            store[row, f"problem {row}"]


class LabelRows(Dataset[Label]):
    def __init__(self, store: LabelStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, row: int) -> Label:
        return self.store[row, f"problem {row}"]


def test_two_openings_and_forked_workers_read_the_same(tmp_path: Path) -> None:
    problems = some_problems()
    write(tmp_path / "labels", problems, world=2)
    first, second = (LabelStore.open(tmp_path / "labels", identity()) for _ in range(2))
    assert_holds(first, problems)
    assert_holds(second, problems)
    loader = DataLoader(LabelRows(first), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for label, (_, (ids, weights)) in zip(loader, problems, strict=True):
        assert torch.equal(label.ids, ids)
        assert torch.equal(label.weights, weights)


def test_a_spawned_worker_is_not_sent_the_labels(tmp_path: Path) -> None:
    problems = some_problems([500] * 4)
    write(tmp_path / "labels", problems)
    sent = pickle.dumps(LabelStore.open(tmp_path / "labels", identity()))
    assert len(sent) < 2000
    assert_holds(pickle.loads(sent), problems)


@pytest.mark.parametrize("latent", ["superposition", "hidden"])
def test_a_label_that_was_read_may_be_changed(tmp_path: Path, latent: str) -> None:
    problems, made_of = some_problems(latent=latent), identity(latent=latent)
    write(tmp_path / "labels", problems, made_of)
    store = LabelStore.open(tmp_path / "labels", made_of)
    label = store[0, "problem 0"]
    for values in (label.ids, label.weights, label.vectors):
        if values is not None:
            values.zero_()
    assert_holds(store, problems)


READER = """
import os, sys
from pathlib import Path
from unspoken.backbone.folder import read_manifest
from unspoken.methods.latent_sft.label_store import LabelStore
from unspoken.methods.latent_sft.labels import LabelIdentity

def memory():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

identity = LabelIdentity(**read_manifest(Path(sys.argv[1]))["identity"])
before, files = memory(), len(os.listdir("/proc/self/fd"))
store = LabelStore.open(Path(sys.argv[1]), identity)
assert len(os.listdir("/proc/self/fd")) == files
assert sum(store[row, f"problem {row}"].vectors[0, 0] for row in range(0, 256, 32)) == 896
print(memory() - before)
"""


def test_a_row_is_read_without_loading_its_block(tmp_path: Path) -> None:
    made_of = identity(latent="hidden", width=65536)
    writer = LabelWriter(tmp_path / "labels", made_of, rows=256, rows_per_block=64)
    vectors = torch.empty(1, 65536)
    for row in range(256):
        writer.append_vectors(f"problem {row}", vectors.fill_(row))
    writer.finish()
    writer.publish()
    command = [sys.executable, "-c", READER, str(tmp_path / "labels")]
    megabytes = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert megabytes < 16  # of 64


# --- what is refused on opening --------------------------------------------------------------------------------------


def test_every_fact_has_its_case() -> None:
    assert set(CHANGES) == set(FACTS) == {field.name for field in fields(LabelIdentity)}


@pytest.mark.parametrize("fact", CHANGES)
def test_labels_with_another_fact_are_refused_by_its_name(tmp_path: Path, fact: str) -> None:
    made_of = identity(top_k=None) if fact == "width" else identity()
    expected = identity(**{"top_k": None if fact == "width" else 3, **CHANGES[fact]})
    line = f"{fact} is {getattr(made_of, fact)!r}, not {getattr(expected, fact)!r}"
    assert differing_facts(asdict(made_of), asdict(expected)) == line
    write(tmp_path / "labels", some_problems(), made_of)
    with pytest.raises(ValueError, match=f"labels holds other labels: {line}; ") as refusal:
        LabelStore.open(tmp_path / "labels", expected)
    assert "\n" not in str(refusal.value)


def test_equal_identities_differ_in_nothing_and_many_differences_stay_one_short_line() -> None:
    assert differing_facts(asdict(identity()), asdict(identity())) is None
    other = identity(data="x", seed=3, rate=8, encoder="e9", decoder="d9")
    assert (
        differing_facts(asdict(identity()), asdict(other))
        == "data is '5eed', not 'x', seed is 0, not 3, rate is 2, not 8"
    )


@pytest.mark.parametrize("latent", ["superposition", "hidden"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_damaged_block_is_refused_by_name(tmp_path: Path, latent: str, rank: int) -> None:
    made_of = identity(latent=latent)
    write(tmp_path / "labels", some_problems(latent=latent), made_of, world=2)
    for name in ("block-00000.safetensors", "block-00001.safetensors"):
        path = tmp_path / "labels" / f"rank-0000{rank}" / name
        good = path.read_bytes()
        flipped = [good[:at] + bytes([good[at] ^ 16]) + good[at + 1 :] for at in range(0, len(good), 3)]
        for bad in (good[:-1], good[: len(good) // 2], b"", good + b"\0", *flipped, None):
            path.unlink() if bad is None else path.write_bytes(bad)
            with pytest.raises(ValueError, match=f"rank-0000{rank}/{name}") as refusal:
                LabelStore.open(tmp_path / "labels", made_of)
            assert "\n" not in str(refusal.value)
        path.write_bytes(good)
    LabelStore.open(tmp_path / "labels", made_of)


def test_a_flipped_bit_of_the_manifest_never_changes_what_is_read(tmp_path: Path) -> None:
    problems = some_problems([1, 0, 2])
    write(tmp_path / "labels", problems, world=2)
    path = tmp_path / "labels" / MANIFEST
    good = path.read_bytes()
    refused = 0
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bytes(bad))
        try:
            store = LabelStore.open(tmp_path / "labels", identity())
        except ValueError:
            refused += 1
        else:
            assert_holds(store, problems)
    assert refused > 0.99 * len(good)


def test_a_hash_that_the_manifest_leaves_out_is_missed(tmp_path: Path) -> None:
    write(tmp_path / "labels", some_problems())
    manifest = read_manifest(tmp_path / "labels")
    del manifest["files"]["rank-00000/block-00001.safetensors"]
    write_json(tmp_path / "labels" / MANIFEST, manifest)
    with pytest.raises(ValueError, match=r"run.json is damaged: it lists blocks of 5 rows instead of 7"):
        LabelStore.open(tmp_path / "labels", identity())


def test_flat_files_of_older_versions_are_refused_by_name(tmp_path: Path) -> None:
    shard = tmp_path / "labels" / "rank-00000"
    shard.mkdir(parents=True)
    for name in ("offsets", "keys", "ids", "weights"):
        (shard / f"{name}.bin").write_bytes(bytes(8))
    content = {"identity": FACTS, "rows": 0, "ranks": 1, "slots": [0]}
    write_manifest(tmp_path / "labels", content)
    with pytest.raises(ValueError, match=r"labels holds labels of an older version .*; write the labels again$"):
        LabelStore.open(tmp_path / "labels", identity())
    (tmp_path / "labels").rename(tmp_path / ".labels.unfinished")
    message = r"\.labels\.unfinished/rank-00000/\w+\.bin is a label file of an older version; remove .* to start again$"
    with pytest.raises(ValueError, match=message):
        LabelWriter(tmp_path / "labels", identity(), rows=0)


def test_another_kind_of_folder_is_no_store(tmp_path: Path) -> None:
    write_json(tmp_path / MANIFEST, {"step": 7, "files": {}})
    with pytest.raises(ValueError, match=r"run.json is damaged or is not the manifest of a label store"):
        LabelStore.open(tmp_path, identity())


# --- what is refused on writing --------------------------------------------------------------------------------------

IDS, WEIGHTS = torch.tensor([[4, 5, 6]] * 2), torch.tensor([[0.5, 0.25, 0.25]] * 2)
BAD_LABELS: dict[str, tuple[tuple[Tensor, Tensor], str]] = {
    "other numbers of latents": ((IDS[:1], WEIGHTS), r"ids are int64 \[1, 3\] and weights float32 \[2, 3\]"),
    "floating ids": ((IDS.float(), WEIGHTS), r"ids are float32 \[2, 3\]"),
    "other width": ((IDS[:, :2], WEIGHTS[:, :2]), r"weights are float32 \[2, 2\]; give floats \[N, 3\]"),
    "no latent axis": ((IDS[0], WEIGHTS[0]), r"weights are float32 \[3\]"),
    "whole weights": ((IDS, torch.tensor([[1, 0, 0]] * 2)), r"weights are int64 \[2, 3\]"),
    "negative id": ((IDS - 5, WEIGHTS), "ids reach from -1 to 1"),
    "id beyond int32": ((IDS + 2**31 - 6, WEIGHTS), "ids reach from 2147483646 to 2147483648"),
    "not a number": ((IDS, WEIGHTS * float("nan")), "weights are not all finite in float32"),
    "negative weight": ((IDS, torch.tensor([[1.5, -0.5, 0.0]] * 2)), "must be probabilities"),
    "logits": ((IDS, WEIGHTS.log()), "must be probabilities"),
    "one latent in two": ((IDS, torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.4, 0.0]])), "must be probabilities"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_a_label_that_is_none_is_refused_and_leaves_no_trace(tmp_path: Path, case: str) -> None:
    problems = some_problems([1, 2])
    writer = LabelWriter(tmp_path / "labels", identity(), rows=2)
    append(writer, problems[0])
    bad, line = BAD_LABELS[case]
    with pytest.raises(ValueError, match=rf"labels: label of row 1 \('the key'\): .*{line}"):
        writer.append("the key", *bad)
    append(writer, problems[1])
    writer.finish()
    writer.publish()
    assert_holds(LabelStore.open(tmp_path / "labels", identity()), problems)


def test_the_other_kind_of_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="holds superposition labels"):
        LabelWriter(tmp_path / "a", identity(), rows=1).append_vectors("key", WEIGHTS)
    with pytest.raises(AssertionError, match="holds hidden labels"):
        LabelWriter(tmp_path / "b", identity(latent="hidden"), rows=1).append("key", IDS, WEIGHTS)


def test_a_rank_writes_its_share_and_no_row_more_or_less(tmp_path: Path) -> None:
    writer = LabelWriter(tmp_path / "labels", identity(), rows=5, rank=1, world=2)
    assert writer.own_rows == range(2, 5)
    for row in range(2, 5):
        with pytest.raises(AssertionError, match=f"cannot finish before rows {row} to 4"):
            writer.finish()
        writer.append("key", IDS, WEIGHTS)
    with pytest.raises(AssertionError, match=r"no row left for 'key': rank 1 writes range\(2, 5\)"):
        writer.append("key", IDS, WEIGHTS)


@pytest.mark.parametrize(
    "wrong", [{"rows": -1}, {"rank": 2, "world": 2}, {"rank": -1}, {"world": 0}, {"rows_per_block": 0}]
)
def test_impossible_shares_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(AssertionError, match="ranks count from 0"):
        LabelWriter(tmp_path / "labels", identity(), **{"rows": 1, **wrong})


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"rate": 0}, "rate is 0"),
        ({"width": 0}, "width 0"),
        ({"width": 4}, "width is 4, but top_k keeps 3"),
    ],
)
def test_impossible_identities_are_refused(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(AssertionError, match=line):
        identity(**wrong)


def test_a_store_appears_only_when_every_rank_has_finished(tmp_path: Path) -> None:
    folder, problems = tmp_path / "labels", some_problems([1, 2, 3, 4])
    first, second = (LabelWriter(folder, identity(), rows=4, rank=rank, world=2) for rank in (0, 1))
    for row in (0, 1):
        append(first, problems[row])
    with pytest.raises(ValueError, match="rank 0 has recorded 0 of its 2 rows"):
        first.publish()
    first.finish()
    append(second, problems[2])
    with pytest.raises(ValueError, match="rank 1 has recorded 0 of its 2 rows"):
        first.publish()
    append(second, problems[3])
    second.finish()
    with pytest.raises(AssertionError, match="rank 1 cannot publish"):
        second.publish()
    assert not folder.exists()
    with pytest.raises(ValueError, match="not a finished folder"):
        LabelStore.open(folder, identity())
    with pytest.raises(ValueError, match="not a finished folder"):
        LabelStore.open(hidden_folder(folder), identity())
    first.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]
    with pytest.raises(ValueError, match=r"labels exists already"):
        LabelWriter(folder, identity(), rows=4)


def test_a_rank_that_never_began_is_missed(tmp_path: Path) -> None:
    writer = LabelWriter(tmp_path / "labels", identity(), rows=1, world=2)  # rank 0's share is empty
    writer.finish()
    with pytest.raises(ValueError, match="rank 1 has recorded 0 of its 1 rows"):
        writer.publish()
    writer = LabelWriter(tmp_path / "none", identity(), rows=0, world=2)
    with pytest.raises(ValueError, match="rank 1 has recorded 0 of its 0 rows"):
        writer.publish()


# --- killed and continued --------------------------------------------------------------------------------------------


def unfinished(folder: Path, **changes: Any) -> None:
    """Rank 1 of 2 has recorded two rows."""
    made_of = identity(**changes)
    writer = LabelWriter(folder, made_of, rows=len(LENGTHS), rank=1, world=2, rows_per_block=2)
    for row in (3, 4):
        append(writer, some_problems(latent=made_of.latent)[row])


@pytest.mark.parametrize("fact", CHANGES)
@pytest.mark.parametrize("rank", [0, 1])
def test_other_labels_are_not_added_to_an_unfinished_store(tmp_path: Path, fact: str, rank: int) -> None:
    free_width = {"top_k": None} if fact == "width" else {}
    unfinished(tmp_path / "labels", **free_width)
    other = identity(**free_width, **CHANGES[fact])
    line = f"was begun with other labels: {fact} is {FACTS[fact]!r}, not {CHANGES[fact][fact]!r}; "
    with pytest.raises(ValueError, match=line) as refusal:
        LabelWriter(tmp_path / "labels", other, rows=len(LENGTHS), rank=rank, world=2)
    assert "\n" not in str(refusal.value)
    assert LabelWriter(tmp_path / "labels", identity(**free_width), rows=7, rank=1, world=2).next_row == 5


def test_other_rows_or_ranks_do_not_continue_an_unfinished_store(tmp_path: Path) -> None:
    unfinished(tmp_path / "labels")
    with pytest.raises(ValueError, match="rows is 7, not 8;"):
        LabelWriter(tmp_path / "labels", identity(), rows=8, rank=1, world=2)
    with pytest.raises(ValueError, match="ranks is 2, not 1;"):
        LabelWriter(tmp_path / "labels", identity(), rows=7)


def test_a_damaged_block_is_not_continued(tmp_path: Path) -> None:
    writer = LabelWriter(tmp_path / "labels", identity(), rows=7, rows_per_block=2)
    for problem in some_problems()[:4]:
        append(writer, problem)
    shard = hidden_folder(tmp_path / "labels") / "rank-00000"
    names = ["block-00000.safetensors", "block-00001.safetensors"]
    assert sorted(path.name for path in shard.iterdir()) == names
    for name in names:
        good = (shard / name).read_bytes()
        cut = (good[:-1], good[: len(good) // 2], good + b"\0", b"", b"{}")
        renamed = [good.replace(piece, piece.upper()) for piece in (b"labels", b"keys", b"weights")]
        for bad in (*cut, *renamed):
            (shard / name).write_bytes(bad)
            with pytest.raises(
                ValueError, match=rf"{shard / name} is missing or damaged .*; remove .* to start again$"
            ):
                LabelWriter(tmp_path / "labels", identity(), rows=7, rank=0)
        (shard / name).write_bytes(good)
    (shard / names[0]).unlink()
    with pytest.raises(ValueError, match=rf"{shard / names[0]} is missing or damaged"):
        LabelWriter(tmp_path / "labels", identity(), rows=7)


@pytest.mark.parametrize("latent", ["superposition", "hidden"])
def test_writing_continues_after_any_torn_block(tmp_path: Path, latent: str) -> None:
    made_of, problems = identity(latent=latent), some_problems(latent=latent)
    write(tmp_path / "whole", problems, made_of)
    whole = contents(tmp_path / "whole")
    # The files after every recorded block, and how the writer names its folder.
    writer = LabelWriter(tmp_path / "labels", made_of, rows=len(problems), rows_per_block=2)
    hidden = hidden_folder(tmp_path / "labels")
    moments = [contents(hidden)]
    for problem in problems:
        append(writer, problem)
        if contents(hidden) != moments[-1]:
            moments.append(contents(hidden))
    assert [len(moment) for moment in moments] == [0, 1, 2, 3]
    draw = random.Random(3)
    for trial in range(40):
        recorded = draw.randrange(len(moments))
        shutil.rmtree(hidden)
        (hidden / "rank-00000").mkdir(parents=True)
        for name, content in moments[recorded].items():
            (hidden / name).write_bytes(content)
        # Of the next block some bytes came, and sometimes another program's garbage.
        next_block = f"block-{recorded:05d}.safetensors"
        torn = whole[f"rank-00000/{next_block}"][: draw.randrange(900)] if trial % 4 else draw.randbytes(900)
        (hidden / "rank-00000" / f".{next_block}.0123456789abcdef.tmp").write_bytes(torn)
        writer = LabelWriter(tmp_path / "labels", made_of, rows=len(problems), rows_per_block=2)
        assert writer.next_row == 2 * recorded
        for row in range(writer.next_row, len(problems)):
            append(writer, problems[row])
        writer.finish()
        assert contents(hidden) == {name: content for name, content in whole.items() if name != MANIFEST}


def test_a_block_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = some_problems([2, 3])
    writer = LabelWriter(tmp_path / "labels", identity(), rows=2, rows_per_block=2)
    shard = hidden_folder(tmp_path / "labels") / "rank-00000"
    forced: list[tuple[str, int, list[str]]] = []

    def fsync(descriptor: int) -> None:
        path, size = Path(f"/proc/self/fd/{descriptor}").readlink(), os.fstat(descriptor).st_size
        forced.append((path.name, size, [path.name for path in shard.iterdir()]))

    monkeypatch.setattr(os, "fsync", fsync)
    append(writer, problems[0])
    assert forced == []
    append(writer, problems[1])
    block = shard / "block-00000.safetensors"
    aside, size, there = forced[0]
    assert re.fullmatch(rf"\.{block.name}\.[0-9a-f]{{16}}\.tmp", aside)
    assert (size, there) == (block.stat().st_size, [aside])
    assert [(name, there) for name, _, there in forced[1:]] == [(shard.name, [block.name])]


def killed_at(instant: int, job: Callable[[], None]) -> bool:
    """Run a job in a process that is killed before the n-th time it forces something to disk or renames it.

    Returns:
        Whether it was killed.
    """

    def child() -> None:
        left = [instant]

        def deadly(call: Callable[..., None]) -> Callable[..., None]:
            def counted(*given: Any) -> None:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                call(*given)

            return counted

        os.fsync, os.replace, os.rename = deadly(lambda _: None), deadly(os.replace), deadly(os.rename)
        job()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_a_process_killed_at_any_instant_is_continued(tmp_path: Path) -> None:
    problems = some_problems([2, 0, 3, 1, 2])
    write(tmp_path / "whole", problems)
    whole = contents(tmp_path / "whole")
    kills, lost = 0, set()
    while True:
        folder = tmp_path / str(kills) / "labels"
        folder.parent.mkdir()
        if not killed_at(kills, lambda folder=folder: write(folder, problems)):
            break
        kills += 1
        if not folder.exists():  # the last kill finds the store published
            lost.add(LabelWriter(folder, identity(), rows=len(problems), rows_per_block=2).next_row)
            write(folder, problems)
        assert contents(folder) == whole
        assert_holds(LabelStore.open(folder, identity()), problems)
    assert lost == {0, 2, 4, 5}
    # The folders, three blocks (bytes, name, folder), each of them again, the manifest, and the folder's name.
    assert kills == 2 + 3 * 3 + 3 + 3 + 2


def test_an_earlier_manifest_s_leftovers_are_not_published(tmp_path: Path) -> None:
    problems = some_problems()
    unfinished(tmp_path / "labels")
    (hidden_folder(tmp_path / "labels") / f".{MANIFEST}.tmp").write_text("half a mani")
    write(tmp_path / "labels", problems, world=2)
    assert_holds(LabelStore.open(tmp_path / "labels", identity()), problems)


# --- full disks ------------------------------------------------------------------------------------------------------


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """The kernel writes what fits and refuses the rest, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("same_writer", [True, False])
@pytest.mark.parametrize("refused", range(5))
def test_a_full_disk_costs_no_recorded_row(tmp_path: Path, refused: int, same_writer: bool) -> None:
    problems = some_problems([2 * row for row in range(15)])
    write(tmp_path / "whole", problems, block=3)
    whole = contents(tmp_path / "whole")
    sizes = [len(whole[f"rank-00000/block-{index:05d}.safetensors"]) for index in range(5)]
    assert sizes == sorted(set(sizes))

    def begin() -> LabelWriter:
        return LabelWriter(tmp_path / "labels", identity(), rows=len(problems), rows_per_block=3)

    writer = begin()
    with no_file_longer_than(sizes[refused] - 1), pytest.raises(OSError, match="File too large"):  # noqa: PT012
        for problem in problems:
            append(writer, problem)
    if not same_writer:
        writer = begin()
        assert writer.next_row == 3 * refused
    for row in range(writer.next_row, len(problems)):
        append(writer, problems[row])
    writer.finish()
    writer.publish()
    assert contents(tmp_path / "labels") == whole
    assert_holds(LabelStore.open(tmp_path / "labels", identity()), problems)


def test_a_disk_that_stays_full_takes_no_further_row(tmp_path: Path) -> None:
    problems = some_problems([4] * 5)
    writer = LabelWriter(tmp_path / "labels", identity(), rows=5, rows_per_block=2)
    append(writer, problems[0])
    with no_file_longer_than(10):
        for _ in range(3):
            with pytest.raises(OSError, match="File too large"):
                append(writer, problems[1])
            assert writer.next_row == 2
    for row in range(writer.next_row, 5):
        append(writer, problems[row])
    writer.finish()
    writer.publish()
    assert_holds(LabelStore.open(tmp_path / "labels", identity()), problems)


@pytest.mark.parametrize(("allowed", "held"), [(128, [1, 0, 1, 0, 1, 0]), (129, [1, 2, 0, 1, 2, 0])])
def test_large_rows_do_not_wait_in_memory_for_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int, held: list[int]
) -> None:
    monkeypatch.setattr(label_store, "_BLOCK_BYTES", allowed)
    writer = LabelWriter(tmp_path / "labels", identity(width=5, top_k=5), rows=6)
    for row, waiting in enumerate(held):
        # A latent takes 40 bytes, ids and weights, and a row 24 more.
        writer.append(f"problem {row}", torch.arange(5)[None], torch.full((1, 5), 0.2))
        assert len(writer._waiting) == waiting
        assert writer.next_row == row + 1


def test_a_block_has_256_rows_or_64_mebibytes(tmp_path: Path) -> None:
    problems = some_problems([0] * 258)
    writer = LabelWriter(tmp_path / "labels", identity(), rows=258)
    for problem in problems[:255]:
        append(writer, problem)
    shard = hidden_folder(tmp_path / "labels") / "rank-00000"
    assert list(shard.iterdir()) == []
    append(writer, problems[255])
    assert len(list(shard.iterdir())) == 1
    # As if large rows were waiting; one without latents takes 24 bytes.
    writer._waiting_bytes = 2**26 - 25
    append(writer, problems[256])
    assert len(list(shard.iterdir())) == 1
    append(writer, problems[257])
    assert len(list(shard.iterdir())) == 2
