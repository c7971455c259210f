"""The ranks of one job, where `torchrun` or `accelerate launch` started several: who counts, draws, reads and writes.

A job of one process is the same code: every function here then passes through what it is given, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import PartialState  # type: ignore[import-untyped]
from torch import Tensor
from torch.distributed.tensor import DTensor

T = TypeVar("T")
R = TypeVar("R")

_alone = False
_sharded = False


def init_distributed() -> None:
    """Connect to the other ranks of this job, if the launcher's environment names any.

    Raises:
        ValueError: `accelerate launch` asks for a kind of sharding that is not supported.
    """
    global _sharded  # noqa: PLW0603
    # Accelerate must not see the request: its sharding does not work with our models (see training/sharding.py).
    if os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true":
        version, offload = os.environ.get("FSDP_VERSION", "1"), os.environ.get("FSDP_OFFLOAD_PARAMS", "false")
        if version != "2" or offload.lower() == "true":
            raise ValueError(
                f"accelerate's settings have fsdp_version {version} and fsdp_offload_params {offload.lower()}; set "
                "them to 2 and false"
            )
        _sharded = True
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # As the Trainer would do it, only before the first file is touched.
        PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(minutes=30))


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """Number of this one, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def sharded() -> bool:
    """Whether the weights are sharded over the ranks (FSDP2); otherwise each rank has all of them (DDP)."""
    return _sharded and world_size() > 1


def is_main_process() -> bool:
    """Whether this is the rank that writes and prints."""
    return rank() == 0


@contextmanager
def as_single_process() -> Iterator[None]:
    """Inside, this process counts as the only one: for work that a rank does alone."""
    global _alone  # noqa: PLW0603
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


# --- the mean over a batch that ranks share ---------------------------------------------------------------------------


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum over ranks, on each of them; it has no gradient."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def rank_weighted_mean(mean: Tensor, count: int | Tensor) -> Tensor:
    """A mean over this rank's items, weighted so that the plain average over ranks is the mean over all items.

    Averaging over ranks is what DDP and FSDP do to gradients, and the Trainer to losses.

    Args:
        mean: of any shape; not a number where there are no items.
        count: items that it was taken over.
    """
    if world_size() == 1:
        return mean
    items = torch.as_tensor(count, device=mean.device)
    weight = items * world_size() / all_reduce_sum(items).clamp(min=1)
    return torch.where(items > 0, mean, 0.0) * weight


def all_reduce_mean(mean: Tensor, count: int | Tensor) -> Tensor:
    """The mean over the items of all ranks, on each of them; it has no gradient there."""
    return mean if world_size() == 1 else all_reduce_sum(rank_weighted_mean(mean, count)) / world_size()


# --- rows -------------------------------------------------------------------------------------------------------------


def rank_slice(rows: int) -> range:
    """This rank's contiguous range of some rows.

    Raises:
        ValueError: there are fewer rows than ranks.
    """
    if rows < world_size():
        raise ValueError(f"{rows} rows are too few for {world_size()} ranks; start fewer, or give more rows")
    return range(rows * rank() // world_size(), rows * (rank() + 1) // world_size())


def gather_rows(own: Tensor) -> Tensor:
    """The rows ``[B, ...]`` of every rank in order; a shorter second axis is filled up with zeros on the right."""
    if world_size() == 1:
        return own
    rows_by_rank: list[Tensor] = [own] * world_size()
    dist.all_gather_object(rows_by_rank, own.cpu())
    if own.dim() > 1:
        longest = max(rows.shape[1] for rows in rows_by_rank)
        rows_by_rank = [F.pad(rows, (0, 0) * (own.dim() - 2) + (0, longest - rows.shape[1])) for rows in rows_by_rank]
    return torch.cat(rows_by_rank).to(own.device)


def map_over_ranks(batches: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """What ``work`` makes of each batch, in order, on every rank; a rank does every ``world_size()``-th of them.

    One rank does a batch as one process would, so the outcome does not depend on the number of ranks, to the bit.
    """
    if world_size() == 1:
        return [work(batch) for batch in batches]
    results_by_rank: list[list[R]] = [[]] * world_size()
    dist.all_gather_object(results_by_rank, [work(batch) for batch in batches[rank() :: world_size()]])
    return [results_by_rank[index % world_size()][index // world_size()] for index in range(len(batches))]


def draw_rank_rows(rows: int, draw: Callable[[int], Tensor]) -> Tensor:
    """This rank's rows of something random that is drawn for the rows of all ranks at once.

    Every rank draws all of it, so a row gets what it would get on one process, and the ranks' generators stay in step.

    Args:
        rows: of this rank; another number on each.
        draw: number of rows to ``[rows, ...]``.
    """
    if world_size() == 1:
        return draw(rows)
    counts: list[int] = [0] * world_size()
    dist.all_gather_object(counts, rows)
    first = sum(counts[: rank()])
    return draw(sum(counts))[first : first + rows]


def full_tensor(table: Tensor) -> Tensor:
    """A tensor in full, of which every rank may hold a shard."""
    return table.full_tensor() if isinstance(table, DTensor) else table


# --- one for all ------------------------------------------------------------------------------------------------------


def run_on_main(act: Callable[[], T]) -> T:
    """Call a function on rank 0 alone; every rank returns its result, or raises its error.

    Raises:
        ValueError, OSError: as on rank 0.
    """
    if world_size() == 1:
        return act()
    outcome: list[T | ValueError | OSError | None] = [None]
    if is_main_process():
        try:
            with as_single_process():
                outcome = [act()]
        except (ValueError, OSError) as error:
            outcome = [error]
    dist.broadcast_object_list(outcome)
    (result,) = outcome
    if isinstance(result, ValueError | OSError):
        raise result
    return result  # type: ignore[return-value]


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def claims_error_output() -> bool:
    """Whether this rank prints the error of the job: true for the first rank that asks."""
    if not dist.is_initialized():
        return os.environ.get("RANK", "0") == "0"
    try:
        asked: int = dist.distributed_c10d._get_default_store().add("unspoken-failed", 1)
    except RuntimeError:
        return False  # the rank that kept the count has ended already
    return asked == 1
