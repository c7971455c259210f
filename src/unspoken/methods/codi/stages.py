"""CODI's one stage (Shen et al., arXiv 2502.21074; details as in the published code, zhenyi4/codi at 4fd88d4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.method import Batch, Context, DecoderObjective, Indices, Line, refuse_cacheless

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from unspoken.backbone.checks import Needs
    from unspoken.methods.cost import Lengths, RowCost
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
        if (self.width is not None and self.width < 1) or not 0 <= self.dropout < 1:
            raise ValueError(
                f"the projection's width is {self.width} and its dropout {self.dropout}; they must be at least 1, or "
                "null, and in [0, 1)"
            )


@dataclass(frozen=True, kw_only=True)
class Codi(DecoderObjective):
    """One model is teacher and student: the student's state after latents learns from the state after explicit text.

    The teacher reads the explicit chain and the answer, and learns both as text. The student reads the question, writes
    a fixed number of latents and learns the answer. Where the next token is the first of the answer's value, a distance
    draws the student's hidden states of all layers to the teacher's, which get no gradient from it.

    Attributes:
        latents: in every chain; 0 answers at once.
        distance_weight: of the distance of hidden states; the published code has 1 for GPT-2 and 20 for Llama.
        teacher_weight: of the teacher's cross-entropy.
        divide_by_std: the distance of a layer is divided by the standard deviation of the teacher's states there.
        last_step: the teacher's chain keeps its last step, which contains the answer.
        projection: of hidden states that are fed back; null feeds them back as they are, and the finished folder is
            then a plain language model's.
        separate_teacher: the states that the student is drawn to come from a pass of their own, as in the published
            code; they differ from those of the learning pass by dropout alone.

    Raises:
        ValueError: a number below 0.
    """

    kind: ClassVar[str] = "codi"
    starts_from: ClassVar[tuple[str | None, ...]] = (None, "next_token")
    chain_needed: ClassVar[bool] = True
    steps_needed: ClassVar[bool] = True
    answers_from_latents: ClassVar[bool] = True
    recomputes: ClassVar[bool] = False

    latents: int = 6
    distance_weight: float = 1.0
    teacher_weight: float = 1.0
    divide_by_std: bool = True
    last_step: bool = False
    projection: Projection | None = field(default_factory=Projection)
    separate_teacher: bool = False

    def __post_init__(self) -> None:
        if min(self.latents, self.distance_weight, self.teacher_weight) < 0:
            raise ValueError(
                f"latents is {self.latents}, distance_weight {self.distance_weight} and teacher_weight "
                f"{self.teacher_weight}; none of them can be below 0"
            )

    def check_line(self, line: Line, run: Recipe) -> None:
        """Kernels and checkpointing must go with a growing cache."""
        refuse_cacheless("CODI", run)

    @property
    def properties(self) -> Sequence[Needs]:
        """What vectors need that are fed back and learned, and states that are compared."""
        from unspoken.backbone.checks import Needs

        return (Needs(method="CODI", properties=LEARNING),)

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """A causal language model with a projection, whose folder records how it reasons."""
        from unspoken.methods.codi.configuration import CodiConfig
        from unspoken.methods.codi.model import CodiForCausalLM

        base = context.base() if start is None else start
        # Without latents nothing is projected, and weights that never learn would stall several ranks.
        projected = self.projection is not None and self.latents > 0
        config = CodiConfig(
            base_config=base.config,
            latents=self.latents,
            open_ids=list(context.markers.open),
            end_ids=list(context.markers.end),
            projection=asdict(self.projection) if self.projection is not None and projected else None,
            initializer_range=getattr(base.config, "initializer_range", 0.02),
            eos_token_id=context.tokenizer.eos_token_id,
            pad_token_id=context.tokenizer.pad_token_id,
        )
        model = CodiForCausalLM._from_config(config, attn_implementation=context.attention)
        model.start_from(base)
        context.name_ends(model)
        if not projected:
            context.generation(feed="hidden", max_latents=self.latents, fixed=True).attach(model.decoder)
            context.name_ends(model.decoder)
        return model

    def exported(self, model: Any) -> PreTrainedModel:
        """The model with its projection; the plain causal language model where there is none."""
        return super().exported(model) if model.projection is None else model

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """Rows of student and teacher for the same problems."""
        from unspoken.methods.codi.objective import batch_of

        markers, box, pad = context.markers, context.prompt_format.box, context.tokenizer.pad_token_id

        def make(indices: Indices) -> Batch:
            spans = context.task.spans(context.sample(indices, split), context.prompt_format)
            return batch_of(spans, markers, box, latents=self.latents, last_step=self.last_step, pad_id=pad)

        return make

    def row_length(self, spans: Spans, context: Context) -> int:
        """Of both sequences together."""
        chain = spans.steps if self.last_step else spans.steps[:-1]
        return 2 * (len(spans.prompt) + len(spans.answer)) + sum(map(len, chain))

    def with_places(self, batch: Batch) -> Batch:
        from unspoken.methods.codi.objective import with_places

        return with_places(batch)

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        from unspoken.methods.codi.objective import codi_loss

        student = ("input_ids", "attention_mask", "latent_mask", "text_ids", "text_mask", "distilled_at")
        given = {name: batch[name] for name in (*student, "teacher", "teacher_at")}
        return codi_loss(self, model(**given, separate_teacher=self.separate_teacher), batch)

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        from unspoken.methods.codi.cost import row_cost

        return row_cost(self, model, lengths)
