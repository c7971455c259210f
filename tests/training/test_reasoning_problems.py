"""The stages of Latent-SFT, from random weights to a plain folder that reasons in superpositions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from tiny_recipe import built, collated, quiet_stage, quiet_train
from transformers import AutoModelForCausalLM, TrainerCallback

from unspoken.backbone import UnspokenForCausalLM
from unspoken.backbone.folder import read_manifest
from unspoken.evaluation.outcomes import unpacked
from unspoken.evaluation.results import read_results
from unspoken.experiment import measure_run, measured_stages, models_of, open_run
from unspoken.methods.coupled import stages as coupled
from unspoken.methods.coupled.systems import SOFT_THINKING
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.probes.evaluate import EvaluationSettings, evaluate
from unspoken.probes.geometry import GeometryProbe
from unspoken.probes.pass_at_k import PassAtKProbe
from unspoken.reasoning.causal_lm import LatentGenerationConfig, latent_generate
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.training import recipe as recipes
from unspoken.training.adapters import add_adapters, merged
from unspoken.training.context import context_of
from unspoken.training.parts import LoRA
from unspoken.training.recipe import Recipe
from unspoken.training.run import seed_runs
from unspoken.training.stages import data_of, row_lengths

LINE = """
name: words
size: tiny
task: {kind: arithmetic, steps: [2, 3], largest: 20, operations: [add, subtract]}
backbone: {hidden_size: 32, attention_size: 32, intermediate_size: 64, layers: 2, heads: 2}
stages:
  - {name: cot, objective: {kind: next_token, positions: answer}, steps: 4, evaluate_every: 2, batch_size: 8}
  - name: encoder
    start: cot
    objective: {kind: stage1, train: encoder, shape: {rate: 2, top_k: 5}}
    steps: 4
    evaluate_every: 2
    batch_size: 8
  - name: decoder
    start: encoder
    objective: {kind: stage1, train: decoder}
    steps: 2
    evaluate_every: 2
    batch_size: 8
    lora: {rank: 4}
    optimizer: {name: adamw, lr: 0.01, lr_rest: null}
  - {name: union, start: decoder, objective: {kind: stage1, train: union}, steps: 2, evaluate_every: 2, batch_size: 8}
  - {name: labels, start: union, objective: {kind: labels, rows: 20}}
  - {name: autonomy, start: labels, objective: {kind: stage2}, steps: 4, evaluate_every: 2, batch_size: 8}
  - {name: answer_only, objective: {kind: next_token, chain: none}, steps: 2, evaluate_every: 2, batch_size: 8}
evaluation: {problems: 12, validation_problems: 6, batch_size: 5, max_latents: 6, max_answer: 5}
attention: eager
threads: 1
"""


def line(*overrides: str) -> Recipe:
    """The recipe of this file."""
    return recipes.parse(LINE, "line", overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the line, one seed."""
    folder = tmp_path_factory.mktemp("words")
    quiet_train(line(), folder)
    return folder


@pytest.fixture(scope="module")
def results(trained: Path) -> dict[str, Any]:
    """What is measured of the run by default, as it lies on disk."""
    measure_run(*open_run(trained), command="", log=lambda _: None)
    return read_results(trained)


def model_folder(run: Path, stage: str) -> Path:
    return run / "seed-0" / stage / "model"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# --- what is published -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["cot", "labels", "autonomy", "answer_only"])
def test_what_answers_is_a_plain_causal_language_model_with_its_settings(trained: Path, stage: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder(trained, stage))
    assert type(model).__name__ == "UnspokenForCausalLM"
    settings = LatentGenerationConfig.of(model)
    assert settings.top_k == (5 if stage in ("labels", "autonomy") else 1)
    assert settings.max_latents == (0 if stage == "answer_only" else 6)
    ids = torch.tensor([[30, 40, 50]])
    result = model.generate(ids, custom_generate=latent_generate, max_new_tokens=4, return_chain=True)
    assert result.sequences[0, :5].tolist() == [30, 40, 50, settings.open_ids[0], settings.end_ids[0]]
    assert len(result.chain) == 1


def test_table_and_head_are_the_same_in_every_stage_of_the_line(trained: Path) -> None:
    table = weights(model_folder(trained, "cot"))["model.embed_tokens.weight"]
    for stage in ("encoder", "decoder", "union"):
        assert torch.equal(weights(model_folder(trained, stage))["decoder.model.embed_tokens.weight"], table), stage
    assert torch.equal(weights(model_folder(trained, "autonomy"))["model.embed_tokens.weight"], table)


def test_each_step_of_stage_one_trains_what_it_says(trained: Path) -> None:
    before = weights(model_folder(trained, "encoder"))
    decoder, union = weights(model_folder(trained, "decoder")), weights(model_folder(trained, "union"))
    cot = weights(model_folder(trained, "cot"))

    def same(one: dict[str, Any], two: dict[str, Any], prefix: str) -> bool:
        names = [name for name in one if name.startswith(prefix) and "layers" in name]
        assert names
        return all(torch.equal(one[name], two[name]) for name in names)

    for name, weight in cot.items():
        assert torch.equal(before[f"decoder.{name}"], weight)  # the encoder step leaves the decoder alone
    assert same(before, decoder, "encoder.")
    assert not same(before, decoder, "decoder.")
    assert not same(decoder, union, "encoder.")
    assert not same(decoder, union, "decoder.")


def test_adapters_are_merged_into_what_is_published(trained: Path) -> None:
    assert not [name for name in weights(model_folder(trained, "decoder")) if "lora" in name or "base_layer" in name]


def test_merging_changes_no_output_and_leaves_the_model_in_training_alone() -> None:
    recipe = line()
    torch.manual_seed(0)
    model = built(recipe, "cot")
    add_adapters(model, recipe.stage("cot").objective, LoRA(rank=4, dropout=0.0))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.arange(4, 24)[None]
    plain = merged(model)
    assert not any(isinstance(module, BaseTunerLayer) for module in plain.modules())
    assert any(isinstance(module, BaseTunerLayer) for module in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(ids).logits, model.eval()(ids).logits, rtol=1e-4, atol=1e-4)


# --- batches of like length ------------------------------------------------------------------------------------------


def tokens(batch: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Real tokens of each row; of stage 1, the decoder's."""
    if "decoder" in batch:
        return np.asarray(batch["decoder"].length)
    masks = [batch[name] for name in ("attention_mask", "latent_mask", "text_mask") if name in batch]
    return np.asarray(sum(mask.sum(dim=1) for mask in masks))


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("cot", "name=words"),
        ("answer_only", "name=words"),
        ("encoder", "stages.encoder.objective.shape.rate=3"),
        ("autonomy", "name=words"),
        ("answer_only", "stages.answer_only.objective={kind: coconut, replaced: 1}"),
        ("answer_only", "stages.answer_only.objective={kind: coconut, replaced: 1, rest: none}"),
    ],
)
def test_a_length_is_that_of_the_row_but_for_what_all_rows_have(trained: Path, stage: str, override: str) -> None:
    recipe, indices = line(override), np.arange(15, 45)  # the labels are 20 rows: two epochs
    real = tokens(collated(recipe, stage, trained / "seed-0")(indices))
    assert len(set(real)) > 5
    lengths = row_lengths(context_of(recipe, recipe.stage(stage)))(indices)
    assert len(set(real - lengths)) == 1


def test_grouping_leaves_little_padding_and_reads_the_same_samples() -> None:
    big = ("stages.cot.batch_size=32", "stages.cot.steps=20", "task={kind: arithmetic}")

    def rows(*overrides: str) -> tuple[float, list[list[int]]]:
        recipe = line(*big, *overrides)
        data = data_of(recipe, context_of(recipe, recipe.stage("cot")))
        pieces = [data.__getitems__(list(range(at, at + 32))) for at in range(0, len(data), 32)]
        places = sum(piece["input_ids"].numel() for piece in pieces)
        texts = [
            ids[mask.bool()].tolist()
            for piece in pieces
            for ids, mask in zip(piece["input_ids"], piece["attention_mask"], strict=True)
        ]
        return places / sum(map(len, texts)), texts

    padded, texts = rows()
    grouped, again = rows("group_by_length=true")
    assert padded > 1.25
    assert grouped < 1.1
    assert again != texts
    for first, last in ((0, 512), (512, 640)):
        assert sorted(again[first:last]) == sorted(texts[first:last])


def test_a_stage_trains_without_padding_and_without_scores_that_nobody_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watch(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen.append(state.num_input_tokens_seen)  # padding is counted

    def losses(folder: str, *overrides: str) -> list[float]:
        final = quiet_stage(line("precision=fp32", *overrides), tmp_path / folder, Watch(), name="cot")
        return [entry["loss"] for entry in read_manifest(final)["history"] if "loss" in entry]

    seen: list[int] = []
    plain, grouped = losses("plain"), losses("grouped", "group_by_length=true")
    monkeypatch.setattr(coupled, "LARGE_VOCABULARY", 10)
    sparse = losses("sparse")
    full = UnspokenForCausalLM.forward

    def everywhere(self: Any, input_ids: Any = None, attention_mask: Any = None, **rest: Any) -> Any:
        assert "logits_to_keep" not in rest
        return full(self, input_ids, attention_mask, **rest)

    monkeypatch.setattr(UnspokenForCausalLM, "forward", everywhere)  # as in architectures that cannot leave any out
    assert losses("everywhere") == plain
    assert len(plain) == 2
    assert sparse == pytest.approx(plain, abs=1e-4)
    assert grouped != pytest.approx(plain, abs=1e-4)
    assert 0 < seen[1] < seen[0] == seen[2] == seen[3]


@pytest.mark.parametrize(("size", "supervised"), [(10, True), (10**6, False)])
def test_large_vocabularies_are_scored_at_supervised_places_alone(
    monkeypatch: pytest.MonkeyPatch, size: int, supervised: bool
) -> None:
    monkeypatch.setattr(coupled, "LARGE_VOCABULARY", size)
    recipe = line("stages.answer_only.objective.positions=all")
    batch = collated(recipe, "cot")(np.arange(6))
    assert ("supervised" in batch) == supervised
    if supervised:
        # From the open marker of the shortest question, which begins the chain, to the last token but one.
        questions = batch["answer_mask"].int().argmax(dim=1)
        assert batch["supervised"].tolist() == [*range(int(questions.min()) - 1, batch["input_ids"].shape[1] - 1)]
    assert "supervised" not in collated(recipe, "answer_only")(np.arange(6))


# --- labels ----------------------------------------------------------------------------------------------------------


def test_a_stage_that_learns_reads_every_labelled_row_once_an_epoch_with_other_noise(trained: Path) -> None:
    recipe = line()
    make = collated(recipe, "autonomy", trained / "seed-0")
    first, second = make(np.arange(20)), make(np.arange(20, 40))

    def rows(batch: dict[str, Any]) -> list[tuple[int, ...]]:
        return sorted(tuple(row[row != 0].tolist()) for row in batch["decoder"].ids)

    assert rows(first) == rows(second)
    assert not torch.equal(first["weights"][:3], second["weights"][:3])
    torch.testing.assert_close(first["weights"].sum(dim=-1), torch.ones(len(first["weights"])))
    assert len(first["weights"]) == int(first["decoder"].slots.sum())
    again = make(np.arange(20))
    assert torch.equal(first["weights"], again["weights"])


def test_stage_2_that_goes_on_reads_the_same_labels_in_the_order_after_those_that_were_read(trained: Path) -> None:
    more = "\n  - {name: more, start: autonomy, objective: {kind: stage2, rollout_latents: 2}, steps: 2, batch_size: 8}"
    before, after = LINE.split("\n  - {name: answer_only")
    recipe = recipes.parse(f"{before}{more}\n  - {{name: answer_only{after}", "line", ())
    one, two = (collated(recipe, name, trained / "seed-0") for name in ("autonomy", "more"))
    # It goes on where the first one ended, so no reading has the row and the noise of an earlier one.
    assert recipe.samples_before(recipe.stage("autonomy")) == 0
    done = recipe.stage("autonomy")
    read = data_of(recipe, context_of(recipe, recipe.stage("more"), folder=trained / "seed-0")).first
    assert read == recipe.steps(done) * done.batch_size > 0
    indices = np.arange(read, read + 8)
    assert torch.equal(one(indices)["weights"], two(indices)["weights"])
    assert recipe.stage("more").objective.teacher(recipe.lineage(recipe.stage("more"))).name == "union"


def test_labels_are_what_the_encoder_says(trained: Path) -> None:
    recipe = line("stages.autonomy.objective.noise=null")
    batch = collated(recipe, "autonomy", trained / "seed-0")(np.arange(3))
    model = LatentSFTModel.from_pretrained(model_folder(trained, "union")).eval()
    maker = collated(recipe, "union")
    order = np.random.default_rng([0, 0]).permutation(20)[:3]
    with torch.no_grad():
        weights, ids = zip(*model.labels(maker(order)["encoder"]), strict=True)
    assert torch.equal(batch["ids"], torch.cat(ids))
    torch.testing.assert_close(batch["weights"], torch.cat(weights))


def test_writing_labels_continues_after_a_kill(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    labels = run / "seed-0" / "labels"
    expected = (labels / "model" / "labels" / "rank-00000" / "block-00000.safetensors").read_bytes()
    # As after a kill between the store and the folder: the store is there, the published folder is not.
    shutil.copytree(labels / "model" / "labels", labels / "labels")
    shutil.rmtree(labels / "model")
    quiet_train(line(), run, only="labels")
    assert (labels / "model" / "labels" / "rank-00000" / "block-00000.safetensors").read_bytes() == expected
    assert not (labels / "labels").exists()


@pytest.mark.parametrize("override", ["task.largest=30", "stages.labels.objective.rows=19"])
def test_a_run_folder_of_other_data_is_refused(trained: Path, override: str) -> None:
    with pytest.raises(ValueError, match="was started with another recipe"):
        quiet_train(line(override), trained)


def test_labels_of_other_data_are_refused(trained: Path) -> None:
    recipe = line("task.largest=30")
    with pytest.raises(ValueError, match="labels"):
        collated(recipe, "autonomy", trained / "seed-0")(np.arange(2))


# --- running again ---------------------------------------------------------------------------------------------------


def test_training_again_gives_the_same_bits(trained: Path, tmp_path: Path) -> None:
    quiet_train(line(), tmp_path)
    for stage in ("union", "autonomy"):
        one, two = weights(model_folder(trained, stage)), weights(model_folder(tmp_path, stage))
        assert all(torch.equal(one[name], two[name]) for name in one), stage


def test_the_manifest_tells_the_line(trained: Path) -> None:
    manifest = read_manifest(model_folder(trained, "autonomy"))
    assert [entry["name"] for entry in manifest["stages"]] == ["cot", "encoder", "decoder", "union", "labels"]


# --- measuring -------------------------------------------------------------------------------------------------------


def test_the_results_hold_every_system_every_control_and_plain_json(trained: Path, results: dict[str, Any]) -> None:
    recipe = line()
    json.dumps(results, allow_nan=False)
    assert measured_stages(recipe) == ["cot", "autonomy", "answer_only"]
    assert {name: entry["chain"] for name, entry in results["systems"].items()} == {
        "cot": "tokens",
        SOFT_THINKING: "superposition",
        "autonomy": "superposition",
        "answer_only": None,
    }
    assert set(results["probes"]["controls"]) == {"cot", SOFT_THINKING, "autonomy"}
    controls = {"no chain", "forced answer", "swap", "random mixtures"}
    assert set(results["probes"]["controls"]["autonomy"]) >= controls
    costs = {name: entry["cost"] for name, entry in results["systems"].items()}
    assert costs["answer_only"]["latent_steps"] == 0
    assert costs["autonomy"]["sequential_passes"] > costs["answer_only"]["sequential_passes"]
    assert set(results["differences"]) == {f"{name} - cot" for name in (SOFT_THINKING, "autonomy", "answer_only")}
    kept = results["outcomes"]["test"]
    assert kept["problems"] == 12
    for name, system in results["systems"].items():
        (text,) = kept["right"][name]
        assert unpacked(text, 12).mean() == pytest.approx(system["exact_match"]["mean"])
        assert kept["cost"][name]["flops"] == system["cost"]["flops"]
        assert kept["cost"][name]["sequential_passes"] == system["cost"]["sequential_passes"]
    assert kept["cost"]["answer_only"]["flops"] < kept["cost"]["cot"]["flops"]
    fewer = EvaluationSettings(
        task=recipe.task.build(),
        prompt_format=PromptFormat(tokenizer=recipe.tokenizer()),
        problems=11,
        batch_size=11,
        max_answer=5,
        baseline="cot",
    )
    (models,) = (models_of(run) for run in seed_runs(recipe, trained, 1))
    alone = replace(models, measured={"cot": models.measured["cot"]})
    other = evaluate([alone], fewer, [], log=lambda _: None)["outcomes"]["test"]
    assert other["fingerprint"] != kept["fingerprint"], "eleven problems are not the same set as twelve"
    assert unpacked(other["right"]["cot"][0], 11).tolist() == unpacked(kept["right"]["cot"][0], 12)[:11].tolist()


def test_geometry_and_samples_are_measured_where_they_are_asked_for(
    trained: Path, results: dict[str, Any], tmp_path: Path
) -> None:
    run, plain = tmp_path / "run", results["probes"]
    shutil.copytree(trained, run)
    assert not {"geometry", "pass_at_k"} & plain.keys()
    measure_run(*open_run(run), command="", log=lambda _: None, optional=[GeometryProbe(), PassAtKProbe(3)])
    both = read_results(run)["probes"]
    geometry, samples = both.pop("geometry"), both.pop("pass_at_k")
    assert both == plain
    assert set(geometry) == {"cot", SOFT_THINKING, "autonomy"}
    assert samples["draws"] == 3
    assert set(samples["systems"]) == {"cot", SOFT_THINKING, "autonomy"}
    for rates in samples["systems"].values():
        assert list(rates) == ["1", "2", "3"]
        assert rates["1"]["problems"] == 12
        assert rates["1"]["mean"] <= rates["2"]["mean"] <= rates["3"]["mean"]


# --- recipes that cannot be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.labels.steps=3", "a labels stage takes no steps"),
        ("stages.encoder.objective.shape=null", "give shape where train is 'encoder'"),
        ("stages.decoder.objective.shape={}", "give shape where train is 'encoder'"),
        ("stages.encoder.objective.shape.rate=0", "rate is 0"),
        ("stages.encoder.objective.shape.top_k=0", "top_k is 0"),
        ("stages.encoder.objective.shape.temperature=0", "temperature is 0"),
        ("stages.encoder.objective.shape.readout=heads", "did you mean 'head'"),
        ("stages.union.start=encoder", ""),
        ("stages.decoder.start=cot", "encoder, then decoder, then union"),
        ("stages.autonomy.start=union", "stage2 stage starts from labels"),
        ("stages.labels.start=cot", "labels stage starts from stage1"),
        ("stages.autonomy.objective.noise.scale=0", "scale is 0.0; it must be above 0"),
        ("stages.union.objective.noise.scale=0", "scale is 0.0; it must be above 0"),
        ("task={kind: tree_search}", "cannot learn the task tree_search"),
        ("stages.decoder.lora.rank=0", "rank is 0"),
        ("task.largest=3", "largest is 3"),
        ("task.steps=[9]", "from 1 to 6"),
        ("backbone=12", "it must be StackShape or text"),
        ("evaluation.max_latents=0", "must be at least 1"),
    ],
)
def test_an_impossible_line_is_one_clear_message(override: str, message: str) -> None:
    if not message:
        line(override)  # union may follow the encoder: the decoder step can be left out
        return
    with pytest.raises(ValueError, match=message) as caught:
        line(override)
    assert "\n" not in str(caught.value)


def test_tree_search_has_no_chain_to_leave_out() -> None:
    with pytest.raises(ValueError, match="no chain to leave out"):
        recipes.load("tree-search", "tiny", ["stages.pretrain.objective.chain=none"])


@pytest.mark.parametrize("shape", ["{top_k: null}", "{latent: hidden}"])
def test_noise_is_refused_where_there_are_no_few_weights_to_put_it_on(shape: str) -> None:
    with pytest.raises(ValueError, match=r"stages\[3\] \(union\): noise needs superpositions of a few tokens"):
        line(f"stages.encoder.objective.shape={shape}", "stages.union.objective.noise={}")
