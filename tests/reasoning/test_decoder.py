"""Rows that join and leave a decoder are decoded as they would be alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conformance import CLOSE
from tiny_models import PAD, prompts, tiny_language_model, tiny_reasoner
from torch import Tensor

from unspoken.reasoning.cache import ReservedCache
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import Decoder, LatentStep, Reasoner, StopRule, respond, rollout
from unspoken.reasoning.row import AnswerDecoding, Phase, Row

ROWS = [prompt[start:] for prompt, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]
ENDS = {"unspoken": 17, "gpt2": 19}
CAP = 6


def reasoner_of(family: str = "unspoken") -> CausalLMReasoner:
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(ENDS[family], 14), top_k=10)
    return CausalLMReasoner(model=tiny_language_model(family), settings=settings)


def decoding_of(family: str = "unspoken", **how: Any) -> AnswerDecoding:
    return AnswerDecoding(
        **{"marker": (ENDS[family], 14), "max_tokens": 5, "end_ids": (15, 10, 8), "pad_id": PAD, **how}
    )


def decoder(method: Reasoner, prompts: Sequence[Tensor], decoding: AnswerDecoding | None, **how: Any) -> Decoder:
    lengths = [len(prompt) for prompt in prompts]
    padded = torch.stack([torch.nn.functional.pad(one, (max(lengths) - len(one), 0)) for one in prompts])
    rows = [Row(max_latents=CAP, decoding=decoding, index=index) for index in range(len(prompts))]
    return Decoder(method, rows, method.embed_prompt(padded), lengths, **how)


def alone(method: Any, prompt: Tensor, decoding: AnswerDecoding) -> tuple[list[int], int]:
    chain, answer = respond(method, prompt[None], None, StopRule(max_latents=CAP), decoding)
    return answer[0].tolist(), int(chain.lengths[0])


def finish(running: Decoder) -> None:
    while running.rows:
        running.step()
        running.regroup()


@pytest.mark.parametrize(("family", "selective"), [("unspoken", False), ("gpt2", True)])
@torch.no_grad()
def test_rows_that_join_late_are_decoded_as_alone(family: str, selective: bool) -> None:
    method, decoding = reasoner_of(family), decoding_of(family)
    expected = [alone(method, prompt, decoding) for prompt in ROWS]
    assert len({steps for _, steps in expected}) > 1
    running = decoder(method, [ROWS[3], ROWS[1]], decoding, selective=selective)
    rows = {3: running.rows[0], 1: running.rows[1]}
    running.step()
    for index, steps, pieces in ((5, 2, ()), (0, 3, (2, 1)), (2, 1, (1,)), (4, 0, (4,))):
        for _ in range(steps):
            running.step()
            running.regroup()
        joining = decoder(method, [ROWS[index]], decoding, selective=selective)
        left = len(ROWS[index])
        for columns in pieces:
            left -= columns
            assert joining.read(columns) == left == joining.inputs.shape[1]
        joining.step()
        (rows[index],) = joining.rows
        running.regroup(joining)
        # Every row ends in the last column, and no column is kept that no row uses.
        assert running.cache.get_seq_length() == running.columns
        assert min(running.starts, default=0) == 0
    finish(running)
    for index, (tokens, steps) in enumerate(expected):
        assert (rows[index].tokens, sum(rows[index].recorded)) == (tokens, steps)
        assert rows[index].phase is Phase.OVER


@torch.no_grad()
@pytest.mark.parametrize("selective", [None, False, True])
def test_steps_and_scores_are_computed_for_all_rows_or_for_those_that_need_them(
    selective: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, decoding = reasoner_of(), decoding_of()
    sizes: dict[str, list[int]] = {"step": [], "logits": []}
    for name, kept in sizes.items():
        plain = getattr(CausalLMReasoner, name)

        def watched(self: Any, hidden: Tensor, plain: Any = plain, kept: list[int] = kept) -> Any:
            kept.append(len(hidden))
            return plain(self, hidden)

        monkeypatch.setattr(CausalLMReasoner, name, watched)
    running = decoder(method, ROWS, decoding, **({} if selective is None else {"selective": selective}))
    while any(row.phase is not Phase.OVER for row in running.rows):
        waiting = [sum(row.phase is phase for row in running.rows) for phase in (Phase.CHAIN, Phase.ANSWER)]
        for kept in sizes.values():
            kept.clear()
        running.step()
        counts = [count if selective else 6 for count in waiting if count]
        # A step of the chain makes scores too.
        assert sizes["step"] == (counts[:1] if waiting[0] else [])
        assert sorted(sizes["logits"]) == sorted(counts)


@torch.no_grad()
def test_a_cancelled_row_leaves_and_the_others_go_on() -> None:
    method, decoding = reasoner_of(), decoding_of()
    running = decoder(method, ROWS, decoding)
    rows = list(running.rows)
    running.step()
    running.regroup()
    assert running.rows == rows  # nobody left
    rows[0].cancelled = rows[4].cancelled = True
    running.regroup()
    assert running.rows == [rows[index] for index in (1, 2, 3, 5)]
    # Of the others the longest prompt has four tokens.
    assert running.columns == 4
    finish(running)
    for index in (1, 2, 3, 5):
        assert rows[index].tokens == alone(method, ROWS[index], decoding)[0]
    assert rows[0].tokens == rows[4].tokens == []
    last = decoder(method, ROWS[:1], decoding)
    last.step()
    last.rows[0].cancelled = True
    last.regroup()
    assert last.rows == []


@torch.no_grad()
def test_chains_alone_are_decoded_to_their_end() -> None:
    method = tiny_reasoner()
    method.config.eos_token_id = 9
    running = decoder(method, ROWS, None)
    rows, steps = list(running.rows), list[LatentStep]()
    while any(row.phase is not Phase.OVER for row in rows):
        steps += running.step()
    for index, prompt in enumerate(ROWS):
        chain = rollout(method, prompt[None], None, StopRule(max_latents=CAP))
        length = int(chain.lengths[0])
        assert rows[index].recorded == [1] * length
        latents = torch.stack([step.latent[index] for step in steps[:length]])
        torch.testing.assert_close(latents, chain.latents[0], **CLOSE)


@torch.no_grad()
def test_forced_words_replace_steps_of_their_rows_alone() -> None:
    method = reasoner_of()
    free = [rollout(method, prompt[None], None, StopRule(max_latents=CAP)) for prompt in ROWS]
    early = {int(chain.lengths[0]) for chain in free}
    assert len(early) > 1
    stop = StopRule(max_latents=CAP, min_latents=4, continuation=(5, 11))
    ids, mask = (torch.stack(values) for values in zip(*map(_padded, ROWS), strict=True))
    chain, _ = respond(method, ids, mask, stop, decoding_of())
    assert chain.support_ids is not None and chain.support_weights is not None
    table, forced = method.embed_prompt(torch.arange(20)[None])[0], 0
    for row, one in enumerate(free):
        length = int(one.lengths[0])
        torch.testing.assert_close(chain.latents[row, :length], one.latents[0, :length], **CLOSE)
        if length < 4:
            # The model would end here: the two words come instead, each the row of a token.
            forced += 1
            for place, token in ((length, 5), (length + 1, 11)):
                torch.testing.assert_close(chain.latents[row, place], table[token])
                assert (chain.support_ids[row, place] == token).all()
                assert chain.support_weights[row, place].tolist() == [1.0] + [0.0] * 9
    assert 0 < forced < 6


def _padded(prompt: Tensor) -> tuple[Tensor, Tensor]:
    missing = 5 - len(prompt)
    return torch.nn.functional.pad(prompt, (missing, 0)), (torch.arange(5) >= missing).long()


# --- the cache -------------------------------------------------------------------------------------------------------


def cache_of(capacity: int, values: Sequence[Sequence[float]]) -> ReservedCache:
    """A cache of one layer, whose keys are some numbers, a row a batch row, and whose values are ten times as large."""
    config = tiny_language_model("unspoken").config
    cache = ReservedCache(config, capacity)
    cache.layers = cache.layers[:1]
    keys = torch.tensor(values)[:, None, :, None]
    cache.update(keys, 10 * keys, 0)
    return cache


def test_rows_of_other_caches_end_in_the_same_column() -> None:
    long, short = cache_of(9, [[1.0, 2, 3], [4.0, 5, 6]]), cache_of(4, [[7.0]])
    sources = [(long, torch.tensor([1, 0])), (short, torch.tensor([0]))]
    for columns, expected in (
        (2, [[5.0, 6], [2, 3], [0, 7]]),
        (3, [[4.0, 5, 6], [1, 2, 3], [0, 0, 7]]),
    ):
        filled = ReservedCache(tiny_language_model("unspoken").config, columns + 1)
        filled.layers = filled.layers[:1]
        filled.fill(sources, columns)
        assert filled.layers[0].keys[:, 0, :, 0].tolist() == expected
        assert filled.layers[0].values[:, 0, :, 0].tolist() == [[10 * one for one in row] for row in expected]
        filled.update(torch.ones(3, 1, 1, 1), torch.ones(3, 1, 1, 1), 0)
        with pytest.raises(
            ValueError, match=f"holds {columns + 1} positions, but position {columns + 2} was requested"
        ):
            filled.update(torch.ones(3, 1, 1, 1), torch.ones(3, 1, 1, 1), 0)


def test_masks_are_looked_at_where_nothing_is_padded() -> None:
    config = tiny_language_model("unspoken").config
    assert not ReservedCache(config, 3).is_compileable
    assert ReservedCache(config, 3, padded=True).is_compileable
