"""Training data as a map from indices to a batch, optionally in batches of similar lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

Batch = dict[str, Any]
Order = Callable[[NDArray[np.int64]], NDArray[np.int64]]

WINDOW = 16  # batches that exchange samples to bring like lengths together


def by_length(
    lengths: Callable[[NDArray[np.int64]], NDArray[np.int64]], *, size: int, batch_size: int, seed: int
) -> Order:
    """An order of reading in which the samples of a batch have similar lengths, so that there is little padding.

    The samples of `WINDOW` batches are sorted by length, cut into batches again, and these are read in a random order.
    Every window keeps its samples, and the order is a pure function of the position, so sharding over ranks and
    resuming need no state.

    Args:
        lengths: positions to the lengths of their samples, in any unit.
        size: samples of the whole stage; its last window may be shorter.
        batch_size: samples per step, of all ranks together.
        seed: of the order of batches.

    Returns:
        What `GeneratedDataset` takes as its order.
    """
    assert size % batch_size == 0, f"{size} samples do not fill batches of {batch_size}"
    span = WINDOW * batch_size

    @lru_cache(maxsize=2)
    def window(number: int) -> NDArray[np.int64]:
        positions = np.arange(number * span, min((number + 1) * span, size))
        batches = positions[np.argsort(lengths(positions), kind="stable")].reshape(-1, batch_size)
        return np.random.default_rng([seed, number]).permutation(batches).ravel()

    return lambda positions: np.array([window(at // span)[at % span] for at in positions.tolist()], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class GeneratedDataset(Dataset[Batch]):
    """Samples ``first`` to ``first + size - 1`` of a stream."""

    # Indices to a finished batch. Sample i is a pure function of i, so shuffling, sharding over ranks and resuming need
    # no state.
    make: Callable[[NDArray[np.int64]], Batch]
    first: int
    size: int
    # Positions to the positions of the samples that are read there, see `by_length`; None changes nothing.
    order: Order | None = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """A whole batch at once: the loader's fast path. It needs no collation."""
        if any(not 0 <= index < self.size for index in indices):
            raise IndexError(f"index {indices} is outside a data set of {self.size} samples")
        positions = np.asarray(indices, dtype=np.int64)
        return self.make((positions if self.order is None else self.order(positions)) + self.first)
