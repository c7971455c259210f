"""Next-token cross-entropy: stage 1 of the JEPA-Reasoner and all of the coupled baseline."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from unspoken import parallel


def supervised(batch: dict[str, Tensor], positions: Literal["all", "answer"]) -> Tensor:
    """Mask ``[B, T-1]`` of the outputs that a loss looks at: output t is judged by token t + 1."""
    mask = batch["attention_mask"].bool()
    chosen = mask[:, 1:] & mask[:, :-1]
    return chosen & batch["answer_mask"][:, 1:] if positions == "answer" else chosen


def judged_places(batch: dict[str, Tensor]) -> Tensor:
    """Places ``[P]`` of a batch at which an output of any row is judged by ``NextToken(positions="answer")``.

    As ``batch["judged"]`` they keep the model from making scores over the vocabulary anywhere else.
    """
    return supervised(batch, "answer").any(dim=0).nonzero()[:, 0]


def next_token_loss(
    outputs: Any, batch: dict[str, Tensor], positions: Literal["all", "answer"]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss over supervised positions, in nats a token."""
    chosen = supervised(batch, positions)
    tokens = batch["input_ids"][:, 1:][chosen]
    logits = outputs.logits[:, :-1]
    if "judged" in batch:
        logits, chosen = outputs.logits, chosen[:, batch["judged"]]
    loss = parallel.balanced(F.cross_entropy(logits[chosen].float(), tokens), len(tokens))
    return loss, {"token_loss": loss.detach()}
