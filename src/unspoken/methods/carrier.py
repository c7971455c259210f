"""Losses on the latents of another method's stage, which carries them (SIM-CoT on Coconut, SIM-CoT on CODI).

Such a loss shapes the latents while a stage trains. What the stage publishes, and how that answers, is the carrier's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.defaults import TrainingFacts, on_codi
from unspoken.methods.method import Batch, Context, DecoderObjective, Indices, Lineage, Method, Objective
from unspoken.ranges import require_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from unspoken.backbone.checks import Method as Property
    from unspoken.backbone.checks import Needs
    from unspoken.methods.carrier_model import CarrierModel
    from unspoken.methods.cost import Lengths, RowCost, Scores, StackPass
    from unspoken.reasoning.system import System
    from unspoken.tasks.spans import Spans
    from unspoken.training.recipe import Recipe

Steps = tuple[tuple[int, ...], ...]


class Carrier(DecoderObjective):
    """A stage whose model, around a ``decoder``, returns ``latents`` ``[B, N, D]`` through which gradients flow."""

    @property
    def latents(self) -> int:
        """Number of latents of the longest row."""
        raise NotImplementedError

    @property
    def latents_per_explicit_step(self) -> int:
        """Number of latents that stand for one explicit step."""
        return 1

    @property
    def unmixed(self) -> Carrier:
        """A copy with ``mixed=0``, as validation uses it."""
        return self

    def replaced_steps(self, spans: Spans, index: int, seed: int) -> Steps:
        """The explicit steps that the latents of a problem stand for."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class CarriedRow:
    """What is known of a training row with latents.

    Attributes:
        index: of the sample.
        steps: tokens of the explicit steps that its latents stand for.
        latents: how many it has.
        answer: tokens of its answer.
    """

    index: int
    steps: Steps
    latents: int
    answer: tuple[int, ...]


def carriers() -> tuple[type[Carrier], ...]:
    """Objectives that a loss can be added to."""
    from unspoken.methods.catalogue import objectives

    return tuple(objective for objective in objectives() if issubclass(objective, Carrier))


def carried(lineage: Lineage) -> Lineage:
    """A lineage of stages as it is without added losses."""
    objective, settings = lineage.objective, lineage.settings
    if isinstance(objective, AddedLoss):
        settings = replace(settings, objective=objective.carrier)
    return Lineage(settings=settings, before=None if lineage.before is None else carried(lineage.before))


@dataclass(frozen=True, kw_only=True)
class AddedLoss(Objective):
    """The loss of a carrier and one of its latents, of which the finished folder holds nothing.

    Attributes:
        carrier: objective of the stage without the added loss.
        weight: of the added loss.

    Raises:
        ValueError: a weight that is not positive, or a carrier without latents.
    """

    starts_from: ClassVar[tuple[str | None, ...]] = (None, "next_token", "coconut")
    chain_needed: ClassVar[bool] = True
    steps_needed: ClassVar[bool] = True
    answers_from_latents: ClassVar[bool] = True
    recomputes: ClassVar[bool] = False

    carrier: Carrier = field(metadata={"choices": carriers})
    weight: float = 1.0

    def __post_init__(self) -> None:
        kind = self.carrier.kind
        require_value(self, "weight", lambda value: value > 0, f"above 0 (for no added loss use kind: {kind})")
        if not self.carrier.latents:
            names = [name for name in ("latents", "replaced", "latents_per_step") if name in vars(self.carrier)]
            raise ValueError(f"carrier ({kind}) has 0 latents; set {' and '.join(names) or 'their number'} above 0")

    # --- what a method adds ------------------------------------------------------------------------------------------

    def wrapped(self, carrier: PreTrainedModel) -> CarrierModel:
        """The model in training around the carrier's, which has its starting weights."""
        raise NotImplementedError

    def targets(self, rows: Sequence[CarriedRow], context: Context) -> Batch:
        """What the latents of a batch learn besides.

        Returns:
            What `CarrierModel.read` is given besides the latents.
        """
        raise NotImplementedError

    def added_counts(self, added: Batch) -> dict[str, int | Tensor]:
        """What the loss is a mean over, as `Objective.counts`."""
        raise NotImplementedError

    def added_loss(self, outputs: Tensor, added: Batch) -> Tensor:
        """The loss, of what `CarrierModel.read` returns."""
        raise NotImplementedError

    def added_cost(self, model: Any, lengths: Lengths) -> tuple[Sequence[StackPass], Sequence[Scores]]:
        """Passes and scores of a training row besides the carrier's."""
        raise NotImplementedError

    # --- what follows ------------------------------------------------------------------------------------------------

    def check_lineage(self, lineage: Lineage, run: Recipe) -> None:
        """The carrier must fit the stages before it."""
        own = carried(lineage)
        if own.kind_before not in self.carrier.starts_from:
            raise ValueError(f"carrier: a {self.carrier.kind} stage cannot start from a {own.kind_before} stage")
        self.carrier.check_lineage(own, run)

    @property
    def properties(self) -> Sequence[Property | Needs]:
        """What a backbone must have for the carrier."""
        return self.carrier.properties

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """The carrier's model, and around it what the loss needs."""
        return self.wrapped(self.carrier.build(start, context))

    def exported(self, model: Any) -> PreTrainedModel:
        """What the carrier publishes."""
        return self.carrier.exported(model.carrier)

    def answering(self, model: Any) -> PreTrainedModel:
        """The carrier's model in training."""
        return self.carrier.answering(model.carrier)

    def adapted(self, model: Any) -> list[nn.Module]:
        """What the carrier adapts; what the loss learns with is trained in full."""
        return self.carrier.adapted(model.carrier)

    def after_adapters(self, model: Any) -> None:
        """What the carrier trains in full."""
        self.carrier.after_adapters(model.carrier)

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """The carrier's rows, and the targets of their latents."""
        # Only training rows are read at other stages than the carrier's own.
        carrier = self.carrier if split == "train" else self.carrier.unmixed
        make_carried = carrier.collate(context, split)

        def make(indices: Indices) -> Batch:
            batch = make_carried(indices)
            spans = context.task.spans(context.sample(indices, split), context.prompt_format)
            latents = batch["latent_mask"].sum(dim=1).tolist()
            rows = [
                CarriedRow(
                    index=index,
                    steps=carrier.replaced_steps(one, index, context.seed),
                    latents=count,
                    answer=one.answer,
                )
                for one, index, count in zip(spans, indices.tolist(), latents, strict=True)
            ]
            return {**batch, "added": self.targets(rows, context)}

        return make

    def row_length(self, spans: Spans, context: Context) -> int:
        """Length of the carrier's row and of the chain together."""
        return self.carrier.row_length(spans, context) + len(spans.chain)

    def with_places(self, batch: Batch) -> Batch:
        """See `Objective.with_places`, of the carrier."""
        return self.carrier.with_places(batch)

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        """See `Objective.counts`, of the carrier's losses and the added one."""
        return {**self.carrier.counts(batch), **self.added_counts(batch["added"])}

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Both losses, in one pass of the model."""
        outputs: list[Tensor] = []

        def forward(**given: Any) -> Any:
            of_carrier, added = model(added=batch["added"], **given)
            outputs.append(added)
            return of_carrier

        loss, terms = self.carrier.loss(forward, {name: part for name, part in batch.items() if name != "added"})
        added = self.added_loss(outputs[0], batch["added"])
        return loss + self.weight * added, {**terms, f"{self.kind}_loss": added.detach()}

    def answer_tokens(self, context: Context) -> int:
        """See `Objective.answer_tokens`, of the carrier."""
        return self.carrier.answer_tokens(context)

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        """Cost of the carrier's row and of the added loss."""
        cost = self.carrier.row_cost(model.carrier, lengths, context)
        passes, scores = self.added_cost(model, lengths)
        return replace(cost, passes=(*cost.passes, *passes), scores=(*cost.scores, *scores))


class AddedLossMethod(Method):
    """A method whose one stage is an added loss."""

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """One stage, on CODI, from the model itself."""
        return on_codi(facts, self.objectives[0].kind)

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        """None of its own: a finished model is its carrier's, and so is one in training."""
        return []
