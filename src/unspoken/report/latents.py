"""Sections of the page about the latents: mixtures, where they lie, single chains, and known odds."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from unspoken.report import figures, trees
from unspoken.report.cloud import pca_panel
from unspoken.report.figures import KINDS
from unspoken.report.findings import Results, averaged, inside, is_ambiguous, step_names
from unspoken.report.formats import bare_percent, coefficient, count, joined, percent
from unspoken.report.markup import Cell, Section, figure, heads, prose, table, text_cell

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
_COLUMNS = (
    "Rank|of the sibling plane",
    "Right larger|of the two",
    "Right child|coefficient",
    "Other child|coefficient",
)


def _readings(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Means over seeds, teacher-forced first."""
    return {
        kind: {key: averaged(value) for key, value in entry["mixture"][kind].items()}
        for kind in ("forced", "rollout")
        if kind in entry["mixture"]
    }


def _row(name: str, readings: Mapping[str, Mapping[str, Any]], pick: str | int, classes: str = "num") -> list[Cell]:
    """One row: at a step if ``pick`` is a position, else over the nodes with that suffix."""
    row = [text_cell(name, classes=classes.removeprefix("num").strip())]
    for data in readings.values():
        if isinstance(pick, int):
            rank, major, right, other = (data[f"{part}_steps"][pick] for part in ("rank", "major", "right", "other"))
        else:
            rank, major = data[f"rank{pick}"], data[f"major{pick}"]
            right, other = (_mean_coefficient(data, f"{side}{pick}") for side in ("right", "other"))
        row += [Cell(text=percent(rank), classes=f"{classes} first"), Cell(text=percent(major), classes=classes)]
        row += [Cell(text=coefficient(value, 3), classes=classes) for value in (right, other)]
    return row


def _mean_coefficient(data: Mapping[str, Any], key: str) -> float:
    if key in data:
        return float(data[key])
    values = data[f"{key}_steps"]
    return float(sum(values) / len(values))


def _mixture_table(results: Results) -> str:
    """Every step of one system, or the inner nodes of several."""
    measured, reference = inside(results), results.get("reference")
    every = {name: _readings(entry) for name, entry in measured.items()}
    first = next(iter(every.values()))
    if len(every) == 1:
        depth = len(next(iter(first.values()))["rank_steps"]) + 1
        rows = [_row(name, first, index) for index, name in enumerate(step_names(depth)[1:])]
        rows += [_row("inner nodes", first, "_inner", "num strong"), _row("all nodes", first, "", "num strong")]
    else:
        rows = [_row(name, readings, "_inner") for name, readings in every.items()]
    columns = heads("Node" if len(every) == 1 else "Inner nodes of", *_COLUMNS * len(first))
    groups = [(KINDS[kind].capitalize(), len(_COLUMNS)) for kind in first]
    caption = "Each latent is projected on the plane of the right child and its sibling. "
    if reference:
        caption += (
            f"Rank of that plane among the planes of all pairs of names, by distance: {percent(reference['true_mixture'])} "
            f"for a mixture of the two siblings alone, {percent(reference['no_sibling'])} with no sibling in it. "
        )
    if not is_ambiguous(results):
        caption += "The leaf is named in the prompt, so the inner nodes are the honest test."
    return table(columns, rows, caption=caption, groups=groups)


def mixture_section(results: Results) -> Section | None:
    """Rank and coefficients: a table for each system, curves along SST, and principal components."""
    body = _mixture_table(results) if inside(results) else ""
    several = len(figures.sst_stages(results)) > 1
    for index, (kind, row) in enumerate(figures.mixing_panels(results).items()):
        along = _ALONG_OPEN if is_ambiguous(results) else _ALONG
        caption = _AGAIN if index else along + (" Inner nodes only, one colour a stage." if several else "")
        body += f'<h4 class="run-in">Along SST, {KINDS[kind]}</h4>{figure(row, caption)}'
    return Section(key="mixture", title="What a latent is made of", body=body) if body else None


def pca_section(results: Results) -> Section | None:
    """Names and predicted latents on two principal components."""
    panel = pca_panel(results)
    if panel is None:
        return None
    dots = count(len(results["pca"]["predictions"]), "dot")
    explained = joined([percent(share, 1) for share in results["pca"]["explained"]])
    caption = (
        f"Squares: table rows of the names. {dots}: latents that predict inner nodes in rollout, coloured by the right name; "
        "point at a letter to see its own. A dot on its square is a plain name; dots between squares are mixtures. Two "
        f"components of a wide space, which explain {explained} of it: distances here are only a hint."
    )
    return Section(key="cloud", title="Where latents lie", body=figure([panel], caption, classes="beside"))


def examples_section(results: Results) -> Section | None:
    """Chains of some problems, one small tree a latent."""
    entries = results.get("examples")
    if not entries:
        return None
    key = (
        '<p class="legend example-key"><span class="key mass">shade: coefficient of the name</span>'
        '<span class="key right">ring: right name</span><span class="key said">dot: spoken name</span></p>'
    )
    parts = [key]
    for entry in entries:
        said = "".join(entry["spoken"]) or "nothing"
        verdict = "right" if entry["correct"] else "wrong"
        title = f"{entry['kind'][:1].upper()}{entry['kind'][1:]}"
        told = f"route {''.join(entry['route'])}, said {said}" + ("" if entry["kind"] == verdict else f", {verdict}")
        drawings = "".join(_latent(entry, index) for index in range(len(entry["coefficients"])))
        name = f"<h4>{escape(title)} <span>{escape(told)}</span></h4>"
        parts.append(f'<div class="example">{name}<div class="panels strip">{drawings}</div></div>')
    caption = (
        "Each tree is one latent of the chain, taken apart by least squares over the rows of all names; values below "
        f"{trees.SHOWN_FROM:g} are not written. Look for two shaded siblings: there the model was not sure."
    )
    parts.append(f'<p class="caption">{prose(caption)}</p>')
    return Section(key="examples", title="Chains, latent by latent", body="".join(parts))


def _latent(entry: Mapping[str, Any], index: int) -> str:
    spoken, right = entry["spoken"], entry["route"][index]
    said = spoken[index] if index < len(spoken) else None
    step = trees.Step(heap=entry["heap"], coefficients=entry["coefficients"][index], right=right, said=said)
    told = f"said {said or 'nothing'}"
    if said is not None and said not in entry["heap"]:
        told += ", not in this tree"
    if said != right:
        told += f"; right is {right}"
    if (other := trees.elsewhere(step)) is not None:
        told += f"; outside the tree {other[0]} {coefficient(other[1])}"
    width = trees.size(trees.depth_of(step))[0]
    words = f"<p>{index + 1} <span{'' if said == right else ' class=miss'}>{escape(told)}</span></p>"
    return f'<div class="panel" style="width:{width:.0f}px">{trees.draw(step, label=f"Latent {index + 1}: {told}")}{words}</div>'


def calibration_section(results: Results) -> Section | None:
    """Mixture against known odds."""
    body, parts = (
        "",
        [(name, entry["calibration"]) for name, entry in inside(results).items() if "calibration" in entry],
    )
    for name, entry in parts:
        panel = figures.calibration_panel(entry, name if len(parts) > 1 else "")
        forced = {key: averaged(value) for key, value in entry["forced"].items() if key != "points"}
        if panel is not None:
            caption = (
                "The prompt names several leaves, or none, so the odds of each child are known. Teacher-forced latents, share "
                "of a child within its sibling pair. Points on the diagonal carry the odds; points on the horizontal middle "
                f"carry none. Mean error {bare_percent(forced['error'], 1)} points; saying one half everywhere: "
                f"{bare_percent(forced['uniform_error'], 1)} points."
            )
            body += figure([panel], caption, classes="beside")
        body += _rollout_table(entry)
    return Section(key="calibration", title="Do coefficients match known odds?", body=body) if body else None


def _rollout_table(entry: Mapping[str, Any]) -> str:
    rollout = {key: averaged(value) for key, value in entry.get("rollout", {}).items()}
    if not rollout:
        return ""
    names = step_names(len(rollout["distance"]) + 1)[1:]
    rows = [
        [
            text_cell(name),
            Cell(text=percent(rollout["distance"][i], 1)),
            Cell(text=percent(rollout["uniform_distance"][i], 1), classes="num muted"),
            Cell(text=coefficient(rollout["entropy"][i])),
            Cell(text=coefficient(rollout["true_entropy"][i]), classes="num muted"),
            Cell(text=percent(rollout["largest"][i], 1)),
            Cell(text=percent(rollout["true_largest"][i], 1), classes="num muted"),
            Cell(text=percent(rollout["outside"][i], 1)),
        ]
        for i, name in enumerate(names)
    ]
    head = heads("Rollout", "latent", "even shares", "latent", "true", "latent", "true", "latent")
    groups = [("Distance from the odds", 2), ("Entropy, nats", 2), ("Largest share", 2), ("Outside the level", 1)]
    caption = (
        "In rollout nothing commits to a node, so a latent should carry the odds of the whole level. Compare each number with the "
        "grey one beside it: entropy below the true one means that the chain made up its mind without a reason, a large part "
        "outside the level means that it lost the tree. Distance is total variation."
    )
    return table(head, rows, caption=caption, groups=groups)
