"""Noise is what its level says, is the same for everyone, and reaches chain, loop and answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import PAD
from tiny_strings import KINDS as SYSTEMS
from tiny_strings import TASK, planted, right_symbols, string_system, string_view
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.chain import LatentChain
from unspoken.draw.section import Section
from unspoken.draw.table import Table, grids
from unspoken.evaluation.latent_noise import LatentNoise, noisy_chain
from unspoken.probes.latent_noise import FRACTIONS, LatentNoiseProbe
from unspoken.reasoning.engine import LatentStep
from unspoken.reasoning.system import System

PROBE = LatentNoiseProbe()


# --- planted latents ---------------------------------------------------------------------------------------------


@dataclass
class Ones:
    """A Reasoner whose latents are all ones, of norm 4."""

    method: Any

    @property
    def stack(self) -> PreTrainedModel:
        return self.method.stack

    def embed_prompt(self, input_ids: Tensor) -> Tensor:
        return self.method.embed_prompt(input_ids)

    def step(self, hidden: Tensor) -> LatentStep:
        ones = torch.ones_like(hidden)
        return LatentStep(latent=ones, next_input=ones, done=torch.zeros(len(hidden), dtype=torch.bool))


def readers() -> list[System]:
    """Systems with that Reasoner: right where no latent changed, or no norm; the third leaves out two symbols."""
    right = right_symbols()

    def exact(_: Tensor, chain: LatentChain | None) -> Tensor:
        same = chain is None or bool((chain.latents == 1).all())
        return right if same else torch.full_like(right, PAD)

    def norms(_: Tensor, chain: LatentChain | None) -> Tensor:
        kept = torch.tensor(True) if chain is None else ((chain.latents.norm(dim=-1) - 4).abs() < 1e-4)
        return torch.where(kept.all(), right, PAD)

    systems = [
        planted(exact, name="exact"),
        planted(norms, name="norms"),
        planted(lambda *_: right[:, 2:], name="unmoved", replaced=2),
    ]
    reasoner = Ones(string_system("reasoner").reasoner)
    return [replace(system, reasoner=reasoner) for system in systems]


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    systems = readers()
    assert all(PROBE.applies(system, TASK) for system in systems)
    readings = {one.name: [PROBE.measure(string_view(one, seed=seed)) for seed in (0, 1)] for one in systems}
    return PROBE.summarise(readings, baseline=None)


def test_what_is_read_of_planted_latents_is_what_noise_takes(summary: dict[str, Any]) -> None:
    assert (summary["half"], summary["against"]) == (2, "unmoved")
    expected = {
        "renormalised": {"exact": 0.0, "norms": 1.0, "unmoved": 1.0},
        "free": {"exact": 0.0, "norms": 0.0, "unmoved": 1.0},
    }
    for kind, systems in expected.items():
        for name, after in systems.items():
            levels = summary[kind]["systems"][name]["levels"]
            assert [level["level"] for level in levels] == list(FRACTIONS)
            assert [level["exact"][-1]["mean"] for level in levels] == [1.0, after, after, after]
    assert summary["free"]["comparison"] == {}
    compared = summary["renormalised"]["comparison"]
    assert list(compared) == ["exact - unmoved", "norms - unmoved"]
    assert [level["exact"][-1]["absolute"]["mean"] for level in compared["exact - unmoved"]["levels"]] == [
        0,
        -1,
        -1,
        -1,
    ]
    json.dumps(summary, allow_nan=False)


def test_one_seed_has_its_own_values_and_the_same_comparison() -> None:
    readings = {one.name: [PROBE.measure(string_view(one, seed=0))] for one in readers()}
    summary = PROBE.summarise(readings, baseline=None)
    assert summary["against"] == "unmoved"
    assert summary["renormalised"]["systems"]["norms"]["levels"][-1]["exact"][-1]["mean"] == 1


def test_the_ratio_of_norms_is_that_of_the_draws(summary: dict[str, Any]) -> None:
    for name, steps in (("exact", 4), ("unmoved", 2)):
        norms = [
            np.linalg.norm(np.random.default_rng([seed, row, step]).standard_normal(16))
            for seed in (0, 1)
            for row in range(8)
            for step in range(steps)
        ]
        # The largest entry of a latent is 1, and its norm 4.
        expected = [fraction * np.mean(norms) / 4 for fraction in FRACTIONS]
        for kind in ("renormalised", "free"):
            assert summary[kind]["norm_ratio"][name] == pytest.approx(expected, rel=1e-5)


def test_the_section_has_both_kinds_of_noise_and_the_paper_s_values(summary: dict[str, Any]) -> None:
    section = PROBE.section({"probes": {"latent_noise": summary}})
    assert isinstance(section, Section)
    (table,) = section.blocks
    assert isinstance(table, Table)
    ((_, lines),) = grids(table)
    assert lines[2] == ["norms", "100.0", "100.0", "100.0", "100.0", "0.0", "0.0", "0.0"]
    assert lines[-1] == ["the paper’s coconut", "37.4", "36.9", "36.5", "36.3", "", "", ""]
    assert table.rows[0][2].note == "noise 0.05"
    assert PROBE.section({"probes": {}}) is None


@pytest.mark.parametrize("kind", SYSTEMS)
def test_without_noise_answers_from_a_noisy_chain_are_the_system_s_own(kind: str) -> None:
    view = string_view(string_system(kind), batch_size=3)
    system, prompts_of = view.system, TASK.prompts(view.problems)
    ids = torch.cat([prompts_of[0], torch.tensor([system.opening] * 8, dtype=torch.long).reshape(8, -1)], dim=1)
    mask = torch.cat([prompts_of[1], torch.ones(8, len(system.opening), dtype=torch.long)], dim=1)
    for fraction, same in ((0.0, True), (5.0, False)):
        noise = LatentNoise(fraction=fraction)
        chain, ratio = noisy_chain(system.reasoner, ids, mask, system.stop, noise, batch_size=3)
        # What a coupled model has chosen it gives; the noise shows in what it chooses next.
        assert torch.equal(view.answer(chain=chain).tokens, view.graded.tokens) is same
        assert bool(ratio > 1) is not same
    reading = PROBE.measure(view)
    for hits in reading.hits.values():
        assert hits[0.0].tolist() == view.graded.hits[:, 2:].tolist()
