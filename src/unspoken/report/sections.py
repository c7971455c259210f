"""The sections of a page in their order: the headline, what probes measured, and how the run was made."""

from __future__ import annotations

from functools import partial

import yaml

from unspoken.draw.charts import rate_bar
from unspoken.draw.section import Block, Code, Section
from unspoken.draw.table import Cell, Column, Table, estimate, text
from unspoken.evaluation.results import Results, label
from unspoken.probes.catalogue import probes
from unspoken.probes.colours import system_colours
from unspoken.report.accuracy import accuracy_section, cost_section
from unspoken.report.along_training import chains_section
from unspoken.report.training import training_section


def tests_section(results: Results) -> Section | None:
    """Exact match on every test set, if there is more than one."""
    tests = results["tests"]
    if len(tests) < 2:
        return None
    colours = system_colours(results)

    def read(name: str, test: str) -> Cell:
        rate = tests[test].get(name, {}).get("exact_match")
        return estimate(rate, bar="" if rate is None else rate_bar(rate, colours[name]))

    columns = [Column("System", lambda name: text(label(name)))]
    columns += [Column(test, partial(read, test=test), test) for test in tests]
    note = (
        f"Exact match with its 95 % interval; the bar goes from 0 to 100 %. Models were trained on problems like those of "
        f"{next(iter(tests))}. The other sets ask whether what was learned carries over."
    )
    title = "exact match on every test set"
    table = Table.of(results["systems"], columns, title=title, note=note, classes="matrix")
    return Section("tests", "Accuracy on every test set", [table])


def recipe_section(results: Results) -> Section | None:
    """The command and the resolved recipe."""
    blocks: list[Block] = [Code(results["command"])] if results.get("command") else []
    if results.get("recipe"):
        resolved = yaml.safe_dump(results["recipe"], sort_keys=False, allow_unicode=True)
        blocks.append(Code(resolved, "The resolved recipe"))
    return Section("recipe", "How to make it again", blocks) if blocks else None


def measured_sections(results: Results) -> list[Section]:
    """The headline first; what a page and a terminal have in common."""
    made = [tests_section(results), cost_section(results), *(probe.section(results) for probe in probes())]
    shown = [section for section in made if section is not None]
    if not shown or any(entry.get("cost") for entry in results["systems"].values()):
        return [accuracy_section(results), *shown]
    # Where nothing was answered, the first thing that was measured is the headline.
    first, *others = shown
    return [Section("result", "", first.blocks), *others]


def made_sections(results: Results) -> list[Section]:
    """How the run was trained, and how to make it again."""
    made = (chains_section(results), training_section(results), recipe_section(results))
    return [section for section in made if section is not None]
