"""Results on a terminal: rich tables, or plain aligned text when the output is piped."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from unspoken.report.findings import (
    PAPER,
    Results,
    baseline,
    chain_verdict,
    compares_to_paper,
    difference,
    differs,
    each_seed,
    label,
    own_accuracy,
    texts,
    words,
)
from unspoken.report.formats import (
    NO_VALUE,
    bare_percent,
    coefficient,
    count,
    duration,
    joined,
    megaflops,
    milliseconds,
    p_value,
    percent,
    percent_range,
    points,
    quantity,
    steps,
)
from unspoken.report.robust import word_forced_tables
from unspoken.report.strings import claims, string_tables, strings


def _say(text: str, console: Console) -> None:
    """A line as it stands: no markup, no colour, no wrapping at a width that a pipe does not have."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """One table; the first column is text, the others numbers."""
    if not console.is_terminal:
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        _say(f"\n{title}", console)
        for row in [header, *rows]:
            cells = [
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            _say("  " + "  ".join(cells).rstrip(), console)
        return
    console.print()
    _say(title, console)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column, name in enumerate(header):
        table.add_column(name, justify="left" if column == 0 else "right", no_wrap=column > 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _headline(results: Results, console: Console) -> None:
    compared, rows = bool(results.get("differences")), []
    for name, system in results["systems"].items():
        rate = system["exact_match"]
        rows.append(
            [
                label(results, name),
                percent(rate["mean"]),
                percent_range(rate["low"], rate["high"]),
                each_seed(rate["seeds"]),
                *(_against(difference(results, name)) if compared else ()),
            ]
        )
    if compares_to_paper(results):
        rows.append(
            ["the paper's, 42 M parameters", percent(PAPER.exact_match), "none given", "", *("", "") * compared]
        )
    title = f"{results['name']} {results['size']}: exact match on {count(results['problems'], 'test problem')}"
    against = (f"vs {label(results, baseline(results) or '')}", "p") * compared
    _show(title, ["system", "mean", "95 % interval", "each seed", *against], rows, console)


def _against(paired: Results | None) -> tuple[str, str]:
    """Points more than the baseline, and the paired test of them."""
    if paired is None:
        return "", ""
    return points(paired["mean"]), p_value(paired["p"]).removeprefix("p = ").removeprefix("p ")


def _costs(results: Results, console: Console) -> None:
    taken = words(results).get("steps", {})
    rows = [
        [
            label(results, name),
            *(() if taken else (steps(cost["latent_steps"]), steps(cost["spoken_tokens"]))),
            steps(cost["sequential_passes"]),
            megaflops(cost["flops"]),
            milliseconds(cost["seconds_batched"]),
            milliseconds(cost["seconds_alone"]),
            quantity(cost["parameters"]),
        ]
        for name, cost in ((name, system["cost"]) for name, system in results["systems"].items())
    ]
    header = [
        "system",
        *(() if taken else ("steps", "words")),
        "passes",
        "MFLOP",
        "ms batched",
        "ms alone",
        "parameters",
    ]
    _show("cost of one answer", header, rows, console)


def _controls(results: Results, console: Console) -> None:
    rows = [
        [
            name,
            percent(entry["exact_match"]["mean"]),
            percent_range(entry["exact_match"]["low"], entry["exact_match"]["high"]),
            percent(entry["symbol_accuracy"], 1),
        ]
        for name, entry in results["controls"].items()
    ]
    part = "symbols" if strings(results) else "names"
    _show("the same Talker on an altered chain", ["control", "exact", "95 % interval", f"{part} right"], rows, console)


def _mixtures(results: Results, console: Console) -> None:
    rows = []
    for name, entry in results["inside"].items():
        for kind, called in (("forced", "teacher-forced"), ("rollout", "rollout")):
            values = {key: item["mean"] for key, item in entry["mixture"][kind].items()}
            rows.append(
                [
                    f"{name.removesuffix(', nearest row')}, {called}",
                    percent(values["rank"]),
                    percent(values["rank_inner"]),
                    percent(values["major"]),
                    percent(values["major_inner"]),
                    f"{coefficient(values['right_inner'], 3)} / {coefficient(values['other_inner'], 3)}",
                ]
            )
    if compares_to_paper(results):
        rows.append(["the paper's", percent(PAPER.rank), "", percent(PAPER.major), "", ""])
    reference = results["reference"]
    title = (
        f"sibling plane: rank {percent(reference['no_sibling'])} without a sibling part, "
        f"{percent(reference['true_mixture'])} for the two siblings alone"
    )
    header = ["latents", "rank", "inner", "major", "inner", "right / other"]
    _show(title, header, rows, console)


def _calibration(name: str, reading: Results, console: Console) -> None:
    error = reading["forced"]["error"]["mean"]
    uniform = reading["forced"]["uniform_error"]["mean"]
    title = (
        f"{name}: coefficients against known odds, off by {bare_percent(error, 1)} points teacher-forced "
        f"(one half: {bare_percent(uniform, 1)})"
    )
    rollout = {key: item["mean"] for key, item in reading["rollout"].items()}
    columns = ("distance", "uniform_distance", "entropy", "true_entropy", "largest", "true_largest", "outside")
    rows = [
        [f"step {step + 2}", *(coefficient(rollout[key][step]) for key in columns)]
        for step in range(len(rollout["distance"]))
    ]
    header = ["rollout", "distance", "of uniform", "entropy", "true", "largest", "true", "outside level"]
    _show(title, header, rows, console)
    valid = reading["valid_routes"]["mean"]
    _say(f"spoken routes that are real and lead to a leaf that may be meant: {percent(valid)}", console)


# --- word problems -----------------------------------------------------------------------------------------------

# Names of controls so short that a row fits a terminal of eighty columns. Hidden states have noise for random mixtures.
_SHORT = {
    "no chain": "none",
    "forced answer": "forced",
    "random mixtures": "random",
    "noise": "random",
    "truncate": "half",
}


def _tests(results: Results, console: Console) -> None:
    tests = words(results).get("tests", {})
    if len(tests) < 2:
        return
    rows = [
        [
            label(results, name),
            *(percent(found[name]["exact_match"]["mean"]) if name in found else NO_VALUE for found in tests.values()),
        ]
        for name in results["systems"]
    ]
    _show("exact match on every test set", ["system", *tests], rows, console)


def _steps(results: Results, console: Console) -> None:
    parts = ("latents", "marker", "answer", "total")
    taken = words(results).get("steps", {})
    rows = [[label(results, name), *(steps(entry[part]) for part in parts)] for name, entry in taken.items()]
    if rows:
        _show("steps of one answer", ["system", "chain", "markers", "answer", "total"], rows, console)


def _chain_controls(results: Results, console: Console) -> None:
    controls = words(results).get("controls", {})
    if not controls:
        return
    short = {
        system: {_SHORT.get(name, name): entry["difference"] for name, entry in entries.items()}
        for system, entries in controls.items()
    }
    names = list(dict.fromkeys(name for changes in short.values() for name in changes))
    # Of the problems on which chains were altered: fewer than the headline's.
    own = {system: own_accuracy(entries) for system, entries in controls.items()}

    def written(change: Results | None) -> str:
        if change is None:
            return NO_VALUE
        text = points(change["mean"])
        return text if differs(change) else f"({text})"

    rows = [
        [
            label(results, system),
            bare_percent(own[system], 1),
            *(written(changes.get(name)) for name in names),
        ]
        for system, changes in short.items()
    ]
    every = [entry["exact_match"]["problems"] for entries in controls.values() for entry in entries.values()]
    title = (
        f"points more or fewer on an altered chain than on its own, first {count(min(every), 'problem')};\n"
        "in brackets where it may be chance"
    )
    _show(title, ["system", "own", *names], rows, console)
    for system, entries in controls.items():
        for sentence in chain_verdict(entries)[:1]:
            _say(textwrap.fill(f"{label(results, system)}: {sentence}", 96, subsequent_indent="  "), console)


def _superposition(results: Results, console: Console) -> None:
    measured = words(results).get("superposition", {})
    if not measured:
        return
    every = sorted({int(most) for entry in measured.values() for most in entry["ecr"]})
    shown = sorted({min(every, key=lambda most: abs(most - 50)), every[-1]})  # the paper's smallest, and the largest
    rows = []
    for name, entry in measured.items():
        rates, parallel = entry["ecr"], entry["parallelism"] or {}
        row = [label(results, name)]
        row += [coefficient(rates[str(most)]) if str(most) in rates else NO_VALUE for most in shown]
        row += [percent(entry["top1"], 1)]
        digits = {"chains": 2, "n_eff": 2, "n_naive": 2, "ratio": 3, "top2": 2}
        row += [coefficient(parallel[key], places) if key in parallel else NO_VALUE for key, places in digits.items()]
        rows.append(row)
    rates_of = (f"ECR@{most}" for most in shown)
    header = ["system", *rates_of, "top-1", "M", "N_eff", "N_naive", "ratio", "top-2"]
    _show("what a latent holds (ECR, N_eff and top-2 are reconstructions)", header, rows, console)


def _samples(results: Results, console: Console) -> None:
    entry = words(results).get("samples")
    if not entry:
        return
    every = sorted({int(k) for rates in entry["systems"].values() for k in rates})
    rows = [
        [
            label(results, name),
            bare_percent(results["systems"][name]["exact_match"]["mean"], 1),
            *(bare_percent(rates[str(k)]["mean"], 1) for k in every),
        ]
        for name, rates in entry["systems"].items()
    ]
    title = f"pass@k in per cent, from {count(entry['draws'], 'noisy chain')} a problem"
    _show(title, ["system", "clean chain", *(f"@{k}" for k in every)], rows, console)


def _geometry(results: Results, console: Console) -> None:
    rows = [
        [
            label(results, name),
            f"{coefficient(entry['embedding_norm'])} / {coefficient(entry['hidden_norm'])}",
            f"{coefficient(entry['embedding_rank'], 1)} / {coefficient(entry['hidden_rank'], 1)}",
            coefficient(entry["cosine_mean"], 3),
            coefficient(entry["frechet"]),
            coefficient(entry["mmd"], 3),
        ]
        for name, entry in (words(results).get("geometry") or {}).items()
    ]
    if rows:
        title = "rows of the embedding table / hidden states of the chain (distances are squared)"
        _show(title, ["system", "norm", "effective rank", "cosine", "Frechet", "MMD"], rows, console)


# --- plain text --------------------------------------------------------------------------------------------------


def _corruption(results: Results, console: Console) -> None:
    measured = texts(results)
    for system, entry in measured["corruption"].items():
        rows = []
        for name, found in entry["conditions"].items():
            change = found.get("change")
            told = "" if change is None else points(change["mean"])
            rows.append(
                [
                    name,
                    percent(found["right"]["mean"], 1),
                    percent_range(found["right"]["low"], found["right"]["high"], 1),
                    told if change is None or differs(change) else f"({told})",
                    percent(found["other"]["mean"], 1),
                    percent_range(found["other"]["low"], found["other"]["high"], 1),
                ]
            )
        title = (
            f"{system.replace('_', ' ')}: tokens said behind the first {measured['prime']} of "
            f"{count(measured['sentences'], 'test sentence')}; by chance two agree in {percent(entry['alike'], 1)}"
        )
        header = ["corruption", "its own", "95 % interval", "change", "the other's", "95 % interval"]
        _show(title, header, rows, console)


def _language(results: Results, console: Console) -> None:
    measured = texts(results)
    if not measured:
        return
    rows = []
    for stage, entry in measured["language"].items():
        lost, right = entry.get("perplexity"), entry["accuracy"]
        span = NO_VALUE if lost is None else f"{coefficient(lost['low'])} – {coefficient(lost['high'])}"
        rows.append(
            [
                stage.replace("_", " "),
                NO_VALUE if lost is None else coefficient(lost["mean"]),
                span,
                percent(right["mean"], 1),
                percent_range(right["low"], right["high"], 1),
            ]
        )
    title = (
        f"the next token, on {count(measured['rows'], 'test text')} of {count(measured['tokens'], 'token')} together"
    )
    _show(title, ["stage", "perplexity", "95 % interval", "right", "95 % interval"], rows, console)


def print_results(results: Results, console: Console) -> None:
    """Everything a run measured, in under a hundred columns.

    Args:
        results: content of a results file.
        console: a terminal gets tables, anything else plain aligned text.
    """
    if texts(results):
        _corruption(results, console)
        _language(results, console)
    else:
        _headline(results, console)
    _tests(results, console)
    _steps(results, console)
    if not texts(results):
        _costs(results, console)
    _chain_controls(results, console)
    _superposition(results, console)
    _samples(results, console)
    _geometry(results, console)
    for title, header, rows in [*word_forced_tables(results), *string_tables(results)]:
        _show(title, header, rows, console)
    for name, told in claims(results) if strings(results) else ():
        _say(textwrap.fill(f"{name}: {told}", 96, subsequent_indent="  "), console)
    if results.get("controls"):
        _controls(results, console)
    if results.get("inside"):
        _mixtures(results, console)
        for name, entry in results["inside"].items():
            if "calibration" in entry:
                _calibration(name, entry["calibration"], console)
    contained = results.get("containment")
    if contained:
        same = "stayed the same to the last bit" if contained["latents_identical"] else "CHANGED"
        _say(
            f"\ncontainment: {contained['talker_seeds']} Talker seeds at temperature {steps(contained['temperature'])} "
            f"changed {percent(contained['answers_changed'], 1)} of the answers;\n             the latents {same}",
            console,
        )
    seconds = [stage["seconds"] for entry in results.get("training", ()) for stage in entry["stages"].values()]
    if seconds and all(value is not None for value in seconds):
        _say(f"training took {duration(sum(seconds) / len(results['training']))} a seed", console)


def print_recipes(found: Sequence[tuple[str, str, str]], console: Console) -> None:
    """Name, size and summary of every recipe."""
    if console.is_terminal:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("recipe", "size", "what it does"):
            table.add_column(name)
        for row in found:
            table.add_row(*row)
        console.print(table)
        return
    wide, narrow = (max((len(row[column]) for row in found), default=0) for column in (0, 1))
    for name, size, summary in found:
        _say(f"{name:{wide}}  {size:{narrow}}  {summary}", console)


def print_plan(facts: dict[str, Any], console: Console) -> None:
    """Parameters, budget, hours and memory of each stage, in under 120 columns."""
    models = facts["models"]
    gpus = list(models[0]["hours"])
    rows = [
        [
            model["stage"],
            f"{model['parameters']:,}",
            f"{model['trained']:,}",
            f"{model['steps']:,}",
            f"{model['batch_size']:,}",
            quantity(model["tokens"]),
            _operations(model["flops"]),
            *(_hours(hours) for hours in model["hours"].values()),
        ]
        for model in models
    ]
    sums = [quantity(sum(model["tokens"] for model in models)), _operations(sum(model["flops"] for model in models))]
    spent = [[model["hours"][ranks] for model in models] for ranks in gpus]
    rows.append(["all", "", "", "", "", *sums, *(_hours(None if None in hours else sum(hours)) for hours in spent)])
    header = ["stage", "parameters", "trained", "steps", "batch", "tokens", "FLOPs", *(f"h on {n}" for n in gpus)]
    title = f"{facts['name']} {facts['size']}, built on the meta device: budget, and hours (h) on {joined(gpus)} GPUs"
    _show(title, header, rows, console)
    rows = [
        [
            model["stage"],
            *(_rounded(first[part]) if first else NO_VALUE for part in ("weights", "gradients", "optimizer")),
            _rounded(first["gathered"]) if first else NO_VALUE,
            *(
                text
                for used in model["memory_gb"].values()
                for text in ((_active(used), _rounded(used["total"])) if used else (NO_VALUE, NO_VALUE))
            ),
        ]
        for model in models
        for first in [model["memory_gb"][gpus[0]]]
    ]
    header = [
        "stage",
        "weights",
        "gradients",
        "optimiser",
        "whole",
        *(x for n in gpus for x in ("active", f"GB on {n}")),
    ]
    _show(
        "GB: weights, gradients and optimiser of all GPUs together; of each GPU what is whole and active, and all it holds",
        header,
        rows,
        console,
    )
    for note in facts["notes"]:
        _say(textwrap.fill(note, 116, subsequent_indent="  "), console)


def _operations(number: float) -> str:
    """``4.96e18``: budgets of training are spoken of in powers of ten."""
    return f"{number:.2e}".replace("e+", "e")


def _hours(hours: float | None) -> str:
    return NO_VALUE if hours is None else _rounded(hours)


def _rounded(number: float) -> str:
    """Two decimals below ten, fewer above; what would round to nothing is said to be little."""
    if 0 < number < 0.005:
        return "<0.01"
    return f"{number:,.{0 if number >= 100 else 1 if number >= 10 else 2}f}"


def _active(used: dict[str, float]) -> str:
    return _rounded(used["activations"] + used["scores"])
