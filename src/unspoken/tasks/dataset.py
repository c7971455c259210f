"""Training data as a map from index to batch, made a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

Batch = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class GeneratedDataset(Dataset[Batch]):
    """Samples ``first`` to ``first + size - 1`` of a stream.

    Attributes:
        make: indices to a finished batch. Sample i is a pure function of i, so shuffling, sharding over ranks and
            resuming need no state.
    """

    make: Callable[[NDArray[np.int64]], Batch]
    first: int
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """A whole batch at once: the loader's fast path. It needs no collation."""
        if any(not 0 <= index < self.size for index in indices):
            raise IndexError(f"index {indices} is outside a data set of {self.size} samples")
        return self.make(np.asarray(indices, dtype=np.int64) + self.first)
