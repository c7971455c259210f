"""The sections of the page. Each gives None where its data is absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import yaml

from unspoken.report import figures, trees
from unspoken.report.charts import interval_bar
from unspoken.report.figures import KINDS
from unspoken.report.findings import (
    CONTROL_MEANING,
    COUPLED,
    PAIR,
    PAPER,
    Results,
    averaged,
    compares_to_paper,
    containment,
    difference,
    differs,
    each_seed,
    inside,
    step_names,
)
from unspoken.report.formats import (
    NO_VALUE,
    bare_percent,
    coefficient,
    count,
    duration,
    megaflops,
    milliseconds,
    p_value,
    percent,
    percent_range,
    points,
    quantity,
    steps,
)
from unspoken.report.markup import Cell, Section, figure, paragraph, prose, table, text_cell

SYSTEM_COLOURS = {PAIR: "c1", f"{PAIR}, nearest row": "c3", COUPLED: "c2"}


def _head(*titles: str) -> list[Cell]:
    """Column heads: the first names the rows, ``|`` parts a title from its unit, ``~`` marks columns a phone leaves out."""
    cells = []
    for index, title in enumerate(titles):
        text, _, small = title.removeprefix("~").partition("|")
        classes = ("num" if index else "") + (" wide" if title.startswith("~") else "")
        cells.append(Cell(text=text, small=small, classes=classes.strip()))
    return cells


# --- what came out -----------------------------------------------------------------------------------------------


def headline(results: Results) -> str:
    """Exact match of every system, against the coupled baseline and beside the paper's."""
    systems = results["systems"]
    compared = any(difference(results, name) for name in systems)
    seeds = len(results["seeds"]) > 1
    valid = {name: entry["calibration"] for name, entry in inside(results).items() if "calibration" in entry}
    head = _head("System", "Exact match|95 % interval", "~0 to 100 %")
    head += _head("", "~Each seed|%")[1:] if seeds else []
    head += _head("", "Against coupled|points", "~p")[1:] if compared else []
    head += _head("", "Real routes")[1:] if valid else []
    rows = []
    for name, entry in systems.items():
        rate = entry["exact_match"]
        bar = interval_bar(rate["mean"], rate["low"], rate["high"], SYSTEM_COLOURS.get(name, "c1"), bar=False)
        row = [
            text_cell(name),
            Cell(text=percent(rate["mean"]), small=percent_range(rate["low"], rate["high"]), classes="num strong"),
            Cell(html=bar, classes="wide graphic"),
        ]
        row += [Cell(text=each_seed(rate["seeds"]), classes="num wide")] if seeds else []
        row += _against(results, name) if compared else []
        row += (
            [Cell(text=percent(averaged(valid[name]["valid_routes"])) if name in valid else NO_VALUE)] if valid else []
        )
        rows.append(row)
    if compares_to_paper(results):
        blank = [Cell(text="") for _ in range(len(head) - 3)]
        bar = interval_bar(PAPER.exact_match, PAPER.exact_match, PAPER.exact_match, "c0", bar=False)
        paper = text_cell("paper’s Reasoner and Talker", small="42 M parameters, trees of four levels")
        value = Cell(text=percent(PAPER.exact_match), small="no interval given")
        rows.append([paper, value, Cell(html=bar, classes="wide graphic"), *blank])
    return table(head, rows, caption=_headline_caption(results, compared), classes="headline")


def _against(results: Results, name: str) -> list[Cell]:
    entry = difference(results, name)
    if entry is None:
        return [Cell(text=NO_VALUE, classes="num muted"), Cell(text="", classes="num wide")]
    small = f"{points(entry['low'])} to {points(entry['high'])}"
    p = p_value(entry["p"]).removeprefix("p = ").removeprefix("p ")
    return [
        Cell(text=points(entry["mean"]), small=small, classes="num" if differs(entry) else "num muted"),
        Cell(text=p, classes="num wide" if differs(entry) else "num wide muted"),
    ]


def _headline_caption(results: Results, compared: bool) -> str:
    problems = count(results["problems"], "test problem")
    text = f"Share of {problems} whose whole answer is right, its end included; every system gets the same problems. "
    many = len(results["seeds"]) > 1
    text += (
        "Intervals widen where seeds disagree. " if many else "One seed: intervals cover the choice of problems only. "
    )
    if compared:
        text += "The difference is paired, problem by problem; grey where the data cannot tell it from zero."
    return text.strip()


def paper_section(results: Results) -> Section | None:
    """The paper's measures beside ours."""
    if not compares_to_paper(results):
        return None
    name = PAIR if PAIR in results["systems"] else next(iter(inside(results)), None)
    if name is None:
        return None
    entry = next((value for key, value in inside(results).items() if key.startswith(name)), None)
    own = results["systems"][name]
    rate = own["exact_match"]
    rows = [[text_cell("Exact match"), Cell(text=percent(PAPER.exact_match)), Cell(text=percent(rate["mean"]))]]
    if entry is not None:
        forced = {key: averaged(value) for key, value in entry["mixture"]["forced"].items()}
        rows += [
            [
                text_cell("Right child has the larger coefficient", small="teacher-forced, all nodes below the root"),
                Cell(text=percent(PAPER.major)),
                Cell(text=percent(forced["major"]), small=f"inner nodes {percent(forced['major_inner'])}"),
            ],
            [
                text_cell(
                    "Rank of the sibling plane", small="among the planes of all pairs of names; 0 % is the nearest"
                ),
                Cell(text=percent(PAPER.rank)),
                Cell(text=percent(forced["rank"]), small=f"inner nodes {percent(forced['rank_inner'])}"),
            ],
        ]
    task, shape = results["recipe"]["task"], own["cost"]["parameters"]
    rows += [
        [text_cell("Levels of the tree"), Cell(text="4"), Cell(text=str(task.get("depth", NO_VALUE)))],
        [
            text_cell("Parameters", small="the paper counts the Reasoner alone"),
            Cell(text="42 M"),
            Cell(text=quantity(shape)),
        ],
    ]
    caption = (
        "Paper: JEPA-Reasoner, arXiv 2512.19171, version 3, section 5.1, one model. A rank near the level of “two siblings "
        "alone” means a mixture, one near “no sibling” a plain row (see below): a model that is certain does not mix."
    )
    head = _head("Measure", "Paper", f"Here|{name}")
    return Section(key="paper", title="Beside the paper", body=table(head, rows, caption=caption, classes="narrow"))


def steps_section(results: Results) -> Section | None:
    """Accuracy a step."""
    panels = figures.step_panels(results)
    if not panels:
        return None
    caption = (
        "Nearest name of every latent, Talker left out. Look for a gap between the two: under teacher forcing each step reads "
        "the true names before it, in rollout it reads the model’s own latents, which training never showed it. The vertical "
        "axis may not start at zero."
    )
    return Section(key="steps", title="Accuracy by step", body=figure(panels, caption))


# --- what a latent is made of ------------------------------------------------------------------------------------


def _mixture_table(entry: Mapping[str, Any], reference: Mapping[str, float]) -> str:
    kinds = [kind for kind in ("rollout", "forced") if kind in entry["mixture"]]
    data = {kind: {key: averaged(value) for key, value in entry["mixture"][kind].items()} for kind in kinds}
    head = _head("Node")
    for kind in kinds:
        name = KINDS[kind]
        head += _head("", f"Rank|{name}", f"Right larger|{name}", f"Right child|{name}", f"Other child|{name}")[1:]
    depth = len(data[kinds[0]]["rank_steps"]) + 1
    rows = []
    for index, name in enumerate(step_names(depth)[1:]):
        rows.append([text_cell(name)])
        for kind in kinds:
            right, other = data[kind]["right_steps"][index], data[kind]["other_steps"][index]
            rank, major = data[kind]["rank_steps"][index], data[kind]["major_steps"][index]
            rows[-1] += [Cell(text=percent(rank)), Cell(text=percent(major))]
            rows[-1] += [Cell(text=coefficient(right, 3)), Cell(text=coefficient(other, 3))]
    for name, suffix in (("inner nodes", "_inner"), ("all nodes", "")):
        rows.append([text_cell(name, classes="strong")])
        for kind in kinds:
            sides = [_mean_coefficient(data[kind], side, suffix) for side in ("right", "other")]
            rows[-1] += [
                Cell(text=percent(data[kind][f"{part}{suffix}"]), classes="num strong") for part in ("rank", "major")
            ]
            rows[-1] += [Cell(text=coefficient(side, 3), classes="num strong") for side in sides]
    caption = "The latent is projected on the plane of the right child and its sibling. "
    if reference:
        caption += (
            f"Rank of that plane among all planes by distance: {percent(reference['true_mixture'])} if the latent is a mixture "
            f"of the two siblings alone, {percent(reference['no_sibling'])} if there is no sibling in it. "
        )
    return table(head, rows, caption=caption + "The leaf is named in the prompt, so inner nodes are the honest test.")


def _mean_coefficient(data: Mapping[str, Any], side: str, suffix: str) -> float:
    key = f"{side}{suffix}"
    if key in data:
        return float(data[key])
    values = data[f"{side}_steps"]
    return float(sum(values) / len(values))


def mixture_section(results: Results) -> Section | None:
    """Rank and coefficients: a table for each system, curves along SST, and principal components."""
    measured, body = inside(results), ""
    for name, entry in measured.items():
        body += f"<h4>{escape(name)}</h4>" if len(measured) > 1 else ""
        body += _mixture_table(entry, results.get("reference") or {})
    panels = figures.mixing_panels(results)
    several = len(figures.sst_stages(results)) > 1
    for kind, row in panels.items():
        caption = (
            "Validation problems while SST runs. A model that cannot yet tell the siblings apart mixes them evenly: rank at the "
            "lower dashed line, both coefficients equal, chance at the right child. Learning the search pulls the coefficients "
            "apart, and the rank rises to the upper line as the sibling fades."
            if kind == next(iter(panels))
            else "The same readings of the model’s own chains. Where they fall behind the ones above, mixtures do not survive being fed back."
        )
        caption += " Inner nodes only." if several and kind == next(iter(panels)) else ""
        body += f'<h4 class="run-in">Along SST, {KINDS[kind]}</h4>' + figure(row, caption)
    return Section(key="mixture", title="What a latent is made of", body=body) if body else None


def pca_section(results: Results) -> Section | None:
    """Names and predicted latents on two principal components."""
    panel = figures.pca_panel(results)
    if panel is None:
        return None
    dots = count(len(results["pca"]["predictions"]), "dot")
    caption = (
        f"Squares: table rows of the names. {dots}: latents that predict inner nodes in rollout, coloured by the right name; "
        "point at a letter to see its own. A dot on its square is a plain name; dots between squares are mixtures. Two "
        "components of a wide space: distances here are only a hint."
    )
    return Section(key="cloud", title="Where latents lie", body=figure([panel], caption, classes="beside"))


def examples_section(results: Results) -> Section | None:
    """Chains of some problems, one small tree a latent."""
    entries = results.get("examples")
    if not entries:
        return None
    key = (
        '<p class="legend"><span class="key mass">shade: coefficient of the name</span>'
        '<span class="key right">ring: right name</span><span class="key said">dot: spoken name</span></p>'
    )
    parts = [key]
    for entry in entries:
        said = "".join(entry["spoken"]) or "nothing"
        verdict = "right" if entry["correct"] else "wrong"
        title = f"{entry['kind'][:1].upper()}{entry['kind'][1:]}"
        told = f"route {''.join(entry['route'])}, said {said}" + ("" if entry["kind"] == verdict else f", {verdict}")
        drawings = "".join(_latent(entry, index) for index in range(len(entry["coefficients"])))
        parts.append(
            f'<div class="example"><h4>{escape(title)} <span>{escape(told)}</span></h4><div class="panels">{drawings}</div></div>'
        )
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
    told = f"right {right}, said {said or 'nothing'}"
    if said is not None and said not in entry["heap"]:
        told += " (not in this tree)"
    if (other := trees.elsewhere(step)) is not None:
        told += f"; outside the tree {other[0]} {coefficient(other[1])}"
    drawing = trees.draw(step, label=f"Latent {index + 1}: {told}")
    return f'<div class="panel">{drawing}<p>latent {index + 1} <span>{escape(told)}</span></p></div>'


# --- does it matter ----------------------------------------------------------------------------------------------


def controls_section(results: Results) -> Section | None:
    """Exact match of answers spoken from altered chains."""
    controls = results.get("controls")
    if not controls:
        return None
    rows = []
    if PAIR in results["systems"]:
        rate = results["systems"][PAIR]["exact_match"]
        rows.append(_control("the chain itself", "", "Nothing is changed.", rate, None, "c1"))
    for name, entry in controls.items():
        given, question = CONTROL_MEANING.get(name, ("", ""))
        rows.append(_control(name, given, question, entry["exact_match"], entry.get("symbol_accuracy"), "c0"))
    caption = (
        "The same trained model speaks from an altered chain. Bar: exact match of the whole answer, with its 95 % interval; "
        "diamond: share of right names below the root. A bar that stays as long as the first one means that what was "
        "destroyed was not used; a bar near zero, that the answer needed it."
    )
    head = _head("Chain", "Exact match|95 % interval", "0 to 100 %", "~What it asks")
    head[2] = Cell(text="", small="0 to 100 %", classes="graphic")
    head[3] = Cell(text="What it asks", classes="wide")
    body = table(head, rows, caption=caption, classes="controls")
    return Section(key="controls", title="Does the chain do anything?", body=body)


def _control(
    name: str, given: str, question: str, rate: Mapping[str, Any], symbols: float | None, colour: str
) -> list[Cell]:
    marks = [] if symbols is None else [symbols]
    bar = interval_bar(rate["mean"], rate["low"], rate["high"], colour, ticks=marks)
    return [
        text_cell(name, small=given),
        Cell(text=percent(rate["mean"]), small=percent_range(rate["low"], rate["high"])),
        Cell(html=bar, classes="graphic"),
        text_cell(question, classes="wide muted"),
    ]


def containment_section(results: Results) -> Section | None:
    """The measured statement about error containment."""
    text = containment(results)
    if text is None:
        return None
    broken = "" if results["containment"]["latents_identical"] else "alarm"
    more = (
        "Containment holds by construction: no spoken token ever enters the Reasoner. It bounds what a wrong word can do, not "
        "what a wrong latent can do."
    )
    body = paragraph(text, f"statement {broken}".strip()) + paragraph(more, "caption")
    return Section(key="containment", title="Does speech reach the chain?", body=body)


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
    head = _head(
        "Rollout",
        "Distance|total variation",
        "Distance|even shares",
        "Entropy|nats",
        "Entropy|true",
        "Largest share",
        "Largest|true",
        "Outside|the level",
    )
    caption = (
        "In rollout nothing commits to a node, so a latent should carry the odds of the whole level. Compare each number with the "
        "grey one beside it: entropy below the true one means that the chain made up its mind without a reason, a large part "
        "outside the level means that it lost the tree."
    )
    return table(head, rows, caption=caption)


# --- how it was made ---------------------------------------------------------------------------------------------


def training_section(results: Results) -> Section | None:
    """Loss and exact match of every stage."""
    groups = figures.training_panels(results)
    if not groups:
        return None
    cards = "".join(f'<div class="stage">{"".join(panel.html() for panel in group)}</div>' for group in groups)
    many = len(results["seeds"]) > 1
    caption = f"{'One thin line a seed. ' if many else ''}Exact match is measured on validation problems in free generation, and selects the checkpoint; test problems are never looked at. Losses of different objectives cannot be compared."
    body = f'<figure><div class="panels">{cards}</div><figcaption>{prose(caption)}</figcaption></figure>'
    return Section(key="training", title="Training", body=body + _stages_table(results))


def _stages_table(results: Results) -> str:
    recipe = {stage["name"]: stage for stage in results.get("recipe", {}).get("stages", ())}
    first = results["training"][0]["stages"]
    rows = []
    for name, curve in first.items():
        curves = [entry["stages"][name] for entry in results["training"] if name in entry["stages"]]
        times = [entry["seconds"] for entry in curves if entry.get("seconds")]
        kept = ", ".join(f"{entry['selected_step']:,}" for entry in curves)
        rows.append(
            [
                text_cell(name),
                text_cell(recipe.get(name, {}).get("start") or "random weights"),
                Cell(text=f"{max(curve['steps'], default=0):,}"),
                Cell(text=kept),
                Cell(text=duration(sum(times) / len(times)) if times else NO_VALUE),
            ]
        )
    head = _head("Stage", "Starts from", "Steps", "Step kept", "Time|a seed")
    head[1] = text_cell("Starts from")
    return table(head, rows)


def cost_section(results: Results) -> Section | None:
    """What an answer costs."""
    rows = []
    for name, entry in results["systems"].items():
        cost = entry.get("cost")
        if cost:
            rows.append(
                [
                    text_cell(name),
                    Cell(text=steps(cost["latent_steps"])),
                    Cell(text=steps(cost["spoken_tokens"])),
                    Cell(text=steps(cost["sequential_passes"])),
                    Cell(text=megaflops(cost["flops"])),
                    Cell(text=milliseconds(cost["seconds_batched"])),
                    Cell(text=milliseconds(cost["seconds_alone"])),
                    Cell(text=quantity(cost["parameters"])),
                    Cell(text=percent(entry["ended"], 1)),
                ]
            )
    if not rows:
        return None
    head = _head(
        "System",
        "Latent steps",
        "Spoken tokens",
        "Passes|in sequence",
        "MFLOPs",
        "Time|ms, in a batch",
        "Time|ms, alone",
        "Parameters",
        "Ended|by itself",
    )
    caption = (
        "Means a problem. Passes in sequence are forward passes that wait for one another; the coupled model’s latent steps are the "
        "tokens it reasons in. MFLOPs: millions of floating-point operations of matrix products. Times are of this machine, first seed."
    )
    return Section(key="cost", title="What an answer costs", body=table(head, rows, caption=caption))


def recipe_section(results: Results) -> Section | None:
    """The command and the resolved recipe."""
    body = f"<pre><code>{escape(results['command'])}</code></pre>" if results.get("command") else ""
    if results.get("recipe"):
        text = yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True)
        body += f"<details><summary>The resolved recipe</summary><pre><code>{escape(text)}</code></pre></details>"
    return Section(key="recipe", title="How to make it again", body=body) if body else None


SECTIONS: tuple[Callable[[Results], Section | None], ...] = (
    paper_section,
    steps_section,
    controls_section,
    containment_section,
    mixture_section,
    pca_section,
    examples_section,
    calibration_section,
    training_section,
    cost_section,
    recipe_section,
)
