"""What a sound recipe means: every shipped one loads, prints and reads back to itself."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from settings_checks import check_defaults, check_ranges

from unspoken.methods.coupled.stages import NextToken
from unspoken.reasoning.latents import Noise, Sampling
from unspoken.training.parts import LoRA, Optimizer, StackShape, TalkerShape
from unspoken.training.recipe import Evaluation, Recipe, Stage, dump, load, parse, shipped

SHIPPED = [(name, size) for name, size, _ in shipped()]
WORKED = """
name: worked
size: tiny
task: {kind: tree_search, depth: 2}
backbone: {hidden_size: 8, attention_size: 16, intermediate_size: 12, layers: 1, heads: 2}
talker: {attention_size: 24, intermediate_size: 12, layers: 1, heads: 4}
stages:
  - {name: one, objective: {kind: next_token}, steps: 5, batch_size: 3}
  - {name: two, start: one, objective: {kind: sst}, steps: 7, batch_size: 2}
  - {name: three, start: two, objective: {kind: talker}, steps: 11, batch_size: 2}
  - {name: again, start: one, objective: {kind: next_token, positions: answer}, steps_of: [two, three], batch_size: 2}
"""


@pytest.fixture
def worked() -> Recipe:
    return parse(WORKED, "here")


def test_a_tiny_recipe_is_shipped() -> None:
    assert ("tree-search", "tiny") in SHIPPED


@pytest.mark.parametrize(("name", "size"), SHIPPED)
def test_a_shipped_recipe_reads_back_from_its_own_dump(name: str, size: str) -> None:
    recipe = load(name, size)
    assert recipe.name == name
    assert recipe.size == size
    assert parse(dump(recipe), "dumped") == recipe
    # Keys stand in the order in which a recipe is read: what it is, then its stages.
    assert [*yaml.safe_load(dump(recipe))][:3] == ["name", "size", "summary"]


@pytest.mark.parametrize(("name", "size"), SHIPPED)
def test_a_shipped_recipe_says_what_it_is_for(name: str, size: str) -> None:
    summary = load(name, size).summary
    assert summary
    assert "`" not in summary  # terminals and pages print it as it stands


def test_a_recipe_is_read_by_path(tmp_path: Path, worked: Recipe) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(WORKED)
    assert load(str(path)) == worked


def test_the_dump_of_changed_fields_reads_back(worked: Recipe) -> None:
    changed = parse(
        dump(worked),
        "here",
        [
            "precision=fp32",
            "attention=sdpa",
            "activation_checkpointing=true",
            "summary='ä: text with # signs'",
            "task.shuffle_edges=true",
            "task.targets=0",
            "backbone.unit_embeddings=false",
            "talker.variant=dual",
            "talker.encoder_layers=3",
            "stages.one.optimizer.lr_rest=null",
            "stages.one.optimizer.betas=[0.5, 0.25]",
            "stages.two.objective.momentum=0.5",
            "evaluation.problems=1",
        ],
    )
    assert changed != worked
    assert parse(dump(changed), "here") == changed
    assert "summary: 'ä: text with # signs'" in dump(changed)


def test_steps_of_adds_up_the_named_stages(worked: Recipe) -> None:
    assert worked.steps(worked.stage("again")) == 7 + 11


def test_a_stage_starts_behind_the_samples_of_its_ancestors(worked: Recipe) -> None:
    assert worked.samples_before(worked.stage("one")) == 0
    assert worked.samples_before(worked.stage("two")) == 5 * 3
    assert worked.samples_before(worked.stage("three")) == 5 * 3 + 7 * 2
    # The baseline sees the same samples as the stages it is compared with, not those after them.
    assert worked.samples_before(worked.stage("again")) == 5 * 3


def test_an_unknown_stage_is_named_with_the_nearest(worked: Recipe) -> None:
    with pytest.raises(ValueError, match="no stage 'thre'; did you mean 'three'"):
        worked.stage("thre")


def test_the_talker_has_the_latent_width_and_the_task_s_vocabulary(worked: Recipe) -> None:
    talker = worked.talker_config(worked.stage("three"), hidden_size=8)
    assert talker.hidden_size == worked.backbone.hidden_size
    assert talker.vocab_size == worked.backbone_config().vocab_size == len(worked.task.build().tokenizer)
    assert talker.attention_size == 24
    # Longer than every row of the tasks that are trained from random weights.
    assert talker.max_position_embeddings == worked.backbone_config().max_position_embeddings == 1024
    assert talker.tie_word_embeddings and talker.is_causal


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc", "..", ".hidden", "-rf", "", "C:\\x"])
def test_a_name_that_leads_out_of_the_run_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="it names the run folder"):
        parse(WORKED.replace("name: worked", f"name: '{name}'"), "here")


def test_a_recipe_cannot_run_code(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    call = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{trap}']]"
    for text in (f"{WORKED}summary: {call}\n", WORKED):
        overrides = [] if call in text else [f"summary={call}"]
        with pytest.raises(ValueError, match=r"here|summary"):
            parse(text, "here", overrides)
    assert not trap.exists()


@pytest.mark.parametrize("size", ["small", "paper"])
def test_the_replay_of_the_published_code_has_its_settings(size: str) -> None:
    recipe = load("grade-school-v2-code", size)
    trained = [stage for stage in recipe.stages if not stage.objective.writes_data]
    assert {stage.name: stage.optimizer.lr for stage in trained} == {
        "cot": 3e-4, "answer_only": 3e-4, "encoder": 1e-4, "decoder": 1e-4, "union": 1e-4, "latent_sft_2": 3e-4
    }  # fmt: skip
    for stage in trained:
        moved = stage.optimizer
        assert (moved.name, moved.betas, moved.weight_decay, moved.lr_rest) == ("adamw", (0.9, 0.999), 0.01, None)
        assert (moved.warmup, moved.schedule, moved.clip) == ("logarithmic", "linear", 1.0)
        assert moved.warmup_steps == math.ceil(0.05 * recipe.steps(stage))
        assert stage.lora == LoRA(rank=64, dropout=0.1, table=stage.name in ("encoder", "union"))
    shape = recipe.stage("encoder").objective.shape
    assert (shape.rate, shape.top_k, shape.readout, shape.positions) == (2, 10, "table", "two_track")
    assert recipe.stage("labels").objective.precision == "bfloat16"
    last = recipe.stage("latent_sft_2").objective
    assert (last.noise, last.ce_weight, last.kl_weight) == (Noise(scale=1.0, temperature=1.0, redraw="row"), 1.0, 1.0)
    assert recipe.evaluation.sampling == Sampling(temperature=0.6, top_p=0.95)
    assert (recipe.evaluation.max_latents, recipe.evaluation.max_answer) == (128, 128)
    assert ("differs" in recipe.summary) == (size == "small")


def test_the_replay_with_the_published_model_has_its_rows_and_epochs() -> None:
    recipe = load("grade-school-v2-code", "paper")
    assert recipe.backbone == "meta-llama/Llama-3.2-1B-Instruct"
    epoch, rows = 385_620 // 512, recipe.stage("labels").objective.rows
    epochs = {"encoder": 10, "decoder": 10, "union": 10, "latent_sft_2": 70}
    assert {name: recipe.stage(name).steps for name in epochs} == {name: epoch * n for name, n in epochs.items()}
    assert rows == 385_620
    assert {stage.batch_size for stage in recipe.stages if not stage.objective.writes_data} == {512}


def test_a_chat_template_needs_a_tokenizer_of_others() -> None:
    with pytest.raises(ValueError, match="chat_template is set, but the backbone is not pretrained"):
        parse(WORKED, "here", ["chat_template=x"])


def test_adapters_on_a_table_need_an_encoder() -> None:
    with pytest.raises(ValueError, match=r"lora.table is true; this stage trains no encoder"):
        load("grade-school-v2-code", "small", ["stages.decoder.lora.table=true"])


def test_defaults_are_those_of_the_pages() -> None:
    pages = ("recipes.md", "methods/latent_sft.md")
    parts = {Recipe: "", Stage: "", Evaluation: "evaluation.", LoRA: "lora.", StackShape: "backbone."}
    for settings, prefix in {**parts, Optimizer: "optimizer.", TalkerShape: "talker."}.items():
        check_defaults(settings, *pages, prefix=prefix)


def test_settings_end_where_they_say() -> None:
    parts = ("problems", "validation_problems", "batch_size", "max_latents", "max_answer")
    check_ranges(Evaluation, {name: ([1], [0]) for name in parts})
    shares: dict[str, Any] = {"rank": ([1], [0]), "dropout": ([0.0, 0.99], [-0.01, 1.0])}
    check_ranges(LoRA, shares)
    moves: dict[str, Any] = {"weight_decay": ([0.0], [-0.01]), "warmup_steps": ([0], [-1]), "clip": ([1e-6], [0.0])}
    rates: dict[str, Any] = {"lr": ([1e-9], [0.0]), "lr_rest": ([1e-9, None], [0.0])}
    pairs: tuple[Any, Any] = ([(0.0, 0.999)], [(0.9,), (0.9, 0.95, 0.99), (1.0, 0.9), (0.9, 1.0), (-0.01, 0.9)])
    check_ranges(Optimizer, {**moves, "betas": pairs})
    for name, (allowed, refused) in rates.items():
        for value in allowed:
            assert getattr(Optimizer(**{name: value}), name) == value
        for value in refused:
            with pytest.raises(ValueError, match="must be positive"):
                Optimizer(**{name: value})
    check_ranges(Optimizer, {"lr": ([0.01], [0.0101])}, name="adamw")
    stage = partial(Stage, name="one", objective=NextToken(), optimizer=Optimizer(schedule="constant"))
    check_ranges(stage, {"steps": ([1], [0])})
    counts: dict[str, Any] = {"batch_size": ([1], [0]), "evaluate_every": ([1], [0])}
    check_ranges(stage, {**counts, "stop_at": ([1e-6, 1.0], [0.0, 1.01])}, steps=1)
    blocks = {"attention_size": 8, "intermediate_size": 8, "layers": 1, "heads": 1}
    check_ranges(TalkerShape, {"encoder_layers": ([1], [0])}, variant="dual", **blocks)
