"""Explicit chain of thought over our backbone and over three families of the library."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from conformance import ReasonerConformance
from tiny_models import FAMILIES, PAD, tiny_language_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from unspoken.methods.coupled import CoupledReasoner

# A token that each family's chains run into early, late and never.
ENDS = {"unspoken": 9, "llama": 7, "qwen2": 11, "gpt2": 4}


@pytest.fixture(params=[*product(FAMILIES, ("eager", "sdpa"))], ids="-".join)
def reasoner(request: pytest.FixtureRequest) -> CoupledReasoner:
    family, attention = request.param
    return CoupledReasoner(model=tiny_language_model(family, attention), end_id=ENDS[family], pad_id=PAD)


class TestConformance(ReasonerConformance):
    def teacher_forced(
        self, reasoner: CoupledReasoner, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)
        out = reasoner.model(input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False)
        return out.logits

    def reload(self, reasoner: CoupledReasoner, folder: Path) -> CoupledReasoner:
        reasoner.model.save_pretrained(folder)
        attention = reasoner.model.config._attn_implementation
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
        return CoupledReasoner(model=model, end_id=reasoner.end_id, pad_id=reasoner.pad_id)
