"""Next-token cross-entropy: stage 1 of the JEPA-Reasoner and all of the coupled baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from unspoken import parallel
from unspoken.places import at, padding_mask, places_of


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


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Cross-entropy of the next token.

    Attributes:
        positions: ``"all"`` (stage 1 of the paper) or ``"answer"`` (tuning on the route alone; of a word problem, on
            chain and answer).
        chain: ``"none"`` leaves the explicit chain of a word problem out: the answer-only baseline.
    """

    kind: ClassVar[str] = "next_token"

    positions: Literal["all", "answer"] = "all"
    chain: Literal["explicit", "none"] = "explicit"

    def with_places(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch that is still on the host, with the places of its judged outputs and the tokens that judge them."""
        chosen = supervised(batch, self.positions)
        grid = chosen[:, batch["judged"]] if "judged" in batch else F.pad(chosen, (0, 1))
        return {
            **batch,
            "attention_mask": padding_mask(batch["attention_mask"]),
            "places": places_of(grid),
            "targets": batch["input_ids"][:, 1:][chosen],
        }

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model's forward takes out of a batch."""
        # The library's own argument: whatever a model does to its scores, it does to these.
        kept = {"logits_to_keep": batch["judged"]} if "judged" in batch else {}
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False, **kept}

    def __call__(self, outputs: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over supervised positions, in nats a token."""
        if "places" not in batch:
            batch = self.with_places(batch)
        tokens = batch["targets"]
        loss = parallel.balanced(F.cross_entropy(at(outputs.logits, batch["places"]).float(), tokens), len(tokens))
        return loss, {"token_loss": loss.detach()}
