"""What does the Talker make of wrong latents, and of wrong first words? See `unspoken.evaluation.corruption`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from unspoken.draw.charts import rate_bar
from unspoken.draw.formats import PERCENT_1, count, percent, points
from unspoken.draw.section import Block, Heading, Paragraph, Section
from unspoken.draw.table import UNKNOWN, Cell, Column, Table, estimate, text
from unspoken.evaluation.results import Results, differs, label
from unspoken.probes.probe import Probe, System, Task, View

if TYPE_CHECKING:
    from torch import Tensor

    from unspoken.evaluation.corruption import Ablation

# By condition: what is wrong, and what the paper reports of a few sentences.
CONDITIONS = {
    "none": ("the sentence’s own latents", "the sentence"),
    "random string": ("latents of random tokens", "nonsense after the prime"),
    "random prime": ("own latents, random first tokens", "nearly the sentence, one wrong name"),
    "gaussian": ("random directions of the same norm", "pieces of words"),
    "other sentence": ("latents of another sentence", "the other sentence’s content"),
}
_SAMPLES = 3


class CorruptionProbe(Probe):
    """Sentences decoded from wrong latents and after wrong first words."""

    key = "corruption"

    def applies(self, system: System, task: Task) -> bool:
        return task.traits.continues and system.has_talker

    def measure(self, view: View) -> dict[str, Any]:
        """The ``ablation``, the length of the ``prime``, and ``samples`` of the first seed."""
        from unspoken.evaluation.corruption import ablate

        ablation = ablate(
            view.system, view.task, view.problems, view.graded, seed=view.seed, batch_size=view.batch_size
        )
        samples = _samples(view, ablation) if view.first_seed else []
        return {"ablation": ablation, "prime": view.task.config.prime, "samples": samples}

    def summarise(self, readings: Mapping[str, Sequence[dict[str, Any]]], *, baseline: str | None) -> dict[str, Any]:
        """How many ``sentences``, the length of the ``prime``, ``systems`` and ``samples``."""
        from unspoken.evaluation.corruption import ablation_summary

        first = next(iter(readings.values()))[0]
        return {
            "sentences": len(first["ablation"].tokens),
            "prime": first["prime"],
            "systems": {
                name: ablation_summary([seed["ablation"] for seed in seeds]) for name, seeds in readings.items()
            },
            "samples": [sample for seeds in readings.values() for seed in seeds for sample in seed["samples"]],
        }

    def draw(self, summary: Any, results: Results) -> Section | None:
        blocks: list[Block] = [_table(summary)]
        if summary["samples"]:
            about = "Decoded from the first seed’s test sentences, the given first tokens included."
            blocks += [Heading("Sentences, right and corrupted"), Paragraph(about, "caption")]
        return Section(self.key, "Does the Talker follow its latents?", [*blocks, *map(_sentence, summary["samples"])])


def _samples(view: View, ablation: Ablation) -> list[dict[str, Any]]:
    """Pairs from the middle, where sentences have the usual length."""
    tokenizer: Any = view.task.tokenizer
    tokens, middle = ablation.tokens, len(ablation.tokens) // 2

    def as_text(row: Tensor) -> str:
        return str(tokenizer.decode(row.tolist(), skip_special_tokens=True)).strip()

    return [
        {
            "system": view.system.name,
            "sentence": as_text(tokens[row]),
            "other": as_text(tokens[row + 1]),
            "decoded": {name: as_text(tokens[row]) for name, tokens in ablation.decoded.items()},
        }
        for row in range(middle - middle % 2, len(tokens), 2)[:_SAMPLES]
    ]


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
        [name for name in CONDITIONS if any(name in entry["conditions"] for entry in systems.values())],
        [*columns, paper],
        title=f"tokens decoded after the first {prime} of {sentences}; by chance two agree in {chance}",
        note=note,
        classes="matrix",
        terminal="by group",
    )


def _sentence(sample: Mapping[str, Any]) -> Table:
    rows = [
        [text("the sentence"), text(sample["sentence"])],
        *([text(name), text(sample["decoded"][name])] for name in CONDITIONS if name in sample["decoded"]),
        [text("the other sentence"), text(sample["other"], classes="muted")],
    ]
    columns = [Column("Latents or prime"), Column(f"Decoded by {label(sample['system'])}", classes="")]
    return Table(columns=columns, rows=rows, terminal="absent")
