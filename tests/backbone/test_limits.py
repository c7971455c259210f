"""How much larger than its weights a configuration may be before memory would run out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unspoken.architecture import MOST_LAYERS
from unspoken.backbone.loading import _downloads, _refuse_counts, _refuse_giants, _refuse_infinite
from unspoken.storage import FolderError


def held(folder: Path, *sizes: int) -> list[Path]:
    """A file for each size, that holds one tensor of it."""
    files = []
    for number, size in enumerate(sizes):
        files.append(folder / f"{number}.safetensors")
        save_file({"weight": torch.zeros(size)}, files[-1])
    return files


def described(make: Any) -> Any:
    """What stands for an auto class that builds a model."""
    return SimpleNamespace(from_config=lambda _config, **_: make())


def matrices(count: int, size: int = 1) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(size, 1, bias=False) for _ in range(count))


@pytest.mark.parametrize(("quantised", "factor"), [(False, 4), (True, 32)])
def test_a_model_may_have_four_times_the_weights_or_as_many_as_are_packed(
    quantised: bool, factor: int, tmp_path: Path
) -> None:
    config: Any = SimpleNamespace(**({"quantization_config": {}} if quantised else {}))
    files = held(tmp_path, 7, 3)
    _refuse_giants(files, described(lambda: matrices(1, 10 * factor)), config)
    with pytest.raises(FolderError, match=rf"config.json describes a model of {10 * factor + 1} weights .* are 10; r"):
        _refuse_giants(files, described(lambda: matrices(1, 10 * factor + 1)), config)


def test_a_model_may_have_a_thousand_tensors_and_four_for_each_that_is_there(tmp_path: Path) -> None:
    files = held(tmp_path, 5000, 1)
    _refuse_giants(files, described(lambda: matrices(1008)), SimpleNamespace())
    with pytest.raises(FolderError, match="describes a model of 1009 weights or more"):
        _refuse_giants(files, described(lambda: matrices(1009)), SimpleNamespace())


def test_buffers_have_a_bound_of_their_own(tmp_path: Path) -> None:
    def buffered(*sizes: int) -> nn.Module:
        module = nn.Module()
        for number, size in enumerate(sizes):
            module.register_buffer(f"b{number}", torch.empty(size))
        return module

    files = held(tmp_path, 1)
    _refuse_giants(files, described(lambda: buffered(2**30, 2**30)), SimpleNamespace())
    with pytest.raises(FolderError, match="describes a model"):
        _refuse_giants(files, described(lambda: buffered(2**31, 1)), SimpleNamespace())
    # What is built later is not counted, and a file that is not there yet cannot be.
    matrices(3000)
    _refuse_giants([tmp_path / "later"], described(lambda: matrices(1, 10**6)), SimpleNamespace())


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "depth", "num_attention_heads", "num_experts"])
def test_counts_end_at_the_most_layers_that_any_model_has(key: str) -> None:
    for settings in ({key: MOST_LAYERS}, {"text_config": {key: MOST_LAYERS}}, {key: [1, MOST_LAYERS]}):
        _refuse_counts(Path("config.json"), settings)
    more = MOST_LAYERS + 1
    for wrong in ({key: more}, {"text_config": {key: more}}, {key: [1, more]}, {"parts": [{key: more}]}):
        with pytest.raises(FolderError, match=f"config.json: {key} is {more}, and no model has more than"):
            _refuse_counts(Path("config.json"), wrong)
    with pytest.raises(FolderError, match="is nan"):
        _refuse_counts(Path("config.json"), {key: float("nan")})
    _refuse_counts(Path("config.json"), {"vocab_size": 10**9, "name": "many layers"})


def test_kernels_off_the_hub_are_those_named_as_an_implementation() -> None:
    settings = {
        "_name_or_path": "someone/model",
        "attn_implementation": "someone/kernel",
        "experts_implementation": ["eager", {"deep": "other/kernel"}],
        "text_config": {"_attn_implementation": "sdpa", "tokenizer": "a/b"},
    }
    assert list(_downloads(settings)) == ["someone/kernel", "other/kernel"]
    assert list(_downloads({"name": ["a/b"], "attn_implementation": None})) == []


@pytest.mark.parametrize(
    ("weight", "refused"),
    [
        (torch.tensor([6e4, 6e4], dtype=torch.float16), False),  # of which the sum is beyond the type
        (torch.tensor([1.0, float("inf")]), True),
        (torch.tensor([float("inf"), -float("inf")]), True),
        (torch.tensor([float("nan"), 1.0], dtype=torch.bfloat16), True),
        (torch.tensor([float("nan")]).to(torch.float8_e4m3fn), False),  # of one byte, as quantised models have
        (torch.tensor([1, 2]), False),
        (torch.empty(3, device="meta"), False),
    ],
)
def test_weights_are_finite(weight: torch.Tensor, refused: bool) -> None:
    model: Any = SimpleNamespace(state_dict=lambda: {"fine": torch.ones(2), "table": weight})
    if refused:
        with pytest.raises(FolderError, match=r"^folder: table holds values that are not finite"):
            _refuse_infinite("folder", model)
    else:
        _refuse_infinite("folder", model)
