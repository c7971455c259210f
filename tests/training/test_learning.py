"""The stages learn: trees of two levels are small enough to be solved in seconds.

A problem such as ``AB,AC[ROOT]A[TARGET]C[ROUTE]AC`` has twelve tokens after its first. Seven of them are names, so a
model that knows the form but does not look at its own problem pays at least 7 / 12 of ln 15, about 1.58 nats a token.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_recipe import built, quiet_train

from unspoken.backbone.folder import verify
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.loading import load_model
from unspoken.reasoning.engine import StopRule
from unspoken.training.optimizers import build_optimizer
from unspoken.training.recipe import Recipe, parse

BLIND = 7 / 12 * math.log(15)
STEPS, BATCH = 300, 64
TEXT = f"""
name: learning
size: tiny
precision: fp32
attention: eager
task: {{kind: tree_search, depth: 2}}
backbone: {{hidden_size: 32, attention_size: 32, intermediate_size: 64, layers: 2, heads: 2}}
talker: {{attention_size: 32, intermediate_size: 64, layers: 1, heads: 2}}
stages:
  - name: pretrain
    objective: {{kind: next_token}}
    steps: {STEPS}
    batch_size: {BATCH}
    evaluate_every: 100
    optimizer: {{warmup_steps: 5}}
  - name: sst
    start: pretrain
    objective: {{kind: sst}}
    steps: {STEPS}
    batch_size: {BATCH}
    evaluate_every: 100
    optimizer: {{warmup_steps: 5}}
  - name: talker
    start: sst
    objective: {{kind: talker}}
    steps: 100
    batch_size: {BATCH}
    evaluate_every: 50
    optimizer: {{warmup_steps: 5}}
evaluation: {{problems: 10, validation_problems: 100, batch_size: 100}}
"""


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parse(TEXT, "learning")


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("learning")
    quiet_train(recipe, output)
    return output / "seed-0"


def readings(folder: Path, name: str) -> list[float]:
    """A validation reading from the first step to the last."""
    history = verify(folder / "model")["history"]
    return [entry[f"eval_{name}"] for entry in history if f"eval_{name}" in entry]


def test_pretraining_learns_what_only_a_look_at_the_problem_tells(trained: Path) -> None:
    loss = readings(trained / "pretrain", "token_loss")
    assert loss[0] > math.log(15)
    assert loss[-1] < BLIND - 0.5
    assert readings(trained / "pretrain", "exact_match")[0] == 0
    assert readings(trained / "pretrain", "exact_match")[-1] > 0.9


def test_the_same_training_on_answers_of_other_problems_stays_blind(recipe: Recipe) -> None:
    stage, task = recipe.stage("pretrain"), recipe.task.build()
    model = built(recipe, "pretrain")
    optimizer = build_optimizer(model, stage.optimizer, "fp32")
    objective = NextToken()
    losses = []
    for step in range(STEPS):
        batch = task.rows(task.sample("train", np.arange(step * BATCH, (step + 1) * BATCH)))
        others = {**batch, "input_ids": batch["input_ids"].roll(1, dims=0)}
        # The model reads one problem and is graded on another's answer.
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        loss, _ = objective.loss(lambda outputs=outputs, **_: outputs, others)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), stage.optimizer.clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert BLIND - 0.05 < sum(losses[-20:]) / 20 < losses[0] - 1


def test_sst_turns_the_same_network_into_one_that_needs_no_tokens(trained: Path) -> None:
    loss = readings(trained / "sst", "sst_loss")
    assert loss[-1] < 0.5 * loss[0]
    # A loss below the best constant's is the sign that the input is looked at.
    assert loss[-1] < 0.5 * readings(trained / "sst", "best_constant_loss")[-1]
    assert readings(trained / "sst", "nearest_row")[-1] > 0.9
    assert readings(trained / "sst", "exact_match")[-1] > 0.9


@torch.no_grad()
def test_the_talker_says_the_chain_and_nothing_without_it(trained: Path, recipe: Recipe) -> None:
    model = load_model(trained / "talker" / "model")
    assert isinstance(model, JepaReasonerForCausalLM)
    task = recipe.task.build()
    problems = task.sample("test", np.arange(200))
    prompts = task.prompts(problems)[0]
    chain = model.reason(prompts, None, StopRule(max_latents=6))

    def accuracy(latents: torch.Tensor) -> float:
        return float(task.grade(model.speak(chain.with_latents(latents)), problems).correct.double().mean())

    assert accuracy(chain.latents) > 0.9
    noise = torch.nn.functional.normalize(torch.randn_like(chain.latents), dim=-1)
    assert accuracy(noise) < 0.05
    assert accuracy(chain.latents.roll(1, dims=0)) < 0.05
    assert accuracy(torch.zeros_like(chain.latents)) < 0.05
