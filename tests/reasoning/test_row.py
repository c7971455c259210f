"""What one row goes through: its chain, the marker, its answer."""

from __future__ import annotations

from typing import Any

import pytest

from unspoken.chain import StopReason
from unspoken.reasoning.row import AnswerDecoding, Phase, Row

DECODING = AnswerDecoding(marker=(7, 14), max_tokens=3, end_ids=(8, 1), pad_id=0)


def read(row: Row, done: list[int] | None = None, tokens: tuple[int, ...] = (5, 6, 5)) -> list[int | str]:
    """What a row is fed, step by step, until it is over; ``done`` is what its method says of each latent step."""
    fed: list[int | str] = []
    flags, chosen = iter(done or [0] * row.max_latents), iter(tokens)
    while row.phase is not Phase.OVER:
        left = row.steps_left
        if row.phase is Phase.CHAIN:
            flag = next(flags)
            fed.append("latent" if row.read_latent(flag, not flag) else row.read_marker())
        else:
            fed.append(row.read_marker() if row.phase is Phase.MARKER else row.read_token(next(chosen)))
        assert row.steps_left < left
    return fed


def test_a_done_chain_is_closed_at_once_and_its_last_step_is_not_recorded() -> None:
    row = Row(max_latents=4, decoding=DECODING)
    assert row.steps_left == 4 + 2 + 3
    assert read(row, [0, 0, 1]) == ["latent", "latent", 7, 14, 5, 6, 5]
    assert (row.recorded, row.reason, row.tokens) == ([True, True, False], StopReason.END, [5, 6, 5])


def test_the_last_latent_under_the_cap_is_fed_before_the_marker() -> None:
    row = Row(max_latents=2, decoding=DECODING)
    assert read(row) == ["latent", "latent", 7, 14, 5, 6, 5]
    assert row.reason is StopReason.CAP
    assert row.steps_left == 0


def test_a_fixed_chain_goes_on_whatever_the_method_says() -> None:
    row = Row(max_latents=2, fixed=True, decoding=DECODING)
    assert read(row, [1, 1]) == ["latent", "latent", 7, 14, 5, 6, 5]
    assert (row.recorded, row.reason) == ([True, True], StopReason.FIXED)


def test_too_early_an_end_is_no_end() -> None:
    row = Row(max_latents=4, min_latents=2, decoding=DECODING)
    assert read(row, [1, 0, 1]) == ["latent", "latent", 7, 14, 5, 6, 5]
    assert (row.recorded, row.reason, row.forced) == ([1, 1, 0], StopReason.END, None)


def test_words_take_the_place_of_too_early_an_end_until_there_are_enough_steps() -> None:
    row = Row(max_latents=9, min_latents=4, continuation=(11, 12), decoding=DECODING)
    forced = []
    for done in (0, 1, 1, 1, 0, 1):
        row.read_latent(done, not done)
        forced.append(row.forced)
    # The second word is written although the model ends again, and the third end comes too early once more.
    assert forced == [None, 11, 12, 11, 12, None]
    assert (row.recorded, row.reason, row.phase) == ([1, 1, 1, 1, 1, 0], StopReason.END, Phase.MARKER)


def test_a_cap_comes_before_the_last_of_the_words() -> None:
    row = Row(max_latents=2, min_latents=2, continuation=(11, 12, 13), decoding=DECODING)
    assert read(row, [1, 1]) == ["latent", "latent", 7, 14, 5, 6, 5]
    assert (row.recorded, row.reason) == ([1, 1], StopReason.CAP)


def test_patience_is_spent_on_certain_steps_in_a_row() -> None:
    row = Row(max_latents=9, patience=2, decoding=DECODING)
    for certain in (1, 0, 1, 1):
        assert row.phase is Phase.CHAIN
        row.read_latent(0, 1, certain)
    assert (row.recorded, row.reason, row.phase) == ([1, 1, 1, 0], StopReason.CERTAIN, Phase.MARKER)
    for settings in ({"patience": 0}, {"patience": 2, "fixed": True}):
        row = Row(max_latents=3, decoding=DECODING, **settings)  # type: ignore[arg-type]
        assert [row.read_latent(0, 1, 1) for _ in range(3)] == [True] * 3
        assert row.recorded == [1, 1, 1]
    row = Row(max_latents=9, patience=1, decoding=DECODING)
    row.read_latent(1, 0, 1)
    assert row.reason is StopReason.END


def test_an_end_token_ends_the_answer() -> None:
    row = Row(max_latents=0, decoding=DECODING)
    assert row.phase is Phase.MARKER
    assert read(row, tokens=(5, 1)) == [7, 14, 5, 1]
    assert row.tokens == [5, 1]


def test_a_row_without_an_answer_is_over_with_its_chain() -> None:
    row = Row(max_latents=3)
    assert read(row, [0, 1]) == ["latent", "latent"]
    assert row.reason is StopReason.END
    assert Row(max_latents=0).phase is Phase.OVER


def test_certainty_counts_where_it_is_reported() -> None:
    row = Row(max_latents=3, patience=1, decoding=DECODING)
    assert row.read_latent(0, 1) is True
    assert row.phase is Phase.CHAIN
    assert row.read_latent(0, 1, 1) is False
    assert row.reason is StopReason.CERTAIN


@pytest.mark.parametrize("state", ["phase", "recorded", "reason", "forced", "tokens"])
def test_what_a_row_has_gone_through_is_not_given(state: str) -> None:
    given: dict[str, Any] = {state: getattr(Row(max_latents=3), state)}
    with pytest.raises(TypeError, match=state):
        Row(max_latents=3, **given)
    for counter in ("_certain_steps", "_continuing", "_marker_tokens"):
        with pytest.raises(TypeError, match=counter):
            Row(max_latents=3, **{counter: 0})


def test_rows_do_not_share_what_they_have_written() -> None:
    one, other = Row(max_latents=1, decoding=DECODING), Row(max_latents=1, decoding=DECODING)
    read(one)
    assert (other.recorded, other.tokens, one == other) == ([], [], False)
