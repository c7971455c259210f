"""Chains of word problems as strips: what each latent is made of, above the explicit tokens in its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import zip_longest
from typing import Any

from unspoken.report.findings import Results, baseline, label, words
from unspoken.report.formats import coefficient, count
from unspoken.report.markup import Section, prose

SHOWN_STEPS = 35  # of a chain that ran on to its cap nothing more is learned
_SPACES = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})


def strips_section(results: Results) -> Section | None:
    """Chains of some problems, a column a latent; all systems but the first are folded."""
    entries = words(results).get("strips", ())
    if not entries:
        return None
    # One scale for all strips, so that columns of two of them can be compared.
    most = max((step["entropy"] for entry in entries for step in entry["steps"]), default=0.0) or 1.0
    groups: dict[str, list[str]] = {name: [] for name in _most_telling_first(results, entries)}
    for entry in entries:
        groups[entry["system"]].append(_strip(results, entry, most))
    key = (
        '<p class="legend example-key"><span class="key shared">also in the explicit piece below</span>'
        '<span class="key unshared">not there</span><span class="key c4 tall">entropy of the latent</span>'
        '<span class="key piece">piece of the explicit chain</span></p>'
    )
    folded = "".join(
        f'<details class="strips"{"" if index else " open"}><summary>{escape(label(results, name))} '
        f"<span>{count(len(strips), 'chain')}</span></summary>{''.join(strips)}</details>"
        for index, (name, strips) in enumerate(groups.items())
    )
    caption = (
        "A column is one latent: its most likely tokens with the weights that were fed back, and their entropy in nats, on one "
        "scale for all strips. The band below, read along, is the explicit chain of the problem, cut where training cuts it; each "
        "piece stands under the latent in its place. Several blue tokens in one column are explicit tokens that share one latent."
    )
    body = f'{key}{folded}<p class="caption">{prose(caption)}</p>'
    return Section(key="strips", title="Chains, latent by latent", body=body)


def _most_telling_first(results: Results, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The systems: latents above explicit pieces, then latents alone, then explicit chains."""
    cut = {entry["system"] for entry in entries if entry["chunks"]}
    names = dict.fromkeys(entry["system"] for entry in entries)
    return sorted(names, key=lambda name: (name == baseline(results), name not in cut))


def _strip(results: Results, entry: Mapping[str, Any], most: float) -> str:
    pieces = entry["chunks"]
    columns = list(zip_longest(entry["steps"], pieces))
    cards = [
        _card(number, step, (piece or "") if pieces else None, most)
        for number, (step, piece) in enumerate(columns[:SHOWN_STEPS], start=1)
    ]
    if len(columns) > SHOWN_STEPS:
        cards.append(f'<li class="latent more"><p>and {count(len(columns) - SHOWN_STEPS, "more step")}</p></li>')
    verdict = "right" if entry["correct"] else "wrong"
    kind = f"{entry['kind'][:1].upper()}{entry['kind'][1:]}"
    told = "" if entry["kind"] == verdict else f"{verdict}, "
    told += count(len(entry["steps"]), "token" if entry["system"] == baseline(results) else "latent")
    name = f"{label(results, entry['system'])}, {entry['kind']}: {told}"
    return (
        f'<div class="example"><h4>{escape(kind)} <span>{escape(told)}</span></h4>'
        f'<p class="question">{escape(entry["question"])}</p>'
        f'<p class="told">said <code>{escape(entry["said"]) or "nothing"}</code>, the answer is '
        f"<code>{escape(entry['answer'])}</code></p>"
        f'<ol class="chain{"" if pieces else " bare"}" tabindex="0" aria-label="{escape(name)}">{"".join(cards)}</ol></div>'
    )


def _card(number: int, step: Mapping[str, Any] | None, piece: str | None, most: float) -> str:
    """One latent; ``step`` is None where the chain has ended, ``piece`` where the explicit chain was not cut."""
    shared, band = _shared([text for text, _ in step["tokens"]] if step else [], piece or "")
    below = f'<p class="piece">{band}</p>' if band else '<p class="piece none">–</p>'
    if piece is None:
        below = ""
    if step is None:
        return f'<li class="latent none"><p class="step"><b>–</b></p><p class="tokens">no latent</p>{below}</li>'
    rows = "".join(
        f'<li class="{"shared" if text in shared else "unshared"}" style="--w:{100 * weight:.0f}%" title="{escape(text)}">'
        f"<code>{escape(visible(text))}</code> <span>{coefficient(weight)}</span></li>"
        for text, weight in step["tokens"]
    )
    return (
        f'<li class="latent"><p class="step"><b>{number}</b> <span>{coefficient(step["entropy"])} nats</span></p>'
        f'<div class="tokens"><ul>{rows}</ul><span class="entropy" style="--e:{100 * step["entropy"] / most:.0f}%"></span>'
        f"</div>{below}</li>"
    )


def visible(token: str) -> str:
    """A token with its white space made visible."""
    return token.translate(_SPACES) or "∅"


def _shared(tokens: Sequence[str], piece: str) -> tuple[set[str], str]:
    """The tokens that occur in a piece of the explicit chain, and the piece as HTML with them marked.

    A token occurs where it neither begins nor ends inside a word or number: there is no 1 in 18.
    """
    patterns = {token: _whole(token.strip()) for token in tokens if token.strip()}
    shared = {token for token, pattern in patterns.items() if re.search(pattern, piece)}
    # Of tokens that begin in one place the longest is marked.
    longest_first = sorted((patterns[token] for token in shared), key=len, reverse=True)
    band, end = "", 0
    for match in re.finditer("|".join(longest_first), piece) if shared else ():
        band += f"{escape(piece[end : match.start()])}<mark>{escape(match[0])}</mark>"
        end = match.end()
    return shared, band + escape(piece[end:])


def _whole(token: str) -> str:
    before = r"(?<![^\W_])" if token[0].isalnum() else ""
    after = r"(?![^\W_])" if token[-1].isalnum() else ""
    return before + re.escape(token) + after
