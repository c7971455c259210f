"""The decoder as a citizen of the transformers library, and its norms."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conformance import left_padded
from settings_checks import check_recorded
from tiny_models import PAD, enliven, prompts, tiny_config, tiny_language_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from unspoken.backbone import UnspokenConfig, UnspokenForCausalLM, UnspokenModel
from unspoken.backbone.modeling import Attention, HybridNorm, plain_attention, rotary_tables, rotate


def stack(**settings: object) -> UnspokenModel:
    """A lively stack."""
    model = UnspokenModel._from_config(tiny_config("unspoken", **settings), attn_implementation="eager")
    enliven(model, "unspoken")
    return model.eval()


# --- the auto classes ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_auto_classes_build_save_and_load_it(tmp_path: Path) -> None:
    model = tiny_language_model("unspoken")
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, UnspokenConfig)
    assert config.attention_size == 24
    complete = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(complete, UnspokenForCausalLM)
    bare = AutoModel.from_pretrained(tmp_path)
    assert isinstance(bare, UnspokenModel)
    for name, weight in model.state_dict().items():
        assert torch.equal(complete.state_dict()[name], weight), name
    for name, weight in model.model.state_dict().items():
        assert torch.equal(bare.state_dict()[name], weight), name
    assert complete.lm_head.weight is complete.model.embed_tokens.weight


def test_other_engines_may_bring_an_attention_of_their_own() -> None:
    assert UnspokenForCausalLM.is_backend_compatible()


@torch.no_grad()
def test_it_generates_through_the_library_with_sampling_and_beams() -> None:
    model = tiny_language_model("unspoken")
    torch.manual_seed(0)
    mask = torch.ones_like(prompts())
    for settings in ({"do_sample": True, "num_beams": 1}, {"do_sample": False, "num_beams": 3}):
        out = model.generate(prompts(), attention_mask=mask, max_new_tokens=6, min_new_tokens=6, **settings)
        assert out.shape == (6, 11)
        assert torch.equal(out[:, :5], prompts())


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_labels_are_shifted_and_minus_one_hundred_is_ignored() -> None:
    model = tiny_language_model("unspoken")
    ids = prompts()
    labels = ids.clone()
    labels[:, 2] = -100
    out = model(ids, labels=labels)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(out.loss, expected)


@torch.no_grad()
def test_logits_are_kept_where_they_are_asked_for() -> None:
    model = tiny_language_model("unspoken")
    everything = model(prompts()).logits
    assert torch.equal(model(prompts(), logits_to_keep=0).logits, everything)
    torch.testing.assert_close(model(prompts(), logits_to_keep=2).logits, everything[:, -2:])
    torch.testing.assert_close(model(prompts(), logits_to_keep=torch.tensor([1, 3])).logits, everything[:, [1, 3]])


def test_tokens_and_vectors_are_given_one_at_a_time() -> None:
    model = stack()
    vectors = model.get_input_embeddings()(prompts())
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=vectors).last_hidden_state, model(prompts()).last_hidden_state)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(prompts(), inputs_embeds=vectors)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()


def test_a_stack_without_a_table_takes_vectors_alone() -> None:
    model = UnspokenModel(tiny_config("unspoken"), embeddings=False)
    assert "embed_tokens.weight" not in model.state_dict()
    assert model(inputs_embeds=torch.randn(2, 3, 16)).last_hidden_state.shape == (2, 3, 16)
    with pytest.raises(ValueError, match="give inputs_embeds"):
        model(prompts())


def test_cross_attention_needs_an_encoder_s_output() -> None:
    with pytest.raises(ValueError, match="give encoder_hidden_states"):
        stack(cross_attention=True)(prompts())


@torch.no_grad()
def test_cross_attention_sees_the_encoder_and_not_its_padding() -> None:
    model = stack(cross_attention=True)
    source, mask = torch.randn(6, 4, 16), torch.tensor([[1, 1, 1, 0]]).expand(6, 4)
    before = model(prompts(), encoder_hidden_states=source, encoder_attention_mask=mask).last_hidden_state
    padding, real = source.clone(), source.clone()
    padding[:, 3] += 5
    real[:, 2] += 5
    after = model(prompts(), encoder_hidden_states=padding, encoder_attention_mask=mask).last_hidden_state
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    after = model(prompts(), encoder_hidden_states=real, encoder_attention_mask=mask).last_hidden_state
    assert (after - before).abs().amax(dim=-1).min() > 1e-3


# --- masks and positions ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_order_of_earlier_tokens_matters() -> None:
    # With attention alone, and no position signal, a permuted prefix would give the same last output.
    model = stack()
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    swapped = torch.tensor([[4, 3, 5, 6, 7]])
    change = model(ids).last_hidden_state[:, -1] - model(swapped).last_hidden_state[:, -1]
    assert change.abs().max() > 1e-2


@torch.no_grad()
def test_only_distances_matter() -> None:
    # Rotary positions are relative: counting from 7 changes nothing.
    model = stack()
    positions = torch.arange(5)[None].expand(6, -1)
    torch.testing.assert_close(
        model(prompts(), position_ids=positions + 7).last_hidden_state,
        model(prompts(), position_ids=positions).last_hidden_state,
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(causal: bool) -> None:
    model = stack(is_causal=causal)
    rows = [torch.tensor([3, 4, 5, 6, 7]), torch.tensor([8, 9])]
    ids, mask = left_padded(rows)
    out = model(ids, attention_mask=mask).last_hidden_state
    for outputs, row in zip(out, rows, strict=True):
        alone = model(row[None]).last_hidden_state[0]
        torch.testing.assert_close(outputs[-len(row) :], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_encoder_sees_what_comes_later_and_a_decoder_does_not() -> None:
    ids, changed = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[3, 4, 5, 9]])
    for causal in (True, False):
        model = stack(is_causal=causal)
        change = (model(ids).last_hidden_state - model(changed).last_hidden_state)[:, :3].abs().amax(dim=-1)
        if causal:
            assert change.max() < 1e-6
        else:
            assert change.min() > 1e-3


def test_training_keeps_no_cache_and_evaluation_does() -> None:
    model = stack()
    assert model(prompts()).past_key_values.get_seq_length() == 5
    assert model.train()(prompts()).past_key_values is None


# --- norms -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_with_the_l2_half_on_every_output_has_unit_norm() -> None:
    norms = stack(l2_output=True)(prompts()).last_hidden_state.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)


@torch.no_grad()
def test_with_the_l2_half_off_only_the_rms_half_acts() -> None:
    model = stack(l2_output=False)
    out = model(prompts()).last_hidden_state / model.norm.rms.weight
    torch.testing.assert_close(out.square().mean(dim=-1), torch.ones(6, 5), rtol=1e-4, atol=1e-4)
    on = copy.deepcopy(model)
    on.norm.l2_output = True
    torch.testing.assert_close(
        on(prompts()).last_hidden_state, F.normalize(model(prompts()).last_hidden_state, dim=-1), rtol=1e-5, atol=1e-6
    )


def test_the_gain_turns_the_output_even_under_the_l2_half() -> None:
    # Without a gain the RMS half would do nothing once the L2 half is on.
    norm = HybridNorm(tiny_config("unspoken", l2_output=True))
    h = torch.randn(3, 16)
    before = norm(h)
    with torch.no_grad():
        norm.rms.weight[0] = 5
    assert (norm(h) - before).abs().max() > 0.05
    assert norm(h).norm(dim=-1).allclose(torch.ones(3))


@pytest.mark.parametrize("kind", ["layer", "rms"])
@torch.no_grad()
def test_queries_and_keys_are_normed_so_that_attention_can_be_sharp(kind: str) -> None:
    config = tiny_config("unspoken", qk_norm=kind)
    attention = Attention(config, 0)
    normed = attention._qk_norm(torch.randn(2, 2, 5, 12) * 100)
    # Norm sqrt(C), so a score reaches sqrt(C) after the division; with norm 1 attention would be nearly uniform.
    torch.testing.assert_close(normed.norm(dim=-1), torch.full((2, 2, 5), 12**0.5), rtol=1e-3, atol=1e-3)
    assert attention.scaling == pytest.approx(12**-0.5)


@torch.no_grad()
def test_table_rows_enter_with_the_norm_of_looped_latents() -> None:
    model = stack()
    norms = model.get_input_embeddings()(prompts()).norm(dim=-1)
    torch.testing.assert_close(norms, torch.full((6, 5), 4.0))
    free = stack(unit_embeddings=False)
    assert torch.equal(free.get_input_embeddings()(prompts()), F.embedding(prompts(), free.embed_tokens.weight))


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_pairs_of_a_head_turn_by_the_angle_of_their_position() -> None:
    # Of a head of four, the first pair turns by the position, the second by a hundredth of it.
    cos, sin = rotary_tables(torch.tensor([[0, 2]]), 4, 10_000.0)
    torch.testing.assert_close(cos[0, 0, 1], torch.tensor([math.cos(2), math.cos(0.02)]))
    torch.testing.assert_close(sin[0, 0], torch.tensor([[0, 0], [math.sin(2), math.sin(0.02)]]))
    x = torch.tensor([[[[1.0, 2, 3, 4], [1.0, 0, 0, 1]]]])
    turned = rotate(x, (cos, sin))[0, 0]
    assert torch.equal(turned[0], x[0, 0, 0])
    expected = torch.tensor([math.cos(2), -math.sin(0.02), math.sin(2), math.cos(0.02)])
    torch.testing.assert_close(turned[1], expected)


def test_plain_attention_is_a_softmax_over_what_the_mask_lets_through() -> None:
    # One head; scores of the query with three keys are 0, log 2 and log 3 after scaling by a half.
    query = torch.tensor([[[[2.0, 0.0]]]])
    key = torch.tensor([[[[0.0, 5.0], [math.log(2), 1.0], [math.log(3), 0.0]]]])
    value = torch.tensor([[[[6.0], [12.0], [18.0]]]])
    module = nn.Module()
    out, weights = plain_attention(module, query, key, value, None, 0.5)
    torch.testing.assert_close(weights.flatten(), torch.tensor([1.0, 2.0, 3.0]) / 6)
    torch.testing.assert_close(out, torch.tensor([[[[1.0 + 4 + 9]]]]))
    out, _ = plain_attention(module, query, key, value, torch.tensor([0.0, 0.0, -math.inf]), 0.5)
    torch.testing.assert_close(out.flatten(), torch.tensor([2.0 + 8]))
    # Heads of several tokens come back token by token.
    many = torch.randn(2, 3, 4, 5)
    assert plain_attention(module, many, many, many, None, 1.0)[0].shape == (2, 4, 3, 5)


def test_positions_go_on_after_the_cache() -> None:
    model = stack()
    with torch.no_grad():
        whole = model(prompts()).last_hidden_state
        first = model(prompts()[:, :2])
        rest = model(prompts()[:, 2:], past_key_values=first.past_key_values).last_hidden_state
        torch.testing.assert_close(rest, whole[:, 2:], rtol=1e-4, atol=1e-5)
        assert first.past_key_values.get_seq_length() == 5
        # A cache can be asked for while it trains, and left out else; a folder may say that it wants none.
        assert model(prompts(), use_cache=False).past_key_values is None
        model.config.use_cache = False
        assert model(prompts()).past_key_values is None
        model.config.use_cache = True
        assert model.train()(prompts(), use_cache=True).past_key_values.get_seq_length() == 5


@torch.no_grad()
def test_an_encoder_s_output_has_positions_of_its_own_from_zero() -> None:
    # The same queries over the same source, wherever their own text begins: keys of the source do not move with it.
    model = stack(cross_attention=True)
    source = torch.randn(6, 4, 16)
    positions = torch.arange(5).expand(6, -1)
    here = model(prompts(), encoder_hidden_states=source, position_ids=positions).last_hidden_state
    there = model(prompts(), encoder_hidden_states=source, position_ids=positions + 3).last_hidden_state
    assert (here - there).abs().amax(dim=(1, 2)).min() > 1e-3
    for cached in (True, False):  # its own count from zero too, where none are given
        counted = model(prompts(), encoder_hidden_states=source, use_cache=cached).last_hidden_state
        torch.testing.assert_close(counted, here, rtol=1e-5, atol=1e-6)
    cross = model.layers[0].cross_attention
    assert cross is not None
    assert (cross.cross, cross.is_causal, cross.layer_idx, cross.num_key_value_groups) == (True, False, 0, 1)
    assert [layer.attention.layer_idx for layer in model.layers] == [0, 1]
    assert model.layers[1].attention.is_causal and not model.layers[1].attention.cross
    # All of the source is seen from every token, and nothing is cached of it.
    other = source.clone()
    other[:, 3] += 1
    changed = model(prompts(), encoder_hidden_states=other, position_ids=positions).last_hidden_state
    assert (changed - here).abs().amax(dim=-1).min() > 1e-5


# --- training --------------------------------------------------------------------------------------------------------


def gradients(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_recomputed_activations_give_the_same_gradients() -> None:
    model = tiny_language_model("unspoken").train()
    before = gradients(model, prompts())
    calls: list[int] = []
    model.model.layers[0].attention.register_forward_pre_hook(lambda *_: calls.append(1))
    model.activation_checkpointing_enable()
    after = gradients(model, prompts())
    assert len(calls) == 2, "the block ran once more for the backward pass"
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name


def test_every_weight_gets_a_gradient() -> None:
    model = tiny_language_model("unspoken").train()
    grads = gradients(model, prompts())
    assert grads.keys() == dict(model.named_parameters()).keys()
    assert all(grad.abs().max() > 0 for grad in grads.values())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_bfloat16_autocast_stays_near_float32(attention: str) -> None:
    model = tiny_language_model("unspoken", attention)
    exact = model.model(prompts()).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.model(prompts()).last_hidden_state
    assert F.cosine_similarity(exact, rough.float(), dim=-1).min() > 0.98


def test_padding_gets_no_gradient_in_the_table() -> None:
    model = tiny_language_model("unspoken", tie_word_embeddings=True).train()
    ids, mask = left_padded([torch.tensor([3, 4, 5, 6, 7]), torch.tensor([8, 9])])
    out = model.model(ids, attention_mask=mask).last_hidden_state
    out[mask.bool()].sum().backward()
    grad = model.get_input_embeddings().weight.grad
    assert grad is not None
    assert not grad[PAD].any()
    assert grad[3].any()


def test_fields_that_a_folder_lacks_mean_what_they_meant() -> None:
    check_recorded(UnspokenConfig)
