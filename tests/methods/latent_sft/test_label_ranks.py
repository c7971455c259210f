"""Labels half written by some number of writers: as many go on, any other number begins again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unspoken.methods.latent_sft.label_store import LabelStore, LabelWriter
from unspoken.methods.latent_sft.labels import LabelIdentity

IDENTITY = LabelIdentity(
    data="5eed",
    split="train",
    seed=0,
    tokenizer="70c",
    rate=2,
    latent="hidden",
    width=2,
    top_k=None,
    temperature=1.0,
    readout="head",
    encoder="e1",
    decoder="d1",
    precision="float32",
)
ROWS = 7


def write(folder: Path, *, world: int, most: int = ROWS) -> None:
    """Let every writer append up to ``most`` rows of its share; those that are done finish."""
    for rank in range(world):
        writer = LabelWriter(folder, IDENTITY, rows=ROWS, rank=rank, world=world, rows_per_block=1)
        for row in range(writer.next_row, min(writer.next_row + most, writer.own_rows.stop)):
            writer.append_vectors(f"problem {row}", torch.full((row, 2), float(row)))
        if rank == 0 and writer.next_row == writer.own_rows.stop:
            writer.finish()
            first = writer
    if most == ROWS:
        first.publish()


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4), (3, 3)])
def test_any_number_of_writers_ends_in_the_same_labels(before: int, after: int, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    write(folder, world=before, most=1)
    LabelWriter.forget(folder, unless=after)
    assert (tmp_path / ".labels.unfinished").exists() == (before == after)
    write(folder, world=after)
    store = LabelStore.open(folder, IDENTITY)
    for row in range(ROWS):
        vectors = store[row, f"problem {row}"].vectors
        assert vectors is not None
        assert vectors.tolist() == [[row, row]] * row


def test_another_number_is_refused_unless_the_first_is_forgotten(tmp_path: Path) -> None:
    write(tmp_path / "labels", world=2, most=1)
    with pytest.raises(ValueError, match="was begun with other labels: ranks is 2, not 1"):
        write(tmp_path / "labels", world=1)


def test_nothing_to_forget_is_no_error_and_a_damaged_block_is_left_for_the_writer_to_name(tmp_path: Path) -> None:
    LabelWriter.forget(tmp_path / "labels", unless=1)
    write(tmp_path / "labels", world=1, most=1)
    (tmp_path / ".labels.unfinished" / "rank-00000" / "block-00000.safetensors").write_text("{")
    LabelWriter.forget(tmp_path / "labels", unless=2)
    with pytest.raises(ValueError, match=r"block-00000\.safetensors is missing or damaged"):
        write(tmp_path / "labels", world=2)
