"""A tiny run on strings: every system is measured on the same symbols, by all probes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import quiet_train
from tiny_strings import tiny_strings

from unspoken.evaluation.outcomes import JEPA_REASONER, unpacked
from unspoken.evaluation.seeds import SeedModels
from unspoken.probes.evaluate import EvaluationSettings, evaluate
from unspoken.probes.forced_symbols import ForcedSymbolsProbe
from unspoken.probes.latent_noise import LatentNoiseProbe
from unspoken.probes.symbols import SymbolsProbe
from unspoken.probes.token_noise import RATES, TokenNoiseProbe
from unspoken.tasks.prompt_format import PromptFormat

STAGES = ("talker", "talker_mono", "coupled", "coconut")
NAMES = [JEPA_REASONER, f"{JEPA_REASONER}, nearest row", f"{JEPA_REASONER}, talker_mono", "coupled", "coconut"]
PROBES = (SymbolsProbe(), TokenNoiseProbe(), LatentNoiseProbe(), ForcedSymbolsProbe())


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    recipe, folder = tiny_strings(), tmp_path_factory.mktemp("strings")
    models = [
        SeedModels(
            seed=run.seed,
            measured={name: Path(run.model_folder(name)) for name in STAGES},
            stages={},
            device=run.device,
        )
        for run in quiet_train(recipe, folder, seeds=2)
    ]
    asked = EvaluationSettings(
        task=recipe.task.build(),
        prompt_format=PromptFormat(tokenizer=recipe.tokenizer()),
        problems=6,
        batch_size=5,
        max_answer=4,
        baseline="coupled",
    )
    return evaluate(models, asked, PROBES, log=lambda _: None)


def test_every_system_is_measured_on_the_same_symbols(results: dict[str, Any]) -> None:
    assert list(results["systems"]) == NAMES
    json.dumps(results, allow_nan=False)
    symbols, noise = results["probes"]["symbols"], results["probes"]["latent_noise"]
    assert (symbols["symbols"], symbols["half"], noise["half"], results["seeds"]) == (4, 2, 2, [0, 1])
    for name, system in results["systems"].items():
        for kind in ("renormalised", "free"):
            # The clean run is level 0 of either kind of noise.
            clean = noise[kind]["systems"][name]["levels"][0]
            assert clean["exact"][-1]["mean"] == pytest.approx(system["exact_match"]["mean"])
            assert [step["mean"] for step in clean["symbol"]] == pytest.approx(symbols["steps"][name][2:])
            assert len(noise[kind]["norm_ratio"][name]) == 4
    assert symbols["steps"]["coconut"][:2] == [None, None]
    assert set(symbols["valid"]) == set(results["probes"]["token_noise"]["systems"]) == set(NAMES[:-1])
    assert set(results["differences"]) == {f"{name} - coupled" for name in NAMES if name != "coupled"}
    assert set(noise["renormalised"]["comparison"]) == {f"{name} - coconut" for name in NAMES[:-1]}


def test_a_chain_of_two_is_the_beginning_of_a_chain_of_four(results: dict[str, Any]) -> None:
    token = results["probes"]["token_noise"]
    # The encoder of the Dual-Talker of the first pair reads all of a chain at once.
    for name in ("coupled", f"{JEPA_REASONER}, nearest row", f"{JEPA_REASONER}, talker_mono"):
        levels = token["systems"][name]["levels"]
        assert [level["level"] for level in levels] == list(RATES)
        steps = results["probes"]["symbols"]["steps"][name]
        assert [step["mean"] for step in levels[0]["symbol"]] == pytest.approx(steps[:2])
        assert len(token["valid"][name]) == len(RATES)


def test_symbols_reach_only_the_chain_that_is_made_of_them(results: dict[str, Any]) -> None:
    effects = results["probes"]["forced_symbols"]["systems"]
    kept = {name: entry["latents_identical"] for name, entry in effects.items()}
    assert kept == {JEPA_REASONER: True, f"{JEPA_REASONER}, talker_mono": True, "coupled": False, "coconut": True}
    assert effects["coupled"]["largest_latent_change"] > 0
    # A Mono-Talker does not read its own symbols either.
    mono = effects[f"{JEPA_REASONER}, talker_mono"]["later_changed"]
    assert mono is None or mono["mean"] == 0
    assert set(results["probes"]["forced_symbols"]["prime"]) == {"right", "wrong"}


def test_costs_count_what_waits_for_what(results: dict[str, Any]) -> None:
    passes = {name: system["cost"]["sequential_passes"] for name, system in results["systems"].items()}
    # Four latents; then nothing, one pass, an encoder and four symbols.
    assert passes["coupled"] == passes[f"{JEPA_REASONER}, nearest row"] == 4
    assert passes[f"{JEPA_REASONER}, talker_mono"] == 5
    assert passes[JEPA_REASONER] == 9
    # Opening, two latents, marker and at most two symbols.
    coconut = results["systems"]["coconut"]["cost"]
    assert coconut["latent_steps"] == 2
    assert passes["coconut"] == 4 + coconut["spoken_tokens"] <= 6
    kept = results["outcomes"]["test"]
    assert {name: spent["sequential_passes"] for name, spent in kept["cost"].items()} == passes
    for name, system in results["systems"].items():
        seeds = [unpacked(text, kept["problems"]).mean() for text in kept["right"][name]]
        assert seeds == pytest.approx(system["exact_match"]["seeds"])
    # A Talker comes on top of the chain that it reads.
    assert kept["cost"][JEPA_REASONER]["flops"] > kept["cost"][f"{JEPA_REASONER}, nearest row"]["flops"]
