"""The token sequences of Latent-SFT: what stands where, what it is, and what is supervised.

A chain of thought is cut into chunks ``S_1 .. S_N`` of r tokens (r is the compression rate, the last chunk may be
shorter), and each chunk has a slot for one latent ``Z_i``. Spans come from the task and are never searched for, so
marker ids may occur anywhere in a text. Every function below takes the problems, the ids around the chain, ``rate``
(tokens a chunk) and the id at padding and at slots; an empty batch, a rate below 1, or an empty chain where there must
be latents, is a ValueError.

Source: Latent-SFT (arXiv 2510.15522), latent token induction and supervision; the positions are those of its second
version.

Axes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unspoken.places import places_of
from unspoken.tasks.spans import Markers, Spans


class Kind(IntEnum):
    """What a token is."""

    PROMPT = 0  # the question and the open marker
    TEXT = 1  # a word of the explicit chain
    LATENT = 2
    FINAL = 3  # the end marker and the answer


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A batch of sequences, padded on the right."""

    ids: Int[Tensor, "B T"]  # the padding id at padding and at latent slots
    kind: Int[Tensor, "B T"]  # one `Kind` a token; FINAL at padding, where it is never read
    # ``[B, T]``, the number i, from 1, of a latent ``Z_i``, of the latent that chunk text follows (decoder) or of the
    # chunk that the text belongs to (encoder); 0 everywhere else.
    chunk: Int[Tensor, "B T"]
    position: Int[Tensor, "B T"]  # position ids, 0 at padding
    length: Int[Tensor, " B"]  # real tokens of each row
    target: Bool[Tensor, "B T"]  # true where token t is predicted by the output at t - 1 and supervised
    slots_at: Int[Tensor, " N"]  # places of the latents, row by row, from left to right
    targets_at: Int[Tensor, " M"]  # places of the targets, in the same order
    latents: tuple[int, ...]  # number of latents of every row

    @property
    def real(self) -> Bool[Tensor, "B T"]:
        """True at tokens that are not padding."""
        return torch.arange(self.ids.shape[1], device=self.length.device) < self.length[:, None]

    @property
    def slots(self) -> Bool[Tensor, "B T"]:
        """True at latents."""
        return self.kind == Kind.LATENT

    def to(self, device: torch.device | str, *, non_blocking: bool) -> Rows:
        """The same rows on a device; ``non_blocking`` copies pinned ones without waiting for it."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Rows:
        """The same rows in pinned memory; the loader calls it."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, move: Callable[[Tensor], Tensor]) -> Rows:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors: dict[str, Any] = {name: move(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


def latents_of(chain_length: int, rate: int) -> int:
    """Number of latents of a chain: its length over the compression rate, rounded up; a ValueError below rate 1."""
    if rate < 1:
        raise ValueError(f"the compression rate is {rate}; it must be at least 1 token per latent")
    return -(-chain_length // rate)


def encoder_rows(spans: Sequence[Spans], markers: Markers, *, rate: int, pad_id: int) -> Rows:
    """Input of the latent token encoder: ``prompt | open | S_1 L_1 S_2 L_2 .. S_N L_N | end``, without targets."""
    rows = []
    for row, latents in _with_latents(spans, rate):
        head = row.prompt + markers.open
        runs, position = [_Run(head, Kind.PROMPT, 0)], len(head)
        for number in range(1, latents + 1):
            text = row.chain[(number - 1) * rate : number * rate]
            runs.append(_Run(text, Kind.TEXT, position, number))
            runs.append(_Run((pad_id,), Kind.LATENT, position + len(text), number))
            position += len(text) + 1
        rows.append([*runs, _Run(markers.end, Kind.FINAL, position)])
    return _batch(rows, pad_id)


def decoder_rows(
    spans: Sequence[Spans],
    markers: Markers,
    *,
    rate: int,
    pad_id: int,
    positions: Literal["two_track", "plain"] = "two_track",
) -> Rows:
    """Input of the decoder in stage 1: ``prompt | open | Z_1 S_2 Z_2 .. S_N Z_N | end | answer``.

    ``S_1`` is missing, because nothing stands before it that could predict it. Targets are the chunk text, the end
    marker and the answer: ``Z_i`` predicts the first token of ``S_{i+1}``, and ``Z_N`` that of the end marker.

    Args:
        positions: "two_track" counts latents, end and answer as `compact_rows` does, as if no chunk text stood between
            them, and chunk text on from its latent; "plain" counts every token.
    """
    rows = []
    for row, latents in _with_latents(spans, rate):
        head = row.prompt + markers.open
        runs, position = [_Run(head, Kind.PROMPT, 0)], len(head)
        for number in range(1, latents + 1):
            text = row.chain[number * rate : (number + 1) * rate]
            runs.append(_Run((pad_id,), Kind.LATENT, position, number))
            runs.append(_Run(text, Kind.TEXT, position + 1, number, target=True))
            position += 1 if positions == "two_track" else 1 + len(text)
        rows.append([*runs, _Run(markers.end + row.answer, Kind.FINAL, position, target=True)])
    return _batch(rows, pad_id)


def compact_rows(spans: Sequence[Spans], markers: Markers, *, rate: int, pad_id: int) -> Rows:
    """Input of stage 2 and of inference: ``prompt | open | Z_1 .. Z_N | end | answer``.

    Targets are the end marker and the answer. An empty chain has no latents.
    """
    rows = []
    for row, latents in _with_latents(spans, rate, needs_chain=False):
        head = row.prompt + markers.open
        slots = [_Run((pad_id,), Kind.LATENT, len(head) + before, before + 1) for before in range(latents)]
        tail = _Run(markers.end + row.answer, Kind.FINAL, len(head) + latents, target=True)
        rows.append([_Run(head, Kind.PROMPT, 0), *slots, tail])
    return _batch(rows, pad_id)


def explicit_rows(spans: Sequence[Spans], markers: Markers, *, pad_id: int) -> Rows:
    """Ordinary text: ``prompt | open | chain | end | answer``. Targets are the chain, the end marker and the answer."""
    rows = []
    for row in spans:
        head = row.prompt + markers.open
        text = _Run(row.chain, Kind.TEXT, len(head), target=True)
        tail = _Run(markers.end + row.answer, Kind.FINAL, len(head) + len(row.chain), target=True)
        rows.append([_Run(head, Kind.PROMPT, 0), text, tail])
    return _batch(rows, pad_id)


class _Run(NamedTuple):
    """Neighbouring tokens that differ in nothing but their position, which counts up by one."""

    ids: Sequence[int]
    kind: Kind
    position: int  # of the first token
    chunk: int = 0
    target: bool = False


def _with_latents(spans: Sequence[Spans], rate: int, *, needs_chain: bool = True) -> Iterator[tuple[Spans, int]]:
    """The problems with their numbers of latents."""
    for index, row in enumerate(spans):
        if needs_chain and not row.chain:
            raise ValueError(
                f"problem {index} of the batch has an empty chain, which has no latents to learn from; drop it"
            )
        yield row, latents_of(len(row.chain), rate)


def _integers(numbers: Iterable[int]) -> Tensor:
    """Numbers as a tensor, much faster than ``torch.tensor`` reads a nested list."""
    return torch.from_numpy(np.fromiter(numbers, dtype=np.int64))


def _batch(rows: Sequence[Sequence[_Run]], pad_id: int) -> Rows:
    """Pad rows, given as the runs that make them up, to the longest."""
    if not rows:
        raise ValueError("the batch is empty; give at least one problem")
    length = torch.tensor([sum(len(run.ids) for run in row) for row in rows])
    real = torch.arange(int(length.max())) < length[:, None]
    # All rows in one line, without padding: "real" takes and gives places in this order.
    ids = _integers(token for row in rows for run in row for token in run.ids)
    runs = _integers(number for row in rows for run in row for number in (len(run.ids), *run[1:])).view(-1, 5)
    _, kind, position, chunk, target = runs.repeat_interleave(runs[:, 0], dim=0).unbind(dim=1)
    first = (runs[:, 0].cumsum(dim=0) - runs[:, 0]).repeat_interleave(runs[:, 0])
    within = torch.arange(len(ids)) - first

    def spread(values: Tensor, filler: int) -> Tensor:
        spread_BT = torch.full(real.shape, filler)
        spread_BT[real] = values
        return spread_BT

    kind_BT, target_BT = spread(kind, Kind.FINAL), spread(target, 0).bool()
    return Rows(
        ids=spread(ids, pad_id),
        kind=kind_BT,
        chunk=spread(chunk, 0),
        position=spread(position + within, 0),
        length=length,
        target=target_BT,
        slots_at=places_of(kind_BT == Kind.LATENT),
        targets_at=places_of(target_BT),
        latents=tuple((kind_BT == Kind.LATENT).sum(dim=1).tolist()),
    )
