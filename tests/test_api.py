"""What a notebook calls: open any folder, answer text, look into the chain and answer from another one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hub import save_hub_folder, save_problems
from tiny_recipe import quick_run, quiet_train, tiny_recipe
from tiny_words import TASK
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

import unspoken
from unspoken.auto_classes import _Added
from unspoken.backbone.folder import verify
from unspoken.cli import main
from unspoken.experiment import measure_run
from unspoken.methods.catalogue import trainable
from unspoken.reasoning.causal_lm import LatentGenerationConfig
from unspoken.reasoning.system import System
from unspoken.training.own_data import own_recipe
from unspoken.training.recipe import dump, parse, shipped

QUESTIONS = [problem.question for problem in TASK.sample("test", range(3))]
TREE = "LK,LC,KB,KN,CJ,CE[ROOT]L[TARGET]E[ROUTE]"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hub_folder(tmp_path_factory.mktemp("api") / "hub")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick_run(tmp_path_factory.mktemp("api") / "run")


def test_importing_the_package_is_quick_and_imports_nothing_heavy(run: Path) -> None:
    code = f"""
import time
begun = time.perf_counter()
import sys, unspoken
assert time.perf_counter() - begun < 1
assert not {{"torch", "transformers"}} & set(sys.modules)
assert sorted(unspoken.__all__) == unspoken.__all__ and set(unspoken.__all__) <= set(dir(unspoken))
from transformers import AutoModelForCausalLM, AutoTokenizer
assert "unspoken.backbone" not in sys.modules
folder = {str(run / "seed-0" / "talker" / "model")!r}
print(type(AutoModelForCausalLM.from_pretrained(folder)).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "JepaReasonerForCausalLM\n", done.stderr


def test_auto_classes_that_were_imported_before_learn_of_the_models_too(run: Path) -> None:
    code = f"""
from transformers import AutoConfig
AutoConfig.for_model("llama")
import unspoken
print(type(AutoConfig.from_pretrained({str(run / "seed-0" / "sst" / "model")!r})).__name__)
try:
    AutoConfig.for_model("of no kind")
except ValueError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "JepaReasonerConfig\nrefused\n", done.stderr


def test_methods_are_asked_for_their_models_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("unspoken.methods.catalogue.register_models", lambda: asked.append(True))
    added = _Added({"known": 1}, {"there": 2})
    assert "known" not in added and "there" in added and not asked
    assert "codi" not in added and "coconut" not in added
    assert asked == [True]


def test_every_name_is_there_and_no_other() -> None:
    assert all(getattr(unspoken, name) is not None for name in unspoken.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        unspoken.lode  # noqa: B018


# --- opening -----------------------------------------------------------------------------------------------------


def test_a_plain_model_says_its_chain_and_thinks_softly_if_asked(hub: Path) -> None:
    plain = unspoken.load(hub, device="cpu")
    assert (plain.chain_kind, plain.name, plain.silent) == ("tokens", "hub", False)
    soft = unspoken.load(hub, reasoning=unspoken.SoftThinking(top_k=3, max_latents=4), device="cpu")
    assert (soft.chain_kind, soft.stop.max_latents, soft.opening) == ("superposition", 4, (2,))
    answer = soft.answer("What is 2 plus 2?", max_tokens=5)
    assert answer.chain.record.support_ids is not None
    assert answer.chain.record.support_ids.shape[-1] == 3
    assert answer.cost.latent_steps == len(answer.chain) <= 4
    assert answer.cost.tokens <= 5 and answer.cost.flops > 0


def test_without_markers_a_chain_ends_with_the_end_of_sequence_token(tmp_path: Path) -> None:
    save_hub_folder(tmp_path, markers=())
    soft = unspoken.load(tmp_path, unspoken.SoftThinking(max_latents=3), device="cpu")
    assert (soft.opening, soft.speaker.marker) == ((), (1,))
    assert len(soft.answer("2+2").chain) <= 3
    named = unspoken.load(tmp_path, unspoken.SoftThinking(max_latents=3, markers=("", "So ")), device="cpu")
    assert named.opening == ()
    assert named.texts.decode(named.speaker.marker) == "So "


def recorded(folder: Path, **settings: Any) -> System:
    """A model whose folder records how it thinks."""
    save_hub_folder(folder)
    how = {"open_ids": (4, 5), "end_ids": (6,), "max_latents": 4, **settings}
    model = AutoModelForCausalLM.from_pretrained(folder)
    LatentGenerationConfig(**how).attach(model)
    model.save_pretrained(folder)
    return unspoken.load(folder, device="cpu")


def test_an_explicit_chain_of_thought_keeps_its_markers(tmp_path: Path) -> None:
    assert recorded(tmp_path / "explicit", top_k=1).explicit
    expected = recorded(tmp_path / "superposed", top_k=5)
    soft = unspoken.load(tmp_path / "explicit", unspoken.SoftThinking(top_k=5), device="cpu")
    assert (soft.stop, soft.opening) == (expected.stop, (4, 5))
    for text in ("2+2", "What is 3 plus 4?"):
        mine, other = (system.answer(text, max_tokens=3) for system in (soft, expected))
        assert mine.tokens == other.tokens
        assert_close(mine.chain.record.latents, other.chain.record.latents)


def test_what_cannot_think_softly_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="talker was trained to think in vectors"):
        unspoken.load(run, unspoken.SoftThinking())
    recorded(tmp_path, top_k=1, max_latents=0)
    with pytest.raises(ValueError, match="trained to answer without a chain; give SoftThinking max_latents"):
        unspoken.load(tmp_path, unspoken.SoftThinking(), device="cpu")


def test_a_run_and_the_folder_of_its_model_are_the_same_system(run: Path) -> None:
    opened = unspoken.load(run, device="cpu")
    alone = unspoken.load(run / "seed-0" / "talker" / "model", device="cpu")
    assert opened.name == alone.name == "talker"
    assert opened.max_tokens == tiny_recipe().task.traits.answer_cap != tiny_recipe().evaluation.max_answer
    assert opened.answer(TREE).tokens == alone.answer(TREE).tokens
    assert unspoken.load(run, stage="pretrain", device="cpu").chain_kind == "tokens"
    with pytest.raises(ValueError, match="not a tree-search problem"):
        opened.answer("What is 2 plus 2?")
    with pytest.raises(ValueError, match="so it has no stage 'sst'"):
        unspoken.load(run / "seed-0" / "talker" / "model", stage="sst")
    with pytest.raises(ValueError, match="there is no folder"):
        unspoken.load(run / "nothing")


# --- training and converting -------------------------------------------------------------------------------------


def test_a_converted_model_has_the_weights_of_the_model(hub: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reasoner"
    system = unspoken.convert(hub, to="jepa-reasoner", output=folder, device="cpu")
    assert verify(folder)["converted_from"] == str(hub)
    plain = AutoModelForCausalLM.from_pretrained(hub)
    for name, weight in plain.base_model.state_dict().items():
        assert torch.equal(system.model.backbone.state_dict()[name], weight)
    alone = unspoken.convert(hub, device="cpu")
    assert (alone.name, alone.opening) == ("jepa_reasoner", (2,))
    assert alone.answer("2+2", max_tokens=4).tokens == system.answer("2+2", max_tokens=4).tokens
    projected = unspoken.convert(hub, to="codi", device="cpu")
    assert len(projected.answer("2+2", max_tokens=2).chain) == projected.stop.max_latents == 6
    assert projected.max_tokens == 256
    with pytest.raises(ValueError, match="reasoner exists; choose another folder"):
        unspoken.convert(hub, output=folder)
    with pytest.raises(ValueError, match="no model is converted to 'coconut' without training"):
        unspoken.convert(hub, to="coconut")


def test_the_recipe_of_one_s_own_data_follows_from_the_data(hub: Path, tmp_path: Path) -> None:
    data = save_problems(tmp_path / "mine.jsonl")
    recipe = own_recipe("latent_sft", hub, data, ["steps=3", "lora=null", "stages.cot.steps=5", "task.test_rows=2"])
    assert (recipe.name, recipe.task.test_rows, recipe.backbone) == ("latent-sft", 2, str(hub))
    steps = {stage.name: (stage.steps, stage.lora) for stage in recipe.stages}
    assert steps["cot"] == (5, None) and steps["union"] == (3, None) and steps["labels"] == (None, None)
    assert recipe.stage("labels").objective.rows == recipe.task.build().size("train") == 34
    longest = max(len("".join(row.steps)) for row in recipe.task.build().sample("train", range(34)))
    assert longest < recipe.evaluation.max_latents < 2 * longest
    assert parse(dump(recipe), "again") == recipe
    # Three epochs of 34 rows in batches of 8 are few, so it is the fewest steps of three epochs.
    assert own_recipe("cot", hub, {"kind": "jsonl", "train": str(data), "test_rows": 2}).stages[0].steps == 60


@pytest.mark.parametrize("method", sorted(trainable()))
def test_every_method_is_trained_by_name(method: str, hub: Path, tmp_path: Path) -> None:
    data, output = save_problems(tmp_path / "mine.jsonl"), tmp_path / "run"
    how: dict[str, Any] = {"device": "cpu", "steps": 1, "precision": "fp32", "quiet": True}
    if method == "icot":
        how["stages.icot.objective.remove_all_beyond"] = 0  # in one step no schedule comes to its end
    system = unspoken.train(method, model=hub, data=data, output=output, **how)
    first = system.answer("What is 2 plus 2?")
    data.unlink()  # the model must answer without its data
    assert unspoken.load(output, device="cpu").answer("What is 2 plus 2?").tokens == first.tokens


def test_one_seed_is_trained_and_its_progress_goes_to_standard_error(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []
    monkeypatch.setattr("unspoken.training.run.train", lambda *_, **how: trained.append(how))
    monkeypatch.setattr("unspoken.api.load", lambda output, device: (output, device))
    given: dict[str, Any] = {"model": hub, "data": save_problems(tmp_path / "mine.jsonl"), "output": tmp_path / "run"}
    assert unspoken.train("cot", **given) == (tmp_path / "run", "auto")
    unspoken.train("cot", **given, quiet=True)
    consoles = [how.pop("console") for how in trained]
    assert [(console.quiet, console.stderr) for console in consoles] == [(False, True), (True, True)]
    assert trained[0] == {"seeds": 1, "report_to": [], "device": "auto"}


def test_what_cannot_be_trained_is_refused_in_one_line(hub: Path, tmp_path: Path) -> None:
    chainless = tmp_path / "chainless.jsonl"
    chainless.write_text("".join(f'{{"question": "{n}?", "answer": {n}}}\n' for n in range(30)))
    with pytest.raises(ValueError, match=r"codi learns from explicit chains, and the rows of .* have none"):
        own_recipe("codi", hub, chainless)
    assert own_recipe("answer-only", hub, chainless).stages[0].name == "answer_only"
    for arguments, message in (
        (("soft thinking", hub, chainless), "there is no method 'soft thinking' to train"),
        (("cod", hub, chainless), "did you mean 'codi'"),
        (("cot", hub, tmp_path / "nothing.jsonl"), "there is no file"),
        (("cot", tmp_path / "nothing", chainless), "cannot be loaded"),
        (("answer-only", hub, chainless, ["stepps=3"]), "stepps is not a known key"),
        (("answer-only", hub, chainless, ["evaluation.problms=3"]), "did you mean 'problems'"),
    ):
        with pytest.raises(ValueError, match=message):
            own_recipe(*arguments)
    with pytest.raises(ValueError, match="validation_problems is 9, but the data holds 3 out"):
        unspoken.train(
            "answer-only", model=hub, data=chainless, output=tmp_path / "run", evaluation={"validation_problems": 9}
        )


def test_no_method_has_the_name_of_a_recipe() -> None:
    assert not set(trainable()) & {name for name, _, _ in shipped()}


def test_the_command_line_trains_a_method_too(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_problems(tmp_path / "mine.jsonl")
    given = ["codi", "--model", str(hub), "--data", str(data)]
    for arguments, message in (
        (["train", *given[:3]], "training a METHOD needs both --model and --data"),
        (["train", "codi"], "'codi' is a method, not a recipe; give it --model and --data"),
        (["run", "nothing", *given[1:]], "there is no method 'nothing' to train"),
    ):
        with pytest.raises(SystemExit) as stopped:
            called(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        called(["run", *given, "--show"])
    assert parse(capsys.readouterr().out, "shown").name == "codi"
    output = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        called(["train", *given, "--output", str(output), "--set", "steps=1", "--device", "cpu", "--report-to", "none"])
    assert stopped.value.code == 0
    with pytest.raises(SystemExit):
        called(["generate", str(output), "What is 2 plus 2?", "--device", "cpu", "--json"])
    answered = json.loads(capsys.readouterr().out.splitlines()[-1])
    other = save_problems(tmp_path / "other.jsonl", rows=6)
    with pytest.raises(SystemExit):
        called(["eval", str(output), "--data", str(other), "--device", "cpu", "--json"])
    assert json.loads(capsys.readouterr().out)["problems"] == 6
    with pytest.raises(SystemExit):
        called(["convert", str(hub), str(tmp_path / "reasoner")])
    assert unspoken.load(tmp_path / "reasoner", device="cpu").chain_kind == "latent"
    assert answered["latent_steps"] == 6 and answered["system"] == "codi"


def called(arguments: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["unspoken", *arguments])
        main()


# --- evaluating --------------------------------------------------------------------------------------------------


def test_a_system_is_measured_as_a_run_is(tmp_path: Path) -> None:
    recipe = tiny_recipe("stages.pretrain.steps=2", "stages.sst.steps=2", "stages.talker.steps=2")
    runs = quiet_train(recipe, tmp_path)
    expected = measure_run(recipe, runs, command="", log=lambda _: None)
    system = unspoken.load(tmp_path, device="cpu")
    evaluation = system.evaluate(problems=10)
    name = next(name for name in expected["systems"] if not name.endswith(("nearest row", "pretrain")))
    assert evaluation.results["systems"]["talker"]["exact_match"] == expected["systems"][name]["exact_match"]
    found = evaluation.results["probes"]["controls"]["talker"]
    assert found == expected["probes"]["controls"][name]
    assert [row[0].text for row in evaluation.table().rows] == ["test", *found]
    assert "zero vectors" in repr(evaluation) and "<table" in evaluation._repr_html_()
    assert "probes" not in system.evaluate(problems=4, controls=False).results["probes"]


def test_a_plain_model_is_measured_on_a_file(hub: Path, tmp_path: Path) -> None:
    data = save_problems(tmp_path / "mine.jsonl", rows=8)
    soft = unspoken.load(hub, unspoken.SoftThinking(max_latents=3), device="cpu")
    evaluation = soft.evaluate(data, problems=6)
    assert (evaluation.accuracy, evaluation.results["problems"]) == (0.0, 6)
    by_task = soft.evaluate({"kind": "jsonl", "tests": [str(data)]}, problems=6, controls=False)
    assert (by_task.accuracy, by_task.results["problems"]) == (0.0, 6)
    assert {"zero", "swap", "no chain", "random mixtures"} < set(evaluation.results["probes"]["controls"][soft.name])


def test_what_cannot_be_measured_is_refused_in_one_line(hub: Path, run: Path, tmp_path: Path) -> None:
    data = save_problems(tmp_path / "mine.jsonl")
    plain = unspoken.load(hub, device="cpu")
    for given, message in (
        (None, "hub records no task to be measured on"),
        (tmp_path / "nothing.jsonl", "there is no file"),
        ({"kind": "arithmetik"}, "did you mean 'arithmetic'"),
        ({"kind": "tree_search"}, "the task tree_search has tokens that hub does not know"),
        (3, "data is 3; give a file"),
    ):
        with pytest.raises(ValueError, match=message):
            plain.evaluate(given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a tree-search problem"):
        unspoken.load(run, device="cpu").evaluate(data)
    how: dict[str, Any] = {"device": "cpu", "steps": 1, "precision": "fp32", "quiet": True}
    trained = unspoken.train("answer-only", model=hub, data=data, output=tmp_path / "run", **how)
    with pytest.raises(ValueError, match=r"has learned from rows of .*; leave it out"):
        trained.evaluate(data)
    assert trained.evaluate(controls=False).results["problems"] == 4
