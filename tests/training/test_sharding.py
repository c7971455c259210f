"""What is gathered from the ranks and shared out again, with one rank and with planted shards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model, tiny_reasoner
from torch import nn

from unspoken.training import sharding
from unspoken.training.optimizers import build_optimizer
from unspoken.training.parts import Optimizer
from unspoken.training.sharding import assembled, blank_of, gathered_state, scattered_state, shard
from unspoken.training.trainer import StageTrainer


def test_every_block_is_a_group_and_the_rest_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    grouped: list[nn.Module] = []
    finished: list[nn.Module] = []
    monkeypatch.setattr(sharding, "fully_shard", grouped.append)
    model, objective = tiny_reasoner(), SimpleNamespace(after_sharding=finished.append)
    shard(model, objective)  # type: ignore[arg-type]
    assert grouped == [*model.backbone.layers, model]
    assert finished == [model]


@torch.no_grad()
def test_a_model_is_assembled_out_of_its_weights() -> None:
    model = tiny_reasoner()
    model.backbone.layers[0].requires_grad_(False)
    blank = blank_of(model)
    assert all(weight.is_meta for weight in blank.parameters())
    again = assembled(model, blank)
    assert type(again) is type(model)
    for (name, weight), (other, copied) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(copied, weight) and copied is not weight
        assert copied.requires_grad == weight.requires_grad
    assert torch.equal(again.target_table, model.target_table)


def test_a_state_is_shared_out_as_its_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment has the shape of its weight, the number of steps has none; the second weight is whole on every rank."""
    monkeypatch.setattr(sharding, "DTensor", nn.Linear)  # what stands for a shard
    monkeypatch.setattr(sharding, "distribute_tensor", lambda *given: given)
    shared: Any = nn.Linear(1, 1)
    shared.shape, shared.device_mesh, shared.placements = torch.Size([2, 3]), "mesh", "rows"
    optimizer: Any = SimpleNamespace(param_groups=[{"params": [shared]}, {"params": [torch.zeros(2, 3)]}])
    moment, step = torch.ones(2, 3), torch.tensor(7.0)
    state = {"state": {number: {"exp_avg": moment, "step": step} for number in (0, 1)}, "param_groups": [1, 2]}
    assert scattered_state(state, optimizer) == {
        "state": {0: {"exp_avg": (moment, "mesh", "rows"), "step": step}, 1: {"exp_avg": moment, "step": step}},
        "param_groups": [1, 2],
    }


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_an_optimiser_is_saved_in_full_and_goes_on(name: Any, tmp_path: Path) -> None:
    def trainer() -> Any:
        model = tiny_language_model("unspoken")
        optimizer = build_optimizer(model, Optimizer(name=name, lr=0.01), "fp32")
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        args = SimpleNamespace(device=torch.device("cpu"))
        return SimpleNamespace(_blank=model, model=model, optimizer=optimizer, lr_scheduler=rate, args=args)

    before, after = trainer(), trainer()
    for weight in before.model.parameters():
        weight.grad = torch.ones_like(weight)
    before.optimizer.step()
    before.lr_scheduler.step()
    StageTrainer._save_optimizer_and_scheduler(before, str(tmp_path))
    StageTrainer._load_optimizer(after, str(tmp_path))
    expected, actual = (gathered_state(one.optimizer.state_dict()) for one in (before, after))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert after.lr_scheduler.state_dict() == before.lr_scheduler.state_dict()
