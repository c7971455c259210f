"""Forced symbols are counted where they were forced, and reach exactly what reads them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conformance import assert_same_chain
from tiny_models import PAD, prompts, tiny_language_model, tiny_pair
from tiny_strings import KINDS, TASK, right_symbols, string_system, string_view
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.draw.page import to_html
from unspoken.draw.section import Section
from unspoken.evaluation.forcing import Effect, Run, containment, effect_summary, forced_run
from unspoken.evaluation.outcomes import PAIR
from unspoken.methods import catalogue
from unspoken.probes.forced_symbols import ForcedSymbolsProbe
from unspoken.reasoning.causal_lm import LatentGenerationConfig, causal_lm_system
from unspoken.reasoning.picking import FREE, ForcedTokens
from unspoken.reasoning.speakers import Separate
from unspoken.reasoning.system import System

PROBE = ForcedSymbolsProbe()
# Everything but padding and the ends of the models below.
WORDS = torch.tensor([*range(2, 9), *range(10, 20)])


def run_of(kind: str) -> Run:
    if kind == "superposition":
        settings = LatentGenerationConfig(open_ids=(2,), end_ids=(3,), top_k=10, max_latents=4)
        model = tiny_language_model("unspoken")
        return forced_run(causal_lm_system(model, settings, name=kind, max_tokens=6), prompts(), fill=PAD)
    model = tiny_language_model("unspoken") if kind == "coupled" else tiny_pair(kind)
    system = catalogue.systems(model, stage=kind, max_answer=6, end_id=9, pad_id=PAD)[0]
    return forced_run(system.of_length(6), prompts(), fill=PAD)


RUNS = ["mono", "dual", "coupled", "superposition"]


@pytest.mark.parametrize("kind", RUNS)
def test_forced_tokens_are_given_and_free_ones_are_the_system_s_own(kind: str) -> None:
    run = run_of(kind)
    chain, clean = run(None)
    again, tokens = run(torch.full_like(clean, FREE))
    assert torch.equal(tokens, clean)
    assert_same_chain(again, chain)
    words = torch.full_like(clean, FREE)
    words[:, 1] = torch.where(clean[:, 1] == 5, 6, 5)
    chosen = torch.isin(clean[:, :2], WORDS).all(dim=1)
    assert chosen.any()
    tokens = run(words)[1]
    assert torch.equal(tokens[chosen, 1], words[chosen, 1])
    assert torch.equal(tokens[:, 0], clean[:, 0])


@pytest.mark.parametrize(
    ("kind", "contained", "changes"),
    [("mono", True, False), ("dual", True, True), ("coupled", False, True), ("superposition", True, True)],
)
def test_wrong_tokens_reach_the_chain_of_the_coupled_model_alone(kind: str, contained: bool, changes: bool) -> None:
    run = run_of(kind)
    effect = containment(run, run(None)[1], alternatives=WORDS, rate=0.3, seed=0)
    assert effect.latents_identical is contained
    assert (effect.largest_latent_change == 0.0) is contained
    _, forced, later, changed, right_clean, right_forced = effect.counts.T
    assert forced.sum() > 3
    assert later.sum() > 3
    assert bool(changed.any()) is changes
    # What would have been given counts as right here.
    assert np.array_equal(right_clean, later)
    assert np.array_equal(right_forced, later - changed)


def test_no_force_has_no_effect() -> None:
    effect = containment(run_of("coupled"), torch.zeros(6, 6, dtype=torch.long), alternatives=WORDS, rate=0.0, seed=0)
    assert effect.latents_identical
    assert not effect.counts[:, 1:].any()
    assert effect.counts[:, 0].sum() > 10


def test_effects_are_counted_after_the_first_forced_token() -> None:
    clean = torch.tensor([[5, 6, 7, 1, 1], [5, 5, 5, 5, 8], [1, 1, 1, 1, 1]])
    right = torch.tensor([[5, 6, 9, 1, 1], [9, 5, 5, 9, 9], [1, 1, 1, 1, 1]])
    given = []

    def run(words: Tensor | None) -> tuple[LatentChain, Tensor]:
        mask = torch.ones(3, 2, dtype=torch.bool)
        latents = torch.zeros(3, 2, 4)
        tokens = clean.clone()
        if words is not None:
            given.append(words)
            latents[1, 1, 2] = -0.25
            for row in range(3):  # a free token after a forced one becomes a nine
                for position in range(5):
                    if words[row, position] != FREE:
                        tokens[row, position] = words[row, position]
                    elif (words[row, :position] != FREE).any():
                        tokens[row, position] = 9
        return LatentChain(latents=latents, mask=mask, stop=torch.zeros(3, dtype=torch.long)), tokens

    effect = containment(run, right, alternatives=torch.tensor([5, 6, 7, 8]), rate=0.4, seed=2)
    assert effect.largest_latent_change == 0.25
    assert not effect.latents_identical
    expected = []
    for row, can in enumerate(([0, 1, 2], [0, 1, 2, 3, 4], [])):
        forced = [position for position in range(5) if given[0][row, position] != FREE]
        later = [position for position in can if forced and position > forced[0] and position not in forced]
        right_clean = sum(bool(clean[row, position] == right[row, position]) for position in later)
        right_forced = sum(bool(right[row, position] == 9) for position in later)
        expected.append([len(can), len(forced), len(later), len(later), right_clean, right_forced])
    assert effect.counts.tolist() == expected
    assert [row[1] for row in expected] == [1, 2, 0]
    assert sum(row[2] for row in expected) > 0


def test_the_summary_of_effects_weighs_every_symbol_alike() -> None:
    first = Effect(
        counts=np.array([[4.0, 2, 1, 1, 1, 0], [4, 2, 3, 0, 3, 3]]),
        latents_identical=True,
        largest_latent_change=0.0,
    )
    second = Effect(
        counts=np.array([[4.0, 2, 2, 2, 1, 0], [4, 0, 0, 0, 0, 0]]),
        latents_identical=False,
        largest_latent_change=0.5,
    )
    effect = effect_summary([first, second], draws=200)
    assert effect["forced"]["mean"] == 6 / 16
    assert effect["later_changed"]["mean"] == 3 / 6
    assert effect["later_accuracy"]["clean"]["mean"] == 5 / 6
    assert effect["later_accuracy"]["forced"]["mean"] == 3 / 6
    assert effect["later_changed"]["low"] < 0.5 < effect["later_changed"]["high"]
    assert (effect["latents_identical"], effect["largest_latent_change"]) == (False, 0.5)
    assert json.loads(json.dumps(effect, allow_nan=False)) == effect
    nothing = Effect(counts=np.zeros((3, 6)), latents_identical=True, largest_latent_change=0.0)
    assert effect_summary([nothing], draws=20)["later_changed"] is None


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
    assert PROBE.applies(believer(PAIR), TASK)
    readings = {
        name: [PROBE.measure(string_view(believer(name), seed=seed)) for seed in (0, 1)] for name in (PAIR, "b")
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
