"""Continuing strings with every kind of model, and what is measured on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import prompts, tiny_language_model, tiny_pair
from tiny_recipe import quiet_train
from tiny_strings import tiny_strings
from unspoken.evaluation.strings import TOKEN_RATES, continued, under_noise

from unspoken.evaluation.outcomes import unpacked
from unspoken.experiment import final_stages, measure_run, open_run
from unspoken.methods import catalogue
from unspoken.reasoning.causal_lm import LatentGenerationConfig
from unspoken.reasoning.system import System
from unspoken.tasks.context_free import EOS

REAL = (torch.arange(6) >= torch.tensor([0, 3, 1, 0, 4, 2, 0, 1, 3])[:, None]).long()
PROMPTS = (prompts(9, 6) * REAL, REAL)
KINDS = ("coupled", "coconut", "reasoner", "mono", "dual")


def one_of(kind: str) -> System:
    """A system with lively random weights."""
    if kind in ("mono", "dual"):
        return catalogue.systems(tiny_pair(kind), stage=kind, max_answer=4)[0]
    if kind == "reasoner":
        return catalogue.systems(tiny_pair("mono").reasoner, stage=kind, max_answer=4)[0]
    model = tiny_language_model("unspoken")
    if kind == "coconut":
        how: Any = {"open_ids": (EOS,), "end_ids": (EOS,), "feed": "hidden", "max_latents": 2, "fixed": True}
        LatentGenerationConfig(**how).attach(model)
        model.generation_config.eos_token_id = EOS
    return catalogue.systems(model, stage=kind, max_answer=4)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_says_what_single_prompts_say(kind: str) -> None:
    one = one_of(kind)
    steps = 4 - one.unsaid
    assert one.unsaid == (2 if kind == "coconut" else 0)
    chain, said = continued(one, PROMPTS, steps, 4)
    assert said.shape == chain.mask.shape == (9, steps)
    assert chain.mask.all()
    assert len(set(map(tuple, said.tolist()))) > 1
    for row in range(9):
        real = PROMPTS[1][row].bool()
        alone = (PROMPTS[0][row : row + 1, real], PROMPTS[1][row : row + 1, real])
        single, words = continued(one, alone, steps, 4)
        torch.testing.assert_close(single.latents[0], chain.latents[row], atol=1e-4, rtol=1e-4)
        assert words.tolist() == said[row : row + 1].tolist()


@torch.no_grad()
def test_coconut_says_the_second_half_behind_its_own_states() -> None:
    one = one_of("coconut")
    _, said = continued(one, PROMPTS, 2, 9)
    model = one.model
    table = model.get_input_embeddings()
    for row in range(9):
        prompt = PROMPTS[0][row][PROMPTS[1][row].bool()]
        vectors = table(torch.cat([prompt, torch.tensor([EOS])]))[None]
        for _ in range(2):
            vectors = torch.cat([vectors, model.base_model(inputs_embeds=vectors).last_hidden_state[:, -1:]], dim=1)
        vectors, words = torch.cat([vectors, table(torch.tensor([[EOS]]))], dim=1), []
        while len(words) < 2 and EOS not in words:
            words.append(int(model(inputs_embeds=vectors).logits[0, -1].argmax()))
            vectors = torch.cat([vectors, table(torch.tensor([words[-1:]]))], dim=1)
        assert said[row, : len(words)].tolist() == words


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_a_noisy_chain_is_the_chain_itself(kind: str) -> None:
    one = one_of(kind)
    steps = 4 - one.unsaid
    _, clean = continued(one, PROMPTS, steps, 4)
    how: Any = {"steps": steps, "fractions": (0.0, 5.0), "seed": 0, "batch_size": 4}
    found, ratios = under_noise(one, PROMPTS, clean, **how)
    assert found[0.0].shape == (9, steps)
    assert found[0.0].all()
    assert ratios[0.0] == 0
    # What a coupled model has chosen it says; the noise shows in what it chooses next.
    assert not found[5.0].all()
    assert ratios[5.0] > 1
    # Fewer symbols are the last ones.
    last, _ = under_noise(one, PROMPTS, clean[:, -1:], **how)
    assert last[5.0].tolist() == found[5.0][:, -1:].tolist()


# --- a whole run -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("strings")
    quiet_train(tiny_strings("evaluation.problems=6"), folder, seeds=2)
    recipe, runs = open_run(folder)
    assert final_stages(recipe) == ["talker", "talker_mono", "coupled", "coconut"]
    return measure_run(recipe, runs, command="unspoken eval <here>", say=lambda _: None)


def test_every_system_is_measured_on_the_same_symbols(results: dict[str, Any]) -> None:
    names = ["jepa-reasoner", "jepa-reasoner, nearest row", "jepa-reasoner, talker_mono", "coupled", "coconut"]
    assert list(results["systems"]) == names
    json.dumps(results, allow_nan=False)
    measured = results["strings"]
    assert (measured["symbols"], measured["half"], results["seeds"]) == (4, 2, [0, 1])
    for name, system in results["systems"].items():
        for kind in ("renormalised", "free"):
            # The clean run is level 0 of either kind of noise.
            clean = measured["latent_noise"][kind]["systems"][name]["levels"][0]
            assert clean["exact"][-1]["mean"] == pytest.approx(system["exact_match"]["mean"])
            assert [step["mean"] for step in clean["symbol"]] == pytest.approx(measured["steps"][name][2:])
            assert len(measured["latent_noise"][kind]["norm_ratio"][name]) == 4
    assert measured["steps"]["coconut"][:2] == [None, None]
    assert set(measured["valid"]) == set(measured["token_noise"]["systems"]) == set(names[:-1])
    assert set(results["differences"]) == {f"{name} - coupled" for name in names if name != "coupled"}
    assert set(measured["latent_noise"]["renormalised"]["comparison"]) == {f"{name} - coconut" for name in names[:-1]}


def test_a_coupled_chain_of_two_is_the_beginning_of_a_chain_of_four(results: dict[str, Any]) -> None:
    token = results["strings"]["token_noise"]
    for name in ("coupled", "jepa-reasoner, nearest row", "jepa-reasoner, talker_mono"):
        levels = token["systems"][name]["levels"]
        assert [level["level"] for level in levels] == list(TOKEN_RATES)
        assert [step["mean"] for step in levels[0]["symbol"]] == pytest.approx(results["strings"]["steps"][name][:2])
        assert len(token["valid"][name]) == len(TOKEN_RATES)


def test_words_reach_only_the_chain_that_is_made_of_them(results: dict[str, Any]) -> None:
    effects = results["strings"]["containment"]
    kept = {name: entry["latents_identical"] for name, entry in effects.items()}
    assert kept == {"jepa-reasoner": True, "jepa-reasoner, talker_mono": True, "coupled": False, "coconut": True}
    assert effects["coupled"]["largest_latent_change"] > 0
    # A Mono-Talker does not hear itself either.
    mono = effects["jepa-reasoner, talker_mono"]["later_changed"]
    assert mono is None or mono["mean"] == 0
    assert set(results["strings"]["prime"]) == {"right", "wrong"}


def test_costs_count_what_waits_for_what(results: dict[str, Any]) -> None:
    passes = {name: system["cost"]["sequential_passes"] for name, system in results["systems"].items()}
    # Four latents; then nothing, one pass, an encoder and four words, or a marker and two words behind two latents.
    assert passes["coupled"] == passes["jepa-reasoner, nearest row"] == 4
    assert passes["jepa-reasoner, talker_mono"] == 5
    assert passes["jepa-reasoner"] == 9
    assert passes["coconut"] == 5
    assert results["systems"]["coconut"]["cost"]["latent_steps"] == 2
    kept = results["outcomes"]["test"]
    assert {name: spent["sequential_passes"] for name, spent in kept["cost"].items()} == passes
    for name, system in results["systems"].items():
        seeds = [unpacked(text, kept["problems"]).mean() for text in kept["right"][name]]
        assert seeds == pytest.approx(system["exact_match"]["seeds"])
    # A Talker comes on top of the chain that it reads.
    assert kept["cost"]["jepa-reasoner"]["flops"] > kept["cost"]["jepa-reasoner, nearest row"]["flops"]
