"""What a Talker makes of wrong latents and of wrong first words (JEPA-Reasoner, appendix C).

The paper shows single sentences. Here it is a number: of the tokens after the prime, the rate that are the sentence's
own, and the rate that are another sentence's at the same position. Sentences come in pairs of about the same length,
rows ``2 i`` and ``2 i + 1``; each is the other sentence of the other.

Axes: B sentences, N latents (one a token).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unspoken.evaluation.controls import noise
from unspoken.evaluation.significance import Outcomes, bootstrap_means, interval, tested
from unspoken.evaluation.teacher_forcing import answer_tokens, decoded, forced_chain, prime_of, scored
from unspoken.reasoning.system import Answer, System
from unspoken.tasks.task import Problems, Task

CLEAN = "none"
_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What a Talker made of the latents of sentences, by condition."""

    tokens: Int[Tensor, "B N"]  # the sentences with their ends
    scored: Bool[Tensor, "B N"]  # true on their tokens after the prime and before the end
    decoded: dict[str, Tensor]  # ``[B, N]`` of each condition

    def right(self, condition: str) -> Outcomes:
        """Rate of the scored tokens of each sentence that came back, ``[B]``."""
        return _rates(self.decoded[condition] == self.tokens, self.scored)

    def other(self, condition: str) -> Outcomes:
        """Rate of the scored tokens of the other sentence that came in their stead, ``[B]``."""
        partner = _partner(len(self.tokens))
        return _rates(self.decoded[condition] == self.tokens[partner], self.scored[partner])

    @property
    def alike(self) -> Outcomes:
        """What a Talker that gives the right sentence scores against the other one by chance, ``[B]``."""
        partner = _partner(len(self.tokens))
        return _rates(self.tokens == self.tokens[partner], self.scored[partner])


def _partner(rows: int) -> Tensor:
    return torch.arange(rows) ^ 1


def _rates(hit: Tensor, counted: Tensor) -> Outcomes:
    return ((hit & counted).sum(dim=1) / counted.sum(dim=1)).numpy().astype(np.float64)


@torch.no_grad()
def ablate(system: System, task: Task, sentences: Problems, answers: Answer, *, seed: int, batch_size: int) -> Ablation:
    """Let the Talker decode sentences from right and from wrong latents, and after right and wrong first words.

    ==============  =============================================  =============================
    condition       latents                                        prime
    ==============  =============================================  =============================
    none            of the sentence                                of the sentence
    random string   of as many random tokens                       of the sentence
    random prime    of the sentence                                random tokens; Dual-Talker only
    gaussian        Gaussian directions of the same norm           of the sentence
    other sentence  of the other sentence                          of the sentence
    ==============  =============================================  =============================

    Args:
        sentences: an even number, which are pairs. A Mono-Talker is given no prime, but scored after it too.
        answers: the sentences as `unspoken.evaluation.teacher_forcing.read_back` gave them.
        seed: of everything random.
        batch_size: sentences at once.
    """
    batch, prime, chain, tokenizer = task.rows(sentences), task.config.prime, answers.chain, task.tokenizer
    assert tokenizer is not None
    tokens, ids = answer_tokens(batch), batch["input_ids"]
    generator = torch.Generator().manual_seed(seed)
    special = set(tokenizer.all_special_ids)
    alternatives = torch.tensor([token for token in range(len(tokenizer)) if token not in special])

    def draw(*shape: int) -> Tensor:
        return alternatives[torch.randint(len(alternatives), shape, generator=generator)]

    (end_id,) = system.speaker.end_ids
    strings = {**batch, "input_ids": torch.where(batch["answer_mask"] & (ids != end_id), draw(*ids.shape), ids)}
    chains = {
        "random string": forced_chain(system, strings, batch_size),
        "gaussian": noise(chain, generator),
        "other sentence": chain.select(_partner(len(tokens))),
    }
    given = prime_of(system, tokens, prime)
    results = {name: decoded(system, batch, altered, given, batch_size).tokens for name, altered in chains.items()}
    if given is not None:
        results["random prime"] = decoded(system, batch, chain, draw(*given.shape), batch_size).tokens
    return Ablation(
        tokens=tokens, scored=scored(chain, tokens, system, prime), decoded={CLEAN: answers.tokens, **results}
    )


def ablation_summary(seeds: Sequence[Ablation]) -> dict[str, Any]:
    """Means over sentences and seeds with 95 % bootstrap intervals.

    Args:
        seeds: the same sentences and conditions in each.

    Returns:
        ``alike`` (rate of tokens that a sentence and the other have in common by chance) and for each of the
        ``conditions`` the token accuracy against the sentence itself (``right``) and the other (``other``), and the
        paired ``change`` of ``right`` against no corruption.
    """
    names = list(seeds[0].decoded)
    both = ("right", "other")
    values = np.stack(
        [np.stack([getattr(entry, kind)(name) for name in names for kind in both], axis=1) for entry in seeds]
    )
    means = values.mean(axis=(0, 1)).reshape(len(names), 2)
    drawn = bootstrap_means(values, draws=_DRAWS).reshape(_DRAWS, len(names), 2)
    clean = names.index(CLEAN)
    conditions: dict[str, Any] = {}
    for row, name in enumerate(names):
        conditions[name] = {
            kind: asdict(interval(means[row, k], drawn[:, row, k], least=0, most=1)) for k, kind in enumerate(both)
        }
        if row != clean:
            change = tested(float(means[row, 0] - means[clean, 0]), drawn[:, row, 0] - drawn[:, clean, 0])
            conditions[name]["change"] = asdict(change)
    return {"alike": float(np.mean([entry.alike for entry in seeds])), "conditions": conditions}
