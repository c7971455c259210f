"""What one row goes through: its chain, the marker, its answer."""

from __future__ import annotations

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
