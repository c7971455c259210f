"""The losses of stages 2 and 3 (sections 4.2 and 4.3).

Axes: B batch, T tokens, S supervised positions, D latent width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def sst_loss(predicted: Float[Tensor, "S D"], target: Float[Tensor, "S D"], k: float) -> Float[Tensor, ""]:
    """``k (1 - cos)``, mean over positions, between 0 and 2k. Takes vectors of any norm."""
    return k * (1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1)).mean()


def best_constant_loss(target: Float[Tensor, "S D"], k: float) -> Float[Tensor, ""]:
    """Loss of the one vector that fits all targets best: the direction of their mean.

    A model that is no better has learned nothing about its input, however small its loss; with an anisotropic table
    that can be very small (section 4.2).
    """
    return k * (1 - F.normalize(target.float(), dim=-1).mean(dim=0).norm())


def effective_rank(table: Float[Tensor, "V D"]) -> float:
    """Exponential of the entropy of the singular values of the row directions (Roy and Vetterli, 2007)."""
    weights = torch.linalg.svdvals(F.normalize(table.float(), dim=-1))
    weights = weights / weights.sum()
    return float(torch.exp(-(weights * weights.clamp(min=1e-12).log()).sum()))


def collapsed(start: dict[str, float], now: dict[str, float]) -> bool:
    """The loss fell and the table lost half its rank, yet no more latents find their row: silent collapse."""
    return (
        now["sst_loss"] < start["sst_loss"]
        and now["effective_rank"] < 0.5 * start["effective_rank"]
        and now["nearest_row"] <= start["nearest_row"] + 0.02
    )


@dataclass(frozen=True, kw_only=True)
class SST:
    """Self-supervised training of the Reasoner towards an EMA copy of its own table.

    Attributes:
        k: weight of the loss. Invisible to Adam but for clipping and epsilon.
        momentum: of the target table, applied once after every optimiser step.
        positions: ``"answer"`` (the paper's tree search: the route) or ``"all"``.
        unit_tokens: table rows enter the first block normalised, see `JepaReasonerConfig.unit_tokens`; null feeds them
            as in the training before, so rows of a pretrained model enter as they are.
    """

    kind: ClassVar[str] = "sst"

    k: float = 4.0
    momentum: float = 0.98
    positions: Literal["all", "answer"] = "answer"
    unit_tokens: bool | None = None

    def __post_init__(self) -> None:
        if self.k <= 0:
            raise ValueError(f"k is {self.k}; it must be positive")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum is {self.momentum}; it must lie between 0 and 1")

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """What the Reasoner's forward takes out of a batch."""
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def __call__(self, outputs: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and the best constant vector's loss, from the Reasoner's teacher-forced pass.

        No gradient flows into the target table.
        """
        real = batch["attention_mask"].bool()
        chosen = real[:, 1:] & real[:, :-1]
        if self.positions == "answer":
            chosen = chosen & batch["answer_mask"][:, 1:]
        target_SD = F.embedding(batch["input_ids"][:, 1:][chosen], outputs.target_table.detach())
        loss = sst_loss(outputs.latents[:, :-1][chosen], target_SD, self.k)
        return loss, {"sst_loss": loss.detach(), "best_constant_loss": best_constant_loss(target_SD, self.k)}


@dataclass(frozen=True, kw_only=True)
class TalkerLoss:
    """Token cross-entropy of the Talker on the latents of the frozen Reasoner's teacher-forced pass (point 14)."""

    kind: ClassVar[str] = "talker"

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """What the pair's forward takes out of a batch."""
        return {key: batch[key] for key in ("input_ids", "attention_mask", "answer_mask")}

    def __call__(self, outputs: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over answer tokens, in nats a token."""
        loss = F.cross_entropy(outputs.logits[outputs.mask].float(), outputs.tokens[outputs.mask])
        return loss, {"talker_loss": loss.detach()}
