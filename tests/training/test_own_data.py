"""One's own problems: what is chosen by them, what is held out, the recipe as a file, and graders of one's own."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
from rich.console import Console
from tiny_hub import save_hub_folder, save_problems
from transformers import Gemma3Config
from typer.testing import CliRunner

import unspoken
from unspoken.backbone.folder import verify
from unspoken.cli import app
from unspoken.experiment import run_experiment
from unspoken.methods.catalogue import trainable
from unspoken.storage import read_json
from unspoken.tasks import grading
from unspoken.tasks.problems import ReasoningProblem
from unspoken.training.own_data import own_recipe
from unspoken.training.recipe import load


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hub_folder(tmp_path_factory.mktemp("own") / "hub")


def config_of(folder: Path, width: int) -> Path:
    """A model of another width, of which a recipe reads the configuration alone."""
    save_hub_folder(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": width}))
    return folder


def test_rate_and_batches_follow_from_model_and_data(hub: Path, tmp_path: Path) -> None:
    data = save_problems(tmp_path / "mine.jsonl")
    narrow, wide = hub, config_of(tmp_path / "wide", 1024)
    for model, overrides, rank, rate in (
        (narrow, [], None, 0.001),
        (wide, [], 64, 0.0003),
        (wide, ["lora=null"], None, 0.00005),
        (wide, ["stages.cot.lora=null"], None, 0.00005),
        (wide, ["lora=~"], None, 0.00005),
        (wide, ["lora="], None, 0.00005),
        (wide, ["stages.0.lora=Null"], None, 0.00005),
        (wide, ["lora=null", "stages.cot.lora={rank: 8}"], 8, 0.0003),
        (narrow, ["lora.rank=8"], 8, 0.0003),
    ):
        (stage,) = own_recipe("cot", model, data, overrides).stages
        assert (stage.lora and stage.lora.rank, stage.optimizer.lr) == (rank, rate)
    # Forty rows, of which four are held out for validation and four for the test; the longest chain has 12 tokens.
    small = own_recipe("cot", hub, data)
    (stage,) = small.stages
    assert (stage.batch_size, stage.steps, stage.evaluate_every) == (8, 3 * 20, 3 * 20 // 4)
    moves = stage.optimizer
    assert (moves.name, moves.lr_rest, moves.weight_decay, moves.warmup_steps) == ("adamw", None, 0.01, 6)
    measured = small.evaluation
    assert (measured.problems, measured.validation_problems, measured.batch_size) == (500, 4, 32)
    assert measured.max_latents == 4 + 1.25 * len("33+5=38\ndone")
    assert small.group_by_length
    many = save_problems(tmp_path / "many.jsonl", rows=7000)
    (stage,) = own_recipe("cot", hub, many).stages
    assert (stage.batch_size, stage.steps) == (32, 3 * 6000 / 32 + 0.5)  # 500 for validation, 500 held out
    # Every epoch is one, also with batches of another size.
    (stage,) = own_recipe("cot", hub, many, ["batch_size=50"]).stages
    assert (stage.batch_size, stage.steps) == (50, 360)
    (stage,) = own_recipe("cot", hub, data, ["batch_size=1"]).stages
    assert (stage.batch_size, stage.steps) == (1, 3 * 32)
    for one in ("stages.cot.batch_size=50", "stages.0.batch_size=50"):
        assert own_recipe("cot", hub, many, [one]) == own_recipe("cot", hub, many, ["batch_size=50"])
    with pytest.raises(ValueError, match="batch_size and evaluate_every must be at least 1"):
        own_recipe("cot", hub, data, ["batch_size=0"])
    long = tmp_path / "long.jsonl"
    rows = [{"question": f"{n} {'x' * 4000}?", "steps": ["y" * 200], "answer": n} for n in range(30)]
    long.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    recipe = own_recipe("cot", hub, long)
    assert (recipe.stages[0].batch_size, recipe.evaluation.batch_size) == (2, 2)  # 2 ** 14 tokens are three rows


def test_looks_and_warm_up_follow_from_the_steps_that_are_given(hub: Path, tmp_path: Path) -> None:
    data = save_problems(tmp_path / "mine.jsonl")
    for overrides, expected in (
        (["steps=8"], (8, 2, 0)),
        (["stages.cot.steps=8"], (8, 2, 0)),
        (["steps=2000"], (2000, 250, 30)),
        (["steps=8", "evaluate_every=3", "optimizer.warmup_steps=1"], (8, 3, 1)),
        (["steps=8", "stages.cot.steps=40"], (40, 10, 4)),
    ):
        (stage,) = own_recipe("cot", hub, data, overrides).stages
        assert (stage.steps, stage.evaluate_every, stage.optimizer.warmup_steps) == expected
    for override, message in (
        ("steps", r"^cot: override 'stages\.cot\.steps' is not of the form key=value$"),
        ("stages.coot.steps=8", r"^cot: override stages\.coot\.steps: there is no entry 'coot'; did you mean 'cot'\?$"),
        ("stages.cot=8", r"^cot: stages\[0\] is 8; it must be a mapping"),
        ("steps=eight", r"^cot: stages\[0\]\.steps is 'eight'"),
        (
            "stop_at=0.9",
            r"^override stop_at=0\.9: no stage of cot has 'stop_at'; name the stage, as in stages\.cot\.stop_at=0\.9$",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            own_recipe("cot", hub, data, [override])


def test_a_key_that_no_stage_has_by_default_is_set_for_a_named_one(hub: Path, tmp_path: Path) -> None:
    data, settings = save_problems(tmp_path / "mine.jsonl"), ["stages.cot.stop_at=0.9", "optimizer.schedule=constant"]
    (stage,) = own_recipe("cot", hub, data, settings).stages
    assert stage.stop_at == 0.9


def test_one_stage_with_other_batches_keeps_its_epochs(hub: Path, tmp_path: Path) -> None:
    data = save_problems(tmp_path / "mine.jsonl", rows=400)
    usual, other = (own_recipe("icot", hub, data, given).stages for given in ([], ["stages.icot.batch_size=4"]))
    assert usual[0] == other[0]
    assert (usual[1].steps, other[1].steps) == (8 * 320 / 8, 8 * 320 / 4)
    # Its chain is removed more slowly as well.
    assert other[1].objective.steps_per_token == 2 * usual[1].objective.steps_per_token


def test_a_model_of_texts_and_pictures_is_as_wide_as_its_language_model(hub: Path, tmp_path: Path) -> None:
    folder = save_hub_folder(tmp_path / "composite")
    text = {"hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128}
    Gemma3Config(text_config=text).save_pretrained(folder)
    (stage,) = own_recipe("cot", folder, save_problems(tmp_path / "mine.jsonl")).stages
    assert stage.lora is not None


def test_icot_removes_a_chain_while_it_trains_and_reads_rows_in_order(hub: Path, tmp_path: Path) -> None:
    recipe = own_recipe("icot", hub, save_problems(tmp_path / "mine.jsonl"))
    (_, stage) = recipe.stages
    assert not recipe.group_by_length
    assert stage.steps is not None
    assert stage.steps / 2 < stage.objective.steps_until_removed <= 3 * stage.steps / 4
    assert stage.objective.remove_all_beyond == len("33+5=38\ndone")


# --- what is held out ---------------------------------------------------------------------------------------------


def test_what_is_held_out_is_printed_and_recorded(hub: Path, tmp_path: Path) -> None:
    data = save_problems(tmp_path / "mine.jsonl")
    with data.open("a") as file:
        file.write("not JSON\n")
    overrides = ["task.skip_malformed=true", "steps=1", "precision=fp32"]
    recipe = own_recipe("answer-only", hub, data, overrides)
    printed = StringIO()
    console = Console(file=printed, width=200)
    output = tmp_path / "run"
    run_experiment(recipe, output, seeds=1, report_to=[], console=console, command="", device="cpu")
    assert "rows: 32 train, 4 validation, 4 held_out; left out: 1 (train: malformed)" in printed.getvalue()
    splits = {"train": 32, "validation": 4, "held_out": 4}
    manifest, results = verify(output / "seed-0" / "answer_only" / "model"), read_json(output / "results.json")
    for recorded in (manifest, results):
        assert (recorded["splits"], recorded["dropped"]) == (splits, {"train: malformed": 1})
    assert list(results["tests"]) == ["held_out"]
    assert results["problems"] == 4


# --- the recipe as a file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(trainable()))
def test_the_file_of_new_recipe_is_the_recipe_that_train_uses(method: str, hub: Path, tmp_path: Path) -> None:
    data, file = save_problems(tmp_path / "mine.jsonl"), tmp_path / "mine.yaml"
    given = ["--model", str(hub), "--data", str(data), "--set", "task.test_rows=3"]
    written = CliRunner().invoke(app, ["new-recipe", method, *given, "--output", str(file)])
    assert (written.exit_code, written.stdout) == (0, f"{file}\n")
    assert file.read_text().startswith("# rows: 33 train, 4 validation, 3 held_out\n")
    assert load(str(file)) == own_recipe(method, hub, data, ["task.test_rows=3"])


def test_new_recipe_of_python_writes_the_same_file(hub: Path, tmp_path: Path) -> None:
    data, shell = save_problems(tmp_path / "mine.jsonl"), tmp_path / "shell.yaml"
    given = ["--model", str(hub), "--data", str(data), "--set", "steps=7", "--grader", grading.name_of(never)]
    assert CliRunner().invoke(app, ["new-recipe", "cot", *given, "--output", str(shell)]).exit_code == 0
    file = tmp_path / "python.yaml"
    assert unspoken.new_recipe("cot", model=hub, data=data, output=file, grader=never, steps=7) == file
    assert file.read_text() == shell.read_text()
    with pytest.raises(ValueError, match="exists; name another file"):
        unspoken.new_recipe("cot", model=hub, data=data, output=file)


def test_new_recipe_overwrites_nothing(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["new-recipe", "cot", "--model", str(hub), "--data", str(save_problems(tmp_path / "mine.jsonl"))]
    assert CliRunner().invoke(app, given).exit_code == 0
    assert Path("cot.yaml").is_file()
    refused = CliRunner().invoke(app, given)
    assert isinstance(refused.exception, ValueError)
    assert str(refused.exception) == "cot.yaml exists; name another file with --output, or remove it"


# --- graders of one's own -----------------------------------------------------------------------------------------


def never(answer: str, problem: ReasoningProblem) -> bool:
    """A grader that nothing satisfies."""
    return False


def always(answer: str, problem: ReasoningProblem) -> bool:
    """A grader that everything in a box satisfies."""
    return True


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> str:
    """This module under a name that it can be imported by."""
    monkeypatch.setitem(sys.modules, "own_graders", sys.modules[__name__])
    for function in (never, always):
        monkeypatch.setattr(function, "__module__", "own_graders")
    return "own_graders"


def test_a_grader_is_checked_before_anything_is_trained(hub: Path, tmp_path: Path, here: str) -> None:
    data = save_problems(tmp_path / "mine.jsonl")
    given = ["train", "cot", "--model", str(hub), "--data", str(data), "--output", str(tmp_path / "run")]
    for grader, message in (
        ("no_such_module:right", "cannot be imported (ModuleNotFoundError: No module named 'no_such_module')"),
        (f"{here}:rihgt", "cannot be imported (AttributeError: "),
        (f"{here}:config_of_nothing", "cannot be imported (AttributeError: "),
        ("math:sqrt", "must be a function of (answer, problem): too many positional arguments"),
        ("maths", "choose one of number, math, string, choice, or your own as module:function"),
    ):
        refused = CliRunner().invoke(app, [*given, "--grader", grader])
        assert isinstance(refused.exception, ValueError)
        assert message in str(refused.exception)
        assert not (tmp_path / "run").exists()
    alone = CliRunner().invoke(app, ["train", "tree-search", "--grader", "math"])
    assert "--grader is allowed only with them" in str(alone.exception)


def test_a_function_grades_training_and_whatever_is_measured_later(
    hub: Path, tmp_path: Path, here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxed = grading.boxed  # whatever an untrained model writes is in a box
    monkeypatch.setattr(grading, "boxed", lambda text: text if boxed(text) is None else boxed(text))
    data, other = save_problems(tmp_path / "mine.jsonl"), save_problems(tmp_path / "other.jsonl", rows=6)
    how: dict[str, Any] = {"device": "cpu", "steps": 1, "precision": "fp32", "quiet": True}
    system = unspoken.train("answer-only", model=hub, data=data, output=tmp_path / "run", grader=always, **how)
    assert read_json(tmp_path / "run" / "recipe.json")["task"]["grader"] == f"{here}:always"
    for problems, grader, accuracy in (
        (None, None, 1.0),
        (other, None, 1.0),  # as the run has it
        (other, never, 0.0),
        (other, f"{here}:never", 0.0),
    ):
        assert system.evaluate(problems, grader=grader, controls=False).accuracy == accuracy
    with pytest.raises(ValueError, match="grader needs a file of problems"):
        system.evaluate(grader=never)
    refused = CliRunner().invoke(app, ["eval", str(tmp_path / "run"), "--grader", "math"])
    assert "--grader needs --data" in str(refused.exception)


# --- from problems to a served model ------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_commands_lead_from_problems_to_a_served_model(hub: Path, tmp_path: Path) -> None:
    save_problems(tmp_path / "mine.jsonl", rows=200)
    (tmp_path / "own_grader.py").write_text("def same(answer, problem):\n    return answer == problem.answer\n")
    unspoken_command = [sys.executable, "-m", "unspoken.cli"]
    given = ["--model", str(hub), "--data", "mine.jsonl", "--grader", "own_grader:same", "--output", "runs/mine"]
    trained = subprocess.run(
        [*unspoken_command, "train", "cot", *given], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert trained.returncode == 0, trained.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = subprocess.Popen(
        [*unspoken_command, "serve", "runs/mine", "--port", str(port)], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=60) as client:
            for _ in range(600):
                assert served.poll() is None
                with contextlib.suppress(httpx2.TransportError):
                    (model,) = client.get("models").json()["data"]
                    break
                time.sleep(0.1)
            message = {"role": "user", "content": "What is 12 plus 5?"}
            answered = client.post("chat/completions", json={"model": model["id"], "messages": [message]})
            assert answered.status_code == 200, answered.text
            assert answered.json()["choices"][0]["message"]["role"] == "assistant"
    finally:
        served.terminate()
        served.wait()
