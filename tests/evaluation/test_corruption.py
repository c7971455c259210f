"""The ablation of the Talker: a Talker that reads its latents well passes each test in the way that it should."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tiny_prose import PRIME, VOCABULARY, faithful, pair_of, prose_task, system_of
from torch import Tensor

from unspoken.evaluation.corruption import Ablation, ablate, ablation_summary
from unspoken.evaluation.teacher_forcing import answer_tokens, read_back, sentence_pairs
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.reasoning.picking import ForcedTokens
from unspoken.tasks import ProseTask
from unspoken.tasks.prose import EOS, PAD


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ProseTask:
    return prose_task(tmp_path_factory.mktemp("prose"))


def run(model: JepaReasonerForCausalLM, task: ProseTask, batch_size: int = 4) -> Ablation:
    system, sentences = system_of(model), sentence_pairs(task, 6)
    answers = read_back(system, task, sentences, batch_size)
    return ablate(system, task, sentences, answers, seed=1, batch_size=batch_size)


def test_a_faithful_talker_follows_the_latents_and_not_the_prime(
    task: ProseTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation = run(faithful(monkeypatch), task)
    assert set(ablation.decoded) == {"none", "random string", "random prime", "gaussian", "other sentence"}
    assert ablation.right("none").tolist() == ablation.right("random prime").tolist() == [1.0] * 6
    assert ablation.other("other sentence").tolist() == [1.0] * 6
    for condition in ("random string", "gaussian"):
        assert ablation.right(condition).mean() < 0.1, "one in three hundred by chance"
    # Only the prime itself differs.
    assert torch.equal(ablation.decoded["random prime"][:, PRIME:], ablation.decoded["none"][:, PRIME:])
    assert not torch.equal(ablation.decoded["random prime"][:, :PRIME], ablation.decoded["none"][:, :PRIME])


def test_a_mono_talker_is_given_no_prime(task: ProseTask, monkeypatch: pytest.MonkeyPatch) -> None:
    ablation = run(faithful(monkeypatch, "mono"), task)
    assert set(ablation.decoded) == {"none", "random string", "gaussian", "other sentence"}
    assert torch.equal(ablation.decoded["other sentence"][0, :14], ablation.tokens[1, :14])


def test_rates_are_counted_after_the_prime_by_hand() -> None:
    tokens = torch.tensor([[5, 6, 7, 8, EOS], [5, 9, 7, EOS, PAD]])
    scored = torch.tensor([[False, True, True, True, False], [False, True, True, False, False]])
    decoded = torch.tensor([[5, 9, 7, 3, EOS], [2, 9, 2, 8, PAD]])
    ablation = Ablation(tokens=tokens, scored=scored, decoded={"none": decoded})
    assert ablation.right("none").tolist() == pytest.approx([1 / 3, 1 / 2])
    assert ablation.other("none").tolist() == pytest.approx([1.0, 1 / 3])
    assert ablation.alike.tolist() == pytest.approx([1 / 2, 1 / 3])


@pytest.mark.parametrize("variant", ["mono", "dual"])
def test_decoded_tokens_do_not_depend_on_the_company(variant: str, task: ProseTask) -> None:
    model = pair_of(variant)
    two, six = run(model, task, batch_size=2), run(model, task, batch_size=6)
    for condition, decoded in two.decoded.items():
        assert torch.equal(decoded, six.decoded[condition]), condition
    # What a corrupted condition gives is what the pair makes of that chain after that prime.
    sentences = sentence_pairs(task, 6)
    chain = read_back(system_of(model), task, sentences, 6).chain.select(torch.tensor([1]))
    sample = None if variant == "mono" else ForcedTokens(six.tokens[:1, :PRIME])
    length = int(chain.lengths[0])
    assert torch.equal(six.decoded["other sentence"][:1, :length], model.speak(chain, sample=sample)[:, :length])


def test_a_random_string_has_the_length_and_the_markers_of_the_sentence(
    task: ProseTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = faithful(monkeypatch), []
    read = model.reasoner.read

    def watch(ids: Tensor, mask: Tensor) -> Any:
        seen.append(ids)
        return read(ids, mask)

    monkeypatch.setattr(model.reasoner, "read", watch)
    run(model, task, batch_size=6)
    clean, string = seen
    assert torch.equal(clean, task.rows(sentence_pairs(task, 6))["input_ids"])
    marked = (clean == EOS) | (clean == PAD)
    assert torch.equal(string[marked], clean[marked])
    assert bool((string[~marked] >= 2).all() & (string[~marked] < VOCABULARY).all())
    assert (string == clean)[~marked].double().mean() < 0.1


def test_a_prime_is_not_scored(task: ProseTask, monkeypatch: pytest.MonkeyPatch) -> None:
    ablation = run(faithful(monkeypatch), task)
    sentences = sentence_pairs(task, 6)
    assert torch.equal(ablation.tokens, answer_tokens(task.rows(sentences)))
    # Neither are the start and the end of a sentence, which are both markers.
    assert ablation.scored.sum(dim=1).tolist() == [len(row) - 2 - PRIME for row in sentences]
    assert not bool(ablation.scored[:, :PRIME].any())


def test_the_summary_compares_each_corruption_with_none() -> None:
    tokens = torch.tensor([[5, 6, EOS], [7, 8, EOS]])
    scored = torch.tensor([[True, True, False], [True, True, False]])
    gaussian = torch.tensor([[5, 2, EOS], [2, 2, EOS]])
    decoded = {"none": tokens, "gaussian": gaussian, "other sentence": tokens.flip(0)}
    seed = Ablation(tokens=tokens, scored=scored, decoded=decoded)
    summary = ablation_summary([seed])
    # Twice the same seed is no other.
    for name, condition in ablation_summary([seed, seed])["conditions"].items():
        assert condition["right"] == pytest.approx(summary["conditions"][name]["right"])
    json.dumps(summary, allow_nan=False)
    assert summary["alike"] == 0.0
    conditions = summary["conditions"]
    assert "change" not in conditions["none"]
    assert conditions["gaussian"]["right"]["mean"] == pytest.approx(0.25)
    assert conditions["gaussian"]["change"]["mean"] == pytest.approx(-0.75)
    change = conditions["gaussian"]["change"]
    assert (change["low"], change["high"]) == (-1.0, -0.5)
    assert (conditions["gaussian"]["right"]["low"], conditions["gaussian"]["right"]["high"]) == (0.0, 0.5)
    other = conditions["other sentence"]
    assert (other["right"]["mean"], other["other"]["mean"]) == (0.0, 1.0)
    # Of 2,000 draws none is on the other side.
    assert other["change"]["p"] == pytest.approx(2 / 2001)
