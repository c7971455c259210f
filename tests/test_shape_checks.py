"""The checker itself: a suite that relies on runtime shape checks must see them fail."""

from __future__ import annotations

import ast
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


def _late_names(tree: ast.Module) -> set[str]:
    """Names that are imported for type checkers alone."""
    guarded = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imported = [node for block in guarded for node in ast.walk(block) if isinstance(node, ast.ImportFrom | ast.Import)]
    return {alias.asname or alias.name for node in imported for alias in node.names}


def test_what_annotates_shapes_is_known_where_they_are_checked() -> None:
    """An annotation whose names are known to type checkers alone is not checked when the program runs."""
    source, unchecked, late_files = Path(__file__).parent.parent / "src" / "unspoken", [], 0
    for path in source.rglob("*.py"):
        tree = ast.parse(path.read_text())
        late = _late_names(tree)
        late_files += bool(late)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                annotations = [argument.annotation for argument in ast.walk(node.args) if isinstance(argument, ast.arg)]
                asked = [*annotations, node.returns]
                names = {part.id for each in asked if each for part in ast.walk(each) if isinstance(part, ast.Name)}
                if names & {"Float", "Int", "Bool"} and names & late:
                    unchecked.append(f"{path.name}:{node.name}")
    assert late_files >= 10
    assert unchecked == []
