"""LoRA on the stacks that a stage trains, and the plain model after merging."""

from __future__ import annotations

import copy
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unspoken.methods.method import Objective
from unspoken.training.parts import LoRA


def add_adapters(model: PreTrainedModel, objective: Objective, settings: LoRA) -> None:
    """Put adapters on the linear layers of every stack that a stage adapts, in place; weights below them are frozen.

    With ``settings.table``, the input table of the objective's ``adapted_table`` gets adapters as well.

    Raises:
        ValueError: adapters would not reach every expert, or would be merged into a shared weight more than once.
    """
    stacks: list[Any] = objective.adapted(model)
    with_table = objective.adapted_table if settings.table else None
    for stack in stacks:
        layers = [
            name
            for name, module in stack.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not stack.get_output_embeddings()
        ]
        if with_table is not None and stack is model.get_submodule(with_table):
            table = stack.get_input_embeddings()
            layers += [name for name, module in stack.named_modules() if module is table]
        _require_reach(stack, layers)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=2 * settings.rank if settings.alpha is None else settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=layers,
            # The GPT-2 family keeps its matrices the other way round.
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in stack.modules()),
        )
        inject_adapter_in_model(config, stack)
    objective.after_adapters(model)


def _require_reach(stack: PreTrainedModel, layers: list[str]) -> None:
    """Refuse adapters that would leave experts as they are, or change a weight twice, by a ValueError."""
    name = type(stack).__name__
    if len({id(stack.get_submodule(layer).weight) for layer in layers}) < len(layers):
        raise ValueError(
            f"lora: blocks of {name} share weights, so merging every block's LoRA would change them several times; "
            "set lora to null"
        )
    for module in stack.modules():
        for weight in module.parameters(recurse=False):
            if keeps_experts(module, weight):
                raise ValueError(
                    f"lora: {name} keeps all experts of a block in one tensor ({type(module).__name__}), which "
                    "adapters do not reach; set lora to null"
                )


def keeps_experts(module: nn.Module, weight: nn.Parameter) -> bool:
    """Whether a weight of a module is a matrix ``[E, A, B]`` for each of its experts."""
    # Kernels of convolutions have as many axes; a vector for each place of a window has one of length 1.
    return weight.ndim == 3 and min(weight.shape) > 1 and not isinstance(module, nn.modules.conv._ConvNd)


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A model with its adapters merged into the weights; the model in training is left as it is."""
    if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        return model
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(plain.get_submodule(parent), attribute, module.get_base_layer())
    if parametrize.is_parametrized(plain):  # a weight that moves with an adapted one
        # torch's own removal would change the class, which the model in training has too.
        values = {name: getattr(plain, name).detach() for name in plain.parametrizations}
        plain.__class__ = type(plain).__bases__[0]
        del plain.parametrizations
        for name, value in values.items():
            plain.register_parameter(name, nn.Parameter(value))
    return plain
