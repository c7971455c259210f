"""Settings of JEPA-Reasoner's stages 2 and 3 (sections 4.2 and 4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SST:
    """Self-supervised training of the Reasoner towards an EMA copy of its own table.

    Attributes:
        k: weight of the loss. Invisible to Adam but for clipping and epsilon.
        momentum: of the target table, applied once after every optimiser step.
        positions: ``"answer"`` (the paper's tree search: the route) or ``"all"``.
        unit_tokens: table rows enter the first block normalised, see `JepaReasonerConfig.unit_tokens`; null feeds them
            as in the training before, so rows of a pretrained model enter as they are.
        rollout_latents: ours, off in the paper: in every row a stretch of 1 to this many positions, drawn anew each
            time, is read as the model's own latents, as a rollout will read them, with the same targets; 0 reads
            tokens.
        rollout_passes: see `JepaReasonerModel.forward`; each costs a pass without a gradient.
    """

    kind: ClassVar[str] = "sst"
    former_keys: ClassVar[dict[str, str]] = {"own_latents": "rollout_latents", "own_passes": "rollout_passes"}

    k: float = 4.0
    momentum: float = 0.98
    positions: Literal["all", "answer"] = "answer"
    unit_tokens: bool | None = None
    rollout_latents: int = 0
    rollout_passes: int = 1

    def __post_init__(self) -> None:
        if self.rollout_latents < 0 or self.rollout_passes < 1:
            raise ValueError(
                f"rollout_latents is {self.rollout_latents} and rollout_passes {self.rollout_passes}; they must be at "
                "least 0 and 1"
            )
        if self.k <= 0:
            raise ValueError(f"k is {self.k}; it must be positive")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum is {self.momentum}; it must lie between 0 and 1")

    def with_places(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What a batch needs before it leaves the host, see `unspoken.methods.jepa_reasoner.objective.sst_places`."""
        from unspoken.methods.jepa_reasoner.objective import sst_places

        return sst_places(self, batch)

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the Reasoner's forward takes, see `unspoken.methods.jepa_reasoner.objective.sst_inputs`."""
        from unspoken.methods.jepa_reasoner.objective import sst_inputs

        return sst_inputs(self, batch)

    def __call__(self, outputs: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of a batch, see `unspoken.methods.jepa_reasoner.objective.stage_loss`."""
        from unspoken.methods.jepa_reasoner.objective import stage_loss

        return stage_loss(self, outputs, batch)


@dataclass(frozen=True, kw_only=True)
class TalkerLoss:
    """Token cross-entropy of the Talker on the latents of the frozen Reasoner's teacher-forced pass (point 14)."""

    kind: ClassVar[str] = "talker"

    def with_places(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What a batch needs on the host, see `unspoken.methods.jepa_reasoner.objective.talker_places`."""
        from unspoken.methods.jepa_reasoner.objective import talker_places

        return talker_places(batch)

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the pair's forward takes out of a batch."""
        given = {key: batch[key] for key in ("input_ids", "attention_mask", "answer_mask")}
        return {**given, "length": batch.get("length")}

    def __call__(self, outputs: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of a batch, see `unspoken.methods.jepa_reasoner.objective.talker_loss`."""
        from unspoken.methods.jepa_reasoner.objective import talker_loss

        return talker_loss(outputs, batch)
