"""What is read of text that is known: next tokens, latents of answers, and sentences read back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_language_model, tiny_reasoner
from tiny_prose import PRIME, faithful, pair_of, prose_task, system_of

from unspoken.chain import StopReason
from unspoken.evaluation.teacher_forcing import answer_tokens, forced_chain, next_tokens, read_back, sentence_pairs
from unspoken.methods import catalogue
from unspoken.tasks import ProseTask
from unspoken.tasks.prose import EOS


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ProseTask:
    return prose_task(tmp_path_factory.mktemp("prose"))


# --- next tokens -------------------------------------------------------------------------------------------------


def test_the_next_token_is_measured_row_by_row() -> None:
    ids = torch.tensor([[1, 5, 6, 7], [1, 9, 9, 2]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model = tiny_language_model("unspoken")
    (system,) = catalogue.systems(model, stage="it", max_answer=12)
    read = next_tokens(system, batch, 1)
    for row in range(2):
        with torch.no_grad():
            chances = torch.log_softmax(model(ids[row : row + 1]).logits[0], dim=-1)
        losses = [-float(chances[position, ids[row, position + 1]]) for position in range(3)]
        right = [int(chances[position].argmax()) == int(ids[row, position + 1]) for position in range(3)]
        assert read["loss"][row] == pytest.approx(np.mean(losses), abs=1e-5)
        assert read["accuracy"][row] == pytest.approx(np.mean(right))
    reasoner = tiny_reasoner()
    latents = reasoner(ids).latents
    nearest = (latents @ reasoner.unit_table().T).argmax(dim=-1)
    (system,) = catalogue.systems(reasoner, stage="it", max_answer=12)
    assert next_tokens(system, batch, 2)["accuracy"].tolist() == pytest.approx(
        (nearest[:, :-1] == ids[:, 1:]).double().mean(dim=1).tolist()
    )
    assert "loss" not in next_tokens(system, batch, 2)


# --- sentences ---------------------------------------------------------------------------------------------------


def test_sentences_are_paired_with_one_of_about_their_length(task: ProseTask) -> None:
    for most, count in ((2, 2), (3, 2), (5, 4), (6, 6)):
        pairs = sentence_pairs(task, most)
        lengths = [len(row) for row in pairs]
        assert len(lengths) == count
        assert lengths == sorted(lengths)
    first = {row.tobytes() for row in task.first("test", 6, kind="sentences")}
    assert {row.tobytes() for row in pairs} == first
    with pytest.raises(ValueError, match="a single sentence"):
        sentence_pairs(task, 1)


def test_latents_of_a_sentence_do_not_depend_on_the_company(task: ProseTask) -> None:
    system, pairs = system_of(pair_of("dual")), sentence_pairs(task, 6)
    batch = task.rows(pairs)
    chain, tokens = forced_chain(system, batch, 4), answer_tokens(batch)
    assert set(chain.stop.tolist()) == {StopReason.FIXED}
    for row, sentence in enumerate(pairs):
        length = len(sentence) - 1
        alone = forced_chain(system, task.rows(pairs.select([row])), 1)
        assert int(chain.lengths[row]) == int(alone.lengths[0]) == length
        torch.testing.assert_close(chain.latents[row, :length], alone.latents[0], rtol=1e-4, atol=2e-5)
        assert tokens[row, :length].tolist() == sentence[1:].tolist()


@pytest.mark.parametrize("variant", ["mono", "dual"])
def test_a_faithful_pair_reads_every_sentence_back(
    variant: str, task: ProseTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, pairs = system_of(faithful(monkeypatch, variant)), sentence_pairs(task, 6)
    answers = read_back(system, task, pairs, 4)
    assert answers.correct.tolist() == [True] * 6
    assert answers.lengths.tolist() == [len(row) - 1 for row in pairs]
    for tokens, length, row in zip(answers.tokens, answers.lengths, pairs, strict=True):
        assert tokens[:length].tolist() == row[1:].tolist()


@dataclass
class Slip:
    """A Talker that gives a wrong token at one position, counted from the last one that a sentence has."""

    position: int

    def __call__(self, speak, chain, sample):  # type: ignore[no-untyped-def]
        tokens = speak(chain, sample=sample)
        at = self.position if self.position >= 0 else chain.lengths + self.position
        return tokens.index_fill(1, torch.tensor([at]), 7) if isinstance(at, int) else tokens.scatter(1, at[:, None], 7)


@pytest.mark.parametrize(("position", "right"), [(PRIME - 1, True), (PRIME, False), (-2, False), (-1, True)])
def test_tokens_after_the_prime_and_before_the_end_must_be_right(
    position: int, right: bool, task: ProseTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs = faithful(monkeypatch, "mono"), sentence_pairs(task, 6)
    speak, slip = model.speak, Slip(position)
    monkeypatch.setattr(model, "speak", lambda chain, *, sample=None: slip(speak, chain, sample))
    batch = task.rows(pairs)
    assert not bool((answer_tokens(batch) == 7).any()), "the wrong token is right nowhere"
    answers = read_back(system_of(model), task, pairs, 6)
    assert answers.correct.tolist() == [right] * 6
    if position == -1:  # without an end an answer has the length of its chain
        assert not bool((answers.tokens == EOS).any())
        assert answers.lengths.tolist() == answers.chain.lengths.tolist()


def test_a_prime_is_given_to_a_talker_that_reads_tokens(task: ProseTask) -> None:
    pairs = sentence_pairs(task, 6)
    right = answer_tokens(task.rows(pairs))
    dual, mono = (read_back(system_of(pair_of(variant)), task, pairs, 6).tokens for variant in ("dual", "mono"))
    assert torch.equal(dual[:, :PRIME], right[:, :PRIME])
    assert not torch.equal(mono[:, :PRIME], right[:, :PRIME])


def test_sentences_of_a_folder_can_be_read(tmp_path: Path) -> None:
    assert len(sentence_pairs(prose_task(tmp_path), 4)) == 4
