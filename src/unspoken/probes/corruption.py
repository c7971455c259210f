"""What does the Talker make of wrong latents, and of wrong first words? (JEPA-Reasoner, appendix C)

The paper shows single sentences. Here it is a number: of the tokens after the prime, the rate that are the sentence's
own, and the rate that are another sentence's at the same position. Sentences come in pairs of about the same length,
rows ``2 i`` and ``2 i + 1``; each is the other sentence of the other.

Axes: B sentences, N latents (one a token), P tokens of a prime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unspoken.draw.charts import rate_bar
from unspoken.draw.formats import PERCENT_1, count, percent, points
from unspoken.draw.section import Block, Heading, Paragraph, Section
from unspoken.draw.table import UNKNOWN, Cell, Column, Table, estimate, text
from unspoken.evaluation.controls import noise
from unspoken.evaluation.results import Results, differs, label, summary_of
from unspoken.evaluation.significance import Outcomes, bootstrap_means, interval, tested
from unspoken.evaluation.teacher_forcing import answer_tokens, decoded, forced_chain, prime_of, scored
from unspoken.probes.probe import Probe, View
from unspoken.reasoning.system import System
from unspoken.tasks.task import Task

CLEAN = "none"
# By condition: what is wrong, and what the paper reports of a few sentences.
CONDITIONS = {
    CLEAN: ("the sentence’s own latents", "the sentence"),
    "random string": ("latents of random tokens", "nonsense after the prime"),
    "random prime": ("own latents, random first tokens", "nearly the sentence, one wrong name"),
    "gaussian": ("random directions of the same norm", "pieces of words"),
    "other sentence": ("latents of another sentence", "the other sentence’s content"),
}
_SAMPLES = 3
_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What a Talker made of right and of wrong latents, by condition.

    Attributes:
        tokens: ``[B, N]``, the sentences with their ends.
        scored: ``[B, N]``, true on their tokens after the prime and before the end.
        decoded: ``[B, N]`` of each condition.
        prime: tokens that are not scored.
        samples: a few sentences as text.
    """

    tokens: Int[Tensor, "B N"]
    scored: Bool[Tensor, "B N"]
    decoded: dict[str, Tensor]
    prime: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)

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
    rates: Outcomes = ((hit & counted).sum(dim=1) / counted.sum(dim=1)).numpy().astype(np.float64)
    return rates


@torch.no_grad()
def ablate(view: View) -> Ablation:
    """Let the Talker decode sentences from right and from wrong latents, and after right and wrong first words.

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
        view: of sentences that are pairs, read back as they are. A Mono-Talker is given no prime, but scored after it
            too.
    """
    system, chain, batch_size = view.system, view.graded.chain, view.batch_size
    batch, prime, tokenizer = view.task.rows(view.problems), view.task.config.prime, view.task.tokenizer
    assert tokenizer is not None
    tokens, ids = answer_tokens(batch), batch["input_ids"]
    counted = scored(chain, tokens, system, prime)
    generator = torch.Generator().manual_seed(view.seed)
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
    results[CLEAN] = view.graded.tokens
    if given is not None:
        results["random prime"] = decoded(system, batch, chain, draw(*given.shape), batch_size).tokens
    ordered = {name: results[name] for name in CONDITIONS if name in results}
    samples = _samples(view, tokens, ordered) if view.first_seed else []
    return Ablation(tokens=tokens, scored=counted, decoded=ordered, prime=prime, samples=samples)


def _samples(view: View, tokens: Tensor, conditions: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Pairs from the middle, where sentences have the usual length."""
    tokenizer: Any = view.task.tokenizer
    middle = len(tokens) // 2

    def as_text(row: Tensor) -> str:
        return str(tokenizer.decode(row.tolist(), skip_special_tokens=True)).strip()

    return [
        {
            "system": view.system.name,
            "sentence": as_text(tokens[row]),
            "other": as_text(tokens[row + 1]),
            "said": {name: as_text(decoded[row]) for name, decoded in conditions.items()},
        }
        for row in range(middle - middle % 2, len(tokens), 2)[:_SAMPLES]
    ]


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
        conditions[name] = {kind: asdict(interval(means[row, k], drawn[:, row, k])) for k, kind in enumerate(both)}
        if row != clean:
            change = tested(float(means[row, 0] - means[clean, 0]), drawn[:, row, 0] - drawn[:, clean, 0])
            conditions[name]["change"] = asdict(change)
    return {"alike": float(np.mean([entry.alike for entry in seeds])), "conditions": conditions}


class CorruptionProbe(Probe):
    """Sentences decoded from wrong latents and after wrong first words."""

    key: ClassVar[str] = "corruption"

    def applies(self, system: System, task: Task) -> bool:
        """Running text, decoded by a Talker."""
        return task.traits.continues and system.has_talker

    def measure(self, view: View) -> Ablation:
        """See `ablate`."""
        return ablate(view)

    def summarise(self, readings: Mapping[str, Sequence[Ablation]], *, baseline: str | None) -> dict[str, Any]:
        """How many ``sentences``, the length of the ``prime``, ``systems`` (`ablation_summary`) and ``samples``."""
        first = next(iter(readings.values()))[0]
        return {
            "sentences": len(first.tokens),
            "prime": first.prime,
            "systems": {name: ablation_summary(seeds) for name, seeds in readings.items()},
            "samples": [sample for seeds in readings.values() for entry in seeds for sample in entry.samples],
        }

    def section(self, results: Results) -> Section | None:
        """The rates by corruption, and a few sentences."""
        summary = summary_of(results, self.key)
        if not summary:
            return None
        blocks: list[Block] = [_table(summary)]
        if summary["samples"]:
            about = "Decoded from the first seed’s test sentences, the given first tokens included."
            blocks += [Heading("Sentences, right and corrupted"), Paragraph(about, "caption")]
        return Section(self.key, "Does the Talker follow its latents?", [*blocks, *map(_sentence, summary["samples"])])


def _accuracy(conditions: Mapping[str, Any], name: str, kind: str, colour: str) -> Cell:
    entry = conditions.get(name)
    if entry is None:
        return UNKNOWN
    value, change = entry[kind], entry.get("change")
    remark = ""
    if kind == "right" and change is not None:
        remark = points(change["mean"]) if differs(change) else "no change"
    return estimate(value, PERCENT_1, note=remark, bar=rate_bar(value, colour))


def _table(summary: Mapping[str, Any]) -> Table:
    """A row a corruption and two columns a Talker."""
    systems, prime = summary["systems"], summary["prime"]
    columns = [Column("Corruption", lambda name: text(name, CONDITIONS[name][0]))]
    for system, entry in systems.items():
        read = partial(_accuracy, entry["conditions"])
        own, other = partial(read, kind="right", colour="c1"), partial(read, kind="other", colour="c2")
        span = "95 % interval"
        columns.append(Column("Its own|tokens", own, f"its own|{span}|change", label(system)))
        columns.append(Column("The other’s|tokens", other, f"the other’s|{span}", label(system)))
    paper = Column("The paper saw", lambda name: text(CONDITIONS[name][1], classes="muted"), "", classes="wide")
    chance = percent(max(entry["alike"] for entry in systems.values()), 1)
    sentences = count(summary["sentences"], "test sentence")
    note = (
        f"Rate of the tokens after the first {prime} that the Talker gets right, and rate that are the other "
        f"sentence’s at the same position; {sentences}, with 95 % intervals and, below, the paired change in points "
        "against no corruption. The sentence’s own first tokens are given to a Dual-Talker; a Mono-Talker has none. "
        f"Two sentences agree in {chance} of positions by chance."
    )
    return Table.of(
        dict.fromkeys(name for entry in systems.values() for name in entry["conditions"]),
        [*columns, paper],
        title=f"tokens decoded after the first {prime} of {sentences}; by chance two agree in {chance}",
        note=note,
        classes="matrix",
        terminal="by group",
    )


def _sentence(sample: Mapping[str, Any]) -> Table:
    rows = [
        [text("the sentence"), text(sample["sentence"])],
        *([text(name), text(decoded)] for name, decoded in sample["said"].items()),
        [text("the other sentence"), text(sample["other"], classes="muted")],
    ]
    columns = [Column("Latents or prime"), Column(f"Decoded by {label(sample['system'])}", classes="")]
    return Table(columns=columns, rows=rows, terminal="absent")
