"""What the stages of Latent-SFT minimise (sections 5.2 and 7.1).

Axes: N latents and M supervised tokens of all rows together, K entries of a superposition, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unspoken import parallel
from unspoken.methods.latent_sft.configuration import LatentShape
from unspoken.methods.latent_sft.layout import Kind, Rows
from unspoken.methods.latent_sft.model import LatentSFTOutput
from unspoken.methods.latent_sft.superposition import Head, Noise, scores

PIECE = 1024  # positions whose scores over the vocabulary exist at one time


def _in_pieces(function: Any, *tensors: Tensor) -> Tensor:
    """A loss per position, made a piece at a time, forward and backward, so that no ``[M, V]`` tensor is kept."""
    if len(tensors[0]) <= PIECE:
        result: Tensor = function(*tensors)
        return result
    pieces = zip(*(tensor.split(PIECE) for tensor in tensors), strict=True)
    return torch.cat([checkpoint(function, *piece, use_reentrant=False) for piece in pieces])


def token_losses(hidden: Float[Tensor, "M D"], head: Head, tokens: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Cross-entropy of each token, in nats."""

    def piece(hidden: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(scores(hidden, head).float(), tokens, reduction="none")

    return _in_pieces(piece, hidden, tokens)


def divergences(
    hidden: Float[Tensor, "N D"], head: Head, weights: Float[Tensor, "N K"], ids: Int[Tensor, "N K"]
) -> Float[Tensor, " N"]:
    """``KL(teacher || student)`` of each latent, in nats; the student is normalised over the whole vocabulary."""

    def piece(hidden: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        student = F.log_softmax(scores(hidden, head).float(), dim=-1).gather(-1, ids)
        return (torch.special.xlogy(weights, weights) - weights * student).sum(dim=-1)

    return _in_pieces(piece, hidden, weights.float(), ids)


@dataclass(frozen=True, kw_only=True)
class Compress:
    """Stage 1: make latents that the decoder can use (section 5).

    Attributes:
        train: which half learns.
        shape: what a latent is; given where a line of stages starts, inherited behind it.
        mean: over all supervised tokens of a batch alike (the published code), or over the tokens of a chunk, then
            over the chunks of a row, then over rows (the paper's formula); see open point 4.
        noise: on the latents while they are learned, as stage 2 puts it on their labels. Ours, off by default: a
            channel with noise makes the encoder choose superpositions that are far from each other, which stage 2 can
            tell apart.
        hint: weight of a second term: cross-entropy of what each latent must predict under its own superposition over
            the whole vocabulary. Ours, off by default: a pretrained model's head says something like it at once; from
            random weights it gives the encoder a code to start from.
    """

    kind: ClassVar[str] = "compress"

    train: Literal["encoder", "decoder", "union"]
    shape: LatentShape | None = None
    mean: Literal["tokens", "chunks"] = "tokens"
    noise: Noise | None = None
    hint: float = 0.0

    def __post_init__(self) -> None:
        if self.hint < 0 or (self.hint and self.train == "decoder"):
            raise ValueError(
                f"hint is {self.hint} where train is {self.train!r}; it is not negative, and only an encoder that "
                "learns can take one"
            )
        if (self.train == "encoder") != (self.shape is not None):
            raise ValueError("give shape where train is 'encoder', and nowhere else: later stages inherit it")

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model's forward takes out of a batch."""
        return {"decoder": batch["decoder"], "encoder": batch["encoder"], "noise": self.noise}

    def __call__(self, outputs: LatentSFTOutput, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of what the latents must predict, in nats."""
        losses, kinds = _supervised(outputs, batch)
        terms = {"chunk_loss": _mean(losses, kinds == Kind.TEXT), "final_loss": _mean(losses, kinds == Kind.FINAL)}
        if self.mean == "tokens":
            loss = parallel.balanced(losses.mean(), len(losses))
        else:
            loss = parallel.balanced(*_mean_of_chunks(losses, batch["decoder"]))
        if self.hint:
            hints = _hints(outputs, batch["decoder"])
            hint = parallel.balanced(hints.mean(), len(hints))
            loss, terms["hint_loss"] = loss + self.hint * hint, hint.detach()
        return loss, terms


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Between the stages: write the label of every latent of the first ``rows`` training problems (section 6)."""

    kind: ClassVar[str] = "labels"

    rows: int = 4096

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows is {self.rows}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Autonomy:
    """Stage 2: say the latents oneself, and know when to stop (section 7).

    Attributes:
        ce_weight, kl_weight: of the two losses.
        noise: on the labels; null for none (the first version).
    """

    kind: ClassVar[str] = "autonomy"

    ce_weight: float = 1.0
    kl_weight: float = 1.0
    noise: Noise | None = field(default_factory=Noise)

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model's forward takes out of a batch."""
        return {"decoder": batch["decoder"], "weights": batch["weights"], "ids": batch["ids"]}

    def __call__(self, outputs: LatentSFTOutput, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
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
        loss = self.ce_weight * spoken + self.kl_weight * silent
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
