"""A fixed number of hidden states over our backbone and three families of the library, and the answer after them."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from conformance import CAP, CausalConformance, left_padded
from tiny_models import FAMILIES, PAD, prompts, tiny_language_model
from torch import Tensor

from unspoken.chain import StopReason
from unspoken.methods.coconut.model import CoconutModel
from unspoken.methods.coconut.objective import batch_of
from unspoken.methods.coconut.stages import Row
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import Reasoner, StopRule, rollout

OPEN, END = (2, 18), (7, 4)
# A token that each family's answers run into early, late and never.
EOS = {"unspoken": 3, "llama": 7, "qwen2": 6, "gpt2": 2}


def reasoner_of(
    family: str, attention: str = "eager", *, latents: int = 4, eos_id: int | None = None
) -> CausalLMReasoner:
    model = tiny_language_model(family, attention)
    model.generation_config.eos_token_id = EOS[family] if eos_id is None else eos_id
    model.generation_config.pad_token_id = PAD
    settings = LatentGenerationConfig(open_ids=OPEN, end_ids=END, feed="hidden", max_latents=latents, fixed=True)
    return CausalLMReasoner(model=model, settings=settings)


def questions() -> tuple[list[Tensor], Tensor, Tensor]:
    rows = [row[start:] for row, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]
    return (rows, *left_padded(rows))


def up_to_end(words: Tensor, end: int) -> list[int]:
    """The tokens of one row, its first end included."""
    tokens = words.tolist()
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


# Chains that never stop wander until the rounding of float32 shows: GPT-2's under the fused kernel, after four steps.
KINDS = [*product(FAMILIES, ("eager",)), *product(("unspoken", "llama", "qwen2"), ("sdpa",))]


@pytest.fixture(params=KINDS, ids="-".join)
def reasoner(request: pytest.FixtureRequest) -> CausalLMReasoner:
    return reasoner_of(*request.param)


class TestConformance(CausalConformance):
    def test_the_prompts_of_this_suite_stop_in_every_way(self, reasoner: Reasoner) -> None:
        # Coconut's length is fixed: the other tests compare chains that differ in their vectors alone.
        chain = rollout(reasoner, prompts(), None, StopRule(max_latents=CAP, fixed=True))
        assert chain.lengths.tolist() == [CAP] * 6
        assert (chain.stop == StopReason.FIXED).all()
        assert torch.pdist(chain.latents.flatten(1)).min() > 0.1


# --- as it was trained -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_thinks_and_speaks_as_training_had_it(family: str) -> None:
    reasoner = reasoner_of(family)
    rows, ids, mask = questions()
    chain, output = reasoner.respond(ids, mask, max_tokens=6)
    answers = [up_to_end(words, EOS[family]) for words in output]
    assert len({len(answer) for answer in answers}) > 1
    trained = [
        Row(prompt=(*row.tolist(), *OPEN), latents=4, end=END, text=tuple(answer))
        for row, answer in zip(rows, answers, strict=True)
    ]
    model = CoconutModel._from_config(reasoner.model.config, attn_implementation="eager")
    model.start_from(reasoner.model)
    batch = batch_of(trained, pad_id=PAD)
    out = model.eval()(**{name: piece for name, piece in batch.items() if name != "target_mask"})
    torch.testing.assert_close(chain.latents, out.latents, rtol=1e-4, atol=2e-5)
    # Greedy words are the most likely ones in the parallel pass over themselves.
    likely = out.logits.argmax(dim=-1)[:, :-1][batch["target_mask"][:, 1:]]
    assert torch.equal(likely, batch["text_ids"][batch["target_mask"]])
    for words, answer in zip(output, answers, strict=True):
        assert (words[len(answer) :] == PAD).all()


@pytest.mark.parametrize("latents", [0, 4])
def test_every_chain_has_the_same_length(latents: int) -> None:
    _, ids, mask = questions()
    chain, _ = reasoner_of("llama", latents=latents).respond(ids, mask, max_tokens=2)
    assert chain.lengths.tolist() == [latents] * 6
    assert (chain.stop == StopReason.FIXED).all()


def test_a_given_chain_takes_the_place_of_thinking() -> None:
    reasoner = reasoner_of("llama", eos_id=99)
    _, ids, mask = questions()
    chain, output = reasoner.respond(ids, mask, max_tokens=4)
    again, words = reasoner.respond(ids, mask, max_tokens=4, given=chain)
    assert again is chain
    assert torch.equal(words, output)
    _, other = reasoner.respond(ids, mask, max_tokens=4, given=chain.with_latents(chain.latents.flip(0)))
    assert not torch.equal(other, output)


def test_words_may_be_put_in_the_model_s_mouth_and_are_not_returned() -> None:
    reasoner = reasoner_of("llama", eos_id=99)
    _, output = reasoner.respond(prompts()[:1], max_tokens=6)
    _, forced = reasoner.respond(prompts()[:1], max_tokens=5, forced=(int(output[0, 0]),))
    assert forced[0].tolist() == output[0, 1:].tolist()
