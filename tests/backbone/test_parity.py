"""Same weights, same logits: the backbone against a plain float64 reference that shares no code with it.

Axes: B batch, T tokens, S keys, H heads, C width of a head, D latent width, A attention width, F width of the FFN,
V vocabulary.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from tiny_models import END, PAD, VOCABULARY, enliven, prompts
from torch import Tensor

from unspoken.backbone import UnspokenConfig, UnspokenForCausalLM, UnspokenModel

Weights = dict[str, Tensor]
EPSILON = 1e-6


def rms(x: Tensor, gain: Tensor | None = None) -> Tensor:
    scaled = x / (x.square().mean(dim=-1, keepdim=True) + EPSILON).sqrt()
    return scaled if gain is None else scaled * gain


def layer(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + EPSILON).sqrt()


def turn(x_BTHC: Tensor) -> Tensor:
    """Rotary positions as complex numbers: pair (i, i + C/2) is one of them."""
    length, width = x_BTHC.shape[1], x_BTHC.shape[3]
    first, second = x_BTHC[..., : width // 2], x_BTHC[..., width // 2 :]
    speed = 10000.0 ** (-torch.arange(width // 2, dtype=x_BTHC.dtype) * 2 / width)
    angle = torch.arange(length, dtype=x_BTHC.dtype)[:, None] * speed
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)[None, :, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def reference_hidden(weights: Weights, config: UnspokenConfig, ids_BT: Tensor) -> Tensor:
    """The stack's output, written from the paper's section 3 and our choices for what it does not print."""
    norm = {"rms": rms, "layer": layer}[config.qk_norm]
    h_BTD = weights["embed_tokens.weight"][ids_BT]
    if config.unit_embeddings:
        h_BTD = h_BTD / h_BTD.norm(dim=-1, keepdim=True) * math.sqrt(config.hidden_size)
    length = ids_BT.shape[1]
    for block in range(config.num_hidden_layers):
        own = {
            name.removeprefix(f"layers.{block}."): weight
            for name, weight in weights.items()
            if name.startswith(f"layers.{block}.")
        }
        x_BTD = rms(h_BTD, own["attention_norm.weight"])

        def heads(name: str, x_BTD: Tensor = x_BTD, own: Weights = own) -> Tensor:
            projected = torch.einsum("btd,ad->bta", x_BTD, own[f"attention.{name}.weight"])
            return projected.unflatten(-1, (config.num_attention_heads, -1))

        query, key, value = turn(norm(heads("q_proj"))), turn(norm(heads("k_proj"))), heads("v_proj")
        scores_BHTS = torch.einsum("bthc,bshc->bhts", query, key) / math.sqrt(query.shape[-1])
        if config.is_causal:
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            scores_BHTS = scores_BHTS.masked_fill(future, -math.inf)
        mixed = torch.einsum("bhts,bshc->bthc", scores_BHTS.softmax(dim=-1), value).flatten(2)
        h_BTD = h_BTD + torch.einsum("bta,da->btd", mixed, own["attention.o_proj.weight"])
        x_BTD = rms(h_BTD, own["ffn_norm.weight"])
        inner = gelu(torch.einsum("btd,fd->btf", x_BTD, own["ffn.up_proj.weight"]))
        h_BTD = h_BTD + torch.einsum("btf,df->btd", inner, own["ffn.down_proj.weight"])
    h_BTD = rms(h_BTD, weights["norm.rms.weight"])
    return h_BTD / h_BTD.norm(dim=-1, keepdim=True) if config.l2_output else h_BTD


def lively(config: UnspokenConfig, attention: str) -> UnspokenForCausalLM:
    model = UnspokenForCausalLM._from_config(config, attn_implementation=attention)
    enliven(model, "unspoken")
    return model.eval()


@pytest.mark.parametrize(("qk_norm", "attention"), [*product(("layer", "rms"), ("eager", "sdpa"))])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("unit_embeddings", [True, False])
@torch.no_grad()
def test_the_backbone_computes_what_the_reference_does(
    qk_norm: str, attention: str, causal: bool, unit_embeddings: bool
) -> None:
    config = UnspokenConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        attention_size=36,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        qk_norm=qk_norm,
        is_causal=causal,
        unit_embeddings=unit_embeddings,
        pad_token_id=PAD,
        eos_token_id=END,
    )
    model = lively(config, attention)
    weights = {name: weight.double() for name, weight in model.model.state_dict().items()}
    ids = prompts(rows=3, length=11)
    hidden = reference_hidden(weights, config, ids)
    logits = torch.einsum("btd,vd->btv", hidden, weights["embed_tokens.weight"])
    torch.testing.assert_close(model(ids).logits.double(), logits, rtol=1e-4, atol=1e-4)
    stack = model.model(ids).last_hidden_state
    torch.testing.assert_close(stack.double(), hidden, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_unit_norm_output_is_the_reference_s_too() -> None:
    config = UnspokenConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        attention_size=24,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        l2_output=True,
    )
    model = UnspokenModel._from_config(config, attn_implementation="eager")
    enliven(model, "unspoken")
    model.eval()
    weights = {name: weight.double() for name, weight in model.state_dict().items()}
    hidden = reference_hidden(weights, config, prompts())
    torch.testing.assert_close(model(prompts()).last_hidden_state.double(), hidden, rtol=1e-4, atol=1e-5)
