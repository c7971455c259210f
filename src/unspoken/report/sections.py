"""The sections of the page. Each gives None where its data is absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from typing import Any

import yaml

from unspoken.evaluation.outcomes import COUPLED, PAIR
from unspoken.report import figures
from unspoken.report.charts import interval_bar
from unspoken.report.findings import (
    CONTROL_MEANING,
    PAPER,
    Results,
    averaged,
    baseline,
    compares_to_paper,
    containment,
    difference,
    differs,
    each_seed,
    inside,
    is_ambiguous,
    label,
    texts,
    words,
)
from unspoken.report.formats import (
    NO_VALUE,
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
from unspoken.report.latents import calibration_section, examples_section, mixture_section, pca_section
from unspoken.report.markup import Cell, Section, figure, heads, paragraph, prose, table, text_cell
from unspoken.report.robust import word_forced_section
from unspoken.report.strings import claims_section, forced_section, latent_noise_section, strings, token_noise_section
from unspoken.report.strips import strips_section
from unspoken.report.superposition import superposition_section
from unspoken.report.texts import language_section, sentences_section, texts_headline
from unspoken.report.words import geometry_section, samples_section, steps_table, tests_section, word_controls_section

NEAREST = ", nearest row"
SYSTEM_COLOURS = {PAIR: "c1", f"{PAIR}{NEAREST}": "c3", COUPLED: "c2", "coconut": "c4"}


# --- what came out -----------------------------------------------------------------------------------------------


def headline(results: Results) -> str:
    """Exact match of every system, against the baseline and beside the paper's."""
    if texts(results):
        return texts_headline(results)
    systems = results["systems"]
    colours = figures.system_colours(results) if words(results) else SYSTEM_COLOURS
    against = label(results, baseline(results) or "")
    compared = any(difference(results, name) for name in systems)
    seeds = len(results["seeds"]) > 1
    valid = {name: entry["calibration"] for name, entry in inside(results).items() if "calibration" in entry}
    head = [*heads("System", "Exact match|95 % interval"), Cell(small="0 to 100 %", classes="wide graphic")]
    head += heads("", "~Each seed|%")[1:] if seeds else []
    head += heads("", f"Against {against}|points", "~p")[1:] if compared else []
    head += heads("", "Real routes")[1:] if valid else []
    rows = []
    for name, entry in systems.items():
        rate = entry["exact_match"]
        bar = interval_bar(rate["mean"], rate["low"], rate["high"], colours.get(name, "c1"), bar=False)
        row = [
            text_cell(label(results, name)),
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
    if words(results):
        names = list(words(results).get("tests", ()))
        problems += f" of {names[0]}" if len(names) > 1 else ""
        text = f"Share of {problems} whose boxed answer is right; every system gets the same problems. "
    elif strings(results):
        symbols, half = strings(results)["symbols"], strings(results)["half"]
        text = (
            f"Share of {problems} of which symbols {half + 1} to {symbols} behind the prompt are all right: the only ones that "
            "Coconut says. "
        )
    else:
        text = (
            f"Share of {problems} whose whole answer is right, its end included; every system gets the same problems. "
        )
    if is_ambiguous(results):
        text += "The route is drawn from the odds, so no system can always be right; a real route is one that may be meant. "
    many = len(results["seeds"]) > 1
    text += (
        "Intervals widen where seeds disagree. " if many else "One seed: intervals cover the choice of problems only. "
    )
    if compared:
        text += "The difference is paired, problem by problem; grey where the data cannot tell it from zero."
    return text.strip()


def paper_section(results: Results) -> Section | None:
    """The paper's measures beside ours, a column a Reasoner."""
    measured = inside(results)
    if not compares_to_paper(results) or not measured:
        return None
    # A Reasoner with a Talker is measured inside under the name of its read-out without one.
    readout = {name.removesuffix(NEAREST): name for name in measured}
    systems = {name: results["systems"][name] for name in readout if name in results["systems"]}
    forced = {
        name: {key: averaged(value) for key, value in measured[readout[name]]["mixture"]["forced"].items()}
        for name in systems
    }

    def both(key: str) -> list[Cell]:
        small = {name: percent(values[f"{key}_inner"]) for name, values in forced.items()}
        return [Cell(text=percent(forced[name][key]), small=f"inner nodes {small[name]}") for name in systems]

    sizes = [quantity(results["systems"][readout[name]]["cost"]["parameters"]) for name in systems]
    depth = str(results["recipe"]["task"].get("depth", NO_VALUE))
    rows = [
        [
            text_cell("Exact match"),
            Cell(text=percent(PAPER.exact_match)),
            *(Cell(text=percent(entry["exact_match"]["mean"])) for entry in systems.values()),
        ],
        [
            text_cell("Right child has the larger coefficient", small="teacher-forced, all nodes below the root"),
            Cell(text=percent(PAPER.major)),
            *both("major"),
        ],
        [
            text_cell("Rank of the sibling plane", small="among the planes of all pairs of names, nearest first"),
            Cell(text=percent(PAPER.rank)),
            *both("rank"),
        ],
        [text_cell("Levels of the tree"), Cell(text="4"), *(Cell(text=depth) for _ in systems)],
        [
            text_cell("Parameters of the Reasoner"),
            Cell(text=quantity(PAPER.parameters, 2)),
            *(Cell(text=size) for size in sizes),
        ],
    ]
    caption = "Paper: JEPA-Reasoner, arXiv 2512.19171, version 3, section 5.1, one model. "
    if "reference" in results:
        caption += (
            f"A rank near {percent(results['reference']['true_mixture'])} means a mixture of the two siblings, one near "
            f"{percent(results['reference']['no_sibling'])} a plain name: a model that is certain has no reason to mix."
        )
    body = table(
        heads("Measure", "Paper", *systems), rows, caption=caption, classes="narrow" if len(systems) < 3 else ""
    )
    return Section(key="paper", title="Beside the paper", body=body)


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
        f"diamond: share of right {'symbols' if strings(results) else 'names below the root'}. A bar that stays as long as the first one means that what was "
        "destroyed was not used; a bar near zero, that the answer needed it."
    )
    scale, asks = Cell(small="0 to 100 %", classes="graphic"), text_cell("What it asks", classes="wide")
    head = [*heads("Chain", "Exact match|95 % interval"), scale, asks]
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


# --- how it was made ---------------------------------------------------------------------------------------------


def training_section(results: Results) -> Section | None:
    """Loss and exact match of every stage."""
    groups = figures.training_panels(results)
    if not groups:
        return None
    cards = "".join(f'<div class="stage">{"".join(panel.html() for panel in group)}</div>' for group in groups)
    caption = (
        "One thin line a seed. Exact match is measured on validation problems, in free generation; the dot is the checkpoint "
        "that was kept. Losses of different objectives cannot be compared. "
    )
    if texts(results):
        caption = "One thin line a seed. Checkpoints are selected on validation rows. Losses of different objectives cannot be compared."
    elif strings(results):
        caption += "A string can go on in several ways, so no curve reaches the top."
    elif not words(results):
        caption += "Look for a plateau followed by a fall: there the search is found."
    elif any(kind.get("kind") == "stage1" for kind in figures.stage_kinds(results).values()):
        caption += (
            "Stages that make latents of explicit chains answer from the latents of the right chain, through which the answer "
            "leaks: their exact match says which checkpoint to keep and nothing else."
        )
    body = f'<figure><div class="panels strip">{cards}</div><figcaption>{prose(caption)}</figcaption></figure>'
    return Section(key="training", title="Training", body=body + _stages_table(results))


def _stages_table(results: Results) -> str:
    recipe = {stage["name"]: stage for stage in results.get("recipe", {}).get("stages", ())}
    first = results["training"][0]["stages"]
    backbone = results.get("recipe", {}).get("backbone")
    scratch = backbone if isinstance(backbone, str) else "random weights"
    rows = []
    for name, curve in first.items():
        curves = [entry["stages"][name] for entry in results["training"] if name in entry["stages"]]
        times = [entry["seconds"] for entry in curves if entry.get("seconds")]
        kept = ", ".join(f"{entry['selected_step']:,}" for entry in curves)
        rows.append(
            [
                text_cell(name),
                text_cell(recipe.get(name, {}).get("start") or scratch),
                Cell(text=f"{max(curve['steps'], default=0):,}"),
                Cell(text=kept),
                Cell(text=duration(sum(times) / len(times)) if times else NO_VALUE),
            ]
        )
    head = heads("Stage", "Starts from", "Steps", "Step kept", "Time|a seed")
    head[1] = text_cell("Starts from")
    return table(head, rows, classes="narrow")


def cost_section(results: Results) -> Section | None:
    """What an answer costs; word problems have the steps in a table of their own."""
    taken = steps_table(results)
    rows = []
    for name, entry in results["systems"].items():
        cost = entry.get("cost")
        if cost:
            counted = [Cell(text=steps(cost["latent_steps"])), Cell(text=steps(cost["spoken_tokens"]))]
            rows.append(
                [
                    text_cell(label(results, name)),
                    *([] if taken else counted),
                    Cell(text=steps(cost["sequential_passes"])),
                    Cell(text=megaflops(cost["flops"])),
                    Cell(text=milliseconds(cost["seconds_batched"])),
                    Cell(text=milliseconds(cost["seconds_alone"])),
                    Cell(text=quantity(cost["parameters"])),
                    Cell(text=NO_VALUE if entry["ended"] is None else percent(entry["ended"], 1)),
                ]
            )
    if not rows:
        return None
    head = heads(
        "System",
        *(() if taken else ("Latent steps", "Spoken tokens")),
        "Passes|in sequence",
        "MFLOPs",
        "Time|ms, in a batch",
        "Time|ms, alone",
        "Parameters",
        "Ended|by itself",
    )
    own = "" if taken else "; the coupled model’s latent steps are the tokens it reasons in"
    caption = (
        f"Means a problem. Passes in sequence are forward passes that wait for one another{own}. "
        "MFLOPs: millions of floating-point operations of matrix products. Times are of this machine, first seed."
    )
    return Section(key="cost", title="What an answer costs", body=taken + table(head, rows, caption=caption))


def recipe_section(results: Results) -> Section | None:
    """The command and the resolved recipe."""
    body = f"<pre><code>{escape(results['command'])}</code></pre>" if results.get("command") else ""
    if results.get("recipe"):
        text = yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True)
        body += f"<details><summary>The resolved recipe</summary><pre><code>{escape(text)}</code></pre></details>"
    return Section(key="recipe", title="How to make it again", body=body) if body else None


SECTIONS: tuple[Callable[[Results], Section | None], ...] = (
    paper_section,
    claims_section,
    token_noise_section,
    latent_noise_section,
    forced_section,
    steps_section,
    controls_section,
    containment_section,
    mixture_section,
    pca_section,
    examples_section,
    calibration_section,
    tests_section,
    samples_section,
    word_controls_section,
    word_forced_section,
    strips_section,
    superposition_section,
    geometry_section,
    sentences_section,
    language_section,
    training_section,
    cost_section,
    recipe_section,
)
