"""MUX's one stage (arXiv 2607.18264, after notes on the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from unspoken.methods.carrier import AddedLoss, CarriedRow
from unspoken.methods.method import Batch, Context
from unspoken.ranges import require_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from unspoken.methods.cost import Lengths, Scores, StackPass
    from unspoken.methods.mux.model import MuxModel

_CUTS = 3  # the stream of random numbers that cuts come from; tasks draw from others


@dataclass(frozen=True, kw_only=True)
class Mux(AddedLoss):
    """Divergence of what the head reads in a latent from the tokens of a span of the chain, superposed.

    A chain is cut into as many spans as it has latents. The j-th token of a span has a weight proportional to
    ``decay ** j``, so that the order of the tokens can be read from the weights.

    Attributes:
        decay: rho; 1 forgets the order.
        temperature: divides the scores.
        random_cuts: spans end at random tokens, the same ones whenever a problem is read; false makes them equally
            long.

    Raises:
        ValueError: a number out of range, or as `AddedLoss`.
    """

    kind: ClassVar[str] = "mux"
    starts_from: ClassVar[tuple[str | None, ...]] = (*AddedLoss.starts_from, "mux")

    decay: float = 0.9
    temperature: float = 1.0
    random_cuts: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_value(self, "decay", lambda value: 0 < value <= 1, "above 0 and at most 1")
        require_value(self, "temperature", lambda value: value > 0, "above 0")

    def cut(self, chain: tuple[int, ...], count: int, seed: Sequence[int]) -> list[tuple[int, ...]]:
        """A chain in ``count`` spans, none of them empty; in one token each, where there are not enough."""
        if not chain:
            return []
        count = min(count, len(chain))
        if self.random_cuts:
            ends = np.sort(np.random.default_rng([*seed, _CUTS]).permutation(len(chain) - 1)[: count - 1] + 1)
        else:
            ends = np.arange(1, count) * len(chain) // count
        borders = [0, *ends.tolist(), len(chain)]
        return [chain[begin:end] for begin, end in pairwise(borders)]

    def wrapped(self, carrier: Any) -> MuxModel:
        from unspoken.methods.mux.model import MuxModel

        return MuxModel(carrier)

    def targets(self, rows: Sequence[CarriedRow], context: Context) -> Batch:
        """See `unspoken.methods.mux.objective.span_targets`."""
        from unspoken.methods.mux.objective import span_targets

        chains = [tuple(token for step in row.steps for token in step) for row in rows]
        spans = [
            self.cut(chain, row.latents, (context.seed, row.index)) if row.latents else []
            for chain, row in zip(chains, rows, strict=True)
        ]
        return span_targets(spans, max(row.latents for row in rows), self.decay)

    def added_counts(self, added: Batch) -> dict[str, int | Tensor]:
        return {"spans": len(added["span_places"])}

    def added_loss(self, outputs: Tensor, added: Batch) -> Tensor:
        """See `unspoken.methods.mux.objective.divergence`."""
        from unspoken.methods.mux.objective import divergence

        return divergence(outputs / self.temperature, added)

    def added_cost(self, model: Any, lengths: Lengths) -> tuple[Sequence[StackPass], Sequence[Scores]]:
        """The latents are scored, with a head that does not learn from it."""
        from unspoken.methods.cost import Scores

        head = model.carrier.decoder.get_output_embeddings().weight
        return [], [Scores(head=head.detach(), made=self.carrier.latents, supervised=self.carrier.latents)]
