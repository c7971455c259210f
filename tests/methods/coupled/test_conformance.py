"""Explicit chain of thought over our backbone and over three families of the library."""

from __future__ import annotations

from itertools import product

import pytest
from conformance import CausalConformance
from tiny_models import FAMILIES, PAD, tiny_language_model

from unspoken.methods.coupled.reasoner import CoupledReasoner

# A token that each family's chains run into early, late and never.
ENDS = {"unspoken": 9, "llama": 7, "qwen2": 11, "gpt2": 4}


@pytest.fixture(params=[*product(FAMILIES, ("eager", "sdpa"))], ids="-".join)
def reasoner(request: pytest.FixtureRequest) -> CoupledReasoner:
    family, attention = request.param
    return CoupledReasoner(model=tiny_language_model(family, attention), end_id=ENDS[family], pad_id=PAD)


class TestConformance(CausalConformance):
    """Nothing but what every causal language model has."""
