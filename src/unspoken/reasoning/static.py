"""Steps of fixed shape, captured as a CUDA graph.

A step of one position is hundreds of small kernels, and a GPU waits for the host that launches them one by one. With a
cache of constant size every step is the same work on the same memory, so it is recorded once and launched at once.

Axes: B batch, L columns of the cache, D latent width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache

_log = logging.getLogger(__name__)


def why_not_static(stack: PreTrainedModel) -> str | None:
    """Why a model's steps cannot have fixed shapes; None if they can."""
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=stack.config).layers):
        return "it has layers that keep only part of what they saw (a sliding window, or a recurrent state)"
    if not stack._can_compile_fullgraph:
        return "the library does not list it among the models that run with a static cache"
    return None


class StaticSteps:
    """Passes of one position over a static cache that holds the prompt already.

    Args:
        stack: decoder without its head.
        cache: filled by the prompt's pass.
        mask_BL: real columns, those of later steps included; None where all are.
    """

    def __init__(self, stack: PreTrainedModel, cache: StaticCache, mask_BL: Tensor | None) -> None:
        self._stack = stack
        self._cache = cache
        self._mask_BL = mask_BL
        self._places: tuple[Tensor, Tensor] | None = None
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, inputs_B1D: Tensor, positions_B1: Tensor) -> Tensor:
        """Outputs ``[B, 1, D]`` of one more position."""
        if self._places is None:
            # The first step is run as it is: libraries set themselves up, which cannot be captured.
            self._places = (inputs_B1D.clone(), positions_B1.clone())
            return self._step()
        for place, new in zip(self._places, (inputs_B1D, positions_B1), strict=True):
            place.copy_(new)
        if self._replay is None:
            self._replay = captured(self._step) if _can_capture(inputs_B1D) else self._step
        # The next step writes where this one wrote.
        return self._replay().clone()

    def _step(self) -> Tensor:
        assert self._places is not None
        outputs = self._stack(
            inputs_embeds=self._places[0],
            attention_mask=self._mask_BL,
            position_ids=self._places[1],
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden_B1D: Tensor = outputs.last_hidden_state
        return hidden_B1D


def _can_capture(tensor: Tensor) -> bool:
    return tensor.is_cuda


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A function that does on the GPU what ``step`` does, and returns the same tensor every time.

    A step that cannot be captured, because it moves something from or to the host, is returned as it is and a warning
    is logged.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        # A capture that fails leaves its stream current; this one is put back.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = step()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        _log.warning(
            "a decoding step could not be captured as a CUDA graph and is launched kernel by kernel: %s", reason
        )
        return step

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
