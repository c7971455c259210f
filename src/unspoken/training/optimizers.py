"""The optimiser of a stage, by the recipe's choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedModel

from unspoken import distributed
from unspoken.machine import Precision
from unspoken.training.adapters import keeps_experts
from unspoken.training.parts import Optimizer


class Muon(torch.optim.Muon):
    """torch's Muon with a choice of type for its Newton-Schulz iteration, on full matrices where FSDP shards them.

    torch always iterates in bfloat16. A processor that emulates bfloat16 takes a hundred times as long for it, and its
    rounding makes two processes differ from one.

    Args:
        matrices: weights ``[A, B]``.
        dtype: of the iteration.
        how: torch's own settings.
    """

    def __init__(self, matrices: list[nn.Parameter], *, dtype: torch.dtype, **how: Any) -> None:
        super().__init__(matrices, **how)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; matrices of one shape are orthogonalised together."""
        assert closure is None
        for group in self.param_groups:
            weights: list[Tensor] = []
            gradients: list[Tensor] = []
            buffers: list[Tensor] = []
            self._init_group(group, weights, gradients, buffers)
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for weight, gradient, buffer in zip(weights, gradients, buffers, strict=True):
                buffer.lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                by_shape.setdefault(weight.shape, []).append((weight, update))
            for shape, moved in by_shape.items():
                matrices = torch.stack([distributed.full_tensor(update).to(self.dtype) for _, update in moved])
                updates = orthogonal(matrices, group["ns_coefficients"], group["ns_steps"], group["eps"])
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for (weight, _), update in zip(moved, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(_placed_as(weight, update), alpha=-rate)


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Newton-Schulz iteration of Muon on ``[N, A, B]`` matrices: singular values move towards 1, vectors stay.

    Each step applies a quintic polynomial to the singular values; ``eps`` is the smallest norm to divide by.
    """
    linear, cubic, quintic = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    moved = matrices.mT if tall else matrices
    moved = moved / moved.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = moved @ moved.mT
        change = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        moved = torch.baddbmm(moved, change, moved, beta=linear)
    return moved.mT if tall else moved


def _placed_as(weight: Tensor, update: Tensor) -> Tensor:
    """An update of a whole matrix, sharded as its weight is."""
    if not isinstance(weight, DTensor):
        return update
    return distribute_tensor(update, weight.device_mesh, weight.placements)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on the matrices of the blocks and AdamW on the rest, as one optimiser.

    The parameter groups are shared with the inner optimisers, so that a learning-rate schedule reaches both.

    Args:
        precision: of Muon's matrix products.
    """

    def __init__(
        self, matrices: list[nn.Parameter], rest: list[nn.Parameter], settings: Optimizer, precision: Precision
    ) -> None:
        how: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        plain = precision == "bf16" and not distributed.sharded()
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, **how)
            if plain
            else Muon(matrices, dtype=torch.bfloat16 if precision == "bf16" else torch.float32, **how),
            torch.optim.AdamW(
                rest, lr=settings.lr_rest or settings.lr, weight_decay=0.0, betas=_pair(settings), fused=True
            ),
        ]
        super().__init__([{"params": [*matrices, *rest]}], {})
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for optimizer in self.parts for group in optimizer.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of each."""
        assert closure is None
        for optimizer in self.parts:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of both, in order."""
        return {"parts": [optimizer.state_dict() for optimizer in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        for optimizer, state in zip(self.parts, state_dict["parts"], strict=True):
            optimizer.load_state_dict(state)
        self._share_groups()


def _pair(settings: Optimizer) -> tuple[float, float]:
    first, second = settings.betas
    return first, second


def matrices_and_rest(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters, each list in the order of the model.

    Returns:
        Matrices of blocks and of adapters, among them experts ``[E, A, B]`` that are kept in one tensor; and the rest:
        tables of tokens or positions, heads, gains and biases.
    """
    tables = {id(weight) for table in _tables(model) for weight in table.parameters()}
    matrices: set[int] = set()
    for module in model.modules():
        # Some families have a gain, or a bias, of two axes: for every head, or every expert.
        is_norm = "norm" in type(module).__name__.lower()
        for name, weight in module.named_parameters(recurse=False):
            plain = weight.ndim == 2 and not is_norm and not name.endswith("bias")
            if (plain or keeps_experts(module, weight)) and id(weight) not in tables:
                matrices.add(id(weight))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return (
        [parameter for parameter in trained if id(parameter) in matrices],
        [parameter for parameter in trained if id(parameter) not in matrices],
    )


def _tables(model: nn.Module) -> Iterator[nn.Module]:
    """Embeddings, and the heads of all language models inside; not the adapters of either.

    Families name them as they like, so names do not tell.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            yield module
        # A Talker is not a transformers model, but has a head.
        heads = [getattr(module, "lm_head", None)]
        if isinstance(module, PreTrainedModel):
            heads.append(module.get_output_embeddings())
        for head in heads:
            if head is not None:
                yield head.get_base_layer() if isinstance(head, BaseTunerLayer) else head


def build_optimizer(model: nn.Module, settings: Optimizer, precision: Precision) -> torch.optim.Optimizer:
    """The optimiser of all trainable parameters: matrices of the blocks, and the rest (tables, heads, gains).

    Args:
        precision: that the stage trains in; Muon follows it.

    Raises:
        ValueError: Muon is asked for, and experts are kept in one tensor.
    """
    matrices, rest = matrices_and_rest(model)
    if settings.name == "muon" and any(weight.ndim != 2 for weight in matrices):
        # AdamW could move them, but neither at Muon's rate nor at that of a table.
        raise ValueError(
            "optimizer.name is muon, which moves single matrices, and the model keeps those of all experts in one "
            "tensor; set optimizer.name to adamw, with optimizer.lr 0.001 or less"
        )
    if settings.name == "muon":
        return MuonWithAdamW(matrices, rest, settings, precision)
    groups: list[dict[str, Any]] = [
        {"params": matrices, "lr": settings.lr, "weight_decay": settings.weight_decay},
        {"params": rest, "lr": settings.lr_rest or settings.lr, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=_pair(settings), fused=True)


def warmed_up(scheduler: LRScheduler, settings: Optimizer) -> LRScheduler:
    """The transformers schedule, changed in place to the warm-up of the settings."""
    if settings.warmup == "logarithmic":
        assert isinstance(scheduler, LambdaLR)
        scheduler.lr_lambdas = [_logarithmic(factor, settings.warmup_steps) for factor in scheduler.lr_lambdas]
    return scheduler


def _logarithmic(factor: Callable[[int], float], steps: int) -> Callable[[int], float]:
    """A schedule whose first ``steps`` rise as the logarithm of the step; where there is only one, its rate is 0."""
    return lambda step: math.log(max(step, 1)) / math.log(max(steps, 2)) if step < steps else factor(step)
