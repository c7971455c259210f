"""Results on a terminal: rich tables, or plain aligned text when the output is piped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from unspoken.report.formats import (
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

Results = dict[str, Any]


def _show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """One table; the first column is text, the others numbers."""
    if not console.is_terminal:
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        print(f"\n{title}")
        for row in [header, *rows]:
            cells = [
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            print("  " + "  ".join(cells).rstrip())
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(header):
        table.add_column(name, justify="left" if column == 0 else "right", no_wrap=column > 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _of_paper(results: Results) -> bool:
    """Whether the run is the experiment that the paper prints numbers for."""
    task = results.get("recipe", {}).get("task", {})
    return task.get("kind") == "tree_search" and task.get("targets", 1) == 1


def _headline(results: Results, console: Console) -> None:
    rows = []
    for name, system in results["systems"].items():
        rate = system["exact_match"]
        difference = results.get("differences", {}).get(f"{name} - coupled")
        rows.append(
            [
                name,
                percent(rate["mean"]),
                percent_range(rate["low"], rate["high"]),
                " ".join(bare_percent(seed) for seed in rate["seeds"]),
                points(difference["mean"]) if difference else "",
                p_value(difference["p"]) if difference else "",
            ]
        )
    if _of_paper(results):
        rows.append(["the paper's, 42 M parameters", percent(0.9987), "none given", "", "", ""])
    title = f"{results['name']} {results['size']}: exact match on {count(results['problems'], 'test problem')}"
    _show(title, ["system", "mean", "95 % interval", "seeds", "vs coupled", "paired test"], rows, console)


def _costs(results: Results, console: Console) -> None:
    rows = [
        [
            name,
            steps(cost["latent_steps"]),
            steps(cost["spoken_tokens"]),
            steps(cost["sequential_passes"]),
            megaflops(cost["flops"]),
            milliseconds(cost["seconds_batched"]),
            milliseconds(cost["seconds_alone"]),
            quantity(cost["parameters"]),
        ]
        for name, cost in ((name, system["cost"]) for name, system in results["systems"].items())
    ]
    header = ["system", "steps", "words", "passes", "MFLOP", "ms batched", "ms alone", "parameters"]
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
    _show("the same Talker on an altered chain", ["control", "exact", "95 % interval", "names right"], rows, console)


def _mixtures(results: Results, console: Console) -> None:
    rows = []
    for name, entry in results["inside"].items():
        for kind, label in (("forced", "teacher-forced"), ("rollout", "rollout")):
            values = {key: item["mean"] for key, item in entry["mixture"][kind].items()}
            rows.append(
                [
                    f"{name.removesuffix(', nearest row')}, {label}",
                    percent(values["rank"]),
                    percent(values["rank_inner"]),
                    percent(values["major"]),
                    percent(values["major_inner"]),
                    f"{coefficient(values['right_inner'], 3)} / {coefficient(values['other_inner'], 3)}",
                ]
            )
    if _of_paper(results):
        rows.append(["the paper's", percent(0.0172), "", percent(0.9989), "", ""])
    reference = results["reference"]
    title = (
        f"sibling plane: rank {percent(reference['no_sibling'])} without a sibling part, "
        f"{percent(reference['true_mixture'])} for the two siblings alone"
    )
    header = ["latents", "rank", "inner nodes", "major", "inner nodes", "right / other, inner"]
    _show(title, header, rows, console)


def _calibration(name: str, reading: Results, console: Console) -> None:
    error = reading["forced"]["error"]["mean"]
    uniform = reading["forced"]["uniform_error"]["mean"]
    title = (
        f"{name}: coefficients against known odds, teacher-forced error {error:.3f} "
        f"(saying one half: {uniform:.3f}); rollout by step"
    )
    rollout = {key: item["mean"] for key, item in reading["rollout"].items()}
    columns = ("distance", "uniform_distance", "entropy", "true_entropy", "largest", "true_largest", "outside")
    rows = [
        [str(step + 1), *(coefficient(rollout[key][step]) for key in columns)]
        for step in range(len(rollout["distance"]))
    ]
    header = ["step", "distance", "of uniform", "entropy", "true", "largest", "true", "outside level"]
    _show(title, header, rows, console)


def print_results(results: Results, console: Console) -> None:
    """Everything a run measured, in under a hundred columns.

    Args:
        results: content of a results file.
        console: tables go to it if it is a terminal, plain text to standard output if not.
    """
    _headline(results, console)
    _costs(results, console)
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
        print(
            f"\ncontainment: {contained['talker_seeds']} Talker seeds at temperature {steps(contained['temperature'])} "
            f"changed {percent(contained['answers_changed'], 1)} of the answers;\n             the latents {same}"
        )
    seconds = [stage["seconds"] for entry in results["training"] for stage in entry["stages"].values()]
    if all(value is not None for value in seconds):
        print(f"training took {duration(sum(seconds) / len(results['training']))} a seed")


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
    for name, size, summary in found:
        print(f"{name:24}{size:8}{summary}")


def print_plan(facts: dict[str, Any], console: Console) -> None:
    """Parameters, memory and budget of each stage."""
    rows = [
        [
            model["stage"],
            f"{model['parameters']:,}",
            f"{model['trained']:,}",
            f"{facts['steps'][model['stage']]:,}",
            quantity(facts["tokens"][model["stage"]]),
            quantity(model["flops_per_token"] * facts["tokens"][model["stage"]]),
            f"{model['weights_gb']:.3f}",
            f"{model['training_gb']:.2f}",
        ]
        for model in facts["models"]
    ]
    header = ["stage", "parameters", "trained", "steps", "tokens", "FLOPs", "weights GB", "training GB"]
    _show(f"{facts['name']} {facts['size']}, built on the meta device", header, rows, console)
    print(facts["note"])
