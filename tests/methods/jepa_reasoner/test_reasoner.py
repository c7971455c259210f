"""The Reasoner: unit latents, its own outputs as inputs, and a target table that follows without a gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from latent_models import caches_kept
from tiny_hub import tiny_hub_model, tokens
from tiny_models import FAMILIES, PAD, prompts, tiny_config, tiny_reasoner
from torch import Tensor, nn

from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.reasoning.engine import StopRule
from unspoken.training.optimizers import build_optimizer
from unspoken.training.parts import Optimizer

FIXED = StopRule(max_latents=6, fixed=True)


# --- latents ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_latent_has_norm_one(family: str) -> None:
    model = tiny_reasoner(family)
    for latents in (model(prompts()).latents, model.reason(prompts(), None, FIXED).latents):
        norms = latents.norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_chain_is_the_paper_s_loop_written_out(family: str) -> None:
    # Section 5, with nothing of the package but the blocks: rows at norm sqrt(D), append the latent at norm sqrt(D).
    model = tiny_reasoner(family)
    rows = model.backbone.get_input_embeddings().weight[prompts()]
    inputs = 4 * rows / rows.norm(dim=-1, keepdim=True)
    latents = []
    for _ in range(6):
        h = model.backbone(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1]
        latents.append(h / h.norm(dim=-1, keepdim=True))
        inputs = torch.cat([inputs, 4 * latents[-1][:, None]], dim=1)
    chain = model.reason(prompts(), None, FIXED)
    torch.testing.assert_close(chain.latents, torch.stack(latents, dim=1), rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_the_first_latent_is_the_teacher_forced_output_at_the_last_prompt_token() -> None:
    model = tiny_reasoner()
    chain = model.reason(prompts(), None, FIXED)
    torch.testing.assert_close(chain.latents[:, 0], model(prompts()).latents[:, -1], rtol=1e-4, atol=1e-5)


def test_training_is_one_parallel_pass() -> None:
    model, ids = tiny_reasoner(), prompts(length=12)
    with caches_kept(model.backbone) as kept:
        model(ids)
    assert kept == [False]
    # And one before it that computes own latents, unless more are asked for.
    with caches_kept(model.backbone) as kept:
        model(ids, own=torch.ones_like(ids, dtype=torch.bool))
    assert kept == [False] * 2


def test_activations_are_computed_again_where_memory_is_short() -> None:
    gradients, runs = [], list[bool]()
    for checkpointed in (False, True):
        model = tiny_reasoner("llama").train()
        if checkpointed:
            model.activation_checkpointing_enable()
        model.backbone.layers[0].mlp.register_forward_pre_hook(lambda *_, how=checkpointed: runs.append(how))
        model(prompts()).latents[:, -1].sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert (runs.count(False), runs.count(True)) == (1, 2)
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_own_latents_after_enough_passes_are_those_of_a_rollout(family: str) -> None:
    model, ids = tiny_reasoner(family), prompts(length=11)
    chain = model.reason(ids[:, :5], None, FIXED)
    own = torch.zeros_like(ids, dtype=torch.bool)
    own[:, 5:10] = True
    for passes in range(1, 6):
        latents = model(ids, own=own, rollout_passes=passes).latents[:, 4:10]
        same = (latents - chain.latents).abs().amax(dim=(0, 2)) < 1e-4
        # One pass more, one latent more; the first needs none, and the one after the last comes for nothing.
        assert same.tolist() == [step <= passes for step in range(6)]


def test_own_latents_are_found_without_a_gradient() -> None:
    model, ids = tiny_reasoner(), prompts(length=8)
    own = torch.zeros_like(ids, dtype=torch.bool)
    own[:, 4] = True
    rows = model.embed_prompt(ids).detach()
    with torch.no_grad():
        rows[:, 4] = model(ids).latents[:, 3] * model.scale
    positions = {"use_cache": False}
    by_hand = F.normalize(model.backbone(inputs_embeds=rows, **positions).last_hidden_state, dim=-1)
    required = torch.autograd.grad(by_hand[:, -1].sum(), model.backbone.layers[0].ffn.up_proj.weight)[0]
    outputs = model(ids, own=own, rollout_passes=1).latents
    torch.testing.assert_close(outputs, by_hand, rtol=1e-4, atol=1e-5)
    actual = torch.autograd.grad(outputs[:, -1].sum(), model.backbone.layers[0].ffn.up_proj.weight)[0]
    torch.testing.assert_close(actual, required, rtol=1e-4, atol=1e-5)


# --- the scale of the input ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_tokens_and_latents_enter_on_one_scale() -> None:
    model = tiny_reasoner()
    assert model.scale == 4.0
    torch.testing.assert_close(model.embed_prompt(prompts()).norm(dim=-1), torch.full((6, 5), 4.0))
    latent_step = model.step(torch.randn(6, 16))
    torch.testing.assert_close(latent_step.next_input.norm(dim=-1), torch.full((6,), 4.0))
    torch.testing.assert_close(latent_step.next_input, 4 * latent_step.latent)


@torch.no_grad()
def test_the_scale_is_a_choice() -> None:
    config = JepaReasonerConfig(backbone_config=tiny_config("unspoken"), input_scale=2.5, eos_token_id=1)
    model = JepaReasonerModel(config)
    torch.testing.assert_close(model.embed_prompt(prompts()).norm(dim=-1), torch.full((6, 5), 2.5))
    torch.testing.assert_close(model.step(torch.randn(6, 16)).next_input.norm(dim=-1), torch.full((6,), 2.5))


@torch.no_grad()
def test_rows_may_enter_as_they_are_and_latents_then_get_their_mean_norm() -> None:
    model = tiny_reasoner(unit_tokens=False)
    table = model.backbone.get_input_embeddings().weight
    assert torch.equal(model.embed_prompt(prompts()), table[prompts()])
    feed = model.step(torch.randn(6, 16)).next_input
    torch.testing.assert_close(feed.norm(dim=-1), table.norm(dim=-1).mean().expand(6))


@torch.no_grad()
def test_the_input_is_what_the_backbone_would_have_made_of_the_tokens() -> None:
    # Stage 1 trains the backbone on its own embedding; SST must not see another input.
    for unit_tokens in (True, False):
        model = tiny_reasoner(unit_tokens=unit_tokens)
        torch.testing.assert_close(model.embed_prompt(prompts()), model.backbone.get_input_embeddings()(prompts()))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gemma", "biogpt"])
def test_a_scale_of_the_embedding_is_kept(kind: str) -> None:
    # Gemma and BioGPT multiply their rows by the root of the width where they are looked up.
    base = tiny_hub_model(kind)
    config = JepaReasonerConfig(backbone_config=base.base_model.config, unit_tokens=False, eos_token_id=1)
    model = JepaReasonerModel._from_config(config, attn_implementation="eager").eval()
    model.backbone.load_state_dict(base.base_model.state_dict())
    ids = tokens(2, 7)
    expected = F.normalize(base.base_model(input_ids=ids, use_cache=False).last_hidden_state, dim=-1)
    torch.testing.assert_close(model(ids).latents, expected)
    norms = base.get_input_embeddings()(torch.arange(60)).norm(dim=-1)
    torch.testing.assert_close(model.step(torch.randn(6, 32)).next_input.norm(dim=-1), norms.mean().expand(6))


class Normed(nn.Embedding):
    """A table whose rows are normalised with gains where they are looked up."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__(*rows.shape, _weight=rows)
        self.norm = nn.RMSNorm(rows.shape[1])

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(super().forward(ids))


@torch.no_grad()
def test_gains_turn_the_rows_that_enter_and_that_latents_are_drawn_to() -> None:
    model = tiny_reasoner("llama")
    table = Normed(torch.randn(20, 16))
    table.norm.weight.copy_(torch.linspace(0.2, 2, 16))
    model.backbone.set_input_embeddings(table)
    rows = table(torch.arange(20))
    model.start_target()
    torch.testing.assert_close(model.unit_table(), F.normalize(rows, dim=-1))
    torch.testing.assert_close(model.embed_prompt(prompts()), 4 * F.normalize(rows, dim=-1)[prompts()])


@torch.no_grad()
def test_the_target_of_weights_in_bfloat16_moves() -> None:
    model = tiny_reasoner().bfloat16()
    model.start_target()
    start = model.target_table.float()
    online = model.backbone.get_input_embeddings().weight
    online.add_(1e-2)
    for _ in range(400):
        model.update_target(0.98)
    assert model.target_table.dtype == torch.float32
    torch.testing.assert_close(model.target_table, online.float(), rtol=0, atol=1e-4)
    assert not torch.allclose(model.target_table, start, rtol=0, atol=1e-3)


# --- stopping and reading --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_nearest_row_is_the_one_at_the_smallest_angle() -> None:
    model = tiny_reasoner()
    latents = torch.randn(3, 4, 16)
    angles = F.cosine_similarity(latents[:, :, None], model.target_table[None, None], dim=-1)
    assert torch.equal(model.nearest_row(latents), angles.argmax(dim=-1))


@torch.no_grad()
def test_a_row_is_done_when_its_nearest_target_row_is_the_end() -> None:
    model = tiny_reasoner()
    end = model.config.end_id
    # The target table decides, not the online one.
    model.target_table.copy_(torch.randn_like(model.target_table))
    latent_step = model.step(torch.stack([model.target_table[end] * 3, model.target_table[end + 1]]))
    assert latent_step.done.tolist() == [True, False]


@torch.no_grad()
def test_reading_out_names_each_row_and_pads_behind_the_end() -> None:
    model = tiny_reasoner()
    model.config.eos_token_id = 9
    chain = model.reason(prompts(), None, StopRule(max_latents=8))
    tokens = model.read_out(chain)
    assert torch.equal(tokens[chain.mask], model.nearest_row(chain.latents[chain.mask]))
    assert (~chain.mask).any()
    assert (tokens[~chain.mask] == PAD).all()


def test_the_cap_is_the_configuration_s_if_none_is_given() -> None:
    model = tiny_reasoner()
    model.config.eos_token_id = 17
    model.config.max_latents = 5
    assert model.reason(prompts()).mask.shape[1] <= 5
    assert model.reason(prompts(), None, StopRule(max_latents=7, fixed=True)).mask.shape[1] == 7


@pytest.mark.parametrize("end", [None, [1, 2]])
def test_there_is_exactly_one_end(end: list[int] | None) -> None:
    config = JepaReasonerConfig(backbone_config=tiny_config("unspoken"), eos_token_id=end)
    with pytest.raises(ValueError, match="eos_token_id"):
        JepaReasonerModel(config).reason(prompts(), None, FIXED)


# --- the target table ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_target_starts_as_a_copy_and_follows_by_its_momentum() -> None:
    model = tiny_reasoner()
    online = model.backbone.get_input_embeddings().weight
    model.start_target()
    assert torch.equal(model.target_table, online)
    old = model.target_table.clone()
    online.add_(torch.randn_like(online))
    assert torch.equal(model.target_table, old), "a copy, not the same tensor"
    model.update_target(0.98)
    torch.testing.assert_close(model.target_table, 0.98 * old + 0.02 * online)


def test_the_target_takes_no_gradient_and_no_optimiser_state() -> None:
    model = tiny_reasoner().train()
    out = model(prompts())
    F.cosine_similarity(out.latents, out.target_table[prompts()], dim=-1).sum().backward()
    assert not model.target_table.requires_grad
    assert model.target_table.grad is None
    assert "target_table" not in dict(model.named_parameters())
    for name in ("muon", "adamw"):
        optimizer = build_optimizer(model, Optimizer(name=name, lr=0.001), "bf16")  # type: ignore[arg-type]
        held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        assert id(model.target_table) not in held
        assert held == {id(weight) for weight in model.parameters()}


def test_the_online_table_learns_from_the_input_side() -> None:
    model = tiny_reasoner().train()
    out = model(prompts())
    F.cosine_similarity(out.latents, out.target_table[prompts()], dim=-1).sum().backward()
    grad = model.backbone.get_input_embeddings().weight.grad
    assert grad is not None
    assert grad[prompts().unique()].abs().amax(dim=-1).min() > 0


def test_the_target_travels_with_the_weights(tmp_path: Path) -> None:
    model = tiny_reasoner()
    with torch.no_grad():
        model.target_table.copy_(torch.randn_like(model.target_table))
    model.save_pretrained(tmp_path)
    assert torch.equal(JepaReasonerModel.from_pretrained(tmp_path).target_table, model.target_table)


def test_the_unit_table_is_the_direction_of_the_target() -> None:
    model = tiny_reasoner()
    torch.testing.assert_close(model.unit_table().norm(dim=-1), torch.ones(20))
    torch.testing.assert_close(model.unit_table(), F.normalize(model.target_table, dim=-1))
