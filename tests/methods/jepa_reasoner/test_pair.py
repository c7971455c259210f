"""The pair as a causal language model: silence first, then words that cannot touch the silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import assert_same_chain, left_padded
from tiny_models import END, PAD, enliven, prompts, tiny_config, tiny_pair, tiny_reasoner
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig

from unspoken.methods.jepa_reasoner import pair
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.pair import JepaGenerateOutput, JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.reasoning.engine import StopRule
from unspoken.reasoning.picking import Sampler
from unspoken.tasks import TreeSearchConfig

VARIANTS = pytest.mark.parametrize("variant", ["mono", "dual"])


def generated(model: JepaReasonerForCausalLM, **settings: object) -> JepaGenerateOutput:
    out = model.generate(prompts(), max_new_tokens=8, return_chain=True, **settings)  # type: ignore[arg-type]
    assert isinstance(out, JepaGenerateOutput)
    return out


# --- error containment -----------------------------------------------------------------------------------------------


@VARIANTS
def test_how_the_talker_draws_never_changes_a_bit_of_the_chain(variant: str) -> None:
    model = tiny_pair(variant)
    silent = generated(model)
    sequences = {tuple(silent.sequences.flatten().tolist())}
    for temperature in (0.5, 1.0, 3.0):
        for seed in range(3):
            torch.manual_seed(seed)
            loud = generated(
                model,
                do_sample=True,
                temperature=temperature,
                generator=torch.Generator().manual_seed(seed),
            )
            assert_same_chain(loud.chain, silent.chain)
            sequences.add(tuple(loud.sequences.flatten().tolist()))
    assert len(sequences) > 5, "the words themselves differ"


def test_what_a_talker_is_made_of_never_changes_the_chain() -> None:
    mono, dual = tiny_pair("mono"), tiny_pair("dual")
    assert_same_chain(generated(mono).chain, generated(dual).chain)


@VARIANTS
def test_the_talker_says_only_what_the_chain_holds(variant: str) -> None:
    # It never sees the problem: the same chain gives the same words, whatever the prompt was.
    model = tiny_pair(variant)
    out = generated(model)
    assert torch.equal(model.speak(out.chain), out.sequences[:, 5:])
    other = out.chain.select(torch.tensor([1, 0, 2, 3, 4, 5]))
    assert torch.equal(model.speak(other)[0], out.sequences[1, 5:])


# --- generation ------------------------------------------------------------------------------------------------------


@VARIANTS
def test_a_loaded_pair_generates_like_any_causal_language_model(variant: str, tmp_path: Path) -> None:
    model = tiny_pair(variant)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert isinstance(again, JepaReasonerForCausalLM)
    assert not again.training
    plain = again.generate(prompts(), max_new_tokens=8)
    out = generated(again)
    assert isinstance(plain, Tensor)
    assert plain.shape == (6, 5 + out.chain.mask.shape[1])
    assert torch.equal(plain[:, :5], prompts())
    assert torch.equal(plain, out.sequences)
    assert torch.equal(plain, model.generate(input_ids=prompts(), max_new_tokens=8))
    assert_same_chain(out.chain, generated(model).chain)


@VARIANTS
def test_the_answer_is_cut_at_its_first_end(variant: str) -> None:
    model = tiny_pair(variant)
    chain = model.reason(prompts(), None, StopRule(max_latents=8, fixed=True))
    output = model.talker.speak(chain, Sampler())
    # The token that is written most often becomes the end.
    model.config.eos_token_id = int(output.flatten().mode().values)
    expected = []
    for row in output.tolist():
        length = row.index(model.config.eos_token_id) + 1 if model.config.eos_token_id in row else len(row)
        expected.append(row[:length] + [PAD] * (len(row) - length))
    assert model.speak(chain).tolist() == expected
    assert expected != output.tolist()


@VARIANTS
def test_rows_that_stopped_thinking_stop_speaking(variant: str) -> None:
    model = tiny_pair(variant)
    chain = model.reason(prompts(), None, StopRule(max_latents=8))
    assert (~chain.mask).any()
    assert (model.speak(chain)[~chain.mask] == PAD).all()


@VARIANTS
def test_left_padded_prompts_are_answered_as_if_alone(variant: str) -> None:
    model = tiny_pair(variant)
    rows = [row[index % 3 :] for index, row in enumerate(prompts())]
    ids, mask = left_padded(rows)
    together = model.generate(ids, attention_mask=mask, max_new_tokens=8)
    # Without a mask, padding is recognised by its token.
    assert torch.equal(model.generate(ids, max_new_tokens=8), together)
    for row, prompt in enumerate(rows):
        alone = model.generate(prompt[None], max_new_tokens=8)[0, len(prompt) :]
        words = together[row, ids.shape[1] :]
        assert torch.equal(words[: len(alone)], alone)
        assert (words[len(alone) :] == PAD).all()


def test_the_length_is_the_caller_s_then_the_generation_config_s_then_the_model_s() -> None:
    model = tiny_pair()
    model.config.eos_token_id = 17  # never written: every chain runs into its cap
    for length, settings in (
        (3, {"max_new_tokens": 3, "generation_config": GenerationConfig(max_new_tokens=4)}),
        (4, {"generation_config": GenerationConfig(max_new_tokens=4)}),
        (8, {}),
    ):
        assert model.generate(prompts(), **settings).shape == (6, 5 + length)


def test_sampling_can_be_asked_for_through_the_generation_config() -> None:
    model = tiny_pair()
    settings = GenerationConfig(do_sample=True, temperature=5.0, max_new_tokens=8)
    drawn = {
        tuple(model.generate(prompts(), settings, generator=torch.Generator().manual_seed(seed)).flatten().tolist())
        for seed in range(4)
    }
    assert len(drawn) == 4
    greedy = model.generate(prompts(), settings, do_sample=False)
    assert torch.equal(greedy, model.generate(prompts(), max_new_tokens=8))


@pytest.mark.parametrize(("temperature", "expected"), [(None, 1.0), (0.5, 0.5)])
def test_words_are_drawn_at_temperature_one_where_none_is_given(
    temperature: float | None, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(pair, "Sampler", lambda *given: asked.append(given) or Sampler(*given))
    model, generator = tiny_pair(), torch.Generator()
    model.generation_config.temperature = None
    model.generate(prompts(), max_new_tokens=2, do_sample=True, temperature=temperature, generator=generator)
    model.generate(prompts(), max_new_tokens=2)
    assert asked == [(expected, generator), ()]


def test_a_given_mask_counts_and_not_the_token_of_padding() -> None:
    model, ids = tiny_pair(), prompts()
    ids[:, 2] = PAD  # as a chat prompt may hold it
    expected = model.reason(ids, torch.ones_like(ids), StopRule(max_latents=8))
    given = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, return_chain=True)
    assert isinstance(given, JepaGenerateOutput)
    assert_same_chain(given.chain, expected)
    # Without a token of padding every token counts.
    model.config.pad_token_id = None
    plain = model.generate(ids, max_new_tokens=8, return_chain=True)
    assert isinstance(plain, JepaGenerateOutput)
    assert_same_chain(plain.chain, model.reason(ids, None, StopRule(max_latents=8)))


@pytest.mark.parametrize("given", [{}, {"inputs": prompts(), "input_ids": prompts()}], ids=["none", "both"])
def test_prompts_are_given_once(given: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="inputs or as input_ids"):
        tiny_pair().generate(**given)


def test_an_answer_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^max_new_tokens is 0; it must be at least 1$"):
        tiny_pair().generate(prompts(), max_new_tokens=0)


def test_it_takes_what_the_tokenizer_returns() -> None:
    task = TreeSearchConfig(depth=2).build()
    prompt = [text.split("[ROUTE]")[0] + "[ROUTE]" for text in task.text(task.sample("test", np.arange(3)))]
    config = JepaReasonerConfig(
        backbone_config=tiny_config("unspoken", vocab_size=21),
        talker_config=tiny_config("unspoken", vocab_size=21),
        pad_token_id=PAD,
        eos_token_id=END,
    )
    model = JepaReasonerForCausalLM(config)
    batch = task.tokenizer(prompt, return_tensors="pt", padding=True)
    assert model.generate(**batch, max_new_tokens=4).shape[0] == 3


# --- the teacher-forced pass -----------------------------------------------------------------------------------------


def answers() -> dict[str, Tensor]:
    """Two left-padded rows whose answers are two and three tokens long."""
    ids, mask = left_padded([torch.tensor([3, 4, 5, 6]), torch.tensor([7, 8, 9, 10, 11, END])])
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chosen[0, -2:] = True
    chosen[1, -3:] = True
    return {"input_ids": ids, "attention_mask": mask, "answer_mask": chosen}


@VARIANTS
@torch.no_grad()
def test_the_talker_is_given_the_latents_of_the_answer_and_no_others(variant: str) -> None:
    model = tiny_pair(variant)
    batch = answers()
    out = model(**batch)
    every = model.reasoner(batch["input_ids"], batch["attention_mask"]).latents
    assert out.mask.tolist() == [[True, True, False], [True, True, True]]
    assert out.tokens.tolist() == [[5, 6, 0], [10, 11, END]]
    # The latent at t stands for the token at t + 1.
    torch.testing.assert_close(out.latents[0, :2], every[0, 3:5])
    torch.testing.assert_close(out.latents[1], every[1, 2:5])
    assert not out.latents[0, 2].any()


@VARIANTS
@torch.no_grad()
def test_labels_choose_the_answer_and_give_the_loss(variant: str) -> None:
    model = tiny_pair(variant)
    batch = answers()
    labels = torch.where(batch["answer_mask"], batch["input_ids"], -100)
    out = model(batch["input_ids"], batch["attention_mask"], labels=labels)
    by_mask = model(**batch)
    assert torch.equal(out.logits, by_mask.logits)
    torch.testing.assert_close(out.loss, F.cross_entropy(by_mask.logits[by_mask.mask], by_mask.tokens[by_mask.mask]))
    assert by_mask.loss is None


def test_a_frozen_reasoner_gets_no_gradient_and_the_talker_does() -> None:
    model = tiny_pair().train()
    model.freeze_reasoner()
    batch = answers()
    labels = torch.where(batch["answer_mask"], batch["input_ids"], -100)
    model(batch["input_ids"], batch["attention_mask"], labels=labels).loss.backward()
    assert all(weight.grad is None for weight in model.reasoner.parameters())
    assert all(weight.grad is not None and weight.grad.any() for weight in model.talker.parameters())


@torch.no_grad()
def test_a_frozen_reasoner_has_no_dropout_whatever_the_pair_does() -> None:
    """GPT-2 as it is published drops a tenth, which would be noise on the latents that the Talker learns from."""
    dropping = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    config = JepaReasonerConfig(
        backbone_config=tiny_config("gpt2", **dropping),
        unit_tokens=False,
        talker_config=tiny_config("unspoken"),
        pad_token_id=PAD,
        eos_token_id=END,
    )
    model = JepaReasonerForCausalLM._from_config(config, attn_implementation="eager")
    enliven(model, "gpt2")
    batch = answers()

    def latents() -> Tensor:
        return model(**batch).latents

    expected = model.eval()(**batch).latents
    assert not torch.allclose(model.train()(**batch).latents, expected)  # while it learns
    model.freeze_reasoner()
    for mode in (None, True, False, True):
        if mode is not None:
            model.train(mode)
        assert model.training == model.talker.training == (mode is not False)
        assert not any(module.training for module in model.reasoner.modules())
        assert torch.equal(latents(), expected)
    model.activation_checkpointing_enable()
    assert torch.equal(model.train()(**batch).latents, expected)


# --- configurations --------------------------------------------------------------------------------------------------


def test_a_reasoner_s_folder_has_no_talker_to_load(tmp_path: Path) -> None:
    tiny_reasoner().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="load the Reasoner alone with AutoModel"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), JepaReasonerModel)


def test_a_talker_of_another_width_is_refused() -> None:
    config = JepaReasonerConfig(
        backbone_config=tiny_config("unspoken"), talker_config=tiny_config("unspoken", hidden_size=32), eos_token_id=1
    )
    with pytest.raises(ValueError, match="hidden_size 32 is not the latent width 16"):
        JepaReasonerForCausalLM(config)


def test_a_pair_over_a_model_of_the_library_generates_too(tmp_path: Path) -> None:
    model = tiny_pair("dual", "llama")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.generate(prompts(), max_new_tokens=6), model.generate(prompts(), max_new_tokens=6))
