"""iCoT's one stage (Deng et al., arXiv 2405.14838; details as in the published code, da03/Internalize_CoT_Step_by_Step
at c2e3891).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from unspoken.methods.method import Batch, Context, Indices, Lineage, Objective
from unspoken.ranges import require_value
from unspoken.tasks.spans import Markers, Spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel, TrainerCallback

    from unspoken.backbone.checks import Method as Property
    from unspoken.backbone.checks import Needs
    from unspoken.methods.cost import Lengths, RowCost
    from unspoken.training.recipe import Recipe, Stage

LARGEST_OFFSET = 99
# Properties of the causal language model, see `unspoken.backbone.checks`.
POSITIONED = ("stack", "rows", "causal", "cached", "batched", "padded", "scores", "positions")
_OFFSETS = 1  # the stream of random numbers that offsets come from; tasks draw from others


@dataclass(frozen=True, kw_only=True)
class Icot(Objective):
    """Cross-entropy of chain and answer, where the chain loses one token more every so many steps until it is gone.

    Step n removes ``scheduled(n)`` tokens from each chain, and a random offset more; rows are
    ``question | open | what is left of the chain | end | answer``, and all after the open marker is learned. There are
    no latents: the finished model is a plain causal language model that answers at once. Checkpoints are selected by
    answers without a chain, once no chain is left.

    Attributes:
        steps_per_token: optimiser steps from one removed token to the next.
        pretrain_steps: optimiser steps before the schedule begins.
        remove_all_beyond: scheduled tokens at which all of a chain is removed.
        smoothing: lambda of the offsets, whose probabilities are ``(1 - exp(-lambda)) exp(-lambda o)``; null for none.
        from_right: the last tokens of a chain are removed first, and not the first ones.
        reset_optimizer: the optimiser forgets its moments whenever the schedule grows, until no chain is left.
        keep_position: what comes after removed tokens keeps its positions in training.
        eos_separators: the end-of-text token stands around a chain, as published; false puts the task's markers there.

    Raises:
        ValueError: a number out of range.
    """

    kind: ClassVar[str] = "icot"
    starts_from: ClassVar[tuple[str | None, ...]] = (None, "next_token")
    chain_needed: ClassVar[bool] = True
    reads_in_order: ClassVar[bool] = True

    steps_per_token: int
    pretrain_steps: int
    remove_all_beyond: int = 39
    smoothing: float | None = 4.0
    from_right: bool = False
    reset_optimizer: bool = True
    keep_position: bool = False
    eos_separators: bool = True

    def __post_init__(self) -> None:
        require_value(self, "steps_per_token", lambda value: value >= 1, "at least 1")
        for name in ("pretrain_steps", "remove_all_beyond"):
            require_value(self, name, lambda value: value >= 0, "0 or more")
        require_value(self, "smoothing", lambda value: value is None or value > 0, "above 0, or null for no offsets")

    # --- schedule --------------------------------------------------------------------------------------------------

    def scheduled(self, step: int) -> int:
        """Tokens that the schedule removes from each chain after so many optimiser steps."""
        return max(0, step - self.pretrain_steps) // self.steps_per_token

    @property
    def steps_until_removed(self) -> int:
        """Optimiser steps after which no chain is left."""
        return self.pretrain_steps + self.remove_all_beyond * self.steps_per_token if self.remove_all_beyond else 0

    def offset(self, seed: int, index: int) -> int:
        """Tokens that the row of a sample loses besides, a pure function of run and sample."""
        if self.smoothing is None:
            return 0
        drawn = np.random.default_rng([seed, index, _OFFSETS]).geometric(-math.expm1(-self.smoothing)) - 1
        return int(min(drawn, LARGEST_OFFSET))

    def removed(self, step: int, offset: int, chain: int) -> int:
        """Tokens that a chain of some length loses."""
        return chain if step >= self.steps_until_removed else min(self.scheduled(step) + offset, chain)

    def shortened(self, spans: Spans, removed: int) -> Spans:
        """A problem with so many tokens less in its chain."""
        left = len(spans.chain) - removed
        return replace(spans, steps=(spans.chain[:left] if self.from_right else spans.chain[removed:],), merged=None)

    # --- checks ----------------------------------------------------------------------------------------------------

    def check_stage(self, stage: Stage) -> None:
        """The schedule counts the stage's steps, and must come to its end."""
        super().check_stage(stage)
        gone = self.steps_until_removed
        if stage.steps is None:
            raise ValueError(
                "an icot stage removes tokens by the number of its steps; set steps and leave steps_of out"
            )
        if stage.steps <= gone:
            raise ValueError(
                f"steps is {stage.steps}, but chains are gone after {gone} steps (pretrain_steps + remove_all_beyond * "
                "steps_per_token); raise steps, or lower one of these"
            )

    def check_lineage(self, lineage: Lineage, run: Recipe) -> None:
        """Rows are read in order, from a first one that is known."""
        if run.group_by_length:
            raise ValueError("group_by_length reads rows in another order than icot removes tokens in; set it to false")
        for before in lineage.before or ():
            if before.settings.steps is None:
                raise ValueError(
                    f"stage {before.name!r} before it has steps_of; set its steps, since icot counts the rows "
                    "that were read before"
                )

    # --- model -----------------------------------------------------------------------------------------------------

    @property
    def properties(self) -> Sequence[Property | Needs]:
        """What writing tokens needs, and positions of its own if those of removed tokens are left out."""
        from unspoken.backbone.checks import Needs

        return (Needs(method="iCoT", properties=POSITIONED),) if self.keep_position else ("explicit chains",)

    def markers(self, context: Context) -> Markers:
        """What stands around a chain."""
        eos = (context.tokenizer.eos_token_id,)
        return Markers(open=eos, end=eos) if self.eos_separators else context.markers

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """A causal language model whose folder records that it answers without a chain."""
        model, markers = context.base() if start is None else start, self.markers(context)
        settings = context.generation(top_k=1, max_latents=0, fixed=True)
        replace(settings, open_ids=markers.open, end_ids=markers.end).attach(model)
        context.name_ends(model)
        return model

    # --- data ------------------------------------------------------------------------------------------------------

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """Rows whose chains are as long as the schedule has them at the step that reads them."""
        from unspoken.methods.icot.objective import batch_of

        markers, pad, stage = self.markers(context), context.tokenizer.pad_token_id, context.lineage.settings
        assert stage.steps is not None
        first, last = _read_before(context.lineage), stage.steps

        def make(indices: Indices) -> Batch:
            spans = context.task.spans(context.sample(indices, split), context.prompt_format)
            step = int(indices[0] - first) // stage.batch_size if split == "train" else last
            removed = [
                self.removed(step, self.offset(context.seed, index), len(row.chain))
                for index, row in zip(indices.tolist(), spans, strict=True)
            ]
            return batch_of(self, spans, removed, markers, scheduled=self.scheduled(step), pad_id=pad)

        return make

    def with_places(self, batch: Batch) -> Batch:
        from unspoken.methods.icot.objective import with_places

        return with_places(batch)

    # --- training --------------------------------------------------------------------------------------------------

    def candidate(self, step: int) -> bool:
        """From the removal of the last token on, as published: earlier ones answer what they do not learn yet."""
        return step >= max(1, self.steps_until_removed)

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        from unspoken.methods.icot.objective import icot_loss

        return icot_loss(self, model, batch)

    def callbacks(self) -> list[TrainerCallback]:
        """What resets the optimiser."""
        from unspoken.methods.icot.objective import FreshOptimizer

        return [FreshOptimizer(self)] if self.reset_optimizer else []

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        """One pass over what is left of a chain, averaged over the steps of the stage."""
        from unspoken.methods.cost import RowCost, Scores, StackPass

        steps = context.lineage.settings.steps
        assert steps is not None
        offset = 0.0 if self.smoothing is None else math.exp(-self.smoothing) / -math.expm1(-self.smoothing)
        explicit = [max(0.0, lengths.chain - self.scheduled(step) - offset) for step in range(self.steps_until_removed)]
        left = sum(explicit) / steps
        supervised = left + lengths.end + lengths.answer
        return RowCost(
            tokens=lengths.prompt + supervised,
            passes=(StackPass(stack=model.base_model, positions=lengths.prompt + supervised),),
            scores=(Scores(head=model.get_output_embeddings().weight, made=supervised, supervised=supervised),),
        )


def _read_before(lineage: Lineage) -> int:
    """Training samples that the stages before a stage have read, whose own follow."""
    read = 0
    for one in lineage.before or ():
        assert one.settings.steps is not None  # see `Icot.check_lineage`
        read += one.settings.steps * one.settings.batch_size
    return read
