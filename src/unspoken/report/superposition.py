"""Section of the page about how much a latent holds: covered tokens, entropy, parallel chains (Latent-SFT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unspoken.report.charts import Axis, Frame, Level, Line, Tick, line_chart, linear, logarithmic, nice_ticks
from unspoken.report.figures import Panel, system_colours
from unspoken.report.findings import Results, label, words
from unspoken.report.formats import NO_VALUE, coefficient, percent, steps
from unspoken.report.markup import Cell, Section, figure, heads, paragraph, table, text_cell

_LEAST = 0.1  # the entropy line ends where fewer chains than this share still run
_SHOWN = 120  # points of one system's picture
_RECONSTRUCTED = (
    "ECR, N_eff and the top-2 score are reconstructions: the authors published no formula of ECR and top-2 and withdrew the "
    "script of N_eff, so our numbers agree with theirs in meaning and may differ in value."
)
_TOGETHER = (
    "N_eff says among how many of a question’s M known chains its latents are undecided. Chains that all fit about equally well "
    "bring it near M by themselves, so read the four numbers together: N_naive is the same for random matchings of latents to "
    "pieces of the chain, and only a ratio away from 1 says that the order of the latents has a part in it. Version 1 matches "
    "latent and piece by their place; top-2 is the second-best chain’s weight over the best one’s."
)


def superposition_section(results: Results) -> Section | None:
    """Effective compression, entropy along the chain, and effective parallelism, with their controls."""
    measured = words(results).get("superposition", {})
    if not measured:
        return None
    caption = (
        "Compression: explicit tokens that one latent has among its K most likely ones, within its own piece of the chain; an explicit "
        "chain that says the right tokens has 1, and with growing K the rate goes to the number of explicit tokens a latent. Of a small "
        "vocabulary a large K takes nearly everything: read the small ones. Entropy: mean at each step, of the full distribution "
        "that the model gives; a line ends where fewer than a tenth of the chains still run."
    )
    body = figure([_ecr_panel(results, measured), _entropy_panel(results, measured)], caption)
    body += _numbers(results, measured) + _parallelism(results, measured) + paragraph(_RECONSTRUCTED, "caption")
    return Section(key="superposition", title="How much does a latent hold?", body=body)


# --- covered tokens and entropy ----------------------------------------------------------------------------------


def _rates(entry: Mapping[str, Any]) -> list[tuple[int, float]]:
    """ECR by K in rising order; a file's keys are text."""
    return sorted((int(most), value) for most, value in entry["ecr"].items())


def _legend(results: Results, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    colours = system_colours(results)
    return tuple((f"{colours[name]} plain", label(results, name)) for name in names)


def _ecr_panel(results: Results, measured: Mapping[str, Any]) -> Panel:
    rates = {name: _rates(entry) for name, entry in measured.items()}
    colours = system_colours(results)
    lines = [
        Line(points=values, classes=colours[name], marker="dot", hint=label(results, name))
        for name, values in rates.items()
    ]
    x = replace(logarithmic(most for values in rates.values() for most, _ in values), title="K")
    y = linear([0.0, 1.0, *(value for values in rates.values() for _, value in values)])
    frame = Frame(x=x, y=y, width=430, height=240, levels=(Level(value=1, name="explicit"),))
    drawing = line_chart(frame, lines, label="Effective compression rate at K")
    return Panel(
        title="Effective compression",
        note="ECR@K, tokens a latent",
        legend=_legend(results, list(rates)),
        drawing=drawing,
    )


def _entropy_panel(results: Results, measured: Mapping[str, Any]) -> Panel:
    shown = {name: _along(entry["entropy"]) for name, entry in measured.items()}
    colours = system_colours(results)
    lines = [
        Line(points=values, classes=colours[name], marker="dot" if len(values) < 20 else "", hint=label(results, name))
        for name, values in shown.items()
    ]
    last = max(len(values) for values in shown.values())
    ticks: list[Tick] = [(float(step), f"{step:.0f}") for step in nice_ticks(0, last, 7) if 1 <= step <= last]
    x = Axis(low=0, high=last, ticks=tuple(ticks), title="latent step")
    y = linear([0.0, *(value for values in shown.values() for _, value in values)])
    drawing = line_chart(Frame(x=x, y=y, width=430, height=240), lines, label="Entropy of the latents by step")
    legend = _legend(results, list(shown))
    return Panel(title="Entropy along the chain", note="nats", legend=legend, drawing=drawing)


def _along(entropy: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Mean entropy by step, as far as enough chains go."""
    means, counts = entropy["mean"], entropy["count"]
    return [
        (step, mean)
        for step, (mean, count) in enumerate(zip(means, counts, strict=True), start=1)
        if count >= _LEAST * counts[0]
    ]


def _numbers(results: Results, measured: Mapping[str, Any]) -> str:
    every = sorted({most for entry in measured.values() for most, _ in _rates(entry)})
    rows = []
    for name, entry in measured.items():
        rates, entropy = dict(_rates(entry)), entry["entropy"]
        total = sum(mean * chains for mean, chains in zip(entropy["mean"], entropy["count"], strict=True))
        rows.append(
            [
                text_cell(label(results, name)),
                *(Cell(text=coefficient(rates[most]) if most in rates else NO_VALUE) for most in every),
                Cell(text=steps(entry["ecr_left_out"])),
                Cell(text=coefficient(total / sum(entropy["count"])), classes="num first"),
                Cell(text=percent(entry["top1"], 1)),
                Cell(text=percent(entry["exit_rate"], 1)),
            ]
        )
    head = heads("System", *map(str, every), "Left out|chains", "Entropy|nats", "Top token|weight", "Ended|by itself")
    head[len(every) + 2] = Cell(text="Entropy", small="nats", classes="num first")
    groups = [("ECR at K", len(every) + 1), ("A latent, on average", 3)]
    caption = (
        "A chain without any latent has no rate and is left out. Entropy and top token are of the full distribution, before "
        "it is cut to what is fed back."
    )
    return table(head, rows, caption=caption, groups=groups)


# --- parallel chains ---------------------------------------------------------------------------------------------


def _parallelism(results: Results, measured: Mapping[str, Any]) -> str:
    known = {name: entry["parallelism"] for name, entry in measured.items() if entry.get("parallelism")}
    if not known:
        return ""
    columns = (("chains", 2), ("n_eff", 2), ("n_naive", 2), ("ratio", 3), ("n_eff_v1", 2), ("top2", 2), ("top2_v1", 2))
    rows = [
        [
            text_cell(label(results, name)),
            Cell(text=steps(entry["questions"])),
            *(
                Cell(text=coefficient(entry[key], digits), classes="num strong" if key == "n_eff" else "num")
                for key, digits in columns
            ),
        ]
        for name, entry in known.items()
    ]
    head = heads(
        "System",
        "Questions|with several chains",
        "M|chains",
        "N_eff",
        "N_naive|random matchings",
        "Ratio|N_eff to N_naive",
        "N_eff|version 1",
        "Top-2",
        "Top-2|version 1",
    )
    panels = [_points_panel(results, name, entry) for name, entry in known.items() if entry["points"]]
    drawn = figure(panels, "N_eff of every question, from the smallest to the largest.") if panels else ""
    return f'<h4 class="run-in">Effective parallelism</h4>{table(head, rows, caption=_TOGETHER)}{drawn}'


def _points_panel(results: Results, system: str, entry: Mapping[str, Any]) -> Panel:
    """The questions in rising order; of many, evenly spaced ones are drawn."""
    ordered = sorted(entry["points"])
    last, parts = max(1, len(ordered) - 1), max(1, min(len(ordered), _SHOWN) - 1)
    places = dict.fromkeys(round(part * (len(ordered) - 1) / parts) for part in range(parts + 1))
    ticks = tuple((share, f"{100 * share:g} %") for share in (0, 0.5, 1))
    x = Axis(low=0, high=1, ticks=ticks, title="share of questions")
    y = linear([1.0, *ordered, entry["chains"]])
    levels = (
        Level(value=entry["chains"], name=f"M {coefficient(entry['chains'])}"),
        Level(value=entry["n_naive"], name=f"N_naive {coefficient(entry['n_naive'])}"),
    )
    points = [(place / last, ordered[place]) for place in places]
    line = Line(points=points, classes=system_colours(results)[system], marker="dot" if len(points) < 40 else "")
    name = label(results, system)
    drawing = line_chart(Frame(x=x, y=y, levels=levels), [line], label=f"N_eff of every question, {name}")
    return Panel(title=name, note=f"N_eff {coefficient(entry['n_eff'])}", drawing=drawing)
