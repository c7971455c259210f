"""Both ends of a causal language model: the input table, and the head that turns an output into scores.

Axes: N slots, D width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from unspoken.backbone.modeling import UnspokenForCausalLM

_is_matrix: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


class CallableHead:
    """The head of a model that is more than one matrix: with biases, caps, scales or layers, all of them applied.

    No gradient reaches its weights.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __len__(self) -> int:
        """Entries of the vocabulary."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def __call__(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """The scores that the model makes of outputs of its stack."""
        # A second model of the same weights, since another thread may be running the first one.
        alone = copy.copy(self.model)
        head = {name: _without_gradient(part) for name, part in alone._modules.items() if part is not alone.base_model}
        alone._modules = {**head, self.model.base_model_prefix: _Given(self.model.base_model)}
        alone._parameters = {name: _detached(weight) for name, weight in alone._parameters.items()}
        # The class's forward: a trainer may have wrapped the instance's.
        outputs: Any = type(self.model).forward(alone, inputs_embeds=hidden[None], use_cache=False)
        return outputs.logits[0]


# A matrix [V, D] where the scores are the product with one.
Head = Tensor | CallableHead


def embedding_table(model: PreTrainedModel) -> Float[Tensor, "V D"]:
    """What each token id becomes at the first block, without gradient."""
    embedding: nn.Module = model.get_input_embeddings()
    if type(embedding) is nn.Embedding:
        return embedding.weight.detach()
    # A table that normalises or scales its rows when they are read.
    with torch.no_grad():
        weight: Any = embedding.weight
        rows: Tensor = embedding(torch.arange(weight.shape[0], device=weight.device))
    return rows


def head_of(model: PreTrainedModel) -> Head:
    """What turns an output of a model's stack into scores; no gradient reaches its weights."""
    if model not in _is_matrix:
        _is_matrix[model] = isinstance(model, UnspokenForCausalLM) or _has_matrix_alone(model)
    if _is_matrix[model]:
        head: Any = model.get_output_embeddings()
        return head.weight.detach()
    return CallableHead(model)


def scorer(head: Head, hidden: Float[Tensor, "N D"]) -> Callable[[Tensor], Tensor]:
    """What makes scores of the next token ``[M, V]`` of outputs ``[M, D]`` of the stack.

    Args:
        hidden: of the precision of the outputs; a matrix is turned and cast to that of the product once for all pieces.
    """
    if not isinstance(head, Tensor):
        return head
    kind = hidden.device.type
    matrix = head.T.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype)
    return lambda some: some @ matrix


def scores(hidden: Float[Tensor, "N D"], head: Head) -> Float[Tensor, "N V"]:
    """Scores of the next token after each output of the stack, in the precision of ``hidden``."""
    return scorer(head, hidden)(hidden)


@torch.no_grad()
def _has_matrix_alone(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return False
    with torch.autocast(head.weight.device.type, enabled=False):
        hidden = torch.linspace(-1, 1, head.in_features, dtype=head.weight.dtype, device=head.weight.device)[None]
        # Large scores reveal a cap, and an output of zeros a constant.
        hidden = hidden * (1000 / F.linear(hidden, head.weight).abs().max().clamp(min=1e-6))
        expected = F.linear(hidden, head.weight)
        asked = CallableHead(model)
        close = torch.allclose(asked(hidden), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))
        return close and not bool(asked(torch.zeros_like(hidden)).any())


def _detached(weight: Tensor | None) -> Any:
    return None if weight is None else weight.detach()


def _without_gradient(module: nn.Module | None) -> nn.Module | None:
    """A module with the same weights, which get no gradient from it."""
    if module is None:
        return None
    twin = copy.copy(module)
    twin._parameters = {name: _detached(weight) for name, weight in module._parameters.items()}
    twin._modules = {name: _without_gradient(part) for name, part in module._modules.items()}
    return twin


@dataclass
class _Output(ModelOutput):
    """Outputs of a stack: the last layer's, and None for every other."""

    last_hidden_state: Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Given(nn.Module):
    """Replaces the stack of a causal language model and returns its inputs as outputs."""

    def __init__(self, stack: nn.Module) -> None:
        super().__init__()
        self.__dict__["stack"] = stack  # not a part of this module

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.__dict__["stack"], name)
        # Some heads stand on a part of the stack.
        if isinstance(attribute, PreTrainedModel):
            return _Given(attribute)
        if isinstance(attribute, nn.Module):
            return _without_gradient(attribute)
        return _detached(attribute) if isinstance(attribute, nn.Parameter) else attribute

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Output:
        return _Output(last_hidden_state=inputs_embeds)
