"""The shared suite on a GPU: every method, over every family and attention that its own tests have, in float32.

Prompts are made on the device too, so that a chain, what it is compared with, and all masks between are there.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import conformance
import pytest
import tiny_models
import torch
from on_device import DEVICE, again, placed
from torch import Tensor

from unspoken.reasoning.engine import StopRule, rollout

pytestmark = pytest.mark.gpu

coupled = again("methods/coupled/test_conformance")
jepa = again("methods/jepa_reasoner/test_conformance")
latent_sft = again("reasoning/test_causal_lm")
coconut = again("methods/coconut/test_reasoner")

coupled_reasoner = coupled.reasoner
jepa_reasoner = jepa.reasoner
latent_sft_reasoner = latent_sft.reasoner
coconut_reasoner = coconut.reasoner


def prompts(*how: Any, **more: Any) -> Tensor:
    """The suite's prompts on the device."""
    return tiny_models.prompts(*how, **more).to(DEVICE)


class OnDevice:
    """Moves a method's suite to the device."""

    module: ModuleType

    @pytest.fixture(autouse=True)
    def _there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (conformance, self.module):
            if hasattr(module, "prompts"):
                monkeypatch.setattr(module, "prompts", prompts)
        if DEVICE.type != "cpu":
            # The suite's bounds are those of a CPU's sums; a GPU adds in another order for every shape.
            monkeypatch.setitem(conformance.CLOSE, "rtol", 1e-3)
            monkeypatch.setitem(conformance.CLOSE, "atol", 2e-4)

    def reload(self, reasoner: Any, folder: Path) -> Any:
        return placed(super().reload(reasoner, folder))  # type: ignore[misc]

    def test_the_chain_is_the_one_that_a_cpu_writes(self, reasoner: Any) -> None:
        stop = StopRule(max_latents=conformance.CAP)
        there = rollout(reasoner, prompts(), None, stop)
        assert there.latents.device.type == DEVICE.type
        model = reasoner if isinstance(reasoner, torch.nn.Module) else reasoner.model
        model.to("cpu")
        here = rollout(reasoner, tiny_models.prompts(), None, stop)
        assert torch.equal(there.lengths.cpu(), here.lengths)
        assert torch.equal(there.stop.cpu(), here.stop)
        torch.testing.assert_close(there.latents.cpu(), here.latents, **conformance.CLOSE)


class TestCoupled(OnDevice, coupled.TestConformance):  # type: ignore[name-defined]
    module = coupled

    @pytest.fixture
    def reasoner(self, coupled_reasoner: Any) -> Any:
        return placed(coupled_reasoner)


class TestJepaReasoner(OnDevice, jepa.TestConformance):  # type: ignore[name-defined]
    module = jepa

    @pytest.fixture
    def reasoner(self, jepa_reasoner: Any) -> Any:
        return placed(jepa_reasoner)


class TestLatentSFT(OnDevice, latent_sft.TestConformance):  # type: ignore[name-defined]
    module = latent_sft

    @pytest.fixture
    def reasoner(self, latent_sft_reasoner: Any) -> Any:
        return placed(latent_sft_reasoner)


class TestCoconut(OnDevice, coconut.TestConformance):  # type: ignore[name-defined]
    module = coconut

    @pytest.fixture
    def reasoner(self, coconut_reasoner: Any) -> Any:
        return placed(coconut_reasoner)
