"""A pretrained model becomes a JEPA-Reasoner: its first blocks and its table, whatever its family."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from tiny_models import enliven, tiny_config
from tiny_recipe import built, quiet_stage, quiet_train, weights
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from unspoken.backbone import UnspokenConfig
from unspoken.backbone.folder import read_manifest
from unspoken.experiment import measure_run, measured_stages, open_run
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.training import recipe as recipes
from unspoken.training.adapters import add_adapters, merged
from unspoken.training.parts import LoRA
from unspoken.training.plan import plan
from unspoken.training.recipe import Recipe

LETTERS = (*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n", "<think>", "</think>")
BLOCKS = 3
# The last question of the tests is the one of a training row, in other letters.
ASKED = "Ann counts the pears in seven baskets twice and once more before she goes home at"
FAMILIES = [("llama", True), ("llama", False), ("qwen2", True), ("qwen2", False), ("gpt2", True)]
LINE = """
name: hub
size: tiny
attention: eager
task: {{kind: grade_school, train: {train}, tests: [{test}], validation_rows: 4}}
backbone: {backbone}
talker: {{attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}}
stages:
  - name: cot
    objective: {{kind: next_token, positions: answer}}
    steps: 2
    batch_size: 4
    evaluate_every: 2
    lora: {{rank: 2}}
    optimizer: &adamw {{name: adamw, lr: 0.01, lr_rest: null, warmup_steps: 0, schedule: constant}}
  - name: sst
    start: cot
    objective: {{kind: sst}}
    blocks: 2
    steps: 3
    batch_size: 4
    evaluate_every: 1
    lora: {{rank: 2}}
    optimizer: *adamw
  - {{name: mono, start: sst, objective: {{kind: talker}}, steps: 2, batch_size: 4, evaluate_every: 2}}
  - name: dual
    start: sst
    objective: {{kind: talker}}
    talker: {{variant: dual, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}}
    steps: 1
    batch_size: 4
  - name: coupled
    start: cot
    objective: {{kind: next_token, positions: answer}}
    steps_of: [sst, mono]
    batch_size: 4
    lora: {{rank: 2}}
    optimizer: *adamw
evaluation: {{problems: 3, validation_problems: 2, batch_size: 3, max_latents: 5, max_answer: 4}}
threads: 1
"""


def save_tokenizer(folder: Path, *, fillers: int = 0, **special: str) -> None:
    """One token a letter and a marker, after a padding token and an end."""
    tokens = ["~pad", "~end", *LETTERS, *(f"~{index}" for index in range(fillers))]
    words = Tokenizer(models.WordLevel({token: position for position, token in enumerate(tokens)}, unk_token="~pad"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"</?think>|[\s\S]"), behavior="isolated")
    words.decoder = decoders.Fuse()
    known = special or {"pad_token": "~pad", "eos_token": "~end"}
    PreTrainedTokenizerFast(tokenizer_object=words, **known).save_pretrained(folder)


def save_model(folder: Path, family: str, *, tied: bool) -> Path:
    """A tiny pretrained model as one finds it on the hub."""
    named = ("n_positions", "n_layer") if family == "gpt2" else ("max_position_embeddings", "num_hidden_layers")
    config = tiny_config(family, vocab_size=2 + len(LETTERS), tie_word_embeddings=tied).to_dict()
    config |= dict(zip(named, (160, BLOCKS), strict=True)) | {"layer_types": None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    enliven(model, family)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_rows(folder: Path) -> dict[str, Path]:
    """Training rows of GSM8K-Aug's form and three test questions, of which one was trained on."""
    rows = [
        {
            "question": f"{ASKED} {number}?" if number == 4 else f"Twice {number} and 3?",
            "steps": [f"<<{number}+3={number + 3}>>"],
            "answer": str(number + 3),
        }
        for number in range(16)
    ]
    asked = [{"input": f"{number} and {number}?", "target": 2 * number} for number in range(2)]
    asked.append({"input": f"{ASKED.upper()} 4?", "target": 7})
    for name, content in (("train", rows), ("asked", asked)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return {"train": folder / "train.json", "test": folder / "asked.json"}


def line(folder: Path, backbone: Path | str, *overrides: str) -> Recipe:
    return recipes.parse(LINE.format(backbone=backbone, **save_rows(folder)), "line", overrides)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"), "llama", tied=False)


@pytest.fixture(scope="module")
def trained(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the line, one seed."""
    torch.set_num_threads(1)
    data, run = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("run")
    quiet_train(line(data, hub), run)
    return run


def found(run: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run / "seed-0" / stage / "model" / "model.safetensors")


# --- what is taken over ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_the_reasoner_is_the_first_blocks_and_the_input_table(family: str, tied: bool, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "hub", family, tied=tied)
    recipe = line(tmp_path, folder, "stages.sst.start=null", "stages.sst.lora=null")
    reasoner = built(recipe, "sst")
    assert isinstance(reasoner, JepaReasonerModel)
    original = AutoModelForCausalLM.from_pretrained(folder).eval()
    table = original.get_input_embeddings().weight
    assert torch.equal(reasoner.target_table, table)
    assert torch.equal(reasoner.backbone.get_input_embeddings().weight, table)
    assert torch.equal(table, original.get_output_embeddings().weight) == tied
    # The same stack with its last block taken out by hand.
    stack = original.base_model
    remaining = "h" if family == "gpt2" else "layers"
    setattr(stack, remaining, getattr(stack, remaining)[:2])
    stack.config.num_hidden_layers = 2
    ids = torch.randint(2, 90, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = F.normalize(stack(input_ids=ids, use_cache=False).last_hidden_state, dim=-1)
        torch.testing.assert_close(reasoner.eval()(ids).latents, expected, rtol=1e-5, atol=1e-5)
    # A folder whose config names each block must name as many as it has.
    reasoner.save_pretrained(tmp_path / "saved")
    again = JepaReasonerModel.from_pretrained(tmp_path / "saved")
    assert again.config.backbone_config.num_hidden_layers == 2


def test_rows_enter_as_they_are_unless_the_recipe_says_otherwise(hub: Path, tmp_path: Path) -> None:
    ids = torch.arange(2, 40)[None]
    table = AutoModelForCausalLM.from_pretrained(hub).get_input_embeddings().weight
    plain = line(tmp_path, hub, "stages.sst.start=null")
    assert torch.equal(built(plain, "sst").embed_prompt(ids), table[ids])
    unit = line(tmp_path, hub, "stages.sst.start=null", "stages.sst.objective.unit_tokens=true")
    rows = built(unit, "sst").embed_prompt(ids)
    torch.testing.assert_close(rows.norm(dim=-1), torch.full((1, 38), 4.0))
    torch.testing.assert_close(F.cosine_similarity(rows, table[ids], dim=-1), torch.ones(1, 38))


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_of_a_reasoner_leave_only_the_table_to_train_in_full(family: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "hub", family, tied=True)
    recipe = line(tmp_path, folder, "stages.sst.start=null", "stages.sst.lora=null")
    model = built(recipe, "sst")
    add_adapters(model, recipe.stage("sst").objective, LoRA(rank=2, dropout=0.0))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in learning if "lora_" not in name} == {
        f"backbone.{'wte' if family == 'gpt2' else 'embed_tokens'}.weight"
    }
    layers = 4 if family == "gpt2" else 7  # matrices of a block
    assert sum("lora_A" in name for name in learning) == 2 * layers
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.arange(4, 24)[None]
    plain = merged(model)
    assert not any(isinstance(module, BaseTunerLayer) for module in plain.modules())
    before = AutoModelForCausalLM.from_pretrained(folder).base_model.state_dict()
    moved = [name for name, weight in plain.backbone.state_dict().items() if not torch.equal(weight, before[name])]
    assert len(moved) == 2 * layers
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(ids).latents, model.eval()(ids).latents, rtol=1e-4, atol=1e-5)


def test_a_trained_reasoner_has_merged_blocks_and_a_table_that_moved(trained: Path) -> None:
    before, after = found(trained, "cot"), found(trained, "sst")
    assert not [name for name in after if "lora" in name or "base_layer" in name]
    table, target = after["backbone.embed_tokens.weight"], after["target_table"]
    assert not torch.equal(table, before["model.embed_tokens.weight"])
    # The target follows slowly: it lies between where the table was and where it is.
    assert (target - before["model.embed_tokens.weight"]).norm() < (table - before["model.embed_tokens.weight"]).norm()
    for name, weight in after.items():
        if name.startswith("backbone.layers"):
            same = torch.equal(weight, before[name.replace("backbone.", "model.")])
            assert same == name.endswith("norm.weight"), name


# --- the whole line --------------------------------------------------------------------------------------------------


def test_a_published_pair_answers_through_the_library(trained: Path) -> None:
    for stage in ("mono", "dual"):
        pair = AutoModelForCausalLM.from_pretrained(trained / "seed-0" / stage / "model")
        assert isinstance(pair, JepaReasonerForCausalLM)
        assert pair.config.talker_config.hidden_size == 16
        assert pair.config.max_latents == 5 + 1 + 4
        prompt = torch.arange(10, 18)[None]
        result = pair.generate(prompt, max_new_tokens=6, return_chain=True)
        assert torch.equal(result.sequences[:, :8], prompt)
        torch.testing.assert_close(result.chain.latents.norm(dim=-1)[result.chain.mask], torch.ones(1).expand(6))
    reasoner, pair_weights = found(trained, "sst"), found(trained, "mono")
    assert all(torch.equal(weight, pair_weights[f"reasoner.{name}"]) for name, weight in reasoner.items())


def test_a_run_is_compared_with_the_equally_trained_baseline_and_records_what_was_seen(trained: Path) -> None:
    recipe, runs = open_run(trained)
    assert measured_stages(recipe) == ["cot", "mono", "dual", "coupled"]
    results = measure_run(recipe, runs, command="", log=lambda _: None)
    assert results["baseline"] == "coupled"
    assert {"mono - coupled", "dual - coupled", "cot - coupled"} <= set(results["differences"])
    # Of the three questions the last was trained on; only its row is to blame.
    seen = results["overlap"]["tests"]["asked"]
    assert (results["overlap"]["rows"], seen["problems"], len(seen["row_keys"])) == (12, 3, 1)
    assert len(seen["problem_keys"]) == 1
    for stage in recipe.stages:
        assert read_manifest(trained / "seed-0" / stage.name / "model")["overlap"] == results["overlap"]


@pytest.mark.parametrize("stage", ["sst", "mono"])
def test_a_stage_stopped_anywhere_goes_on_bit_for_bit(stage: str, trained: Path, hub: Path, tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                raise KeyboardInterrupt

    recipe = line(tmp_path, hub)
    run = tmp_path / "run"
    for before in ("cot", "sst")[: 1 if stage == "sst" else 2]:
        shutil.copytree(trained / "seed-0" / before, run / "seed-0" / before)
    with pytest.raises(KeyboardInterrupt):
        quiet_stage(recipe, run, Stop(), name=stage)
    quiet_stage(recipe, run, name=stage)
    name = f"seed-0/{stage}/model/model.safetensors"
    assert weights(run)[name] == weights(trained)[name]


def test_a_prompt_with_end_tokens_is_read_where_they_also_pad(hub: Path, tmp_path: Path) -> None:
    save_tokenizer(hub.parent / "shared", eos_token="~end")
    model = AutoModelForCausalLM.from_pretrained(hub)
    model.save_pretrained(hub.parent / "shared")
    recipe = line(tmp_path, hub.parent / "shared", "stages.sst.start=null", "stages.sst.lora=null")
    reasoner = built(recipe, "sst")
    assert (reasoner.config.end_id, reasoner.config.pad_token_id) == (1, None)
    reasoner.save_pretrained(tmp_path / "reasoner")
    pair = built(recipe, "mono", tmp_path / "reasoner").eval()
    prompt = torch.tensor([[9, 1, 12, 13, 1, 20]])  # turns of a chat end with the token that pads
    complete = pair.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5)
    assert torch.equal(pair.generate(prompt, max_new_tokens=5), complete)


# --- before anything is trained --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "override", "message"),
    [
        ("hub", "stages.sst.blocks=4", r"stages \(sst\): blocks is 4, but the backbone has 3"),
        ("/nothing/here", "name=hub", "backbone .* cannot be loaded"),
        ("mute", "name=hub", "no end-of-sequence token"),
        ("hub", "stages.mono.lora={rank: 2}", "lora is set, but a Talker"),
        ("hub", "talker=null", "neither it nor the recipe has a 'talker' shape"),
        ("hub", "talker.heads=3", "talker: "),
    ],
)
def test_what_cannot_be_is_one_line_before_a_stage_starts(
    backbone: str, override: str, message: str, hub: Path, tmp_path: Path
) -> None:
    where: Path | str = hub if backbone == "hub" else backbone
    if backbone == "mute":
        where = save_model(tmp_path / "mute", "llama", tied=True)
        save_tokenizer(where, pad_token="~pad")
    with pytest.raises(ValueError, match=message) as caught:
        quiet_train(line(tmp_path, where, override), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("run/seed-0/*/checkpoint-*"))


def test_a_plan_counts_the_blocks_that_are_kept(hub: Path, tmp_path: Path) -> None:
    facts = {entry["stage"]: entry for entry in plan(line(tmp_path, hub, "stages.sst.lora=null"))["models"]}
    table, gains = (2 + len(LETTERS)) * 16, 2 * 16
    block = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32 + gains
    assert facts["sst"]["parameters"] == facts["sst"]["trained"] == table + 2 * block + 16
    talker = table + (4 * 16 * 16 + 2 * 16 * 32 + gains) + 16
    assert facts["mono"]["trained"] == talker
    assert facts["mono"]["parameters"] == talker + facts["sst"]["parameters"]
    adapted = {entry["stage"]: entry for entry in plan(line(tmp_path, hub))["models"]}
    assert table < adapted["sst"]["trained"] < facts["sst"]["trained"]
    assert adapted["mono"] == facts["mono"]


def test_the_paper_s_recipe_has_the_paper_s_counts(tmp_path: Path) -> None:
    rows = save_rows(tmp_path)
    size = 50257
    UnspokenConfig(
        vocab_size=size,
        hidden_size=1280,
        attention_size=1280,
        intermediate_size=5120,
        num_hidden_layers=42,
        num_attention_heads=20,
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=1,
    ).save_pretrained(tmp_path / "hub")
    save_tokenizer(tmp_path / "hub", fillers=size - 2 - len(LETTERS))
    data = [f"task.train={rows['train']}", f"task.tests=['{rows['test']}']", "task.validation_rows=4"]
    recipe = recipes.load("gsm8k-jepa", "paper", [*data, f"backbone={tmp_path / 'hub'}"])
    facts = {entry["stage"]: entry for entry in plan(recipe)["models"]}
    assert round(facts["coupled"]["parameters"] / 1e9, 1) == 0.9
    assert round(facts["sst"]["trained"] / 1e6) == 694
    assert round(facts["jepa_mono"]["trained"] / 1e6) == 198
    assert recipe.steps(recipe.stage("coupled")) == sum(recipe.stage(name).steps or 0 for name in ("sst", "jepa_mono"))
