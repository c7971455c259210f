"""Generated data as a map: a batch is its samples, and a data set is a window on an endless list."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from unspoken.tasks import GeneratedDataset, TreeSearchConfig
from unspoken.tasks.tree_search import Split


def window(first: int = 0, size: int = 40, split: Split = "train", seed: int = 0) -> GeneratedDataset:
    task = TreeSearchConfig(depth=3, targets=2).build()
    return GeneratedDataset(make=lambda indices: task.encode(task.sample(split, indices, seed)), first=first, size=size)


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
