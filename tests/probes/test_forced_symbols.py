"""Forced symbols are counted where they were forced, and reach exactly what reads them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import PAD
from tiny_strings import KINDS, TASK, right_symbols, string_system, string_view
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.draw.page import to_html
from unspoken.draw.section import Section
from unspoken.evaluation.outcomes import JEPA_REASONER
from unspoken.probes.forced_symbols import ForcedSymbolsProbe
from unspoken.reasoning.picking import FREE, ForcedTokens
from unspoken.reasoning.speakers import Separate
from unspoken.reasoning.system import System

PROBE = ForcedSymbolsProbe()


# --- systems on strings ------------------------------------------------------------------------------------------


def believer(name: str) -> System:
    """Its second half is right where its first half is, and nothing else; left alone it answers rightly."""
    right = right_symbols()

    def say(_: LatentChain, sample: Any) -> Tensor:
        if sample is None:
            return right
        assert isinstance(sample, ForcedTokens)
        forced = torch.nn.functional.pad(sample.tokens, (0, 4 - sample.tokens.shape[1]), value=FREE)
        follows = ((forced == FREE) | (forced == right)).all(dim=1, keepdim=True)
        return torch.where(forced != FREE, forced, torch.where(follows, right, PAD))

    speaker = Separate(decode=say, end_ids=(1,), samples=True, reads_tokens=True)
    return replace(string_system("reasoner"), name=name, speaker=speaker)


def test_a_planted_talker_follows_its_wrong_symbols_and_its_prime() -> None:
    assert PROBE.applies(believer(JEPA_REASONER), TASK)
    readings = {
        name: [PROBE.measure(string_view(believer(name), seed=seed)) for seed in (0, 1)]
        for name in (JEPA_REASONER, "b")
    }
    assert readings["b"][0].primed == {}
    summary = PROBE.summarise(readings, baseline=None)
    assert summary["half"] == 2
    for effect in summary["systems"].values():
        # A quarter of four symbols is one; whatever comes after it changes.
        assert effect["forced"]["mean"] == 0.25
        assert effect["later_changed"]["mean"] == 1.0
        assert effect["later_accuracy"]["clean"]["mean"] == 1.0
        assert effect["later_accuracy"]["forced"]["mean"] == 0.0
        assert (effect["latents_identical"], effect["largest_latent_change"]) == (True, 0.0)
    accuracy = {name: entry["symbol_accuracy"] for name, entry in summary["prime"].items()}
    assert accuracy == {"right": 1.0, "wrong": 0.0}
    assert summary["prime"]["right"]["exact_match"]["mean"] == 1.0
    json.dumps(summary, allow_nan=False)
    section = PROBE.section({"probes": {"forced_symbols": summary}})
    assert isinstance(section, Section)
    page = to_html(section.blocks)
    assert "given the first 2 symbols, gets 100.0\xa0% of the others right; given wrong ones, 0.0\xa0%" in page
    assert PROBE.section({"probes": {}}) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_out_cannot_be_forced(kind: str) -> None:
    assert PROBE.applies(string_system(kind), TASK) is (kind != "reasoner")


@pytest.mark.parametrize(("kind", "identical"), [("coupled", False), ("coconut", True)])
def test_symbols_reach_only_the_chain_that_is_made_of_them(kind: str, identical: bool) -> None:
    effect = PROBE.measure(string_view(string_system(kind), problems=100)).effect
    assert effect.counts[:, 1].sum() > 3
    assert effect.latents_identical is identical
