"""The coupled model reasons exactly as the library's greedy generation does."""

from __future__ import annotations

import pytest
import torch
from conformance import left_padded
from tiny_models import FAMILIES, PAD, prompts, tiny_language_model

from unspoken.methods.coupled.reasoner import CoupledReasoner
from unspoken.reasoning.engine import StopRule, rollout

ENDS = {"unspoken": 9, "llama": 7, "qwen2": 11, "gpt2": 4}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padded", [False, True])
def test_greedy_generation_of_the_library_gives_the_same_tokens(family: str, padded: bool) -> None:
    model = tiny_language_model(family)
    rows = [row[(index % 3 if padded else 0) :] for index, row in enumerate(prompts())]
    ids, mask = left_padded(rows)
    reasoner = CoupledReasoner(model=model, end_id=ENDS[family], pad_id=PAD)
    spoken = reasoner.speak(rollout(reasoner, ids, mask, StopRule(max_latents=8)))
    expected = model.generate(
        ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=ENDS[family], pad_token_id=PAD
    )[:, ids.shape[1] :]
    assert torch.equal(spoken, expected)
    assert (spoken == ENDS[family]).any()
