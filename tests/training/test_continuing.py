"""A run that goes on has every weight of its checkpoint, and reads the validation problems where that was missed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import At, StopAt
from safetensors import safe_open
from tiny_hub import save_hub_folder, save_problems, tiny_hub_model
from tiny_recipe import one_stage, quiet_stage, quiet_train, weights
from transformers import AutoModelForCausalLM

from unspoken import interruption
from unspoken.backbone.folder import verify
from unspoken.methods.coupled.stages import NextToken
from unspoken.training import stages
from unspoken.training.own_data import own_recipe
from unspoken.training.recipe import Recipe
from unspoken.training.trainer import StageTrainer

# --- weights that are kept under other names on the hub ---------------------------------------------------------------


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Answers alone, learned by a mixture of experts."""
    folder = tmp_path_factory.mktemp("experts")
    hub = save_hub_folder(folder / "hub", "mixtral")
    given = ["steps=4", "evaluate_every=2", "batch_size=4", "precision=fp32", "attention=eager", "threads=1"]
    return own_recipe("answer-only", hub, save_problems(folder / "mine.jsonl"), given)


def names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def test_experts_go_on_bit_for_bit_and_are_published_as_the_hub_has_them(experts: Recipe, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    quiet_train(experts, tmp_path / "undisturbed")
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        quiet_stage(experts, stopped, StopAt("step_end", 3))
    folder = stopped / "seed-0" / "answer_only"
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in names(folder / "checkpoint-2/model.safetensors"))
    quiet_stage(experts, stopped)
    assert weights(stopped) == weights(tmp_path / "undisturbed")
    published = folder / "model"
    assert any("experts.0.w1.weight" in name for name in names(published / "model.safetensors"))
    AutoModelForCausalLM.from_pretrained(published)


def test_a_checkpoint_whose_names_are_those_of_the_hub_is_refused(
    experts: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_on_the_hub(trainer: Any, output_dir: str) -> None:
        trainer.model.save_pretrained(output_dir)

    with monkeypatch.context() as before:
        before.setattr(StageTrainer, "_save", as_on_the_hub)
        with pytest.raises(KeyboardInterrupt):
            quiet_stage(experts, tmp_path, StopAt("step_end", 3))
    message = (
        r"checkpoint-2 cannot be continued \(ValueError: missing weights model\.layers\.0\..* and 5 more\); remove it"
    )
    with pytest.raises(ValueError, match=message):
        quiet_stage(experts, tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_a_weight_that_is_saved_once_for_two_is_not_missing(tied: bool) -> None:
    model = tiny_hub_model("llama", tie_word_embeddings=tied)
    trainer = StageTrainer.__new__(StageTrainer)
    trainer.model = model
    kept = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    result = model.load_state_dict({**kept, "extra.weight": torch.zeros(1)}, strict=False)
    with pytest.raises(ValueError, match=r"unexpected weights extra" if tied else r"missing weights lm_head\.weight$"):
        trainer._issue_warnings_after_load(result)


# --- a look that was missed -------------------------------------------------------------------------------------------

LAST = 5
UNEVEN = one_stage(f"stages.pretrain.steps={LAST}", "stages.pretrain.evaluate_every=2", "precision=fp32")


@pytest.fixture
def _handled() -> Iterator[None]:
    with interruption.signals_raise():
        yield


def terminate(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def alike(monkeypatch: pytest.MonkeyPatch, look: Callable[[int], object] = lambda _: None) -> None:
    """Every look finds the same, so the last step is selected; ``look`` is called before the number of each."""
    looks = [0]

    def measure(_: object) -> dict[str, float]:
        looks[0] += 1
        look(looks[0])
        return {"score": 1.0}

    monkeypatch.setattr(stages, "validator_of", lambda *_: measure)


@pytest.mark.usefixtures("_handled")
@pytest.mark.parametrize("only_the_last", [False, True])
@pytest.mark.parametrize("moment", ["last step", "last look"])
def test_the_last_step_is_measured_where_a_signal_came_before(
    moment: str, only_the_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number is no multiple of ``evaluate_every``, and of some stages it is the only one that may be selected."""
    torch.set_num_threads(1)
    if only_the_last:
        monkeypatch.setattr(NextToken, "candidate", lambda _, step: step == LAST)
    alike(monkeypatch)
    quiet_stage(UNEVEN, tmp_path / "undisturbed")
    # Looks are at steps 0, 2, 4 and 5.
    alike(monkeypatch, lambda number: terminate() if moment == "last look" and number == 4 else None)
    stop = [At("step_end", LAST, terminate)] if moment == "last step" else []
    stopped = tmp_path / "stopped"
    with pytest.raises(interruption.Interrupted):
        quiet_stage(UNEVEN, stopped, *stop)
    assert (stopped / "seed-0" / "pretrain" / f"checkpoint-{LAST}").is_dir()
    alike(monkeypatch)
    manifest = verify(quiet_stage(UNEVEN, stopped))
    assert manifest["step"] == LAST
    assert [entry["step"] for entry in manifest["history"] if "eval_score" in entry] == [0, 2, 4, LAST]
    assert weights(stopped) == weights(tmp_path / "undisturbed")
