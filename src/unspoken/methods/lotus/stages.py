"""LOTUS's curriculum (arXiv 2606.31779; details as in the published code, yingfan-bot/lotus at eb77e2f)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.method import Batch, Context, Indices, Lineage, Objective, refuse_cacheless
from unspoken.methods.self_distillation import ANSWERING
from unspoken.ranges import require_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from unspoken.backbone.checks import Needs
    from unspoken.methods.cost import Lengths, RowCost
    from unspoken.methods.lotus.model import LotusForCausalLM
    from unspoken.tasks.spans import Spans
    from unspoken.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Lotus(Objective):
    """One stage: blocks of latents stand for the first steps of the chain, and the rest is learned as text.

    All latents are read together, again and again; in each pass a latent is the learned row and its own output of the
    pass before. After the last pass the head of the language model predicts from each output the token that the next
    latent stands for. Every row has as many latents, and those without a token are not supervised.

    Attributes:
        replaced: steps replaced by latents (the paper's s, up to K = 6).
        latents_per_step: latents for each of them (the paper's c); tokens of longer steps are cut off.
        iterations: passes over all latents after the first one (the paper's R); null makes as many as steps are
            replaced, as the published stages do.
        latent_weight: of the loss of what latents stand for.
        add_row: false makes a latent of the output alone (the published option "replace").

    Raises:
        ValueError: a number out of range.
    """

    kind: ClassVar[str] = "lotus"
    title: ClassVar[str] = "LOTUS"
    starts_from: ClassVar[tuple[str | None, ...]] = (None, "next_token", "lotus")
    chain_needed: ClassVar[bool] = True
    steps_needed: ClassVar[bool] = True
    answers_from_latents: ClassVar[bool] = True
    recomputes: ClassVar[bool] = False

    replaced: int
    latents_per_step: int = 13
    iterations: int | None = None
    latent_weight: float = 0.05
    add_row: bool = True

    def __post_init__(self) -> None:
        for name in ("replaced", "latents_per_step"):
            require_value(self, name, lambda value: value >= 1, "at least 1")
        require_value(self, "iterations", lambda value: value is None or value >= 0, "0 or more, or null")
        require_value(self, "latent_weight", lambda value: value >= 0, "0 or more")

    @property
    def latents(self) -> int:
        """Length of every chain of this stage."""
        return self.replaced * self.latents_per_step

    @property
    def loops(self) -> int:
        """Passes over all latents after the first one."""
        return self.replaced if self.iterations is None else self.iterations

    @staticmethod
    def model_class() -> type[LotusForCausalLM]:
        """The model in training and finished."""
        from unspoken.methods.lotus.model import LotusForCausalLM

        return LotusForCausalLM

    def check_lineage(self, lineage: Lineage, run: Recipe) -> None:
        """A curriculum replaces more and more steps; kernels and checkpointing must go with a growing cache."""
        before = None if lineage.before is None else lineage.before.objective
        if isinstance(before, Lotus) and (before.replaced > self.replaced or before.add_row != self.add_row):
            assert lineage.before is not None
            raise ValueError(
                f"replaced is {self.replaced} and add_row {self.add_row}, but {lineage.before.name!r} before it has "
                f"{before.replaced} and {before.add_row}; later stages replace more steps, by the same kind of latents"
            )
        refuse_cacheless(self.title, run)

    @property
    def properties(self) -> Sequence[Needs]:
        """What vectors need that are fed back and learned."""
        from unspoken.backbone.checks import Needs

        return (Needs(method=self.title, properties=(*ANSWERING, "rebuilt", "gradient")),)

    def text(self, spans: Spans) -> tuple[int, ...]:
        """What is learned as text: the steps that are left, and the answer."""
        return (*(token for step in spans.steps[self.replaced :] for token in step), *spans.answer)

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """A causal language model with a latent row, whose folder records how it reasons."""
        base = context.base() if start is None else start
        return self.model_class().around(
            base,
            context,
            base_config=getattr(base.config, "base_config", None) or base.config,
            latents=self.latents,
            iterations=self.loops,
            add_row=self.add_row,
        )

    def adapted(self, model: Any) -> list[nn.Module]:
        """The language model, whose head is frozen as its table is."""
        return [model.decoder]

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """Rows in which latents replace the first steps."""
        from unspoken.methods.lotus.objective import batch_of

        def make(indices: Indices) -> Batch:
            spans = context.task.spans(context.sample(indices, split), context.prompt_format)
            return batch_of(self, spans, context.markers, context.tokenizer.pad_token_id)

        return make

    def row_length(self, spans: Spans, context: Context) -> int:
        """The latents are as many in every row."""
        return len(spans.prompt) + len(self.text(spans))

    def with_places(self, batch: Batch) -> Batch:
        from unspoken.methods.lotus.objective import with_places

        return with_places(batch)

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        return {**super().counts(batch), "steps": len(batch["step_targets"])}

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        from unspoken.methods.lotus.objective import lotus_loss

        names = ("input_ids", "attention_mask", "latent_mask", "text_ids", "text_mask")
        return lotus_loss(self, model(**{name: batch[name] for name in names}), batch)

    def answer_tokens(self, context: Context) -> int:
        """Steps that are left come before the answer."""
        return context.max_answer + context.max_latents

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        """One pass over everything, and one over the latents for each iteration; latents and text are scored."""
        from unspoken.methods.cost import RowCost, Scores, StackPass

        stack, head = model.decoder.base_model, model.decoder.get_output_embeddings().weight
        replaced = lengths.chain * min(1.0, self.replaced / max(lengths.steps, 1.0))
        text = lengths.end + lengths.chain - replaced + lengths.answer
        tokens = lengths.prompt + self.latents + text
        loop = StackPass(stack=stack, positions=self.latents, across=lengths.prompt)
        last = text + self.latents + (1 if self.loops else lengths.prompt)
        return RowCost(
            tokens=tokens,
            passes=(StackPass(stack=stack, positions=tokens), *[loop] * self.loops),
            scores=(Scores(head=head, made=last, supervised=min(replaced, self.latents) + text),),
        )
