"""A whole run: what is on disk afterwards, what is skipped, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from faults import StopAt, truncate
from safetensors.torch import load_file
from tiny_recipe import built, one_stage, quiet_stage, quiet_train, tiny_recipe, verify_finished_folders, weights
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from unspoken import distributed
from unspoken.backbone import UnspokenForCausalLM
from unspoken.backbone.folder import remove, verify
from unspoken.evaluation.curves import curve
from unspoken.machine import resolve_device
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.loading import load_model
from unspoken.placement import CPU
from unspoken.training.context import context_of
from unspoken.training.recipe import parse
from unspoken.training.run import device_for_all
from unspoken.training.stages import claim
from unspoken.training.validation import validator_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed of the smallest recipe; tests that change it take a copy."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("finished")
    quiet_train(tiny_recipe(), output)
    return output


@pytest.fixture
def own_copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def snapshot(output: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in output.rglob("*") if path.is_file()}


# --- what is on disk -------------------------------------------------------------------------------------------------


def test_a_finished_run_holds_one_published_folder_a_stage_and_no_more(finished: Path) -> None:
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    common = {"config.json", "model.safetensors", "run.json", "tokenizer.json", "tokenizer_config.json"}
    speaking = common | {"generation_config.json"}
    assert files == {"recipe.json"} | {
        f"seed-0/{stage}/model/{name}"
        for stage, names in (("pretrain", speaking), ("sst", common), ("talker", speaking))
        for name in names
    }
    assert not [path for path in finished.rglob("*") if path.name.startswith(".") or path.name.startswith("checkpoint")]


def test_nothing_that_is_published_is_a_pickle(finished: Path) -> None:
    assert {path.suffix for path in finished.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    for path in finished.rglob("*.safetensors"):
        load_file(path)


def test_every_published_folder_verifies_and_loads_as_what_it_is(finished: Path) -> None:
    assert verify_finished_folders(finished) == 3
    seed = finished / "seed-0"
    assert isinstance(AutoModelForCausalLM.from_pretrained(seed / "pretrain" / "model"), UnspokenForCausalLM)
    assert isinstance(AutoModel.from_pretrained(seed / "sst" / "model"), JepaReasonerModel)
    assert isinstance(AutoModelForCausalLM.from_pretrained(seed / "talker" / "model"), JepaReasonerForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(seed / "talker" / "model")
    task = tiny_recipe().task.build()
    text = "LA,LB,AC,AD,BE,BF[ROOT]L[TARGET]E[ROUTE]"
    assert tokenizer(text)["input_ids"] == task.tokenizer(text)["input_ids"]
    assert tokenizer.padding_side == "left"


def test_the_manifest_tells_where_the_weights_came_from(finished: Path) -> None:
    recipe = tiny_recipe()
    manifest = verify(finished / "seed-0" / "talker" / "model")
    assert parse(json.dumps(manifest["recipe"]), "manifest") == recipe
    assert manifest["seed"] == 0
    assert manifest["stage"] == "talker"
    assert [entry["name"] for entry in manifest["stages"]] == ["pretrain", "sst"]
    assert manifest["data"] == recipe.task.build().fingerprint
    assert {"unspoken", "torch", "transformers"} <= set(manifest["versions"])
    assert manifest["step"] in (2, 4)
    assert "score" in manifest["validation"]
    read = {entry["step"] for entry in manifest["history"] if "eval_score" in entry}
    assert read == {0, 2, 4}
    trained = [entry for entry in manifest["history"] if "loss" in entry]
    assert {"talker_loss", "learning_rate", "grad_norm"} <= set(trained[0])


def test_the_best_reading_of_the_history_is_the_published_one(finished: Path) -> None:
    for stage in ("pretrain", "sst", "talker"):
        manifest = verify(finished / "seed-0" / stage / "model")
        scores = {entry["step"]: entry["eval_score"] for entry in manifest["history"] if "eval_score" in entry}
        if stage != "pretrain":
            del scores[0]
        best = max(scores.values())
        assert manifest["validation"]["score"] == best
        assert manifest["step"] == max(step for step, score in scores.items() if score == best)


def test_where_several_answers_are_right_the_loss_alone_selects() -> None:
    recipe = one_stage("task.targets=2")
    context = context_of(recipe, recipe.stage("pretrain"))
    reading = validator_of(context, 10)(built(recipe, "pretrain").eval())
    assert reading["score"] == pytest.approx(-reading["token_loss"] / (1000 * 10), abs=1e-12)


@pytest.mark.parametrize("stage", ["pretrain", "sst", "talker"])
def test_readings_are_those_of_the_saved_weights_in_float32(finished: Path, stage: str) -> None:
    # Training runs under bfloat16 autocast, reading must not.
    folder = finished / "seed-0" / stage / "model"
    recipe = tiny_recipe()
    assert recipe.precision == "bf16"
    context = context_of(recipe, recipe.stage(stage))
    again = validator_of(context, recipe.evaluation.validation_problems)(load_model(folder))
    chains = again.pop("chains", None)
    manifest = verify(folder)
    assert manifest["validation"] == pytest.approx(again, rel=1e-5, abs=1e-7)
    # Of the first two problems, where the stage writes chains of latents.
    written = {entry["step"]: entry.get("chains") for entry in manifest["history"] if "eval_score" in entry}
    assert (chains is None) == (stage == "pretrain")
    for before, now in zip(written[manifest["step"]] or (), chains or (), strict=True):
        assert [before[key] for key in ("heap", "route", "spoken", "correct")] == [
            now[key] for key in ("heap", "route", "spoken", "correct")
        ]
        assert before["coefficients"] == [pytest.approx(step, abs=2e-3) for step in now["coefficients"]]


def test_chains_are_written_out_at_every_validation_and_reach_the_curve(finished: Path) -> None:
    folder = finished / "seed-0" / "sst" / "model"
    read = curve(folder, chains=True)
    assert [len(examples) for examples in read["chains"]] == [2] * len(read["steps"])
    first, last = ([entry["coefficients"] for entry in read["chains"][at]] for at in (0, -1))
    assert first != last, "the stage trains what is written out"
    assert {tuple(entry["heap"]) for examples in read["chains"] for entry in examples[:1]} == {
        tuple(read["chains"][0][0]["heap"])
    }
    assert curve(folder) == {key: value for key, value in read.items() if key != "chains"}
    assert "chains" not in curve(finished / "seed-0" / "pretrain" / "model", chains=True)


@pytest.mark.parametrize(("moment", "step"), [("evaluate", 0), ("evaluate", 4), ("step_end", 3), ("save", 2)])
def test_chains_of_a_stage_that_was_stopped_are_those_of_one_that_was_not(
    finished: Path, own_copy: Path, moment: str, step: int
) -> None:
    stage = Path("seed-0") / "sst"
    remove(own_copy / stage)
    with pytest.raises(KeyboardInterrupt):
        quiet_stage(tiny_recipe(), own_copy, StopAt(moment, step), name="sst")
    quiet_stage(tiny_recipe(), own_copy, name="sst")
    both = [curve(folder / stage / "model", chains=True) for folder in (own_copy, finished)]
    assert both[0]["chains"] == both[1]["chains"]


# --- calling again ---------------------------------------------------------------------------------------------------


def test_a_second_call_trains_nothing(own_copy: Path) -> None:
    before = snapshot(own_copy / "seed-0")
    quiet_train(tiny_recipe(), own_copy)
    assert snapshot(own_copy / "seed-0") == before


def test_another_seed_is_added_without_touching_the_first(own_copy: Path) -> None:
    before = snapshot(own_copy / "seed-0")
    quiet_train(tiny_recipe(), own_copy, seeds=2)
    assert snapshot(own_copy / "seed-0") == before
    made = weights(own_copy)
    for stage in ("pretrain", "sst", "talker"):
        first, second = (made[f"seed-{seed}/{stage}/model/model.safetensors"] for seed in (0, 1))
        assert first != second


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("stages.sst.objective.k=2", "stages"),
        ("stages.pretrain.steps=7", "stages"),
        ("backbone.layers=2", "backbone"),
        ("task.shuffle_edges=true", "task"),
        ("precision=fp32", "precision"),
        ("evaluation.validation_problems=11", "evaluation"),
    ],
)
def test_a_recipe_that_trains_something_else_is_refused(own_copy: Path, override: str, key: str) -> None:
    before = snapshot(own_copy)
    with pytest.raises(ValueError, match=rf"started with another recipe \(they differ in .*{key}"):
        quiet_train(tiny_recipe(override), own_copy)
    assert snapshot(own_copy) == before


@pytest.mark.parametrize("override", ["evaluation.problems=20", "evaluation.batch_size=5", "summary=new words"])
def test_a_recipe_that_only_measures_otherwise_is_welcome(own_copy: Path, override: str) -> None:
    before = weights(own_copy)
    quiet_train(tiny_recipe(override), own_copy)
    assert weights(own_copy) == before


def test_a_folder_in_which_nothing_was_trained_is_bound_anew(tmp_path: Path) -> None:
    wrong, right = tiny_recipe("task.depth=2"), tiny_recipe()
    claim(tmp_path, wrong)
    claim(tmp_path, right)
    # Micro-batches may change.
    (tmp_path / "seed-0" / "pretrain" / "checkpoint-2").mkdir(parents=True)
    claim(tmp_path, tiny_recipe("stages.pretrain.accumulate=2"))
    with pytest.raises(ValueError, match=r"started with another recipe \(they differ in task\)"):
        claim(tmp_path, wrong)


def test_several_processes_have_a_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    there = torch.device("meta")
    assert device_for_all("cpu") == CPU
    assert device_for_all(there) == there
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert device_for_all("auto") == resolve_device("auto")
    with pytest.raises(ValueError, match=r"applies to all 2 processes, but .*; leave --device out"):
        device_for_all(there)


def test_a_damaged_record_of_the_recipe_is_refused_by_name(own_copy: Path) -> None:
    (own_copy / "recipe.json").write_text('{"name": "small')
    with pytest.raises(ValueError, match=r"recipe\.json"):
        quiet_train(tiny_recipe(), own_copy)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_damaged_start_is_refused_by_name(own_copy: Path) -> None:
    shutil.rmtree(own_copy / "seed-0" / "sst")
    truncate(own_copy / "seed-0" / "pretrain" / "model" / "model.safetensors")
    with pytest.raises(ValueError, match=r"pretrain/model/model\.safetensors was truncated or changed"):
        quiet_train(tiny_recipe(), own_copy)


def test_a_stage_whose_start_is_missing_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stage 'sst' starts from 'pretrain', which has no finished folder"):
        quiet_train(tiny_recipe(), tmp_path, only="sst")


def test_an_unknown_stage_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no stage 'tolker'; did you mean 'talker'"):
        quiet_train(tiny_recipe(), tmp_path, only="tolker")


# --- while it runs ---------------------------------------------------------------------------------------------------


def test_an_unfinished_stage_keeps_two_checkpoints_one_best_and_no_pickled_arguments(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        quiet_stage(one_stage("stages.pretrain.steps=10"), tmp_path, StopAt("step_end", 9))
    folder = tmp_path / "seed-0" / "pretrain"
    names = sorted(path.name for path in folder.iterdir())
    best = [name for name in names if name.startswith("best-")]
    assert len(best) == 1
    assert [name for name in names if name not in best] == ["checkpoint-6", "checkpoint-8"]
    assert not (folder / "model").exists()
    assert not list(folder.rglob("training_args.bin"))
    assert verify_finished_folders(tmp_path) == 3


def test_what_a_checkpoint_holds_loads_without_trusting_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        quiet_stage(one_stage(), tmp_path, StopAt("step_end", 3))
    folder = tmp_path / "seed-0" / "pretrain" / "checkpoint-2"
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(folder / name, weights_only=True)
