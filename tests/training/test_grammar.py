"""Stages on the grammar: what they read, what they start from, what is measured, and that they learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_recipe import built, collated, quiet_train
from tiny_strings import TEXT, tiny_strings
from torch import Tensor

from unspoken.backbone import UnspokenForCausalLM
from unspoken.backbone.folder import verify
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.loading import load_model
from unspoken.reasoning.causal_lm import LatentGenerationConfig
from unspoken.tasks import GrammarConfig, GrammarProblems, GrammarTask
from unspoken.tasks.context_free import EOS, PAD
from unspoken.training.context import context_of
from unspoken.training.optimizers import build_optimizer
from unspoken.training.plan import plan
from unspoken.training.recipe import load, parse
from unspoken.training.stages import claim, data_of
from unspoken.training.validation import validator_of

TASK = GrammarConfig(levels=3, rules=3, steps=4).build()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strings")
    quiet_train(tiny_strings(), folder)
    return folder / "seed-0"


# --- data --------------------------------------------------------------------------------------------------------


def test_a_talker_learns_stretches_of_every_length_anywhere_behind_the_first_symbol() -> None:
    indices = np.arange(400)
    batch = TASK.talker_rows(indices)
    mask, real = batch["answer_mask"], batch["attention_mask"].bool()
    assert mask.shape == real.shape
    assert not (mask & ~real).any()
    counts = mask.sum(dim=1)
    assert set(counts.tolist()) == {1, 2, 3, 4}
    first = mask.int().argmax(dim=1)
    columns = torch.arange(mask.shape[1])
    assert torch.equal(mask, (columns >= first[:, None]) & (columns < (first + counts)[:, None]))
    # The latent of a string's first symbol would need something in front of it.
    offsets = first - real.int().argmax(dim=1)
    assert offsets.min() == 1
    assert mask[:, -1].any()


def test_the_stretch_of_a_string_does_not_depend_on_its_batch() -> None:
    indices = np.array([5, 900, 17, 3])

    def from_the_right(some: np.ndarray, seed: int = 1) -> list[list[int]]:
        return [torch.where(row.flip(0))[0].tolist() for row in TASK.talker_rows(some, seed)["answer_mask"]]

    assert from_the_right(indices)[::-1] == from_the_right(indices[::-1])
    assert from_the_right(indices[1:2]) == from_the_right(indices)[1:2]
    assert from_the_right(indices) != from_the_right(indices, seed=2)


def test_coconut_s_rows_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # The strings abcabca and cab; three and one of their symbols are given.
    ids = np.array([[2, 3, 4, 2, 3, 4, 2], [PAD, PAD, 4, 2, 3, 3, 2]])
    problems = GrammarProblems(ids_BT=ids, length_B=np.array([7, 5]), prompt_B=np.array([3, 1]))
    monkeypatch.setattr(GrammarTask, "sample", lambda *_: problems)
    batch = collated(tiny_strings(), "coconut")(np.arange(2))
    assert batch["input_ids"].tolist() == [[2, 3, 4, EOS], [PAD, PAD, 4, EOS]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch["latent_mask"].tolist() == [[True, True]] * 2
    # Symbols one and two after the prompt are never read; three and four are written.
    assert batch["text_ids"].tolist() == [[EOS, 4, 2], [EOS, 3, 2]]
    assert batch["target_mask"].tolist() == [[False, True, True]] * 2


# --- stages ------------------------------------------------------------------------------------------------------


def test_every_stage_ends_in_a_folder_of_its_own_kind(trained: Path) -> None:
    models = {
        name: load_model(trained / name / "model") for name in ("sst", "talker", "talker_mono", "coupled", "coconut")
    }
    reasoner, both, mono = models["sst"], models["talker"], models["talker_mono"]
    assert isinstance(reasoner, JepaReasonerModel)
    assert isinstance(both, JepaReasonerForCausalLM)
    assert isinstance(mono, JepaReasonerForCausalLM)
    assert (both.config.talker_kind, mono.config.talker_kind) == ("dual", "mono")
    # The Reasoner is the first of two blocks, and the Talkers left it alone.
    assert len(reasoner.backbone.layers) == 1
    for pair in (both, mono):
        for name, weight in reasoner.state_dict().items():
            assert torch.equal(pair.reasoner.state_dict()[name], weight), name
    assert isinstance(models["coconut"], UnspokenForCausalLM)
    settings = LatentGenerationConfig.of(models["coconut"])
    assert (settings.feed, settings.fixed, settings.max_latents) == ("hidden", True, 2)
    assert len(models["coconut"].model.layers) == len(models["coupled"].model.layers) == 2
    assert getattr(models["coupled"].generation_config, "latent", None) is None


def test_checkpoints_are_selected_by_symbols_and_then_by_the_loss(trained: Path) -> None:
    for name, loss in (("pretrain", "token"), ("sst", "sst"), ("talker", "talker"), ("coconut", "token")):
        for entry in (entry for entry in verify(trained / name / "model")["history"] if "eval_score" in entry):
            lost = entry["eval_symbols"] - entry["eval_score"]
            symbols = 7 * (2 if name == "coconut" else 4)
            assert lost == pytest.approx(entry[f"eval_{loss}_loss"] / (1000 * symbols))
            assert 0 < lost < 1 / symbols
            assert ("eval_effective_rank" in entry) == (name == "sst")


@torch.no_grad()
def test_the_validator_counts_what_greedy_decoding_without_padding_writes() -> None:
    recipe = tiny_strings()
    task = TASK
    model = built(recipe, "pretrain").eval()
    reading = validator_of(context_of(recipe, recipe.stage("pretrain")), recipe.evaluation.validation_problems)(model)
    problems = task.sample("validation", np.arange(7))
    hits = 0
    for row, prompt in enumerate(problems.prompt_B):
        string = torch.from_numpy(problems.ids_BT[row, -problems.length_B[row] :])
        ids = string[None, :prompt]
        for _ in range(4):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        hits += int((ids[0, prompt:] == string[prompt : prompt + 4]).sum())
    assert reading["symbols"] == pytest.approx(hits / 28)


def test_strings_of_like_length_share_a_batch() -> None:
    def places(*overrides: str) -> tuple[int, int]:
        recipe = tiny_strings("stages.pretrain.steps=16", *overrides)
        data = data_of(recipe, context_of(recipe, recipe.stage("pretrain")))
        pieces = [data.__getitems__(list(range(at, at + 8)))["attention_mask"] for at in range(0, len(data), 8)]
        return sum(piece.numel() for piece in pieces), sum(int(piece.sum()) for piece in pieces)

    (wide, real), (narrow, same) = places(), places("group_by_length=true")
    assert real == same <= narrow < wide


def test_a_run_goes_on_when_recipes_have_a_new_key(tmp_path: Path) -> None:
    recipe = tiny_strings()
    claim(tmp_path, recipe)
    path = tmp_path / "recipe.json"
    content = json.loads(path.read_text())
    del content["group_by_length"]
    for stage in content["stages"]:
        if stage["blocks"] is None:
            del stage["blocks"]
    path.write_text(json.dumps(content))
    claim(tmp_path, recipe)
    (tmp_path / "seed-0" / "pretrain" / "checkpoint-1").mkdir(parents=True)  # from now on the folder belongs to it
    claim(tmp_path, recipe)
    with pytest.raises(ValueError, match="another recipe"):
        claim(tmp_path, tiny_strings("stages.sst.blocks=2"))


# --- recipes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.steps=5", "steps is 5; give an even number"),
        ("stages.coconut.objective.replaced=1", "set replaced to 2, latents_per_step to 1"),
        ("stages.coconut.objective.latents_per_step=2", "set replaced to 2, latents_per_step to 1"),
        ("stages.coconut.objective.rest=none", "rest to 'explicit'"),
        ("backbone=gpt2", "grammar has a vocabulary of its own"),
        ("stages.pretrain.objective.chain=none", "grammar has no chain to leave out"),
        ("stages.sst.blocks=3", "blocks is 3, but the backbone has 2"),
        ("stages.coupled.objective={kind: labels}", "labels"),
    ],
)
def test_impossible_recipes_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        tiny_strings(override)
    assert "\n" not in str(error.value)


def test_the_paper_s_models_have_the_sizes_that_its_shapes_give() -> None:
    # Blocks of 11.06M, and 3.69M more where one reads the encoder: 24 of them; 16, 4 and 4 (open point 20).
    facts = {entry["stage"]: entry for entry in plan(load("grammar", "paper"))["models"]}
    assert facts["coupled"]["parameters"] == pytest.approx(265.4e6, rel=0.002)
    assert facts["coconut"]["parameters"] == facts["coupled"]["parameters"]
    assert facts["sst"]["parameters"] == pytest.approx(176.9e6, rel=0.002)
    assert facts["talker"]["parameters"] == pytest.approx(280.2e6, rel=0.002)


@pytest.mark.parametrize("size", ["tiny", "small", "paper"])
def test_three_models_of_equal_depth_and_training_are_compared(size: str) -> None:
    recipe = load("grammar", size)
    assert recipe.talker is not None
    reasoner, deep = recipe.stage("sst").blocks, getattr(recipe.backbone, "layers", 0)
    assert reasoner is not None
    assert reasoner + recipe.talker.layers + (recipe.talker.encoder_layers or 1) == deep
    spent = recipe.steps(recipe.stage("sst")) + recipe.steps(recipe.stage("talker"))
    assert recipe.steps(recipe.stage("coupled")) == recipe.steps(recipe.stage("coconut")) == spent
    assert len({recipe.samples_before(recipe.stage(name)) for name in ("sst", "coupled", "coconut")}) == 1


# --- learning ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_learns_the_grammar_and_not_symbols_in_random_order() -> None:
    # How often each symbol occurs is worth 1.14 nats a symbol; knowing the whole grammar, about 0.37.
    narrow = ("backbone.hidden_size=48", "backbone.attention_size=48", "backbone.intermediate_size=96")
    recipe = parse(TEXT, "learning", [*narrow, "backbone.initializer_range=0.1"])
    stage = recipe.stage("pretrain")
    make, objective = collated(recipe, "pretrain"), NextToken()

    def learned(shuffled: bool) -> float:
        torch.manual_seed(0)
        model = built(recipe, "pretrain")
        optimizer, losses = build_optimizer(model, stage.optimizer, "fp32"), []
        for step in range(150):
            batch = make(np.arange(step * 32, (step + 1) * 32))
            if shuffled:
                batch["input_ids"] = _shuffled(batch["input_ids"], step)
            loss, _ = objective.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), stage.optimizer.clip)
            optimizer.step()
            losses.append(float(loss.detach()))
        return sum(losses[-20:]) / 20

    assert learned(shuffled=False) < 1.02
    assert learned(shuffled=True) > 1.1


def _shuffled(ids: Tensor, seed: int) -> Tensor:
    """The symbols of each string in another order; padding and end stay."""
    noise = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed))
    remaining = (ids == PAD) | (ids == EOS)
    columns = torch.arange(ids.shape[1]).expand_as(ids).to(noise.dtype)
    order = torch.where(ids == PAD, columns - ids.shape[1], torch.where(remaining, columns + 2, noise)).argsort(dim=1)
    return ids.gather(1, order)
