"""The sections of the page in their order, and those that fit no other module. Each gives None where its data is absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from unspoken.draw.charts import interval_bar
from unspoken.draw.formats import PERCENT_1, QUANTITY, duration, percent, quantity
from unspoken.draw.section import Block, Code, Figure, Paragraph, Section
from unspoken.draw.table import Cell, Column, Table, drawing, estimate, number, text
from unspoken.evaluation.outcomes import PAIR
from unspoken.report import figures, grammar, language_modeling, reasoning_problems, tree_search
from unspoken.report.accuracy import NEAREST, cost_table
from unspoken.report.findings import (
    CONTROL_MEANING,
    PAPER,
    Results,
    averaged,
    compares_to_paper,
    containment,
    inside,
    wording,
)
from unspoken.report.superposition import superposition_section


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
        inner = {name: percent(values[f"{key}_inner"]) for name, values in forced.items()}
        return [number(forced[name][key], note=f"inner nodes {inner[name]}") for name in systems]

    sizes = [results["systems"][readout[name]]["cost"]["parameters"] for name in systems]
    depth = results["recipe"]["task"].get("depth")
    rows = [
        [text("Exact match"), number(PAPER.exact_match), *(number(e["exact_match"]["mean"]) for e in systems.values())],
        [
            text("Right child has the larger coefficient", "teacher-forced, all nodes below the root"),
            number(PAPER.major),
            *both("major"),
        ],
        [
            text("Rank of the sibling plane", "among the planes of all pairs of names, nearest first"),
            number(PAPER.rank),
            *both("rank"),
        ],
        [text("Levels of the tree"), text("4"), *(Cell(None if depth is None else str(depth)) for _ in systems)],
        [
            text("Parameters of the Reasoner"),
            text(quantity(PAPER.parameters, 2)),
            *(number(size, QUANTITY) for size in sizes),
        ],
    ]
    note = "Paper: JEPA-Reasoner, arXiv 2512.19171, version 3, section 5.1, one model. "
    if "reference" in results:
        note += (
            f"A rank near {percent(results['reference']['true_mixture'])} means a mixture of the two siblings, one near "
            f"{percent(results['reference']['no_sibling'])} a plain name: a model that is certain has no reason to mix."
        )
    classes = "narrow" if len(systems) < 3 else ""
    table = Table(columns=[*map(Column, ("Measure", "Paper", *systems))], rows=rows, note=note, classes=classes)
    return Section("paper", "Beside the paper", [table])


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
    return Section("steps", "Accuracy by step", [Figure(panels, caption)])


# --- does it matter ----------------------------------------------------------------------------------------------


def controls_section(results: Results) -> Section | None:
    """Exact match of answers spoken from altered chains."""
    controls = results.get("controls")
    if not controls:
        return None
    entries = [(name, *CONTROL_MEANING.get(name, ("", "")), entry, "c0") for name, entry in controls.items()]
    if PAIR in results["systems"]:
        own = {"exact_match": results["systems"][PAIR]["exact_match"]}
        entries.insert(0, ("the chain itself", "", "Nothing is changed.", own, "c1"))
    symbols = wording(results).symbols

    def bar(row: Sequence[Any]) -> Cell:
        rate, right = row[3]["exact_match"], row[3].get("symbol_accuracy")
        ticks = [] if right is None else [right]
        # The diamond is a number where nothing can be drawn.
        short = "" if right is None else PERCENT_1(right)
        return drawing(interval_bar(rate["mean"], rate["low"], rate["high"], row[4], ticks=ticks), short)

    columns = [
        Column("Chain", lambda row: text(row[0], row[1])),
        Column("Exact match|95 % interval", lambda row: estimate(row[3]["exact_match"]), "exact|95 % interval"),
        Column("|0 to 100 %", bar, f"{symbols.split()[0]} right", classes="graphic"),
        Column("What it asks", lambda row: text(row[2], classes="muted"), "", classes="wide"),
    ]
    note = (
        "The same trained model speaks from an altered chain. Bar: exact match of the whole answer, with its 95 % interval; "
        f"diamond: share of right {symbols}. A bar that stays as long as the first one means that what was "
        "destroyed was not used; a bar near zero, that the answer needed it."
    )
    title = "the same Talker on an altered chain"
    table = Table.of(entries, columns, title=title, note=note)
    return Section("controls", "Does the chain do anything?", [table])


def containment_section(results: Results) -> Section | None:
    """The measured statement about error containment."""
    statement = containment(results)
    if statement is None:
        return None
    classes = "statement" if results["containment"]["latents_identical"] else "statement alarm"
    more = (
        "Containment holds by construction: no spoken token ever enters the Reasoner. It bounds what a wrong word can do, not "
        "what a wrong latent can do."
    )
    blocks = [Paragraph(statement, classes, label="containment"), Paragraph(more, "caption")]
    return Section("containment", "Does speech reach the chain?", blocks)


# --- how it was made ---------------------------------------------------------------------------------------------


def training_section(results: Results) -> Section | None:
    """Loss and exact match of every stage."""
    groups = figures.training_panels(results)
    if not groups:
        return None
    curves = [curve for entry in results["training"] for curve in entry["stages"].values()]
    if any("exact_match" in curve for curve in curves):
        measured = "Exact match is measured on validation problems, in free generation; the dot is the checkpoint that was kept."
    else:
        measured = "Checkpoints are selected on validation rows."
    sentences = ["One thin line a seed.", measured, "Losses of different objectives cannot be compared."]
    if any(kind.get("kind") == "stage1" for kind in figures.stage_kinds(results).values()):
        sentences.append(
            "Stages that make latents of explicit chains answer from the latents of the right chain, through which the answer "
            "leaks: their exact match says which checkpoint to keep and nothing else."
        )
    caption = " ".join([*sentences, wording(results).curves]).strip()
    return Section("training", "Training", [Figure(groups, caption, strip=True), _stages_table(results)])


def _stages_table(results: Results) -> Table:
    recipe = {stage["name"]: stage for stage in results.get("recipe", {}).get("stages", ())}
    backbone = results.get("recipe", {}).get("backbone")
    scratch = backbone if isinstance(backbone, str) else "random weights"

    def curves(name: str) -> list[Mapping[str, Any]]:
        return [entry["stages"][name] for entry in results["training"] if name in entry["stages"]]

    def time(name: str) -> Cell:
        times = [entry["seconds"] for entry in curves(name) if entry.get("seconds")]
        return Cell(duration(sum(times) / len(times)) if times else None)

    columns = [
        Column("Stage", text),
        Column("Starts from", lambda name: text(recipe.get(name, {}).get("start") or scratch), classes=""),
        Column("Steps", lambda name: text(f"{max(curves(name)[0]['steps'], default=0):,}")),
        Column("Step kept", lambda name: text(", ".join(f"{entry['selected_step']:,}" for entry in curves(name)))),
        Column("Time|a seed", time),
    ]
    return Table.of(results["training"][0]["stages"], columns, classes="narrow", terminal="absent")


def cost_section(results: Results) -> Section | None:
    """What an answer costs; word problems have the steps in a table of their own."""
    taken = reasoning_problems.steps_blocks(results)
    table = cost_table(results, chains=not taken)
    if table is None:
        return None
    return Section("cost", "What an answer costs", [*taken, table])


def recipe_section(results: Results) -> Section | None:
    """The command and the resolved recipe."""
    blocks: list[Block] = [Code(results["command"])] if results.get("command") else []
    if results.get("recipe"):
        resolved = yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True)
        blocks.append(Code(resolved, "The resolved recipe"))
    return Section("recipe", "How to make it again", blocks) if blocks else None


Make = Callable[[Results], Section | None]

# The numbers at the top are the first of these that a run has.
HEADLINES: tuple[Make, ...] = (
    language_modeling.headline,
    reasoning_problems.headline,
    grammar.headline,
    tree_search.headline,
)
SECTIONS: tuple[Make, ...] = (
    paper_section,
    grammar.claims_section,
    grammar.token_noise_section,
    grammar.latent_noise_section,
    grammar.forced_section,
    steps_section,
    controls_section,
    containment_section,
    tree_search.mixture_section,
    tree_search.pca_section,
    tree_search.examples_section,
    tree_search.calibration_section,
    reasoning_problems.tests_section,
    reasoning_problems.samples_section,
    reasoning_problems.controls_section,
    reasoning_problems.forced_section,
    reasoning_problems.chains_section,
    superposition_section,
    reasoning_problems.geometry_section,
    language_modeling.sentences_section,
    language_modeling.next_token_section,
    training_section,
    cost_section,
    recipe_section,
)
# What a terminal shows, in its order: less, and what an answer costs right after how good it is.
TERMINAL: tuple[Make, ...] = (
    reasoning_problems.tests_section,
    cost_section,
    language_modeling.next_token_section,
    reasoning_problems.controls_section,
    superposition_section,
    reasoning_problems.samples_section,
    reasoning_problems.geometry_section,
    reasoning_problems.forced_section,
    grammar.token_noise_section,
    grammar.latent_noise_section,
    grammar.forced_section,
    grammar.claims_section,
    controls_section,
    tree_search.mixture_section,
    tree_search.calibration_section,
    containment_section,
)


def headline(results: Results) -> Section:
    """The numbers at the top."""
    return next(section for make in HEADLINES if (section := make(results)) is not None)


def sections(results: Results, which: Sequence[Make] = SECTIONS) -> list[Section]:
    """Those sections that a run has data for."""
    return [section for make in which if (section := make(results)) is not None]
