"""Draws accuracy against cost from the committed results: `python docs/charts.py` writes docs/charts/*.svg.

Of a method that was trained for several budgets, the longest is drawn. Every other system is on the pages that
``unspoken report results/ONE.json results/OTHER.json`` writes of whole runs.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from unspoken.draw.charts import circle, element, svg
from unspoken.evaluation.results import label, read_results
from unspoken.report.compare import COSTS, Entry, panels, problem_sets

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(__file__).parent / "charts"

# Files of results and the systems that are drawn, with their colours: blue without training of latents, orange
# JEPA-Reasoner, green Latent-SFT, purple the other methods.
CHARTS: dict[str, dict[str, dict[str, str]]] = {
    "cups": {
        "cups-small": {
            "cot": "c1",
            "cot, no think, sentence none": "c1",
            "cot, budget forcing, budget 8": "c1",
            "answer_only": "c1",
            "jepa_mono": "c2",
            "jepa_mono, nearest row": "c2",
            "latent_sft_2_rollouts": "c3",
        },
        "cups-codi-small": {"filler": "c4"},
        "cups-coconut-small": {"pause": "c4"},
        "cups-longer-small": {
            "coconut_longer": "c4",
            "icot_longer": "c4",
            "lotus_longer": "c4",
            "codi_longer": "c4",
            "colar_longer": "c4",
        },
        "cups-codi-longer-small": {
            "sim_coconut_longer": "c4",
            "mux_longer": "c4",
            "sim_cot_longer": "c4",
            "pccot_longer": "c4",
        },
    },
    "word_problems": {
        "arithmetic-story-small": {
            "cot": "c1",
            "cot, no think, sentence none": "c1",
            "cot, budget forcing, budget 12": "c1",
            "jepa_mono": "c2",
            "jepa_mono, nearest row": "c2",
            "latent_sft_2_longer": "c3",
        },
        "arithmetic-story-longer-small": {"answer_only_longer": "c1", "coconut_longer": "c4"},
        "arithmetic-story-codi-longer-small": {
            "icot_longer": "c4",
            "pause_longer": "c4",
            "colar_longer": "c4",
            "codi_longer": "c4",
            "sim_coconut_longer": "c4",
        },
    },
}
STYLE = """
svg { font: 12px var(--sans); fill: var(--ink); }
.c1 { --c: var(--blue); } .c2 { --c: var(--orange); } .c3 { --c: var(--green); } .c4 { --c: var(--purple); }
.c0 { --c: var(--grey); } .grid { stroke: var(--grid); } .axis { stroke: var(--muted); }
.tick { fill: var(--muted); } .middle { text-anchor: middle; } .end { text-anchor: end; } .title { font-weight: 700; }
.line { fill: none; stroke: var(--c); stroke-width: 1.4; } .range { stroke: var(--c); stroke-width: 2; opacity: .5; }
.dot { fill: var(--c); stroke: var(--paper); } .ring { fill: var(--paper); stroke: var(--c); stroke-width: 1.6; }
.lead { stroke: var(--muted); stroke-width: .8; }
text.name { fill: var(--c); font-weight: 700; paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
"""
WIDTH, ROW, LEGEND_COLUMNS = 760, 18, 3


def entries(chart: dict[str, dict[str, str]]) -> list[Entry]:
    """The systems of a chart, which all answered the same problems."""
    runs = [read_results(ROOT / "results" / f"{name}.json") for name in chart]
    (problems, *others) = problem_sets(runs)
    assert not others, "the runs were measured on different problems"
    chosen = []
    for run, systems in zip(runs, chart.values(), strict=True):
        title = f"{run['name']} {run['size']}"
        known = {entry.system: entry for entry in problems.entries if entry.run == title}
        chosen += [replace(known[label(system)], colour=colour) for system, colour in systems.items()]
    return chosen


def draw(chart: dict[str, dict[str, str]]) -> str:
    """One picture: a panel for each cost, and the names of the numbers under them."""
    drawn = entries(chart)
    # Not against time: the runs were measured on different machines.
    costs = panels(drawn, range(1, len(drawn) + 1), [cost for cost in COSTS if cost.key != "seconds"])
    width = WIDTH / len(costs)
    content = [
        element("style", Markup(palette() + STYLE)),
        element("rect", width="100%", height="100%", fill="var(--paper)"),
    ]
    for position, panel in enumerate(costs):
        content.append(element("text", panel.title, class_="title", x=width * position + 10, y=20))
        content.append(element("g", panel.drawing, transform=f"translate({width * position + 8:g} 28)"))
    top = 28 + 250 + 26
    rows = -(-len(drawn) // LEGEND_COLUMNS)
    for number, entry in enumerate(drawn, start=1):
        column, row = divmod(number - 1, rows)
        x, y = 24 + column * (WIDTH - 24) / LEGEND_COLUMNS, top + ROW * row
        content.append(circle((x, y - 4), f"dot {entry.colour}", 4))
        content.append(element("text", f"{number}  {entry.system.removesuffix(', sentence none')}", x=x + 10, y=y))
    drawing = svg(WIDTH, top + ROW * rows, content, label="Accuracy against cost")
    return str(drawing).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def palette() -> str:
    """The colours of report pages on light paper."""
    return files("unspoken.draw").joinpath("templates/palette.css").read_text().split("@media")[0]


def main() -> None:
    """Write every chart."""
    FOLDER.mkdir(exist_ok=True)
    for name, chart in CHARTS.items():
        (FOLDER / f"{name}.svg").write_text(draw(chart))


if __name__ == "__main__":
    main()
