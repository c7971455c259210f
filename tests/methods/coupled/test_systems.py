"""How language models answer that reason in tokens, by what their folders record."""

from __future__ import annotations

from typing import Any

import pytest
from plain_stage import TRAINED, facts_of_system, recording_model
from tiny_models import VOCABULARY, WIDTH, tiny_language_model

from unspoken.methods.coupled.systems import systems
from unspoken.reasoning.engine import StopRule


def test_a_chain_of_tokens_is_also_thought_softly() -> None:
    hard, soft = systems(recording_model(top_k=1), stage="trained", max_answer=8)
    assert facts_of_system(hard) == {**TRAINED, "kind": "tokens"}
    assert facts_of_system(soft) == {**TRAINED, "name": "trained, soft thinking"}
    assert soft.reasoner.settings.top_k == 10  # type: ignore[attr-defined]
    names = [one.name for one in systems(recording_model(top_k=1), stage="cot", max_answer=8)]
    assert names == ["cot", "soft thinking"]


def test_answers_alone_have_no_chain_to_soften() -> None:
    (alone,) = systems(recording_model(top_k=1, max_latents=0, fixed=True), stage="answer_only", max_answer=8)
    assert (alone.stop, alone.chain_kind) == (StopRule(max_latents=0, fixed=True), "tokens")


@pytest.mark.parametrize("settings", [{"top_k": 2}, {"top_k": 1, "feed": "hidden"}, {"top_k": None}])
def test_folders_of_other_methods_are_not_read(settings: dict[str, Any]) -> None:
    assert systems(recording_model(**settings), stage="cot", max_answer=8) == []


def test_any_other_language_model_writes_its_chain_as_its_answer() -> None:
    model = tiny_language_model("llama")
    model.config.eos_token_id, model.config.pad_token_id = 3, 4
    (plain,) = systems(model, stage="hub", max_answer=8)
    assert facts_of_system(plain) == {
        "name": "hub",
        "opening": (),
        "marker": (),
        "ends": (3,),
        "stop": StopRule(max_latents=8),
        "max_tokens": 8,
        "kind": "tokens",
        "table": VOCABULARY * WIDTH,
    }
    assert (plain.speaker.chain_tokens, plain.speaker.samples) == (True, False)
    assert (plain.reasoner.end_id, plain.reasoner.pad_id) == (3, 4)  # type: ignore[attr-defined]
    (named,) = systems(model, stage="hub", max_answer=8, end_id=0, pad_id=0)
    assert (named.reasoner.end_id, named.reasoner.pad_id) == (0, 0)  # type: ignore[attr-defined]
    model.config.pad_token_id = None
    (unpadded,) = systems(model, stage="hub", max_answer=8)
    assert unpadded.reasoner.pad_id == 3  # type: ignore[attr-defined]
    model.config.eos_token_id = [3, 4]
    with pytest.raises(ValueError, match=r"hub: eos_token_id is \[3, 4\]"):
        systems(model, stage="hub", max_answer=8)
