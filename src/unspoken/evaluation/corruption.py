"""What the Talker says when its latents or its first words are wrong (JEPA-Reasoner, appendix C).

The paper shows single sentences. Here it is a number: of the tokens behind the prime, the share that is the sentence's
own, and the share that is another sentence's at the same place. Sentences come in pairs of about the same length, rows
``2 i`` and ``2 i + 1``; each is the other sentence of the other.

Axes: B sentences, T tokens, N latents (one a token), P tokens of a prime, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unspoken.evaluation.controls import noise
from unspoken.evaluation.significance import Outcomes, bootstrap_means, interval, rate, tested
from unspoken.evaluation.teacher_forcing import forced_chain, spoken
from unspoken.reasoning.system import System

CLEAN = "none"
CONDITIONS = (CLEAN, "random string", "random prime", "gaussian", "other sentence")


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What one pair of Reasoner and Talker said, by condition.

    Attributes:
        tokens: ``[B, N]``, the sentences and the end behind each.
        words: ``[B, N]``, true on their tokens that are scored: behind the prime, and before the end.
        said: ``[B, N]`` of each condition.
        end_id: ends a sentence.
    """

    tokens: Int[Tensor, "B N"]
    words: Bool[Tensor, "B N"]
    said: dict[str, Tensor]
    end_id: int

    def right(self, condition: str) -> Outcomes:
        """Share of the scored tokens of each sentence that were said, ``[B]``."""
        return _share(self.said[condition] == self.tokens, self.words)

    def other(self, condition: str) -> Outcomes:
        """Share of the scored tokens of the other sentence that were said in their place, ``[B]``."""
        partner = _partner(len(self.tokens))
        return _share(self.said[condition] == self.tokens[partner], self.words[partner])

    @property
    def alike(self) -> Outcomes:
        """What a Talker that says the right sentence scores against the other one by chance, ``[B]``."""
        partner = _partner(len(self.tokens))
        return _share(self.tokens == self.tokens[partner], self.words[partner])

    @property
    def exact(self) -> Outcomes:
        """Whether a sentence was said word for word from its own latents, ``[B]``."""
        return (~((self.said[CLEAN] != self.tokens) & self.words).any(dim=1)).cpu().numpy().astype(np.float64)

    @property
    def ended(self) -> Outcomes:
        """Whether the Talker said the end behind a sentence from its own latents, ``[B]``."""
        ends = self.tokens == self.end_id
        return ((self.said[CLEAN] == self.end_id) & ends).any(dim=1).cpu().numpy().astype(np.float64)


def _partner(rows: int) -> Tensor:
    return torch.arange(rows) ^ 1


def _share(hit: Tensor, counted: Tensor) -> Outcomes:
    found: Outcomes = ((hit & counted).sum(dim=1) / counted.sum(dim=1)).cpu().numpy().astype(np.float64)
    return found


@torch.no_grad()
def ablate(
    system: System,
    batch: Mapping[str, Tensor],
    *,
    prime: int,
    alternatives: Int[Tensor, " K"],
    seed: int,
    batch_size: int,
) -> Ablation:
    """Let the Talker say sentences from right and from wrong latents, and after right and wrong first words.

    ==============  =============================================  =============================
    condition       latents                                        prime
    ==============  =============================================  =============================
    none            of the sentence                                of the sentence
    random string   of as many random tokens (open point 32)       of the sentence
    random prime    of the sentence                                random tokens; Dual-Talker only
    gaussian        Gaussian directions of the same norm           of the sentence
    other sentence  of the other sentence                          of the sentence
    ==============  =============================================  =============================

    Args:
        batch: as in `forced_chain`; an even number of sentences, which are pairs.
        prime: tokens of the sentence that a Dual-Talker is given. A Mono-Talker is given none, but scored behind them
            too.
        alternatives: tokens that a random string is made of.
        seed: of everything random.
        batch_size: sentences spoken at once.

    Raises:
        ValueError: an odd number of sentences, or one that ends within its prime.
    """
    chain, tokens = forced_chain(system, batch, batch_size)
    (end_id,) = system.speaker.end_ids
    place = torch.arange(tokens.shape[1], device=tokens.device)
    words = chain.mask & (tokens != end_id) & (place >= prime)
    if len(tokens) % 2 or not words.any(dim=1).all():
        raise ValueError(
            f"{len(tokens)} sentences, {int((~words.any(dim=1)).sum())} of them no longer than the prime of {prime} "
            "tokens; give an even number, and longer ones"
        )
    generator = torch.Generator().manual_seed(seed)
    ids = batch["input_ids"]

    def draw(*shape: int) -> Tensor:
        return alternatives[torch.randint(len(alternatives), shape, generator=generator)].to(ids)

    in_words = batch["answer_mask"] & (ids != end_id)
    strings = {**batch, "input_ids": torch.where(in_words, draw(*ids.shape), ids)}
    chains = {
        CLEAN: chain,
        "random string": forced_chain(system, strings, batch_size)[0],
        "gaussian": noise(chain, generator),
        "other sentence": chain.select(_partner(len(tokens)).to(tokens.device)),
    }
    given = tokens[:, :prime] if system.speaker.reads_tokens and prime else None
    said = {name: spoken(system, batch, altered, given, batch_size) for name, altered in chains.items()}
    if given is not None:
        said["random prime"] = spoken(system, batch, chain, draw(*given.shape), batch_size)
    ordered = {name: said[name].cpu() for name in CONDITIONS if name in said}
    return Ablation(tokens=tokens.cpu(), words=words.cpu(), said=ordered, end_id=end_id)


def ablation_summary(seeds: Sequence[Ablation], *, draws: int = 2000) -> dict[str, Any]:
    """Means over sentences and seeds with 95 % bootstrap intervals.

    Args:
        seeds: the same sentences and conditions in each.

    Returns:
        ``exact_match`` (sentences said word for word from their own latents), ``ended``, ``alike`` (share of tokens
        that a sentence and the other have in common by chance) and for each of the ``conditions`` the token accuracy
        against the sentence itself (``right``) and the other (``other``), and the paired ``change`` of ``right``
        against no corruption.
    """
    names = list(seeds[0].said)
    both = ("right", "other")
    values = np.stack(
        [np.stack([getattr(entry, kind)(name) for name in names for kind in both], axis=1) for entry in seeds]
    )
    means = values.mean(axis=(0, 1)).reshape(len(names), 2)
    drawn = bootstrap_means(values, draws=draws).reshape(draws, len(names), 2)
    clean = names.index(CLEAN)
    conditions: dict[str, Any] = {}
    for row, name in enumerate(names):
        conditions[name] = {kind: asdict(interval(means[row, k], drawn[:, row, k])) for k, kind in enumerate(both)}
        if row != clean:
            change = tested(float(means[row, 0] - means[clean, 0]), drawn[:, row, 0] - drawn[:, clean, 0])
            conditions[name]["change"] = asdict(change)
    return {
        "exact_match": asdict(rate(np.stack([entry.exact for entry in seeds]))),
        "ended": float(np.mean([entry.ended for entry in seeds])),
        "alike": float(np.mean([entry.alike for entry in seeds])),
        "conditions": conditions,
    }
