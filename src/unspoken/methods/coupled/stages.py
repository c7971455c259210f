"""Settings of the coupled Transformer's stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor


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
        """What a batch needs before it leaves the host, see `unspoken.methods.coupled.objective.with_places`."""
        from unspoken.methods.coupled.objective import with_places

        return with_places(batch, self.positions)

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model's forward takes out of a batch."""
        # The library's own argument: whatever a model does to its scores, it does to these.
        kept = {"logits_to_keep": batch["judged"]} if "judged" in batch else {}
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False, **kept}

    def __call__(self, outputs: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of a batch, see `unspoken.methods.coupled.objective.next_token_loss`."""
        from unspoken.methods.coupled.objective import next_token_loss

        return next_token_loss(outputs, batch, self.positions)
