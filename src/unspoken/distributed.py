"""The ranks of one job, where `torchrun` or `accelerate launch` started several: who counts, draws, reads and writes.

A job of one process is the same code: every function here then passes through what it is given, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_step: MicroBatches | None = None  # the one whose micro-batch is read now


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


# --- the mean over a batch that ranks and micro-batches share ---------------------------------------------------------


class MicroBatches:
    """The micro-batches of one optimiser step on this rank, whose gradients are added up.

    Args:
        counts: of each micro-batch the items that its losses are means over, by name.
    """

    def __init__(self, counts: Sequence[Mapping[str, int | Tensor]]) -> None:
        self._counts = counts
        self._draws: list[Tensor] = []  # for all rows of the step, in the order in which they are drawn
        self._drawn = 0  # of these, those that the current micro-batch has read
        self._number = -1

    def __len__(self) -> int:
        return len(self._counts)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Inside, the losses of the next micro-batch are computed."""
        global _step  # noqa: PLW0603
        self._number, self._drawn, _step = self._number + 1, 0, self
        try:
            yield
        finally:
            _step = None

    def counts(self, of: str) -> list[int | Tensor]:
        """Items of each micro-batch; a ValueError where the objective does not count them."""
        if any(of not in counts for counts in self._counts):
            raise ValueError(f"this stage does not count {of!r} over micro-batches; set its accumulate to 1")
        return [counts[of] for counts in self._counts]

    def drawn(self, own: range, draw: Callable[[], Tensor]) -> Tensor:
        """Some rows of what is drawn once a step."""
        if self._drawn == len(self._draws):
            self._draws.append(draw())
        rows = self._draws[self._drawn][own.start : own.stop]
        self._drawn += 1
        return rows

    def before(self, counts_by_rank: Sequence[Sequence[int]]) -> int:
        """Rows of the step before those of this micro-batch; ranks take micro-batches in turn."""
        now = (self._number, rank())
        return sum(
            count
            for number, counts in enumerate(zip(*counts_by_rank, strict=True))
            for other, count in enumerate(counts)
            if (number, other) < now
        )


def pieces() -> int:
    """Batches whose losses are averaged to that of an optimiser step: of all ranks, and micro-batches of each."""
    return world_size() * (1 if _step is None else len(_step))


def step_total(count: int | Tensor, of: str, device: torch.device) -> Tensor:
    """Items of all ranks and micro-batches of a step.

    Args:
        count: items of this batch.
        of: their name in `Objective.counts`.
    """
    own = [count] if _step is None else _step.counts(of)
    return all_reduce_sum(torch.stack([torch.as_tensor(one, device=device) for one in own]).sum(dim=0))


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum over ranks, on each of them; it has no gradient."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value


def rank_weighted_mean(mean: Tensor, count: int | Tensor, of: str = "tokens") -> Tensor:
    """Rescale a mean so that averaging it over all ranks and micro-batches (`pieces`) gives the mean over all items.

    Averaging over ranks is what DDP and FSDP do to gradients, and the Trainer to losses, over micro-batches too.

    Args:
        mean: over the items of this micro-batch, of any shape; not a number where there are no items.
        count: items that it was taken over.
        of: their name in `Objective.counts`.

    Raises:
        ValueError: the objective does not count them for the micro-batches of a step.
    """
    if pieces() == 1:
        return mean
    return _weighted(mean, count, step_total(count, of, mean.device), pieces())


def _weighted(mean: Tensor, count: int | Tensor, total: Tensor, batches: int) -> Tensor:
    items = torch.as_tensor(count, device=mean.device)
    return torch.where(items > 0, mean, 0.0) * (items * batches / total.clamp(min=1))


def all_reduce_mean(mean: Tensor, count: int | Tensor) -> Tensor:
    """The mean over the items of all ranks, on each of them; without gradient, and for one micro-batch."""
    if world_size() == 1:
        return mean
    total = all_reduce_sum(torch.as_tensor(count, device=mean.device))
    return all_reduce_sum(_weighted(mean, count, total, 1))


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


def draw_rank_rows(rows: int, draw: Callable[[int], Tensor], of: str) -> Tensor:
    """This batch's rows of something random that is drawn for the rows of all ranks and micro-batches at once.

    Every rank draws all of it, so a row gets what it would get on one process, and the ranks' generators stay in step.

    Args:
        rows: of this batch; another number in each.
        draw: number of rows to ``[rows, ...]``.
        of: their name in `Objective.counts`.
    """
    if pieces() == 1:
        return draw(rows)
    own = [rows] if _step is None else [int(count) for count in _step.counts(of)]
    counts_by_rank: list[list[int]] = [own] * world_size()
    if world_size() > 1:
        dist.all_gather_object(counts_by_rank, own)
    total = sum(map(sum, counts_by_rank))
    if _step is None:
        first = sum(counts[0] for counts in counts_by_rank[: rank()])
        return draw(total)[first : first + rows]
    first = _step.before(counts_by_rank)
    return _step.drawn(range(first, first + rows), lambda: draw(total))


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
