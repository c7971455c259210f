"""How Coconut answers, by what its folders record."""

from __future__ import annotations

from typing import Any

import pytest
from plain_stage import TRAINED, facts_of_system, recording_model
from tiny_models import tiny_language_model

from unspoken.methods.coconut.systems import systems
from unspoken.reasoning.engine import StopRule


@pytest.mark.parametrize(
    ("feed", "fixed", "own"), [("hidden", True, True), ("hidden", False, False), ("superposition", True, False)]
)
def test_chains_of_hidden_states_of_one_length(feed: Any, fixed: bool, own: bool) -> None:
    made = systems(recording_model(feed=feed, fixed=fixed), stage="trained", max_answer=8)
    # Latents stand for symbols of a task without markers.
    facts = {**TRAINED, "stop": StopRule(max_latents=5, fixed=True), "kind": "hidden", "replaced": 5, "scorings": 0}
    assert [facts_of_system(one) for one in made] == ([facts] if own else [])
    assert systems(tiny_language_model("llama"), stage="hub", max_answer=8) == []
