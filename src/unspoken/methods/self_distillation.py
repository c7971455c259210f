"""Learning to answer from latents as the same model answers from an explicit chain: what such methods share.

Teacher and student are one model, trained in one step (CODI, Shen et al., arXiv 2502.21074). The models are in
`unspoken.methods.self_distilled`, sequences and loss in `unspoken.methods.distillation_loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.carrier import Carrier, Steps
from unspoken.methods.method import Batch, Context, Indices, Lineage, refuse_cacheless
from unspoken.ranges import require_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from unspoken.backbone.checks import Needs
    from unspoken.methods.cost import Lengths, RowCost, StackPass
    from unspoken.methods.self_distilled import SelfDistilledModel
    from unspoken.tasks.spans import Spans
    from unspoken.training.recipe import Recipe

# Properties of the causal language model, see `unspoken.backbone.checks`.
ANSWERING = ("stack", "rows", "causal", "cached", "batched", "padded", "scores", "vectors", "width")
LEARNING = (*ANSWERING, "rebuilt", "gradient", "states")


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What makes an input of a hidden state: ``LN(W_2 gelu(W_1 dropout(h)))``.

    Attributes:
        width: of the layer between; the model's own if null.
        dropout: of the hidden state.
        norm: false leaves the layer norm out.
    """

    width: int | None = None
    dropout: float = 0.0
    norm: bool = True

    def __post_init__(self) -> None:
        require_value(self, "width", lambda value: value is None or value >= 1, "at least 1, or null")
        require_value(self, "dropout", lambda value: 0 <= value < 1, "at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class SelfDistillation(Carrier):
    """One model is teacher and student: the student's state after latents learns from the state after explicit text.

    The teacher reads the explicit chain and the answer, and learns both as text. The student reads the question, writes
    a fixed number of latents and learns the answer. Where the next token is the first of the answer's value, a distance
    draws the student's hidden states to the teacher's, which get no gradient from it.

    Attributes:
        latents: in every chain; 0 answers at once.
        distance_weight: of the distance of hidden states.
        teacher_weight: of the teacher's cross-entropy.
        divide_by_std: the distance of a layer is divided by the standard deviation of the teacher's states there.
        last_step: the teacher's chain keeps its last step, which contains the answer.
        projection: of hidden states that are fed back; null feeds them back as they are.
        title: of the method, for messages.
        first_state: of the states that are compared; 0 is the input of the first block, 1 its output.

    Raises:
        ValueError: a number below 0.
    """

    starts_from: ClassVar[tuple[str | None, ...]] = (None, "next_token")
    chain_needed: ClassVar[bool] = True
    steps_needed: ClassVar[bool] = True
    answers_from_latents: ClassVar[bool] = True
    recomputes: ClassVar[bool] = False
    title: ClassVar[str]
    first_state: ClassVar[int] = 0

    latents: int = 6
    distance_weight: float = 1.0
    teacher_weight: float = 1.0
    divide_by_std: bool = True
    last_step: bool = False
    projection: Projection | None = field(default_factory=Projection)

    def __post_init__(self) -> None:
        for name in ("latents", "distance_weight", "teacher_weight"):
            require_value(self, name, lambda value: value >= 0, "0 or more")

    def check_lineage(self, lineage: Lineage, run: Recipe) -> None:
        """Kernels and checkpointing must go with a growing cache, and micro-batches with the distance."""
        refuse_cacheless(self.title, run)
        if self.divide_by_std and lineage.settings.accumulate > 1:
            raise ValueError(
                "divide_by_std takes the deviation over the whole batch, which micro-batches do not see; set "
                "accumulate to 1, or objective.divide_by_std to false"
            )

    @property
    def properties(self) -> Sequence[Needs]:
        """What vectors need that are fed back and learned, and states that are compared."""
        from unspoken.backbone.checks import Needs

        return (Needs(method=self.title, properties=LEARNING),)

    # --- what a method states ----------------------------------------------------------------------------------------

    @staticmethod
    def model_class() -> type[SelfDistilledModel]:
        """The model in training and finished."""
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of the model's configuration besides those that all have."""
        return {}

    @property
    def pass_settings(self) -> dict[str, Any]:
        """Arguments of the model's ``forward`` besides the batch."""
        return {}

    @property
    def projected(self) -> float:
        """Hidden states of a row that are projected, where there is a projection."""
        return self.latents

    def further_passes(self, stack: Any, prompt: float, teacher: float) -> Sequence[StackPass]:
        """Passes of a training row besides one over each of both sequences.

        Args:
            prompt, teacher: tokens of the prompt and of the teacher's sequence.
        """
        return ()

    def scored(self, prompt: float, text: float) -> float:
        """Positions of a student's row that are scored over the vocabulary, given its tokens."""
        raise NotImplementedError

    # --- what follows ------------------------------------------------------------------------------------------------

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """A causal language model with a projection, whose folder records how it reasons."""
        base = context.base() if start is None else start
        # Where nothing is projected, weights that never learn would stall several ranks.
        projection = self.projection if self.projected else None
        return self.model_class().around(
            base,
            context,
            latents=self.latents,
            projection=None if projection is None else asdict(projection),
            initializer_range=getattr(base.config, "initializer_range", 0.02),
            **self.settings,
        )

    def exported(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model with what it has besides its decoder."""
        return model

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """Rows of student and teacher for the same problems."""
        from unspoken.methods.distillation_loss import batch_of

        markers, box, pad = context.markers, context.prompt_format.box, context.tokenizer.pad_token_id

        def make(indices: Indices) -> Batch:
            spans = context.task.spans(context.sample(indices, split), context.prompt_format)
            return batch_of(spans, markers, box, latents=self.latents, last_step=self.last_step, pad_id=pad)

        return make

    def replaced_steps(self, spans: Spans, index: int = 0, seed: int = 0) -> Steps:
        """What the teacher reads between the markers."""
        return spans.steps if self.last_step else spans.steps[:-1]

    def row_length(self, spans: Spans, context: Context) -> int:
        """Of both sequences together."""
        return 2 * (len(spans.prompt) + len(spans.answer)) + sum(map(len, self.replaced_steps(spans)))

    def with_places(self, batch: Batch) -> Batch:
        """See `unspoken.methods.distillation_loss.with_places`."""
        from unspoken.methods.distillation_loss import with_places

        return with_places(batch)

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        """Of the student, the teacher, and the distance."""
        return {**super().counts(batch), "teacher": len(batch["teacher_targets"]), "rows": len(batch["text_ids"])}

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `unspoken.methods.distillation_loss.distillation_loss`."""
        from unspoken.methods.distillation_loss import distillation_loss

        student = ("input_ids", "attention_mask", "latent_mask", "text_ids", "text_mask", "distilled_at")
        given = {name: batch[name] for name in (*student, "teacher", "teacher_at")}
        return distillation_loss(self, model(**given, **self.pass_settings), batch)

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        """The student's text and latents, and the teacher's text, go through the blocks."""
        from unspoken.methods.cost import ProjectionPass, RowCost, Scores, StackPass

        stack, head = model.decoder.base_model, model.decoder.get_output_embeddings().weight
        text = lengths.end + lengths.answer
        chain = lengths.chain * (1.0 if self.last_step else max(0.0, 1 - 1 / max(lengths.steps, 1.0)))
        student, teacher = lengths.prompt + self.latents + text, lengths.prompt + chain + text
        passes = [StackPass(stack=stack, positions=student), StackPass(stack=stack, positions=teacher)]
        passes += self.further_passes(stack, lengths.prompt, teacher)
        if model.projection is not None:
            passes.append(ProjectionPass(stack=model.projection, positions=self.projected))
        return RowCost(
            tokens=student + teacher,
            passes=tuple(passes),
            scores=(
                Scores(head=head, made=self.scored(lengths.prompt, text), supervised=lengths.answer),
                Scores(head=head, made=teacher, supervised=chain + text),
            ),
        )
