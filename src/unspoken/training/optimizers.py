"""The optimiser of a stage, by the recipe's choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from unspoken.training.parts import Optimizer


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on the matrices of the blocks and AdamW on the rest, behind one interface.

    Both inner optimisers are torch's own. The parameter groups are shared with them, so that a learning-rate schedule
    reaches both.
    """

    def __init__(self, matrices: list[nn.Parameter], rest: list[nn.Parameter], settings: Optimizer) -> None:
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=settings.lr, weight_decay=settings.weight_decay),
            torch.optim.AdamW(
                rest, lr=settings.lr_rest or settings.lr, weight_decay=0.0, betas=_pair(settings), fused=True
            ),
        ]
        super().__init__([{"params": [*matrices, *rest]}], {})
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of each."""
        assert closure is None
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of both, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def _pair(settings: Optimizer) -> tuple[float, float]:
    first, second = settings.betas
    return first, second


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix of a block, and not a table, a head or a gain."""
    return parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """Sort the trainable parameters into matrices of the blocks and the rest (tables, heads, gains)."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        (matrices if is_matrix(name, parameter) else rest).append(parameter)
    if settings.name == "muon":
        return MuonWithAdamW(matrices, rest, settings)
    groups: list[dict[str, Any]] = [
        {"params": matrices, "lr": settings.lr, "weight_decay": settings.weight_decay},
        {"params": rest, "lr": settings.lr_rest or settings.lr, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=_pair(settings), fused=True)
