"""Draws the picture of every method, all in one style: `python docs/pictures.py` writes docs/pictures/*.svg.

A lane is one sequence of positions. Each position is written ``kind:text``; kinds are

    q  a token of the question         m  a marker                c  a token of the explicit chain
    z  a latent                        p  a token that is always the same one        a  a token of the answer
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent / "pictures"

FILLS = {"q": "#e9ebf0", "m": "#ffffff", "c": "#dbe8ff", "z": "#e6d9ff", "p": "#f5ecd3", "a": "#d6f1de"}
STROKES = {"q": "#8b93a3", "m": "#8b93a3", "c": "#3a6fc4", "z": "#7440c0", "p": "#a3853a", "a": "#2d8a4b"}
LEGEND = {"q": "question", "m": "marker", "c": "explicit chain", "z": "latent", "p": "constant token", "a": "answer"}
INK, GREY, FEED, LOSS = "#1d2330", "#5b6475", "#7440c0", "#c2352b"
LEFT, WIDTH, CELL, GAP, LANE = 128, 760, 30, 7, 116


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One sequence.

    Attributes:
        label: at its left; ``|`` breaks the line.
        cells: its positions, separated by blanks.
        feed: pairs of positions: the output at the first one is the input of the second.
        losses: first position, last position and name of each loss that is taken there.
        gradient: last and first position of the stretch that gradients flow back through.
        note: under the positions, or at their right where a link crosses that place.
    """

    label: str
    cells: str
    feed: tuple[tuple[int, int], ...] = ()
    losses: tuple[tuple[int, int, str], ...] = ()
    gradient: tuple[int, int] | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Link:
    """An arrow from a position of one lane to a position of another, with what passes along it."""

    start: tuple[int, int]
    end: tuple[int, int]
    label: str
    loss: bool = False


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Lanes from top to bottom, and what links them."""

    title: str
    lanes: tuple[Lane, ...]
    links: tuple[Link, ...] = ()


def chain(first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Every position from the first to the last one feeds the next."""
    return tuple((at, at + 1) for at in range(first, last))


def text(x: float, y: float, words: str, *, colour: str = INK, size: int = 12, anchor: str = "middle") -> str:
    """One line of text."""
    place = f'x="{x:.0f}" y="{y:.0f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}"'
    return f"<text {place}>{escape(words)}</text>"


def boxes(lane: Lane) -> list[tuple[str, str, float, float]]:
    """Kind, text, left edge and width of each position."""
    placed, x = [], float(LEFT)
    for cell in lane.cells.split():
        kind, _, words = cell.partition(":")
        words = words.replace("_", " ")
        width = max(CELL, 7.0 * len(words) + 14)
        placed.append((kind, words, x, width))
        x += width + GAP
    assert x <= WIDTH, f"{lane.label}: {x:.0f} wide, and the picture {WIDTH}"
    return placed


def cell(kind: str, words: str, x: float, y: float, width: float) -> str:
    """One position."""
    dash = ' stroke-dasharray="3 2"' if kind == "m" else ""
    round_ = 15 if kind == "z" else 4
    box = f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{CELL}" rx="{round_}"'
    return f'{box} fill="{FILLS[kind]}" stroke="{STROKES[kind]}"{dash}/>' + text(x + width / 2, y + 19, words)


def lane_drawn(lane: Lane, y: float, crossed: bool) -> list[str]:
    """A lane with its arrows; ``y`` is the upper edge of its positions, and links cross the place under them or not."""
    placed = boxes(lane)
    middle = [x + width / 2 for _, _, x, width in placed]
    drawn = [cell(kind, words, x, y, width) for kind, words, x, width in placed]
    lines = lane.label.split("|")
    drawn += [
        text(14, y + 19 - 7 * (len(lines) - 1) + 14 * at, line, colour=GREY, anchor="start")
        for at, line in enumerate(lines)
    ]
    for start, end in lane.feed:
        a, b = middle[start] + 4, middle[end] - 4
        drawn.append(
            f'<path d="M{a:.0f} {y:.0f} C{a:.0f} {y - 20:.0f} {b:.0f} {y - 20:.0f} {b:.0f} {y - 2:.0f}" fill="none" '
            f'stroke="{FEED}" stroke-width="1.5" marker-end="url(#feed)"/>'
        )
    for first, last, name in lane.losses:
        a, b = placed[first][2], placed[last][2] + placed[last][3]
        drawn.append(
            f'<path d="M{a:.0f} {y + 36:.0f} v4 H{b:.0f} v-4" fill="none" stroke="{LOSS}" stroke-width="1.5"/>'
        )
        drawn.append(text((a + b) / 2, y + 54, name, colour=LOSS))
    if lane.gradient is not None:
        start, end = lane.gradient
        a, b = middle[start], middle[end]
        drawn.append(
            f'<path d="M{a:.0f} {y + 62:.0f} H{b:.0f}" fill="none" stroke="{LOSS}" stroke-width="1.5" '
            'stroke-dasharray="5 3" marker-end="url(#loss)"/>'
        )
    if lane.note:
        right = placed[-1][2] + placed[-1][3] + 12
        x, line = (right, y + 19) if crossed else (LEFT, y + (78 if lane.losses else 52))
        drawn.append(text(x, line, lane.note, colour=GREY, anchor="start"))
    return drawn


def link_drawn(link: Link, lanes: tuple[Lane, ...], tops: list[float]) -> list[str]:
    """A link between two lanes, with its name beside its middle."""
    (upper, at), (lower, to) = link.start, link.end
    _, _, x, width = boxes(lanes[upper])[at]
    a, top = x + width / 2, tops[upper] + CELL
    _, _, x, width = boxes(lanes[lower])[to]
    b, bottom = x + width / 2, tops[lower] - 2
    if lower < upper:
        top, bottom = tops[upper], tops[lower] + CELL + 2
    colour, end = (LOSS, "loss") if link.loss else (FEED, "feed")
    dash = ' stroke-dasharray="5 3"' if link.loss else ""
    path = f'<path d="M{a:.0f} {top:.0f} L{b:.0f} {bottom:.0f}" stroke="{colour}" stroke-width="1.5"{dash}'
    name = text((a + b) / 2 + 8, (top + bottom) / 2 + 4, link.label, colour=colour, anchor="start")
    return [f'{path} marker-end="url(#{end})"/>', name]


def legend(kinds: Iterable[str], feeds: bool, losses: bool, y: float) -> list[str]:
    """What the shapes mean, of those that occur."""
    drawn, x = [], 14.0
    for kind in kinds:
        dash = ' stroke-dasharray="3 2"' if kind == "m" else ""
        drawn.append(
            f'<rect x="{x:.0f}" y="{y - 10:.0f}" width="14" height="14" rx="{7 if kind == "z" else 3}" '
            f'fill="{FILLS[kind]}" stroke="{STROKES[kind]}"{dash}/>'
        )
        drawn.append(text(x + 20, y + 2, LEGEND[kind], colour=GREY, size=11, anchor="start"))
        x += 34 + 6.8 * len(LEGEND[kind])
    for shown, colour, name, words in ((feeds, FEED, "feed", "fed back"), (losses, LOSS, "loss", "loss, gradient")):
        if shown:
            drawn.append(
                f'<path d="M{x:.0f} {y - 3:.0f} h20" stroke="{colour}" stroke-width="1.5" marker-end="url(#{name})"/>'
            )
            drawn.append(text(x + 28, y + 2, words, colour=GREY, size=11, anchor="start"))
            x += 44 + 6.8 * len(words)
    return drawn


def svg(picture: Picture) -> str:
    """A picture as a file; it has a background of its own, so that it can be read in a dark page too."""
    tops = [58.0 + LANE * at for at in range(len(picture.lanes))]
    height = 58 + LANE * len(picture.lanes) + 6
    shown = {kind for lane in picture.lanes for kind, *_ in boxes(lane)}
    feeds = any(lane.feed for lane in picture.lanes) or any(not link.loss for link in picture.links)
    losses = any(lane.losses for lane in picture.lanes) or any(link.loss for link in picture.links)
    arrows = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{colour}"/></marker>'
        for name, colour in (("feed", FEED), ("loss", LOSS))
    )
    drawn = [text(14, 24, picture.title, size=13, anchor="start")]
    crossed = {min(link.start[0], link.end[0]) for link in picture.links}
    for at, (lane, y) in enumerate(zip(picture.lanes, tops, strict=True)):
        drawn += lane_drawn(lane, y, at in crossed)
    for link in picture.links:
        drawn += link_drawn(link, picture.lanes, tops)
    drawn += legend([kind for kind in LEGEND if kind in shown], feeds, losses, height - 14)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" font-family="sans-serif">'
    )
    card = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" fill="#fdfdfe" stroke="#d5d9e2"/>'
    title = f"<title>{escape(picture.title)}</title>"
    return "\n".join([head, title, f"<defs>{arrows}</defs>", card, *drawn, "</svg>"]) + "\n"


QUESTION = "q:question"
PICTURES = {
    "jepa_reasoner": Picture(
        title="JEPA-Reasoner: the Reasoner writes the whole chain before the Talker reads it",
        lanes=(
            Lane(
                label="training (SST):|one pass",
                cells=f"{QUESTION} c:5 c:+ c:3 c:= c:8 m:end",
                losses=((0, 5, "k (1 − cos) to the target row of the next token"),),
            ),
            Lane(
                label="answering:|Reasoner",
                cells=f"{QUESTION} z:z1 z:z2 z:z3 z:z4 z:z5 z:z6",
                feed=chain(0, 6),
                note="unit length; the nearest row ends it",
            ),
            Lane(
                label="answering:|Talker",
                cells="a:5 a:+ a:3 a:= a:8 a:end",
                losses=((0, 5, "cross-entropy trains the Talker alone"),),
            ),
        ),
        links=(Link(start=(1, 6), end=(2, 5), label="the finished chain, and nothing else"),),
    ),
    "coupled": Picture(
        title="Coupled Transformer: every token that is written is read again",
        lanes=(
            Lane(
                label="training",
                cells=f"{QUESTION} m:<think> c:5 c:+ c:3 c:= c:8 m:</think> a:8",
                losses=((2, 8, "cross-entropy on chain, marker and answer"),),
            ),
            Lane(
                label="answering",
                cells=f"{QUESTION} m:<think> c:5 c:+ c:3 c:= c:8 m:</think> a:8",
                feed=chain(1, 8),
                note="a token that is chosen is the next input",
            ),
        ),
    ),
    "latent_sft": Picture(
        title="Latent-SFT: an encoder makes latents of the chain; the decoder learns to write them",
        lanes=(
            Lane(
                label="stage 1:|encoder",
                cells=f"{QUESTION} c:5 c:+ z:z1 c:3 c:= z:z2 c:8 z:z3",
                note="no latent sees another one",
            ),
            Lane(
                label="stage 1:|decoder",
                cells=f"{QUESTION} z:z1 c:5 c:+ z:z2 c:3 c:= z:z3 c:8 m:end a:8",
                losses=((2, 3, "CE"), (5, 6, "CE"), (8, 8, "CE"), (9, 10, "CE")),
                note="a chunk sees its own latent alone; the answer sees all latents",
            ),
            Lane(
                label="stage 2,|answering",
                cells=f"{QUESTION} z:z1 z:z2 z:z3 m:</think> a:8",
                feed=chain(0, 3),
                losses=((0, 2, "KL to these latents"), (3, 5, "CE")),
            ),
        ),
        links=(Link(start=(0, 3), end=(1, 1), label=""), Link(start=(0, 6), end=(1, 4), label="")),
    ),
    "coconut": Picture(
        title="Coconut: hidden states replace the explicit steps, one step more in every stage",
        lanes=(
            Lane(
                label="stage 0",
                cells=f"{QUESTION} c:step_1 c:step_2 c:step_3 a:answer",
                losses=((1, 4, "cross-entropy"),),
            ),
            Lane(
                label="stage 1",
                cells=f"{QUESTION} z:z1 z:z2 c:step_2 c:step_3 a:answer",
                feed=chain(0, 2),
                losses=((3, 5, "cross-entropy"),),
                gradient=(5, 1),
            ),
            Lane(
                label="last stage,|answering",
                cells=f"{QUESTION} z:z1 z:z2 z:z3 z:z4 z:z5 z:z6 a:answer",
                feed=chain(0, 6),
                losses=((7, 7, "cross-entropy"),),
                gradient=(7, 1),
                note="a latent is the last hidden state of the position before it",
            ),
        ),
    ),
    "codi": Picture(
        title="CODI: one model is teacher and student in the same step",
        lanes=(
            Lane(
                label="teacher",
                cells=f"{QUESTION} c:step_1 c:step_2 m:box a:8",
                losses=((1, 2, "cross-entropy"), (4, 4, "CE")),
            ),
            Lane(
                label="student,|answering",
                cells=f"{QUESTION} z:z1 z:z2 z:z3 z:z4 z:z5 z:z6 m:box a:8",
                feed=chain(0, 6),
                losses=((8, 8, "CE"),),
                gradient=(8, 1),
                note="a latent is the projected hidden state of the position before it",
            ),
        ),
        links=(Link(start=(0, 3), end=(1, 7), label="distance of the states of all layers", loss=True),),
    ),
    "pccot": Picture(
        title="PCCoT: all latents are guessed at once and refined together",
        lanes=(
            Lane(label="pass 0", cells=f"{QUESTION} p:z p:z p:z p:z", note="every latent is the same learned row"),
            Lane(
                label="pass 1",
                cells=f"{QUESTION} z:z1 z:z2 z:z3 z:z4",
                note="each one is the output of its left neighbour",
            ),
            Lane(
                label="last pass,|answering",
                cells=f"{QUESTION} z:z1 z:z2 z:z3 z:z4 m:box a:8",
                losses=((5, 6, "distance, CE"),),
                note="the distance draws the states of all layers to those of a teacher, as in CODI",
            ),
        ),
        links=(
            Link(start=(0, 1), end=(1, 2), label=""),
            Link(start=(0, 2), end=(1, 3), label=""),
            Link(start=(0, 3), end=(1, 4), label=""),
            Link(start=(1, 1), end=(2, 2), label=""),
            Link(start=(1, 2), end=(2, 3), label=""),
            Link(start=(1, 3), end=(2, 4), label=""),
        ),
    ),
    "colar": Picture(
        title="CoLaR: r tokens of the chain become one vector, for any r",
        lanes=(
            Lane(
                label="explicit chain",
                cells=f"{QUESTION} c:5 c:+ c:3 c:= c:8 c:;",
                note="here r = 2; the question names r",
            ),
            Lane(
                label="training",
                cells=f"{QUESTION} z:5+ z:3= z:8; m:end a:8",
                losses=((0, 2, "next vector, token"), (3, 5, "CE")),
                note="a vector is the sum of the rows of its tokens over the root of their number",
            ),
            Lane(
                label="answering",
                cells=f"{QUESTION} z:z1 z:z2 z:z3 m:end a:8",
                feed=chain(0, 3),
                note="the latent head writes; the model's own head ends the chain",
            ),
        ),
        links=(Link(start=(0, 1), end=(1, 1), label=""), Link(start=(0, 2), end=(1, 1), label="")),
    ),
    "icot": Picture(
        title="iCoT: the explicit chain loses one token more every so many steps",
        lanes=(
            Lane(label="first", cells=f"{QUESTION} c:5 c:+ c:3 c:= c:8 a:8", losses=((1, 6, "cross-entropy"),)),
            Lane(label="later", cells=f"{QUESTION} c:= c:8 a:8", losses=((1, 3, "cross-entropy"),)),
            Lane(
                label="last,|answering",
                cells=f"{QUESTION} a:8",
                losses=((1, 1, "CE"),),
                note="no chain and no latents are left",
            ),
        ),
    ),
    "sim_cot": Picture(
        title="SIM-CoT: another decoder must be able to spell each step from its latents",
        lanes=(
            Lane(
                label="Coconut or|CODI",
                cells=f"{QUESTION} z:z1 z:z2 z:z3 z:z4 a:answer",
                feed=chain(0, 4),
                losses=((5, 5, "its own loss"),),
                gradient=(5, 1),
            ),
            Lane(
                label="auxiliary|decoder",
                cells="z:z1 z:z2 c:step_1 m:| z:z3 z:z4 c:step_2",
                losses=((2, 2, "CE"), (6, 6, "CE")),
                note="in training only; the finished model does not hold it",
            ),
        ),
        links=(Link(start=(0, 1), end=(1, 0), label=""), Link(start=(0, 3), end=(1, 4), label="")),
    ),
    "lotus": Picture(
        title="LOTUS: latents are refined together, and each one is supervised as a token",
        lanes=(
            Lane(label="pass 0", cells=f"{QUESTION} p:z p:z p:z p:z", note="every latent is the same learned row"),
            Lane(
                label="pass 1 to R",
                cells=f"{QUESTION} z:z1 z:z2 z:z3 z:z4",
                note="the row plus the output of the pass before",
            ),
            Lane(
                label="last pass,|answering",
                cells=f"{QUESTION} z:z1 z:z2 z:z3 z:z4 c:step_2 a:8",
                losses=((0, 3, "CE: the token of the next latent"), (5, 6, "CE")),
            ),
        ),
        links=tuple(Link(start=(upper, at), end=(upper + 1, at), label="") for upper in (0, 1) for at in range(1, 5)),
    ),
    "mux": Picture(
        title="MUX: a latent must hold a span of the chain as one distribution",
        lanes=(
            Lane(
                label="explicit chain",
                cells=f"{QUESTION} c:5 c:+ c:3 c:= c:8 c:;",
                note="earlier tokens of a span weigh more",
            ),
            Lane(
                label="CODI or|Coconut",
                cells=f"{QUESTION} z:z1 z:z2 m:box a:8",
                feed=chain(0, 2),
                losses=((1, 2, "KL"), (4, 4, "its own loss")),
                gradient=(4, 1),
            ),
        ),
        links=(
            Link(start=(0, 2), end=(1, 1), label="", loss=True),
            Link(start=(0, 5), end=(1, 2), label="", loss=True),
        ),
    ),
    "pause": Picture(
        title="Pause tokens: more positions to compute in, and nothing is fed back",
        lanes=(
            Lane(
                label="training,|answering",
                cells=f"{QUESTION} m:<think> p:… p:… p:… p:… p:… p:… m:</think> a:8",
                losses=((9, 9, "CE"),),
                note="one pass reads question and pauses",
            ),
        ),
    ),
    "budget_forcing": Picture(
        title="NoThink and budget forcing: an explicit chain is closed by force; nothing is trained",
        lanes=(
            Lane(
                label="NoThink",
                cells=f"{QUESTION} m:<think> p:Okay,_I_have_finished m:</think> a:8",
                note="one given sentence stands for the chain",
            ),
            Lane(
                label="budget forcing",
                cells=f"{QUESTION} m:<think> c:5 c:+ c:3 c:= m:</think> a:8",
                feed=chain(1, 5),
                note="after the budget, here of four tokens, the end marker is appended by force",
            ),
        ),
    ),
    "soft_thinking": Picture(
        title="Soft Thinking: a mean of the likeliest tokens is fed back",
        lanes=(
            Lane(
                label="answering;|no training",
                cells=f"{QUESTION} m:<think> z:z1 z:z2 z:z3 z:z4 m:</think> a:8",
                feed=chain(1, 5),
                note="z = sum of p(v) · row(v) over the k likeliest tokens v",
            ),
        ),
    ),
}


def main() -> None:
    """Write every picture."""
    for name, picture in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(svg(picture))


if __name__ == "__main__":
    main()
