"""Damaged and hostile folders, backbones, runs and results: each ends in one line, soon, before much is allocated."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import StopAt
from folder_damage import LETTERS
from hostile import SPOILED, VALUES, altered, leaves, surprises
from tiny_models import tiny_language_model
from tiny_recipe import one_stage, quiet_stage, quiet_train

from unspoken.backbone.folder import MANIFEST, write_manifest
from unspoken.backbone.loading import load_pretrained, load_tokenizer
from unspoken.evaluation.results import read_results
from unspoken.experiment import measure_run, open_run
from unspoken.methods.loading import load_system
from unspoken.report.page import render
from unspoken.runs import open_system
from unspoken.storage import write_json
from unspoken.tasks.tokenizing import by_character

RESULTS = Path(__file__).parent.parent / "results"
Cases = Iterator[tuple[str, Callable[[], Any]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as the hub has it."""
    path = tmp_path_factory.mktemp("hostile") / "model"
    tiny_language_model("llama").save_pretrained(path)
    by_character(["[PAD]", "[EOS]", *LETTERS]).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one finished stage that was measured."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("hostile") / "run"
    recipe = one_stage()
    measure_run(recipe, quiet_train(recipe, output), command="", log=lambda _: None)
    return output


def load(folder: Path) -> None:
    """As every command does."""
    load_system(folder, name="hostile").answer("a", max_tokens=2)


def in_copies(original: Path, target: Path, changes: Iterator[tuple[str, Callable[[Path], Any]]], act: Any) -> Cases:
    """What is done with a copy of a folder after a change in it."""
    for name, change in changes:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(original, target)
        change(target)
        yield name, lambda: act(target)


def every_file_spoiled(original: Path) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Every file in every way."""
    for file in sorted(path.relative_to(original) for path in original.rglob("*") if path.is_file()):
        for how, spoil in SPOILED.items():
            yield f"{file} {how}", lambda folder, file=file, spoil=spoil: spoil(folder / file)


def values_replaced(file: Path, sample: int, seed: int = 0) -> Iterator[tuple[str, Any]]:
    """Contents of a JSON file in which one value is left out or another: some of them, drawn by a seed."""
    content = json.loads(file.read_text())
    cases = [(path, value) for path in leaves(content) for value in (..., *VALUES)]
    for path, value in random.Random(seed).sample(cases, min(sample, len(cases))):
        yield f"{file.name} {'.'.join(map(str, path))} = {str(value)[:40]}", altered(content, path, value)


def rewritten(original: Path, name: str, sample: int) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """One JSON file of a folder with one value replaced."""
    for case, content in values_replaced(original / name, sample):
        yield case, lambda folder, content=content: (folder / name).write_text(json.dumps(content))


# --- folders of models -----------------------------------------------------------------------------------------------


def test_every_file_of_a_model_spoiled_in_every_way(model: Path, tmp_path: Path) -> None:
    assert not surprises(in_copies(model, tmp_path / "copy", every_file_spoiled(model), load))


CONFIGURATIONS = ("config.json", "generation_config.json", "tokenizer_config.json")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_some_values_of_a_configuration_replaced(name: str, model: Path, tmp_path: Path) -> None:
    assert not surprises(in_copies(model, tmp_path / "copy", rewritten(model, name, 60), load))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONFIGURATIONS, "tokenizer.json"])
def test_many_values_of_a_configuration_replaced(name: str, model: Path, tmp_path: Path) -> None:
    assert not surprises(in_copies(model, tmp_path / "copy", rewritten(model, name, 200), load))


SIZES = [
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "max_position_embeddings", "num_labels", "n_positions", "n_layer", "n_embd", "n_inner"),
    *("num_experts", "num_local_experts", "sliding_window", "layer_types", "first_k_dense_replace", "n_routed_experts"),
]


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "unspoken", "mixtral", "mamba", "gemma3_text", "jepa_reasoner", "codi"]
)
def test_sizes_beyond_any_machine_are_refused_before_anything_is_allocated(
    family: str, model: Path, tmp_path: Path
) -> None:
    config = json.loads((model / "config.json").read_text())
    inner = {**config, "model_type": "llama"}
    base = {**config, "model_type": family, "backbone_config": inner, "base_config": inner}
    base.pop("architectures")

    def changes() -> Iterator[tuple[str, Callable[[Path], Any]]]:
        for key in SIZES:
            for size in (10**5, 10**9, 10**12):
                content = altered(base, (key,), size)
                nested = altered(base, ("backbone_config", key), size)
                nested["base_config"] = nested["backbone_config"]
                for where, one in (("", content), ("inside ", nested)):
                    yield f"{where}{key} = {size}", lambda folder, one=one: write_json(folder / "config.json", one)
        for quantised in (
            {"quant_method": "fp8"},
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {"quant_method": "unheard"},
        ):
            content = {**base, "quantization_config": quantised, "vocab_size": 10**12}
            yield f"{quantised}", lambda folder, content=content: write_json(folder / "config.json", content)

    assert not surprises(in_copies(model, tmp_path / "copy", changes(), load_pretrained))


TEMPLATES = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a loop inside itself": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "doubling": "{% set x = namespace(a='ab') %}{% for i in range(99) %}{% set x.a = x.a ~ x.a %}{% endfor %}",
    "a long text": "{{ 'a' * 10000000000 }}",
    "a power": "{{ 9 ** 9 ** 9 }}",
    "a long list": "{{ ([1] * 99999999999) | length }}",
    "no template": "{% for %}",
    "an unknown name": "{{ nobody.home }}",
    "a division": "{{ 1 / 0 }}",
    "a wrong type": "{{ 'a' + 1 }}",
    "an attribute": "{{ ''.__class__.__mro__ }}",
    "a file": "{% include '/etc/passwd' %}",
    "an own error": "{{ raise_exception('line one\\nline two') }}",
    "no question": "hello",
    "deep": "{% if 1 %}" * 500 + "{% endif %}" * 500,
}


def test_a_chat_template_is_rendered_within_limits(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unspoken.tasks.chat_template.SECONDS", 0.5)
    monkeypatch.setattr("unspoken.tasks.chat_template.GIBIBYTES", 0.25)

    def changes() -> Iterator[tuple[str, Callable[[Path], Any]]]:
        for name, template in TEMPLATES.items():
            yield name, lambda folder, template=template: (folder / "chat_template.jinja").write_text(template)

    def refused(folder: Path) -> None:
        with pytest.raises(ValueError, match="chat template"):
            load(folder)

    assert not surprises(in_copies(model, tmp_path / "copy", changes(), refused))


def test_shards_lead_nowhere_else(model: Path, tmp_path: Path) -> None:
    names: list[Any] = [
        "../model/model.safetensors",
        "/etc/passwd",
        "/dev/zero",
        "",
        ".",
        "a/../b",
        3,
        None,
        ["x"],
        "x" * 9000,
    ]
    (tmp_path / "pipe").mkdir()

    def changes() -> Iterator[tuple[str, Callable[[Path], Any]]]:
        for name in names:
            content = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
            yield (
                f"{name}"[:40],
                lambda folder, content=content: (
                    (folder / "model.safetensors").unlink(),
                    write_json(folder / "model.safetensors.index.json", content),
                ),
            )

    assert not surprises(in_copies(model, tmp_path / "copy", changes(), load))


# --- folders of runs -------------------------------------------------------------------------------------------------


def test_every_file_of_a_run_spoiled_in_every_way(run: Path, tmp_path: Path) -> None:
    def use(folder: Path) -> None:
        open_run(folder)
        open_system(folder, device="cpu")

    assert not surprises(in_copies(run, tmp_path / "copy", every_file_spoiled(run), use))


@pytest.mark.parametrize("sample", [80, pytest.param(200, marks=pytest.mark.slow)])
def test_a_manifest_with_one_value_replaced(sample: int, run: Path, tmp_path: Path) -> None:
    name = f"seed-0/pretrain/model/{MANIFEST}"
    content = json.loads((run / name).read_text())
    del content["digest"]  # as in folders of older versions
    (tmp_path / MANIFEST).write_text(json.dumps(content))

    def changes() -> Iterator[tuple[str, Callable[[Path], Any]]]:
        for case, changed in values_replaced(tmp_path / MANIFEST, sample):
            yield case, lambda folder, changed=changed: (folder / name).write_text(json.dumps(changed))

    def use(folder: Path) -> None:
        open_system(folder / "seed-0" / "pretrain" / "model", device="cpu")
        quiet_stage(one_stage(), folder)

    assert not surprises(in_copies(run, tmp_path / "copy", changes(), use))


@pytest.mark.parametrize("sample", [30, pytest.param(150, marks=pytest.mark.slow)])
def test_results_with_one_value_replaced(sample: int, run: Path, tmp_path: Path) -> None:
    def cases() -> Cases:
        for original in (run / "results.json", RESULTS / "tree-search-tiny.json"):
            for case, content in values_replaced(original, sample):
                (tmp_path / "results.json").write_text(json.dumps(content))
                yield f"{original.name}: {case}", lambda: render([read_results(tmp_path / "results.json")])

    assert not surprises(cases())


def test_every_file_of_a_checkpoint_spoiled_and_signed_again(run: Path, tmp_path: Path) -> None:
    recipe = one_stage()
    with pytest.raises(KeyboardInterrupt):
        quiet_stage(recipe, tmp_path / "stopped", StopAt("step_end", 3))
    name = Path("seed-0/pretrain/checkpoint-2")

    def changes() -> Iterator[tuple[str, Callable[[Path], Any]]]:
        for file in sorted((tmp_path / "stopped" / name).iterdir()):
            for how in ("truncated", "no keys", "missing") if file.name != MANIFEST else ():

                def spoiled(folder: Path, file: Path = file, how: str = how) -> None:
                    SPOILED[how](folder / name / file.name)
                    write_manifest(folder / name, {"step": 2})

                yield f"{file.name} {how}", spoiled

    assert not surprises(
        in_copies(tmp_path / "stopped", tmp_path / "copy", changes(), lambda folder: quiet_stage(recipe, folder))
    )


def test_a_tokenizer_alone_is_read_within_limits_too(model: Path, tmp_path: Path) -> None:
    assert not surprises(in_copies(model, tmp_path / "copy", rewritten(model, "tokenizer.json", 60), load_tokenizer))
