"""The ablation of the Talker: a Talker that reads its latents well passes each test in the way that it should."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import END, PAD, VOCABULARY, tiny_language_model, tiny_pair, tiny_reasoner
from torch import Tensor
from transformers import PreTrainedModel
from unspoken.evaluation.corruption import CONDITIONS, Ablation, ablate, ablation_summary
from unspoken.evaluation.texts import sentence_pairs

from unspoken.chain import LatentChain
from unspoken.evaluation.teacher_forcing import forced_chain, next_tokens
from unspoken.methods import catalogue
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.reasoning.picking import Sample, Sampler
from unspoken.reasoning.system import System

PRIME = 3
DRAWABLE = torch.arange(2, VOCABULARY)


def sentences(*lengths: int) -> dict[str, Tensor]:
    """Random sentences of these lengths between two ends, padded on the left."""
    generator, width = torch.Generator().manual_seed(5), max(lengths) + 2
    ids = torch.full((len(lengths), width), PAD)
    for row, length in enumerate(lengths):
        ids[row, width - length - 2 :] = END
        ids[row, width - length - 1 : -1] = torch.randint(2, VOCABULARY, (length,), generator=generator)
    real = (ids != PAD).long()
    return {"input_ids": ids, "attention_mask": real, "answer_mask": real.cumsum(dim=1) > 1}


BATCH = sentences(8, 8, 9, 9, 10, 11)


def system_of(model: PreTrainedModel) -> System:
    return catalogue.systems(model, stage="it", max_answer=12)[0]


def run(model: JepaReasonerForCausalLM, batch_size: int = 4, **batch: Tensor) -> Ablation:
    return ablate(system_of(model), BATCH | batch, prime=PRIME, alternatives=DRAWABLE, seed=1, batch_size=batch_size)


def faithful(monkeypatch: pytest.MonkeyPatch, variant: str = "dual") -> JepaReasonerForCausalLM:
    """A Reasoner whose latents name the next token, and a Talker that says what they name."""
    model = tiny_pair(variant)

    def read(ids: Tensor, mask: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(ids.roll(-1, dims=1), VOCABULARY).float()

    def speak(chain: LatentChain, *, sample: Sample | None = None) -> Tensor:
        scores = torch.nn.functional.one_hot(chain.latents.argmax(dim=-1), VOCABULARY).float()
        said = (sample or Sampler())(scores, torch.arange(len(chain)), 0)
        return torch.where(chain.mask, said, PAD)

    monkeypatch.setattr(model.reasoner, "read", read)
    monkeypatch.setattr(model, "speak", speak)
    return model


def test_a_faithful_talker_follows_the_latents_and_not_the_prime(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(faithful(monkeypatch))
    assert tuple(found.said) == CONDITIONS
    assert found.right("none").tolist() == found.right("random prime").tolist() == [1.0] * 6
    assert found.exact.tolist() == found.ended.tolist() == [1.0] * 6
    assert found.other("other sentence").tolist() == [1.0] * 6
    assert found.right("other sentence")[:4].tolist() == found.alike[:4].tolist()
    for condition in ("random string", "gaussian"):
        assert found.right(condition).mean() < 0.3, "one in eighteen by chance"
    # Only the prime itself differs.
    assert torch.equal(found.said["random prime"][:, PRIME:], found.said["none"][:, PRIME:])
    assert not torch.equal(found.said["random prime"][:, :PRIME], found.said["none"][:, :PRIME])


def test_a_mono_talker_is_given_no_prime(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(faithful(monkeypatch, "mono"))
    assert tuple(found.said) == ("none", "random string", "gaussian", "other sentence")
    assert torch.equal(found.said["other sentence"][0, :8], found.tokens[1, :8])


def test_shares_are_counted_behind_the_prime_by_hand() -> None:
    tokens = torch.tensor([[5, 6, 7, 8, END], [5, 9, 7, END, PAD]])
    words = torch.tensor([[False, True, True, True, False], [False, True, True, False, False]])
    said = torch.tensor([[5, 9, 7, 3, END], [2, 9, 2, 8, PAD]])
    found = Ablation(tokens=tokens, words=words, said={"none": said}, end_id=END)
    assert found.right("none").tolist() == pytest.approx([1 / 3, 1 / 2])
    assert found.other("none").tolist() == pytest.approx([1.0, 1 / 3])
    assert found.alike.tolist() == pytest.approx([1 / 2, 1 / 3])
    assert found.exact.tolist() == [0.0, 0.0]
    assert found.ended.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("variant", ["mono", "dual"])
def test_real_latents_and_words_do_not_depend_on_the_company(variant: str) -> None:
    model = tiny_pair(variant)
    one, all_at_once = run(model, batch_size=2), run(model, batch_size=6)
    for condition, said in one.said.items():
        assert torch.equal(said, all_at_once.said[condition]), condition
    chain, tokens = forced_chain(system_of(model), BATCH, 6)
    alone = {name: part[:1, 3:] for name, part in BATCH.items()}
    own = forced_chain(system_of(model), alone, 6)[0]
    torch.testing.assert_close(chain.latents[:1, :9], own.latents, rtol=1e-4, atol=2e-5)
    assert tokens[0, :9].tolist() == BATCH["input_ids"][0, 4:].tolist()
    # What a corrupted condition says is what the pair says of that chain after that prime.
    other = model.speak(chain.select(torch.tensor([1])), prime=None if variant == "mono" else tokens[:1, :PRIME])
    assert torch.equal(one.said["other sentence"][:1], other)


def test_a_random_string_has_the_length_and_the_markers_of_the_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = faithful(monkeypatch), []
    read = model.reasoner.read

    def watch(ids: Tensor, mask: Tensor) -> Any:
        seen.append(ids)
        return read(ids, mask)

    monkeypatch.setattr(model.reasoner, "read", watch)
    run(model, batch_size=6)
    clean, string = seen
    assert torch.equal(clean, BATCH["input_ids"])
    marked = (clean == END) | (clean == PAD)
    assert torch.equal(string[marked], clean[marked])
    assert bool(torch.isin(string[~marked], DRAWABLE).all())
    assert (string == clean)[~marked].double().mean() < 0.3


def test_the_summary_compares_each_corruption_with_none() -> None:
    tokens = torch.tensor([[5, 6, END], [7, 8, END]])
    words = torch.tensor([[True, True, False], [True, True, False]])
    said = {"none": tokens, "gaussian": torch.tensor([[5, 2, END], [2, 2, END]]), "other sentence": tokens.flip(0)}
    seed = Ablation(tokens=tokens, words=words, said=said, end_id=END)
    found = ablation_summary([seed, seed])
    json.dumps(found, allow_nan=False)
    assert found["exact_match"]["mean"] == 1.0
    assert found["alike"] == 0.0
    assert "change" not in found["conditions"]["none"]
    gaussian = found["conditions"]["gaussian"]
    assert gaussian["right"]["mean"] == pytest.approx(0.25)
    assert gaussian["change"]["mean"] == pytest.approx(-0.75)
    assert gaussian["right"]["low"] == 0.0
    assert gaussian["right"]["high"] == 0.5
    other = found["conditions"]["other sentence"]
    assert (other["right"]["mean"], other["other"]["mean"]) == (0.0, 1.0)
    assert other["change"]["p"] < 0.01


def test_impossible_sentences_are_one_clear_line() -> None:
    odd = {name: part[:3] for name, part in BATCH.items()}
    with pytest.raises(ValueError, match="3 sentences, 0 of them no longer than the prime of 3 tokens"):
        run(tiny_pair("dual"), **odd)
    with pytest.raises(ValueError, match="2 sentences, 1 of them no longer than the prime of 3 tokens"):
        run(tiny_pair("dual"), **sentences(3, 8))


# --- the next token ----------------------------------------------------------------------------------------------


def test_the_next_token_is_measured_row_by_row() -> None:
    ids = torch.tensor([[1, 5, 6, 7], [1, 9, 9, 2]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model = tiny_language_model("unspoken")
    found = next_tokens(system_of(model), batch, 1)
    for row in range(2):
        with torch.no_grad():
            chances = torch.log_softmax(model(ids[row : row + 1]).logits[0], dim=-1)
        wanted = [-float(chances[place, ids[row, place + 1]]) for place in range(3)]
        right = [int(chances[place].argmax()) == int(ids[row, place + 1]) for place in range(3)]
        assert found["loss"][row] == pytest.approx(np.mean(wanted), abs=1e-5)
        assert found["accuracy"][row] == pytest.approx(np.mean(right))
    reasoner = tiny_reasoner()
    latents = reasoner(ids).latents
    nearest = (latents @ reasoner.unit_table().T).argmax(dim=-1)
    assert next_tokens(system_of(reasoner), batch, 2)["accuracy"].tolist() == pytest.approx(
        (nearest[:, :-1] == ids[:, 1:]).double().mean(dim=1).tolist()
    )
    assert "loss" not in next_tokens(system_of(reasoner), batch, 2)


def test_sentences_are_paired_with_one_of_about_their_length() -> None:
    rows = [np.full(length, 7) for length in (9, 4, 6, 4, 8)]
    assert [len(row) for row in sentence_pairs(rows)] == [4, 4, 6, 8]
    with pytest.raises(ValueError, match="a single sentence"):
        sentence_pairs(rows[:1])
