"""Muon and AdamW behind one interface: who moves what, and that nothing is lost between runs."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from tiny_hub import GPT, tiny_hub_model
from tiny_models import prompts, tiny_language_model, tiny_pair
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import get_linear_schedule_with_warmup

from unspoken.training.optimizers import Muon, MuonWithAdamW, build_optimizer, matrices_and_rest, orthogonal, warmed_up
from unspoken.training.parts import Optimizer

MUON = Optimizer(lr=0.02, lr_rest=0.003)
ADAMW = Optimizer(name="adamw", lr=0.003, lr_rest=0.001, weight_decay=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    ids = prompts(seed=seed)
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    optimizer.step()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def assert_equal_weights(one: nn.Module, two: nn.Module) -> None:
    for name, weight in weights_of(one).items():
        assert torch.equal(weight, weights_of(two)[name]), name


def grouped_names(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of trained weights in both groups, in order."""
    names = {id(weight): name for name, weight in model.named_parameters()}
    matrices, rest = matrices_and_rest(model)
    return [names[id(weight)] for weight in matrices], [names[id(weight)] for weight in rest]


def test_matrices_of_the_blocks_are_told_from_tables_heads_and_gains() -> None:
    model = tiny_pair("dual", tie_word_embeddings=False)
    matrices, rest = grouped_names(model)
    assert all("proj" in name for name in matrices)
    assert {name.split(".")[-2] for name in rest} == {
        "embed_tokens",
        "lm_head",
        "rms",
        "attention_norm",
        "cross_norm",
        "ffn_norm",
    }


@pytest.mark.parametrize(
    ("kind", "settings", "tables"),
    [
        ("llama", {"tie_word_embeddings": False}, {"model.embed_tokens.weight", "lm_head.weight"}),
        ("gpt2", GPT, {"transformer.wte.weight", "transformer.wpe.weight"}),
        ("gpt_neox", {}, {"gpt_neox.embed_in.weight", "lm_head.weight"}),
        ("bloom", {}, {"transformer.word_embeddings.weight"}),
        (
            "opt",
            {"word_embed_proj_dim": 32},
            {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"},
        ),
        ("rwkv", {"attention_hidden_size": 32}, {"rwkv.embeddings.weight", "head.weight"}),
        ("mixtral", {}, {"model.embed_tokens.weight", "lm_head.weight"}),
    ],
)
def test_tables_and_heads_are_known_by_what_they_are(kind: str, settings: dict[str, Any], tables: set[str]) -> None:
    model = tiny_hub_model(kind, **settings)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    matrices, rest = grouped_names(model)
    assert matrices and sorted(matrices + rest) == sorted(shapes)
    assert {name for name in rest if len(shapes[name]) == 2} == tables
    optimizer = build_optimizer(model, ADAMW, "fp32")
    held = [len(group["params"]) for group in optimizer.param_groups]
    assert held == [len(matrices), len(rest)]
    assert [group["lr"] for group in optimizer.param_groups] == [0.003, 0.001]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_experts_in_one_tensor_are_matrices_that_muon_refuses(kind: str) -> None:
    model = tiny_hub_model(kind)
    matrices, rest = grouped_names(model)
    assert {name.split(".")[-1] for name in matrices if ".experts." in name} == {"gate_up_proj", "down_proj"}
    # A bias of every expert is no matrix, though it has two axes.
    assert all(name.endswith("bias") for name in rest if ".experts." in name)
    with pytest.raises(ValueError, match=r"^optimizer\.name is muon.*set optimizer\.name to adamw"):
        build_optimizer(model, MUON, "fp32")


def test_a_gain_for_every_head_is_no_matrix() -> None:
    matrices, rest = grouped_names(tiny_hub_model("cohere", use_qk_norm=True))
    assert [name for name in rest if "q_norm" in name]
    assert not [name for name in matrices if "norm" in name]


def test_adapters_of_tables_and_heads_are_matrices() -> None:
    model = tiny_hub_model("gpt_neox")
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["embed_in", "lm_head", "dense"]), model)
    matrices, rest = grouped_names(model)
    assert {name.split(".")[-2] for name in matrices if "embed_in" in name} == {"lora_embedding_A", "lora_embedding_B"}
    assert {name.split(".")[-3] for name in matrices if "lm_head" in name} == {"lora_A", "lora_B"}
    assert rest == []
    model.requires_grad_(True)
    assert {"gpt_neox.embed_in.base_layer.weight", "lm_head.base_layer.weight"} < set(grouped_names(model)[1])


def test_muon_moves_the_matrices_and_adamw_the_rest() -> None:
    model = tiny_language_model("unspoken")
    optimizer = build_optimizer(model, MUON, "bf16")
    assert isinstance(optimizer, MuonWithAdamW)
    muon, adamw = optimizer.parts
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    names = {id(weight): name for name, weight in model.named_parameters()}
    held = [{names[id(w)] for group in piece.param_groups for w in group["params"]} for piece in (muon, adamw)]
    assert held[0] == {name for name in names.values() if "proj" in name}
    assert held[1] == set(names.values()) - held[0]


def test_one_step_is_one_step_of_each_alone() -> None:
    together, apart = tiny_language_model("unspoken"), tiny_language_model("unspoken")
    optimizer = build_optimizer(together, MUON, "bf16")
    matrices = [weight for name, weight in apart.named_parameters() if "proj" in name]
    rest = [weight for name, weight in apart.named_parameters() if "proj" not in name]
    pair = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=0.003, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]
    for seed in range(3):
        step(together, optimizer, seed)
        apart.zero_grad()
        apart(prompts(seed=seed), labels=prompts(seed=seed)).loss.backward()
        for piece in pair:
            piece.step()
    assert_equal_weights(together, apart)


@pytest.mark.parametrize("settings", [MUON, ADAMW], ids=["muon", "adamw"])
def test_a_saved_optimiser_goes_on_bit_for_bit(settings: Optimizer, tmp_path: Path) -> None:
    model = tiny_language_model("unspoken")
    optimizer = build_optimizer(model, settings, "bf16")
    for seed in range(3):
        step(model, optimizer, seed)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    again = copy.deepcopy(model)
    resumed = build_optimizer(again, settings, "bf16")
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(again, resumed, seed)
    assert_equal_weights(model, again)


def test_without_its_state_an_optimiser_goes_elsewhere() -> None:
    # The test above would pass for an optimiser that keeps no state at all.
    model = tiny_language_model("unspoken")
    optimizer = build_optimizer(model, MUON, "bf16")
    step(model, optimizer, 0)
    again = copy.deepcopy(model)
    fresh = build_optimizer(again, MUON, "bf16")
    step(model, optimizer, 1)
    step(again, fresh, 1)
    for name, weight in weights_of(model).items():
        assert not torch.equal(weight, weights_of(again)[name]), name


def test_a_schedule_reaches_both_parts_before_and_after_loading() -> None:
    model = tiny_language_model("unspoken")
    optimizer = build_optimizer(model, MUON, "bf16")
    schedule = LambdaLR(optimizer, lambda done: 1.0 / (1 + done))
    for seed in range(3):
        step(model, optimizer, seed)
        schedule.step()
    rates = [group["lr"] for piece in optimizer.parts for group in piece.param_groups]  # type: ignore[attr-defined]
    assert rates == pytest.approx([0.02 / 4, 0.003 / 4])

    resumed = build_optimizer(copy.deepcopy(model), MUON, "bf16")
    later = LambdaLR(resumed, lambda done: 1.0 / (1 + done))
    resumed.load_state_dict(optimizer.state_dict())
    later.load_state_dict(schedule.state_dict())
    later.step()
    rates = [group["lr"] for piece in resumed.parts for group in piece.param_groups]  # type: ignore[attr-defined]
    assert rates == pytest.approx([0.02 / 5, 0.003 / 5])


def test_a_rate_of_zero_moves_nothing() -> None:
    model = tiny_language_model("unspoken")
    before = weights_of(model)
    optimizer = build_optimizer(model, MUON, "bf16")
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(model, optimizer, 0)
    for name, weight in weights_of(model).items():
        assert torch.equal(weight, before[name]), name


def test_gradients_of_both_parts_are_cleared() -> None:
    model = tiny_language_model("unspoken")
    optimizer = build_optimizer(model, MUON, "bf16")
    model(prompts(), labels=prompts()).loss.backward()
    optimizer.zero_grad()
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_frozen_weights_are_in_no_optimiser(name: str) -> None:
    model = tiny_pair()
    model.freeze_reasoner()
    optimizer = build_optimizer(model, Optimizer(name=name, lr=0.001), "bf16")  # type: ignore[arg-type]
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    assert held == {id(weight) for weight in model.talker.parameters()}


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_tables_heads_and_gains_do_not_decay(name: str) -> None:
    model = tiny_language_model("unspoken")
    settings = Optimizer(name=name, lr=0.01, lr_rest=0.01, weight_decay=0.5)  # type: ignore[arg-type]
    optimizer = build_optimizer(model, settings, "bf16")
    before = weights_of(model)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for key, weight in weights_of(model).items():
        if "proj" in key:
            torch.testing.assert_close(weight, before[key] * (1 - 0.01 * 0.5))
        else:
            assert torch.equal(weight, before[key]), key


def test_the_rest_moves_at_the_rate_of_the_matrices_if_none_is_given() -> None:
    optimizer = build_optimizer(tiny_language_model("unspoken"), Optimizer(lr=0.01, lr_rest=None), "bf16")
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}


# --- Muon in float32 -------------------------------------------------------------------------------------------------


def test_muon_in_float32_takes_torch_s_step_but_for_bfloat16_s_rounding() -> None:
    torch.manual_seed(0)
    for shape in ((24, 24), (16, 48), (48, 16)):
        weight = nn.Parameter(torch.randn(shape))
        twin = nn.Parameter(weight.detach().clone())
        ours, torch_s = Muon([weight], dtype=torch.float32, lr=0.1), torch.optim.Muon([twin], lr=0.1)
        for _ in range(3):
            weight.grad = torch.randn(shape)
            twin.grad = weight.grad.clone()
            before = weight.detach().clone()
            ours.step()
            torch_s.step()
            moved, torch_moved = weight - before, twin - before
            assert (moved - torch_moved).norm() < 0.05 * torch_moved.norm()


def test_orthogonal_matrices_have_singular_values_near_one_and_the_same_singular_vectors() -> None:
    matrices = torch.randn(2, 12, 40, generator=torch.Generator().manual_seed(0))
    moved = orthogonal(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    values = torch.linalg.svdvals(moved)
    assert 0.6 < values.min() < values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    diagonal = left.mT @ moved @ right.mT
    assert torch.allclose(diagonal, torch.diag_embed(diagonal.diagonal(dim1=1, dim2=2)), atol=1e-4)
    # A tall matrix is a wide one turned round.
    assert torch.allclose(orthogonal(matrices.mT, (3.4445, -4.7750, 2.0315), 5, 1e-7), moved.mT, atol=1e-5)


def test_a_tall_matrix_costs_what_a_wide_one_does() -> None:
    """The iteration squares the shorter side: three products of 12 x 12 x 40 or 12 x 12 x 12 a step."""
    counted = []
    for shape in ((2, 12, 40), (2, 40, 12)):
        with FlopCounterMode(display=False) as counter:
            orthogonal(torch.ones(shape), (3.4445, -4.7750, 2.0315), 5, 1e-7)
        counted.append(counter.get_total_flops())
    assert counted == [5 * 2 * 2 * 12 * 12 * (40 + 12 + 40)] * 2


def test_nothing_is_multiplied_in_bfloat16_where_float32_is_chosen() -> None:
    class Types(TorchDispatchMode):
        seen: set[torch.dtype] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                self.seen.add(out.dtype)
            return out

    model = tiny_language_model("unspoken")
    optimizer = build_optimizer(model, MUON, "fp32")
    ids = prompts(seed=0)
    model(ids, labels=ids).loss.backward()
    with Types() as types:
        optimizer.step()
    assert torch.bfloat16 not in types.seen


def test_a_logarithmic_warm_up_is_that_of_deepspeed() -> None:
    settings = Optimizer(name="adamw", lr=0.01, warmup_steps=5, warmup="logarithmic", schedule="linear")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmed_up(get_linear_schedule_with_warmup(optimizer, 5, 25), settings)
    rates = []
    for _ in range(25):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    rising = [math.log(step) / math.log(5) for step in range(1, 6)]
    assert rates == pytest.approx([0.0, *rising, *[(25 - step) / 20 for step in range(6, 25)]])
    plain = get_linear_schedule_with_warmup(optimizer, 5, 25)
    assert warmed_up(plain, replace(settings, warmup="linear")).lr_lambdas[0](2) == pytest.approx(2 / 5)


@pytest.mark.parametrize("schedule", ["linear", "logarithmic"])
def test_one_step_of_warm_up_is_a_step_at_rate_zero(schedule: Any) -> None:
    settings = Optimizer(name="adamw", lr=0.01, warmup_steps=1, warmup=schedule, schedule="linear")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    rate = warmed_up(get_linear_schedule_with_warmup(optimizer, 1, 5), settings).lr_lambdas[0]
    assert [rate(step) for step in range(3)] == [0.0, 1.0, 0.75]
