"""Tokens of an answer with their log-probabilities.

Axes: R rows, N places of an answer, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.reasoning.picking import Sampler

_LOWEST = -9999.0  # of a token that cannot be: JSON has no minus infinity


@dataclass(frozen=True, kw_only=True)
class ScoredToken:
    """A token of an answer.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability at temperature 1, whatever it was drawn at.
        top: the most likely tokens at its place, with theirs.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]


class ScoringSampler:
    """Chooses the tokens of one answer as a `Sampler` does, and keeps their log-probabilities.

    Args:
        sampler: chooses.
        top: how many of the most likely tokens are kept at each place.
    """

    def __init__(self, sampler: Sampler, top: int) -> None:
        self.scored: list[ScoredToken] = []
        self._sampler = sampler
        self._top = top

    def __call__(self, scores: Float[Tensor, "R N V"], rows: Int[Tensor, " R"], first: int) -> Int[Tensor, "R N"]:
        """Tokens of a batch of one row, wherever they stand."""
        tokens = self._sampler(scores, rows, first)
        logprobs = torch.log_softmax(scores[0].float(), dim=-1)
        chosen = logprobs.gather(1, tokens[0][:, None])[:, 0].tolist()
        best = logprobs.topk(min(self._top, logprobs.shape[-1]), dim=-1)
        tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        self.scored += [
            ScoredToken(
                token=token,
                logprob=max(logprob, _LOWEST),
                top=[(other, max(value, _LOWEST)) for other, value in zip(ids, values, strict=True)],
            )
            for token, logprob, (ids, values) in zip(tokens[0].tolist(), chosen, tops, strict=True)
        ]
        return tokens
