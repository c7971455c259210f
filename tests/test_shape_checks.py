"""The checker itself: a suite that relies on runtime shape checks must see them fail."""

from __future__ import annotations

from pathlib import Path

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

    known = {"unspoken.backbone.folder.StrictLoading.from_pretrained", "unspoken.reasoning.engine.rollout"}
    assert set(shape_checks.unchecked) <= known


def test_what_annotates_shapes_imports_torch_where_they_are_checked() -> None:
    """An annotation whose names are known to type checkers alone is not checked when the program runs."""
    source = Path(__file__).parent.parent / "src" / "unspoken"
    late = [path for path in source.rglob("*.py") if "if TYPE_CHECKING:" in path.read_text()]
    assert len(late) >= 10
    assert [path.name for path in late if "from jaxtyping import" in path.read_text()] == []
