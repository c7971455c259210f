"""A stage ends where enough validation problems are right, and is the same stage if it was stopped on the way."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import StopAt
from tiny_recipe import quiet_stage, quiet_train, weights

from unspoken import interruption
from unspoken.backbone.folder import verify
from unspoken.training import stages
from unspoken.training.recipe import Recipe, parse
from unspoken.training.stopping import restore_random_state

MOST, EVERY, ENOUGH = 200, 20, 0.5
TEXT = f"""
name: early
size: tiny
precision: fp32
attention: sdpa
task: {{kind: tree_search, depth: 2}}
backbone: {{hidden_size: 32, attention_size: 32, intermediate_size: 64, layers: 2, heads: 2}}
stages:
  - name: pretrain
    objective: {{kind: next_token, questions: 2}}
    steps: {MOST}
    evaluate_every: {EVERY}
    batch_size: 32
    stop_at: {ENOUGH}
    optimizer: {{schedule: constant, warmup_steps: 5}}
evaluation: {{problems: 10, validation_problems: 50, batch_size: 50}}
threads: 1
"""


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parse(TEXT, "here")


@pytest.fixture(scope="module")
def finished(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("early")
    quiet_train(recipe, output)
    return output


def ended(output: Path) -> int:
    """The step at which the stage ended."""
    return int(verify(output / "seed-0" / "pretrain" / "model")["history"][-1]["step"])


def test_it_ends_at_the_first_look_that_is_right_enough(finished: Path) -> None:
    manifest = verify(finished / "seed-0" / "pretrain" / "model")
    looks = {entry["step"]: entry["eval_exact_match"] for entry in manifest["history"] if "eval_exact_match" in entry}
    last = max(looks)
    assert 0 < last < MOST
    assert last == ended(finished) == manifest["step"]
    assert looks[last] >= ENOUGH
    assert all(right < ENOUGH for step, right in looks.items() if step != last)


def test_a_stage_that_begins_right_enough_is_still_trained(finished: Path, tmp_path: Path) -> None:
    more = f"""
  - name: more
    start: pretrain
    objective: {{kind: next_token}}
    steps: {2 * EVERY}
    evaluate_every: {EVERY}
    batch_size: 32
    stop_at: 0.01
    optimizer: {{schedule: constant, warmup_steps: 5}}
evaluation:"""
    shutil.copytree(finished / "seed-0", tmp_path / "seed-0")
    quiet_stage(parse(TEXT.replace("\nevaluation:", more), "here"), tmp_path)
    history = verify(tmp_path / "seed-0" / "more" / "model")["history"]
    looks = {entry["step"]: entry["eval_exact_match"] for entry in history if "eval_exact_match" in entry}
    assert looks[0] >= 0.01
    assert [*looks] == [0, EVERY]


@pytest.mark.parametrize("moment", ["evaluate", "save", "train_end"])
def test_stopped_where_it_ends_it_is_the_same_stage(
    moment: str, recipe: Recipe, finished: Path, tmp_path: Path
) -> None:
    last = ended(finished)
    for step in (last - EVERY + 1, last):
        with pytest.raises(KeyboardInterrupt):
            quiet_stage(recipe, tmp_path, StopAt(moment if step == last else "step_end", step))
    quiet_stage(recipe, tmp_path)
    assert weights(tmp_path) == weights(finished)
    assert ended(tmp_path) == last


def test_without_it_all_steps_are_taken(recipe: Recipe, finished: Path, tmp_path: Path) -> None:
    last = ended(finished)
    quiet_train(
        parse(TEXT, "here", ["stages.pretrain.stop_at=null", f"stages.pretrain.steps={last + EVERY}"]), tmp_path
    )
    assert ended(tmp_path) == last + EVERY


@pytest.mark.parametrize(("look", "kept"), [(1, []), (2, [f"checkpoint-{EVERY}"])])
def test_a_signal_while_it_is_measured_keeps_what_was_trained(
    look: int, kept: list[str], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, validator_of = [0], stages.validator_of

    def interrupted(*given: Any) -> Any:
        measure = validator_of(*given)

        def one_look(model: Any) -> Any:
            looks[0] += 1
            if looks[0] == look:
                raise interruption.Interrupted(signal.SIGTERM)
            return measure(model)

        return one_look

    monkeypatch.setattr(stages, "validator_of", interrupted)
    with pytest.raises(interruption.Interrupted):
        quiet_stage(recipe, tmp_path)
    # Before the first step there is nothing to keep.
    assert sorted(folder.name for folder in tmp_path.glob("seed-0/pretrain/checkpoint-*")) == kept


@pytest.mark.parametrize("several", [False, True])
def test_drawing_goes_on_where_a_checkpoint_ended(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    of_device = torch.arange(16, dtype=torch.uint8)
    given: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: given.append((state, device)))
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    drawn = random.random(), np.random.random(), torch.rand(1).item()
    # transformers writes a list where a process has several devices; the first is its own.
    states["cuda"] = [of_device, of_device + 1] if several else of_device
    restore_random_state(states, torch.device("cpu"))
    assert not given
    assert (random.random(), np.random.random(), torch.rand(1).item()) == drawn
    device = torch.device("cuda", 0)
    restore_random_state(states, device)
    assert len(given) == 1 and torch.equal(given[0][0], of_device) and given[0][1] == device
    del states["cuda"]
    restore_random_state(states, device)
    assert len(given) == 1
