"""One token repeated between question and answer; with a curriculum, in place of the first explicit steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.method import Batch, Context, Indices, Lineage, Objective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from unspoken.backbone.checks import Needs
    from unspoken.methods.cost import Lengths, RowCost
    from unspoken.tasks.spans import Markers, Spans
    from unspoken.training.recipe import Recipe, Stage

# Properties of the causal language model, see `unspoken.backbone.checks`.
NEEDED = ("stack", "rows", "causal", "cached", "batched", "padded", "scores")


@dataclass(frozen=True, kw_only=True)
class Pause(Objective):
    """Cross-entropy of what follows the pauses: ``prompt | open | pauses | end | steps that are left | answer``.

    Neither pauses nor markers are learned. The token is a row that is appended to the table and starts as a copy of the
    open marker's, or an ordinary token.

    Attributes:
        pauses: in every row; 0 answers at once.
        filler: text of the ordinary token that is repeated; null appends a row.
        replaced: explicit steps that the pauses stand for, in stages that each start from the one before ("pause as
            thought", Coconut's curriculum); the steps after them are learned as text. Null leaves all of them out.

    Raises:
        ValueError: a number below 0.
    """

    kind: ClassVar[str] = "pause"
    starts_from: ClassVar[tuple[str | None, ...]] = (None, "next_token", "pause")
    chain_needed: ClassVar[bool] = True

    pauses: int = 6
    filler: str | None = None
    replaced: int | None = None

    def __post_init__(self) -> None:
        if self.pauses < 0 or (self.replaced is not None and self.replaced < 0):
            raise ValueError(f"pauses is {self.pauses} and replaced {self.replaced}; neither can be below 0")

    @property
    def appends(self) -> bool:
        """Whether the table has a row for the pause alone."""
        return self.filler is None and self.pauses > 0

    def check_stage(self, stage: Stage) -> None:
        """Weight decay would shrink rows that adapters leave frozen: of some models it reaches the table."""
        super().check_stage(stage)
        if stage.lora is not None and self.appends and stage.optimizer.weight_decay:
            raise ValueError(
                f"optimizer.weight_decay is {stage.optimizer.weight_decay}, but with lora it would change the rows of "
                "the table that stay frozen beside the pause's; set it to 0 or give a filler"
            )

    def check_lineage(self, lineage: Lineage, run: Recipe) -> None:
        """A curriculum repeats one token, and replaces more and more steps."""
        before = None if lineage.before is None else lineage.before.objective
        if not isinstance(before, Pause):
            return
        assert lineage.before is not None
        if before.filler != self.filler:
            raise ValueError(
                f"filler is {self.filler!r}, but {before.filler!r} in {lineage.before.name!r} before it; set the same"
            )
        if self.replaced is not None and (before.replaced is None or self.replaced < before.replaced):
            raise ValueError(
                f"replaced is {self.replaced}, but {before.replaced} in {lineage.before.name!r} before it; later "
                "stages of a curriculum replace more steps"
            )

    @property
    def properties(self) -> Sequence[Needs]:
        """What reading and writing tokens needs."""
        from unspoken.backbone.checks import Needs

        return (Needs(method="pause tokens", properties=NEEDED),)

    def token(self, context: Context) -> int:
        """The token that is repeated: the filler, or the first that the backbone's table has no row for.

        Raises:
            ValueError: the filler is not one token.
        """
        if self.filler is not None:
            ids = context.prompt_format.encode(self.filler)
            if len(ids) != 1:
                raise ValueError(f"filler is {self.filler!r}, which is {len(ids)} tokens; give a text that is one")
            return ids[0]
        # Without pauses it is never read.
        return int(context.backbone_config().get_text_config().vocab_size) if self.pauses else context.markers.open[-1]

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """A causal language model whose folder records how it pauses."""
        from unspoken.methods.pause.configuration import PauseSettings, append_row

        model = context.base() if start is None else start
        token, markers = self.token(context), context.markers
        if len(model.get_input_embeddings().weight) == token:
            append_row(model, markers.open[-1])
        assert token < len(model.get_input_embeddings().weight)
        settings = PauseSettings(token=token, pauses=self.pauses, open_ids=markers.open, end_ids=markers.end)
        settings.attach(model)
        context.name_ends(model)
        return model

    def after_adapters(self, model: PreTrainedModel) -> None:
        """Only the row of the pause is trained beside the adapters.

        Raises:
            ValueError: several ranks shard the table, where one row cannot be trained without the others.
        """
        from unspoken import distributed
        from unspoken.methods.pause.configuration import train_last_row

        if not self.appends:
            return
        if distributed.sharded():
            raise ValueError("the pause's row cannot be trained alone in a sharded table; set lora to null or a filler")
        train_last_row(model)

    def row(self, spans: Spans, markers: Markers, token: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What a row is given, and what it learns."""
        left = () if self.replaced is None else spans.steps[self.replaced :]
        learned = (*(token for step in left for token in step), *spans.answer)
        return (*spans.prompt, *markers.open, *(token,) * self.pauses, *markers.end), learned

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """Rows of text with pauses."""
        from unspoken.methods.pause.objective import batch_of

        markers, token, pad = context.markers, self.token(context), context.tokenizer.pad_token_id

        def make(indices: Indices) -> Batch:
            spans = context.task.spans(context.sample(indices, split), context.prompt_format)
            return {**batch_of([self.row(one, markers, token) for one in spans], pad)}

        return make

    def row_length(self, spans: Spans, context: Context) -> int:
        """The pauses are as many in every row."""
        left = () if self.replaced is None else spans.steps[self.replaced :]
        return len(spans.prompt) + sum(map(len, left)) + len(spans.answer)

    def with_places(self, batch: Batch) -> Batch:
        from unspoken.methods.pause.objective import with_places

        return with_places(batch)

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        from unspoken.methods.latent_pass import text_loss

        if "places" not in batch:
            batch = self.with_places(batch)
        scored = {"logits_to_keep": batch["supervised"]} if "supervised" in batch else {}
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, **scored)
        loss = text_loss(outputs.logits, batch)
        return loss, {"token_loss": loss.detach()}

    def answer_tokens(self, context: Context) -> int:
        """Steps that are left come before the answer."""
        return context.max_answer + (0 if self.replaced is None else context.max_latents)

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        """One pass over all of it; only what is learned is scored."""
        from unspoken.methods.cost import RowCost, Scores, StackPass

        left = 0.0 if self.replaced is None else lengths.chain * max(0.0, 1 - self.replaced / max(lengths.steps, 1.0))
        learned = left + lengths.answer
        tokens = lengths.prompt + self.pauses + lengths.end + learned
        return RowCost(
            tokens=tokens,
            passes=(StackPass(stack=model.base_model, positions=tokens),),
            scores=(Scores(head=model.get_output_embeddings().weight, made=learned, supervised=learned),),
        )
