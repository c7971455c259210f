"""How a Reasoner answers, with a Talker and without one, by hand."""

from __future__ import annotations

import pytest
import torch
from plain_stage import facts_of_system
from tiny_models import END, VOCABULARY, WIDTH, tiny_language_model, tiny_pair, tiny_reasoner

from unspoken.methods.jepa_reasoner.systems import systems, talker_flops
from unspoken.reasoning.engine import StopRule


@pytest.mark.parametrize(("variant", "passes"), [("mono", 1), ("dual", 1 + 4)])
def test_a_pair_answers_with_its_talker_and_with_nearest_rows(variant: str, passes: int) -> None:
    pair = tiny_pair(variant)
    pair.reasoner.config.max_latents, pair.reasoner.config.open_ids = 9, [2, 3]
    with_talker, nearest = systems(pair, stage="talker")
    facts = {
        "name": "talker",
        "opening": (2, 3),
        "marker": (),
        "ends": (END,),
        "stop": StopRule(max_latents=9),
        "max_tokens": 9,
        "kind": "latent",
        "table": VOCABULARY * WIDTH,
    }
    assert facts_of_system(with_talker) == facts
    assert facts_of_system(nearest) == {**facts, "name": "talker, nearest row"}
    speaker = with_talker.speaker
    assert (speaker.samples, speaker.reads_tokens, speaker.chain_tokens) == (True, variant == "dual", False)
    # Latents are a mean over rows, which is rounded.
    assert speaker.chain_passes(4.4) == passes
    latents = torch.tensor([3.0, 5.0])
    assert torch.equal(speaker.chain_flops(latents), talker_flops(pair.talker, latents))
    rows = nearest.speaker
    assert (rows.samples, rows.chain_passes(4.4), rows.chain_flops(latents)) == (False, 0, 0)


def test_a_reasoner_answers_alone_and_others_are_not_its() -> None:
    (alone,) = systems(tiny_reasoner(), stage="sst")
    assert (alone.name, alone.opening, alone.targets) == ("sst", (), alone.model)
    assert systems(tiny_language_model("llama"), stage="cot") == []
