"""How Latent-SFT answers, in training and finished, by what its folders record."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from plain_stage import TRAINED, facts_of_system, recording_model
from tiny_models import tiny_language_model

from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.latent_sft.stages import LatentShape
from unspoken.methods.latent_sft.systems import systems
from unspoken.reasoning.causal_lm import LatentGenerationConfig
from unspoken.reasoning.engine import StopRule


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {}),
        ({"top_k": None}, {"scorings": 2}),
        ({"feed": "hidden"}, {"kind": "hidden"}),
        ({"top_k": 2, "fixed": True}, {"stop": StopRule(max_latents=5, fixed=True)}),
        # Explicit chains, and Coconut's.
        ({"top_k": 1}, None),
        ({"feed": "hidden", "fixed": True}, None),
    ],
)
def test_a_finished_decoder(settings: dict[str, Any], changes: dict[str, Any] | None) -> None:
    made = systems(recording_model(**settings), stage="trained", max_answer=8)
    assert [facts_of_system(one) for one in made] == ([] if changes is None else [{**TRAINED, **changes}])
    assert systems(tiny_language_model("llama"), stage="hub", max_answer=8) == []


def test_a_stage_in_training_answers_as_its_shape_has_it() -> None:
    """Nothing is recorded in stage 1, whose chains the encoder writes."""
    base = tiny_language_model("llama")
    shape = LatentShape(top_k=3, temperature=0.5)
    config = LatentSFTConfig(base_config=base.config, shape=asdict(shape), open_ids=[2], end_ids=[7, 6])
    model = LatentSFTModel._from_config(config, attn_implementation="eager")
    model.decoder.generation_config.eos_token_id, model.decoder.generation_config.pad_token_id = 1, 0
    (one,) = systems(model, stage="union", max_answer=8)
    settings = one.reasoner.settings  # type: ignore[attr-defined]
    # The temperature is that of the labels: the student has learned them as they are.
    assert (settings.top_k, settings.temperature, settings.feed) == (3, 1.0, "superposition")
    assert (one.opening, one.speaker.marker, one.stop.fixed) == ((2,), (7, 6), False)
    LatentGenerationConfig(open_ids=(4,), end_ids=(5,), top_k=2, temperature=0.5, max_latents=6).attach(model.decoder)
    (later,) = systems(model, stage="stage2", max_answer=8)
    assert (later.opening, later.stop.max_latents) == ((4,), 6)
    assert later.reasoner.settings.temperature == 0.5  # type: ignore[attr-defined]
