"""JEPA-Reasoner on word problems: one latent for every token of the explicit chain, the marker and the answer."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_recipe import quiet_train
from transformers import AutoModelForCausalLM

from unspoken.backbone.folder import read_manifest
from unspoken.evaluation.answering import answer
from unspoken.experiment import measure_run, measured_stages, open_run
from unspoken.methods import catalogue
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.loading import load_model
from unspoken.probes.geometry import GeometryProbe
from unspoken.probes.pass_at_k import PassAtKProbe
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.training import recipe as recipes
from unspoken.training.recipe import Recipe

LINE = """
name: words
size: tiny
task: {kind: arithmetic, steps: [2, 3], largest: 20, operations: [add, subtract]}
backbone: {hidden_size: 32, attention_size: 32, intermediate_size: 64, layers: 2, heads: 2}
talker: {attention_size: 32, intermediate_size: 64, layers: 1, heads: 2}
stages:
  - {name: cot, objective: {kind: next_token, positions: answer}, steps: 2, evaluate_every: 2, batch_size: 8}
  - {name: sst, start: cot, objective: {kind: sst}, steps: 2, evaluate_every: 1, batch_size: 8}
  - {name: mono, start: sst, objective: {kind: talker}, steps: 2, evaluate_every: 2, batch_size: 8}
  - name: dual
    start: sst
    objective: {kind: talker}
    talker: {variant: dual, attention_size: 32, intermediate_size: 64, layers: 1, heads: 2}
    steps: 2
    evaluate_every: 2
    batch_size: 8
evaluation: {problems: 12, validation_problems: 6, batch_size: 5, max_latents: 6, max_answer: 5}
threads: 1
"""


def line(*overrides: str) -> Recipe:
    return recipes.parse(LINE, "line", overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    quiet_train(line(), folder)
    return folder


def test_each_stage_trains_the_talker_it_names(trained: Path) -> None:
    for stage, kind in (("mono", "mono"), ("dual", "dual")):
        pair = AutoModelForCausalLM.from_pretrained(trained / "seed-0" / stage / "model")
        assert isinstance(pair, JepaReasonerForCausalLM)
        assert pair.config.talker_kind == kind
        assert pair.config.max_latents == 6 + 1 + 5


def test_a_reasoner_is_watched_for_collapse(trained: Path) -> None:
    history = read_manifest(trained / "seed-0" / "sst" / "model")["history"]
    readings = [entry for entry in history if "eval_effective_rank" in entry]
    assert len(readings) == 3
    assert all(0 <= entry["eval_nearest_row"] <= 1 for entry in readings)
    assert {"eval_sst_loss", "eval_best_constant_loss"} <= set(readings[0])


def test_a_chain_may_be_padded_and_answered_in_any_company(trained: Path) -> None:
    recipe = line()
    prompt_format, task = PromptFormat(tokenizer=recipe.tokenizer()), recipe.task.build()
    ask = partial(answer, task=task, problems=task.sample("test", np.arange(7)), prompt_format=prompt_format)
    for stage in ("mono", "dual"):
        systems = catalogue.systems(load_model(trained / "seed-0" / stage / "model"), stage=stage, max_answer=5)
        for system in systems:
            assert system.opening == tuple(prompt_format.markers.open)
            together = ask(system, batch_size=7)
            alone = ask(system, batch_size=1)
            assert torch.equal(together.tokens, alone.tokens)
            assert torch.equal(together.lengths, alone.lengths)
            torch.testing.assert_close(together.chain.latents, alone.chain.latents, rtol=1e-4, atol=2e-5)
            again = ask(system, batch_size=3, chain=together.chain)
            assert torch.equal(again.tokens, together.tokens)
            with pytest.raises(ValueError, match="no tokens can be put before"):
                ask(system, batch_size=7, boxed=True)


def test_talkers_and_nearest_rows_are_measured_beside_the_chain_of_thought(trained: Path) -> None:
    recipe, runs = open_run(trained)
    assert measured_stages(recipe) == ["cot", "mono", "dual"]
    results = measure_run(recipe, runs, command="", log=lambda _: None, optional=[GeometryProbe(), PassAtKProbe(2)])
    json.dumps(results, allow_nan=False)
    assert set(results["systems"]) >= {"mono", "mono, nearest row", "dual"}
    assert [name for name, entry in results["systems"].items() if entry["chain"] == "tokens"] == ["cot"]
    costs = {name: entry["cost"] for name, entry in results["systems"].items()}
    assert costs["mono"]["sequential_passes"] == costs["mono"]["latent_steps"] + 1
    assert costs["mono, nearest row"]["sequential_passes"] == costs["mono"]["latent_steps"]
    assert costs["dual"]["sequential_passes"] > costs["mono"]["sequential_passes"]
    probes = results["probes"]
    controls = probes["controls"]["mono"]
    # Without a chain a Talker gets a single zero vector; nothing can be put before what it says.
    assert {"swap", "zero", "noise", "no chain"} <= set(controls)
    assert not {"random mixtures", "forced answer"} & set(controls)
    for key in ("geometry", "superposition"):
        assert "mono" not in probes[key]
    assert "mono" not in probes["pass_at_k"]["systems"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("talker=null", "neither it nor the recipe has a 'talker' shape"),
        ("stages.dual.talker.heads=3", r"stages \(dual\): talker: "),
        ("stages.cot.talker={attention_size: 32, intermediate_size: 64, layers: 1, heads: 2}", "trains no Talker"),
        ("stages.mono.start=cot", "a talker stage starts from sst"),
    ],
)
def test_an_impossible_line_is_one_clear_message(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        line(override)
    assert "\n" not in str(caught.value)
