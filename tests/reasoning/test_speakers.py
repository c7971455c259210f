"""Who makes the answer, and what is asked of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import tiny_reasoner
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.reasoning.engine import StopRule
from unspoken.reasoning.row import AnswerDecoding
from unspoken.reasoning.speakers import Request, SameStack, Separate, ends_and_pad

STOP = StopRule(max_latents=7, min_latents=2, patience=3)


@pytest.mark.parametrize(
    ("ends", "pad", "expected"),
    [
        (3, 0, ((3,), 0)),
        (3, None, ((3,), 3)),
        ([4, 2], None, ((4, 2), 4)),
        ((4, 2), 9, ((4, 2), 9)),
        (0, None, ((0,), 0)),
    ],
)
def test_rows_are_padded_with_the_first_end_where_nothing_else_is_named(ends: Any, pad: Any, expected: Any) -> None:
    assert ends_and_pad(SimpleNamespace(eos_token_id=ends, pad_token_id=pad)) == expected


def test_nothing_could_end_an_answer_without_an_end() -> None:
    with pytest.raises(ValueError, match="no eos_token_id"):
        ends_and_pad(SimpleNamespace(eos_token_id=None, pad_token_id=0))


def test_the_stack_that_reasons_reads_the_marker_and_then_its_answer() -> None:
    speaker = SameStack(marker=(5, 6), end_ids=(1,), pad_id=0)
    assert (speaker.same_stack, speaker.samples, speaker.reads_tokens, speaker.chain_tokens) == (
        True,
        True,
        True,
        False,
    )
    assert speaker.decoding(4) == AnswerDecoding(marker=(5, 6), max_tokens=4, end_ids=(1,), pad_id=0)
    assert speaker.decoding(4, (8, 9)).marker == (5, 6, 8, 9)
    assert speaker.stop_rule(STOP, 4) is STOP
    assert (speaker.passes(7, 3), speaker.flops(torch.ones(2))) == (2 + 3, 0.0)


def test_a_separate_speaker_reads_a_finished_chain() -> None:
    seen: list[Any] = []

    def decode(chain: LatentChain, sample: Any) -> Tensor:
        seen.append((chain, sample))
        return torch.tensor([[4, 1]])

    speaker = Separate(decode=decode, end_ids=(1,))
    assert (speaker.same_stack, speaker.marker) == (False, ())
    assert (speaker.samples, speaker.reads_tokens, speaker.chain_tokens) == (False, False, False)
    # Reading it off costs nothing unless tokens are written.
    assert (speaker.passes(5, 3), speaker.flops(torch.ones(2))) == (0, 0.0)
    dear = Separate(decode=decode, end_ids=(1,), chain_passes=lambda steps: 2 * steps, chain_flops=lambda n: 3 * n)
    assert (dear.passes(5, 3), dear.flops(torch.tensor([1, 2])).tolist()) == (10, [3, 6])  # type: ignore[union-attr]
    # Of each token of the answer there is a latent.
    assert speaker.stop_rule(STOP, 4) == StopRule(max_latents=4, min_latents=2, patience=3)
    nothing = torch.zeros(1, 2, 3)
    chain = LatentChain(latents=nothing, mask=nothing[..., 0].bool(), stop=torch.zeros(1).long())
    ids = torch.tensor([[3]])
    request = Request(input_ids=ids, attention_mask=None, stop=STOP, max_tokens=2, chain=chain)
    assert (request.forced, request.sample, request.intervene) == ((), None, None)
    given, tokens = speaker.respond(tiny_reasoner(), request)
    assert given is chain and tokens.tolist() == [[4, 1]] and seen == [(chain, None)]
