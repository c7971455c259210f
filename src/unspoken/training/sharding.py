"""FSDP2: every rank keeps a shard of the weights, gradients, optimiser state and target table.

Accelerate's own wrapping gathers the embedding table only while that module is called, but our models also read the
table directly. Here everything outside the blocks is one group, gathered during the whole pass. What is written to disk
is not sharded, so any number of ranks can read it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from unspoken import distributed
from unspoken.methods.method import Objective
from unspoken.training.optimizers import MuonWithAdamW


def blank_of(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its weights, from which `assembled` makes a full one."""
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, memo)


def shard(model: PreTrainedModel, objective: Objective) -> None:
    """Shard the weights over the ranks, in place: a group for each block, and one for the rest."""
    modules = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    names = {name for module in modules for name in module._no_split_modules or ()}
    for block in model.modules():
        if type(block).__name__ in names:
            fully_shard(block)
    fully_shard(model)
    objective.after_sharding(model)


@torch.no_grad()
def assembled(model: PreTrainedModel, blank: PreTrainedModel) -> PreTrainedModel:
    """A full copy of a sharded model, on every rank; all ranks must call this."""
    memo: dict[int, Any] = {}
    for weight, empty in zip(model.parameters(), blank.parameters(), strict=True):
        memo[id(empty)] = nn.Parameter(distributed.full_tensor(weight).clone(), weight.requires_grad)
    for buffer, empty in zip(model.buffers(), blank.buffers(), strict=True):
        memo[id(empty)] = distributed.full_tensor(buffer).clone()
    return copy.deepcopy(blank, memo)


def gathered_state(state: Any) -> Any:
    """An optimiser's state, nested containers of tensors, with every tensor in full and on the CPU."""
    if isinstance(state, dict):
        return {key: gathered_state(value) for key, value in state.items()}
    if isinstance(state, list):
        return [gathered_state(value) for value in state]
    return distributed.full_tensor(state).cpu() if isinstance(state, torch.Tensor) else state


def scattered_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The reverse of `gathered_state`: tensors that belong to a weight are sharded as the weight is."""
    if isinstance(optimizer, MuonWithAdamW):
        pairs = zip(state["parts"], optimizer.parts, strict=True)
        return {"parts": [scattered_state(inner_state, inner) for inner_state, inner in pairs]}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    scattered = {
        number: {
            name: distribute_tensor(value, weights[number].device_mesh, weights[number].placements)
            if isinstance(weights[number], DTensor) and value.shape == weights[number].shape
            else value
            for name, value in entries.items()
        }
        for number, entries in state["state"].items()
    }
    return {**state, "state": scattered}
