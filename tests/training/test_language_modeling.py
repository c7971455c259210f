"""A run on plain text, from a file to the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tag_balance import unbalanced
from tiny_prose import corpus
from tiny_recipe import collated, quiet_train
from transformers import AutoTokenizer

from unspoken.backbone.folder import read_manifest
from unspoken.experiment import measure_run, open_run
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.loading import load_model
from unspoken.probes.geometry import GeometryProbe
from unspoken.report.page import write_page
from unspoken.report.plan import print_plan
from unspoken.report.terminal import print_results
from unspoken.tasks.prose import EOS
from unspoken.training import recipe as recipes
from unspoken.training.plan import plan
from unspoken.training.recipe import Recipe

LINE = """
name: prose
size: tiny
task: {kind: prose, train: FILE, vocabulary: 300, length: 24, sentence_tokens: [14, 30], prime: 4}
backbone: {hidden_size: 32, attention_size: 32, intermediate_size: 64, layers: 1, heads: 2, initializer_range: 0.1}
talker: {variant: dual, attention_size: 32, intermediate_size: 32, layers: 1, heads: 2}
stages:
  - {name: pretrain, objective: {kind: next_token}, steps: 30, evaluate_every: 15, batch_size: 8}
  - name: sst
    start: pretrain
    objective: {kind: sst, positions: all}
    steps: 2
    evaluate_every: 1
    batch_size: 8
    optimizer: {lr: 0.005}
  - {name: dual, start: sst, objective: {kind: talker}, steps: 2, evaluate_every: 2, batch_size: 8}
  - name: mono
    start: sst
    objective: {kind: talker}
    talker: {variant: mono, causal: false, attention_size: 32, intermediate_size: 32, layers: 1, heads: 2}
    steps: 2
    evaluate_every: 2
    batch_size: 8
evaluation: {problems: 6, validation_problems: 4, batch_size: 6, max_latents: 31}
threads: 1
"""


def line(file: Path, *overrides: str) -> Recipe:
    return recipes.parse(LINE, "line", [f"task.train={file}", *overrides])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("prose")
    quiet_train(line(corpus(folder)), folder / "run")
    recipe, runs = open_run(folder / "run")
    return folder, measure_run(recipe, runs, command="unspoken run prose", log=lambda _: None)


def readings(folder: Path, stage: str, name: str) -> list[float]:
    history = read_manifest(folder / "run" / "seed-0" / stage / "model")["history"]
    return [entry[f"eval_{name}"] for entry in history if f"eval_{name}" in entry]


def test_a_language_model_learns_and_every_stage_is_watched(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    lost = readings(folder, "pretrain", "perplexity")
    assert len(lost) == 3
    assert lost[0] > 150, "about as many as there are tokens"
    assert lost[-1] < lost[0] / 3
    for name in ("nearest_row", "effective_rank", "sst_loss", "best_constant_loss"):
        assert len(readings(folder, "sst", name)) == 3
    for stage in ("dual", "mono"):
        assert all(0 <= value <= 1 for value in readings(folder, stage, "token_accuracy"))


def test_the_tokenizer_and_the_talker_lie_in_the_folder(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    for stage in ("dual", "mono"):
        place = folder / "run" / "seed-0" / stage / "model"
        model = load_model(place)
        assert isinstance(model, JepaReasonerForCausalLM)
        assert model.config.talker_kind == stage
        assert (model.config.max_latents, model.config.eos_token_id) == (31, EOS)
        text = "Under the bridge."
        saved = AutoTokenizer.from_pretrained(place)
        assert saved(text)["input_ids"] == line(folder / "corpus.txt").tokenizer()(text)["input_ids"]


def test_a_talker_learns_sentences_and_everything_else_texts(trained: tuple[Path, dict[str, Any]]) -> None:
    recipe = line(trained[0] / "corpus.txt")
    for stage in recipe.stages:
        batch = collated(recipe, stage.name)(np.arange(6))
        alone = bool((batch["input_ids"] == EOS)[:, -1].all())
        assert alone == (stage.objective.kind == "talker"), stage.name
        assert (batch["input_ids"].shape[1] == 24) or alone


def test_what_was_measured_is_whole(trained: tuple[Path, dict[str, Any]]) -> None:
    results = trained[1]
    json.dumps(results, allow_nan=False)
    assert set(results["probes"]) == {"corruption", "next_token"}
    language, corruption = results["probes"]["next_token"], results["probes"]["corruption"]
    assert set(language["systems"]) == {"pretrain", "sst"}
    assert language["systems"]["pretrain"]["perplexity"]["mean"] < 100
    assert "perplexity" not in language["systems"]["sst"]
    assert language["tokens"] == language["rows"] * 24
    assert set(results["systems"]) == {"dual", "mono"}
    kept = results["outcomes"]["test"]
    assert (kept["problems"], kept["cost"], set(kept["right"])) == (results["problems"], {}, {"dual", "mono"})
    assert "random prime" in corruption["systems"]["dual"]["conditions"]
    assert "random prime" not in corruption["systems"]["mono"]["conditions"]
    dual = next(sample for sample in corruption["samples"] if sample["system"] == "dual")
    assert dual["decoded"]["other sentence"][:2] == dual["sentence"][:2], "the prime comes first"


def test_the_page_and_the_tables_show_it(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = trained[1]
    write_page([results], tmp_path / "one.html")
    write_page([results, results], tmp_path / "two.html")
    page = (tmp_path / "one.html").read_text()
    assert unbalanced(page) == unbalanced((tmp_path / "two.html").read_text()) == []
    titles = re.findall(r'<h2 class="title">(.*?) *<', page)
    assert titles == ["Next-token prediction", "Training", "How to make it again"]
    assert "Sentences, right and corrupted" in page
    assert "other sentence" in page
    print_results(results, Console(force_terminal=False))
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 120
    for wanted in ("random string", "gaussian", "perplexity", "its own", "training took"):
        assert wanted in text
    only = results | {"probes": {"next_token": results["probes"]["next_token"]}, "systems": {}}
    write_page([only], tmp_path / "only.html")
    assert "pretrain predicts" in (tmp_path / "only.html").read_text()


def test_a_plan_counts_tokens_and_weights(trained: tuple[Path, dict[str, Any]]) -> None:
    facts = plan(line(trained[0] / "corpus.txt"))
    assert facts["tokens"]["pretrain"] == 30 * 8 * 24
    sizes = {model["stage"]: model["parameters"] for model in facts["models"]}
    # The table; four square matrices, two of the feed-forward part and two gains a block; one gain at the end.
    assert sizes["pretrain"] == 300 * 32 + 4 * 32 * 32 + 2 * 32 * 64 + 2 * 32 + 32
    assert sizes["dual"] > sizes["sst"]
    print_plan(facts, Console(force_terminal=False))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone=some/model", "prose has a vocabulary of its own"),
        ("stages.pretrain.objective.chain=none", "prose has no chain to leave out"),
        ("stages.sst.objective={kind: coconut, replaced: 1}", "a coconut stage cannot learn the task prose"),
        ("task.lenght=3", "task.lenght is not a known key; did you mean 'length'"),
        ("task.train=3", "task.train is 3; it must be text or a list of text"),
    ],
)
def test_an_impossible_recipe_is_one_clear_line(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        line(tmp_path, override)
    assert "\n" not in str(caught.value)


def test_a_probe_of_other_tasks_is_refused(trained: tuple[Path, dict[str, Any]]) -> None:
    recipe, runs = open_run(trained[0] / "run")
    with pytest.raises(ValueError, match="'geometry' has nothing to measure in prose; leave it out"):
        measure_run(recipe, runs, command="", log=lambda _: None, optional=[GeometryProbe()])
