"""Both ends of a model: its rows as they enter, and its scores whatever its head does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_hub import FALCON_H1, GPT, MINICPM_3, SLIDING, WIDTH, enlivened, tiny_hub_model, tokens
from tiny_models import tiny_language_model
from torch import Tensor
from transformers import LlamaForCausalLM

from unspoken.backbone.vocabulary import CallableHead, embedding_table, head_of, scores

PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen2", {}),
    ("gpt2", GPT),
    ("opt", {"ffn_dim": 48, "word_embed_proj_dim": WIDTH}),
]
NOT_PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("phi", {}),  # a bias
    ("gptj", {**GPT, "rotary_dim": 4}),  # a bias
    ("gemma2", SLIDING),  # a cap
    ("cohere", {}),  # a scale
    ("granite", {"logits_scaling": 8.0}),  # a divisor
    ("granite", {"logits_scaling": 1.03}),  # however small
    ("minicpm3", MINICPM_3),  # a divisor before the product
    ("falcon_h1", {**FALCON_H1, "lm_head_multiplier": 0.04}),  # a multiplier that the stack holds
    ("modernbert-decoder", {"local_attention": 6, **SLIDING}),  # a layer and a norm
    ("bert", {"is_decoder": True}),
]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "settings"), PLAIN + NOT_PLAIN)
def test_scores_are_those_of_the_model(kind: str, settings: dict[str, Any]) -> None:
    model = tiny_hub_model(kind, **settings)
    ids = tokens(1, 9)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    expected = model(input_ids=ids, use_cache=False).logits[0]
    head = head_of(model)
    assert len(head) == model.config.get_text_config().vocab_size
    assert isinstance(head, Tensor) == ((kind, settings) in PLAIN)
    torch.testing.assert_close(scores(hidden, head), expected)


@torch.no_grad()
def test_our_own_head_is_a_matrix_that_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CallableHead, "__call__", None)
    model = tiny_language_model("unspoken")
    assert head_of(model) is not None
    hidden = torch.randn(3, 16)
    assert torch.equal(scores(hidden, head_of(model)), model.lm_head(hidden))


@pytest.mark.parametrize("scale", [1e-3, 1e-6])
def test_a_cap_counts_where_scores_are_far_below_it(scale: float) -> None:
    model = tiny_hub_model("gemma2", **SLIDING, final_logit_softcapping=30.0)
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    assert isinstance(head_of(model), CallableHead)


def test_a_head_is_judged_in_the_precision_of_its_weights() -> None:
    class Float(LlamaForCausalLM):
        """Its scores are in float32, as those of some families, whatever its products are."""

        def forward(self, *inputs: Any, **how: Any) -> Any:
            outputs = super().forward(*inputs, **how)
            outputs.logits = outputs.logits.float()
            return outputs

    model = enlivened(Float(tiny_hub_model("llama").config))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert isinstance(head_of(model), Tensor)


def test_a_bias_that_is_still_zero_counts() -> None:
    model = tiny_hub_model("phi")
    with torch.no_grad():
        model.lm_head.bias.zero_()
    assert isinstance(head_of(model), CallableHead)
    with torch.no_grad():
        model.lm_head.bias.normal_()
        hidden = torch.randn(2, WIDTH)
        torch.testing.assert_close(scores(hidden, head_of(model)), model.lm_head(hidden))


@pytest.mark.parametrize(("kind", "settings"), PLAIN + NOT_PLAIN)
def test_no_gradient_reaches_the_weights_of_a_head(kind: str, settings: dict[str, Any]) -> None:
    model = tiny_hub_model(kind, **settings)
    hidden = torch.randn(2, model.config.get_text_config().hidden_size, requires_grad=True)
    scores(hidden, head_of(model)).square().sum().backward()
    assert hidden.grad is not None and bool(hidden.grad.any())
    assert [name for name, weight in model.named_parameters() if weight.grad is not None] == []
    model(input_ids=tokens(1, 9), use_cache=False).logits.square().sum().backward()
    assert all(weight.grad is not None for weight in model.get_output_embeddings().parameters())


def test_the_gradient_of_an_asked_head_reaches_its_input() -> None:
    model = tiny_hub_model("gemma2", **SLIDING)
    hidden = torch.randn(2, WIDTH, requires_grad=True)
    (actual,) = torch.autograd.grad(scores(hidden, head_of(model)).square().sum(), hidden)
    raw = model.lm_head(hidden)
    cap = model.config.final_logit_softcapping
    (expected,) = torch.autograd.grad((torch.tanh(raw / cap) * cap).square().sum(), hidden)
    torch.testing.assert_close(actual, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gemma", "biogpt", "minicpm3"])
def test_the_table_is_what_tokens_are_at_the_first_block(kind: str) -> None:
    model = tiny_hub_model(kind, **(MINICPM_3 if kind == "minicpm3" else {}))
    ids = tokens(7)
    assert torch.equal(embedding_table(model)[ids], model.get_input_embeddings()(ids))
    assert not embedding_table(model).requires_grad
