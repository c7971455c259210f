"""Reasoning problems: test sets, several chains, controls, forced words, single chains, steps, hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from unspoken.draw import chains, clouds
from unspoken.draw.charts import stacked_bar
from unspoken.draw.formats import (
    BARE_PERCENT_1,
    ONE_DECIMAL,
    POINTS,
    STEPS,
    THREE_DECIMALS,
    TWO_DECIMALS,
    coefficient,
    count,
    joined,
    percent,
    points,
)
from unspoken.draw.section import Block, Figure, Fold, Key, Legend, Panel, Paragraph, Section, Verdicts
from unspoken.draw.table import UNKNOWN, Cell, Column, Table, drawing, estimate, number, reading, text
from unspoken.report.accuracy import accuracy_section, rate_bar
from unspoken.report.figures import BASELINE_COLOUR, system_colours
from unspoken.report.findings import (
    WORD_CONTROL_MEANING,
    Results,
    baseline,
    chain_verdict,
    differs,
    label,
    measured,
    own_accuracy,
)
from unspoken.report.forced import Kinds, effect_table, latents_cell, rate_of

ANSWER_COLOUR, MARKER_COLOUR = "c3", "c0"
# Names of controls so short that a row fits a terminal of eighty columns. Hidden states have noise for random mixtures.
_SHORT = {
    "no chain": "none",
    "forced answer": "forced",
    "random mixtures": "random",
    "noise": "random",
    "truncate": "half",
}


def _system(results: Results) -> Column:
    return Column("System", lambda name: text(label(results, name)))


def _rate(rate: Mapping[str, Any] | None, colour: str) -> Cell:
    """A rate with its interval, written and drawn."""
    return estimate(rate) if rate is None else estimate(rate, bar=rate_bar(rate, colour))


def headline(results: Results) -> Section | None:
    """Exact match of every system on the first test set."""
    problems = measured(results, "words")
    if not problems:
        return None
    tests = list(problems.get("tests", ()))
    of = f" of {tests[0]}" if len(tests) > 1 else ""
    about = f"Share of {count(results['problems'], 'test problem')}{of} whose boxed answer is right; every system gets the same problems."
    return accuracy_section(results, about, colours=system_colours(results))


def tests_section(results: Results) -> Section | None:
    """Exact match on every test set, if there is more than one."""
    tests = measured(results, "words").get("tests", {})
    if len(tests) < 2:
        return None
    colours = system_colours(results)

    def read(name: str, test: str) -> Cell:
        return _rate(tests[test].get(name, {}).get("exact_match"), colours[name])

    columns = [_system(results), *(Column(test, partial(read, test=test), test) for test in tests)]
    note = (
        f"Exact match with its 95 % interval; the bar goes from 0 to 100 %. Models were trained on problems like those of "
        f"{next(iter(tests))}. The other sets ask whether what was learned carries over."
    )
    title = "exact match on every test set"
    table = Table.of(results["systems"], columns, title=title, note=note, classes="matrix")
    return Section("tests", "Accuracy on every test set", [table])


def samples_section(results: Results) -> Section | None:
    """pass@k of noisy chains, beside the exact match of the clean one."""
    entry = measured(results, "words").get("samples")
    if not entry or not entry["systems"]:
        return None
    colours = system_colours(results)

    def clean(name: str) -> Cell:
        return _rate(results["systems"][name]["exact_match"], colours[name])

    def noisy(name: str, k: int) -> Cell:
        return _rate(entry["systems"][name][str(k)], colours[name])

    every = sorted({int(k) for rates in entry["systems"].values() for k in rates})
    columns = [_system(results), Column("Clean chain", clean)]
    columns += [Column(f"pass@{k}", partial(noisy, k=k), f"@{k}") for k in every]
    draws = count(entry["draws"], "noisy chain")
    note = (
        f"Chance that one of k chains leads to the right answer, estimated from {draws} a problem, "
        "with a 95 % interval that is rather too wide; the bar goes from 0 to 100 %. Explicit chains are sampled at temperature 1, "
        "superpositions have Gumbel noise on their weights, and every answer is spoken greedily. Guesses that differ raise pass@k "
        "too, so compare systems at the same k; pass@1 far below the clean chain says that the noise does harm."
    )
    title = f"pass@k, from {draws} a problem"
    table = Table.of(entry["systems"], columns, title=title, note=note, classes="matrix")
    return Section("samples", "Several chains a problem", [table])


# --- altered chains ----------------------------------------------------------------------------------------------


def controls_section(results: Results) -> Section | None:
    """Exact match of answers spoken from altered chains, a column a system, and what follows from it."""
    controls = measured(results, "words").get("controls", {})
    if not controls:
        return None
    verdicts = [(label(results, system), chain_verdict(entries)) for system, entries in controls.items()]
    colours = system_colours(results)

    def read(name: str, system: str) -> Cell:
        if name:
            return _control(controls[system].get(name))
        # On a terminal of the problems on which chains were altered: fewer than the headline's.
        rate, own = results["systems"][system]["exact_match"], BARE_PERCENT_1(own_accuracy(controls[system]))
        bar = rate_bar(rate, colours[system])
        return replace(estimate(rate, classes="strong", bar=bar), short=own)

    def chain(name: str) -> Cell:
        if not name:
            return text("the chain itself", "nothing is changed", short="own")
        return text(name, WORD_CONTROL_MEANING.get(name, ("", ""))[0], short=_SHORT.get(name, name))

    def asks(name: str) -> Cell:
        return text(WORD_CONTROL_MEANING.get(name, ("", ""))[1] if name else "", classes="muted")

    names = {system: label(results, system) for system in controls}
    columns = [Column("Chain", chain, "system")]
    columns += [Column(name, partial(read, system=system), name) for system, name in names.items()]
    if len(controls) < 3:  # more columns leave no width for it
        columns.append(Column("What it asks", asks, "", classes="wide"))
    altered = min(entry["exact_match"]["problems"] for entries in controls.values() for entry in entries.values())
    note = (
        "The same trained model answers from an altered chain. Large: exact match; bar: the same from 0 to 100 %, with its "
        "95 % interval. Below: points more or fewer than with the chain itself, with the 95 % interval of the paired "
        "difference; grey where the data cannot tell it from zero. A bar that stays as long as the first one means that what "
        "was destroyed was not used."
    )
    if altered < results["problems"]:
        note += f" Altered chains are measured on the first {altered:,} of the {results['problems']:,} problems."
    table = Table.of(
        dict.fromkeys(["", *(name for entries in controls.values() for name in entries)]),
        columns,
        title=(
            f"points more or fewer on an altered chain than on its own, first {count(altered, 'problem')};\n"
            "in brackets where it may be chance"
        ),
        note=note,
        classes="matrix",
        terminal="transposed",
    )
    return Section("controls", "Does the chain do anything?", [Verdicts(verdicts), table])


def _control(entry: Mapping[str, Any] | None) -> Cell:
    if entry is None:
        return UNKNOWN
    rate, change = entry["exact_match"], entry["difference"]
    sure, more = differs(change), points(change["mean"])
    return Cell(
        rate["mean"],
        note=f"{more} ({POINTS.interval(change['low'], change['high'])})",
        short=more if sure else f"({more})",
        classes="" if sure else "muted",
        drawing=rate_bar(rate, "c0"),
    )


_EFFECTS: Kinds = {
    ("Later words|changed", "later"): rate_of("later_changed"),
    ("Right answers|lost", "lost"): rate_of("answers_lost"),
    ("Latents|largest change", "latents"): latents_cell,
}


def forced_section(results: Results) -> Section | None:
    """What wrong words do to later words, answers and latents of everything that answers."""
    entry = measured(results, "words").get("containment")
    if not entry:
        return None
    systems = [
        (text(label(results, name), f"forced: {system['says']}"), system["effects"])
        for name, system in entry["systems"].items()
    ]
    note = (
        "While a system speaks, some of the numbers or names that it says become other ones, and it goes on from them; every "
        f"system is forced at the same places, on the first {count(entry['problems'], 'problem')}. Later words are those "
        "after the first wrong one that are not forced themselves. An answer that is itself forced is wrong by "
        "construction, so right answers lost are counted only where a word was forced and none in the box: a method that says "
        "nothing else has none to lose. Methods that think in silence have finished their chain when they speak; in an "
        "explicit chain every wrong word is a wrong step. Below each share, its 95 % interval."
    )
    rates = [percent(rate, 0) for rate in entry["rates"]]
    table = effect_table(
        systems,
        _EFFECTS,
        [(f"{rate} of its words wrong", f"{rate}: ") for rate in rates],
        title="forced wrong words: later words changed, right answers lost, largest change of a latent",
        note=note,
    )
    return Section("forced", "Forced wrong words", [table])


# --- single chains -----------------------------------------------------------------------------------------------


def chains_section(results: Results) -> Section | None:
    """Chains of some problems, a column a latent; all systems but the first are folded."""
    entries = measured(results, "words").get("strips", ())
    if not entries:
        return None
    # One scale for all chains, so that columns of two of them can be compared.
    most = max((step["entropy"] for entry in entries for step in entry["steps"]), default=0.0) or 1.0
    keys = [
        Key("shared", "also in the explicit piece below"),
        Key("unshared", "not there"),
        Key("c4 tall", "entropy of the latent"),
        Key("piece", "piece of the explicit chain"),
    ]
    blocks: list[Block] = [Legend(keys)]
    for index, name in enumerate(_most_informative_first(results, entries)):
        own = [_chain(results, entry, most) for entry in entries if entry["system"] == name]
        blocks.append(Fold(summary=label(results, name), remark=count(len(own), "chain"), blocks=own, opened=not index))
    caption = (
        "A column is one latent: its most likely tokens with the weights that were fed back, and their entropy in nats, on one "
        "scale for all strips. The band below, read along, is the explicit chain of the problem, cut where training cuts it; each "
        "piece stands under the latent in its place. Several blue tokens in one column are explicit tokens that share one latent."
    )
    blocks.append(Paragraph(caption, "caption"))
    return Section("strips", "Chains, latent by latent", blocks)


def _most_informative_first(results: Results, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The systems: latents above explicit pieces, then latents alone, then explicit chains."""
    cut = {entry["system"] for entry in entries if entry["chunks"]}
    names = dict.fromkeys(entry["system"] for entry in entries)
    return sorted(names, key=lambda name: (name == baseline(results), name not in cut))


def _chain(results: Results, entry: Mapping[str, Any], most: float) -> chains.Chain:
    verdict = "right" if entry["correct"] else "wrong"
    length = count(len(entry["steps"]), "token" if entry["system"] == baseline(results) else "latent")
    remark = length if entry["kind"] == verdict else f"{verdict}, {length}"
    return chains.Chain(
        title=f"{entry['kind'][:1].upper()}{entry['kind'][1:]}",
        remark=remark,
        label=f"{label(results, entry['system'])}, {entry['kind']}: {remark}",
        question=entry["question"],
        spoken=entry["said"],
        answer=entry["answer"],
        steps=entry["steps"],
        pieces=entry["chunks"],
        most=most,
    )


# --- steps -------------------------------------------------------------------------------------------------------


def steps_blocks(results: Results) -> list[Block]:
    """Steps that an answer takes one after another: chain, markers, answer; empty where they were not counted."""
    taken = measured(results, "words").get("steps", {})
    if not taken:
        return []
    longest = max(entry["total"] for entry in taken.values())

    def bar(system: str) -> Cell:
        chain = BASELINE_COLOUR if system == baseline(results) else "c1"
        colours = {"latents": chain, "marker": MARKER_COLOUR, "answer": ANSWER_COLOUR}
        lengths = [(taken[system][kind], colour) for kind, colour in colours.items()]
        return drawing(stacked_bar(lengths, longest))

    def steps(system: str, key: str) -> Cell:
        return number(taken[system][key], STEPS, classes="strong" if key == "total" else "")

    kinds = {"Chain": "latents", "Markers": "marker", "Answer": "answer", "Total": "total"}
    columns = [_system(results)]
    columns += [Column(f"{title}|steps", partial(steps, key=key)) for title, key in kinds.items()]
    columns.append(Column("", bar, "", classes="graphic"))
    keys = [
        Key("c1 barred", "latents"),
        Key(f"{BASELINE_COLOUR} barred", "explicit tokens"),
        Key(f"{MARKER_COLOUR} barred", "markers"),
        Key(f"{ANSWER_COLOUR} barred", "answer"),
    ]
    note = (
        "Steps that wait for one another, means a problem. The answer is text and counts too: a chain gets no shorter by "
        "moving its work there."
    )
    return [Legend(keys), Table.of(taken, columns, title="steps of one answer", note=note)]


# --- hidden states -----------------------------------------------------------------------------------------------


def geometry_section(results: Results) -> Section | None:
    """Hidden states beside the rows of the embedding table."""
    entries = measured(results, "words").get("geometry")
    if not entries:
        return None

    def cosine(entry: tuple[str, Mapping[str, Any]]) -> Cell:
        return text(f"{coefficient(entry[1]['cosine_mean'], 3)} ± {coefficient(entry[1]['cosine_sd'], 3)}")

    def system(entry: tuple[str, Mapping[str, Any]]) -> Cell:
        return text(label(results, entry[0]), f"{count(round(entry[1]['states']), 'hidden state')} a seed")

    norm, rank, beside = "Mean norm", "Effective rank", "Rows against states"
    columns = [
        Column("System", system),
        reading("Rows", "embedding_norm", TWO_DECIMALS, "norm: rows", norm),
        reading("States", "hidden_norm", TWO_DECIMALS, "states", norm),
        reading("Rows", "embedding_rank", ONE_DECIMAL, "rank: rows", rank),
        reading("States", "hidden_rank", ONE_DECIMAL, "states", rank),
        Column("Cosine|of random pairs", cosine, group=beside),
        reading("Fréchet|of fitted Gaussians", "frechet", TWO_DECIMALS, "Fréchet", beside),
        reading("MMD|Gaussian kernel", "mmd", THREE_DECIMALS, "MMD", beside),
    ]
    note = (
        "A method that feeds hidden states back as inputs assumes that they look like rows of the embedding table. Far-apart "
        "norms, a cosine near zero and large distances say that they do not; a mixture of rows lies among the rows by itself. "
        "A hidden state is the output of the stack that a step of the chain was made from; means over seeds, both distances "
        "squared."
    )
    title = "rows of the embedding table and hidden states of the chain (distances are squared)"
    blocks: list[Block] = [Table.of(entries.items(), columns, title=title, note=note)]
    blocks += [
        _plane(label(results, name), entry["plane"])
        for name, entry in entries.items()
        if entry.get("plane") and entry["plane"]["embeddings"] and entry["plane"]["hidden"]
    ]
    return Section("geometry", "Hidden states beside embeddings", blocks)


def _plane(name: str, plane: Mapping[str, Any]) -> Figure:
    explained = joined([percent(share, 1) for share in plane["explained"]])
    caption = (
        f"Both on the plane of most variance of the two together, which explains {explained} of it: distances "
        "here are only a hint."
    )
    described = "Embedding rows and hidden states on two principal components"
    picture = clouds.two_clouds(plane["embeddings"], plane["hidden"], label=described)
    legend = (Key("c1 squared", "rows of the embedding table"), Key("c2 dotted", "hidden states"))
    return Figure([Panel(title=name, legend=legend, drawing=picture)], caption, "beside")
