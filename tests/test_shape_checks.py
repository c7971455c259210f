"""The checker itself: a suite that relies on runtime shape checks must see them fail."""

from __future__ import annotations

import pytest
import shape_checks
import torch
from jaxtyping import TypeCheckError

from unspoken.chain import LatentChain, StopReason


def test_a_mask_that_disagrees_with_the_latents_is_caught() -> None:
    with pytest.raises(TypeCheckError):
        LatentChain(
            latents=torch.zeros(2, 3, 4),
            mask=torch.ones(2, 5, dtype=torch.bool),
            stop=torch.full((2,), int(StopReason.END)),
        )


def test_only_signatures_that_beartype_cannot_read_are_unchecked() -> None:
    # Importing the top of the house imports everything below it.
    import unspoken.training.run  # noqa: F401

    known = {"unspoken.backbone.folder.StrictLoading.from_pretrained", "unspoken.reasoning.rollout.rollout"}
    assert set(shape_checks.unchecked) <= known
