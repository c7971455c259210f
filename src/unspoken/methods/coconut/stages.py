"""Coconut's curriculum (Hao et al., arXiv 2412.06769, section 3), and what a stage of it makes of a problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from unspoken.methods.carrier import Carrier, Steps
from unspoken.methods.method import Batch, Context, Indices, Lineage, refuse_cacheless
from unspoken.ranges import require_value
from unspoken.tasks.spans import Spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from unspoken.backbone.checks import Method as Property
    from unspoken.methods.cost import Lengths, RowCost
    from unspoken.training.recipe import Recipe

_STAGES = 2  # the stream of random numbers that mixed stages come from; tasks draw from others


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training sequence: ``prompt | latents | end | text``.

    Attributes:
        prompt: everything before the first latent, the open marker included.
        latents: how many stand there.
        end: the marker after them. It is given and never predicted, since the number of latents is fixed.
        text: what is predicted: the explicit steps that are left, and the answer.

    Raises:
        ValueError: prompt, end or text is empty, or there are fewer than 0 latents.
    """

    prompt: tuple[int, ...]
    latents: int
    end: tuple[int, ...]
    text: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("prompt", "end", "text"):
            if not getattr(self, name):
                raise ValueError(f"the {name} of a row has no tokens; give at least one")
        if self.latents < 0:
            raise ValueError(f"a row has {self.latents} latents; it cannot have fewer than 0")


@dataclass(frozen=True, kw_only=True)
class Coconut(Carrier):
    """One stage: latents replace the first steps of the explicit chain, and the rest is learned as text.

    The published curriculum for grade-school arithmetic is ``replaced`` 0, 1, 2, 3 and then 3 again with ``rest``
    "none"; each stage starts from the one before it. A chain with fewer steps gets as many latents as any other, since
    the number of steps is unknown at inference.

    "k latents, then k tokens" (the baseline of JEPA-Reasoner's grammar task) is a problem whose steps are the k tokens
    that are left out, with ``replaced=k, latents_per_step=1``.

    Attributes:
        replaced: steps replaced by latents (the paper's k).
        latents_per_step: latents for each of them (the paper's c); 0 takes steps away and puts nothing in their place.
        rest: "none" leaves out the steps after the replaced ones, as in the last stage.
        mixed: probability that a problem is read at another stage, drawn uniformly from 0 to the number of its steps
            (0.05 in the authors' analysis), so that the model also answers after fewer latents, and after a chain that
            it is made to write. A stage above this one is the last: as many latents, and no explicit step.

    Raises:
        ValueError: ``replaced`` or ``latents_per_step`` below 0, or ``mixed`` no probability.
    """

    kind: ClassVar[str] = "coconut"
    starts_from: ClassVar[tuple[str | None, ...]] = (None, "next_token", "coconut")
    steps_needed: ClassVar[bool] = True
    recomputes: ClassVar[bool] = False

    replaced: int
    latents_per_step: int = 2
    rest: Literal["explicit", "none"] = "explicit"
    mixed: float = 0.0

    def __post_init__(self) -> None:
        require_value(self, "mixed", lambda value: 0 <= value <= 1, "a probability from 0 to 1")
        for name in ("replaced", "latents_per_step"):
            require_value(self, name, lambda value: value >= 0, "0 or more")

    @property
    def latents(self) -> int:
        """Length of every chain of this stage."""
        return self.replaced * self.latents_per_step

    @property
    def latents_per_explicit_step(self) -> int:
        return self.latents_per_step

    @property
    def unmixed(self) -> Coconut:
        return replace(self, mixed=0.0)

    def replaced_steps(self, spans: Spans, index: int, seed: int) -> Steps:
        """All of the chain where no step is left to be learned as text."""
        stage = self.read_at(spans, index, seed)
        return spans.steps[: stage.replaced] if stage.rest == "explicit" else spans.steps

    def read_at(self, spans: Spans, index: int, seed: int) -> Coconut:
        """The stage at which a training problem is read, a pure function of run and sample."""
        random = np.random.default_rng([seed, index, _STAGES])
        if random.random() >= self.mixed:
            return self
        stage = int(random.integers(len(spans.steps) + 1))
        return replace(
            self, replaced=min(stage, self.replaced), rest="none" if stage > self.replaced else "explicit", mixed=0.0
        )

    def row(self, spans: Spans, open_ids: tuple[int, ...], end_ids: tuple[int, ...]) -> Row:
        """A problem as this stage reads it.

        Args:
            spans: the problem.
            open_ids, end_ids: markers around the latents; the open one may be empty.

        Raises:
            ValueError: the end marker, the prompt or the text is empty.
        """
        left = spans.steps[self.replaced :] if self.rest == "explicit" else ()
        text = (*(token for step in left for token in step), *spans.answer)
        return Row(prompt=spans.prompt + open_ids, latents=self.latents, end=end_ids, text=text)

    def check_lineage(self, lineage: Lineage, run: Recipe) -> None:
        """A curriculum replaces more and more steps; kernels and checkpointing must go with a growing cache."""
        fixed = run.task.traits.fixed_steps
        if fixed is not None and self != Coconut(replaced=fixed, latents_per_step=1):
            raise ValueError(
                f"on the {run.task.kind} latents stand for the first half of {2 * fixed} symbols, one each; set "
                f"replaced to {fixed}, latents_per_step to 1, rest to 'explicit' and mixed to 0"
            )
        before = None if lineage.before is None else lineage.before.objective
        if isinstance(before, Coconut) and (before.replaced > self.replaced or before.latents > self.latents):
            assert lineage.before is not None
            raise ValueError(
                f"it replaces {self.replaced} steps by {self.latents} latents and {lineage.before.name!r} before it "
                f"{before.replaced} by {before.latents}; later stages of a curriculum replace more steps"
            )
        refuse_cacheless("Coconut", run)

    @property
    def properties(self) -> Sequence[Property]:
        """What hidden states that are fed back need."""
        return ("Coconut",)

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """A model in training around a causal language model, whose folder will record how it reasons."""
        from unspoken.methods.coconut.model import CoconutModel

        base = context.base() if start is None else start
        model = CoconutModel._from_config(base.config, attn_implementation=context.attention)
        model.start_from(base)
        context.generation(feed="hidden", max_latents=self.latents, fixed=True).attach(model.decoder)
        context.name_ends(model.decoder)
        return model

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """Rows in which latents replace the first steps."""
        from unspoken.methods.coconut.objective import batch_of

        markers, pad = context.markers, context.tokenizer.pad_token_id
        read = self if split == "train" else self.unmixed

        def make(indices: Indices) -> Batch:
            spans = context.task.spans(context.sample(indices, split), context.prompt_format)
            stages = [
                read.read_at(one, index, context.seed) for one, index in zip(spans, indices.tolist(), strict=True)
            ]
            rows = [stage.row(one, markers.open, markers.end) for stage, one in zip(stages, spans, strict=True)]
            return {**batch_of(rows, pad)}

        return make

    def row_length(self, spans: Spans, context: Context) -> int:
        """Steps that no latents replace; the latents are as many in every row."""
        left = spans.steps[self.replaced :] if self.rest == "explicit" else ()
        return len(spans.prompt) + sum(map(len, left)) + len(spans.answer)

    def with_places(self, batch: Batch) -> Batch:
        from unspoken.methods.latent_pass import with_text_places

        return with_text_places(batch)

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        from unspoken.methods.coconut.objective import coconut_loss

        names = ("input_ids", "attention_mask", "latent_mask", "text_ids", "text_mask")
        return coconut_loss(model(**{name: batch[name] for name in names}), batch)

    def answer_tokens(self, context: Context) -> int:
        """Steps that are left come before the answer."""
        return context.max_answer + context.max_latents

    def mean_lengths(self, context: Context) -> Lengths:
        """Where the number of steps is fixed: a marker on either side, and as many symbols again."""
        from unspoken.methods.cost import Lengths

        fixed, known = context.traits.fixed_steps, context.traits.row_tokens
        if fixed is None or known is None:
            return super().mean_lengths(context)
        return Lengths(prompt=known[0], chain=fixed, end=2, answer=fixed, steps=fixed)

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        """Latents and text go through the blocks once each; mixed stages count as this one."""
        from unspoken.methods.cost import RowCost, Scores, StackPass

        left = 0.0 if self.rest == "none" else lengths.chain * max(0.0, 1 - self.replaced / lengths.steps)
        text = lengths.end + left + lengths.answer
        tokens = lengths.prompt + self.latents + text
        head: Any = model.decoder.get_output_embeddings()
        return RowCost(
            tokens=tokens,
            passes=(StackPass(stack=model.decoder.base_model, positions=tokens),),
            # The last latent is read with the text; without latents the prompt is.
            scores=(Scores(head=head.weight, made=text + (1 if self.latents else lengths.prompt), supervised=text),),
        )
