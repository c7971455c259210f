"""The first blocks of a model, without those above them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unspoken.backbone.modeling import UnspokenModel


@torch.no_grad()
def require_same_blocks(full: PreTrainedModel, cut: PreTrainedModel) -> None:
    """Refuse first blocks that compute something else than in the model that they were cut out of.

    Raises:
        ValueError: a block depends on how many there are, or the blocks are not found.
    """
    if isinstance(cut, UnspokenModel) or cut.device.type == "meta":
        return
    count = getattr(cut.config, "num_hidden_layers", None)
    if count is None or count == full.config.num_hidden_layers:
        return
    inputs = cut.get_input_embeddings()(torch.arange(3, 9)[None])
    there, here = (_after_block(model, count, inputs.clone()) for model in (full, cut))
    if not torch.allclose(there, here, rtol=1e-3, atol=1e-3 * float(there.abs().max())):
        raise ValueError(
            f"the first {count} blocks of {type(full).__name__} compute something else without those above them; "
            "set blocks to null, or take another model"
        )


def _after_block(model: PreTrainedModel, count: int, inputs: Tensor) -> Tensor:
    """Outputs of a block, counted from 1, for some inputs."""
    size = model.config.num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == size]
    if not lists:
        raise ValueError(
            f"the blocks of {type(model).__name__} are not found, so they cannot be counted; set blocks to null"
        )
    captured: list[Tensor] = []

    def keep(_block: nn.Module, _inputs: object, outputs: Tensor | tuple[Tensor, ...]) -> None:
        captured.append(outputs if isinstance(outputs, Tensor) else outputs[0])

    training = model.training
    hook = lists[0][count - 1].register_forward_hook(keep)
    try:
        model.eval()(inputs_embeds=inputs, use_cache=False)
    finally:
        hook.remove()
        model.train(training)
    return captured[0]
