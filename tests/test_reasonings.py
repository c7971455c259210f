"""Ways to reason without training, asked for by name: in a recipe, on the command line, by a server and a harness."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_hub import save_hub_folder
from tiny_recipe import quiet_train

import unspoken
from unspoken.cli import main
from unspoken.experiment import measure_run, open_run
from unspoken.integrations.lm_eval import UnspokenLM
from unspoken.methods.catalogue import reasonings
from unspoken.runs import reasoning_of
from unspoken.serving import open_served
from unspoken.training.recipe import Recipe, dump, parse

TEXT = """
name: chains
size: tiny
precision: fp32
attention: eager
task: {kind: arithmetic, steps: [1, 2], largest: 20, operations: [add, subtract]}
backbone: {hidden_size: 16, attention_size: 16, intermediate_size: 32, heads: 2, layers: 1}
stages:
  - name: cot
    objective: {kind: next_token, positions: answer}
    steps: 2
    evaluate_every: 2
    batch_size: 4
evaluation: {problems: 3, validation_problems: 3, batch_size: 3, max_latents: 4, max_answer: 3}
threads: 1
"""
WAY = {"kind": "soft_thinking", "top_k": 3}
NAME = "cot, soft thinking, top k 3"
QUESTION = "Ann has 5 pears. Bo has 3 more pears than Ann. How many pears does Bo have?"


def asking(ways: list[dict[str, Any]]) -> Recipe:
    return parse(TEXT, "chains", [f"evaluation.reasonings={json.dumps(ways)}"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    quiet_train(parse(TEXT, "chains"), folder)
    return folder


def called(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["unspoken", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_an_answer_is_as_long_as_the_recipe_has_it(run: Path) -> None:
    assert unspoken.load(run, device="cpu").max_tokens == 3


def test_a_recipe_asks_for_them_and_no_page_has_them_otherwise(run: Path) -> None:
    recipe, runs = open_run(run, "cpu")
    plain = measure_run(recipe, runs, command="", log=lambda _: None)
    assert set(plain["systems"]) == {"cot", "soft thinking"}
    asked = measure_run(asking([WAY]), runs, command="", log=lambda _: None)
    assert set(asked["systems"]) == {"cot", "soft thinking", NAME}
    assert f"{NAME} - cot" in asked["differences"]
    # They are no part of what is trained: the same folder takes the recipe.
    quiet_train(asking([WAY]), run)
    quiet_train(recipe, run)


def test_a_recipe_with_them_is_written_and_read_back() -> None:
    recipe = asking([WAY, {"kind": "soft_thinking", "top_k": None, "temperature": 0.5}])
    assert [way.title for way in recipe.evaluation.reasonings] == [
        "soft thinking, top k 3",
        "soft thinking, top k none, temperature 0.5",
    ]
    assert parse(dump(recipe), "again") == recipe


@pytest.mark.parametrize(
    ("ways", "message"),
    [
        ([{"kind": "soft_thinkin"}], "evaluation.reasonings.0..kind is 'soft_thinkin'; did you mean 'soft_thinking'"),
        ([{"kind": "soft_thinking", "topk": 3}], "topk is not a known key; did you mean 'top_k'"),
        ([{"top_k": 3}], "evaluation.reasonings.0..kind is missing"),
        ([WAY, WAY], "the same way to reason twice"),
        ({"kind": "soft_thinking"}, "evaluation.reasonings is .* must be a list"),
    ],
)
def test_what_is_wrong_with_them_is_one_line(ways: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asking(ways)


def test_a_way_that_suits_no_stage_is_refused(run: Path) -> None:
    silent = [
        "stages.cot.objective.chain=none",
        f"evaluation.reasonings={json.dumps([WAY])}",
    ]
    with pytest.raises(ValueError, match=r"evaluation.reasonings\[0\]: soft thinking, top k 3 suits no stage"):
        parse(TEXT, "silent", silent)
    recipe, runs = open_run(run, "cpu")
    strange = type("Strange", (type(reasoning_of(WAY)),), {"suits": lambda *_: False})()
    with pytest.raises(ValueError, match="suits no measured stage of chains"):
        measure_run(recipe, runs, command="", log=lambda _: None, reasonings=[strange])


def test_names_mappings_and_yaml_mean_the_same() -> None:
    expected = unspoken.SoftThinking(top_k=3)
    assert reasoning_of(expected) == reasoning_of(WAY) == reasoning_of("{kind: soft_thinking, top_k: 3}") == expected
    assert reasoning_of("soft-thinking") == unspoken.SoftThinking()
    assert unspoken.SoftThinking in reasonings()
    for given, message in (("{kind", "reasoning is '{kind'"), ("hard", "reasoning.kind is 'hard'"), ("3", "must be a")):
        with pytest.raises(ValueError, match=message):
            reasoning_of(given)


def test_every_face_answers_alike(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps(WAY)
    expected = unspoken.load(run, WAY, device="cpu").answer(QUESTION)
    assert called("generate", str(run), QUESTION, "--reasoning", text, "--device", "cpu", "--json") == 0
    generated = json.loads(capsys.readouterr().out)
    assert (generated["system"], generated["latent_steps"]) == (NAME, len(expected.chain))
    served = open_served(run, reasoning=text, device="cpu").system
    assert served.name == f"chains-tiny-{NAME}"
    assert served.answer(QUESTION).tokens == expected.tokens
    save_hub_folder(tmp_path)
    soft = unspoken.load(tmp_path, "{kind: soft_thinking, max_latents: 3}", device="cpu").answer("2+2", max_tokens=64)
    harness = UnspokenLM(tmp_path, device="cpu", reasoning={"kind": "soft_thinking", "max_latents": 3})
    assert harness.system.answer("2+2", max_tokens=64).tokens == soft.tokens
    assert called("eval", str(run), "--reasoning", text, "--device", "cpu", "--json") == 0
    assert NAME in json.loads(capsys.readouterr().out)["systems"]
    assert called("generate", str(run), QUESTION, "--reasoning", "hard", "--device", "cpu") == 2
    assert "reasoning.kind is 'hard'" in capsys.readouterr().err
