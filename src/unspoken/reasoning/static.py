"""Steps of fixed shape, captured as a CUDA graph.

A step of one position is hundreds of small kernels, and a GPU waits for the host that launches them one by one. With a
cache of constant size every step is the same work on the same memory, so it is recorded once and launched at once.

Axes: B batch, L columns of the cache, D latent width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache

_log = logging.getLogger(__name__)
# Models that moved something between host and device in a step, and what the capture complained about.
_uncaptured: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def has_static_steps(stack: PreTrainedModel, device: torch.device, requested: bool | None) -> bool:
    """Whether steps have fixed shapes; where nothing is requested they do on a GPU, for models that allow it.

    Raises:
        ValueError: they are requested, and the model cannot have them.
    """
    if requested is False or (requested is None and device.type != "cuda"):
        return False
    reason = why_not_static(stack)
    if reason is not None and requested:
        raise ValueError(f"{type(stack).__name__} cannot decode with fixed shapes: {reason}; leave static out")
    if reason is not None:
        _log.info("%s decodes without a captured step: %s", type(stack).__name__, reason)
    return reason is None


def why_not_static(stack: PreTrainedModel) -> str | None:
    """Why a model's steps cannot have fixed shapes; None if they can."""
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=stack.config).layers):
        return "it has layers that keep only part of what they saw (a sliding window, or a recurrent state)"
    if not stack._can_compile_fullgraph:
        return "transformers does not list it among the models that run with a static cache"
    return _uncaptured.get(stack)


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
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, inputs_B1D: Tensor, positions_B1: Tensor) -> Tensor:
        """Outputs ``[B, 1, D]`` of one more position."""
        if self._inputs is None:
            # The first step is run as it is: libraries set themselves up, which cannot be captured.
            self._inputs = (inputs_B1D.clone(), positions_B1.clone())
            return self._step()
        for buffer, new in zip(self._inputs, (inputs_B1D, positions_B1), strict=True):
            buffer.copy_(new)
        if self._replay is None:
            self._replay = self._captured() if _can_capture(inputs_B1D) else self._step
        # The next step writes where this one wrote.
        return self._replay().clone()

    def _captured(self) -> Callable[[], Tensor]:
        try:
            return captured(self._step)
        except RuntimeError as error:
            complaint = str(error).partition("\n")[0]
            reason = f"its step could not be captured as a CUDA graph ({complaint})"
            _log.warning("%s: %s; its kernels are launched one by one", type(self._stack).__name__, reason)
            _uncaptured[self._stack] = reason
            return self._step

    def _step(self) -> Tensor:
        assert self._inputs is not None
        outputs = self._stack(
            inputs_embeds=self._inputs[0],
            attention_mask=self._mask_BL,
            position_ids=self._inputs[1],
            past_key_values=self._cache,
            use_cache=True,
        )
        return outputs.last_hidden_state


def _can_capture(tensor: Tensor) -> bool:
    return tensor.is_cuda


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A function that does on the GPU what ``step`` does, and returns the same tensor every time.

    Raises:
        RuntimeError: the step moves something between host and device, so it cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    # A capture that fails leaves its own stream current; the outer context puts this one back.
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
