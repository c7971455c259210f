"""Generated data as a map: a batch is its samples, and a data set is a window on an endless list."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from unspoken.tasks import TreeSearchConfig
from unspoken.tasks.dataset import WINDOW, GeneratedDataset, by_length


def window(first: int = 0, size: int = 40, split: str = "train", seed: int = 0) -> GeneratedDataset:
    task = TreeSearchConfig(depth=3, targets=2).build()
    return GeneratedDataset(make=lambda indices: task.rows(task.sample(split, indices, seed)), first=first, size=size)


def test_a_batch_is_its_samples() -> None:
    data = window(first=5)
    indices = [3, 0, 39, 3]
    batch = data.__getitems__(indices)
    for key in batch:
        assert torch.equal(batch[key], torch.cat([data[index][key] for index in indices])), key


def test_a_window_is_a_part_of_the_same_list() -> None:
    assert torch.equal(
        window(first=10).__getitems__([0, 1, 2])["input_ids"], window(first=0).__getitems__([10, 11, 12])["input_ids"]
    )


def test_its_length_is_its_size() -> None:
    assert len(window(size=17)) == 17


def test_the_loader_takes_whole_batches_from_it() -> None:
    data = window()
    loader = DataLoader(data, batch_size=16, collate_fn=lambda batch: batch)
    batches = list(loader)
    assert [len(batch["input_ids"]) for batch in batches] == [16, 16, 8]
    everything = torch.cat([batch["input_ids"] for batch in batches])
    assert torch.equal(everything, data.__getitems__(list(range(40)))["input_ids"])


def test_seed_and_split_choose_the_list() -> None:
    batches = [
        window(split=split, seed=seed).__getitems__([0])["input_ids"]
        for split in ("train", "validation", "test")
        for seed in (0, 1)
    ]
    assert len({tuple(batch[0].tolist()) for batch in batches}) == 6


@pytest.mark.parametrize("index", [40, 41, -41])
def test_an_index_outside_is_refused(index: int) -> None:
    # Otherwise a plain for loop over the data set never ends, and a slip reads another stage's samples.
    with pytest.raises(IndexError):
        window()[index]


# --- batches of like length ------------------------------------------------------------------------------------------

BATCH = 4
SPAN = WINDOW * BATCH
SIZE = 2 * SPAN + 5 * BATCH  # two windows, and one of five batches
LENGTHS = np.random.default_rng(0).integers(1, 50, SIZE)


def like_lengths(seed: int = 0) -> GeneratedDataset:
    """A batch is the list of its samples' numbers, which begin at 1000."""

    def make(indices: NDArray[np.int64]) -> dict[str, list[int]]:
        return {"samples": indices.tolist()}

    order = by_length(lambda places: LENGTHS[places], size=SIZE, batch_size=BATCH, seed=seed)
    return GeneratedDataset(make=make, first=1000, size=SIZE, order=order)


def read(data: GeneratedDataset, first: int, last: int) -> list[int]:
    return [sample for index in range(first, last) for sample in data[index]["samples"]]


def windows(data: GeneratedDataset) -> list[list[list[int]]]:
    """The batches of each window."""
    starts = range(0, SIZE, BATCH)
    batches = [data.__getitems__(list(range(start, start + BATCH)))["samples"] for start in starts]
    return [batches[:WINDOW], batches[WINDOW : 2 * WINDOW], batches[2 * WINDOW :]]


def test_one_window_by_hand() -> None:
    lengths = np.array([7, 1, 5, 1, 5, 9])
    order = by_length(lambda places: lengths[places], size=6, batch_size=2, seed=0)
    actual = order(np.arange(6)).reshape(3, 2).tolist()
    # Sorted: 1 1 5 5 7 9; equals stay in their order.
    assert sorted(actual) == [[0, 5], [1, 3], [2, 4]]


def test_a_window_keeps_its_samples() -> None:
    borders = [1000, 1000 + SPAN, 1000 + 2 * SPAN, 1000 + SIZE]
    for batches, first, last in zip(windows(like_lengths()), borders[:-1], borders[1:], strict=True):
        assert sorted(sample for batch in batches for sample in batch) == list(range(first, last))


def test_the_batches_of_a_window_share_no_range_of_lengths() -> None:
    for batches in windows(like_lengths()):
        ranges = sorted((min(lengths), max(lengths)) for lengths in (LENGTHS[np.array(b) - 1000] for b in batches))
        assert all(one[1] <= two[0] for one, two in pairwise(ranges))


def test_the_order_of_batches_is_drawn_for_each_window_and_seed() -> None:
    def ranks(batches: list[list[int]]) -> list[int]:
        means = [LENGTHS[np.array(batch) - 1000].mean() for batch in batches]
        return np.argsort(means).tolist()

    one, two, _ = windows(like_lengths())
    other, _, _ = windows(like_lengths(seed=1))
    drawn = [ranks(one), ranks(two), ranks(other), list(range(WINDOW)), list(range(WINDOW))[::-1]]
    assert len({tuple(row) for row in drawn}) == len(drawn)


@pytest.mark.parametrize("first", [BATCH, SPAN - BATCH, SPAN, 2 * SPAN + BATCH])
def test_who_goes_on_in_the_middle_reads_what_was_left(first: int) -> None:
    assert read(like_lengths(), first, SIZE) == read(like_lengths(), 0, SIZE)[first:]


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_read_the_batches_of_one_process(ranks: int) -> None:
    expected = [batch for batches in windows(like_lengths()) for batch in batches]
    pieces = []
    for rank in range(ranks):
        data = like_lengths()
        sampler = BatchSampler(SequentialSampler(data), BATCH // ranks, drop_last=False)
        shard = BatchSamplerShard(sampler, num_processes=ranks, process_index=rank)
        pieces.append([data.__getitems__(indices)["samples"] for indices in shard])
    assert [[sample for piece in batch for sample in piece] for batch in zip(*pieces, strict=True)] == expected


def test_half_a_batch_is_refused() -> None:
    with pytest.raises(AssertionError, match="10 samples do not fill batches of 4"):
        by_length(lambda places: places, size=10, batch_size=4, seed=0)
