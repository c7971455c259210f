"""The Reasoner over our backbone and over three families of the library."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from conformance import ReasonerConformance
from tiny_models import FAMILIES, tiny_reasoner
from torch import Tensor
from transformers import AutoModel

from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel

# A token whose row each family's chains run into early, late and never.
ENDS = {"unspoken": 9, "llama": 18, "qwen2": 3, "gpt2": 17}


@pytest.fixture(params=[*product(FAMILIES, ("eager", "sdpa"), (True,)), ("unspoken", "eager", False)], ids=str)
def reasoner(request: pytest.FixtureRequest) -> JepaReasonerModel:
    family, attention, unit_tokens = request.param
    model = tiny_reasoner(family, attention, unit_tokens=unit_tokens)
    model.config.eos_token_id = ENDS[family]
    return model


class TestConformance(ReasonerConformance):
    def teacher_forced(
        self, reasoner: JepaReasonerModel, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        return reasoner(input_ids, attention_mask).latents

    def reload(self, reasoner: JepaReasonerModel, folder: Path) -> JepaReasonerModel:
        reasoner.save_pretrained(folder)
        return AutoModel.from_pretrained(folder, attn_implementation=reasoner.config._attn_implementation)
