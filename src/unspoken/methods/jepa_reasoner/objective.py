"""The losses of stages 2 and 3 of JEPA-Reasoner (arXiv 2512.19171, sections 4.2 and 4.3).

Axes: B batch, T tokens, S supervised positions, D latent width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unspoken import distributed
from unspoken.methods.jepa_reasoner.stages import SST
from unspoken.methods.rollouts import random_spans
from unspoken.places import at, padding_mask, places_of


def sst_loss(predicted: Float[Tensor, "S D"], target: Float[Tensor, "S D"], k: float) -> Float[Tensor, ""]:
    """``k (1 - cos)``, mean over positions, between 0 and 2k. Takes vectors of any norm."""
    return k * (1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1)).mean()


def best_constant_loss(target: Float[Tensor, "S D"], k: float) -> Float[Tensor, ""]:
    """Loss of the one vector that fits all targets best: the direction of their mean.

    A model with this loss has learned nothing about its input; with an anisotropic table the loss can still be very
    small (JEPA-Reasoner, section 4.2).
    """
    mean_D = distributed.all_reduce_mean(F.normalize(target.float(), dim=-1).mean(dim=0), len(target))
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


def sst_places(objective: SST, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch that is still on the host, with the places of its supervised latents and the tokens they stand for.

    ``able`` marks the positions that can be read as the model's own latents.
    """
    real, answer = batch["attention_mask"].bool(), batch["answer_mask"]
    chosen = real[:, 1:] & real[:, :-1]
    if objective.positions == "answer":
        chosen = chosen & answer[:, 1:]
    return {
        **batch,
        "attention_mask": padding_mask(batch["attention_mask"]),
        "places": places_of(F.pad(chosen, (0, 1))),
        "targets": batch["input_ids"][:, 1:][chosen],
        "able": real & (answer if objective.positions == "answer" else F.pad(real[:, :-1], (1, 0))),
    }


def sst_inputs(objective: SST, batch: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the Reasoner's forward; a pass without gradients reads tokens alone."""
    given: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if not objective.rollout_latents or not torch.is_grad_enabled():
        return given
    able = (batch if "able" in batch else sst_places(objective, batch))["able"]
    return {**given, "own": random_spans(able, objective.rollout_latents), "rollout_passes": objective.rollout_passes}


def stage_loss(objective: SST, outputs: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and the best constant vector's loss, from the Reasoner's teacher-forced pass.

    No gradient flows into the target table.
    """
    if "places" not in batch:
        batch = sst_places(objective, batch)
    target_SD = F.embedding(batch["targets"], distributed.full_tensor(outputs.target_table.detach()))
    loss = distributed.rank_weighted_mean(
        sst_loss(at(outputs.latents, batch["places"]), target_SD, objective.k), len(target_SD)
    )
    return loss, {"sst_loss": loss.detach(), "best_constant_loss": best_constant_loss(target_SD, objective.k)}


def talker_places(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch that is still on the host, with the places of its supervised outputs once they are packed to the left.

    ``length`` is the number of columns of the packed outputs.
    """
    chosen = batch["answer_mask"][:, 1:] & batch["attention_mask"][:, :-1].bool()
    counts_B = chosen.sum(dim=1)
    length = int(counts_B.max())
    places = places_of(torch.arange(length, device=chosen.device) < counts_B[:, None])
    return {**batch, "attention_mask": padding_mask(batch["attention_mask"]), "length": length, "places": places}


def talker_loss(outputs: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over answer tokens, in nats per token."""
    places = batch["places"] if "places" in batch else places_of(outputs.mask)
    tokens = at(outputs.tokens, places)
    loss = distributed.rank_weighted_mean(F.cross_entropy(at(outputs.logits, places).float(), tokens), len(tokens))
    return loss, {"talker_loss": loss.detach()}
