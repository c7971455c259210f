"""When reasoning ends, what is reported about it, and which prompts are refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from conformance import CLOSE, assert_row_is, assert_same_chain, left_padded, naive_chain
from tiny_models import PAD, prompts, tiny_language_model, tiny_reasoner
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.chain import StopReason
from unspoken.methods.coupled.reasoner import CoupledReasoner
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.reasoning.cache import ReservedCache
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import LatentStep, Reasoner, StopRule, respond, rollout
from unspoken.reasoning.row import AnswerDecoding


@pytest.fixture
def reasoner() -> JepaReasonerModel:
    model = tiny_reasoner()
    model.config.eos_token_id = 9
    return model


def test_a_fixed_chain_has_that_many_steps_whatever_the_method_says(reasoner: JepaReasonerModel) -> None:
    free = rollout(reasoner, prompts(), None, StopRule(max_latents=5))
    assert StopReason.END in free.stop.tolist()
    fixed = rollout(reasoner, prompts(), None, StopRule(max_latents=5, fixed=True))
    assert fixed.mask.all()
    assert fixed.lengths.tolist() == [5] * 6
    assert fixed.stop.tolist() == [StopReason.FIXED] * 6


def test_end_and_cap_are_reported_row_by_row(reasoner: JepaReasonerModel) -> None:
    chain = rollout(reasoner, prompts(), None, StopRule(max_latents=4))
    tokens = reasoner.nearest_row(rollout(reasoner, prompts(), None, StopRule(max_latents=4, fixed=True)).latents)
    for row in range(6):
        ends = (tokens[row] == 9).nonzero().flatten().tolist()
        assert chain.lengths[row] == (ends[0] + 1 if ends else 4)
        assert chain.stop[row] == (StopReason.END if ends else StopReason.CAP)
    assert {StopReason.END, StopReason.CAP} <= set(chain.stop.tolist())


def test_an_end_on_the_last_allowed_step_is_an_end(reasoner: JepaReasonerModel) -> None:
    chain = rollout(reasoner, prompts(), None, StopRule(max_latents=8))
    row = int(((chain.stop == StopReason.END) & (chain.lengths > 1)).nonzero()[0])
    steps = int(chain.lengths[row])
    exact = rollout(reasoner, prompts()[row : row + 1], None, StopRule(max_latents=steps))
    assert exact.stop.tolist() == [StopReason.END]
    short = rollout(reasoner, prompts()[row : row + 1], None, StopRule(max_latents=steps - 1))
    assert short.stop.tolist() == [StopReason.CAP]


def test_a_batch_stops_when_its_last_row_does(reasoner: JepaReasonerModel) -> None:
    chain = rollout(reasoner, prompts(), None, StopRule(max_latents=8))
    ended = chain.select(chain.stop == StopReason.END)
    rows = prompts()[chain.stop == StopReason.END]
    again = rollout(reasoner, rows, None, StopRule(max_latents=8))
    assert again.mask.shape[1] == int(ended.lengths.max()) < 8


def test_a_longer_cap_only_adds_steps(reasoner: JepaReasonerModel) -> None:
    short = rollout(reasoner, prompts(), None, StopRule(max_latents=3, fixed=True))
    long = rollout(reasoner, prompts(), None, StopRule(max_latents=7, fixed=True))
    assert torch.equal(long.latents[:, :3], short.latents)


def test_steps_behind_the_end_are_zero(reasoner: JepaReasonerModel) -> None:
    chain = rollout(reasoner, prompts(), None, StopRule(max_latents=8))
    assert (~chain.mask).any()
    assert not chain.latents[~chain.mask].any()


def test_the_mask_has_no_holes(reasoner: JepaReasonerModel) -> None:
    chain = rollout(reasoner, prompts(), None, StopRule(max_latents=8))
    assert (chain.mask[:, :-1] >= chain.mask[:, 1:]).all()
    assert chain.mask[:, 0].all()


def test_a_coupled_chain_records_its_tokens_with_weight_one() -> None:
    model = tiny_language_model("unspoken")
    reasoner = CoupledReasoner(model=model, end_id=9, pad_id=0)
    chain = rollout(reasoner, prompts(), None, StopRule(max_latents=8))
    assert chain.support_ids is not None
    assert chain.support_weights is not None
    assert chain.support_ids.shape == (*chain.mask.shape, 1)
    assert (chain.support_weights == 1).all()
    tokens = reasoner.speak(chain)
    assert (tokens[~chain.mask] == 0).all()
    rows = model.get_input_embeddings()(tokens)
    assert torch.equal(chain.latents[chain.mask], rows[chain.mask])


def test_a_latent_chain_has_no_tokens(reasoner: JepaReasonerModel) -> None:
    chain = rollout(reasoner, prompts(), None, StopRule(max_latents=2))
    assert chain.support_ids is None
    coupled = CoupledReasoner(model=tiny_language_model("unspoken"), end_id=9, pad_id=0)
    with pytest.raises(ValueError, match="not written by a coupled model"):
        coupled.speak(chain)


def test_nothing_in_a_chain_carries_a_gradient(reasoner: JepaReasonerModel) -> None:
    assert not rollout(reasoner, prompts(), None, StopRule(max_latents=2)).latents.requires_grad


def test_padding_on_the_right_is_refused(reasoner: JepaReasonerModel) -> None:
    mask = torch.ones(6, 5, dtype=torch.long)
    mask[3, -1] = 0
    with pytest.raises(ValueError, match="padded on the left"):
        rollout(reasoner, prompts(), mask, StopRule(max_latents=2))


def test_a_prompt_that_leaves_no_room_is_refused(reasoner: JepaReasonerModel) -> None:
    assert rollout(reasoner, prompts(length=60), None, StopRule(max_latents=4)).mask.shape == (6, 4)
    with pytest.raises(ValueError, match=r"60 tokens and up to 5 more steps may follow .*, but the model has 64"):
        rollout(reasoner, prompts(length=60), None, StopRule(max_latents=5))


def test_an_empty_prompt_is_refused(reasoner: JepaReasonerModel) -> None:
    with pytest.raises(ValueError, match="the prompt is empty; give at least one token"):
        rollout(reasoner, torch.empty(2, 0, dtype=torch.long), None, StopRule(max_latents=1))


def test_a_prompt_of_one_token_is_enough(reasoner: JepaReasonerModel) -> None:
    ids, mask = left_padded([torch.tensor([5]), torch.tensor([6, 7, 8])])
    alone = rollout(reasoner, torch.tensor([[5]]), None, StopRule(max_latents=3, fixed=True))
    together = rollout(reasoner, ids, mask, StopRule(max_latents=3, fixed=True))
    torch.testing.assert_close(together.latents[0], alone.latents[0], rtol=1e-4, atol=2e-5)


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="max_latents is -1"):
        StopRule(max_latents=-1)


def test_no_steps_make_an_empty_chain(reasoner: JepaReasonerModel) -> None:
    chain = rollout(reasoner, prompts(), None, StopRule(max_latents=0))
    assert chain.latents.shape == (6, 0, chain.latents.shape[-1])
    assert chain.lengths.tolist() == [0] * 6


def test_the_cost_of_a_step_does_not_copy_what_is_cached(reasoner: JepaReasonerModel) -> None:
    cache = ReservedCache(reasoner.stack.config, 7)
    seen = []
    for length in (4, 1, 1):
        cache.update(torch.full((2, 2, length, 3), float(length)), torch.zeros(2, 2, length, 3), 0)
        seen.append(cache.layers[0].keys)
    assert len({keys.untyped_storage().data_ptr() for keys in seen}) == 1
    assert [keys.shape[2] for keys in seen] == [4, 5, 6]
    assert seen[2][0, 0, :, 0].tolist() == [4, 4, 4, 4, 1, 1]
    with pytest.raises(ValueError, match="the cache holds 7 positions"):
        cache.update(torch.zeros(2, 2, 2, 3), torch.zeros(2, 2, 2, 3), 0)


# --- a hook on every step --------------------------------------------------------------------------------------------


def rolled(latent_step: LatentStep, step: int) -> LatentStep:
    """Moves the entries of a latent by one place more at every step."""
    return replace(
        latent_step,
        latent=latent_step.latent.roll(step + 1, dims=-1),
        next_input=latent_step.next_input.roll(step + 1, dims=-1),
    )


@dataclass
class Rolling:
    """A method that does the same to itself."""

    method: Reasoner
    steps: int = 0

    @property
    def stack(self) -> PreTrainedModel:
        return self.method.stack

    def embed_prompt(self, input_ids: Tensor) -> Tensor:
        return self.method.embed_prompt(input_ids)

    def step(self, hidden: Tensor) -> LatentStep:
        self.steps += 1
        return rolled(self.method.step(hidden), self.steps - 1)


def test_a_hook_sees_every_step_of_the_whole_batch_and_need_not_change_it(reasoner: JepaReasonerModel) -> None:
    seen = []

    def look(latent_step: LatentStep, step: int) -> LatentStep:
        seen.append((step, len(latent_step.latent)))
        return latent_step

    plain = rollout(reasoner, prompts(), None, StopRule(max_latents=5))
    assert_same_chain(rollout(reasoner, prompts(), None, StopRule(max_latents=5), look), plain)
    assert seen == [(step, 6) for step in range(plain.mask.shape[1])]


def test_what_a_hook_makes_of_a_step_is_recorded_and_looped(reasoner: JepaReasonerModel) -> None:
    stop = StopRule(max_latents=5)
    chain = rollout(reasoner, prompts(), None, stop, rolled)
    for row, prompt in enumerate(prompts()):
        assert_row_is(chain, row, *naive_chain(Rolling(reasoner), prompt, stop))


def test_a_hook_may_end_a_chain(reasoner: JepaReasonerModel) -> None:
    def end(latent_step: LatentStep, step: int) -> LatentStep:
        return replace(latent_step, done=torch.full_like(latent_step.done, step == 2))

    chain = rollout(reasoner, prompts(), None, StopRule(max_latents=5), end)
    assert chain.lengths.tolist() == [3] * 6
    assert chain.stop.tolist() == [StopReason.END] * 6


def test_a_method_that_speaks_takes_the_same_hook() -> None:
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(17,), top_k=10)
    method = CausalLMReasoner(model=tiny_language_model("unspoken"), settings=settings)
    decoding = AnswerDecoding(marker=(17,), max_tokens=4, end_ids=(1,), pad_id=PAD)
    stop = StopRule(max_latents=5)
    chain, answer_ids = respond(method, prompts(), None, stop, decoding, intervene=rolled)
    alone = rollout(method, prompts(), None, stop, rolled)
    assert torch.equal(chain.mask, alone.mask)
    torch.testing.assert_close(chain.latents, alone.latents, **CLOSE)
    _, from_it = respond(method, prompts(), None, StopRule(max_latents=0), decoding, given=alone)
    assert torch.equal(answer_ids, from_it)
    assert not torch.equal(answer_ids, respond(method, prompts(), None, stop, decoding)[1])
