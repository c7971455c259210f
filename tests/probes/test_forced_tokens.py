"""Forced tokens are measured of systems that decode tokens, and weighed alike."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import tiny_pair
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system, word_view

from unspoken.evaluation import forced_tokens as measured
from unspoken.evaluation.forced_tokens import Effect, effects_of, forced_decoding
from unspoken.methods import catalogue
from unspoken.probes.forced_tokens import ForcedTokensProbe, Reading

PROBE = ForcedTokensProbe()
PAD, END = PROMPT_FORMAT.tokenizer.pad_token_id, PROMPT_FORMAT.tokenizer.eos_token_id
TOKENS = torch.tensor([token for token in range(len(PROMPT_FORMAT.tokenizer)) if token not in (PAD, END)])


def test_nearest_rows_are_read_off_and_cannot_be_forced() -> None:
    talker, nearest = catalogue.systems(tiny_pair("mono"), stage="mono", max_answer=3)
    assert nearest.name == "mono, nearest row"
    assert PROBE.applies(talker, TASK)
    assert not PROBE.applies(nearest, TASK)


def test_a_single_token_has_no_wrong_one() -> None:
    view = word_view(tiny_word_system(), 2)
    assert PROBE.measure(replace(view, problems=view.problems.select([0]))) is None


def test_of_two_tokens_each_is_the_other_s_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "answer_tokens", lambda *_: TOKENS[:2])
    assert PROBE.measure(word_view(tiny_word_system(), 2)) is not None


def test_a_system_is_measured_by_what_its_tokens_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "answer_tokens", lambda *_: TOKENS)
    view = word_view(replace(tiny_word_system(top_k=1), max_tokens=6), 7, batch_size=3, seed=1)
    reading = PROBE.measure(view)
    assert reading is not None
    assert reading.output_kind == "its explicit chain and its answer"
    decoding = forced_decoding(view.system, TASK, view.problems, PROMPT_FORMAT, 7)
    expected = effects_of(decoding, TASK, view.problems, PROMPT_FORMAT, TOKENS, 1)
    for effect, other in zip(reading.effects, expected, strict=True):
        assert effect.counts.tolist() == other.counts.tolist()


def effect(*rows: list[float], change: float = 0.0) -> Effect:
    return Effect(counts=np.array(rows), latents_identical=change == 0, largest_latent_change=change)


def reading(*effects: Effect) -> Reading:
    return Reading(output_kind="its tokens", effects=list(effects))


def test_the_summary_weighs_tokens_and_answers_alike() -> None:
    nothing = effect([0.0, 0, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0])
    first, second = (
        effect([4.0, 2, 2, 1, 1, 1], [4, 1, 3, 0, 1, 0]),
        effect([4.0, 2, 1, 1, 1, 1], [8, 3, 2, 0, 0, 0], change=0.5),
    )
    found = PROBE.summarise({"cot": [reading(nothing, first), reading(nothing, second)]}, baseline=None)
    assert (found["problems"], found["rates"]) == (2, [0.1, 0.3])
    quiet, loud = found["systems"]["cot"]["effects"]
    assert found["systems"]["cot"]["output_kind"] == "its tokens"
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
    alone = PROBE.summarise({"cot": [reading(second)]}, baseline=None)
    assert (alone["problems"], len(alone["systems"]["cot"]["effects"])) == (2, 1)
