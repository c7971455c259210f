"""ProsQA side by side: every stage of the recipes can be built and fed, and all of them run in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_recipe import collated, quiet_train
from transformers import PreTrainedModel

from unspoken.evaluation.answering import answer, first_problems
from unspoken.evaluation.seeds import stage_systems
from unspoken.experiment import measured_stages
from unspoken.methods.coconut.stages import Coconut
from unspoken.methods.latent_sft.stages import Labels, Stage2
from unspoken.methods.loading import load_model
from unspoken.probes.forced_tokens import ForcedTokensProbe, Reading
from unspoken.probes.probe import View
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.training.context import context_of
from unspoken.training.recipe import Recipe, load

SIZES = ("tiny", "small", "paper")
MEASURED = {
    "tiny": ["cot", "answer_only", "latent_sft_2", "coconut", "jepa_mono"],
    "small": ["cot", "answer_only", "latent_sft_2", "coconut", "jepa_mono", "jepa_dual", "coupled"],
    "paper": ["cot", "answer_only", "latent_sft_2", "coconut", "jepa_mono", "jepa_dual", "coupled"],
}
PUBLISHED = {
    "question": "Every wumpus is a yumpus. Sally is a wumpus. Rex is a zhorpus. Every zhorpus is a rempus. "
    "Is Sally a rempus or yumpus?",
    "answer": "Sally is a yumpus.",
    "steps": ["Sally is a wumpus.", "Every wumpus is a yumpus."],
}


@pytest.mark.parametrize("size", SIZES)
def test_every_stage_is_built_on_no_device_and_gets_its_first_batch(size: str) -> None:
    recipe = load("prosqa", size)
    finished: dict[str | None, PreTrainedModel] = {}
    for stage in recipe.stages:
        objective, context = stage.objective, context_of(replace(recipe, attention="eager"), stage)
        with torch.device("meta"):
            model = objective.build(finished.get(stage.start), context)
        finished[stage.name] = objective.exported(model)
        if isinstance(objective, Labels):
            continue
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert trained
        assert all(parameter.is_meta for parameter in trained)
        if not isinstance(objective, Stage2):  # what learns from labels needs them
            batch = collated(recipe, stage.name)(np.arange(4))
            assert batch.keys() <= objective.with_places(batch).keys()


@pytest.mark.parametrize("size", SIZES)
def test_all_methods_are_measured_and_every_answer_fits(size: str) -> None:
    recipe = load("prosqa", size)
    assert measured_stages(recipe) == MEASURED[size]
    task, prompt_format = recipe.task.build(), PromptFormat(tokenizer=recipe.tokenizer())
    spans = [prompt_format.spans(problem) for problem in task.sample("validation", range(200))]
    assert max(len(one.chain) for one in spans) < recipe.evaluation.max_latents
    assert max(len(one.answer) for one in spans) < recipe.evaluation.max_answer
    # Coconut ends with a latent for every step and no explicit one.
    last = recipe.stage("coconut").objective
    assert isinstance(last, Coconut)
    assert last.latents == max(task.config.hops)
    # The same number of steps with and without a chain.
    assert recipe.steps(recipe.stage("answer_only")) == recipe.steps(recipe.stage("cot"))


def micro(published: Path) -> Recipe:
    """The tiny recipe with three steps a stage on a very small model, and a published file beside its own problems."""
    published.write_text(json.dumps([PUBLISHED]))
    shape = "{hidden_size: 16, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}"
    small = [f"backbone={shape}", "talker={attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}"]
    small += [f"task.tests=[{published}]", "task.renamed=true", "threads=1", "precision=fp32"]
    small += ["evaluation={problems: 9, validation_problems: 4, batch_size: 5, max_latents: 8, max_answer: 6}"]
    for stage in load("prosqa", "tiny").stages:
        if isinstance(stage.objective, Labels):
            small.append(f"stages.{stage.name}.objective.rows=12")
        else:
            small += [f"stages.{stage.name}.batch_size=4", f"stages.{stage.name}.evaluate_every=3"]
            small += [] if stage.steps_of else [f"stages.{stage.name}.steps=3"]
    return load("prosqa", "tiny", small)


def test_the_whole_line_runs_and_every_method_can_be_forced(tmp_path: Path) -> None:
    recipe = micro(tmp_path / "published.json")
    quiet_train(recipe, tmp_path / "run")
    task, prompt_format = recipe.task.build(), PromptFormat(tokenizer=recipe.tokenizer())
    own, published = (first_problems(task, test, 9) for test in task.tests)
    assert (len(own), len(published)) == (9, 1)
    probe = ForcedTokensProbe()
    readings: dict[str, list[Reading]] = {}
    for name in measured_stages(recipe):
        model = load_model(tmp_path / "run" / "seed-0" / name / "model")
        for system in stage_systems(model, name, task.traits, 6):
            assert answer(system, task, published, prompt_format, batch_size=5).tokens.shape[0] == 1
            if probe.applies(system, task):
                own_view = View(
                    system=system,
                    task=task,
                    problems=own,
                    answers=None,
                    prompt_format=prompt_format,
                    batch_size=5,
                    seed=0,
                )
                reading = probe.measure(own_view)
                assert reading is not None
                readings[system.name] = [reading]
    assert set(readings) == {*MEASURED["tiny"], "soft thinking"}
    summary = probe.summarise(readings, baseline=None)
    json.dumps(summary, allow_nan=False)
    for name, entry in summary["systems"].items():
        assert entry["output_kind"].startswith("its explicit chain" if name == "cot" else ("its answer", "all that"))
    assert all(effect["latents_identical"] for effect in summary["systems"]["jepa_mono"]["effects"])
