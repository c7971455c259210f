"""Models that write a fixed number of latents, for tests of such methods, and the problems that they read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from tiny_models import END, PAD, enliven
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.methods.latent_model import LatentModel
from unspoken.tasks.spans import Markers, Spans

MARKERS = Markers(open=(2,), end=(7, 6))
BOX = (5, 8)
# Prompts, chains and answers all of different length, with the numbers of the answer in the prompt too.
SPANS = [
    Spans(prompt=(3, 11, 5, 8, 13), steps=((13, 14), (15,), (4, 4)), answer=(5, 8, 13, 14, 9, END)),
    Spans(prompt=(12,), steps=((16, 17),), answer=(5, 8, 10, 9, END)),
    Spans(prompt=(4, 9, 8), steps=((19,), (18, 3)), answer=(5, 8, 19, 9, END)),
]
NARROW = {"width": 24}  # a projection
M = TypeVar("M", bound=LatentModel)


def around(kind: type[M], base: PreTrainedModel, **settings: Any) -> M:
    """A model of a method around a language model, whose further weights are lively too."""
    attention = base.config._attn_implementation  # a configuration around another one resets its attention
    config = kind.config_class(
        base_config=base.config,
        open_ids=list(MARKERS.open),
        end_ids=list(MARKERS.end),
        eos_token_id=END,
        pad_token_id=PAD,
        **settings,
    )
    model: M = kind._from_config(config, attn_implementation=attention)
    model.start_from(base)
    if model.projection is not None:
        enliven(model.projection, "talker")
    return model.eval()


def outputs_of(model: LatentModel, given: Mapping[str, Any], **how: Any) -> Any:
    """Of the pass that a stage trains by."""
    return model(**{name: piece for name, piece in given.items() if name != "target_mask"}, **how)


@contextmanager
def caches_kept(*stacks: PreTrainedModel) -> Iterator[list[bool]]:
    """Whether each pass of some stacks leaves a key-value cache: one that nothing goes on from would take memory."""
    kept: list[bool] = []
    hooks = [
        stack.register_forward_hook(lambda _, __, outputs: kept.append(outputs.past_key_values is not None))
        for stack in stacks
    ]
    yield kept
    for hook in hooks:
        hook.remove()


def gradients(loss: Tensor, model: PreTrainedModel) -> dict[str, Tensor]:
    names, weights = zip(*((name, one) for name, one in model.named_parameters() if one.requires_grad), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True), strict=True))


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, gradient in theirs.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=2e-4 * max(largest, 1e-3), msg=name)
