"""What the page and the terminal say about strings: noise on the prompt, noise on latents, wrong words (section 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

from unspoken.evaluation.outcomes import COUPLED, PAIR
from unspoken.report.charts import Axis, Frame, Line, line_chart, number, shares
from unspoken.report.figures import Panel
from unspoken.report.findings import Results, differs
from unspoken.report.formats import NO_VALUE, bare_percent, coefficient, p_value, percent, points
from unspoken.report.markup import Cell, Section, heads, paragraph, prose, table, text_cell
from unspoken.report.robust import Columns, Told, effect_rows, effect_table, latents_cell, share_cell
from unspoken.tasks.grammar import TERMINALS

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
_EFFECTS: Columns = {
    "Words forced": lambda effect: share_cell(effect["forced"]),
    "Later words|changed": lambda effect: share_cell(effect["later_changed"]),
    "Later right|unforced": lambda effect: share_cell(effect["later_accuracy"]["clean"]),
    "Later right|forced": lambda effect: share_cell(effect["later_accuracy"]["forced"]),
    "Latents|largest change": latents_cell,
}
# In the paper's order: its columns are the Transformer and the JEPA-Reasoner.
_COMPARED = ((COUPLED, "c2"), (PAIR, "c1"))


def strings(results: Results) -> Mapping[str, Any]:
    """What was measured on strings only; empty for other tasks."""
    found: Mapping[str, Any] = results.get("strings") or {}
    return found


def _paper(kind: Kind, level: float, step: int, column: int) -> float | None:
    """A printed value, or its ratio to the printed clean one."""
    rows = PAPER_TOKENS.get(level)
    if rows is None or step >= len(rows):
        return None
    return rows[step][column] / (1.0 if kind == "absolute" else PAPER_TOKENS[0.0][step][column])


def _ours(results: Results, name: str, kind: Kind, level: int, step: int) -> Mapping[str, float] | None:
    systems = strings(results)["token_noise"].get("systems", {})
    if name not in systems:
        return None
    entry: Mapping[str, Any] = systems[name]["levels"][level]["symbol"][step]
    found: Mapping[str, float] | None = entry if kind == "absolute" else entry["relative"]
    return found


def _levels(results: Results) -> list[float]:
    systems = strings(results)["token_noise"]["systems"]
    return [entry["level"] for entry in next(iter(systems.values()))["levels"]] if systems else []


# --- what follows from the numbers -------------------------------------------------------------------------------


def _verdict(entry: Mapping[str, float] | None) -> str:
    """Whether a difference that should be positive is."""
    if entry is None:
        return "not measured"
    told = "cannot be told" if not differs(entry) else "holds" if entry["mean"] > 0 else "does not hold"
    return f"{told} ({points(entry['mean'])} points, {points(entry['low'])} to {points(entry['high'])}, {p_value(entry['p'])})"


def _step_verdict(results: Results, test: Mapping[str, Any], step: int, kind: Kind) -> str:
    """What a test of noise says of one generation step; nothing where a system knows nothing to lose."""
    told = f"step {step + 1} "
    for name, _ in _COMPARED:
        clean = _ours(results, name, "absolute", 0, step)
        if clean is not None and clean["low"] <= 1 / len(TERMINALS):
            return f"{told}cannot be told: without noise {name} is at chance"
    return told + _verdict(test[kind])


def _nowhere_worse(test: Mapping[str, Any]) -> str:
    """Whether right symbols are at least as frequent at every step and level of noise; ours, the paper's pair is not."""
    cells = [step["absolute"] for level in test["levels"] for step in level["symbol"]]
    above, below = (sum(differs(cell) and sign * cell["mean"] > 0 for cell in cells) for sign in (1, -1))
    told = "does not hold" if below else "holds" if above == len(cells) else "cannot be told everywhere"
    lowest, highest = min(cell["mean"] for cell in cells), max(cell["mean"] for cell in cells)
    return (
        f"{told} (of {len(cells)} steps and levels it is above in {above}, below in {below}; "
        f"{points(lowest)} to {points(highest)} points)"
    )


def claims(results: Results) -> list[tuple[str, str]]:
    """The paper's claims about noise, each with what this run says of it.

    The tests are single ones: of twenty, one may seem to hold by chance.
    """
    measured, found = strings(results), []
    token = measured["token_noise"]["comparison"].get(f"{PAIR} - {COUPLED}")
    if token is not None:
        worst = token["levels"][-1]
        noise = percent(worst["level"], 0)
        later = range(1, len(worst["symbol"]))
        told = "; ".join(_step_verdict(results, worst["symbol"][step], step, "relative") for step in later)
        found.append((f"{noise} of the prompt wrong: loses a smaller share than the coupled model", told))
        told = "; ".join(_step_verdict(results, worst["symbol"][step], step, "absolute") for step in later if step > 1)
        found.append((f"{noise} of the prompt wrong: says more right symbols than the coupled model", told))
    for name, test in measured["token_noise"]["comparison"].items():
        if name.startswith(PAIR):
            told = _nowhere_worse(test)
            found.append((f"{name.removesuffix(f' - {COUPLED}')}: nowhere worse than the coupled model", told))
    latent = measured["latent_noise"]["renormalised"]["comparison"].get(f"{PAIR} - {measured['coconut']}")
    if latent is not None:
        for level in (latent["levels"][0], latent["levels"][-1]):
            name = f"noise of {percent(level['level'], 0)} on latents: " if level["level"] else "no noise: "
            found.append((f"{name}more exact matches than Coconut", _verdict(level["exact"][-1]["absolute"])))
    effect = measured["containment"].get(PAIR)
    if effect is not None:
        kept = "holds: not one bit of any latent changed" if effect["latents_identical"] else "DOES NOT HOLD"
        found.append(("wrong words never reach the chain", kept))
    return [(name, told) for name, told in found if told]


def claims_section(results: Results) -> Section | None:
    """The verdicts, and what a continuation is without noise."""
    if not strings(results):
        return None
    items = "".join(f"<li><b>{escape(name)}</b> <span>{prose(told)}</span></li>" for name, told in claims(results))
    verdicts = f'<ul class="verdicts">{items}</ul>' if items else ""
    return Section(key="claims", title="The paper’s claims", body=verdicts + _clean_table(results))


def _clean_table(results: Results) -> str:
    measured = strings(results)
    rows = []
    for name, values in measured["steps"].items():
        valid = measured["valid"].get(name)
        row = [text_cell(name)]
        row += [Cell(text=NO_VALUE if value is None else bare_percent(value, 1)) for value in values]
        row += [Cell(text=NO_VALUE if valid is None else percent(valid["mean"], 1))]
        rows.append(row)
    caption = (
        "Symbols that are the string’s own, in per cent, place by place without any noise. A string can go on in several "
        "ways, so no system can be right every time; a valid continuation is one that begins some string of the grammar. "
        "Coconut’s latents stand for symbols that are never said."
    )
    columns = (str(step + 1) for step in range(measured["symbols"]))
    return table(heads("System", *columns, "Valid|as a whole"), rows, caption=caption)


# --- noise on the prompt -----------------------------------------------------------------------------------------


def _chart(results: Results, kind: Kind, step: int, y: Axis) -> str:
    levels = _levels(results)
    ticks = tuple((level, f"{100 * level:.0f} %") for level in levels[::2])
    frame = Frame(x=Axis(low=0, high=levels[-1], ticks=ticks), y=y, width=243, height=160, bottom=24)
    lines, spans = [], []
    for column, (name, colour) in enumerate(_COMPARED):
        printed = [(level, value) for level in levels if (value := _paper(kind, level, step, column)) is not None]
        lines.append(Line(points=printed, classes=f"{colour} dashed faint", hint=f"the paper’s {name}"))
        known = [(level, _ours(results, name, kind, index, step)) for index, level in enumerate(levels)]
        here = [(level, entry) for level, entry in known if entry is not None]
        if here:
            means = [(level, entry["mean"]) for level, entry in here]
            lines.append(Line(points=means, classes=colour, marker="dot", hint=name))
        for level, entry in here:
            (x, low), (_, high) = frame.at(level, entry["low"]), frame.at(level, entry["high"])
            spans.append(
                f'<line class="range {colour}" x1="{number(x)}" x2="{number(x)}" y1="{number(low)}" y2="{number(high)}"/>'
            )
    label = f"Accuracy of step {step + 1} against the share of wrong tokens, {kind}"
    return line_chart(frame, [line for line in lines if line.points], label=label, extra=spans)


def noise_curves(results: Results) -> list[tuple[Panel, ...]]:
    """For each generation step, accuracy against noise on the prompt: absolute, and relative to no noise."""
    levels, half = _levels(results), strings(results)["half"]
    axes = {}
    for kind in _KINDS:
        values = [
            value
            for step in range(half)
            for index, level in enumerate(levels)
            for column, (name, _) in enumerate(_COMPARED)
            for value in (
                _paper(kind, level, step, column),
                (_ours(results, name, kind, index, step) or {}).get("low"),
            )
            if value is not None
        ]
        axes[kind] = shares(min(values, default=0.0))
    return [
        tuple(
            Panel(title=f"Step {step + 1}", note=kind, drawing=_chart(results, kind, step, axes[kind]))
            for kind in _KINDS
        )
        for step in range(half)
    ]


def _noise_table(results: Results, kind: Kind) -> str:
    """Both systems at every level and step, with interval and the paper's value below."""
    measured = strings(results)
    half = measured["half"]
    tested = measured["token_noise"]["comparison"].get(f"{PAIR} - {COUPLED}")
    rows = []
    for index, level in enumerate(_levels(results)):
        row = [text_cell(percent(level, 0))]
        for step in range(half):
            test = tested and tested["levels"][index]["symbol"][step][kind]
            for column, (name, _) in enumerate(_COMPARED):
                entry, printed = _ours(results, name, kind, index, step), _paper(kind, level, step, column)
                # The difference is the JEPA-Reasoner's minus the coupled model's.
                better = test is not None and differs(test) and (test["mean"] > 0) == (name == PAIR)
                classes = f"num{' first' if column == 0 else ''}{' strong' if better else ''}"
                row.append(_measured(entry, printed, classes))
        if kind == "absolute":
            valid = [measured["token_noise"]["valid"].get(name) for name, _ in _COMPARED]
            row += [Cell(text=NO_VALUE if values is None else bare_percent(values[index], 1)) for values in valid]
        rows.append(row)
    what = "Accuracy of each symbol" if kind == "absolute" else "Accuracy divided by the system’s own without noise"
    caption = (
        f"{what}, in per cent; below it the 95 % interval, and the paper’s value, of its own grammar and models. "
        "Bold where the paired test tells the two apart."
    )
    groups = [f"Step {step + 1}" for step in range(half)]
    if kind == "absolute":
        caption += f" Valid: the {half} symbols go on from the prompt as it was in some string of the grammar."
        groups.append("Valid")
    head = heads("Wrong tokens", *("T", "R") * len(groups))
    return table(head, rows, caption=caption, groups=[(name, 2) for name in groups])


def _measured(entry: Mapping[str, float] | None, printed: float | None, classes: str = "num") -> Cell:
    below = "" if printed is None else f"<small>paper {bare_percent(printed, 1)}</small>"
    if entry is None:
        return Cell(text=NO_VALUE, html=below, classes=classes)
    span = f"{bare_percent(entry['low'], 1)} – {bare_percent(entry['high'], 1)}"
    return Cell(text=bare_percent(entry["mean"], 1), small=span, html=below, classes=classes)


def token_noise_section(results: Results) -> Section | None:
    """The noise curves and their numbers."""
    if not strings(results) or not _levels(results):
        return None
    legend = (
        ("c2 dotted", "T: coupled Transformer"),
        ("c1 dotted", "R: JEPA-Reasoner"),
        ("c2 dashed", "the paper’s T"),
        ("c1 dashed", "the paper’s R"),
    )
    columns = noise_curves(results)
    cards = "".join(f'<div class="stage">{"".join(panel.html() for panel in column)}</div>' for column in columns)
    caption = (
        "Some symbols of the prompt are replaced by others, the same for every system, and each system continues it. Bars: "
        "95 % intervals over seeds and strings. The vertical axis may not start at zero. Look for two things: which line is "
        "higher (above), and which falls more slowly (below); they need not be the same."
    )
    key = Panel(title="", legend=legend, drawing="").html()
    curves = f'<figure>{key}<div class="panels strip">{cards}</div><figcaption>{prose(caption)}</figcaption></figure>'
    body = curves + "".join(_noise_table(results, kind) for kind in _KINDS)
    return Section(key="token-noise", title="Wrong tokens in the prompt", body=body)


# --- noise on latents --------------------------------------------------------------------------------------------


def latent_noise_section(results: Results) -> Section | None:
    """Exact match of the last symbols with noise on every latent, beside the paper's."""
    if not strings(results):
        return None
    measured = strings(results)["latent_noise"]
    kept, free = measured["renormalised"], measured["free"]
    rows: list[Sequence[Cell]] = []
    for name, entry in kept["systems"].items():
        row = [text_cell(name)]
        for kind, levels in ((kept, entry["levels"]), (free, free["systems"][name]["levels"][1:])):
            ratios = kind["norm_ratio"][name][-len(levels) :]
            for index, (level, ratio) in enumerate(zip(levels, ratios, strict=True)):
                below = f"<small>noise {coefficient(ratio)}</small>" if level["level"] else ""
                cell = _measured(level["exact"][-1], None, "num first" if index == 0 else "num")
                row.append(Cell(text=cell.text, small=cell.small, html=below, classes=cell.classes))
        rows.append(row)
    levels = [level["level"] for level in next(iter(kept["systems"].values()))["levels"]]
    for name, printed in PAPER_LATENTS.items():
        values = [bare_percent(printed[level], 1) if level in printed else NO_VALUE for level in levels]
        rows.append(
            [
                text_cell(f"the paper’s {name}", classes="muted"),
                *(Cell(text=value, classes="num muted") for value in values),
                *(Cell(text="") for _ in levels[1:]),
            ]
        )
    half = strings(results)["half"]
    caption = (
        f"Exact match of the last {half} of {2 * half} symbols, in per cent, with its 95 % interval. Every latent gets "
        "Gaussian noise whose sigma is a share of its own largest entry, before it is fed back and spoken from; below, the "
        "norm of that noise over the norm of the latent, which differs between methods at the same share. Renormalised: the "
        "noisy latent is given its old norm. The paper does not say which it did."
    )
    shown = [percent(level, 0) for level in levels]
    groups = [("Renormalised", len(levels)), ("Not renormalised", len(levels) - 1)]
    body = table(heads("System", *shown, *shown[1:]), rows, caption=caption, groups=groups)
    return Section(key="latent-noise", title="Noise on the latents", body=body)


# --- wrong words -------------------------------------------------------------------------------------------------


def forced_section(results: Results) -> Section | None:
    """What wrong words do to later words and to latents, and whom the Talker believes."""
    effects = strings(results).get("containment")
    if not effects:
        return None
    caption = (
        "Some of the words that a system says are replaced by wrong ones while it speaks. Later words are those behind the "
        "first wrong one. Coconut has finished its chain when it speaks, so its latents stay as they are too; the coupled "
        "model reasons in its words, so every wrong word is a wrong step. Below each share, its 95 % interval."
    )
    body = effect_table([(text_cell(name), [effect]) for name, effect in effects.items()], _EFFECTS, caption=caption)
    primed = strings(results).get("prime") or {}
    if primed:
        own, wrong = (percent(primed[name]["symbol_accuracy"], 1) for name in ("right", "wrong"))
        body += paragraph(
            f"The Dual-Talker, told the first {strings(results)['half']} symbols, says {own} of the others right; told wrong "
            f"ones, {wrong}. Its latents are the same both times."
        )
    return Section(key="forced", title="Wrong words in the mouth", body=body)


# --- terminal ----------------------------------------------------------------------------------------------------


def string_tables(results: Results) -> list[Told]:
    """Title, header and rows of every table of a run on strings; empty for other tasks."""
    if not strings(results):
        return []
    measured, found = strings(results), list[Told]()
    half = measured["half"]
    for kind in _KINDS:
        rows = []
        for index, level in enumerate(_levels(results)):
            values = [_ours(results, name, kind, index, step) for step in range(half) for name, _ in _COMPARED]
            rows.append([percent(level, 0), *(NO_VALUE if v is None else bare_percent(v["mean"], 1) for v in values)])
        header = ["noise", *(f"{letter}{step + 1}" for step in range(half) for letter in "TR")]
        if rows:
            title = f"wrong tokens in the prompt, {kind}: coupled (T) and jepa-reasoner (R), steps 1 to {half}"
            found.append((title, header, rows))
    for kind, noise in measured["latent_noise"].items():
        rows = [
            [name, *(bare_percent(level["exact"][-1]["mean"], 1) for level in entry["levels"])]
            for name, entry in noise["systems"].items()
        ]
        levels = [percent(entry["level"], 0) for entry in next(iter(noise["systems"].values()))["levels"]]
        found.append((f"noise on latents, {kind}: exact match of the last {half} symbols", ["system", *levels], rows))
    rows = effect_rows([(name, [effect]) for name, effect in measured["containment"].items()], _EFFECTS)
    header = ["system", "words forced", "later changed", "right", "right, forced", "change of latents"]
    found.append(("wrong words in the mouth", header, rows))
    rows = [[name, percent(entry["mean"], 1)] for name, entry in measured["valid"].items()]
    found.append(("continuations that begin some string of the grammar", ["system", "valid"], rows))
    return found
