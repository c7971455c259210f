"""Training problems of a stage's own: read in its training alone, and refused where they could not be."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_recipe import TEXT as OF_A_TREE
from tiny_recipe import quiet_train, tiny_recipe
from transformers import PreTrainedTokenizerFast

from unspoken.backbone.folder import read_manifest
from unspoken.experiment import measured_stages
from unspoken.tasks.logic import LogicConfig, LogicTask
from unspoken.training.context import context_of
from unspoken.training.recipe import Recipe, dump, load, parse
from unspoken.training.settings import SettingsError
from unspoken.training.stages import data_of
from unspoken.training.trainer import StageTrainer

OWN = LogicConfig(hops=(1,), concepts=6, edges=6)
MAIN = LogicConfig(hops=(2,), concepts=9, edges=10)
TEXT = """
name: own
size: tiny
task: {kind: logic, hops: [2], concepts: 9, edges: 10}
backbone: {hidden_size: 16, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}
stages:
  - name: short
    objective: {kind: next_token}
    task: {kind: logic, hops: [1], concepts: 6, edges: 6}
    steps: 3
    batch_size: 4
    evaluate_every: 3
  - name: cot
    start: short
    objective: {kind: next_token}
    steps: 2
    batch_size: 4
    evaluate_every: 2
evaluation: {problems: 4, validation_problems: 4, batch_size: 4, max_latents: 12}
"""


def recipe(*overrides: str) -> Recipe:
    return parse(TEXT, "here", overrides)


def texts(problems: Any) -> list[str]:
    return [problem.question for problem in problems]


def test_training_problems_are_the_stage_s_and_all_others_the_recipe_s() -> None:
    context = context_of(recipe(), recipe().stage("short"), seed=3)
    assert texts(context.sample(range(5))) == texts(OWN.build().sample("train", range(5), 3))
    for split in ("validation", "test"):
        assert texts(context.sample(range(5), split)) == texts(MAIN.build().sample(split, range(5)))


def test_a_stage_without_its_own_has_the_recipe_s() -> None:
    context = context_of(recipe(), recipe().stage("cot"), seed=3)
    assert texts(context.sample(range(5))) == texts(MAIN.build().sample("train", range(5), 3))


@pytest.mark.parametrize("questions", [1, 2])
def test_rows_and_their_lengths_are_of_these_problems(questions: int) -> None:
    run = recipe(f"stages.short.objective.questions={questions}")
    context = context_of(run, run.stage("short"))
    rows = data_of(run, context).make(np.arange(4))
    shown = context.tokenizer.batch_decode(rows["input_ids"])
    for text, question in zip(shown, texts(OWN.build().sample("train", range(4))), strict=True):
        assert text.removeprefix("[PAD] ").startswith(question.rpartition(" Is ")[0])
    main = context_of(run, run.stage("cot"))
    objective = context.lineage.objective
    assert objective.mean_lengths(context).prompt < main.lineage.objective.mean_lengths(main).prompt


def test_the_stage_after_it_goes_on_behind_its_samples() -> None:
    run = recipe()
    assert data_of(run, context_of(run, run.stage("cot"))).first == 12


def test_a_run_trains_on_them_and_records_them(tmp_path: Path) -> None:
    quiet_train(recipe(), tmp_path)
    manifest = read_manifest(tmp_path / "seed-0" / "short" / "model")
    assert manifest["recipe"]["stages"][0]["task"]["hops"] == [1]
    assert manifest["recipe"]["stages"][1]["task"] is None
    with pytest.raises(ValueError, match="task"):
        quiet_train(recipe("stages.short.task.concepts=7"), tmp_path)


def test_a_stage_on_its_own_problems_is_not_what_it_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of the recipe's problems that answered."""
    kept, keep = list[tuple[str, int]](), StageTrainer._keep

    def noted(self: StageTrainer, reading: dict[str, float]) -> None:
        kept.append((self.stage.name, self.state.global_step))
        keep(self, reading)

    monkeypatch.setattr(StageTrainer, "_keep", noted)
    quiet_train(recipe(), tmp_path)
    assert kept == [("short", 3), ("cot", 0), ("cot", 2)]


def test_it_is_measured_where_nothing_starts_from_it() -> None:
    run = recipe("stages.short.objective={kind: next_token, positions: answer}")
    assert measured_stages(run) == ["cot"]
    assert measured_stages(replace(run, stages=run.stages[:1])) == ["short"]


def test_null_is_no_task_and_a_recipe_reads_back_from_its_dump() -> None:
    assert recipe("stages.short.task=null").stage("short").task is None
    assert parse(dump(recipe()), "here") == recipe()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.short.task.hops=[9]", r"stages\[0\]\.task: hops"),
        ("stages.short.task.kind=logics", r"stages\[0\]\.task\.kind is 'logics'; did you mean 'logic'\?"),
        ("stages.short.task={kind: arithmetic}", r"stages\[0\] \(short\): task is arithmetic of another form"),
        ("stages.short.task.restated=3", r"stages\[0\]\.task\.restated is 3; it must be true or false"),
        ("stages.short.task=3", r"stages\[0\]\.task is 3; it must be a mapping with a 'kind'"),
    ],
)
def test_problems_of_another_form_are_refused(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        recipe(override)


def test_trees_of_another_size_have_other_rows() -> None:
    with pytest.raises(SettingsError, match="task is tree_search of another form than the recipe's tree_search"):
        tiny_recipe("stages.pretrain.task={kind: tree_search, depth: 4}")
    assert parse(OF_A_TREE, "here", ["stages.pretrain.task={kind: tree_search, depth: 3}"]).stages[0].task is not None


def test_other_tokens_are_refused() -> None:
    class Longer(LogicTask):
        @cached_property
        def tokenizer(self) -> PreTrainedTokenizerFast:
            tokenizer = LogicConfig().build().tokenizer
            tokenizer.add_tokens(["[NEW]"])
            return tokenizer

    class LongerConfig(LogicConfig):
        def build(self) -> LogicTask:
            return Longer(self)

    stage = replace(recipe().stages[0], task=LongerConfig(hops=(1,), concepts=6, edges=6))
    run = replace(recipe(), stages=(stage,))
    with pytest.raises(ValueError, match="the task of stage 'short' has other tokens than that of the recipe"):
        context_of(run, stage)


def test_labels_and_what_reads_them_have_the_problems_of_the_run() -> None:
    for stage in ("labels", "latent_sft_2"):
        with pytest.raises(SettingsError, match=r"reads the rows of the stages around it; leave it out"):
            load("prosqa", "small", [f"stages.{stage}.task={{kind: logic, hops: [1], concepts: 8, edges: 9}}"])


def test_problems_out_of_files_are_those_of_the_run() -> None:
    with pytest.raises(SettingsError, match="problems are read from files; leave it out"):
        load("grade-school", "small", ["stages.0.task={kind: grade_school, tests: [other.jsonl]}"])
