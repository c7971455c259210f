"""Both sides of the bounds of recipes, and what is refused beyond them."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from settings_checks import check_ranges
from tiny_recipe import tiny_recipe

from unspoken.methods.coupled.stages import NextToken
from unspoken.training import yaml_text
from unspoken.training.own_data import _spread
from unspoken.training.parts import LoRA, Optimizer, StackShape, TalkerShape
from unspoken.training.recipe import Evaluation, Stage, apply_overrides, parse
from unspoken.training.resolve import widest
from unspoken.training.settings import SettingsError, nearest, read


def test_batches_are_cut_into_equal_parts() -> None:
    stage = partial(Stage, name="one", objective=NextToken(), steps=1, batch_size=6)
    check_ranges(stage, {"accumulate": ([1, 2, 3, 6], [0, 4, 5, 7, 12])})


def test_an_early_end_needs_steps_and_a_constant_rate() -> None:
    early = partial(Stage, name="one", objective=NextToken(), stop_at=0.5)
    assert early(steps=1, optimizer=Optimizer(schedule="constant")).stop_at == 0.5
    for wrong in ({"steps": 1}, {"steps_of": ("two",), "optimizer": Optimizer(schedule="constant")}):
        with pytest.raises(ValueError, match=r"needs steps and optimizer\.schedule constant"):
            early(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("threads", "fits"), [(1, True), (1024, True), (0, False), (1025, False)])
def test_threads(threads: int, fits: bool) -> None:
    if fits:
        assert tiny_recipe(f"threads={threads}").threads == threads
    else:
        with pytest.raises(ValueError, match=f"threads is {threads}; it must be at least 1 and at most 1024"):
            tiny_recipe(f"threads={threads}")


@pytest.mark.parametrize("name", ["a", "a.b-c_1", "9"])
def test_names_that_are_folders(name: str) -> None:
    assert tiny_recipe(f"name='{name}'").name == name


@pytest.mark.parametrize(
    ("number", "fits"), [(10**9, True), (10**9 + 1, False), (-(10**9) - 1, False), (True, False), (1.0, False)]
)
def test_whole_numbers_have_nine_digits(number: Any, fits: bool) -> None:
    values = {"problems": number}
    if fits:
        assert read(Evaluation, values).problems == number
    else:
        with pytest.raises(SettingsError, match="problems is"):
            read(Evaluation, values)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        ("1e-3", 0.001),
        ("+2.5E+2", 250.0),
        ("-1.e1", -10.0),
        ("2", None),
        ("1e", None),
        (True, None),
        (float("inf"), None),
    ],
)
def test_numbers(value: Any, number: float | None) -> None:
    if number is None:
        with pytest.raises(SettingsError, match=r"clip is .*; it must be a number"):
            read(Optimizer, {"clip": value})
    elif number > 0:
        assert read(Optimizer, {"clip": value}).clip == number
    else:
        with pytest.raises(SettingsError, match="clip must be positive"):
            read(Optimizer, {"clip": value})


def test_a_hint_is_one_word_that_is_close_or_all_of_them() -> None:
    known = ["steps", "stages", "threads"]
    assert nearest("stepz", known) == "did you mean 'steps'?"
    # Half of the letters agree, and then fewer.
    assert nearest("abcd", ["abxy", "zzzz"]) == "did you mean 'abxy'?"
    assert nearest("abcd", ["axyz", "zzzz"]) == "choose from axyz, zzzz"
    assert nearest("abcd", []) == "there is nothing to choose from"


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("summary: " + "x" * (2**17 - 9), True),
        ("summary: " + "x" * (2**17 - 8), False),
        ("a: " + "[" * 200 + "]" * 200, True),
        ("a: " + "[" * 201 + "]" * 201, False),
        ("a: [" + "[]," * 99 + "[" * 200 + "]" * 201, False),
        ("a: [" + "{}," * 99 + "[" * 199 + "]" * 200, True),
        ("a: [" + "{}," * 99 + "[" * 200 + "]" * 201, False),
        ("a: " + "{b: " * 200 + "c" + "}" * 200, True),
        ("a:\n" + " " * 200 + "b: 1", True),
        ("a:\n" + " " * 201 + "b: 1", False),
    ],
)
def test_texts_are_neither_long_nor_deep(text: str, fits: bool) -> None:
    """Those that fit are refused for a key of theirs instead."""
    with pytest.raises(SettingsError) as refusal:
        parse(text, "here")
    assert ("is missing" in str(refusal.value) or "not a known key" in str(refusal.value)) is fits


def test_aliases_count_each_time_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    # One mapping, two keys, a list of five and one of six such lists: 1 + 2 + 6 + (1 + 6 * 6) entries.
    text = "a: &r [1,1,1,1,1]\nb: [*r,*r,*r,*r,*r,*r]"
    for largest, message in ((46, "is not a known key"), (45, "expanding its YAML aliases gives more than 45 entries")):
        monkeypatch.setattr(yaml_text, "_LARGEST", largest)
        with pytest.raises(SettingsError, match=message):
            parse(text, "here")


@pytest.mark.parametrize(
    ("text", "lines"),
    [("name: a\nsize: tiny\nname: b", (1, 3)), ("stages:\n  - name: a\n    steps: 1\n    steps: 2", (3, 4))],
)
def test_a_key_that_stands_twice(text: str, lines: tuple[int, int]) -> None:
    with pytest.raises(SettingsError, match=rf"stands twice \(lines {lines[0]} and {lines[1]}\)"):
        parse(text, "here")


def test_the_line_of_what_is_not_yaml() -> None:
    with pytest.raises(SettingsError, match="not YAML at line 2"):
        parse("name: a\nsize: [tiny}\nsummary: b", "here")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.3.steps=1", "there is no entry '3'"),
        ("stages.-1.steps=1", "there is no entry '-1'"),
        ("name.first=1", "the parent of 'first' is a plain value, so 'first' cannot be set"),
        ("name.first.second=1", "the parent of 'first' is a plain value, so 'first' cannot be set"),
        ("=1", "not of the form key=value"),
        ("name", "not of the form key=value"),
    ],
)
def test_overrides_that_reach_nothing(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        tiny_recipe(override)


def test_overrides_by_position() -> None:
    assert tiny_recipe("stages.0.steps=9").steps(tiny_recipe("stages.0.steps=9").stages[0]) == 9
    assert tiny_recipe("stages.2.steps=9").stages[2].steps == 9
    # An entry that is a number is addressed by its position, not by its value, and equal entries are told apart.
    for override, expected in (("swaps.2=5", [2, 3, 5]), ("swaps.1=2", [2, 2, 4]), ("swaps.0=4", [4, 3, 4])):
        values: dict[str, Any] = {"swaps": [2, 3, 4]}
        apply_overrides(values, "it", [override])
        assert values["swaps"] == expected
    with pytest.raises(SettingsError, match="there is no entry ''"):
        apply_overrides({"swaps": [2, 3, 4]}, "it", ["swaps.=5"])
    twice: dict[str, Any] = {"betas": [0.9, 0.9]}
    apply_overrides(twice, "it", ["betas.1=0.95"])
    assert twice["betas"] == [0.9, 0.95]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("stages.sst.batch_size=4", "stages.sst.steps=null", "stages.sst.steps_of=[pretrain]"),
            "batch_size is 4, but 'pretrain' has 8",
        ),
        (("stages.pretrain.start=sst",), "refers to 'sst', but it can refer only to stages listed before it"),
        (("stages.pretrain.start=pretrain",), "refers to 'pretrain', but it can refer only to stages listed before it"),
        (("stages.sst.name=pretrain",), r"stages\[1\] \(pretrain\): there is already a stage of that name"),
        (("stages=[]",), "stages is empty"),
    ],
)
def test_stages_refer_to_earlier_ones(changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        tiny_recipe(*changes)


def test_shapes_that_hold_together() -> None:
    blocks: dict[str, Any] = {"attention_size": 8, "intermediate_size": 8, "layers": 1, "heads": 2}
    shape = partial(StackShape, **{**blocks, "hidden_size": 8})
    assert (shape().unit_embeddings, shape().initializer_range) == (True, 0.02)
    config = shape(layers=3).config(vocab_size=11, positions=7)
    assert (config.vocab_size, config.max_position_embeddings, config.num_hidden_layers) == (11, 7, 3)
    assert (config.hidden_size, config.attention_size, config.num_attention_heads) == (8, 8, 2)
    assert TalkerShape(**blocks).stack(hidden_size=5).hidden_size == 5
    for wrong in ({"variant": "mono", "encoder_layers": 1}, {"variant": "dual", "causal": False}):
        with pytest.raises(ValueError, match=r"mono Talker has no encoder|always causal"):
            TalkerShape(**{**blocks, **wrong})
    TalkerShape(**blocks, variant="mono", causal=False)
    with pytest.raises(ValueError, match="learning rates must be positive"):
        Optimizer(lr=0.1, lr_rest=0)
    assert Optimizer(name="muon", lr=0.5).lr == 0.5
    assert (LoRA().rank, LoRA().dropout, LoRA().table) == (64, 0.1, False)


def test_overrides_of_every_stage() -> None:
    stages = [{"name": "cot", "steps": 3, "lora": None}, {"name": "labels"}]
    assert _spread("steps=5", stages, "cot") == ["stages.cot.steps=5"]
    assert _spread("optimizer.lr=1", [{"name": "a", "optimizer": {}}], "cot") == ["stages.a.optimizer.lr=1"]
    assert _spread("lora=null", stages, "cot") == ["stages.cot.lora=null"]
    for whole in ("name=other", "task.train=x", "unknown=1"):
        assert _spread(whole, stages, "cot") == [whole]


def test_the_widest_row_of_a_batch() -> None:
    rows = SimpleNamespace(ids=torch.zeros(2, 9))
    batch = {
        "input_ids": torch.zeros(2, 5),
        "decoder": rows,
        "mask": torch.zeros(2, 2, 30),
        "count": torch.zeros(40),
        "n": 3,
    }
    assert widest(batch) == 9
    assert widest({"input_ids": torch.zeros(2, 5)}) == 5
    assert widest({"count": torch.zeros(40), "n": 3}) == 0
