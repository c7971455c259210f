"""Generated data as a map from index to sample, made a batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from unspoken.tasks.tree_search import Split, TreeSearchTask


@dataclass(frozen=True, kw_only=True)
class GeneratedDataset(Dataset[dict[str, Tensor]]):
    """Samples ``first`` to ``first + size - 1`` of a split.

    Sample i is a pure function of (task, seed, split, i), so shuffling, sharding over ranks and resuming need no state.
    """

    task: TreeSearchTask
    split: Split
    seed: int
    first: int
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """A whole batch at once: the loader's fast path. It needs no collation."""
        if any(not 0 <= index < self.size for index in indices):
            raise IndexError(f"index {indices} is outside a data set of {self.size} samples")
        wanted = np.asarray(indices, dtype=np.int64) + self.first
        return self.task.encode(self.task.sample(self.split, wanted, self.seed))
