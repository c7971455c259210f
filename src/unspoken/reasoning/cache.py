"""A key-value cache whose size is known beforehand.

The ``DynamicCache`` of transformers copies everything it holds at every step, so the cost of a latent grows with the
length of the chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer


class ReservedLayer(DynamicLayer):
    """Keys and values written into buffers of a fixed size; what is there so far is a view of them.

    Args:
        capacity: positions that it can hold.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append ``[B, H, T, D]`` keys and values; all of them so far come back."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [
                torch.empty((*new.shape[:2], self.capacity, new.shape[3]), dtype=new.dtype, device=new.device)
                for new in (key_states, value_states)
            ]
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, but position {end} was requested")
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, begin:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values


class ReservedCache(DynamicCache):
    """The ``DynamicCache`` of a model, with reserved space in layers that keep all positions.

    Args:
        config: of the model.
        length: positions that will be asked for.
        padded: whether masks have holes. transformers then makes its masks without reading their values, for which the
            host would wait for the device at every step.
    """

    def __init__(self, config: PreTrainedConfig, length: int, *, padded: bool = False) -> None:
        super().__init__(config=config)
        self.layers: list[Any] = [
            ReservedLayer(length) if type(layer) is DynamicLayer else layer for layer in self.layers
        ]
        self.padded = padded

    @property
    def is_compileable(self) -> bool:
        """True keeps transformers from reading the values of masks."""
        return self.padded

    def fill(self, sources: Sequence[tuple[ReservedCache, Tensor]], columns: int) -> None:
        """Hold rows of other caches.

        Args:
            sources: caches and the indices ``[R]`` of their rows.
            columns: how many of the last columns of each are kept; a shorter one is padded on the left.
        """

        def aligned(states: Tensor, index: Tensor) -> Tensor:
            kept = states[index][:, :, -columns:]
            return F.pad(kept, (0, 0, columns - kept.shape[2], 0))

        for depth, layer in enumerate(self.layers):
            assert type(layer) is ReservedLayer  # others forget columns
            layers = [(cache.layers[depth], index) for cache, index in sources]
            layer.update(
                torch.cat([aligned(source.keys, index) for source, index in layers]),
                torch.cat([aligned(source.values, index) for source, index in layers]),
            )


def require_filled(cache: Cache, name: str) -> None:
    """Refuse, by a ValueError, a model that leaves its cache empty in the first pass: no step would see another one."""
    for layer in cache.layers:
        recurrent = getattr(layer, "has_previous_state", {})
        attended = layer.get_seq_length() if isinstance(layer, CacheLayerMixin) else 0
        if attended or any(recurrent.values()):
            return
    raise ValueError(
        f"{name} does not use the key-value cache it is given, so its latents would not see what stands before them; "
        "choose a decoder whose forward fills past_key_values"
    )
