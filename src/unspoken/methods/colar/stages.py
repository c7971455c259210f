"""CoLaR's supervised stage (Tan et al., arXiv 2505.16552; details as in the published code, xiaomi-research/colar at
4b6ae9a).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from unspoken.methods.method import Batch, Context, DecoderObjective, Indices
from unspoken.methods.self_distillation import ANSWERING
from unspoken.ranges import require_value
from unspoken.tasks.spans import Markers, Spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from unspoken.backbone.checks import Needs
    from unspoken.methods.colar.model import ColarForCausalLM
    from unspoken.methods.cost import Lengths, RowCost

_DRAWS = 2  # the stream of random numbers that compressions and labels come from; tasks draw from others
_NONE = -100  # no label


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training sequence: ``prompt | speed | open | groups of the chain | end | answer``.

    Attributes:
        groups: tokens of each position; all but those of the chain have one.
        labels: the token that the output before a position learns; `_NONE` where it learns none.
        grouped: positions that the output before them learns to predict as a latent: the groups of the chain, and the
            first token of the end marker.
    """

    groups: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    grouped: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Colar(DecoderObjective):
    """Groups of r chain tokens become one latent, the sum of their rows over the root of their number.

    Each row has a random r, which its prompt names. A head predicts the next group as a Gaussian, and the model's own
    head one of the group's tokens, then the end marker and the answer. The finished model thinks at any speed up to
    ``max_compression``. Table and head of the model do not change.

    Attributes:
        max_compression: the largest r, the number of tokens that a latent stands for.
        compression: r of the finished model where nothing else is asked for, and of validation.
        speed: text after the question that names r, with ``{}`` in its place.
        latent_loss: of the head: ``nll``, the negative log-likelihood; ``sample``, the squared distance of a draw, the
            published default, which drives the deviation to zero; ``mean``, of the mean of a head without deviation.
        token_weight, latent_weight: of both losses.
        floor: smallest standard deviation in the likelihood, in units of the table's.
        head_width: of the latent head's inner layers; the model's own if null.
        root_mean: false divides the sum of a group by the number of its tokens.

    Raises:
        ValueError: a number out of range, or a speed text without ``{}``.
    """

    kind: ClassVar[str] = "colar"
    title: ClassVar[str] = "CoLaR"
    starts_from: ClassVar[tuple[str | None, ...]] = (None, "next_token")
    chain_needed: ClassVar[bool] = True
    answers_from_latents: ClassVar[bool] = True

    max_compression: int = 5
    compression: int = 2
    speed: str = "(Thinking speed: {})"
    latent_loss: Literal["nll", "sample", "mean"] = "nll"
    token_weight: float = 1.0
    latent_weight: float = 1.0
    floor: float = 0.1
    head_width: int | None = None
    root_mean: bool = True

    def __post_init__(self) -> None:
        largest = self.max_compression
        require_value(self, "max_compression", lambda value: value >= 1, "at least 1")
        require_value(
            self, "compression", lambda value: 1 <= value <= largest, f"from 1 to max_compression, which is {largest}"
        )
        for name in ("token_weight", "latent_weight"):
            require_value(self, name, lambda value: value >= 0, "0 or more")
        require_value(self, "floor", lambda value: value > 0, "above 0")
        require_value(self, "head_width", lambda value: value is None or value >= 1, "at least 1, or null")
        if self.speed.count("{}") != 1:
            raise ValueError(f"speed is {self.speed!r}; it must hold {{}} once, where the compression stands")

    @property
    def properties(self) -> Sequence[Needs]:
        """What vectors need that are learned and fed back."""
        from unspoken.backbone.checks import Needs

        return (Needs(method=self.title, properties=(*ANSWERING, "rebuilt")),)

    # --- model -----------------------------------------------------------------------------------------------------

    @staticmethod
    def model_class() -> type[ColarForCausalLM]:
        """The model in training and finished."""
        from unspoken.methods.colar.model import ColarForCausalLM

        return ColarForCausalLM

    def speeds(self, context: Context) -> list[list[int]]:
        """For each compression from 1, the tokens that name it.

        Raises:
            ValueError: the tokenizer cannot write the text, or writes it alike for two of them.
        """
        texts = [self.speed.format(number) for number in range(1, self.max_compression + 1)]
        try:
            written = [list(context.prompt_format.encode(text)) for text in texts]
        except Exception as error:  # a tokenizer without a token for unknown words raises one of no class of its own
            raise ValueError(
                f"speed is {self.speed!r}, which the tokenizer cannot write ({error}); give another, such as '{{}}'"
            ) from None
        if len(set(map(tuple, written))) < len(written):
            raise ValueError(
                f"speed is {self.speed!r}, of which the tokenizer makes the same tokens for several numbers; give "
                "another, or a smaller max_compression"
            )
        return written

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """A causal language model with a latent head, whose folder records how it reasons."""
        base = context.base() if start is None else start
        return self.model_class().around(
            base,
            context,
            compression=self.compression,
            speed_ids=self.speeds(context),
            latents=context.max_latents,
            head_width=self.head_width,
            deterministic=self.latent_loss == "mean",
            floor=self.floor if self.latent_loss == "nll" else 0.0,
            root_mean=self.root_mean,
            initializer_range=getattr(base.config, "initializer_range", 0.02),
        )

    def exported(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model with its latent head."""
        return model

    # --- data ------------------------------------------------------------------------------------------------------

    def row(self, spans: Spans, markers: Markers, speeds: Sequence[Sequence[int]], draws: np.random.Generator) -> Row:
        """A problem at a random speed, with a random token of each group as its label."""
        compression = int(draws.integers(1, self.max_compression + 1))
        head = (*spans.prompt, *speeds[compression - 1], *markers.open)
        chain, tail = tuple(_groups(spans.chain, compression)), (*markers.end, *spans.answer)
        drawn = [group[draws.integers(len(group))] for group in chain]
        return Row(
            groups=(*((token,) for token in head), *chain, *((token,) for token in tail)),
            labels=(*(_NONE for _ in head), *drawn, *tail),
            grouped=(*(False for _ in head), *(True for _ in chain), True, *(False for _ in tail[1:])),
        )

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """Rows whose speeds and labels are a function of seed and sample."""
        from unspoken.methods.colar.objective import batch_of

        markers, speeds, pad = context.markers, self.speeds(context), context.tokenizer.pad_token_id

        def make(indices: Indices) -> Batch:
            spans = context.task.spans(context.sample(indices, split), context.prompt_format)
            draws = [np.random.default_rng([context.seed, index, _DRAWS]) for index in indices.tolist()]
            rows = [self.row(one, markers, speeds, own) for one, own in zip(spans, draws, strict=True)]
            return {**batch_of(rows, pad)}

        return make

    def row_length(self, spans: Spans, context: Context) -> int:
        """With the chain as it is without compression, since speeds are random."""
        return len(spans.prompt) + len(spans.chain) + len(spans.answer)

    def with_places(self, batch: Batch) -> Batch:
        from unspoken.methods.colar.objective import with_places

        return with_places(batch)

    # --- training --------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        return {**super().counts(batch), "latents": len(batch["before_groups"])}

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        from unspoken.methods.colar.objective import colar_loss

        batch = batch if "targets" in batch else self.with_places(batch)
        names = ("ids", "members", "attention_mask", "before_targets", "before_groups")
        return colar_loss(self, model(**{name: batch[name] for name in names}), batch)

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        """One pass over the compressed row, averaged over the speeds; a group is predicted by both heads."""
        from unspoken.methods.cost import ProjectionPass, RowCost, Scores, StackPass

        speeds = range(1, self.max_compression + 1)
        groups = sum(math.ceil(lengths.chain / speed) for speed in speeds) / len(speeds)
        named = sum(map(len, self.speeds(context))) / len(speeds)
        supervised = groups + lengths.end + lengths.answer
        tokens = lengths.prompt + named + supervised
        return RowCost(
            tokens=tokens,
            passes=(
                StackPass(stack=model.decoder.base_model, positions=tokens),
                ProjectionPass(stack=model.latent_head, positions=groups + 1),
            ),
            scores=(Scores(head=model.decoder.get_output_embeddings().weight, made=supervised, supervised=supervised),),
        )


def _groups(chain: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    """A chain in groups of ``size`` tokens; the last one may be smaller."""
    return (tuple(chain[first : first + size]) for first in range(0, len(chain), size))
