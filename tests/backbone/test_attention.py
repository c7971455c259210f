"""Masks of our own, and what layers with a window make of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_hub import SLIDING, tiny_hub_model, tokens
from torch import Tensor

from unspoken.backbone.attention import attention_mask

WINDOWED: list[tuple[str, dict[str, Any]]] = [
    ("mistral", {"sliding_window": 6}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 6}),
    ("gemma3_text", SLIDING),
    ("gpt_oss", SLIDING),
    ("olmo3", SLIDING),
    ("modernbert-decoder", {"local_attention": 6, **SLIDING}),
]


def causal(_b: Tensor, _h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
    return kv <= q


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("kind", "settings"), [("llama", {}), *WINDOWED])
def test_a_causal_mask_of_our_own_changes_nothing(kind: str, settings: dict[str, Any], attention: str) -> None:
    if (kind, attention) == ("gpt_oss", "sdpa"):
        pytest.skip("the library has no such attention for it")
    model = tiny_hub_model(kind, attention, **settings)
    ids = tokens(2, 14)
    positions = torch.arange(14).expand(2, -1)
    own = model(ids, attention_mask=attention_mask(causal, positions, model), position_ids=positions, use_cache=False)
    torch.testing.assert_close(own.logits, model(ids, use_cache=False).logits, rtol=1e-4, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "settings"), WINDOWED)
def test_a_window_counts_positions(kind: str, settings: dict[str, Any]) -> None:
    # Four tokens in the middle are seen by none of the others, and take up no positions.
    model = tiny_hub_model(kind, **settings)
    ids, position = tokens(1, 16), torch.arange(16)
    aside = (position >= 5) & (position < 9)
    positions = torch.where(position < 9, position, position - 4)[None]
    mask = attention_mask(lambda _b, _h, q, kv: (kv <= q) & (~aside[kv] | aside[q]), positions, model)
    outputs = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, ~aside]
    torch.testing.assert_close(outputs, model(ids[:, ~aside], use_cache=False).logits, rtol=1e-4, atol=2e-5)


def test_layers_of_several_kinds_get_a_mask_each() -> None:
    positions = torch.arange(12)[None]
    masks = attention_mask(causal, positions, tiny_hub_model("gemma3_text", "sdpa", **SLIDING))
    assert isinstance(masks, dict)
    full, sliding = masks["full_attention"], masks["sliding_attention"]
    assert isinstance(full, Tensor)
    assert isinstance(sliding, Tensor)
    assert full[0, 0].sum(dim=-1).tolist() == list(range(1, 13))
    assert sliding[0, 0].sum(dim=-1).tolist() == [min(count, 6) for count in range(1, 13)]
    assert isinstance(attention_mask(causal, positions, tiny_hub_model("llama", "sdpa")), Tensor)


def test_a_mask_is_the_same_for_all_heads() -> None:
    positions = torch.arange(3).expand(2, -1)
    mask = attention_mask(
        lambda b, h, q, kv: (kv <= q) & (h == 0) & (b == 1), positions, tiny_hub_model("llama", "sdpa")
    )
    assert isinstance(mask, Tensor)
    assert mask.tolist() == [[[[False] * 3] * 3], [torch.ones(3, 3).tril().bool().tolist()]]


def test_other_kinds_of_attention_are_refused() -> None:
    model = tiny_hub_model("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="attention 'flash_attention_2' of LlamaForCausalLM takes no mask of our own"):
        attention_mask(causal, torch.arange(3)[None], model)
