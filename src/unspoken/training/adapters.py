"""LoRA on the parts of a model that a stage trains, and the plain model that the stage publishes."""

from __future__ import annotations

import copy

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unspoken.methods.coconut.model import CoconutModel
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.training.parts import LoRA


def add_adapters(model: PreTrainedModel, settings: LoRA) -> None:
    """Put adapters on the linear layers of every trainable part, in place; the weights below them are frozen.

    Of a JEPA-Reasoner the table is still trained in full: its target is a moving average of the online table, and an
    average of rows that stand still would switch half of the method off.

    Raises:
        ValueError: adapters would not reach every expert, or would be merged into a shared weight more than once.
    """
    parts = [model]
    if isinstance(model, LatentSFTModel):
        halves = [model.decoder.base_model, *([model.encoder] if model.config.has_encoder else [])]
        parts = [half for half in halves if any(parameter.requires_grad for parameter in half.parameters())]
    if isinstance(model, CoconutModel):
        parts = [model.decoder.base_model]
    if isinstance(model, JepaReasonerModel):
        parts = [model.backbone]
    for part in parts:
        layers = [
            name
            for name, module in part.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not part.get_output_embeddings()
        ]
        _require_reach(part, layers)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=2 * settings.rank,
            lora_dropout=settings.dropout,
            target_modules=layers,
            # The GPT-2 family keeps its matrices the other way round.
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in part.modules()),
        )
        for parameter in part.parameters():
            parameter.requires_grad_(False)
        inject_adapter_in_model(config, part)
    if isinstance(model, JepaReasonerModel):
        model.backbone.get_input_embeddings().requires_grad_(True)


def _require_reach(part: PreTrainedModel, layers: list[str]) -> None:
    """Refuse adapters that would leave experts as they are, or change a weight twice.

    Raises:
        ValueError: see above.
    """
    name = type(part).__name__
    if len({id(part.get_submodule(layer).weight) for layer in layers}) < len(layers):
        raise ValueError(
            f"lora: blocks of {name} share weights, into which each block's adapters would be merged; set lora to null"
        )
    for module in part.modules():
        for weight in module.parameters(recurse=False):
            # Kernels of convolutions have as many axes; a vector for each place of a window has one of length 1.
            if weight.ndim == 3 and min(weight.shape) > 1 and not isinstance(module, nn.modules.conv._ConvNd):
                raise ValueError(
                    f"lora: {name} keeps all experts of a block in one tensor ({type(module).__name__}), which "
                    "adapters do not reach; set lora to null"
                )


def published(model: PreTrainedModel) -> PreTrainedModel:
    """What a stage's folder holds: adapters merged into the weights.

    Of stage 2 and of Coconut it is the plain causal language model.

    The model in training is left as it is.
    """
    if isinstance(model, CoconutModel) or (isinstance(model, LatentSFTModel) and not model.config.has_encoder):
        model = model.decoder
    if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        return model
    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(merged.get_submodule(parent), attribute, module.get_base_layer())
    return merged
