"""The losses of stages 2 and 3 (sections 4.2 and 4.3).

Axes: B batch, T tokens, S supervised positions, D latent width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from unspoken import parallel
from unspoken.methods.settings.jepa_reasoner import SST


def sst_loss(predicted: Float[Tensor, "S D"], target: Float[Tensor, "S D"], k: float) -> Float[Tensor, ""]:
    """``k (1 - cos)``, mean over positions, between 0 and 2k. Takes vectors of any norm."""
    return k * (1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1)).mean()


def best_constant_loss(target: Float[Tensor, "S D"], k: float) -> Float[Tensor, ""]:
    """Loss of the one vector that fits all targets best: the direction of their mean.

    A model that is no better has learned nothing about its input, however small its loss; with an anisotropic table
    that can be very small (section 4.2).
    """
    mean_D = parallel.overall(F.normalize(target.float(), dim=-1).mean(dim=0), len(target))
    return k * (1 - mean_D.norm())


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


def sst_inputs(objective: SST, batch: dict[str, Tensor]) -> dict[str, Any]:
    """What the Reasoner's forward takes out of a batch; what is measured without a gradient reads tokens alone."""
    given: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if not objective.own_latents or not torch.is_grad_enabled():
        return given
    return {**given, "own": _own(objective, batch), "own_passes": objective.own_passes}


def _own(objective: SST, batch: dict[str, Tensor]) -> Bool[Tensor, "B T"]:
    """A stretch of neighbours in every row, among the positions that could be latents of a rollout."""
    real = batch["attention_mask"].bool()
    able = real & (batch["answer_mask"] if objective.positions == "answer" else F.pad(real[:, :-1], (1, 0)))
    draws_B2 = parallel.own_rows(len(real), lambda rows: torch.rand(rows, 2, device=real.device))
    count_B = 1 + (draws_B2[:, 0] * objective.own_latents).long()
    first_B = (draws_B2[:, 1] * (able.sum(dim=1) - count_B + 1).clamp(min=1)).long()
    place_BT = able.cumsum(dim=1) - 1
    return able & (place_BT >= first_B[:, None]) & (place_BT < (first_B + count_B)[:, None])


def stage_loss(objective: SST, outputs: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and the best constant vector's loss, from the Reasoner's teacher-forced pass.

    No gradient flows into the target table.
    """
    real = batch["attention_mask"].bool()
    chosen = real[:, 1:] & real[:, :-1]
    if objective.positions == "answer":
        chosen = chosen & batch["answer_mask"][:, 1:]
    target_SD = F.embedding(batch["input_ids"][:, 1:][chosen], parallel.whole(outputs.target_table.detach()))
    loss = parallel.balanced(sst_loss(outputs.latents[:, :-1][chosen], target_SD, objective.k), len(target_SD))
    return loss, {"sst_loss": loss.detach(), "best_constant_loss": best_constant_loss(target_SD, objective.k)}


def talker_loss(outputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over answer tokens, in nats a token."""
    tokens = outputs.tokens[outputs.mask]
    loss = parallel.balanced(F.cross_entropy(outputs.logits[outputs.mask].float(), tokens), len(tokens))
    return loss, {"talker_loss": loss.detach()}
