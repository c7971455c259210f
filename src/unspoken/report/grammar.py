"""Strings of a grammar: noise on the prompt, noise on latents, wrong words (JEPA-Reasoner, section 6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from unspoken.draw.charts import Axis, Frame, Line, line_chart, rates, span
from unspoken.draw.formats import BARE_PERCENT_1, PERCENT_1, coefficient, count, p_value, percent, points
from unspoken.draw.section import Block, Figure, Key, Panel, Paragraph, Section, Verdicts
from unspoken.draw.table import BLANK, Cell, Column, Table, estimate, number, text
from unspoken.evaluation.outcomes import COUPLED, PAIR
from unspoken.report.accuracy import accuracy_section
from unspoken.report.findings import Results, differs, measured
from unspoken.report.forced import Kinds, effect_table, latents_cell, rate_of
from unspoken.tasks.context_free import TERMINALS

Kind = Literal["absolute", "relative"]

# JEPA-Reasoner, arXiv 2512.19171v3: noise on tokens -> (Transformer, JEPA-Reasoner) at generation steps 1 to 4.
PAPER_TOKENS: Mapping[float, tuple[tuple[float, float], ...]] = {
    0.00: ((0.9230, 0.9191), (0.9181, 0.7405), (0.6185, 0.5722), (0.6861, 0.6646)),
    0.05: ((0.8748, 0.8506), (0.7867, 0.6703), (0.5281, 0.5242), (0.6140, 0.6130)),
    0.10: ((0.7996, 0.7688), (0.6958, 0.6109), (0.4857, 0.4797), (0.5600, 0.5708)),
    0.15: ((0.7543, 0.7256), (0.6273, 0.5678), (0.4514, 0.4581), (0.5273, 0.5451)),
    0.20: ((0.7092, 0.6797), (0.5868, 0.5336), (0.4316, 0.4428), (0.5005, 0.5195)),
    0.25: ((0.6742, 0.6426), (0.5643, 0.5021), (0.4129, 0.4152), (0.4704, 0.5039)),
    0.30: ((0.6402, 0.6061), (0.5442, 0.4919), (0.4010, 0.4201), (0.4521, 0.4865)),
}
# Sigma over the largest entry -> exact match of the last four symbols.
PAPER_LATENTS: Mapping[str, Mapping[float, float]] = {
    PAIR: {0.0: 0.4588, 0.05: 0.4681, 0.1: 0.4643, 0.15: 0.4468},
    "coconut": {0.0: 0.3740, 0.05: 0.3688, 0.1: 0.3650, 0.15: 0.3629},
}
_KINDS: tuple[Kind, ...] = ("absolute", "relative")
# What wrong words did, column by column.
_EFFECTS: Kinds = {
    ("Words forced", "words forced"): rate_of("forced"),
    ("Later words|changed", "later changed"): rate_of("later_changed"),
    ("Later right|unforced", "right"): rate_of("later_accuracy", "clean"),
    ("Later right|forced", "right, forced"): rate_of("later_accuracy", "forced"),
    ("Latents|largest change", "change of latents"): latents_cell,
}
# In the paper's order: its columns are the Transformer and the JEPA-Reasoner.
_COMPARED = ((COUPLED, "c2"), (PAIR, "c1"))


def headline(results: Results) -> Section | None:
    """Exact match of every system on the symbols that all of them say."""
    strings = measured(results, "strings")
    if not strings:
        return None
    symbols, half = strings["symbols"], strings["half"]
    about = (
        f"Share of {count(results['problems'], 'test problem')} of which symbols {half + 1} to {symbols} after the prompt are all right: the only ones that "
        "Coconut says."
    )
    return accuracy_section(results, about)


def _paper(kind: Kind, level: float, step: int, column: int) -> float | None:
    """A printed value, or its ratio to the printed clean one."""
    rows = PAPER_TOKENS.get(level)
    if rows is None or step >= len(rows):
        return None
    return rows[step][column] / (1.0 if kind == "absolute" else PAPER_TOKENS[0.0][step][column])


def _ours(results: Results, name: str, kind: Kind, level: int, step: int) -> Mapping[str, float] | None:
    systems = measured(results, "strings")["token_noise"].get("systems", {})
    if name not in systems:
        return None
    entry: Mapping[str, Any] = systems[name]["levels"][level]["symbol"][step]
    ours: Mapping[str, float] | None = entry if kind == "absolute" else entry["relative"]
    return ours


def _levels(results: Results) -> list[float]:
    systems = measured(results, "strings").get("token_noise", {}).get("systems")
    return [entry["level"] for entry in next(iter(systems.values()))["levels"]] if systems else []


# --- what follows from the numbers -------------------------------------------------------------------------------


def _verdict(entry: Mapping[str, float] | None) -> str:
    """Whether a difference that should be positive is."""
    if entry is None:
        return "not measured"
    answer = "cannot be told" if not differs(entry) else "holds" if entry["mean"] > 0 else "does not hold"
    return f"{answer} ({points(entry['mean'])} points, {points(entry['low'])} to {points(entry['high'])}, {p_value(entry['p'])})"


def _step_verdict(results: Results, test: Mapping[str, Any], step: int, kind: Kind) -> str:
    """What a test of noise says of one generation step; nothing where a system knows nothing to lose."""
    name_of_step = f"step {step + 1} "
    for name, _ in _COMPARED:
        clean = _ours(results, name, "absolute", 0, step)
        if clean is not None and clean["low"] <= 1 / len(TERMINALS):
            return f"{name_of_step}cannot be told: without noise {name} is at chance"
    return name_of_step + _verdict(test[kind])


def _nowhere_worse(test: Mapping[str, Any]) -> str:
    """Whether right symbols are at least as frequent at every step and level of noise; ours, the paper's pair is not."""
    cells = [step["absolute"] for level in test["levels"] for step in level["symbol"]]
    above, below = (sum(differs(cell) and sign * cell["mean"] > 0 for cell in cells) for sign in (1, -1))
    answer = "does not hold" if below else "holds" if above == len(cells) else "cannot be told everywhere"
    lowest, highest = min(cell["mean"] for cell in cells), max(cell["mean"] for cell in cells)
    return (
        f"{answer} (of {len(cells)} steps and levels it is above in {above}, below in {below}; "
        f"{points(lowest)} to {points(highest)} points)"
    )


def claims(results: Results) -> list[tuple[str, str]]:
    """The paper's claims about noise, each with what this run says of it.

    The tests are single ones: of twenty, one may seem to hold by chance.
    """
    strings, verdicts = measured(results, "strings"), []
    token = strings["token_noise"]["comparison"].get(f"{PAIR} - {COUPLED}")
    if token is not None:
        worst = token["levels"][-1]
        noise = percent(worst["level"], 0)
        later = range(1, len(worst["symbol"]))
        verdict = "; ".join(_step_verdict(results, worst["symbol"][step], step, "relative") for step in later)
        verdicts.append((f"{noise} of the prompt wrong: loses a smaller share than the coupled model", verdict))
        verdict = "; ".join(
            _step_verdict(results, worst["symbol"][step], step, "absolute") for step in later if step > 1
        )
        verdicts.append((f"{noise} of the prompt wrong: says more right symbols than the coupled model", verdict))
    for name, test in strings["token_noise"]["comparison"].items():
        if name.startswith(PAIR):
            verdict = _nowhere_worse(test)
            verdicts.append((f"{name.removesuffix(f' - {COUPLED}')}: nowhere worse than the coupled model", verdict))
    latent = strings["latent_noise"]["renormalised"]["comparison"].get(f"{PAIR} - {strings['coconut']}")
    if latent is not None:
        for level in (latent["levels"][0], latent["levels"][-1]):
            name = f"noise of {percent(level['level'], 0)} on latents: " if level["level"] else "no noise: "
            verdicts.append((f"{name}more exact matches than Coconut", _verdict(level["exact"][-1]["absolute"])))
    effect = strings["containment"].get(PAIR)
    if effect is not None:
        kept = "holds: not one bit of any latent changed" if effect["latents_identical"] else "DOES NOT HOLD"
        verdicts.append(("wrong words never reach the chain", kept))
    return [(name, verdict) for name, verdict in verdicts if verdict]


def claims_section(results: Results) -> Section | None:
    """The verdicts, and what a continuation is without noise."""
    strings = measured(results, "strings")
    if not strings:
        return None
    verdicts = [(name, [verdict]) for name, verdict in claims(results)]
    blocks: list[Block] = [Verdicts(verdicts)] if verdicts else []
    return Section("claims", "The paper’s claims", [*blocks, _clean_table(strings)])


def _clean_table(strings: Mapping[str, Any]) -> Table:
    def symbol(entry: tuple[str, Sequence[float | None]], step: int) -> Cell:
        return number(entry[1][step], BARE_PERCENT_1)

    def valid(entry: tuple[str, Sequence[float | None]]) -> Cell:
        return number((strings["valid"].get(entry[0]) or {}).get("mean"), PERCENT_1)

    columns = [Column("System", lambda entry: text(entry[0]))]
    columns += [Column(str(step + 1), partial(symbol, step=step)) for step in range(strings["symbols"])]
    columns.append(Column("Valid|as a whole", valid))
    note = (
        "Symbols that are the string’s own, in per cent, place by place without any noise. A string can go on in several "
        "ways, so no system can be right every time; a valid continuation is one that begins some string of the grammar. "
        "Coconut’s latents stand for symbols that are never said."
    )
    title = "right symbols in per cent, and continuations that begin some string of the grammar"
    return Table.of(strings["steps"].items(), columns, title=title, note=note)


# --- noise on the prompt -----------------------------------------------------------------------------------------


def _chart(results: Results, kind: Kind, step: int, y: Axis) -> Panel:
    levels = _levels(results)
    ticks = tuple((level, f"{100 * level:.0f} %") for level in levels[::2])
    frame = Frame(x=Axis(low=0, high=levels[-1], ticks=ticks), y=y, width=243, height=160, bottom=24)
    lines, spans = [], []
    for column, (name, colour) in enumerate(_COMPARED):
        printed = [(level, value) for level in levels if (value := _paper(kind, level, step, column)) is not None]
        lines.append(Line(points=printed, classes=f"{colour} dashed faint", hint=f"the paper’s {name}"))
        every = [(level, _ours(results, name, kind, index, step)) for index, level in enumerate(levels)]
        ours = [(level, entry) for level, entry in every if entry is not None]
        means = [(level, entry["mean"]) for level, entry in ours]
        lines.append(Line(points=means, classes=colour, marker="dot", hint=name))
        spans += [span(frame.at(level, entry["low"]), frame.at(level, entry["high"]), colour) for level, entry in ours]
    label = f"Accuracy of step {step + 1} against the share of wrong tokens, {kind}"
    drawing = line_chart(frame, [line for line in lines if line.points], label=label, extra=spans)
    return Panel(title=f"Step {step + 1}", remark=kind, drawing=drawing)


def _lowest(results: Results, kind: Kind, half: int) -> Iterator[float]:
    """Everything that a chart of noise must hold."""
    for step in range(half):
        for index, level in enumerate(_levels(results)):
            for column, (name, _) in enumerate(_COMPARED):
                ours, printed = _ours(results, name, kind, index, step), _paper(kind, level, step, column)
                yield from [] if ours is None else [ours["low"]]
                yield from [] if printed is None else [printed]


def noise_curves(results: Results) -> list[list[Panel]]:
    """For each generation step, accuracy against noise on the prompt: absolute, and relative to no noise."""
    half = measured(results, "strings")["half"]
    axes = {kind: rates(min(_lowest(results, kind, half), default=0.0)) for kind in _KINDS}
    return [[_chart(results, kind, step, axes[kind]) for kind in _KINDS] for step in range(half)]


def _beside_paper(entry: Mapping[str, float] | None, printed: float | None, classes: str = "") -> Cell:
    note = "" if printed is None else f"paper {BARE_PERCENT_1(printed)}"
    return Cell(note=note) if entry is None else estimate(entry, BARE_PERCENT_1, note=note, classes=classes)


def _noise_row(results: Results, kind: Kind, index: int, level: float) -> list[Cell]:
    strings, row = measured(results, "strings"), [text(percent(level, 0))]
    tested = strings["token_noise"]["comparison"].get(f"{PAIR} - {COUPLED}")
    for step in range(strings["half"]):
        test = tested and tested["levels"][index]["symbol"][step][kind]
        for column, (name, _) in enumerate(_COMPARED):
            # The difference is the JEPA-Reasoner's minus the coupled model's.
            better = test is not None and differs(test) and (test["mean"] > 0) == (name == PAIR)
            printed = _paper(kind, level, step, column)
            row.append(_beside_paper(_ours(results, name, kind, index, step), printed, "strong" if better else ""))
    if kind == "absolute":
        valid = [strings["token_noise"]["valid"].get(name) for name, _ in _COMPARED]
        row += [Cell() if values is None else number(values[index], BARE_PERCENT_1) for values in valid]
    return row


def _noise_table(results: Results, kind: Kind) -> Table:
    """Both systems at every level and step, with interval and the paper's value below."""
    half = measured(results, "strings")["half"]
    what = "Accuracy of each symbol" if kind == "absolute" else "Accuracy divided by the system’s own without noise"
    note = (
        f"{what}, in per cent; below it the 95 % interval, and the paper’s value, of its own grammar and models. "
        "Bold where the paired test tells the two apart."
    )
    groups = [(f"Step {step + 1}", str(step + 1)) for step in range(half)]
    if kind == "absolute":
        note += f" Valid: the {half} symbols go on from the prompt as it was in some string of the grammar."
        groups.append(("Valid", " valid"))
    heads = [Column(name, None, name + after, group) for group, after in groups for name in "TR"]
    return Table(
        title=f"wrong tokens in the prompt, {kind}: coupled (T) and jepa-reasoner (R), steps 1 to {half}",
        columns=[Column("Wrong tokens", None, "noise"), *heads],
        rows=[_noise_row(results, kind, index, level) for index, level in enumerate(_levels(results))],
        note=note,
    )


def token_noise_section(results: Results) -> Section | None:
    """The noise curves and their numbers."""
    if not _levels(results):
        return None
    legend = (
        Key("c2 dotted", "T: coupled Transformer"),
        Key("c1 dotted", "R: JEPA-Reasoner"),
        Key("c2 dashed", "the paper’s T"),
        Key("c1 dashed", "the paper’s R"),
    )
    caption = (
        "Some symbols of the prompt are replaced by others, the same for every system, and each system continues it. Bars: "
        "95 % intervals over seeds and strings. The vertical axis may not start at zero. Look for two things: which line is "
        "higher (above), and which falls more slowly (below); they need not be the same."
    )
    curves = Figure(noise_curves(results), caption, legend=legend, strip=True)
    tables = [_noise_table(results, kind) for kind in _KINDS]
    return Section("token-noise", "Wrong tokens in the prompt", [curves, *tables])


# --- noise on latents --------------------------------------------------------------------------------------------


def latent_noise_section(results: Results) -> Section | None:
    """Exact match of the last symbols with noise on every latent, beside the paper's."""
    strings = measured(results, "strings")
    if not strings:
        return None
    kept, free = strings["latent_noise"]["renormalised"], strings["latent_noise"]["free"]
    levels = [level["level"] for level in next(iter(kept["systems"].values()))["levels"]]
    rows = [[text(name), *_noisy_latents(kept, name, 0), *_noisy_latents(free, name, 1)] for name in kept["systems"]]
    for name, printed in PAPER_LATENTS.items():
        values = [number(printed.get(level), BARE_PERCENT_1, classes="muted") for level in levels]
        rows.append([text(f"the paper’s {name}", classes="muted"), *values, *(BLANK for _ in levels[1:])])
    half = strings["half"]
    note = (
        f"Exact match of the last {half} of {2 * half} symbols, in per cent, with its 95 % interval. Every latent gets "
        "Gaussian noise whose sigma is a share of its own largest entry, before it is fed back and spoken from; below, the "
        "norm of that noise over the norm of the latent, which differs between methods at the same share. Renormalised: the "
        "noisy latent is given its old norm. The paper does not say which it did."
    )
    shown = [percent(level, 0) for level in levels]
    columns = [Column("System"), *(Column(level, group="Renormalised") for level in shown)]
    columns += [Column(level, None, f"free {level}", "Not renormalised") for level in shown[1:]]
    title = f"noise on latents, renormalised and free: exact match of the last {half} symbols in per cent"
    return Section("latent-noise", "Noise on the latents", [Table(title=title, columns=columns, rows=rows, note=note)])


def _noisy_latents(kind: Mapping[str, Any], name: str, first: int) -> list[Cell]:
    """Cells of a system from a level on."""
    levels, ratios = (values[first:] for values in (kind["systems"][name]["levels"], kind["norm_ratio"][name]))
    notes = [
        f"noise {coefficient(ratio)}" if level["level"] else "" for level, ratio in zip(levels, ratios, strict=True)
    ]
    return [estimate(level["exact"][-1], BARE_PERCENT_1, note=note) for level, note in zip(levels, notes, strict=True)]


# --- wrong words -------------------------------------------------------------------------------------------------


def forced_section(results: Results) -> Section | None:
    """What wrong words do to later words and to latents, and whom the Talker believes."""
    strings = measured(results, "strings")
    effects = strings.get("containment")
    if not effects:
        return None
    note = (
        "Some of the words that a system says are replaced by wrong ones while it speaks. Later words are those after the "
        "first wrong one. Coconut has finished its chain when it speaks, so its latents stay as they are too; the coupled "
        "model reasons in its words, so every wrong word is a wrong step. Below each share, its 95 % interval."
    )
    systems = [(text(name), [effect]) for name, effect in effects.items()]
    blocks: list[Block] = [effect_table(systems, _EFFECTS, [("", "")], title="forced wrong words", note=note)]
    if primed := strings.get("prime"):
        own, wrong = (percent(primed[name]["symbol_accuracy"], 1) for name in ("right", "wrong"))
        blocks.append(
            Paragraph(
                f"The Dual-Talker, given the first {strings['half']} symbols, says {own} of the others right; given wrong "
                f"ones, {wrong}. Its latents are the same both times."
            )
        )
    return Section("forced", "Forced wrong words", blocks)
