"""One stage: what moves, what does not, which checkpoint is kept, and the message when it goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_recipe import built, one_stage, quiet_stage, quiet_train, tiny_recipe
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from unspoken.backbone.folder import verify
from unspoken.methods.coupled.stages import NextToken
from unspoken.training.context import context_of
from unspoken.training.recipe import Recipe
from unspoken.training.stages import data_of
from unspoken.training.trainer import StageTrainer, Validator


class Watch(TrainerCallback):
    """Calls back with the model and the optimiser after every step."""

    def __init__(self, look: Callable[[PreTrainedModel, Any], None]) -> None:
        self.look = look

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.look(given["model"], given["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.look(given["model"], given["optimizer"])


def trainer_of(
    recipe: Recipe, folder: Path, validator: Validator, *callbacks: TrainerCallback, name: str = "pretrain"
) -> StageTrainer:
    """A trainer of one stage, from random weights, with a validator of the test's own."""
    stage = recipe.stage(name)
    torch.manual_seed(0)
    return StageTrainer(
        recipe=recipe,
        stage=stage,
        model=built(recipe, name),
        tokenizer=recipe.tokenizer(),
        data=data_of(recipe, context_of(recipe, stage)),
        folder=folder,
        seed=0,
        device=torch.device("cpu"),
        validator=validator,
        manifest={},
        report_to=[],
        callbacks=list(callbacks),
    )


# --- what moves ------------------------------------------------------------------------------------------------------


def test_after_every_step_the_target_is_the_old_one_moved_towards_the_table(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    quiet_train(recipe, tmp_path, only="pretrain")
    seen: list[tuple[Tensor, Tensor]] = []

    def look(model: PreTrainedModel, optimizer: Any) -> None:
        online = model.backbone.get_input_embeddings().weight
        seen.append((model.target_table.clone(), online.detach().clone()))
        assert not model.target_table.requires_grad
        assert model.target_table.grad is None
        held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        assert id(model.target_table) not in held
        assert id(online) in held

    quiet_stage(recipe, tmp_path, Watch(look), name="sst")
    assert len(seen) == 7
    assert torch.equal(*seen[0]), "SST starts from a copy"
    for (old, _), (new, online) in pairwise(seen):
        torch.testing.assert_close(new, 0.98 * old + 0.02 * online, rtol=0, atol=1e-7)
        assert not torch.equal(new, old)


def test_sst_starts_from_the_pretrained_blocks_with_the_l2_half_on(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    quiet_train(recipe, tmp_path, only="pretrain")
    first: list[dict[str, Tensor]] = []

    def look(model: PreTrainedModel, _: Any) -> None:
        if not first:
            first.append({name: weight.clone() for name, weight in model.backbone.state_dict().items()})
            assert model.backbone.norm.l2_output

    quiet_stage(recipe, tmp_path, Watch(look), name="sst")
    start = load_file(tmp_path / "seed-0" / "pretrain" / "model" / "model.safetensors")
    assert {f"model.{name}" for name in first[0]} == set(start)
    for name, weight in first[0].items():
        assert torch.equal(weight, start[f"model.{name}"]), name


def test_training_the_talker_leaves_every_bit_of_the_reasoner(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    quiet_train(recipe, tmp_path, only="pretrain")
    quiet_train(recipe, tmp_path, only="sst")
    talkers: list[Tensor] = []

    def look(model: PreTrainedModel, optimizer: Any) -> None:
        assert all(weight.grad is None and not weight.requires_grad for weight in model.reasoner.parameters())
        held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        assert held == {id(weight) for weight in model.talker.parameters()}
        talkers.append(model.talker.lm_head.weight.detach().clone())

    folder = quiet_stage(recipe, tmp_path, Watch(look), name="talker")
    assert all(not torch.equal(a, b) for a, b in pairwise(talkers))
    reasoner = load_file(tmp_path / "seed-0" / "sst" / "model" / "model.safetensors")
    pair = load_file(folder / "model.safetensors")
    for name, weight in reasoner.items():
        assert torch.equal(pair[f"reasoner.{name}"], weight), name


@pytest.mark.parametrize(("name", "first", "size"), [("pretrain", 0, 48), ("sst", 48, 48)])
def test_a_stage_reads_the_samples_behind_those_of_its_start(name: str, first: int, size: int, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    trainer = trainer_of(recipe, tmp_path, lambda _: {"score": 0.0}, name=name)
    batches = [batch["input_ids"] for batch in trainer.get_train_dataloader()]
    task = recipe.task.build()
    # In order, each once: resuming and equal training need no other state.
    expected = task.rows(task.sample("train", np.arange(first, first + size), 0))["input_ids"]
    assert torch.equal(torch.cat(batches), expected)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precision_is_the_recipe_s(precision: str, tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()

    def look(model: PreTrainedModel, _: Any) -> None:
        if not model.model.layers[0].ffn.up_proj._forward_hooks:
            model.model.layers[0].ffn.up_proj.register_forward_hook(
                lambda _module, _inputs, out: seen.add(out.dtype) if torch.is_grad_enabled() else None
            )

    folder = quiet_stage(one_stage(f"precision={precision}"), tmp_path, Watch(look))
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}
    # What is kept is in float32 either way.
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_activations_are_recomputed_if_the_recipe_says_so(checkpointing: str, tmp_path: Path) -> None:
    calls: list[int] = []

    def look(model: PreTrainedModel, _: Any) -> None:
        if not calls:
            model.model.layers[0].attention.register_forward_pre_hook(
                lambda *_: calls.append(1) if torch.is_grad_enabled() else None
            )

    quiet_stage(
        one_stage(f"activation_checkpointing={checkpointing}", "stages.pretrain.steps=1"), tmp_path, Watch(look)
    )
    assert len(calls) == (2 if checkpointing == "true" else 1)


# --- which checkpoint is kept ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.1, 0.9, 0.5, 0.2], 2),
        ([0.1, 0.5, 0.5, 0.2], 4),
        ([0.9, 0.1, 0.2, 0.3], 0),
        ([0.1, 0.2, 0.3, 0.4], 6),
        ([-0.5, -0.4, -0.6, -0.7], 2),
    ],
)
def test_the_best_on_validation_is_published_and_a_later_one_wins_a_tie(
    scores: list[float], kept: int, tmp_path: Path
) -> None:
    weights: list[Tensor] = []

    def validate(model: PreTrainedModel) -> dict[str, float]:
        weights.append(model.lm_head.weight.detach().clone())
        return {"score": scores[len(weights) - 1]}

    folder = trainer_of(one_stage(), tmp_path, validate).run()
    assert verify(folder)["step"] == kept
    published = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(published, weights[kept // 2])
    assert len(weights) == 4


def test_a_stage_that_counts_no_right_answers_never_ends_early(tmp_path: Path) -> None:
    early = ("stages.pretrain.stop_at=0.4", "stages.pretrain.optimizer.schedule=constant")
    folder = trainer_of(one_stage(*early), tmp_path, lambda _: {"score": 1.0}).run()
    assert verify(folder)["step"] == 6


def test_the_loss_of_a_step_is_the_mean_over_its_micro_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where batches have a column by which the library would count tokens."""
    with_places = NextToken.with_places
    monkeypatch.setattr(
        NextToken, "with_places", lambda self, batch: {**with_places(self, batch), "labels": batch["input_ids"]}
    )

    def losses(accumulate: int) -> list[float]:
        recipe = one_stage(f"stages.pretrain.accumulate={accumulate}", "stages.pretrain.steps=2", "precision=fp32")
        folder = trainer_of(recipe, tmp_path / str(accumulate), lambda _: {"score": 1.0}).run()
        return [entry["loss"] for entry in verify(folder)["history"] if "loss" in entry]

    assert losses(4) == pytest.approx(losses(1), rel=1e-4)


def test_terms_are_means_over_the_same_steps_as_the_loss(tmp_path: Path) -> None:
    measured = {"score": 1.0, "nearest_row": 1.0, "effective_rank": 1.0, "sst_loss": 1.0}
    folder = trainer_of(tiny_recipe("precision=fp32"), tmp_path, lambda _: measured, name="sst").run()
    lines = [entry for entry in verify(folder)["history"] if "loss" in entry]
    assert len(lines) == 3
    for line in lines:
        assert line["sst_loss"] == pytest.approx(line["loss"], rel=1e-3)


@pytest.mark.parametrize(("name", "kept"), [("pretrain", [0]), ("sst", [2, 4, 6])])
def test_a_stage_with_a_new_job_never_publishes_what_it_started_from(
    name: str, kept: list[int], tmp_path: Path
) -> None:
    """A start that still thinks aloud can be right more often than a chain of latents will ever be."""
    read: list[float] = []

    def validate(model: PreTrainedModel) -> dict[str, float]:
        read.append(0.1 if read else 0.9)
        return {"score": read[-1], "nearest_row": 1.0, "effective_rank": 1.0, "sst_loss": 1.0}

    assert verify(trainer_of(tiny_recipe(), tmp_path, validate, name=name).run())["step"] in kept
    assert len(read) > 1


def test_the_validator_sees_a_model_in_evaluation_and_training_goes_on_in_training(tmp_path: Path) -> None:
    validated: list[bool] = []
    trained: list[bool] = []

    def validate(model: PreTrainedModel) -> dict[str, float]:
        validated.append(model.training)
        return {"score": 0.0}

    trainer_of(one_stage(), tmp_path, validate, Watch(lambda model, _: trained.append(model.training))).run()
    assert validated == [False] * 4
    assert trained[1:] == [True] * 6


# --- when it goes wrong ----------------------------------------------------------------------------------------------


def test_a_silent_collapse_is_announced_with_its_step(tmp_path: Path) -> None:
    start = {"score": 0.0, "sst_loss": 3.0, "effective_rank": 20.0, "nearest_row": 0.1}
    after = {"score": 0.0, "sst_loss": 0.5, "effective_rank": 4.0, "nearest_row": 0.1}
    readings = iter([start, start, start, after])
    with pytest.warns(UserWarning, match=r"stage 'sst' at step 6: collapse: .*20\.0 to 4\.0"):
        trainer_of(tiny_recipe(), tmp_path, lambda _: next(readings), name="sst").run()


def test_an_objective_may_have_no_terms_beside_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = NextToken.loss
    monkeypatch.setattr(NextToken, "loss", lambda *given: (own(*given)[0], {}))
    (run,) = quiet_train(one_stage("stages.pretrain.steps=2"), tmp_path / "run")
    assert run.finished(run.recipe.stage("pretrain"))
