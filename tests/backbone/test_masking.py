"""Masks that are made without a look at their values are the library's own."""

from __future__ import annotations

import pytest
import torch
from conformance import left_padded
from tiny_models import FAMILIES, prompts, tiny_language_model
from transformers import PreTrainedModel, masking_utils

from unspoken.backbone.masking import masks_unread


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_the_same_with_masks_that_are_not_read(family: str, attention: str) -> None:
    model = tiny_language_model(family, attention)
    ids, mask = left_padded([row[start:] for row, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)])
    for given in (mask, torch.ones_like(mask), None):
        expected = model(ids, attention_mask=given).logits
        with masks_unread():
            found = model(ids, attention_mask=given).logits
        real = torch.ones_like(mask).bool() if given is None else given.bool()
        torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_mask_of_ones_is_made_into_a_mask_and_none_stays_none() -> None:
    masks = []
    for attention in ("sdpa", "eager"):
        model = tiny_language_model("llama", attention)
        model.base_model.layers[0].self_attn.register_forward_pre_hook(
            lambda _module, _args, how: masks.append(how["attention_mask"]), with_kwargs=True
        )
        ones = torch.ones_like(prompts())
        model(prompts(), attention_mask=ones)
        with masks_unread():
            model(prompts(), attention_mask=ones)
            model(prompts())
    dropped, made, without, *eager = masks
    # By itself the library drops it, for which it has to read it.
    assert dropped is None and without is None
    assert made[0, 0].tolist() == torch.ones(5, 5).tril().bool().tolist()
    assert [mask is None for mask in eager] == [False] * 3


def test_the_library_is_left_as_it_was() -> None:
    def state() -> list[object]:
        functions = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
        return [
            masking_utils.find_packed_sequence_indices,
            PreTrainedModel.warn_if_padding_and_no_attention_mask,
            functions["sdpa"],
            functions["eager"],
        ]

    before = state()
    with masks_unread():
        assert all(one is not other for one, other in zip(state(), before, strict=True))
    assert state() == before
    with pytest.raises(KeyError), masks_unread():
        raise KeyError
    assert state() == before


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_mask_of_ones_stays_one_where_tokens_see_what_comes_later(attention: str) -> None:
    masks = []
    model = tiny_language_model("unspoken", attention, is_causal=False)
    model.base_model.layers[0].attention.register_forward_pre_hook(
        lambda _module, _args, how: masks.append(how["attention_mask"]), with_kwargs=True
    )
    with masks_unread():
        model(prompts(), attention_mask=torch.ones_like(prompts()))
    (mask,) = masks
    assert mask[0, 0].tolist() == (torch.ones(5, 5).bool() if attention == "sdpa" else torch.zeros(5, 5)).tolist()
