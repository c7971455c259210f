"""The numbers at the top, whatever the task: how often each system is right, and what an answer costs."""

from __future__ import annotations

from collections.abc import Mapping

from unspoken.draw.charts import rate_bar
from unspoken.draw.formats import MEGAFLOPS, MILLISECONDS, P_VALUE, PERCENT_1, POINTS, QUANTITY, STEPS, count
from unspoken.draw.section import Section
from unspoken.draw.table import BLANK, Cell, Column, Table, drawing, estimate, number, reading, text
from unspoken.evaluation.outcomes import TIMED
from unspoken.evaluation.results import Results, averaged, difference, differs, is_ambiguous, label, summary_of
from unspoken.probes.colours import system_colours
from unspoken.probes.paper import PAPER, compares_to_paper
from unspoken.report.findings import each_seed


def accuracy_section(results: Results) -> Section:
    """Exact match of every system on the first test set, against the baseline and beside the paper's."""
    systems, colours = results["systems"], system_colours(results)
    compared = any(difference(results, name) for name in systems)
    columns = _columns(results, colours, compared=compared)
    rows = [[column.read(name) for column in columns if column.read] for name in systems]
    if compares_to_paper(results):
        paper, ends = PAPER.exact_match, dict.fromkeys(("mean", "low", "high"), PAPER.exact_match)
        size = "42 M parameters"
        name = text("paper’s Reasoner and Talker", f"{size}, trees of four levels", short=f"the paper’s, {size}")
        drawn = drawing(rate_bar(ends, "c0", bar=False))
        rows.append([name, number(paper, note="no interval given"), drawn, *[BLANK] * (len(columns) - 3)])
    title = f"{results['name']} {results['size']}: exact match on {count(results['problems'], 'test problem')}"
    note = _note(results, compared=compared)
    table = Table(title=title, columns=columns, rows=rows, note=note, classes="headline")
    return Section("result", "", [table])


def _columns(results: Results, colours: Mapping[str, str], *, compared: bool) -> list[Column]:
    rates = {name: entry["exact_match"] for name, entry in results["systems"].items()}
    changes = {name: difference(results, name) for name in rates}
    routes = {name: averaged(entry["valid_routes"]) for name, entry in summary_of(results, "calibration").items()}

    def faint(name: str) -> str:
        change = changes[name]
        return "" if change is not None and differs(change) else "muted"

    def p(name: str) -> Cell:
        change = changes[name]
        return BLANK if change is None else number(change["p"], P_VALUE, classes=faint(name))

    columns = [
        Column("System", lambda name: text(label(name))),
        Column("Exact match|95 % interval", lambda name: estimate(rates[name], classes="strong"), "mean|95 % interval"),
        Column(
            "|0 to 100 %",
            lambda name: drawing(rate_bar(rates[name], colours.get(name, "c1"), bar=False)),
            short="",
            classes="wide graphic",
        ),
    ]
    if len(results["seeds"]) > 1:
        columns.append(Column("Each seed|%", lambda name: text(each_seed(rates[name]["seeds"])), classes="num wide"))
    if compared:
        against = label(results["baseline"] or "")
        columns += [
            Column(
                f"Against {against}|points",
                lambda name: estimate(changes[name], POINTS, classes=faint(name)),
                f"vs {against}",
            ),
            Column("p", p, classes="num wide"),
        ]
    if routes:
        columns.append(Column("Valid routes", lambda name: number(routes.get(name))))
    return columns


def _note(results: Results, *, compared: bool) -> str:
    many = len(results["seeds"]) > 1
    tests, symbols = list(results["tests"]), summary_of(results, "symbols")
    of = f" of {tests[0]}" if len(tests) > 1 else ""
    graded = f"symbols {symbols['half'] + 1} to {symbols['symbols']} after the prompt" if symbols else ""
    sentences = (
        (
            f"Fraction of {count(results['problems'], 'test problem')}{of} whose answer is right; every system gets the same "
            "problems.",
            True,
        ),
        (f"An answer is right if {graded}, which every system writes, are all right.", bool(symbols)),
        (
            "The route is drawn from the odds, so no system can always be right; a valid route leads from the root to a possible "
            "target leaf.",
            is_ambiguous(results),
        ),
        ("Intervals widen where seeds disagree.", many),
        ("One seed: intervals cover the choice of problems only.", not many),
        (
            "The difference is paired, problem by problem; grey where it is not significant at the 5 % level. Each is a "
            "test by itself: p is not corrected for their number.",
            compared,
        ),
        (f"Names in full: {_full_names(results)}.", "full_names" in results),
    )
    return " ".join(sentence for sentence, holds in sentences if holds)


def _full_names(results: Results) -> str:
    return "; ".join(f"“{label(short)}” is {label(name)}" for short, name in results.get("full_names", {}).items())


def cost_section(results: Results) -> Section | None:
    """What an answer costs: its steps one after another, passes, operations and seconds."""
    costs = {
        name: entry["cost"] | {"ended": entry["ended"]}
        for name, entry in results["systems"].items()
        if entry.get("cost")
    }
    if not costs:
        return None
    columns = [
        Column("System", lambda entry: text(label(entry[0]))),
        reading("Latent steps", "latent_steps", STEPS, "steps"),
        reading("Markers", "markers", STEPS, ""),
        reading("Answer tokens", "spoken_tokens", STEPS, "tokens"),
        reading("Passes|in sequence", "sequential_passes", STEPS),
        reading("MFLOPs", "flops", MEGAFLOPS, "MFLOP"),
        reading("Time|ms, in a batch", "seconds_batched", MILLISECONDS, "ms batched"),
        reading("Time|ms, alone", "seconds_alone", MILLISECONDS, "ms alone"),
        reading("Parameters", "parameters", QUANTITY),
        reading("Ended|by itself", "ended", PERCENT_1, ""),
    ]
    note = (
        "Means per problem. Latent steps of an explicit chain are the tokens that it reasons in. Passes in sequence are forward "
        "passes that wait for one another, markers around a chain included. MFLOPs: millions of floating-point operations of "
        f"matrix products. {_timed(results)}"
    )
    table = Table.of(costs.items(), columns, title="cost of one answer", note=note)
    return Section("cost", "What an answer costs", [table])


def _timed(results: Results) -> str:
    """What was timed: fewer problems than were counted."""
    counted = "" if results.get("outcomes") else " and MFLOPs, which older versions did not count over all of them,"
    some = f"the first {count(min(TIMED, results['problems']), 'problem')}"
    return f"Times{counted} are those of the first seed on {some}, alone of a few of these."
