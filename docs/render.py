"""Writes every measured number in README and docs from the committed results.

A number stands between two comments that name its source::

    <!-- r tree-search-small systems/jepa-reasoner/exact_match/mean percent -->99.90 %<!-- /r -->

a table between ``<!-- table tree-search-small headline -->`` and ``<!-- /table -->``, and whether the validation scores
of some stages were still rising when their training ended::

    It <!-- trend cups-coconut-small coconut -->was still rising<!-- /trend -->.

``python docs/render.py`` rewrites them in place; ``--check`` changes nothing and fails when a file and the results
disagree.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from unspoken.draw.formats import p_value
from unspoken.evaluation.outcomes import JEPA_REASONER, unpacked
from unspoken.evaluation.results import differs, label, upgraded
from unspoken.evaluation.significance import Difference, paired_difference
from unspoken.probes.claims import claims as claims_of
from unspoken.report.compare import Entry, comparisons, problem_sets, reference
from unspoken.report.terminal import print_results

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"<!-- r (\S+) (.+?) (\w+) -->(.*?)<!-- /r -->", re.DOTALL)
TREND = re.compile(r"<!-- trend (\S+) (\S+) -->(.*?)<!-- /trend -->", re.DOTALL)
TABLE = re.compile(r"(<!-- table (\S+) (\S+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)

FORMATS: dict[str, Callable[[Any], str]] = {
    "percent": lambda value: f"{100 * value:.2f} %",
    "percent1": lambda value: f"{100 * value:.1f} %",
    "number": lambda value: f"{value:.3f}",
    "short": lambda value: f"{value:.2f}",
    "signed": lambda value: f"{100 * value:+.2f}",
    "million": lambda value: f"{value / 1e6:.0f}",
    "count": lambda value: f"{round(value):,}",
    "p": lambda value: f"{value:.4f}",
    "text": str,
}


def results(name: str) -> dict[str, Any]:
    """One committed results file; of a run in the layout of today, whatever it was written in."""
    content: dict[str, Any] = json.loads((ROOT / "results" / f"{name}.json").read_text())
    return upgraded(content) if "systems" in content else content


def look_up(content: Any, path: str) -> Any:
    """Follow a path of keys and list positions separated by slashes."""
    for part in path.split("/"):
        content = content[int(part)] if isinstance(content, list) else content[part]
    return content


def _interval(rate: dict[str, Any]) -> str:
    return f"{100 * rate['mean']:.2f} % ({100 * rate['low']:.2f} to {100 * rate['high']:.2f})"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def headline(content: dict[str, Any]) -> str:
    """Accuracy and cost of every system."""
    rows = []
    for name, system in content["systems"].items():
        cost = system["cost"]
        rows.append(
            [
                name,
                _interval(system["exact_match"]),
                ", ".join(f"{100 * value:.2f}" for value in system["exact_match"]["seeds"]),
                f"{cost['latent_steps']:.1f}",
                f"{cost['sequential_passes']:.1f}",
                f"{cost['flops'] / 1e6:.0f}",
                f"{1000 * cost['seconds_alone']:.1f}",
                f"{cost['parameters'] / 1e6:.2f}M",
            ]
        )
    header = ["system", "exact match (95 %)", "seeds", "steps", "passes", "MFLOP", "ms alone", "parameters"]
    return _markdown(header, rows)


def sets(content: dict[str, Any]) -> str:
    """Accuracy of every system on every test set of a run."""
    every = problem_sets([content])
    rows = [
        [entries[0].system, *(_interval(dict(entry.rate)) for entry in entries)]
        for entries in zip(*(one.entries for one in every), strict=True)
    ]
    return _markdown(["system", *(one.name for one in every)], rows)


def controls(content: dict[str, Any]) -> str:
    """What the Talker writes when the chain is altered."""
    names = {
        "zero": "zeros",
        "mean": "mean latent of the step",
        "noise": "Gaussian latents",
        "swap": "another problem's chain",
    }
    rows = [
        [names.get(name, name), _interval(entry["exact_match"]), f"{100 * entry['symbol_accuracy']:.1f} %"]
        for name, entry in content["probes"]["controls"][JEPA_REASONER].items()
    ]
    return _markdown(["chain replaced by", "exact match (95 %)", "right names below the root"], rows)


def altered(*every: dict[str, Any]) -> str:
    """Points that each system loses on each kind of altered chain; in brackets where it may be chance.

    A system that several runs have is the first one's.
    """
    controls: dict[str, dict[str, Any]] = {}
    for content in every:
        controls |= {name: entries for name, entries in content["probes"]["controls"].items() if name not in controls}
    names = list(dict.fromkeys(name for entries in controls.values() for name in entries))
    rows = [[label(system), *(_change(entries.get(name)) for name in names)] for system, entries in controls.items()]
    return _markdown(["system", *names], rows)


def _change(entry: dict[str, Any] | None) -> str:
    """Points that an altered chain changes, in brackets where it may be chance."""
    if entry is None:
        return ""
    points = f"{100 * entry['difference']['mean']:+.1f}"
    return points if differs(entry["difference"]) else f"({points})"


def mixture(content: dict[str, Any]) -> str:
    """Sibling plane and coefficients of every Reasoner, teacher-forced and in rollout."""
    rows = []
    for name, entry in content["probes"]["mixture"]["systems"].items():
        for kind in ("forced", "rollout"):
            values = {key: item["mean"] for key, item in entry[kind].items()}
            rows.append(
                [
                    name.removesuffix(", nearest row"),
                    "teacher-forced" if kind == "forced" else "rollout",
                    f"{100 * values['rank']:.2f} %",
                    f"{100 * values['rank_inner']:.2f} %",
                    f"{100 * values['major']:.2f} %",
                    f"{100 * values['major_inner']:.2f} %",
                    f"{values['right_inner']:.3f} / {values['other_inner']:.3f}",
                ]
            )
    header = ["model", "latents", "rank", "rank, inner", "major", "major, inner", "coefficients, inner"]
    return _markdown(header, rows)


def calibration(content: dict[str, Any]) -> str:
    """What the mixture becomes, a step of rollout at a time."""
    entry = next(iter(content["probes"]["calibration"].values()))["rollout"]
    keys = ("distance", "uniform_distance", "entropy", "true_entropy", "largest", "true_largest", "outside")
    steps = len(entry["distance"]["mean"])
    rows = [[str(step + 1), *(f"{entry[key]['mean'][step]:.3f}" for key in keys)] for step in range(steps)]
    header = ["step", "distance", "of uniform", "entropy", "true", "largest share", "true", "outside the level"]
    return _markdown(header, rows)


def along(content: dict[str, Any], stage: str = "sst") -> str:
    """Readings on validation problems along SST, mean over seeds."""
    curves = [entry["stages"][stage] for entry in content["training"]]
    steps = curves[0]["steps"]
    keys = (
        ("exact_match", "percent1"),
        ("forced_rank", "percent"),
        ("forced_rank_inner", "percent"),
        ("rollout_rank_inner", "percent"),
        ("forced_major_inner", "percent1"),
    )
    rows = []
    for index in [*range(0, len(steps) - 1, 2), len(steps) - 1]:
        means = {
            name: sum(curve[name][index] for curve in curves) / len(curves)
            for name in curves[0]
            if name != "loss" and isinstance(curves[0][name], list) and len(curves[0][name]) == len(steps)
        }
        cells = [FORMATS[form](means[key]) for key, form in keys]
        mixed = f"{means['forced_right_inner']:.3f} / {means['forced_other_inner']:.3f}"
        rows.append([str(steps[index]), *cells, mixed])
    header = [
        "step",
        "exact match",
        "rank, all",
        "rank, inner",
        "rank, inner, rollout",
        "major, inner",
        "right / other, inner",
    ]
    return _markdown(header, rows)


def variants(content: dict[str, Any]) -> str:
    """One row for each Reasoner: accuracy and what is left of the sibling, teacher-forced."""
    rows = []
    for name, entry in content["probes"]["mixture"]["systems"].items():
        values = {key: item["mean"] for key, item in entry["forced"].items()}
        rate = content["systems"][name]["exact_match"]
        rows.append(
            [
                name,
                _interval(rate),
                f"{100 * values['rank']:.2f} %",
                f"{100 * values['rank_inner']:.2f} %",
                f"{100 * values['major_inner']:.2f} %",
                f"{values['right_inner']:.3f} / {values['other_inner']:.3f}",
            ]
        )
    header = ["model", "exact match (95 %)", "rank, all", "rank, inner", "major, inner", "right / other, inner"]
    return _markdown(header, rows)


def against(content: dict[str, Any], system: str) -> str:
    """One system (spaces written as ``+``) against every other, paired by seed and problem over all test sets."""
    system = system.replace("+", " ")
    right: dict[str, list[np.ndarray]] = {}
    for test in content["outcomes"].values():
        for name, seeds in test["right"].items():
            right.setdefault(name, []).append(np.stack([unpacked(seed, test["problems"]) for seed in seeds]))
    joined = {name: np.concatenate(parts, axis=1) for name, parts in right.items()}
    rows = []
    for name, outcomes in joined.items():
        if name != system:
            paired = paired_difference(joined[system], outcomes)
            rows.append([name, _points(paired), p_value(paired.p)])
    return _markdown([f"{system} against", "points (95 %)", "paired test"], rows)


def compared(*every: dict[str, Any]) -> str:
    """Systems of several runs on the first test set that they share, with paired tests, as their page has them.

    A system that several runs have, such as the explicit chain that they start from, is the first one's; p-values are
    those of the page, which has a row for each run.
    """
    measured = problem_sets(every)[0].entries
    first_of: dict[str, Entry] = {}
    for entry in measured:
        first_of.setdefault(entry.system, entry)
    entries = list(first_of.values())
    against = reference(entries)
    assert against is not None
    tested = {id(one.entry): one for one in comparisons(measured, against)}
    rows = []
    for entry in entries:
        comparison = tested.get(id(entry))
        row = [
            entry.system,
            entry.run,
            _interval(dict(entry.rate)),
            ", ".join(f"{100 * value:.2f}" for value in entry.rate["seeds"]),
            f"{entry.cost['latent_steps']:.1f}",
            f"{entry.cost['sequential_passes']:.1f}",
            f"{entry.cost['flops'] / 1e6:.0f}",
        ]
        if comparison is None:
            row += ["", ""]
        else:
            row += [_points(comparison.difference), p_value(comparison.holm).removeprefix("p = ").removeprefix("p ")]
        rows.append(row)
    name = f"points against {against.system} of {against.run}"
    return _markdown(
        ["system", "run", "exact match (95 %)", "seeds", "steps", "passes", "MFLOP", name, "p (Holm)"], rows
    )


def field(*arguments: Any) -> str:
    """Some systems of several runs of the same problems beside the explicit chain: results, then names with commas.

    A system that several runs have is the first one's. Differences are paired by seed and problem.
    """
    *every, names = arguments
    owner = {name: content for content in reversed(every) for name in content["systems"]}
    entries = {(entry.run, entry.system): entry for entry in problem_sets(every)[0].entries}

    def entry_of(name: str) -> Entry:
        content = owner[name]
        return entries[f"{content['name']} {content['size']}", label(name)]

    against = entry_of("cot")
    rows = []
    for name in names.split(","):
        entry, content = entry_of(name), owner[name]
        (comparison,) = comparisons([entry], against) or (None,)
        swapped = content["probes"]["controls"].get(name, {}).get("swap")
        stages = {stage["name"]: stage for stage in content["recipe"]["stages"]}
        rows.append(
            [
                entry.system,
                _interval(dict(entry.rate)),
                _points(comparison.difference) if comparison else "",
                _change(swapped),
                f"{entry.cost['latent_steps']:.1f}",
                f"{entry.cost['sequential_passes']:.1f}",
                f"{sum(_steps(stages, one) for one in _with_earlier(stages, name)):,}",
            ]
        )
    header = ["system", "exact match (95 %)", "points against `cot`", "another problem's chain"]
    return _markdown([*header, "steps", "passes", "batches"], rows)


def _points(difference: Difference) -> str:
    """A paired difference in points, with its interval."""
    return f"{100 * difference.mean:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"


def _with_earlier(stages: dict[str, Any], name: str) -> list[str]:
    """A stage and all that it starts from, last first."""
    line = [name]
    while (before := stages[line[-1]].get("start")) is not None:
        line.append(before)
    return line


def _risen(content: dict[str, Any], name: str) -> tuple[list[int], Any, int]:
    """Steps of a stage's validations, their scores, and the place of the one after which they do not rise any more.

    Scores are means over seeds. They still rise at the end if the last is two points, a standard error of 600 answers,
    above all of the first three quarters; otherwise they stop at the first that no later one exceeds by as much.
    """
    curves = [seed["stages"][name] for seed in content["training"]]
    steps, scores = curves[0]["steps"], np.mean([curve["exact_match"] for curve in curves], axis=0)
    early = [score for step, score in zip(steps, scores, strict=True) if step <= 0.75 * steps[-1]]
    if scores[-1] > max(early, default=0.0) + 0.02:
        return steps, scores, len(scores) - 1
    best = np.maximum.accumulate(scores)
    return steps, scores, int(np.argmax(best + 0.02 >= best[-1]))


def trend(content: dict[str, Any], *stages: str) -> str:
    """Whether the validation scores of some stages rose to their end, as the end of a sentence about them."""
    stopped = [name for name in stages if (curve := _risen(content, name))[2] < len(curve[0]) - 1]
    if len(stages) == 1:
        return "had stopped rising" if stopped else "was still rising"
    if len(stopped) == len(stages):
        return "all had stopped rising"
    names = " and ".join(f"`{name.replace('_', ' ')}`" for name in stopped)
    return f"all but {names} were still rising" if stopped else "all were still rising"


def budgets(*every: dict[str, Any]) -> str:
    """How long every measured stage was trained, with those before it, and when its validation score stopped rising.

    Minutes are those of the median seed: other jobs may have run beside some, and the time of an interrupted one is
    that after the interruption. A system that several runs have is the first one's.
    """
    rows: dict[str, list[str]] = {}
    for content in every:
        stages = {stage["name"]: stage for stage in content["recipe"]["stages"]}
        for name in (name for name in content["systems"] if name in stages):
            line = _with_earlier(stages, name)
            minutes = [
                sum(seed["stages"].get(one, {}).get("seconds", 0) for one in line) / 60 for seed in content["training"]
            ]
            steps, scores, last = _risen(content, name)
            earlier = sum(_steps(stages, one) for one in line[1:])
            limit = f"{earlier + steps[last]:,}" if last < len(steps) - 1 else f"more than {earlier + steps[-1]:,}"
            row = [name, content["name"], f"{earlier + _steps(stages, name):,}", f"{np.median(minutes):.1f}", limit]
            rows.setdefault(name, [*row, f"{100 * scores[last]:.1f} %"])
    header = ["system", "run", "batches in all", "minutes", "stops improving after", "validation score there"]
    return _markdown(header, list(rows.values()))


def _steps(stages: dict[str, Any], name: str) -> int:
    """Batches of a stage, with those of ``steps_of`` added up; 0 for labels."""
    stage = stages[name]
    return stage["steps"] or sum(_steps(stages, one) for one in stage["steps_of"])


def pair(*arguments: Any) -> str:
    """A system of one run against one of another, on the same problems and seeds: two results, then a name in each."""
    first, second, *names = arguments
    if first["outcomes"]["test"]["fingerprint"] != second["outcomes"]["test"]["fingerprint"]:
        raise ValueError(f"{first['name']} and {second['name']} were measured on other problems")
    if first["seeds"] != second["seeds"]:
        raise ValueError(f"{first['name']} and {second['name']} have other seeds")
    ours, theirs = (
        np.stack([unpacked(seed, one["problems"]) for seed in one["outcomes"]["test"]["right"][name]])
        for one, name in zip((first, second), names, strict=True)
    )
    difference = paired_difference(ours, theirs)
    return _markdown([f"{names[0]} against {names[1]}", "paired test"], [[_points(difference), p_value(difference.p)]])


def shots(content: dict[str, Any]) -> str:
    """What the harness read off a few test problems, by number of worked examples before the question."""
    rows = [
        [
            entry["model"],
            entry["test"],
            str(entry["shots"]),
            str(entry["problems"]),
            _interval(entry["strict"]),
            _interval(entry["flexible"]),
            f"{entry['latents']:.1f}",
            f"{entry['tokens']:.1f}",
        ]
        for entry in content["rows"]
    ]
    return _markdown(
        ["model", "test set", "examples", "problems", "strict (95 %)", "flexible (95 %)", "steps", "tokens"], rows
    )


def corruption(content: dict[str, Any]) -> str:
    """What each Talker writes from corrupted latents or after a corrupted prime."""
    found = content["probes"]["corruption"]["systems"]
    header = ["corruption", *(f"{stage}: {kind}" for stage in found for kind in ("its own tokens", "the other's"))]
    rows = [
        [
            name,
            *(
                "" if name not in entry["conditions"] else _interval(entry["conditions"][name][kind])
                for entry in found.values()
                for kind in ("right", "other")
            ),
        ]
        for name in dict.fromkeys(name for entry in found.values() for name in entry["conditions"])
    ]
    return _markdown(header, rows)


def claims(content: dict[str, Any]) -> str:
    """What a run on strings shows of the paper's claims, as its page does."""
    return _markdown(["claim", "here"], [list(claim) for claim in claims_of(content)])


def terminal(content: dict[str, Any]) -> str:
    """What the command prints at its end when it is piped, made by the same code."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print_results(content, Console(force_terminal=False))
    folder = f"runs/{content['name']}-{content['size']}"
    return f"```text\n{out.getvalue().strip()}\n\nreport page: {folder}/report.html\n```\n"


def everywhere(content: dict[str, Any]) -> str:
    """The model types around which every method is right."""
    return _wrapped(_named(row) for row in content["architectures"].values() if not _refused(row))


def refusals(content: dict[str, Any]) -> str:
    """The other model types: method by method right, or the number of the property that is missing."""
    number = {name: place + 1 for place, name in enumerate(_missing(content))}
    rows = [
        [
            _named(row),
            *("" if cell["missing"] is None else str(number[cell["missing"]]) for cell in row["methods"].values()),
        ]
        for row in content["architectures"].values()
        if _refused(row)
    ]
    methods = next(iter(content["architectures"].values()))["methods"]
    return _markdown(["model type", *methods], rows)


def properties(content: dict[str, Any]) -> str:
    """The properties that some model type is missing, with their numbers and one refusal each."""
    rows = []
    for place, name in enumerate(_missing(content)):
        details = [
            cell["detail"]
            for row in content["architectures"].values()
            for cell in row["methods"].values()
            if cell["missing"] == name
        ]
        rows.append([str(place + 1), content["properties"][name], details[0]])
    return _markdown(["", "what is missing", "for instance"], rows)


def _refused(row: dict[str, Any]) -> bool:
    return any(cell["verdict"] != "right" for cell in row["methods"].values())


def _missing(content: dict[str, Any]) -> list[str]:
    """Properties that some architecture is missing, in the order in which the library asks for them."""
    cells = [cell for row in content["architectures"].values() for cell in row["methods"].values()]
    return [name for name in content["properties"] if any(cell["missing"] == name for cell in cells)]


def _named(row: dict[str, Any]) -> str:
    return f"`{row['model_type']}`" + ("" if row["variant"] is None else f" ({row['variant']})")


def _wrapped(names: Iterable[str]) -> str:
    return "\n".join(textwrap.wrap(", ".join(sorted(names)) + ".", 119, break_on_hyphens=False)) + "\n"


def gpu_training(content: dict[str, Any]) -> str:
    """Training steps on a GPU, one line a stage."""
    steps = {name: row for name, row in content["training"].items() if isinstance(row, dict)}
    rows = [
        [
            name.replace("_", " "),
            f"{row['rows']}",
            f"{row['milliseconds']:.0f}",
            f"{row['tokens_per_second'] / 1000:.0f}k",
            f"{100 * row['share_of_bfloat16_product']:.1f} %",
            f"{row['peak_gbytes']:.0f}",
        ]
        for name, row in steps.items()
    ]
    return _markdown(["step", "rows", "ms", "tokens/s", "of the bf16 product", "GB"], rows)


def gpu_decoding(content: dict[str, Any]) -> str:
    """Milliseconds a step of every way to decode on a GPU, and answers beside the explicit chain's."""
    batches = {name: ways for name, ways in content["decoding"].items() if name.startswith("batch_")}
    rows = [
        [way.replace("_", " "), batch.removeprefix("batch_"), f"{row['milliseconds_per_step']:.2f}"]
        for batch, ways in batches.items()
        for way, row in ways.items()
    ]
    return _markdown(["a step of", "batch", "ms"], rows)


def gpu_answering(content: dict[str, Any]) -> str:
    """Milliseconds of a batch of answers on a GPU, and how many times as fast as after an explicit chain."""
    rows = [
        [
            kind.replace("_", " "),
            batch.removeprefix("batch_"),
            f"{row['milliseconds']:.0f}",
            f"{row['over_explicit_chain']:.2f}",
        ]
        for batch, kinds in content["answering"].items()
        if isinstance(kinds, dict)
        for kind, row in kinds.items()
    ]
    return _markdown(["answers after", "batch", "ms", "times as fast as the explicit chain"], rows)


TABLES: dict[str, Callable[..., str]] = {
    "headline": headline,
    "sets": sets,
    "terminal": terminal,
    "controls": controls,
    "altered": altered,
    "mixture": mixture,
    "calibration": calibration,
    "along": along,
    "variants": variants,
    "against": against,
    "claims": claims,
    "corruption": corruption,
    "compared": compared,
    "field": field,
    "budgets": budgets,
    "pair": pair,
    "shots": shots,
    "everywhere": everywhere,
    "refusals": refusals,
    "properties": properties,
    "gpu_training": gpu_training,
    "gpu_decoding": gpu_decoding,
    "gpu_answering": gpu_answering,
}


def render(text: str) -> str:
    """The text with every number and table written anew."""

    def number(match: re.Match[str]) -> str:
        name, path, form = match[1], match[2], match[3]
        return f"<!-- r {name} {path} {form} -->{FORMATS[form](look_up(results(name), path))}<!-- /r -->"

    def phrase(match: re.Match[str]) -> str:
        name, stages = match[1], match[2]
        return f"<!-- trend {name} {stages} -->{trend(results(name), *stages.split(','))}<!-- /trend -->"

    def table(match: re.Match[str]) -> str:
        # "along:all_positions" is the table "along" of that stage, "against:cot" that of the system; "a,b compared" is
        # made of two results.
        kind, *stage = match[3].split(":")
        return match[1] + TABLES[kind](*map(results, match[2].split(",")), *stage) + match[5]

    for opening, pattern in (("<!-- table ", TABLE), ("<!-- r ", NUMBER), ("<!-- trend ", TREND)):
        if text.count(opening) != len(pattern.findall(text)):
            raise ValueError(f"a page has a '{opening.strip()}' without its end: it would never be written again")
    # Markdown would end the paragraph there.
    if at_start := re.search(r"^[ \t]*<!-- (?:r|trend) .*", text, re.MULTILINE):
        raise ValueError(f"a number or a trend must not begin a line; put a word before it: {at_start[0][:80]}")
    return TABLE.sub(table, TREND.sub(phrase, NUMBER.sub(number, text)))


def main(check: bool) -> int:
    """Render or check every page."""
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        before = page.read_text()
        after = render(before)
        if after != before:
            stale.append(page.relative_to(ROOT))
            if not check:
                page.write_text(after)
    for page in stale:
        print(f"{page}: {'disagrees with results/' if check else 'rendered'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
