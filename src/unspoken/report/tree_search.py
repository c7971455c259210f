"""Tree search: mixtures of siblings, where latents lie, single chains, and known odds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from unspoken.draw import clouds, trees
from unspoken.draw.formats import (
    PERCENT,
    PERCENT_1,
    THREE_DECIMALS,
    TWO_DECIMALS,
    Format,
    bare_percent,
    coefficient,
    count,
    joined,
    percent,
)
from unspoken.draw.section import Block, Figure, Heading, Key, Legend, Panel, Paragraph, Section
from unspoken.draw.table import BLANK, Cell, Column, Table, number, text
from unspoken.report import figures
from unspoken.report.accuracy import accuracy_section
from unspoken.report.figures import KINDS
from unspoken.report.findings import (
    PAPER,
    Results,
    averaged,
    calibrations,
    compares_to_paper,
    inside,
    is_ambiguous,
    step_names,
)

_ALONG = (
    "Validation problems while SST runs. A model that cannot yet tell the siblings apart mixes them evenly: rank at the "
    "lower dashed line, equal coefficients, the right child larger by chance. Learning the search pulls the coefficients "
    "apart, and the rank rises towards the upper line as the sibling fades."
)
_ALONG_OPEN = (
    "Validation problems while SST runs. The prompt leaves open where the route leads, so a latent should stay a mixture "
    "wherever both children may be meant: rank near the lower dashed line, both coefficients above zero."
)
_AGAIN = (
    "The same readings on the model’s own chains. Where these are worse than the ones above, mixtures do not survive being "
    "fed back."
)


def headline(results: Results) -> Section:
    """Exact match of every system."""
    about = f"Share of {count(results['problems'], 'test problem')} whose whole answer is right, its end included; every system gets the same problems."
    return accuracy_section(results, about)


# --- mixtures ----------------------------------------------------------------------------------------------------

Readings = Mapping[str, Mapping[str, Any]]  # means over seeds by reading, teacher-forced and in rollout


def _readings(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Means over seeds, teacher-forced first."""
    return {
        kind: {key: averaged(value) for key, value in entry["mixture"][kind].items()}
        for kind in ("forced", "rollout")
        if kind in entry["mixture"]
    }


def _mean_coefficient(data: Mapping[str, Any], key: str) -> float:
    if key in data:
        return float(data[key])
    values = data[f"{key}_steps"]
    return float(sum(values) / len(values))


def _row(name: str, readings: Readings, pick: str | int, classes: str = "") -> list[Cell]:
    """One row: at a step if ``pick`` is a position, else over the nodes with that suffix."""
    row = [text(name, classes=classes)]
    for data in readings.values():
        if isinstance(pick, int):
            values = [data[f"{reading}_steps"][pick] for reading in ("rank", "major", "right", "other")]
        else:
            values = [data[f"rank{pick}"], data[f"major{pick}"]]
            values += [_mean_coefficient(data, f"{side}{pick}") for side in ("right", "other")]
        formats = (PERCENT, PERCENT, THREE_DECIMALS, THREE_DECIMALS)
        row += [number(value, write, classes=classes) for value, write in zip(values, formats, strict=True)]
    return row


def _mixture_table(results: Results) -> Table:
    """Every step of one system, or the inner nodes of several and all their nodes."""
    every = {name: _readings(entry) for name, entry in inside(results).items()}
    first = next(iter(every.values()))
    if len(every) == 1:
        depth = len(next(iter(first.values()))["rank_steps"]) + 1
        rows = [_row(name, first, index) for index, name in enumerate(step_names(depth)[1:])]
        rows += [_row("inner nodes", first, "_inner", "strong"), _row("all nodes", first, "", "strong")]
    else:
        rows = [_row(f"{name}, inner nodes", readings, "_inner") for name, readings in every.items()]
        rows += [_row(f"{name}, all nodes", readings, "") for name, readings in every.items()]
    if compares_to_paper(results):
        blank = [BLANK] * (4 * len(first) - 2)
        rows.append([text("all nodes, the paper’s"), number(PAPER.rank), number(PAPER.major), *blank])
    heads = (
        ("Rank|of the sibling plane", "rank"),
        ("Right larger|of the two", "larger"),
        ("Right child|coefficient", "right"),
        ("Other child|coefficient", "other"),
    )
    columns = [Column("Node" if len(every) == 1 else "Latents of")]
    columns += [Column(head, None, short, KINDS[kind].capitalize()) for kind in first for head, short in heads]
    name, note = (
        "sibling plane, teacher-forced and in rollout",
        "Each latent is projected on the plane of the right child and its sibling. ",
    )
    if reference := results.get("reference"):
        mixed, plain = percent(reference["true_mixture"]), percent(reference["no_sibling"])
        name += f":\nrank {plain} without a sibling part, {mixed} for the two siblings alone"
        note += (
            f"Rank of that plane among the planes of all pairs of names, by distance: {mixed} "
            f"for a mixture of the two siblings alone, {plain} with no sibling in it. "
        )
    if not is_ambiguous(results):
        note += "The leaf is named in the prompt, so the inner nodes are the honest test."
    return Table(title=name, columns=columns, rows=rows, note=note.strip())


def mixture_section(results: Results) -> Section | None:
    """Rank and coefficients in a table, and curves along SST."""
    blocks: list[Block] = [_mixture_table(results)] if inside(results) else []
    several = len(figures.sst_stages(results)) > 1
    along = _ALONG_OPEN if is_ambiguous(results) else _ALONG
    for index, (kind, panels) in enumerate(figures.mixing_panels(results).items()):
        caption = _AGAIN if index else along + (" Inner nodes only, one colour a stage." if several else "")
        blocks += [Heading(f"Along SST, {KINDS[kind]}"), Figure(panels, caption)]
    return Section("mixture", "What a latent is made of", blocks) if blocks else None


def pca_section(results: Results) -> Section | None:
    """Names and predicted latents on two principal components."""
    pca = results.get("pca")
    if not pca or not pca.get("names"):
        return None
    explained = joined([percent(share, 1) for share in pca["explained"]])
    caption = (
        f"Squares: table rows of the names. {count(len(pca['predictions']), 'dot')}: latents that predict inner nodes in rollout, "
        "coloured by the right name; point at a letter to see its own. A dot on its square is a plain name; dots between squares "
        f"are mixtures. Two components of a wide space, which explain {explained} of it: distances here are only a hint."
    )
    dots = [(entry["name"], entry["at"]) for entry in pca["predictions"]]
    label = "Names and predicted latents on two principal components"
    panel = Panel(drawing=clouds.named_cloud(pca["names"], dots, label=label))
    return Section("cloud", "Where latents lie", [Figure([panel], caption, "beside")])


# --- single chains -----------------------------------------------------------------------------------------------


def examples_section(results: Results) -> Section | None:
    """Chains of some problems, one small tree a latent."""
    entries = results.get("examples")
    if not entries:
        return None
    keys = [
        Key("mass", "shade: coefficient of the name"),
        Key("right", "ring: right name"),
        Key("spoken", "dot: spoken name"),
    ]
    caption = (
        "Each tree is one latent of the chain, taken apart by least squares over the rows of all names; values below "
        f"{trees.SHOWN_FROM:g} are not written. Look for two shaded siblings: there the model was not sure."
    )
    blocks: list[Block] = [Legend(keys), *map(_example, entries), Paragraph(caption, "caption")]
    return Section("examples", "Chains, latent by latent", blocks)


def _example(entry: Mapping[str, Any]) -> Figure:
    verdict = "right" if entry["correct"] else "wrong"
    remark = f"route {''.join(entry['route'])}, said {''.join(entry['spoken']) or 'nothing'}"
    return Figure(
        [_latent(entry, index) for index in range(len(entry["coefficients"]))],
        classes="example",
        title=f"{entry['kind'][:1].upper()}{entry['kind'][1:]}",
        remark=remark if entry["kind"] == verdict else f"{remark}, {verdict}",
        strip=True,
    )


def _latent(entry: Mapping[str, Any], index: int) -> Panel:
    right, spoken = entry["route"][index], dict(enumerate(entry["spoken"])).get(index)
    step = trees.Step(heap=entry["heap"], coefficients=entry["coefficients"][index], right=right, spoken=spoken)
    remark = f"said {spoken or 'nothing'}"
    if spoken is not None and spoken not in entry["heap"]:
        remark += ", not in this tree"
    if spoken != right:
        remark += f"; right is {right}"
    if (other := step.outside()) is not None:
        remark += f"; outside the tree {other[0]} {coefficient(other[1])}"
    return Panel(
        drawing=trees.draw(step, label=f"Latent {index + 1}: {remark}"),
        below=(str(index + 1), remark),
        width=trees.size(step.depth)[0],
        classes="" if spoken == right else "miss",
    )


# --- known odds --------------------------------------------------------------------------------------------------


def calibration_section(results: Results) -> Section | None:
    """Mixture against known odds."""
    blocks: list[Block] = []
    every = calibrations(results)
    for name, entry in every.items():
        panel = figures.calibration_panel(entry, name if len(every) > 1 else "")
        forced = {key: averaged(value) for key, value in entry["forced"].items() if key != "points"}
        error, uniform = (bare_percent(forced[key], 1) for key in ("error", "uniform_error"))
        if panel is not None:
            caption = (
                "The prompt names several leaves, or none, so the odds of each child are known. Teacher-forced latents, share "
                "of a child within its sibling pair. Points on the diagonal carry the odds; points on the horizontal middle "
                f"carry none. Mean error {error} points; saying one half everywhere: {uniform} points."
            )
            blocks.append(Figure([panel], caption, "beside"))
        if entry.get("rollout"):
            title = (
                f"{name}: coefficients against known odds, off by {error} points teacher-forced (one half: {uniform})"
            )
            blocks.append(_rollout_table(entry["rollout"], title))
    return Section("calibration", "Do coefficients match known odds?", blocks) if blocks else None


def _rollout_table(entry: Mapping[str, Any], title: str) -> Table:
    rollout = {key: averaged(value) for key, value in entry.items()}

    def read(step: int, key: str, write: Format, classes: str = "") -> Cell:
        return number(rollout[key][step], write, classes=classes)

    names = step_names(len(rollout["distance"]) + 1)[1:]
    columns = [Column("Rollout", lambda step: text(names[step]))]
    for group, write, key, reference, head, short in (
        ("Distance from the odds", PERCENT_1, "distance", "uniform_distance", "even shares", "of uniform"),
        ("Entropy, nats", TWO_DECIMALS, "entropy", "true_entropy", "true", "true"),
        ("Largest share", PERCENT_1, "largest", "true_largest", "true", "true"),
    ):
        beside = partial(read, key=reference, write=write, classes="muted")
        columns.append(Column("latent", partial(read, key=key, write=write), key, group))
        columns.append(Column(head, beside, short, group))
    outside = partial(read, key="outside", write=PERCENT_1)
    columns.append(Column("latent", outside, "outside level", "Outside the level"))
    note = (
        "In rollout nothing commits to a node, so a latent should carry the odds of the whole level. Compare each number with the "
        "grey one beside it: entropy below the true one means that the chain made up its mind without a reason, a large part "
        "outside the level means that it lost the tree. Distance is total variation."
    )
    return Table.of(range(len(names)), columns, title=title, note=note)
