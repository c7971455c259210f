"""Next-token cross-entropy: stage 1 of the JEPA-Reasoner and all of the coupled baseline."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unspoken import distributed
from unspoken.places import at, padding_mask, places_of


def supervised(batch: dict[str, Tensor], positions: Literal["all", "answer"]) -> Tensor:
    """Mask ``[B, T-1]`` of the outputs that a loss looks at: output t is supervised by token t + 1.

    Where a row asks several questions, the first token of each supervises no output, since nothing before it determines
    it.
    """
    mask = batch["attention_mask"].bool()
    chosen = mask[:, 1:] & mask[:, :-1]
    if "question" in batch:
        chosen = chosen & (batch["question"][:, 1:] == batch["question"][:, :-1])
    return chosen & batch["answer_mask"][:, 1:] if positions == "answer" else chosen


def supervised_places(batch: dict[str, Tensor]) -> Tensor:
    """Columns ``[P]`` of a batch in which ``NextToken(positions="answer")`` supervises an output of any row.

    With them as ``batch["supervised"]`` the model scores the vocabulary nowhere else.
    """
    return supervised(batch, "answer").any(dim=0).nonzero()[:, 0]


def own_question(question_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B 1 T T"]:
    """An additive mask: a token sees, up to itself, the shared tokens (question 0) and those of its own question."""
    query, key = question_BT[:, None, :, None], question_BT[:, None, None, :]
    seen = ((key == 0) | (key == query)).tril()
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)


def with_places(batch: dict[str, Any], positions: Literal["all", "answer"]) -> dict[str, Any]:
    """A batch that is still on the host, with the places of its supervised outputs and their targets."""
    chosen = supervised(batch, positions)
    grid = chosen[:, batch["supervised"]] if "supervised" in batch else F.pad(chosen, (0, 1))
    return {
        **batch,
        "attention_mask": padding_mask(batch["attention_mask"]),
        "places": places_of(grid),
        "targets": batch["input_ids"][:, 1:][chosen],
    }


def next_token_loss(
    outputs: Any, batch: dict[str, Any], positions: Literal["all", "answer"]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss over supervised positions, in nats per token."""
    if "places" not in batch:
        batch = with_places(batch, positions)
    tokens = batch["targets"]
    loss = distributed.rank_weighted_mean(
        F.cross_entropy(at(outputs.logits, batch["places"]).float(), tokens), len(tokens)
    )
    return loss, {"token_loss": loss.detach()}
