"""The coupled Transformer's stages: the next token of text, with or without its explicit chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from unspoken.methods.method import Batch, Context, Indices, Lineage, Objective
from unspoken.tasks.task import AsksSeveral

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from unspoken.backbone.checks import Method as Property
    from unspoken.methods.cost import Lengths, RowCost
    from unspoken.tasks.spans import Spans
    from unspoken.training.recipe import Recipe

# In a vocabulary of this size or more, positions without a target are not scored; in a smaller one it saves little.
LARGE_VOCABULARY = 8192
_MEASURED_ROWS = 16  # of several questions, whose mean length a plan counts with


@dataclass(frozen=True, kw_only=True)
class NextToken(Objective):
    """Cross-entropy of the next token.

    Attributes:
        positions: ``"all"`` (stage 1 of the paper) or ``"answer"`` (tuning on the route alone; of a reasoning problem,
            on chain and answer).
        chain: ``"none"`` leaves the explicit chain of a reasoning problem out: the answer-only baseline.
        questions: problems with the same beginning that one training row asks, such as several leaves of one tree. Each
            sees the shared beginning and itself alone, so a row trains what as many rows would, and reads the beginning
            once.
    """

    kind: ClassVar[str] = "next_token"
    starts_from: ClassVar[tuple[str | None, ...]] = (None, "next_token")

    positions: Literal["all", "answer"] = "all"
    chain: Literal["explicit", "none"] = "explicit"
    questions: int = 1

    def __post_init__(self) -> None:
        if self.questions < 1:
            raise ValueError(f"questions is {self.questions}; it must be at least 1")

    def check_lineage(self, lineage: Lineage, run: Recipe) -> None:
        """A chain to leave out must exist, and a task limits the questions of a row."""
        traits, name = (lineage.settings.task or run.task).traits, run.task.kind.replace("_", " ")
        if self.chain == "none" and not traits.has_chain:
            raise ValueError(f"chain is 'none', but {name} has no chain to leave out")
        if self.chain == "none" and self.questions > 1:
            raise ValueError("chain is 'none', but rows of several questions have their chains; leave questions out")
        if self.questions > traits.questions:
            raise ValueError(
                f"objective.questions is {self.questions}, but {name} as it is set up asks at most {traits.questions} "
                "in a row"
            )
        if self.questions > 1 and isinstance(run.backbone, str):
            raise ValueError(
                f"objective.questions is {self.questions}, but rows of several have the tokens of {name} itself, not "
                "those of a pretrained model; leave it out"
            )

    def measured(self, *, last: bool, has_chain: bool) -> bool:
        """An explicit chain of thought is both a start and a baseline."""
        return last or (has_chain and self.positions == "answer")

    def candidate(self, step: int) -> bool:
        """All of them: what it starts from does the same task."""
        return True

    @property
    def writes_tokens(self) -> bool:
        """Unless the chain is left out."""
        return self.chain == "explicit"

    @property
    def properties(self) -> Sequence[Property]:
        """What writing tokens needs."""
        return ("explicit chains",)

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """A causal language model; its folder records how it writes its chain, if it has one."""
        model = context.base() if start is None else start
        if context.has_chain:
            # An explicit chain is the superposition of one token; without a chain there are none.
            how = {} if self.chain == "explicit" else {"max_latents": 0, "fixed": True}
            context.generation(top_k=1, **how).attach(model)
        else:
            from unspoken.reasoning.causal_lm import forget_reasoning

            forget_reasoning(model)
        context.name_ends(model)
        return model

    @property
    def questions_per_row(self) -> int:
        """As set."""
        return self.questions

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """Rows of text."""
        if self.questions > 1:
            return lambda indices: _several(context, context.sample(indices, split), self.questions)
        from unspoken.methods.coupled.objective import supervised_places

        sparse = self.positions == "answer" and context.has_chain and len(context.tokenizer) >= LARGE_VOCABULARY

        def make(indices: Indices) -> Batch:
            problems = context.sample(indices, split)
            batch = context.task.rows(problems, context.prompt_format, chain=self.chain == "explicit")
            return {**batch, "supervised": supervised_places(batch)} if sparse else batch

        return make

    def row_length(self, spans: Spans, context: Context) -> int:
        """The chain counts unless it is left out."""
        return len(spans.prompt) + (len(spans.chain) if self.chain == "explicit" else 0) + len(spans.answer)

    def with_places(self, batch: Batch) -> Batch:
        from unspoken.methods.coupled.objective import with_places

        return with_places(batch, self.positions)

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        from unspoken.methods.coupled.objective import next_token_loss, own_question

        # An argument of transformers models, so that caps and scales of the model's head apply to these scores too.
        scored = {"logits_to_keep": batch["supervised"]} if "supervised" in batch else {}
        seen: dict[str, Any] = {"attention_mask": batch["attention_mask"]}
        if "question" in batch:
            seen = {"attention_mask": own_question(batch["question"]), "position_ids": batch["position_ids"]}
        outputs = model(input_ids=batch["input_ids"], use_cache=False, **seen, **scored)
        return next_token_loss(outputs, batch, self.positions)

    def row_cost(self, model: PreTrainedModel, lengths: Lengths, context: Context) -> RowCost:
        """One pass; of a large vocabulary only the supervised places are scored."""
        from unspoken.methods.cost import RowCost, Scores, StackPass

        explicit = self.chain == "explicit"
        tokens = lengths.total - (0 if explicit else lengths.chain)
        answered = lengths.answer + (lengths.chain + lengths.end if explicit else 0)
        head: Any = model.get_output_embeddings()
        if self.questions > 1:
            rows = _several(context, context.sample(np.arange(_MEASURED_ROWS)), self.questions)
            tokens = float(rows["attention_mask"].sum()) / _MEASURED_ROWS
            answered *= self.questions
        supervised = tokens if self.positions == "all" else answered
        made = supervised if len(head.weight) >= LARGE_VOCABULARY else tokens
        return RowCost(
            tokens=tokens,
            passes=(StackPass(stack=model.base_model, positions=tokens),),
            scores=(Scores(head=head.weight, made=made, supervised=supervised),),
        )


def _several(context: Context, problems: Any, questions: int) -> Batch:
    """Rows of several questions, of a task that can ask them."""
    assert isinstance(context.training_task, AsksSeveral)
    return context.training_task.question_rows(problems, questions)
