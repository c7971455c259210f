"""What latents hold of the chain with MUX (arXiv 2607.18264).

Axes: P latents that stand for a span, S tokens of the longest span, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unspoken import distributed


def superposed(span: Sequence[int], decay: float) -> dict[int, float]:
    """The tokens of a span with their weights, which sum to 1; those of a repeated token are added."""
    weights: dict[int, float] = defaultdict(float)
    total = sum(decay**place for place in range(len(span)))
    for place, token in enumerate(span):
        weights[token] += decay**place / total
    return dict(weights)


def span_targets(spans: Sequence[Sequence[tuple[int, ...]]], latents: int, decay: float) -> dict[str, Tensor]:
    """The distributions that the latents of a batch are drawn to.

    Args:
        spans: of each row, one for each of its first latents.
        latents: columns of the batch.

    Returns:
        ``span_places`` ``[P]`` of the latents that stand for a span; ``span_ids`` and ``span_weights`` ``[P, S]``.
    """
    mixed = [superposed(span, decay) for row in spans for span in row] or [{}]
    places = [row * latents + number for row, own in enumerate(spans) for number in range(len(own))]
    ids = pad_sequence([torch.tensor([*one], dtype=torch.long) for one in mixed], batch_first=True)
    weights = pad_sequence([torch.tensor([*one.values()]) for one in mixed], batch_first=True)
    count = len(places)
    return {
        "span_places": torch.tensor(places, dtype=torch.long),
        "span_ids": ids[:count],
        "span_weights": weights[:count],
    }


def divergence(scores: Float[Tensor, "P V"], added: dict[str, Tensor]) -> Tensor:
    """Mean over the latents of all ranks of ``KL(m || softmax(scores))``, in nats."""
    weights_PS = added["span_weights"]
    likely_PS = F.log_softmax(scores.float(), dim=-1).gather(-1, added["span_ids"])
    own_PS = torch.xlogy(weights_PS, weights_PS) - weights_PS * likely_PS
    # The sum, so that a batch without spans has a loss of 0 and not of nothing.
    return distributed.rank_weighted_mean(own_PS.sum() / max(len(scores), 1), len(scores), "spans")
