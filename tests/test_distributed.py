"""What ranks share: on one process nothing changes, and of several the plain average is the mean over everything."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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


@pytest.mark.parametrize("counts", [[3, 1], [2, 2, 7, 1], [4, 0], [0, 0, 5], [1, 0]])
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
    message = r"stages \(pretrain\): batch_size 8 is not divisible by 3 processes; change batch_size or the number"
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


# --- what every rank does with what the others hold ------------------------------------------------------------------


def with_others(patch: pytest.MonkeyPatch, *held: Any, rank: int = 0) -> None:
    """A job of as many ranks, which hold these when they are gathered; this one is of a number."""
    patch.setattr(distributed, "world_size", lambda: len(held))
    patch.setattr(distributed, "rank", lambda: rank)

    def gather(pieces: list[Any], own: Any) -> None:
        assert len(pieces) == len(held)
        pieces[:] = [own if one is None else one for one in held]

    patch.setattr(distributed.dist, "all_gather_object", gather)


def test_sums_and_means_over_ranks_have_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank has one item and the mean 6, where this one has three and the mean 2."""
    of_the_other = iter([torch.tensor(1), torch.tensor(6 * 1 / 4)])
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda value: value.add_(next(of_the_other)))
    mean = torch.tensor(2.0, requires_grad=True)
    found = distributed.all_reduce_mean(mean, 3)
    assert found.item() == (3 * 2 + 1 * 6) / 4
    assert not found.requires_grad and mean.item() == 2.0


def test_rows_of_all_ranks_are_as_wide_as_the_widest(monkeypatch: pytest.MonkeyPatch) -> None:
    with_others(monkeypatch, None, torch.tensor([7, 8]))
    assert distributed.gather_rows(torch.tensor([5])).tolist() == [5, 7, 8]
    with_others(monkeypatch, torch.tensor([[1, 2, 3]]), None, rank=1)
    assert distributed.gather_rows(torch.tensor([[4], [5]])).tolist() == [[1, 2, 3], [4, 0, 0], [5, 0, 0]]
    with_others(monkeypatch, None, torch.ones(1, 2, 2))
    assert distributed.gather_rows(torch.full((1, 1, 2), 3.0)).tolist() == [[[3, 3], [0, 0]], [[1, 1], [1, 1]]]
    with_others(monkeypatch, None, torch.ones(1, 2, 1, 2))
    assert distributed.gather_rows(torch.ones(1, 1, 1, 2)).tolist() == [[[[1, 1]], [[0, 0]]], [[[1, 1]], [[1, 1]]]]


def test_a_rank_draws_for_all_and_takes_its_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def draw(rows: int) -> Tensor:
        drawn.append(rows)
        return torch.arange(rows)

    assert distributed.draw_rank_rows(3, draw, "rows").tolist() == [0, 1, 2]
    for rank, own in ((0, [0, 1]), (1, [2, 3, 4]), (2, [5])):
        with_others(monkeypatch, [2], [3], [1], rank=rank)
        assert distributed.draw_rank_rows(len(own), draw, "rows").tolist() == own
    assert drawn == [3, 6, 6, 6]


def test_micro_batches_of_two_ranks_take_their_rows_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """First one row of each rank, then two of the first and three of the second: drawn once, for seven."""
    for rank, counts, rows in ((0, (1, 2), [[0], [2, 3]]), (1, (1, 3), [[1], [4, 5, 6]])):
        with_others(monkeypatch, [1, 2], [1, 3], rank=rank)
        batches = distributed.MicroBatches([{"rows": count} for count in counts])
        for count, own in zip(counts, rows, strict=True):
            with batches.following():
                assert distributed.pieces() == 4
                assert distributed.draw_rank_rows(count, torch.arange, "rows").tolist() == own
    assert distributed.pieces() == 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_wait_for_each_other(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    monkeypatch.setattr(distributed.dist, "barrier", lambda: waited.append(ranks))
    distributed.barrier()
    assert waited == [2] * (ranks == 2)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("outcome", ["result", ValueError("wrong"), OSError("full")])
def test_what_one_rank_does_every_rank_returns_or_raises(
    rank: int, outcome: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone: list[bool] = []

    def act() -> Any:
        alone.append(distributed._alone)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def broadcast(objects: list[Any]) -> None:
        if rank != 0:
            objects[:] = [outcome]

    with_others(monkeypatch, 0, 1, rank=rank)
    monkeypatch.setattr(distributed.dist, "broadcast_object_list", broadcast)
    if isinstance(outcome, Exception):
        with pytest.raises(type(outcome), match=str(outcome)):
            distributed.run_on_main(act)
    else:
        assert distributed.run_on_main(act) == outcome
    assert alone == [True] * (rank == 0)


# --- how a job begins and ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "there", "connects", "shards"),
    [
        ({}, False, False, False),
        ({"WORLD_SIZE": "1"}, False, False, False),
        ({"WORLD_SIZE": "2"}, False, True, False),
        ({"WORLD_SIZE": "2"}, True, False, False),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, False, True, True),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "1"}, False, True, False),
    ],
)
def test_a_job_is_joined_once_where_a_launcher_started_several_processes(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], there: bool, connects: bool, shards: bool
) -> None:
    joined: list[Any] = []
    monkeypatch.setattr(distributed.os, "environ", dict(environment))
    monkeypatch.setattr(distributed, "_sharded", False)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: there)
    monkeypatch.setattr(distributed, "PartialState", lambda **how: joined.append(how))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    distributed.init_distributed()
    assert joined == [{"cpu": True, "timeout": timedelta(minutes=30)}] * connects
    assert "ACCELERATE_USE_FSDP" not in distributed.os.environ
    for ranks in (1, 2):
        monkeypatch.setattr(distributed, "world_size", lambda ranks=ranks: ranks)
        assert distributed.sharded() is (shards and ranks == 2)


@pytest.mark.parametrize(("version", "offload"), [("1", "false"), ("2", "true"), (None, "false")])
def test_other_kinds_of_sharding_are_refused(
    monkeypatch: pytest.MonkeyPatch, version: str | None, offload: str
) -> None:
    settings = {"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": offload}
    monkeypatch.setattr(distributed.os, "environ", settings | ({"FSDP_VERSION": version} if version else {}))
    with pytest.raises(ValueError, match=rf"fsdp_version {version or 1} and fsdp_offload_params {offload}; set"):
        distributed.init_distributed()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert not distributed.sharded()


def test_the_first_rank_that_asks_prints_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, prints in ((None, True), ("0", True), ("1", False)):
        monkeypatch.setattr(distributed.os, "environ", {} if number is None else {"RANK": number})
        assert distributed.claims_error_output() is prints
    asked = [0]

    def count(name: str, more: int) -> int:
        assert name == "unspoken-failed"
        asked[0] += more
        return asked[0]

    def gone(*_: Any) -> int:
        raise RuntimeError

    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    for add, claims in ((count, [True, False, False]), (gone, [False])):
        store = SimpleNamespace(add=add)
        monkeypatch.setattr(distributed.dist.distributed_c10d, "_get_default_store", lambda store=store: store)
        assert [distributed.claims_error_output() for _ in claims] == claims
