"""What ranks share: on one process nothing changes, and of several the plain average is the mean over everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_recipe import one_stage, quiet_train
from torch import Tensor

from unspoken import distributed


def on_each_rank(patch: pytest.MonkeyPatch, counts: list[int], work: Callable[[int], Tensor]) -> list[Tensor]:
    """What every rank of a job would make, one after another; ``counts`` are the items of each."""
    patch.setattr(distributed, "world_size", lambda: len(counts))
    patch.setattr(distributed, "all_reduce_sum", lambda _: torch.tensor(sum(counts)))
    return [work(number) for number in range(len(counts))]


@pytest.mark.parametrize("counts", [[3, 1], [2, 2, 7, 1], [4, 0], [0, 0, 5]])
def test_the_average_over_ranks_is_the_mean_over_all_items_and_so_is_its_gradient(
    counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = torch.randn(sum(counts), 5, requires_grad=True)
    tokens = torch.randint(5, (sum(counts),))
    mean = F.cross_entropy(scores, tokens)
    (expected,) = torch.autograd.grad(mean, scores)

    def work(number: int) -> Tensor:
        own = slice(sum(counts[:number]), sum(counts[: number + 1]))
        return distributed.rank_weighted_mean(F.cross_entropy(scores[own], tokens[own]), counts[number])

    average = torch.stack(on_each_rank(monkeypatch, counts, work)).mean()
    torch.testing.assert_close(average, mean)
    torch.testing.assert_close(torch.autograd.grad(average, scores)[0], expected)


def test_means_of_unequal_parts_would_be_wrong_without_the_weights() -> None:
    values = torch.tensor([1.0, 1.0, 1.0, 5.0])
    assert torch.stack([values[:3].mean(), values[3:].mean()]).mean() != values.mean()


def test_on_one_process_the_very_same_tensor_comes_back() -> None:
    mean = torch.tensor(float("nan"))
    assert distributed.rank_weighted_mean(mean, 0) is mean
    assert distributed.all_reduce_mean(mean, 3) is mean
    assert distributed.all_reduce_sum(mean) is mean
    assert distributed.gather_rows(mean) is mean
    assert distributed.full_tensor(mean) is mean
    assert distributed.is_main_process()


@pytest.mark.parametrize(("rows", "ranks"), [(10, 4), (4, 4), (7, 1), (9, 2)])
def test_shares_are_every_row_once_and_differ_by_one_at_most(
    rows: int, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    shares = []
    for number in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        shares.append(distributed.rank_slice(rows))
    assert [row for fraction in shares for row in fraction] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rank_without_a_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(ValueError, match="3 rows are too few for 4 ranks"):
        distributed.rank_slice(3)


def test_whoever_is_alone_counts_as_one_process_until_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 3)
    assert (distributed.world_size(), distributed.rank(), distributed.is_main_process()) == (4, 3, False)
    with distributed.as_single_process():
        assert (distributed.world_size(), distributed.rank(), distributed.is_main_process()) == (1, 0, True)
    assert (distributed.world_size(), distributed.rank()) == (4, 3)


def test_what_ranks_cannot_train_together_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    message = r"stages \(pretrain\): batch_size is 8, which 3 processes cannot share evenly; set it to a multiple"
    with pytest.raises(ValueError, match=message):
        quiet_train(one_stage(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_batches_that_are_spread_come_back_whole_and_in_order(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batches, done = ["a", "b", "c", "d", "e"], list[list[str]]()
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)

    def gather(pieces: list[list[str]], own: list[str]) -> None:
        done.append(own)
        pieces[:] = [[batch.upper() for batch in batches[rank::ranks]] for rank in range(ranks)]

    monkeypatch.setattr(distributed.dist, "all_gather_object", gather)
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        assert distributed.map_over_ranks(batches, str.upper) == ["A", "B", "C", "D", "E"]
    assert sorted(letter for own in done for letter in own) == ([] if ranks == 1 else ["A", "B", "C", "D", "E"])
