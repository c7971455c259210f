"""Forced words are said, reach exactly what can hear them, and are never counted against an answer they are part of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import enliven, tiny_config
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system
from torch import Tensor
from unspoken.evaluation.word_containment import (
    ForcedDecoding,
    WordEffect,
    answer_words,
    containment_summary,
    forced_decoding,
    word_containment,
)

from unspoken.chain import LatentChain
from unspoken.evaluation import word_containment as measured
from unspoken.evaluation.answering import answer_questions
from unspoken.methods import catalogue
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.reasoning.picking import FREE
from unspoken.reasoning.system import System
from unspoken.tasks.problems import ReasoningProblem

PROBLEMS = TASK.sample("test", range(7))
PAD, END = PROMPT_FORMAT.tokenizer.pad_token_id, PROMPT_FORMAT.tokenizer.eos_token_id
WORDS = torch.tensor([token for token in range(len(PROMPT_FORMAT.tokenizer)) if token not in (PAD, END)])


def pair(kind: str) -> list[System]:
    """An untrained Reasoner with a Talker, and the same read by its nearest rows."""
    settings = {"vocab_size": len(PROMPT_FORMAT.tokenizer), "max_position_embeddings": 160}
    config = JepaReasonerConfig(
        backbone_config=tiny_config("unspoken", l2_output=True, **settings),
        talker_config=tiny_config("unspoken", **settings),
        talker_kind=kind,
        pad_token_id=PAD,
        eos_token_id=END,
        open_ids=list(PROMPT_FORMAT.markers.open),
        max_latents=8,
    )
    model = JepaReasonerForCausalLM._from_config(config, attn_implementation="eager")
    enliven(model, "unspoken")
    model.reasoner.start_target()
    return catalogue.systems(model.eval(), stage=kind, max_answer=3)


def system_of(kind: str) -> System:
    if kind in ("mono", "dual"):
        return pair(kind)[0]
    known: dict[str, dict[str, Any]] = {
        "explicit": {"top_k": 1},
        "silent": {"top_k": 5},
        "hidden": {"feed": "hidden", "fixed": True, "max_latents": 3},
        "answer only": {"top_k": 1, "max_latents": 0, "fixed": True},
    }
    return replace(tiny_word_system(**known[kind]), max_tokens=6)


KINDS = ("explicit", "silent", "hidden", "answer only", "mono", "dual")


def forced(kind: str, batch_size: int = 7) -> ForcedDecoding:
    found = forced_decoding(system_of(kind), PROMPT_FORMAT, PROBLEMS, batch_size)
    assert found is not None
    return found


# --- forcing words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_without_force_is_what_the_system_answers(kind: str) -> None:
    one, answers = forced(kind), answer_questions(system_of(kind), PROMPT_FORMAT, PROBLEMS, 7)
    chain, said = one.run(None)
    assert torch.equal(chain.latents, answers.chain.latents)
    ended = (said == END).cumsum(dim=1) > 0
    spoken = said[:, one.answer_from :]
    assert torch.equal(spoken[~ended[:, one.answer_from :]], answers.tokens[~ended[:, one.answer_from :]])
    assert one.answer_from == (6 if kind == "explicit" else 0)
    if kind == "explicit":
        assert chain.support_ids is not None
        assert torch.equal(said[:, :6][chain.mask], chain.support_ids[:, :, 0][chain.mask])
    again, free = one.run(torch.full_like(said, FREE))
    assert torch.equal(free, said)
    assert torch.equal(again.latents, chain.latents)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forced_word_is_said_and_nothing_before_it_changes(kind: str) -> None:
    one = forced(kind)
    chain, clean = one.run(None)
    for at in (1, one.answer_from + 1):
        words = torch.full_like(clean, FREE)
        words[:, at] = torch.where(clean[:, at] == WORDS[40], WORDS[41], WORDS[40])
        again, said = one.run(words)
        # Where the row is still speaking: not every chain or answer is as long as that.
        first = one.answer_from if at > one.answer_from else 0
        spoken = torch.isin(clean[:, first : at + 1], WORDS).all(dim=1)
        assert spoken.sum() > 3
        assert torch.equal(said[spoken, at], words[spoken, at])
        assert torch.equal(said[:, first:at], clean[:, first:at])
        if kind == "explicit" and at == 1:
            assert torch.equal(again.latents[spoken, 0], chain.latents[spoken, 0])
            rows = system_of(kind).model.get_input_embeddings()(words[spoken, 1])
            assert torch.equal(again.latents[spoken, 1], rows)
        else:
            assert torch.equal(again.latents, chain.latents)


@pytest.mark.parametrize("kind", ["explicit", "dual"])
def test_forced_rows_are_the_same_in_any_company(kind: str) -> None:
    words = torch.full_like(forced(kind).run(None)[1], FREE)
    words[::2, 1], words[1::2, 3] = WORDS[30], WORDS[31]
    together = forced(kind).run(words)[1]
    assert torch.equal(forced(kind, 2).run(words)[1], together)


def test_nearest_rows_are_read_off_and_cannot_be_forced() -> None:
    _, nearest = pair("mono")
    assert nearest.name == "mono, nearest row"
    assert forced_decoding(nearest, PROMPT_FORMAT, PROBLEMS, 7) is None
    assert word_containment(nearest, PROMPT_FORMAT, PROBLEMS, 7, seed=0) is None


def test_words_that_may_be_forced_are_those_of_right_answers() -> None:
    some = [ReasoningProblem(question="", chains=(), answer=answer, key="") for answer in ("7", "12", "7")]
    assert answer_words(some, PROMPT_FORMAT).tolist() == sorted(
        [*PROMPT_FORMAT.encode("7"), *PROMPT_FORMAT.encode("12")]
    )
    # With one word there is no wrong one.
    assert word_containment(tiny_word_system(), PROMPT_FORMAT, [PROBLEMS[0]], 7, seed=0) is None


# --- what comes of it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "contained", "changes"),
    [
        ("explicit", False, True),
        ("silent", True, True),
        ("hidden", True, True),
        ("mono", True, False),
        ("dual", True, True),
    ],
)
def test_wrong_words_reach_an_explicit_chain_alone(
    monkeypatch: pytest.MonkeyPatch, kind: str, contained: bool, changes: bool
) -> None:
    monkeypatch.setattr(measured, "answer_words", lambda *_: WORDS)  # untrained models hardly ever say numbers
    effects = word_containment(system_of(kind), PROMPT_FORMAT, PROBLEMS, 3, seed=1)
    assert effects is not None
    last = effects[-1]
    assert last.latents_identical is contained
    assert (last.largest_latent_change == 0.0) is contained
    _, forced, later, changed, _, _ = last.counts.sum(axis=0)
    assert forced > 3
    assert later > 3
    assert bool(changed) is changes


@pytest.mark.parametrize("kind", ["explicit", "dual"])
def test_a_rate_of_zero_does_nothing(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(measured, "answer_words", lambda *_: WORDS)
    monkeypatch.setattr(measured, "RATES", (0.0,))
    effects = word_containment(system_of(kind), PROMPT_FORMAT, PROBLEMS, 7, seed=0)
    assert effects is not None
    assert effects[0].counts[:, 0].sum() > 10
    assert not effects[0].counts[:, 1:].any()
    assert (effects[0].latents_identical, effects[0].largest_latent_change) == (True, 0.0)


# A chain of four places and an answer of four; the second problem is answered wrong, the third says no box.
CHAINS = ("5 + 7 =", "5 + 7 12", "12 7 5 12", "9 + 3 =")
ANSWERS = ("\\boxed{12}", "\\boxed{7}", "12 12 12", "\\boxed{12}")
ASKED = [ReasoningProblem(question="", chains=(), answer=answer, key="") for answer in ("12", "9", "12", "12") * 10]
NUMBERS = {token for number in ("12", "9") for token in PROMPT_FORMAT.encode(number)}


def scripted(monkeypatch: pytest.MonkeyPatch, wider: int = 0, *, sealed: bool = False) -> list[Tensor]:
    """A system that loses its answer when a word of its chain was wrong; the words that are forced on it."""
    rows = [
        [*PROMPT_FORMAT.encode(chain), *PROMPT_FORMAT.encode(answer), *[END] * (4 - len(PROMPT_FORMAT.encode(answer)))]
        for chain, answer in zip(CHAINS, ANSWERS, strict=True)
    ]
    clean = torch.nn.functional.pad(torch.tensor(rows * 10), (0, wider), value=END)
    given = []

    def run(words: Tensor | None) -> tuple[LatentChain, Tensor]:
        latents, said = torch.zeros(40, 2, 4), clean.clone()
        if words is not None:
            given.append(words)
            said = torch.where(words == FREE, clean, words)
            lost = (words[:, :4] != FREE).any(dim=1) & (words[:, 5] == FREE)
            said[lost, 5] = PROMPT_FORMAT.encode("3")[0]
            latents[0, 1, 2] = -0.25
        mask = torch.ones(40, 2, dtype=torch.bool)
        return LatentChain(latents=latents, mask=mask, stop=torch.zeros(40, dtype=torch.long)), said

    found = ForcedDecoding(says="its words", run=run, answer_from=4, sealed=sealed)
    monkeypatch.setattr(measured, "forced_decoding", lambda *_: found)
    return given


def test_effects_are_counted_as_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    given = scripted(monkeypatch)
    effects = word_containment(tiny_word_system(), PROMPT_FORMAT, ASKED, 7, seed=3)
    assert effects is not None
    kinds = set()
    for effect, words in zip(effects, given, strict=True):
        assert effect.largest_latent_change == 0.25
        assert not effect.latents_identical
        for row, counts in enumerate(effect.counts.tolist()):
            clean = [*PROMPT_FORMAT.encode(CHAINS[row % 4]), *PROMPT_FORMAT.encode(ANSWERS[row % 4])]
            can = [place for place, token in enumerate(clean) if token in NUMBERS]
            forced = [place for place in range(8) if words[row, place] != FREE]
            assert set(forced) <= set(can)
            assert all(int(words[row, place]) in NUMBERS - {clean[place]} for place in forced)
            later = [place for place in range(len(clean)) if forced and place > forced[0] and place not in forced]
            lost = bool(forced) and forced[0] < 4
            # The number in the box is the sixth word.
            judged = bool(forced) and row % 4 in (0, 3) and 5 not in forced
            changed = [place for place in later if lost and place == 5]
            assert counts == [len(can), len(forced), len(later), len(changed), judged, judged and lost]
            kinds.add((row % 4 in (0, 3), 5 in forced, lost))
    # Answers that are right, forced themselves, behind a wrong word, and all of it together.
    assert len(kinds) >= 6


def test_places_do_not_depend_on_the_system_and_low_rates_are_part_of_high_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system = tiny_word_system()
    narrow = scripted(monkeypatch)
    word_containment(system, PROMPT_FORMAT, ASKED, 7, seed=3)
    wide = scripted(monkeypatch, wider=5)
    word_containment(system, PROMPT_FORMAT, ASKED, 7, seed=3)
    for one, other in zip(narrow, wide, strict=True):
        assert torch.equal(one, other[:, :8])
    low, high = narrow
    assert torch.equal(low[low != FREE], high[low != FREE])
    assert 0 < (low != FREE).sum() < (high != FREE).sum()
    another = scripted(monkeypatch)
    word_containment(system, PROMPT_FORMAT, ASKED, 7, seed=4)
    assert not torch.equal(another[1], high)


def test_a_reasoner_whose_latents_hear_words_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, sealed=True)
    with pytest.raises(AssertionError, match="finished before it"):
        word_containment(tiny_word_system(), PROMPT_FORMAT, ASKED, 7, seed=3)


def test_a_box_begins_where_it_is_opened() -> None:
    found: Callable[..., int] = measured._box_from
    for text in ("5 + 7 \\boxed{12}", "\\boxed{12}", "5 \\boxed{7} \\boxed{12}"):
        row = [*PROMPT_FORMAT.encode(text), END, END]
        assert found(row, PROMPT_FORMAT.tokenizer) == row.index(PROMPT_FORMAT.box[0])
    row = [*PROMPT_FORMAT.encode("5 + 7"), END]
    assert found(row, PROMPT_FORMAT.tokenizer) == len(row)


# --- tables ----------------------------------------------------------------------------------------------------------


def effect(*rows: list[float], change: float = 0.0) -> WordEffect:
    return WordEffect(
        says="its words", counts=np.array(rows), latents_identical=change == 0, largest_latent_change=change
    )


def test_the_summary_weighs_words_and_answers_alike() -> None:
    nothing = effect([0.0, 0, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0])
    first, second = (
        effect([4.0, 2, 2, 1, 1, 1], [4, 1, 3, 0, 1, 0]),
        effect([4.0, 2, 1, 1, 1, 1], [8, 3, 2, 0, 0, 0], change=0.5),
    )
    found = containment_summary({"cot": [[nothing, first], [nothing, second]]})
    assert found is not None
    assert (found["problems"], found["rates"]) == (2, [0.1, 0.3])
    quiet, loud = found["systems"]["cot"]["effects"]
    assert found["systems"]["cot"]["says"] == "its words"
    assert (quiet["forced"]["mean"], quiet["later_changed"], quiet["answers_lost"], quiet["judged"]) == (
        0,
        None,
        None,
        0,
    )
    assert loud["forced"]["mean"] == 8 / 20
    assert loud["later_changed"]["mean"] == 2 / 8
    assert loud["answers_lost"]["mean"] == pytest.approx(2 / 3)
    assert loud["answers_lost"]["low"] <= 2 / 3 <= loud["answers_lost"]["high"]
    assert loud["judged"] == 3
    assert (quiet["latents_identical"], loud["latents_identical"]) == (True, False)
    assert (quiet["largest_latent_change"], loud["largest_latent_change"]) == (0.0, 0.5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert containment_summary({}) is None
