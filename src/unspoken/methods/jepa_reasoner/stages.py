"""JEPA-Reasoner's stages 2 and 3: the Reasoner, then the Talker (arXiv 2512.19171, sections 4.2 and 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unspoken.methods.lazy import LazyModule
from unspoken.methods.method import Batch, Context, Indices, Lineage, Objective
from unspoken.methods.rollouts import check_rollout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback

    from unspoken.backbone.checks import Method as Property
    from unspoken.methods import cost
    from unspoken.methods.cost import Lengths, RowCost
    from unspoken.methods.jepa_reasoner import building, objective
    from unspoken.training.recipe import Recipe, Stage
else:
    cost = LazyModule("unspoken.methods.cost")
    building = LazyModule("unspoken.methods.jepa_reasoner.building")
    objective = LazyModule("unspoken.methods.jepa_reasoner.objective")


# What is wrong where rows shall enter as they are, but the table reads them out normalised.
NORMALISED_BEFORE = (
    "objective.unit_tokens is false, but the backbone's table normalises its rows itself; remove "
    "objective.unit_tokens, or pretrain the backbone with backbone.unit_embeddings: false"
)


@dataclass(frozen=True, kw_only=True)
class SST(Objective):
    """Self-supervised training of the Reasoner towards an EMA copy of its own table."""

    kind: ClassVar[str] = "sst"
    starts_from: ClassVar[tuple[str | None, ...]] = (None, "next_token")
    cuts_blocks: ClassVar[bool] = True
    former_keys: ClassVar[dict[str, str]] = {"own_latents": "rollout_latents", "own_passes": "rollout_passes"}

    k: float = 4.0  # weight of the loss. Adam cancels it, but for clipping and epsilon.
    momentum: float = 0.98  # of the target table, applied once after every optimiser step
    positions: Literal["all", "answer"] = "answer"  # ``"answer"`` (the paper's tree search: the route) or ``"all"``
    # Table rows enter the first block normalised, see `JepaReasonerConfig.unit_tokens`; null keeps what the start does,
    # so rows of a pretrained model enter as they are. On a shape it is false by ``backbone.unit_embeddings`` alone.
    unit_tokens: bool | None = None
    # Ours, not the paper's: in every row a random stretch of 1 to this many positions is read as the model's own
    # latents, as in a rollout, with the same targets; 0 reads tokens alone.
    rollout_latents: int = 0
    rollout_passes: int = 1  # see `JepaReasonerModel.forward`; each costs a pass without a gradient

    def __post_init__(self) -> None:
        check_rollout(self.rollout_latents, self.rollout_passes)
        if self.k <= 0:
            raise ValueError(f"k is {self.k}; it must be positive")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum is {self.momentum}; it must lie between 0 and 1")

    def check_lineage(self, lineage: Lineage, run: Recipe) -> None:
        """The backbone has as many blocks as are kept of it, and rows enter as its table has them."""
        if self.unit_tokens is False and getattr(run.backbone, "unit_embeddings", False):
            raise ValueError(NORMALISED_BEFORE)
        blocks, layers = lineage.settings.blocks, getattr(run.backbone, "layers", None)
        if blocks is not None and layers is not None and blocks > layers:
            raise ValueError(f"blocks is {blocks}, but the backbone has {layers} layers")

    def check_backbone(self, config: PreTrainedConfig, stage: Stage) -> None:
        """It has as many blocks as are kept of it."""
        building.first_blocks(config, stage.blocks, stage.name)

    @property
    def properties(self) -> Sequence[Property]:
        return ("JEPA-Reasoner",)

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        return building.reasoner_of(self, start, context)

    def adapted(self, model: Any) -> list[nn.Module]:
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
        return objective.sst_places(self, batch)

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        return {**super().counts(batch), "rows": len(batch["input_ids"])}

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return objective.stage_loss(self, model(**objective.sst_inputs(self, batch)), batch)

    def callbacks(self) -> list[TrainerCallback]:
        return [building.EMATarget(self.momentum)]

    def readings(self, model: Any, context: Context, rows: Callable[[], Batch]) -> dict[str, float]:
        return building.collapse_readings(model, self, rows())

    def forced_latents(self, model: Any, batch: Batch) -> Tensor:
        return building.forced_latents(model, self, batch)

    def warning(self, first: dict[str, float], now: dict[str, float]) -> str | None:
        """Whether the table is collapsing."""
        if "effective_rank" not in first or not objective.collapsed(first, now):
            return None
        return (
            f"collapse: the SST loss fell to {now['sst_loss']:.4f} while the effective rank of the target table fell "
            f"from {first['effective_rank']:.1f} to {now['effective_rank']:.1f}, and {now['nearest_row']:.1%} of "
            f"latents (at the start {first['nearest_row']:.1%}) have the target token's row as nearest row; raise "
            "objective.momentum or lower the learning rate"
        )

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        reading = cost.StackPass(stack=model.backbone, positions=lengths.total)
        # A pass that computes own latents.
        again = cost.StackPass(stack=model.backbone, positions=lengths.total, has_gradient=False)
        passes = self.rollout_passes if self.rollout_latents else 0
        return cost.RowCost(tokens=lengths.total, passes=(reading, *[again] * passes))


@dataclass(frozen=True, kw_only=True)
class TalkerLoss(Objective):
    """Token cross-entropy of the Talker on the latents of the frozen Reasoner's teacher-forced pass.

    See docs/methods/jepa_reasoner.md, open point 14.
    """

    kind: ClassVar[str] = "talker"
    starts_from: ClassVar[tuple[str | None, ...]] = ("sst",)
    answers_from_latents: ClassVar[bool] = True
    trains_talker: ClassVar[bool] = True

    def check_stage(self, stage: Stage) -> None:
        """Adapters are refused."""
        if stage.lora is not None:
            raise ValueError("lora is set, but a Talker starts from random weights and is trained whole; leave it out")
        super().check_stage(stage)

    def check_lineage(self, lineage: Lineage, run: Recipe) -> None:
        if (run.talker or lineage.settings.talker) is None:
            raise ValueError("trains a Talker, but neither it nor the recipe has a 'talker' shape")

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        return building.pair_of(start, context)

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """What the Talker will have to write: answers, spans of strings, sentences."""
        return lambda indices: context.task.talker_rows(
            indices, context.seed if split == "train" else 0, split, context.prompt_format
        )

    def with_places(self, batch: Batch) -> Batch:
        return objective.talker_places(batch)

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        return {"tokens": len(batch["places"])}

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        given = {key: batch[key] for key in ("input_ids", "attention_mask", "answer_mask")}
        return objective.talker_loss(model(**given, length=batch.get("length")), batch)

    def mean_lengths(self, context: Context) -> Lengths:
        if (known := context.traits.talker_tokens) is None:
            return super().mean_lengths(context)
        return cost.Lengths(prompt=known[0] - known[1], answer=known[1])

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        return building.talker_cost(model, lengths)
