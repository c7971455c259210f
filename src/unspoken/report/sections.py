"""The sections of the page in their order, and those that fit no other module. Each gives None where its data is absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from unspoken.draw.charts import interval_bar
from unspoken.draw.formats import PERCENT_1, duration
from unspoken.draw.section import Block, Code, Figure, Section
from unspoken.draw.table import Cell, Column, Table, drawing, estimate, text
from unspoken.evaluation.outcomes import PAIR
from unspoken.report import figures, grammar, reasoning_problems
from unspoken.report.accuracy import cost_table
from unspoken.report.findings import (
    CONTROL_MEANING,
    Results,
    wording,
)
from unspoken.report.superposition import superposition_section

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
    reasoning_problems.headline,
    grammar.headline,
)
SECTIONS: tuple[Make, ...] = (
    grammar.claims_section,
    grammar.token_noise_section,
    grammar.latent_noise_section,
    grammar.forced_section,
    controls_section,
    reasoning_problems.tests_section,
    reasoning_problems.samples_section,
    reasoning_problems.controls_section,
    reasoning_problems.forced_section,
    reasoning_problems.chains_section,
    superposition_section,
    reasoning_problems.geometry_section,
    training_section,
    cost_section,
    recipe_section,
)
# What a terminal shows, in its order: less, and what an answer costs right after how good it is.
TERMINAL: tuple[Make, ...] = (
    reasoning_problems.tests_section,
    cost_section,
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
)


def headline(results: Results) -> Section:
    """The numbers at the top."""
    return next(section for make in HEADLINES if (section := make(results)) is not None)


def sections(results: Results, which: Sequence[Make] = SECTIONS) -> list[Section]:
    """Those sections that a run has data for."""
    return [section for make in which if (section := make(results)) is not None]
