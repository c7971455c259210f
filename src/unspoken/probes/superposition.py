"""How much a latent holds: covered tokens, entropy, parallel chains (docs/methods/latent_sft.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unspoken.draw.charts import Axis, Frame, Level, Line, Tick, line_chart, linear, logarithmic, nice_ticks
from unspoken.draw.formats import PERCENT_1, STEPS, THREE_DECIMALS, TWO_DECIMALS, coefficient
from unspoken.draw.section import Block, Figure, Heading, Panel, Paragraph, Section
from unspoken.draw.table import Cell, Column, Table, number, reading, text
from unspoken.evaluation.results import Results, label
from unspoken.evaluation.significance import seed_means
from unspoken.probes.colours import system_colours
from unspoken.probes.probe import Probe, System, Task, View

_PROBLEMS = 200  # whose chains are taken apart
_ECR = (1, 5, 10, 50, 100, 150, 200, 250, 300)
_PARALLELISM = ("chains", "n_eff", "n_naive", "ratio", "n_eff_v1", "top2", "top2_v1")
_AVERAGED = ("questions", *_PARALLELISM)
_LEAST = 0.1  # the entropy line ends where fewer chains than this share still run
_WIDTH = 500  # pixels of a chart of all systems
_SHOWN = 120  # points of one system's picture
_RECONSTRUCTED = (
    "ECR, N_eff and the top-2 score are reconstructions: the authors published no formula of ECR and top-2 and withdrew the "
    "script of N_eff, so our numbers agree with theirs in meaning and may differ in value."
)
_TOGETHER = (
    "N_eff estimates among how many of a question’s M known chains its latents are undecided. Chains that all fit about equally well "
    "bring it near M by themselves, so read the four numbers together: N_naive is the same for random matchings of latents to "
    "pieces of the chain, and only a ratio away from 1 shows an effect of the order of the latents. Version 1 matches "
    "latent and piece by their place; top-2 is the second-best chain’s weight over the best one’s."
)


class SuperpositionProbe(Probe):
    """Effective compression, entropy and parallel chains of latents that are mixtures of rows."""

    key = "superposition"

    def applies(self, system: System, task: Task) -> bool:
        """Where latents have a distribution over the vocabulary, and problems an explicit chain to compare with."""
        return system.mixes_rows and task.traits.has_chain

    def measure(self, view: View) -> dict[str, Any] | None:
        """None where no problem with an explicit chain was answered from a latent."""
        import torch

        from unspoken.analysis.superposition import average_by_step, ecr, entropy, exit_rate
        from unspoken.evaluation.distributions import distributions

        lengths = view.graded.chain.lengths
        explained = [row for row, problem in enumerate(view.questions) if problem.chains][:_PROBLEMS]
        rows = [row for row in explained if lengths[row]]
        if not rows:
            return None
        problems, chain = view.problems.select(rows), view.graded.chain.select(torch.tensor(rows))
        full = distributions(view.system, view.task, problems, view.prompt_format, chain, view.batch_size)
        explicit = [list(spans.chain) for spans in view.task.spans(problems, view.prompt_format)]
        rates = ecr(full, explicit, [k for k in _ECR if k <= full[0].shape[-1]])
        mean, count = average_by_step([entropy(steps) for steps in full])
        return {
            "ecr": {str(k): float(values.mean()) for k, values in rates.items()},
            "ecr_left_out": len(explained) - len(rows),
            "entropy": {"mean": mean.tolist(), "count": count.tolist()},
            "top1": float(torch.cat([steps.max(dim=-1).values for steps in full]).mean()),
            "exit_rate": exit_rate(view.graded.chain.stop),
            "parallelism": _parallel_chains(view, problems, full, chain.latents),
        }

    def over_seeds(self, seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Numbers averaged over seeds; lists by step and by question are the first seed's."""
        means = seed_means([{key: seed[key] for key in ("top1", "exit_rate", "ecr_left_out")} for seed in seeds])
        rates = seed_means([seed["ecr"] for seed in seeds])
        several = seeds[0]["parallelism"]
        if several is not None:
            averages = seed_means([{name: seed["parallelism"][name] for name in _AVERAGED} for seed in seeds])
            several = several | {name: value["mean"] for name, value in averages.items()}
        return {
            **seeds[0],
            **{name: value["mean"] for name, value in means.items()},
            "ecr": {k: value["mean"] for k, value in rates.items()},
            "parallelism": several,
        }

    def draw(self, entries: Any, results: Results) -> Section | None:
        caption = (
            "Compression: explicit tokens that one latent has among its K most likely ones, within its own piece of the chain; an explicit "
            "chain of the right tokens has 1, and with growing K the rate approaches the number of explicit tokens per latent. Of a small "
            "vocabulary a large K takes nearly everything: read the small ones. Entropy: mean at each step, of the full distribution "
            "that the model gives; a line ends where fewer than a tenth of the chains still run."
        )
        curves = Figure([_ecr_panel(results, entries), _entropy_panel(results, entries)], caption)
        blocks: list[Block] = [curves, _numbers(entries), *_parallelism(results, entries)]
        blocks.append(Paragraph(_RECONSTRUCTED, "caption"))
        return Section(self.key, "How much does a latent hold?", blocks)


def _parallel_chains(view: View, problems: Any, full: Sequence[Any], latents: Any) -> dict[str, Any] | None:
    """Parallelism of the questions that have several chains, measured against the latents that stand for each."""
    from unspoken.analysis.superposition import distinct, global_parallelism

    if view.teacher is None:
        return None
    readings = []
    for row, (problem, steps) in enumerate(zip(problems, full, strict=True)):
        chains = distinct(problem.chains)
        if len(chains) < 2:
            continue
        spans = view.task.spans([replace(problem, chains=(chain,)) for chain in chains], view.prompt_format)
        gold = view.teacher.chain(spans)
        references = [gold.latents[index, : int(gold.lengths[index])] for index in range(len(spans))]
        tokens = [list(one.chain) for one in spans]
        readings.append(global_parallelism(steps, latents[row, : len(steps)], tokens, references, seed=view.seed))
    if not readings:
        return None
    return {
        "questions": len(readings),
        **{name: float(np.mean([getattr(reading, name) for reading in readings])) for name in _PARALLELISM},
        "points": [round(reading.n_eff, 4) for reading in readings],
    }


def _rates(entry: Mapping[str, Any]) -> list[tuple[int, float]]:
    """ECR by K in rising order; a file's keys are text."""
    return sorted((int(most), value) for most, value in entry["ecr"].items())


def _ecr_panel(results: Results, entries: Mapping[str, Any]) -> Panel:
    rates = {name: _rates(entry) for name, entry in entries.items()}
    colours = system_colours(results)
    lines = [
        Line(points=values, classes=colours[name], marker="dot", hint=label(name), name=label(name))
        for name, values in rates.items()
    ]
    x = replace(logarithmic(most for values in rates.values() for most, _ in values), title="K")
    y = linear([0.0, 1.0, *(value for values in rates.values() for _, value in values)])
    frame = Frame(x=x, y=y, width=_WIDTH, height=240, levels=(Level(value=1, name="explicit"),))
    drawing = line_chart(frame.labelled(lines), lines, label="Effective compression rate at K")
    return Panel(
        title="Effective compression",
        remark="ECR@K, tokens per latent",
        width=_WIDTH,
        drawing=drawing,
    )


def _entropy_panel(results: Results, entries: Mapping[str, Any]) -> Panel:
    shown = {name: _along(entry["entropy"]) for name, entry in entries.items()}
    colours = system_colours(results)
    lines = [
        Line(
            points=values,
            classes=colours[name],
            marker="dot" if len(values) < 20 else "",
            hint=label(name),
            name=label(name),
        )
        for name, values in shown.items()
    ]
    last = max(len(values) for values in shown.values())
    ticks: list[Tick] = [(float(step), f"{step:.0f}") for step in nice_ticks(0, last, 7) if 1 <= step <= last]
    x = Axis(low=0, high=last, ticks=tuple(ticks), title="latent step")
    y = linear([0.0, *(value for values in shown.values() for _, value in values)])
    frame = Frame(x=x, y=y, width=_WIDTH, height=240).labelled(lines)
    drawing = line_chart(frame, lines, label="Entropy of the latents by step")
    return Panel(title="Entropy along the chain", remark="nats", drawing=drawing, width=_WIDTH)


def _along(entropy: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Mean entropy by step, as far as enough chains go."""
    means, counts = entropy["mean"], entropy["count"]
    return [
        (step, mean)
        for step, (mean, count) in enumerate(zip(means, counts, strict=True), start=1)
        if count >= _LEAST * counts[0]
    ]


def _numbers(entries: Mapping[str, Any]) -> Table:
    every = sorted({most for entry in entries.values() for most, _ in _rates(entry)})
    shown = (min(every, key=lambda most: abs(most - 50)), every[-1])  # the paper's smallest, and the largest

    Entry = tuple[str, Mapping[str, Any]]

    def rate(entry: Entry, most: int) -> Cell:
        return number(dict(_rates(entry[1])).get(most), TWO_DECIMALS)

    def entropy(entry: Entry) -> Cell:
        means, counts = entry[1]["entropy"]["mean"], entry[1]["entropy"]["count"]
        total = sum(mean * chains for mean, chains in zip(means, counts, strict=True))
        return number(total / sum(counts), TWO_DECIMALS)

    rates, average = "ECR at K", "A latent, on average"
    columns = [Column("System", lambda entry: text(label(entry[0])))]
    columns += [
        Column(str(most), partial(rate, most=most), f"ECR@{most}" if most in shown else "", rates) for most in every
    ]
    columns += [
        reading("Left out|chains", "ecr_left_out", STEPS, "", rates),
        Column("Entropy|nats", entropy, group=average),
        reading("Top token|weight", "top1", PERCENT_1, "top-1", average),
        reading("Ended|by itself", "exit_rate", PERCENT_1, "", average),
    ]
    note = (
        "A chain without any latent has no rate and is left out. Entropy and top token are of the full distribution, before "
        "it is cut to what is fed back."
    )
    return Table.of(entries.items(), columns, title="what a latent holds (ECR is a reconstruction)", note=note)


def _parallelism(results: Results, entries: Mapping[str, Any]) -> list[Block]:
    known = {name: entry["parallelism"] for name, entry in entries.items() if entry.get("parallelism")}
    if not known:
        return []

    columns = [
        Column("System", lambda entry: text(label(entry[0]))),
        reading("Questions|with several chains", "questions", STEPS, ""),
        reading("M|chains", "chains", TWO_DECIMALS, "M"),
        reading("N_eff", "n_eff", TWO_DECIMALS, "N_eff", classes="strong"),
        reading("N_naive|random matchings", "n_naive", TWO_DECIMALS, "N_naive"),
        reading("Ratio|N_eff to N_naive", "ratio", THREE_DECIMALS),
        reading("N_eff|version 1", "n_eff_v1", TWO_DECIMALS, ""),
        reading("Top-2", "top2", TWO_DECIMALS),
        reading("Top-2|version 1", "top2_v1", TWO_DECIMALS, ""),
    ]
    title = "chains at once in a latent (N_eff and top-2 are reconstructions)"
    table = Table.of(known.items(), columns, title=title, note=_TOGETHER)
    blocks: list[Block] = [Heading("Effective parallelism"), table]
    panels = [_points_panel(results, name, entry) for name, entry in known.items() if entry["points"]]
    if panels:
        blocks.append(Figure(panels, "N_eff of every question, from the smallest to the largest."))
    return blocks


def _points_panel(results: Results, system: str, entry: Mapping[str, Any]) -> Panel:
    """The questions in rising order; of many, evenly spaced ones are drawn."""
    ordered = sorted(entry["points"])
    last, gaps = max(1, len(ordered) - 1), max(1, min(len(ordered), _SHOWN) - 1)
    drawn = dict.fromkeys(round(gap * (len(ordered) - 1) / gaps) for gap in range(gaps + 1))
    ticks = tuple((fraction, f"{100 * fraction:g} %") for fraction in (0, 0.5, 1))
    x = Axis(low=0, high=1, ticks=ticks, title="share of questions")
    y = linear([1.0, *ordered, entry["chains"]])
    levels = (
        Level(value=entry["chains"], name=f"M {coefficient(entry['chains'])}"),
        Level(value=entry["n_naive"], name=f"N_naive {coefficient(entry['n_naive'])}"),
    )
    points = [(index / last, ordered[index]) for index in drawn]
    line = Line(points=points, classes=system_colours(results)[system], marker="dot" if len(points) < 40 else "")
    name = label(system)
    drawing = line_chart(Frame(x=x, y=y, levels=levels), [line], label=f"N_eff of every question, {name}")
    return Panel(title=name, remark=f"N_eff {coefficient(entry['n_eff'])}", drawing=drawing)
