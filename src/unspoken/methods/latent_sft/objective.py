"""What the stages of Latent-SFT minimise (docs/methods/latent_sft.md).

Axes: N latents and M supervised tokens of all rows together, K entries of a superposition, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unspoken import distributed
from unspoken.methods.latent_sft.model import LatentSFTOutput
from unspoken.methods.latent_sft.stages import Stage1, Stage2
from unspoken.methods.rollouts import random_spans
from unspoken.methods.rows import Kind, Rows
from unspoken.places import at, places_of
from unspoken.reasoning.superposition import Head, in_pieces, positions_at_once, scorer

_KINDS = {"chunk": Kind.TEXT, "final": Kind.FINAL}  # of supervised tokens


def token_losses(hidden: Float[Tensor, "M D"], head: Head, tokens: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Cross-entropy of each token, in nats."""

    scores = scorer(head, hidden)

    def piece(hidden: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(scores(hidden).float(), tokens, reduction="none")

    return in_pieces(piece, positions_at_once(len(head)), hidden, tokens)


def divergences(
    hidden: Float[Tensor, "N D"], head: Head, weights: Float[Tensor, "N K"], ids: Int[Tensor, "N K"]
) -> Float[Tensor, " N"]:
    """``KL(teacher || student)`` of each latent, in nats; the student is normalised over the whole vocabulary.

    ``weights`` are the teacher's; those of labels in bfloat16 do not sum to 1 before they are normalised here.
    """

    scores = scorer(head, hidden)
    weights = F.normalize(weights.float(), p=1, dim=-1)

    def piece(hidden: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        student = F.log_softmax(scores(hidden).float(), dim=-1).gather(-1, ids)
        return (torch.special.xlogy(weights, weights) - weights * student).sum(dim=-1)

    return in_pieces(piece, positions_at_once(len(head)), hidden, weights, ids)


def stage1_places(objective: Stage1, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch that is still on the host, with counts that the loss would otherwise make on the device."""
    added: dict[str, Any] = {}
    if objective.mean == "chunks":
        added["target_weights"], added["supervised_rows"] = _weights_of_chunks(batch["decoder"])
    if objective.hint:
        added["hinted_at"], added["hinted_by"] = _hinted(batch["decoder"])
    return {**batch, **added}


def stage1_counts(batch: dict[str, Any]) -> dict[str, int | Tensor]:
    """Items of a batch with its places, see `Objective.counts`."""
    rows = batch["decoder"]
    kinds = at(rows.kind, rows.targets_at)
    counts: dict[str, int | Tensor] = {"tokens": len(kinds), "latents": len(rows.slots_at)}
    counts |= {name: (kinds == kind).sum() for name, kind in _KINDS.items()}
    if "supervised_rows" in batch:
        counts["rows"] = batch["supervised_rows"]
    return counts | ({"hints": len(batch["hinted_at"])} if "hinted_at" in batch else {})


def stage2_places(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch that is still on the host, with the weight of every latent in the mean over its row."""
    rows = batch["decoder"]
    counts_B = torch.tensor(rows.latents, device=rows.ids.device)
    weights_N = torch.repeat_interleave(1.0 / counts_B.clamp(min=1), counts_B)
    return {**batch, "slot_weights": weights_N, "rows_with_latents": (counts_B > 0).sum()}


def stage1_loss(objective: Stage1, outputs: LatentSFTOutput, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy of what the latents must predict, in nats."""
    losses, kinds = _supervised(outputs, batch)
    terms = {f"{name}_loss": _mean(losses, kinds == kind, name) for name, kind in _KINDS.items()}
    if objective.mean == "tokens":
        loss = distributed.rank_weighted_mean(losses.mean(), len(losses))
    else:
        counted = batch if "target_weights" in batch else stage1_places(objective, batch)
        loss = distributed.rank_weighted_mean(
            (losses * counted["target_weights"]).sum(), counted["supervised_rows"], "rows"
        )
    if objective.hint:
        counted = batch if "hinted_at" in batch else stage1_places(objective, batch)
        assert outputs.summaries is not None and outputs.head is not None
        tokens = at(batch["decoder"].ids, counted["hinted_at"])
        hints = token_losses(outputs.summaries[counted["hinted_by"]], outputs.head, tokens)
        hint = distributed.rank_weighted_mean(hints.mean(), len(hints), "hints")
        loss, terms["hint_loss"] = loss + objective.hint * hint, hint.detach()
    return loss, terms


def stage2_inputs(objective: Stage2, batch: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the model's forward; a pass without gradients reads labels alone."""
    given = {key: batch[key] for key in ("decoder", "weights", "ids")}
    if not objective.rollout_latents or not torch.is_grad_enabled():
        return given
    rows = batch["decoder"]
    own_N = at(random_spans(rows.slots, objective.rollout_latents), rows.slots_at)
    return {**given, "own": own_N, "rollout_passes": objective.rollout_passes}


def stage2_loss(objective: Stage2, outputs: LatentSFTOutput, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """``ce_weight * CE + kl_weight * KL``: CE a mean over tokens, KL over each row's slots and then over rows.

    Without a vocabulary step, the squared distance of unit vectors takes the place of KL (ours;
    docs/methods/latent_sft.md, open point 30).
    """
    assert outputs.before_slots is not None and outputs.head is not None
    if "slot_weights" not in batch:
        batch = stage2_places(batch)
    losses, _ = _supervised(outputs, batch)
    token_loss = distributed.rank_weighted_mean(losses.mean(), len(losses))
    if batch["ids"] is None:
        taught = F.normalize(batch["weights"].float(), dim=-1)
        slots = (F.normalize(outputs.before_slots.float(), dim=-1) - taught).square().sum(dim=-1)
    else:
        slots = divergences(outputs.before_slots, outputs.head, batch["weights"], batch["ids"])
    rows = batch["rows_with_latents"]
    latent_loss = distributed.rank_weighted_mean(
        (slots * batch["slot_weights"]).sum() / rows.clamp(min=1), rows, "rows_with_latents"
    )
    loss = objective.ce_weight * token_loss + objective.kl_weight * latent_loss
    return loss, {"token_loss": token_loss.detach(), "latent_loss": latent_loss.detach()}


def _supervised(outputs: LatentSFTOutput, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Loss and kind of every supervised token."""
    assert outputs.before_targets is not None and outputs.head is not None
    rows = batch["decoder"]
    losses = token_losses(outputs.before_targets, outputs.head, at(rows.ids, rows.targets_at))
    return losses, at(rows.kind, rows.targets_at)


def _hinted(rows: Rows) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Places of the tokens of each chunk and of the first after the chain, and the latent before each of them."""
    after_slot = F.pad(rows.slots[:, :-1], (1, 0))
    hinted_at = places_of(rows.target & ((rows.kind == Kind.TEXT) | after_slot))
    return hinted_at, rows.slots.flatten().cumsum(dim=0)[hinted_at] - 1


def _weights_of_chunks(rows: Rows) -> tuple[Float[Tensor, " M"], Tensor]:
    """The paper's weighting: every latent of a row has the same weight, however many tokens it must predict.

    Returns:
        Weight of each target, and the number of rows that have any.
    """
    row_M, place_M = rows.target[:, 1:].nonzero(as_tuple=True)
    # The last latent predicts end marker and answer, which have chunk number 0 and so are one group.
    pairs = torch.stack([row_M, rows.chunk[:, 1:][row_M, place_M]], dim=1)
    groups_GP, group_M = pairs.unique(dim=0, return_inverse=True)
    in_group = torch.bincount(group_M)
    in_row = torch.bincount(groups_GP[:, 0])
    supervised_rows = in_row.count_nonzero()
    return 1.0 / (in_group[group_M] * in_row[row_M] * supervised_rows), supervised_rows


def _mean(values: Tensor, chosen: Tensor, of: str) -> Tensor:
    count = chosen.sum()
    return distributed.rank_weighted_mean((values * chosen).sum().detach() / count.clamp(min=1), count, of)
