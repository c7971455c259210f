"""The curriculum of Coconut as stages of a recipe, from an explicit chain to a plain folder that thinks in states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_recipe import collated, quiet_train
from transformers import AutoModelForCausalLM

from unspoken.chain import StopReason
from unspoken.experiment import measure_run, measured_stages, open_run
from unspoken.reasoning.causal_lm import LatentGenerationConfig, latent_generate
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.training import recipe as recipes
from unspoken.training.recipe import Recipe

CURRICULUM = """
name: curriculum
size: tiny
task: {kind: arithmetic, steps: [2, 3], largest: 20, operations: [add, subtract]}
backbone: {hidden_size: 32, attention_size: 32, intermediate_size: 64, layers: 2, heads: 2}
stages:
  - {name: cot, objective: {kind: next_token, positions: answer}, steps: 2, evaluate_every: 2, batch_size: 8}
  - name: first
    start: cot
    objective: {kind: coconut, replaced: 1}
    steps: 2
    evaluate_every: 2
    batch_size: 8
  - name: second
    start: first
    objective: {kind: coconut, replaced: 2}
    steps: 2
    evaluate_every: 2
    batch_size: 8
    lora: {rank: 4}
    optimizer: {name: adamw, lr: 0.01, lr_rest: null}
  - name: coconut
    start: second
    objective: {kind: coconut, replaced: 2, rest: none}
    steps: 2
    evaluate_every: 2
    batch_size: 8
evaluation: {problems: 12, validation_problems: 6, batch_size: 5, max_latents: 6, max_answer: 5}
threads: 1
"""


def curriculum(*overrides: str) -> Recipe:
    return recipes.parse(CURRICULUM, "curriculum", overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curriculum")
    quiet_train(curriculum(), folder)
    return folder


def test_every_stage_is_a_plain_model_that_thinks_a_fixed_number_of_states(trained: Path) -> None:
    for stage, latents in (("first", 2), ("second", 4), ("coconut", 4)):
        model = AutoModelForCausalLM.from_pretrained(trained / "seed-0" / stage / "model")
        assert type(model).__name__ == "UnspokenForCausalLM"
        settings = LatentGenerationConfig.of(model)
        assert (settings.feed, settings.fixed, settings.max_latents) == ("hidden", True, latents)
        ids = torch.tensor([[30, 40, 50], [31, 41, 51]])
        result = model.generate(ids, custom_generate=latent_generate, max_new_tokens=4, return_chain=True)
        assert result.chain.lengths.tolist() == [latents] * 2
        assert (result.chain.stop == StopReason.FIXED).all()


def test_adapters_leave_table_and_head_alone(trained: Path) -> None:
    before, after = (
        load_file(trained / "seed-0" / stage / "model" / "model.safetensors") for stage in ("first", "second")
    )
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert set(before) == set(after)
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_a_row_keeps_the_steps_that_no_latent_replaces() -> None:
    recipe = curriculum()
    prompt_format = PromptFormat(tokenizer=recipe.tokenizer())
    problems = recipe.task.build().sample("train", np.arange(8))
    for stage, replaced, rest in (("first", 1, True), ("second", 2, True), ("coconut", 2, False)):
        batch = collated(recipe, stage)(np.arange(8))
        assert batch["latent_mask"].sum(dim=1).tolist() == [2 * replaced] * 8
        for row, problem in enumerate(problems):
            output = batch["text_ids"][row][batch["target_mask"][row]]
            left = "".join(problem.steps[replaced:]) if rest else ""
            answer = (*prompt_format.encode(left), *prompt_format.encode(f"\\boxed{{{problem.answer}}}"))
            assert tuple(output.tolist()) == (*answer, prompt_format.tokenizer.eos_token_id)


def test_the_end_of_the_curriculum_is_measured_and_the_way_there_is_not(trained: Path) -> None:
    recipe, runs = open_run(trained)
    assert measured_stages(recipe) == ["cot", "coconut"]
    results = measure_run(recipe, runs, command="", log=lambda _: None)
    json.dumps(results, allow_nan=False)
    assert results["systems"]["coconut"]["cost"]["latent_steps"] == 4
    assert "noise" in results["probes"]["controls"]["coconut"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.second.objective.replaced=0", "it replaces 0 steps by 0 latents and 'first' before it 1 by 2"),
        (
            "stages.second.objective={kind: coconut, replaced: 0, latents_per_step: 3}",
            "it replaces 0 steps by 0 latents",
        ),
        ("stages.first.objective.latents_per_step=-1", "latents_per_step is -1; it must be 0 or more"),
        ("activation_checkpointing=true", "drops the cache that Coconut keeps its latents in"),
        ("task={kind: tree_search}", "a coconut stage cannot learn the task tree_search"),
        ("stages.first.objective.rest=some", "rest is 'some'"),
    ],
)
def test_an_impossible_curriculum_is_one_clear_message(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        curriculum(override)
    assert "\n" not in str(caught.value)
