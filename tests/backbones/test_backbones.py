"""Around every architecture, every method is right, or refused in one line that names the property it needs."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from architectures import ARCHITECTURES
from hub import Hub
from outcomes import METHODS, outcome, outcomes

from unspoken.backbone import checks

RESULTS = Path(__file__).parents[2] / "results" / "backbones.json"
# Together these have every property that the library asks for, and lack every one.
QUICK = (
    *("llama", "gpt2", "gemma3_text", "cohere2", "phi", "mpt", "gpt_oss", "opt_proj", "ctrl", "bert_encoder"),
    *("bert_decoder", "mamba2", "qwen3_5_text", "falcon_h1_mult", "gemma4_text", "llama4_text", "recurrent_gemma"),
)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What docs/backbones.md is made of."""
    content: dict[str, Any] = json.loads(RESULTS.read_text())
    return content


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_every_method_is_right_or_refused_as_the_page_has_it(name: str, page: dict[str, Any], tmp_path: Path) -> None:
    found = outcomes(name, tmp_path)
    assert {method: outcome.detail for method, outcome in found.items() if not outcome.fine} == {}
    if page["versions"]["transformers"] == version("transformers"):
        written = page["architectures"][name]["methods"]
        verdicts = {method: outcome.verdict for method, outcome in found.items()}
        assert verdicts == {method: row["verdict"] for method, row in written.items()}, "write the results again"


def test_the_page_has_every_architecture_and_method(page: dict[str, Any]) -> None:
    assert list(page["architectures"]) == list(ARCHITECTURES)
    for row in page["architectures"].values():
        assert list(row["methods"]) == list(METHODS)


def test_the_quick_ones_lack_every_property_that_any_lacks(page: dict[str, Any]) -> None:
    lacking = {
        name: {cell["missing"] for cell in row["methods"].values()} for name, row in page["architectures"].items()
    }
    assert set().union(*(lacking[name] for name in QUICK)) == set().union(*lacking.values())


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("bert_encoder", "superposition"),
        ("gemma3n_text", "explicit chain"),
        ("mpt", "Latent-SFT, stage 1"),
        ("qwen3_5_text", "Latent-SFT, stage 1"),
        ("qwen3_5_text", "Coconut"),
    ],
)
def test_without_the_question_the_sweep_finds_what_is_wrong(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The refusals are needed, and the comparisons can fail.
    monkeypatch.setattr(checks, "missing", lambda _model: {})
    assert not outcome(method, Hub.of(name, tmp_path)).fine
