"""JEPA-Reasoner's stages 2 and 3: the Reasoner, then the Talker (sections 4.2 and 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unspoken.methods.method import (
    Batch,
    Context,
    Indices,
    Line,
    Objective,
    check_steps,
    refuse_blocks,
    refuse_talker,
)
from unspoken.methods.rollouts import check_rollout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback

    from unspoken.backbone.checks import Method as Property
    from unspoken.methods.cost import Lengths, RowCost
    from unspoken.training.recipe import Recipe, Stage


@dataclass(frozen=True, kw_only=True)
class SST(Objective):
    """Self-supervised training of the Reasoner towards an EMA copy of its own table.

    Attributes:
        k: weight of the loss. Adam cancels it, but for clipping and epsilon.
        momentum: of the target table, applied once after every optimiser step.
        positions: ``"answer"`` (the paper's tree search: the route) or ``"all"``.
        unit_tokens: table rows enter the first block normalised, see `JepaReasonerConfig.unit_tokens`; null keeps what
            the start does, so rows of a pretrained model enter as they are.
        rollout_latents: ours, not the paper's: in every row a random stretch of 1 to this many positions is read as the
            model's own latents, as in a rollout, with the same targets; 0 reads tokens alone.
        rollout_passes: see `JepaReasonerModel.forward`; each costs a pass without a gradient.
    """

    kind: ClassVar[str] = "sst"
    starts_from: ClassVar[tuple[str | None, ...]] = (None, "next_token")
    former_keys: ClassVar[dict[str, str]] = {"own_latents": "rollout_latents", "own_passes": "rollout_passes"}

    k: float = 4.0
    momentum: float = 0.98
    positions: Literal["all", "answer"] = "answer"
    unit_tokens: bool | None = None
    rollout_latents: int = 0
    rollout_passes: int = 1

    def __post_init__(self) -> None:
        check_rollout(self.rollout_latents, self.rollout_passes)
        if self.k <= 0:
            raise ValueError(f"k is {self.k}; it must be positive")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum is {self.momentum}; it must lie between 0 and 1")

    def check_stage(self, stage: Stage) -> None:
        """It may keep the first blocks of the backbone alone."""
        if stage.blocks is not None and stage.blocks < 1:
            raise ValueError(f"blocks is {stage.blocks}; an sst stage may have it, and it must be at least 1")
        refuse_talker(self.kind, stage)
        check_steps(stage)

    def check_line(self, line: Line, run: Recipe) -> None:
        """The backbone has as many blocks as are kept of it."""
        blocks, layers = line.settings.blocks, getattr(run.backbone, "layers", None)
        if blocks is not None and layers is not None and blocks > layers:
            raise ValueError(f"blocks is {blocks}, but the backbone has {layers} layers")

    def check_backbone(self, config: PreTrainedConfig, stage: Stage) -> None:
        """It has as many blocks as are kept of it."""
        from unspoken.methods.jepa_reasoner.building import first_blocks

        first_blocks(config, stage.blocks, stage.name)

    @property
    def properties(self) -> Sequence[Property]:
        """What a Reasoner is put around."""
        return ("JEPA-Reasoner",)

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        from unspoken.methods.jepa_reasoner.building import reasoner_of

        return reasoner_of(self, start, context)

    def adapted(self, model: Any) -> list[nn.Module]:
        """The blocks."""
        return [model.backbone]

    def after_adapters(self, model: Any) -> None:
        """The table is trained in full: its target is a moving average of the online table.

        An average of rows that stand still would switch half of the method off.
        """
        model.backbone.get_input_embeddings().requires_grad_(True)

    def after_sharding(self, model: Any) -> None:
        """The target table lies as the online table does."""
        from torch.distributed.tensor import distribute_tensor

        online: Any = model.backbone.get_input_embeddings().weight
        model.target_table = distribute_tensor(model.target_table, online.device_mesh, online.placements)

    def with_places(self, batch: Batch) -> Batch:
        from unspoken.methods.jepa_reasoner.objective import sst_places

        return sst_places(self, batch)

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        from unspoken.methods.jepa_reasoner.objective import sst_inputs, stage_loss

        return stage_loss(self, model(**sst_inputs(self, batch)), batch)

    def callbacks(self) -> list[TrainerCallback]:
        """The target table follows the online one."""
        from unspoken.methods.jepa_reasoner.building import EMATarget

        return [EMATarget(self.momentum)]

    def readings(self, model: Any, context: Context, rows: Callable[[], Batch]) -> dict[str, float]:
        """What shows a collapse, see `unspoken.methods.jepa_reasoner.building.collapse_readings`."""
        from unspoken.methods.jepa_reasoner.building import collapse_readings

        return collapse_readings(model, self, rows())

    def forced_latents(self, model: Any, batch: Batch) -> Tensor:
        """What the answer's tokens are predicted by."""
        from unspoken.methods.jepa_reasoner.building import forced_latents

        return forced_latents(model, self, batch)

    def warning(self, first: dict[str, float], now: dict[str, float]) -> str | None:
        """Whether the table is collapsing."""
        from unspoken.methods.jepa_reasoner.objective import collapsed

        if "effective_rank" not in first or not collapsed(first, now):
            return None
        return (
            f"COLLAPSING: the loss fell to {now['sst_loss']:.4f} while the table's effective rank fell from "
            f"{first['effective_rank']:.1f} to {now['effective_rank']:.1f} and only {now['nearest_row']:.1%} of "
            "latents find their row. Raise objective.momentum or lower the learning rate"
        )

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        """One pass through the blocks, and those that compute the model's own latents."""
        from unspoken.methods.cost import RowCost, StackPass

        stack, passes = model.backbone, self.rollout_passes if self.rollout_latents else 0
        return RowCost(
            tokens=lengths.total,
            passes=(StackPass(stack=stack, positions=lengths.total),)
            + passes * (StackPass(stack=stack, positions=lengths.total, graded=False),),
        )


@dataclass(frozen=True, kw_only=True)
class TalkerLoss(Objective):
    """Token cross-entropy of the Talker on the latents of the frozen Reasoner's teacher-forced pass (point 14)."""

    kind: ClassVar[str] = "talker"
    starts_from: ClassVar[tuple[str | None, ...]] = ("sst",)
    answers_from_latents: ClassVar[bool] = True

    def check_stage(self, stage: Stage) -> None:
        """The stage may set its own shape of the Talker; adapters and fewer blocks are refused."""
        if stage.lora is not None:
            raise ValueError("lora is set, but a Talker starts from random weights and is trained whole; leave it out")
        refuse_blocks(stage)
        check_steps(stage)

    def check_line(self, line: Line, run: Recipe) -> None:
        """There is a shape."""
        if (run.talker or line.settings.talker) is None:
            raise ValueError("trains a Talker, but neither it nor the recipe has a 'talker' shape")

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        from unspoken.methods.jepa_reasoner.building import pair_of

        return pair_of(start, context)

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """What the Talker will have to write: answers, stretches of strings, sentences."""
        return lambda indices: context.task.talker_rows(
            indices, context.seed if split == "train" else 0, split, context.prompt_format
        )

    def with_places(self, batch: Batch) -> Batch:
        from unspoken.methods.jepa_reasoner.objective import talker_places

        return talker_places(batch)

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        from unspoken.methods.jepa_reasoner.objective import talker_loss

        given = {key: batch[key] for key in ("input_ids", "attention_mask", "answer_mask")}
        return talker_loss(model(**given, length=batch.get("length")), batch)

    def mean_lengths(self, context: Context) -> Lengths:
        """Of the Talker's rows."""
        from unspoken.methods.cost import Lengths

        known = context.traits.talker_tokens
        return super().mean_lengths(context) if known is None else Lengths(prompt=known[0] - known[1], answer=known[1])

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        from unspoken.methods.jepa_reasoner.building import talker_cost

        return talker_cost(model, lengths)
