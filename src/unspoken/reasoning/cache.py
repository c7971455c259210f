"""A key-value cache whose room is known beforehand.

The library's growing cache copies everything it holds at every step, so the cost of a latent rises with the chain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer


class ReservedLayer(DynamicLayer):
    """Keys and values written into buffers of a fixed size; what is there so far is a view of them.

    Args:
        room: positions that it can hold.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append ``[B, H, T, D]`` keys and values; all of them so far come back."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [
                torch.empty((*new.shape[:2], self.room, new.shape[3]), dtype=new.dtype, device=new.device)
                for new in (key_states, value_states)
            ]
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if end > self.room:
            raise ValueError(f"the cache was given room for {self.room} positions, and position {end} was asked for")
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, begin:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values


def reserved_cache(config: PreTrainedConfig, room: int) -> DynamicCache:
    """The library's cache for a model, with room reserved wherever a layer keeps everything."""
    cache = DynamicCache(config=config)
    cache.layers = [ReservedLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
