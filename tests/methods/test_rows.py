"""What stands where: the paper's example by hand, and what must hold for any problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.methods.rows import Kind, Rows, compact_rows, decoder_rows, encoder_rows, explicit_rows, latents_of
from unspoken.tasks.spans import Markers, Spans

PAD = 0
ONE, THREE = Markers(open=(3,), end=(4,)), Markers(open=(5, 3, 6), end=(7, 3, 6))
# Question q1 q2, chain c1 .. c5, answer a1 and end-of-sequence; two tokens a latent.
EXAMPLE = Spans(prompt=(11, 12), steps=((21, 22, 23, 24, 25),), answer=(31, 1))
NAMES = {11: "q1", 12: "q2", 21: "c1", 22: "c2", 23: "c3", 24: "c4", 25: "c5", 31: "a1", 1: "a2"}
P, T, L, F = Kind.PROMPT, Kind.TEXT, Kind.LATENT, Kind.FINAL

COMPRESSED: dict[str, Callable[..., Rows]] = {
    "encoder": encoder_rows,
    "decoder": decoder_rows,
    "compact": compact_rows,
}
LAYOUTS = [*COMPRESSED, "explicit"]

tokens = st.integers(0, 40)  # padding, end-of-sequence and marker ids included
Texts = list[tuple[list[int], list[int], list[int]]]  # prompt, chain and answer of each problem
batches = st.lists(
    st.tuples(
        st.lists(tokens, max_size=4), st.lists(tokens, min_size=1, max_size=9), st.lists(tokens, min_size=1, max_size=3)
    ),
    min_size=1,
    max_size=4,
)


def problems(texts: Texts) -> list[Spans]:
    return [Spans(prompt=tuple(prompt), steps=(tuple(chain),), answer=tuple(answer)) for prompt, chain, answer in texts]


def lay_out(layout: str, batch: list[Spans], markers: Markers = ONE, *, rate: int = 2) -> Rows:
    if layout in COMPRESSED:
        return COMPRESSED[layout](batch, markers, rate=rate, pad_id=PAD)
    return explicit_rows(batch, markers, pad_id=PAD)


def named(rows: Rows, markers: Markers = ONE) -> str:
    """The tokens of the only row by the names of the paper's example; those of a long end marker are numbered."""
    names = NAMES | ({3: "B", 4: "E"} if markers is ONE else {})
    ends = iter(["E1", "E2", "E3"])
    written = []
    for token, kind, number in zip(rows.ids[0].tolist(), rows.kind[0].tolist(), rows.chunk[0].tolist(), strict=True):
        if kind == L:
            written.append(f"Z{number}")
        elif token in names:
            written.append(names[token])
        else:
            written.append("B" if kind == P else next(ends))
    return " ".join(written)


def supervised(rows: Rows, markers: Markers = ONE) -> str:
    """Which token's output predicts which."""
    names, targets = named(rows, markers).split(), rows.target[0].tolist()
    return " ".join(f"{names[t - 1]}->{names[t]}" for t in range(len(names)) if targets[t])


def alone(rows: Rows, row: int) -> dict[str, list[int]]:
    """The real part of one row, field by field."""
    vectors = ("ids", "kind", "chunk", "position", "target")
    return {name: getattr(rows, name)[row, : int(rows.length[row])].tolist() for name in vectors}


# --- the example -----------------------------------------------------------------------------------------------------


def test_the_encoder_reads_each_chunk_and_then_its_slot() -> None:
    rows = encoder_rows([EXAMPLE], ONE, rate=2, pad_id=PAD)
    assert rows.ids.tolist() == [[11, 12, 3, 21, 22, PAD, 23, 24, PAD, 25, PAD, 4]]
    assert rows.kind.tolist() == [[P, P, P, T, T, L, T, T, L, T, L, F]]
    assert rows.chunk.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 0]]
    assert rows.position.tolist() == [list(range(12))]
    assert not rows.target.any()


def test_the_decoder_writes_each_chunk_after_the_latent_before_it() -> None:
    rows = decoder_rows([EXAMPLE], ONE, rate=2, pad_id=PAD)
    assert named(rows) == "q1 q2 B Z1 c3 c4 Z2 c5 Z3 E a1 a2"
    assert rows.ids.tolist() == [[11, 12, 3, PAD, 23, 24, PAD, 25, PAD, 4, 31, 1]]
    assert rows.kind.tolist() == [[P, P, P, L, T, T, L, T, L, F, F, F]]
    assert rows.chunk.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 3, 0, 0, 0]]
    assert rows.slots.tolist() == [[kind == L for kind in rows.kind[0].tolist()]]


def test_positions_of_the_example_run_in_two_tracks() -> None:
    assert decoder_rows([EXAMPLE], ONE, rate=2, pad_id=PAD).position.tolist() == [[0, 1, 2, 3, 4, 5, 4, 5, 5, 6, 7, 8]]


def test_plain_positions_count_every_token() -> None:
    rows = decoder_rows([EXAMPLE], ONE, rate=2, pad_id=PAD, positions="plain")
    assert rows.position.tolist() == [list(range(12))]


@pytest.mark.parametrize(
    ("markers", "pairs"),
    [
        (ONE, "Z1->c3 c3->c4 Z2->c5 Z3->E E->a1 a1->a2"),
        (THREE, "Z1->c3 c3->c4 Z2->c5 Z3->E1 E1->E2 E2->E3 E3->a1 a1->a2"),
    ],
    ids=["marker of one token", "marker of three tokens"],
)
def test_supervised_pairs_of_the_example(markers: Markers, pairs: str) -> None:
    assert supervised(decoder_rows([EXAMPLE], markers, rate=2, pad_id=PAD), markers) == pairs


@pytest.mark.parametrize(
    ("rate", "order", "positions"),
    [
        (1, "q1 q2 B Z1 c2 Z2 c3 Z3 c4 Z4 c5 Z5 E a1 a2", [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10]),
        (3, "q1 q2 B Z1 c4 c5 Z2 E a1 a2", [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]),
        (5, "q1 q2 B Z1 E a1 a2", [0, 1, 2, 3, 4, 5, 6]),
        (9, "q1 q2 B Z1 E a1 a2", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_other_rates(rate: int, order: str, positions: list[int]) -> None:
    rows = decoder_rows([EXAMPLE], ONE, rate=rate, pad_id=PAD)
    assert named(rows) == order
    assert rows.position.tolist() == [positions]


def test_stage_two_has_the_latents_in_one_piece() -> None:
    rows = compact_rows([EXAMPLE], THREE, rate=2, pad_id=PAD)
    assert rows.ids.tolist() == [[11, 12, 5, 3, 6, PAD, PAD, PAD, 7, 3, 6, 31, 1]]
    assert rows.kind.tolist() == [[P] * 5 + [L] * 3 + [F] * 5]
    assert rows.chunk.tolist() == [[0, 0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0]]
    assert rows.position.tolist() == [list(range(13))]
    assert supervised(rows, THREE) == "Z3->E1 E1->E2 E2->E3 E3->a1 a1->a2"


def test_stage_two_without_a_chain_goes_from_one_marker_to_the_other() -> None:
    rows = compact_rows([Spans(prompt=(11, 12), steps=(), answer=(31, 1))], ONE, rate=2, pad_id=PAD)
    assert named(rows) == "q1 q2 B E a1 a2"
    assert supervised(rows) == "B->E E->a1 a1->a2"
    assert not rows.slots.any()


def test_a_row_without_an_answer_stops_where_a_model_goes_on() -> None:
    rows = compact_rows([Spans(prompt=(11, 12), steps=((21, 22, 23),), answer=())], ONE, rate=2, pad_id=PAD)
    assert named(rows) == "q1 q2 B Z1 Z2 E"


def test_explicit_text() -> None:
    rows = explicit_rows([EXAMPLE], ONE, pad_id=PAD)
    assert rows.ids.tolist() == [[11, 12, 3, 21, 22, 23, 24, 25, 4, 31, 1]]
    assert rows.kind.tolist() == [[P] * 3 + [T] * 5 + [F] * 3]
    assert rows.chunk.tolist() == [[0] * 11]
    assert rows.position.tolist() == [list(range(11))]
    assert supervised(rows) == "B->c1 c1->c2 c2->c3 c3->c4 c4->c5 c5->E E->a1 a1->a2"


def test_explicit_text_of_an_empty_chain() -> None:
    rows = explicit_rows([Spans(prompt=(11,), steps=(), answer=(1,))], ONE, pad_id=PAD)
    assert supervised(rows) == "B->E E->a2"


def test_a_short_row_is_padded_on_the_right() -> None:
    short = Spans(prompt=(12,), steps=((21,),), answer=(1,))
    right = decoder_rows([EXAMPLE, short], ONE, rate=2, pad_id=9)
    assert right.ids[1].tolist() == [12, 3, 9, 4, 1] + [9] * 7
    assert right.kind[1].tolist() == [P, P, L] + [F] * 9
    assert right.position[1].tolist() == [0, 1, 2, 3, 4] + [0] * 7
    assert right.real[1].tolist() == [True] * 5 + [False] * 7
    assert right.length.tolist() == [12, 5]


# --- any problem -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@given(texts=batches, rate=st.integers(1, 4), markers=st.sampled_from([ONE, THREE]))
@settings(max_examples=25, deadline=None)
def test_padding_changes_nothing_in_rows(layout: str, texts: Texts, rate: int, markers: Markers) -> None:
    batch = problems(texts)
    together = lay_out(layout, batch, markers, rate=rate)
    for row, problem in enumerate(batch):
        single = lay_out(layout, [problem], markers, rate=rate)
        assert alone(together, row) == alone(single, 0)
    assert (together.ids[~together.real] == PAD).all()
    assert not together.target[~together.real].any()


@given(texts=batches, rate=st.integers(1, 4), markers=st.sampled_from([ONE, THREE]))
@settings(max_examples=60, deadline=None)
def test_text_is_kept_in_order_and_slots_agree(texts: Texts, rate: int, markers: Markers) -> None:
    batch = problems(texts)
    encoder, decoder, compact = (build(batch, markers, rate=rate, pad_id=PAD) for build in COMPRESSED.values())
    for row, problem in enumerate(batch):
        before, after = problem.prompt + markers.open, markers.end + problem.answer
        for rows, text in (
            (encoder, before + problem.chain + markers.end),
            (decoder, before + problem.chain[rate:] + after),
            (compact, before + after),
        ):
            words = rows.real[row] & ~rows.slots[row]
            assert tuple(rows.ids[row, words].tolist()) == text
            assert rows.slots[row].sum() == math.ceil(len(problem.chain) / rate)
            assert rows.chunk[row, rows.slots[row]].tolist() == list(range(1, int(rows.slots[row].sum()) + 1))
        chunk_of = [1 + index // rate for index in range(len(problem.chain))]
        assert encoder.chunk[row, encoder.kind[row] == T].tolist() == chunk_of
        # A word of chunk i + 1 follows latent i.
        assert decoder.chunk[row, decoder.kind[row] == T].tolist() == [number - 1 for number in chunk_of[rate:]]


@given(texts=batches, rate=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_main_track_of_the_decoder_is_the_input_of_stage_two(texts: Texts, rate: int) -> None:
    batch = problems(texts)
    decoder = decoder_rows(batch, THREE, rate=rate, pad_id=PAD)
    compact = compact_rows(batch, THREE, rate=rate, pad_id=PAD)
    main = decoder.real & (decoder.kind != T)
    for name in ("ids", "kind", "chunk", "position"):
        assert getattr(decoder, name)[main].tolist() == getattr(compact, name)[compact.real].tolist()
    # Both teach the end marker and the answer.
    assert decoder.target[main].tolist() == compact.target[compact.real].tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_of_markers_and_padding_within_a_text_change_nothing(layout: str) -> None:
    usual = Spans(prompt=(11, 12, 13, 14), steps=((21, 22, 23, 24, 25),), answer=(31, 32, 1))
    nasty = Spans(prompt=(3, 4, PAD, 7), steps=((4, PAD, 3, 7, 5),), answer=(3, PAD, 4))
    expected, actual = (lay_out(layout, [spans]) for spans in (usual, nasty))
    for name in ("kind", "chunk", "position", "length", "target"):
        assert torch.equal(getattr(expected, name), getattr(actual, name))
    assert actual.ids[0, :4].tolist() == [3, 4, PAD, 7]


@pytest.mark.parametrize(("length", "rate", "latents"), [(0, 3, 0), (1, 3, 1), (3, 3, 1), (4, 3, 2), (5, 1, 5)])
def test_number_of_latents(length: int, rate: int, latents: int) -> None:
    assert latents_of(length, rate) == latents


@pytest.mark.parametrize("build", [encoder_rows, decoder_rows, compact_rows])
def test_places_and_counts_are_those_of_the_masks(build: Any) -> None:
    rows = build([EXAMPLE, Spans(prompt=(12,), steps=((19,),), answer=(1,))], ONE, rate=2, pad_id=PAD)
    flat = torch.arange(rows.ids.numel()).view_as(rows.ids)
    assert torch.equal(rows.slots_at, flat[rows.slots])
    assert torch.equal(rows.targets_at, flat[rows.target])
    assert rows.latents == tuple(rows.slots.sum(dim=1).tolist())
    # Each has an output before it in its own row.
    assert (torch.cat([rows.slots_at, rows.targets_at]) % rows.ids.shape[1] > 0).all()


def test_rows_move_as_a_whole() -> None:
    moved = decoder_rows([EXAMPLE], ONE, rate=2, pad_id=PAD).to("meta", non_blocking=True)
    pieces = [getattr(moved, field.name) for field in fields(moved)]
    assert {piece.device.type for piece in pieces if isinstance(piece, torch.Tensor)} == {"meta"}


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [encoder_rows, decoder_rows])
def test_a_chain_without_tokens_has_nothing_to_compress(build: Callable[..., Rows]) -> None:
    empty = Spans(prompt=(11,), steps=(), answer=(1,))
    with pytest.raises(
        ValueError, match="problem 1 of the batch has an empty chain, which has no latents to learn from; drop it"
    ):
        build([EXAMPLE, empty], ONE, rate=2, pad_id=PAD)


@pytest.mark.parametrize("build", COMPRESSED.values(), ids=COMPRESSED)
def test_a_rate_below_one_is_refused(build: Callable[..., Rows]) -> None:
    with pytest.raises(ValueError, match="rate is 0; it must be at least 1"):
        build([EXAMPLE], ONE, rate=0, pad_id=PAD)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_batch_is_refused(layout: str) -> None:
    with pytest.raises(ValueError, match="batch is empty"):
        lay_out(layout, [])


@pytest.mark.parametrize("empty", ["open", "end"])
def test_a_marker_without_tokens_is_refused(empty: str) -> None:
    ids: dict[str, Any] = {"open": (3,), "end": (4,), empty: ()}
    with pytest.raises(ValueError, match=f"the {empty} marker has no tokens"):
        Markers(**ids)
