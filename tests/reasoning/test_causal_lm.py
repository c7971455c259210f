"""Reasoning in superpositions over our backbone and three families of the library, and through ``generate``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import CausalConformance, assert_same_chain, left_padded
from tiny_models import END, FAMILIES, PAD, prompts, tiny_language_model
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
)

from unspoken.chain import StopReason
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerateOutput, LatentGenerationConfig, latent_generate
from unspoken.reasoning.engine import StopRule, rollout

# A token that most likely comes next early, late and never in each family's chains.
ENDS = {
    "superposition": {"unspoken": 3, "llama": 7, "qwen2": 11, "gpt2": 4},
    "hidden": {"unspoken": 3, "llama": 7, "qwen2": 5, "gpt2": 2},
}
OPEN = (2, 18)


def settings_of(family: str, feed: Any = "superposition", **how: Any) -> LatentGenerationConfig:
    return LatentGenerationConfig(
        **{"open_ids": OPEN, "end_ids": (ENDS[feed][family],), "feed": feed, "max_latents": 8, **how}
    )


# --- the shared engine -----------------------------------------------------------------------------------------------


@pytest.fixture(
    params=[
        *[(family, "eager", "superposition") for family in FAMILIES],
        *[(family, "sdpa", "superposition") for family in ("unspoken", "llama")],
        *[(family, "eager", "hidden") for family in FAMILIES],
    ],
    ids="-".join,
)
def reasoner(request: pytest.FixtureRequest) -> CausalLMReasoner:
    family, attention, feed = request.param
    return CausalLMReasoner(model=tiny_language_model(family, attention), settings=settings_of(family, feed))


class TestConformance(CausalConformance):
    def reload(self, reasoner: CausalLMReasoner, folder: Path) -> CausalLMReasoner:
        reasoner.settings.attach(reasoner.model)
        again: CausalLMReasoner = super().reload(reasoner, folder)
        return replace(again, settings=LatentGenerationConfig.of(again.model))


# --- one thought -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_thought_is_the_next_token_distribution_mixed_out_of_the_table() -> None:
    model = tiny_language_model("unspoken")
    whole = CausalLMReasoner(model=model, settings=settings_of("unspoken", top_k=None, temperature=0.7))
    hidden = model.base_model(prompts()).last_hidden_state[:, -1]
    latent_step = whole.step(hidden)
    scores = model(prompts()).logits[:, -1]
    expected = (scores / 0.7).softmax(dim=-1) @ model.get_input_embeddings()(torch.arange(20))
    torch.testing.assert_close(latent_step.latent, expected)
    assert torch.equal(latent_step.next_input, latent_step.latent)
    assert latent_step.done.tolist() == (scores.argmax(dim=-1) == 3).tolist()
    assert latent_step.recorded is not None
    assert torch.equal(latent_step.recorded, ~latent_step.done)
    assert 0 < int(latent_step.done.sum()) < 6


@torch.no_grad()
def test_one_entry_is_greedy_chain_of_thought() -> None:
    model = tiny_language_model("llama")
    latent_step = CausalLMReasoner(model=model, settings=settings_of("llama", top_k=1)).step(torch.randn(6, 16))
    assert latent_step.support_ids is not None
    assert latent_step.support_weights is not None
    assert latent_step.support_weights.tolist() == [[1.0]] * 6
    assert torch.equal(latent_step.next_input, model.get_input_embeddings()(latent_step.support_ids[:, 0]))


@torch.no_grad()
def test_the_ablation_feeds_the_output_of_the_stack() -> None:
    hidden = torch.randn(6, 16)
    model = tiny_language_model("llama")
    latent_step = CausalLMReasoner(model=model, settings=settings_of("llama", "hidden")).step(hidden)
    assert torch.equal(latent_step.next_input, hidden)
    assert torch.equal(latent_step.latent, hidden)


@torch.no_grad()
def test_noise_changes_the_weights_and_never_the_stop() -> None:
    model = tiny_language_model("unspoken")
    settings = settings_of("unspoken", max_latents=4)
    hidden = model.base_model(prompts(rows=64)).last_hidden_state[:, -1]
    clean = CausalLMReasoner(model=model, settings=settings).step(hidden)
    noisy = CausalLMReasoner(model=model, settings=settings, noise=1.0).step(hidden)
    assert clean.support_weights is not None and clean.support_ids is not None
    assert noisy.support_weights is not None and noisy.support_ids is not None
    assert torch.equal(noisy.support_ids, clean.support_ids)
    torch.testing.assert_close(noisy.support_weights.sum(dim=-1), torch.ones(64))
    winners = [t.support_ids.gather(1, t.support_weights.argmax(dim=-1, keepdim=True)) for t in (clean, noisy)]  # type: ignore[union-attr]
    assert (winners[0] != winners[1]).any()
    assert torch.equal(noisy.done, clean.done)
    table = model.get_input_embeddings()(torch.arange(20))
    expected = (noisy.support_weights[..., None] * table[noisy.support_ids]).sum(dim=1)
    torch.testing.assert_close(noisy.latent, expected)


@torch.no_grad()
def test_gumbel_noise_draws_each_token_as_often_as_the_model_would() -> None:
    # The arg-max of log p + Gumbel is a draw from p: the one property that tells this noise from others.
    model = tiny_language_model("llama")
    hidden = torch.randn(1, 16).expand(20_000, 16)
    settings = settings_of("llama", top_k=4)
    reasoner = CausalLMReasoner(model=model, settings=settings, noise=1.0, generator=torch.Generator().manual_seed(5))
    clean = CausalLMReasoner(model=model, settings=settings).step(hidden[:1]).support_weights
    drawn = reasoner.step(hidden).support_weights
    assert clean is not None and drawn is not None
    shares = torch.bincount(drawn.argmax(dim=-1), minlength=4) / len(drawn)
    torch.testing.assert_close(shares, clean[0], rtol=0, atol=0.015)
    # Twice the noise draws from p ** (1 / 2).
    twice = replace(reasoner, noise=2.0).step(hidden).support_weights
    assert twice is not None
    shares = torch.bincount(twice.argmax(dim=-1), minlength=4) / len(drawn)
    torch.testing.assert_close(shares, clean[0].sqrt() / clean[0].sqrt().sum(), rtol=0, atol=0.015)


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"feed": "hidden"}, "hidden states"),
        ({"feed": "hidden", "top_k": 1}, "hidden states"),
        ({"top_k": 1}, "explicit chains"),
        ({"top_k": 2}, "superpositions"),
        ({"top_k": None}, "superpositions"),
    ],
)
def test_a_model_is_checked_for_what_is_fed_back(
    settings: dict[str, Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("unspoken.reasoning.causal_lm.require", lambda _model, method: asked.append(method))
    CausalLMReasoner(model=tiny_language_model("llama"), settings=settings_of("llama", **settings))
    assert asked == [method]


def test_noise_that_would_do_nothing_is_refused() -> None:
    model = tiny_language_model("llama")
    with pytest.raises(ValueError, match=r"noise is 0\.5 where the feed is 'hidden'"):
        CausalLMReasoner(model=model, settings=settings_of("llama", "hidden"), noise=0.5)
    with pytest.raises(ValueError, match="noise is -1"):
        CausalLMReasoner(model=model, settings=settings_of("llama"), noise=-1.0)


# --- asking ----------------------------------------------------------------------------------------------------------


def test_the_open_marker_is_put_behind_every_question() -> None:
    model = tiny_language_model("llama")
    reasoner = CausalLMReasoner(model=model, settings=settings_of("llama"))
    ids, mask = left_padded([row[start:] for row, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)])
    chain, _ = reasoner.respond(ids, mask, max_tokens=3)
    opened = torch.cat([ids, torch.tensor(OPEN).expand(6, -1)], dim=1)
    expected = rollout(reasoner, opened, torch.cat([mask, torch.ones(6, 2).long()], dim=1), StopRule(max_latents=8))
    assert_same_chain(chain, expected)


def test_words_may_be_put_in_the_model_s_mouth_and_are_not_returned() -> None:
    model = tiny_language_model("llama")
    reasoner = CausalLMReasoner(model=model, settings=settings_of("llama"))
    model.generation_config.eos_token_id = 99
    _, answer_ids = reasoner.respond(prompts(), max_tokens=6, max_latents=0)
    # A token that the model writes anyway is no change.
    first = answer_ids[0, 0].item()
    _, forced = reasoner.respond(prompts()[:1], max_tokens=5, max_latents=0, forced=(int(first),))
    assert forced[0].tolist() == answer_ids[0, 1:].tolist()
    _, other = reasoner.respond(prompts()[:1], max_tokens=5, max_latents=0, forced=(14, 9))
    assert other[0].tolist() != answer_ids[0, 1:].tolist()


def test_a_given_chain_takes_the_place_of_thinking() -> None:
    reasoner = CausalLMReasoner(model=tiny_language_model("llama"), settings=settings_of("llama"))
    chain, answer_ids = reasoner.respond(prompts(), max_tokens=4)
    again, words = reasoner.respond(prompts(), max_tokens=4, given=chain)
    assert again is chain
    assert torch.equal(words, answer_ids)


def test_a_model_without_an_end_is_refused() -> None:
    model = tiny_language_model("llama", eos_token_id=None)
    with pytest.raises(ValueError, match="no eos_token_id: nothing could end an answer"):
        CausalLMReasoner(model=model, settings=settings_of("llama")).respond(prompts(), max_tokens=4)


def test_rows_are_padded_with_the_end_where_there_is_no_padding_token() -> None:
    model = tiny_language_model("unspoken")
    model.generation_config.pad_token_id = None
    model.generation_config.eos_token_id = [15, 10]
    _, answer_ids = CausalLMReasoner(model=model, settings=settings_of("unspoken")).respond(prompts(), max_tokens=8)
    ended = torch.isin(answer_ids, torch.tensor([15, 10])).int().cumsum(dim=1)
    after = (ended - torch.isin(answer_ids, torch.tensor([15, 10])).int()) > 0
    assert after.any()
    assert (answer_ids[after] == 15).all()


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"open_ids": ()}, "open marker has no tokens"),
        ({"end_ids": ()}, "end marker has no tokens"),
        ({"top_k": 0}, "top_k is 0"),
        ({"temperature": 0.0}, r"temperature is 0\.0"),
        ({"max_latents": -1}, "max_latents is -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of("llama", **changed)


@pytest.mark.parametrize(
    "settings",
    [
        LatentGenerationConfig(open_ids=OPEN, end_ids=(4,), top_k=None, temperature=0.5),
        LatentGenerationConfig(open_ids=(2,), end_ids=(4, 5, 6), feed="hidden", max_latents=3),
    ],
)
def test_settings_are_read_back_as_they_were(settings: LatentGenerationConfig, tmp_path: Path) -> None:
    model = tiny_language_model("llama")
    settings.attach(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["latent"]["max_latents"] > 0
    assert LatentGenerationConfig.of(AutoModelForCausalLM.from_pretrained(tmp_path)) == settings


# --- through the library ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["llama", "unspoken"])
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedModel:
    """A model that went to disk with its settings and came back by the library's own means."""
    family = request.param
    model = tiny_language_model(family)
    end, ends = {"llama": (7, [11, 8]), "unspoken": (9, [3, 10])}[family]
    settings_of(family, end_ids=(end, 14)).attach(model)
    model.generation_config.eos_token_id = ends
    model.save_pretrained(tmp_path)
    return AutoModelForCausalLM.from_pretrained(tmp_path)


def padded() -> dict[str, Any]:
    ids, mask = left_padded([row[start:] for row, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)])
    return {"input_ids": ids, "attention_mask": mask}


def generated(model: PreTrainedModel, **how: Any) -> LatentGenerateOutput:
    how = {**padded(), "max_new_tokens": 6, "return_chain": True, **how}
    return model.generate(custom_generate=latent_generate, **how)


def answers(out: LatentGenerateOutput, ends: list[int]) -> list[list[int]]:
    """The tokens after prompt and markers, each row up to its end."""
    assert out.sequences is not None
    rows = [row[9:] for row in out.sequences.tolist()]
    lasts = [next((place for place, word in enumerate(row) if word in ends), len(row)) for row in rows]
    return [row[: last + 1] for row, last in zip(rows, lasts, strict=True)]


def test_generate_returns_prompt_markers_and_answer(loaded: PreTrainedModel) -> None:
    out = generated(loaded)
    settings = LatentGenerationConfig.of(loaded)
    chain, answer_ids = CausalLMReasoner(model=loaded, settings=settings).respond(**padded(), max_tokens=6)
    assert out.sequences is not None and out.chain is not None
    assert_same_chain(out.chain, chain)
    assert len(set(chain.lengths.tolist())) >= 3
    markers = torch.tensor([*OPEN, *settings.end_ids]).expand(6, -1)
    assert torch.equal(out.sequences, torch.cat([padded()["input_ids"], markers, answer_ids], dim=1))
    # Without the chain it returns what every decoding loop of the library does.
    plain: Any = loaded.generate(custom_generate=latent_generate, **padded(), max_new_tokens=6)
    assert torch.equal(plain, out.sequences)


def test_generate_does_without_a_mask_where_nothing_is_padded(loaded: PreTrainedModel) -> None:
    one = generated(loaded, input_ids=prompts(), attention_mask=None)
    two = generated(loaded, input_ids=prompts(), attention_mask=torch.ones_like(prompts()))
    assert one.sequences is not None and two.sequences is not None
    assert torch.equal(one.sequences, two.sequences)


def test_a_row_is_answered_alone_as_in_a_batch(loaded: PreTrainedModel) -> None:
    together = generated(loaded).sequences
    assert together is not None
    for row in range(6):
        prompt = padded()["input_ids"][row][padded()["attention_mask"][row].bool()]
        alone = generated(loaded, input_ids=prompt[None], attention_mask=torch.ones_like(prompt)[None]).sequences
        assert alone is not None
        answer_ids = alone[0, len(prompt) :].tolist()
        assert together[row, 5:].tolist() == answer_ids + [PAD] * (together.shape[1] - 5 - len(answer_ids))


def test_what_the_caller_says_goes_before_what_the_folder_says(loaded: PreTrainedModel) -> None:
    # The chain's own cap, in the settings.
    short = replace(LatentGenerationConfig.of(loaded), max_latents=1)
    chain = generated(loaded, latent=short).chain
    assert chain is not None
    assert chain.lengths.max() == 1
    # The ends of an answer, and what is after them, in the call.
    ends = loaded.generation_config.eos_token_id
    usual, longer = generated(loaded), generated(loaded, eos_token_id=99)
    assert [len(answer) for answer in answers(longer, [99])] == [6] * 6
    assert answers(longer, ends) == answers(usual, ends)
    assert min(len(answer) for answer in answers(usual, ends)) < 6
    other = generated(loaded, pad_token_id=18).sequences
    assert other is not None and usual.sequences is not None
    for row, answer in enumerate(answers(usual, ends)):
        assert other[row, 9:].tolist() == answer + [18] * (other.shape[1] - 9 - len(answer))


def test_sampling_is_reproducible_and_leaves_the_chain_alone(loaded: PreTrainedModel) -> None:
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(generated(loaded, do_sample=True, temperature=1.5, eos_token_id=99))
    first, again, other = (out.sequences for out in found)
    assert first is not None and again is not None and other is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    greedy = generated(loaded).chain
    assert greedy is not None
    for out in found:
        assert out.chain is not None
        assert_same_chain(out.chain, greedy)


def test_sampling_options_hold_for_the_answer(loaded: PreTrainedModel) -> None:
    greedy = generated(loaded).sequences
    sampled = generated(loaded, do_sample=True, top_k=1, temperature=3.0).sequences
    assert greedy is not None and sampled is not None
    assert torch.equal(sampled, greedy)


def test_noise_draws_different_chains_and_none_draws_the_same(loaded: PreTrainedModel) -> None:
    plain = generated(loaded).chain
    chains = []
    for noise, seed in ((0.0, 1), (0.0, 2), (1.0, 1), (1.0, 1), (1.0, 2)):
        torch.manual_seed(seed)
        chains.append(generated(loaded, latent_noise=noise).chain)
    silent, also, one, same, two = chains
    assert plain is not None and silent is not None and also is not None
    assert one is not None and same is not None and two is not None
    assert_same_chain(silent, plain)
    assert_same_chain(also, plain)
    assert_same_chain(one, same)
    steps = min(one.mask.shape[1], two.mask.shape[1])
    moved = (one.latents[:, :steps] - two.latents[:, :steps]).abs().amax(dim=(1, 2))
    assert (moved > 1e-3).all()


def test_several_answers_of_one_question_think_differently_under_noise(loaded: PreTrainedModel) -> None:
    torch.manual_seed(0)
    chain = generated(loaded, latent_noise=1.0, do_sample=True, num_return_sequences=3).chain
    assert chain is not None
    assert len(chain) == 18
    assert len({tuple(row.flatten().tolist()) for row in chain.latents}) == 18


class Watched(LogitsProcessor):
    """Records what it is shown, one list a row."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert len(input_ids) == len(scores)
        self.seen += input_ids.tolist()
        return scores


def test_processors_see_the_question_and_what_the_row_has_said(loaded: PreTrainedModel) -> None:
    watched = Watched()
    out = generated(loaded, logits_processor=LogitsProcessorList([watched]))
    answer_ids = answers(out, loaded.generation_config.eos_token_id)
    questions = padded()["input_ids"].tolist()
    expected = [
        question + answer[:length]
        for question, answer in zip(questions, answer_ids, strict=True)
        for length in range(len(answer))
    ]
    assert sorted(watched.seen) == sorted(expected)


def test_a_shortest_answer_is_obeyed(loaded: PreTrainedModel) -> None:
    ends = loaded.generation_config.eos_token_id
    assert min(len(answer) for answer in answers(generated(loaded), ends)) < 4
    # The end itself is a token too.
    assert min(len(answer) for answer in answers(generated(loaded, min_new_tokens=4), ends)) >= 5


def test_a_model_without_settings_says_so_in_one_line() -> None:
    model = tiny_language_model("llama")
    with pytest.raises(ValueError, match=r"no 'latent' settings.*pass latent=LatentGenerationConfig") as caught:
        generated(model)
    assert "\n" not in str(caught.value)
    assert generated(model, latent=settings_of("llama")).sequences is not None


def test_generate_refuses_beams_and_padding_on_the_right(loaded: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="num_beams is 2"):
        generated(loaded, num_beams=2)
    wrong = torch.ones_like(prompts())
    wrong[2, -1] = 0
    with pytest.raises(ValueError, match="padded on the left"):
        generated(loaded, input_ids=prompts(), attention_mask=wrong)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens is 3"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha is 0.6"),
        ({"guidance_scale": 1.5}, "guidance_scale is 1.5"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores is True"),
        ({"return_dict_in_generate": True, "output_logits": True}, "output_logits is True"),
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states is True"),
        ({"latent": {"max_latent": 1}}, "latent has no 'max_latent'; known are open_ids, end_ids, top_k"),
    ],
)
def test_what_would_have_no_effect_is_refused_by_name(
    loaded: PreTrainedModel, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        generated(loaded, **asked)
    assert "\n" not in str(caught.value)


def test_what_is_asked_for_by_its_neutral_value_is_no_question(loaded: PreTrainedModel) -> None:
    expected = generated(loaded).sequences
    assert expected is not None
    for neutral in ({"guidance_scale": 1.0}, {"output_scores": False}, {"num_beams": 1}, {"output_attentions": False}):
        found = generated(loaded, **neutral).sequences
        assert found is not None and torch.equal(found, expected)


def test_the_cap_of_the_library_counts_the_prompt_and_leaves_a_token_at_least(loaded: PreTrainedModel) -> None:
    # Five tokens of the prompt, three of the markers; the cap is of prompt and answer.
    for length, tokens in ((9, 4), (6, 1)):
        out = generated(loaded, max_new_tokens=None, max_length=length, eos_token_id=99).sequences
        assert out is not None and out.shape[1] == 5 + 4 + tokens


def test_a_folder_with_latent_settings_keeps_a_cache_and_its_own_settings() -> None:
    model = tiny_language_model("llama")
    model.generation_config.use_cache, model.generation_config._from_model_config = False, True
    settings_of("llama").attach(model)
    assert (model.generation_config.use_cache, model.generation_config._from_model_config) == (True, False)


def test_embeddings_and_a_filled_cache_are_refused(loaded: PreTrainedModel) -> None:
    embeds = loaded.get_input_embeddings()(prompts()).detach()
    with pytest.raises(ValueError, match="inputs_embeds is given"):
        generated(loaded, input_ids=prompts(), attention_mask=None, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="inputs_embeds is given"):
        loaded.generate(inputs_embeds=embeds, custom_generate=latent_generate, max_new_tokens=2)
    filled = loaded(prompts(), use_cache=True).past_key_values
    longer = torch.cat([prompts(), prompts()], dim=1)
    with pytest.raises(ValueError, match="past_key_values is filled"):
        generated(loaded, input_ids=longer, attention_mask=torch.ones_like(longer), past_key_values=filled)


def test_a_mapping_changes_the_settings_of_the_folder(loaded: PreTrainedModel) -> None:
    out, settings = generated(loaded, latent={"max_latents": 1, "fixed": True}), LatentGenerationConfig.of(loaded)
    same = generated(loaded, latent=replace(settings, max_latents=1, fixed=True))
    assert out.chain is not None and same.chain is not None and out.sequences is not None
    assert_same_chain(out.chain, same.chain)
    assert torch.equal(out.sequences, same.sequences)
    plain = tiny_language_model("llama")
    with pytest.raises(ValueError, match="latent lacks 'open_ids'"):
        generated(plain, latent={"max_latents": 1})
    whole = settings_of("llama")
    listed = {"open_ids": list(whole.open_ids), "end_ids": list(whole.end_ids), "max_latents": 5}
    assert generated(plain, latent=listed).sequences is not None


def test_a_mapping_is_returned_where_the_caller_asks_for_one(loaded: PreTrainedModel) -> None:
    out = generated(loaded, return_chain=False, return_dict_in_generate=True)
    assert isinstance(out, LatentGenerateOutput)
    assert out.sequences is not None and torch.equal(out.sequences, generated(loaded, return_chain=False))


def test_a_chain_that_met_its_cap_says_so_through_generate(loaded: PreTrainedModel) -> None:
    chain = generated(loaded).chain
    assert chain is not None
    assert {StopReason.END, StopReason.CAP} == {StopReason(int(reason)) for reason in chain.stop}
    assert END not in LatentGenerationConfig.of(loaded).end_ids


class FirstIs(StoppingCriteria):
    """Stops a row after a token that only some rows write first."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
        stops: Any = input_ids[:, -1] == self.token
        return stops


def test_a_stopping_criterion_ends_its_rows_and_no_others(loaded: PreTrainedModel) -> None:
    free = answers(generated(loaded, eos_token_id=99), [99])
    token, end = free[0][0], next(unused for unused in range(20) if not any(unused in row for row in free))
    stopped = answers(generated(loaded, eos_token_id=end, stopping_criteria=[FirstIs(token)]), [end])
    for one, other in zip(free, stopped, strict=True):
        place = one.index(token) if token in one else len(one)
        assert other == [*one[: place + 1], end][:6]
    assert len({len(answer) for answer in stopped}) > 1
