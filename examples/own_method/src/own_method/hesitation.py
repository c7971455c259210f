"""The marker that opens a chain, several times before the answer: pause tokens (arXiv 2310.02226) without a new token.

The model gets more positions to compute in, but nothing is fed back, so they are read in one pass. This file is
imported with every recipe, so torch is imported inside the functions that need it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.method import Batch, Context, Indices, Method, Objective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from unspoken.backbone.checks import Method as Property
    from unspoken.methods.cost import Lengths, RowCost
    from unspoken.methods.defaults import TrainingFacts
    from unspoken.reasoning.system import System
    from unspoken.tasks.spans import Spans


@dataclass(frozen=True, kw_only=True)
class Hesitate(Objective):
    """The one stage: ``prompt | marker, several times | end marker | answer``, of which the answer is learned.

    Of a marker of several tokens it is the first.

    Attributes:
        times: how often.
    """

    kind: ClassVar[str] = "hesitate"
    starts_from: ClassVar[tuple[str | None, ...]] = (None, "next_token", "hesitate")
    answers_from_latents: ClassVar[bool] = True

    times: int = 8

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"times is {self.times}; it must be at least 1")

    # --- model -----------------------------------------------------------------------------------------------------

    @property
    def properties(self) -> Sequence[Property]:
        """What the model must be, see `unspoken.backbone.checks`."""
        return ("explicit chains",)

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """The causal language model itself, whose folder will record how it hesitates."""
        model = context.base() if start is None else start
        config: Any = model.generation_config
        config.hesitation = {"times": self.times, "token_id": context.markers.open[0], "end_ids": context.markers.end}
        config._from_model_config = False  # else the library makes a new one when it loads the folder
        context.name_ends(model)
        return model

    def after_adapters(self, model: PreTrainedModel) -> None:
        """The row of the marker must be learned, which adapters leave as it is."""
        model.get_input_embeddings().requires_grad_(True)

    # --- data ------------------------------------------------------------------------------------------------------

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """Rows padded on the right; ``answer_mask`` is true on what is learned."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        between = (context.markers.open[0],) * self.times + context.markers.end
        pad = context.tokenizer.pad_token_id

        def make(indices: Indices) -> Batch:
            spans = context.task.spans(context.sample(indices, split), context.prompt_format)
            rows = [torch.tensor((*row.prompt, *between, *row.answer)) for row in spans]
            learned = [
                torch.arange(len(ids)) >= len(ids) - len(row.answer) for ids, row in zip(rows, spans, strict=True)
            ]
            real = [torch.ones_like(ids) for ids in rows]
            return {
                "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad),
                "attention_mask": pad_sequence(real, batch_first=True),
                "answer_mask": pad_sequence(learned, batch_first=True),
            }

        return make

    def row_length(self, spans: Spans, context: Context) -> int:
        """Tokens of a row but for what all rows have alike."""
        return len(spans.prompt) + len(spans.answer)

    # --- training --------------------------------------------------------------------------------------------------

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the answer's tokens."""
        import torch.nn.functional as F

        from unspoken import distributed

        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        learned = batch["answer_mask"][:, 1:]
        targets = batch["input_ids"][:, 1:][learned]
        loss = F.cross_entropy(outputs.logits[:, :-1][learned].float(), targets)
        return distributed.rank_weighted_mean(loss, len(targets)), {"token_loss": loss.detach()}

    def row_cost(self, model: PreTrainedModel, lengths: Lengths, context: Context) -> RowCost:
        """One pass over prompt, markers and answer; for ``unspoken run --plan``."""
        from unspoken.methods.cost import RowCost, Scores, StackPass

        tokens = lengths.prompt + self.times + lengths.end + lengths.answer
        head: Any = model.get_output_embeddings()
        return RowCost(
            tokens=tokens,
            passes=(StackPass(stack=model.base_model, positions=tokens),),
            scores=(Scores(head=head.weight, made=tokens, supervised=lengths.answer),),
        )


class HesitationMethod(Method):
    """Hesitation as a method."""

    name: ClassVar[str] = "hesitation"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Hesitate,)

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """``unspoken train hesitation --model FOLDER --data FILE``; it needs no explicit chains."""
        return {"hesitation": [{"name": "hesitation", "objective": {"kind": "hesitate"}, "epochs": 3}]}

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        """See `own_method.answering.systems`."""
        from own_method.answering import systems

        return systems(model, stage=stage, max_answer=max_answer)


HESITATION = HesitationMethod()
