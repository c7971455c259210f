"""What the stages of Latent-SFT minimise (sections 5.2 and 7.1).

Axes: N latents and M supervised tokens of all rows together, K entries of a superposition, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unspoken import parallel
from unspoken.methods.latent_sft.layout import Kind, Rows
from unspoken.methods.latent_sft.model import LatentSFTOutput
from unspoken.methods.settings.latent_sft import Autonomy, Compress

PIECE = 1024  # positions whose scores over the vocabulary exist at one time


def _in_pieces(function: Any, *tensors: Tensor) -> Tensor:
    """A loss per position, made a piece at a time, forward and backward, so that no ``[M, V]`` tensor is kept."""
    if len(tensors[0]) <= PIECE:
        result: Tensor = function(*tensors)
        return result
    pieces = zip(*(tensor.split(PIECE) for tensor in tensors), strict=True)
    return torch.cat([checkpoint(function, *piece, use_reentrant=False) for piece in pieces])


def token_losses(
    hidden: Float[Tensor, "M D"], head: Float[Tensor, "V D"], tokens: Int[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """Cross-entropy of each token, in nats."""

    def piece(hidden: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy((hidden @ head.T.to(hidden.dtype)).float(), tokens, reduction="none")

    return _in_pieces(piece, hidden, tokens)


def divergences(
    hidden: Float[Tensor, "N D"], head: Float[Tensor, "V D"], weights: Float[Tensor, "N K"], ids: Int[Tensor, "N K"]
) -> Float[Tensor, " N"]:
    """``KL(teacher || student)`` of each latent, in nats; the student is normalised over the whole vocabulary."""

    def piece(hidden: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        student = F.log_softmax((hidden @ head.T.to(hidden.dtype)).float(), dim=-1).gather(-1, ids)
        return (torch.special.xlogy(weights, weights) - weights * student).sum(dim=-1)

    return _in_pieces(piece, hidden, weights.float(), ids)


def compress_loss(
    objective: Compress, outputs: LatentSFTOutput, batch: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean cross-entropy of what the latents must predict, in nats."""
    losses, kinds = _supervised(outputs, batch)
    terms = {"chunk_loss": _mean(losses, kinds == Kind.TEXT), "final_loss": _mean(losses, kinds == Kind.FINAL)}
    if objective.mean == "tokens":
        loss = parallel.balanced(losses.mean(), len(losses))
    else:
        loss = parallel.balanced(*_mean_of_chunks(losses, batch["decoder"]))
    if objective.hint:
        hints = _hints(outputs, batch["decoder"])
        hint = parallel.balanced(hints.mean(), len(hints))
        loss, terms["hint_loss"] = loss + objective.hint * hint, hint.detach()
    return loss, terms


def autonomy_loss(
    objective: Autonomy, outputs: LatentSFTOutput, batch: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    """``ce_weight * CE + kl_weight * KL``: CE a mean over tokens, KL over each row's slots and then over rows.

    Without a vocabulary step, the squared distance of unit vectors takes the place of KL (open point 30, ours).
    """
    assert outputs.before_slots is not None and outputs.head is not None
    losses, _ = _supervised(outputs, batch)
    spoken = parallel.balanced(losses.mean(), len(losses))
    if batch["ids"] is None:
        taught = F.normalize(batch["weights"].float(), dim=-1)
        slots = (F.normalize(outputs.before_slots.float(), dim=-1) - taught).square().sum(dim=-1)
    else:
        slots = divergences(outputs.before_slots, outputs.head, batch["weights"], batch["ids"])
    counts = batch["decoder"].slots.sum(dim=1)
    each = torch.repeat_interleave(1.0 / counts.clamp(min=1), counts)
    thinking = (counts > 0).sum()
    silent = parallel.balanced((slots * each).sum() / thinking.clamp(min=1), thinking)
    loss = objective.ce_weight * spoken + objective.kl_weight * silent
    return loss, {"token_loss": spoken.detach(), "latent_loss": silent.detach()}


def _supervised(outputs: LatentSFTOutput, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Loss and kind of every supervised token."""
    assert outputs.before_targets is not None and outputs.head is not None
    rows = batch["decoder"]
    chosen = rows.target[:, 1:]
    losses = token_losses(outputs.before_targets, outputs.head, rows.ids[:, 1:][chosen])
    return losses, rows.kind[:, 1:][chosen]


def _hints(outputs: LatentSFTOutput, rows: Rows) -> Float[Tensor, " M"]:
    """Cross-entropy of the tokens of each chunk, and of the first behind the chain, under the latent before them."""
    assert outputs.summaries is not None and outputs.head is not None
    behind_slot = F.pad(rows.slots[:, :-1], (1, 0))
    chosen = rows.target & ((rows.kind == Kind.TEXT) | behind_slot)
    latest_BT = rows.slots.flatten().cumsum(dim=0).view_as(rows.slots) - 1
    return token_losses(outputs.summaries[latest_BT[chosen]], outputs.head, rows.ids[chosen])


def _mean_of_chunks(losses: Float[Tensor, " M"], rows: Rows) -> tuple[Tensor, Tensor]:
    """The paper's weighting: every latent of a row counts alike, however many tokens it must predict.

    Returns:
        The mean, and the number of rows that it was taken over.
    """
    row_M, place_M = rows.target[:, 1:].nonzero(as_tuple=True)
    # What the last latent predicts, the end marker and the answer, has chunk number 0 and is a group of its own.
    pairs = torch.stack([row_M, rows.chunk[:, 1:][row_M, place_M]], dim=1)
    groups_GP, group_M = pairs.unique(dim=0, return_inverse=True)
    in_group = torch.bincount(group_M)
    in_row = torch.bincount(groups_GP[:, 0])
    judged = (in_row > 0).sum()
    weight_M = 1.0 / (in_group[group_M] * in_row[row_M] * judged)
    return (losses * weight_M).sum(), judged


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    count = chosen.sum()
    return parallel.balanced((values * chosen).sum().detach() / count.clamp(min=1), count)
