"""Every malformed recipe is refused with one line that names the key."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from unspoken.training.recipe import load, parse
from unspoken.training.settings import SettingsError

SHAPE = {"hidden_size": 16, "attention_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2}
TALKER = {"attention_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2}
SOUND: dict[str, Any] = {
    "name": "sound",
    "size": "tiny",
    "task": {"kind": "tree_search", "depth": 3},
    "backbone": SHAPE,
    "talker": TALKER,
    "stages": [
        {"name": "pretrain", "objective": {"kind": "next_token"}, "steps": 2},
        {"name": "sst", "start": "pretrain", "objective": {"kind": "sst"}, "steps": 2},
        {"name": "talker", "start": "sst", "objective": {"kind": "talker"}, "steps": 2},
        {"name": "coupled", "start": "pretrain", "objective": {"kind": "next_token"}, "steps_of": ["sst", "talker"]},
    ],
}


class Absent:
    """Stands for a key that is taken away; its name is the same in every test process."""

    def __repr__(self) -> str:
        return "absent"


GONE = Absent()

# What to write where, and the words that the message must contain.
MALFORMED: list[tuple[str, Any, tuple[str, ...]]] = [
    # keys
    ("colour", "red", ("colour is not a known key",)),
    ("sise", "tiny", ("sise", "did you mean 'size'?")),
    ("backbone.hiden_size", 16, ("backbone.hiden_size", "did you mean 'hidden_size'?")),
    ("talker.varient", "dual", ("talker.varient", "did you mean 'variant'?")),
    ("stages.1.objective.momentom", 0.9, ("stages[1].objective.momentom", "did you mean 'momentum'?")),
    ("stages.0.optimizer", {"lrate": 0.1}, ("stages[0].optimizer.lrate",)),
    ("evaluation", {"problem": 10}, ("evaluation.problem", "did you mean 'problems'?")),
    ("task.depht", 3, ("task.depht", "did you mean 'depth'?")),
    ("stages.0.objective.k", 4.0, ("stages[0].objective.k",)),
    (7, "seven", ("7 is not a known key",)),
    # missing
    ("backbone", GONE, ("backbone is missing",)),
    ("backbone.heads", GONE, ("backbone.heads is missing",)),
    ("name", GONE, ("name is missing",)),
    ("stages", GONE, ("stages is missing",)),
    ("stages.0.name", GONE, ("stages[0].name is missing",)),
    ("stages.0.objective", GONE, ("stages[0].objective is missing",)),
    ("stages.0.objective.kind", GONE, ("stages[0].objective.kind is missing",)),
    ("task.kind", GONE, ("task.kind is missing",)),
    # types
    ("backbone.layers", "two", ("backbone.layers", "'two'", "a whole number")),
    ("backbone.layers", 2.0, ("backbone.layers", "a whole number")),
    ("backbone.layers", True, ("backbone.layers", "a whole number")),
    ("stages.0.steps", True, ("stages[0].steps",)),
    ("stages.0.optimizer", {"lr": True}, ("stages[0].optimizer.lr", "a number")),
    ("stages.0.optimizer", {"lr": "fast"}, ("stages[0].optimizer.lr", "'fast'")),
    ("stages.0.optimizer", 0.02, ("stages[0].optimizer",)),
    ("stages.0.optimizer", {"betas": 0.9}, ("stages[0].optimizer.betas",)),
    ("stages.0.optimizer", {"betas": [0.9, "x"]}, ("stages[0].optimizer.betas[1]",)),
    ("activation_checkpointing", 1, ("activation_checkpointing", "true or false")),
    ("activation_checkpointing", "False", ("activation_checkpointing", "true or false")),
    ("group_by_length", "yes, please", ("group_by_length", "true or false")),
    ("name", 3, ("name", "text")),
    ("task.depth", None, ("task.depth",)),
    ("stages", {"name": "pretrain"}, ("stages",)),
    ("stages", "pretrain", ("stages",)),
    ("stages.1", "sst", ("stages[1]",)),
    ("stages.3.steps_of", "sst", ("stages[3].steps_of",)),
    ("backbone", 384, ("backbone",)),
    ("talker", [1], ("talker",)),
    ("task", "tree_search", ("task",)),
    # choices
    ("size", "huge", ("size", "'huge'")),
    ("size", True, ("size",)),
    ("precision", "fp16", ("precision", "'fp16'")),
    ("precision", ["fp32"], ("precision",)),
    ("attention", "flash", ("attention", "'flash'")),
    ("talker.variant", "duel", ("talker.variant", "did you mean 'dual'?")),
    ("stages.0.objective.positions", "anwser", ("stages[0].objective.positions", "did you mean 'answer'?")),
    ("stages.0.optimizer", {"schedule": "cosin"}, ("stages[0].optimizer.schedule", "did you mean 'cosine'?")),
    ("stages.0.optimizer", {"name": "adam"}, ("stages[0].optimizer.name", "did you mean 'adamw'?")),
    ("stages.0.objective.kind", "next_tokens", ("stages[0].objective.kind", "did you mean 'next_token'?")),
    ("stages.0.objective.kind", ["next_token"], ("stages[0].objective.kind",)),
    ("task.kind", "tree_serch", ("task.kind", "tree_search")),
    # sizes that cannot be built
    ("backbone.hidden_size", -16, ("backbone", "hidden_size")),
    ("backbone.hidden_size", 0, ("backbone", "hidden_size")),
    ("backbone.intermediate_size", -1, ("backbone", "intermediate_size")),
    ("backbone.layers", -1, ("backbone", "layers")),
    ("backbone.heads", 0, ("backbone", "heads")),
    ("backbone.heads", 3, ("backbone", "attention_size", "heads")),
    ("backbone.heads", 16, ("backbone", "attention_size", "heads")),
    ("talker.heads", 3, ("talker", "attention_size", "heads")),
    ("talker.intermediate_size", 0, ("talker", "intermediate_size")),
    ("talker", TALKER | {"variant": "dual", "encoder_layers": -1}, ("talker", "encoder_layers")),
    ("talker", TALKER | {"variant": "dual", "encoder_layers": 0}, ("talker", "encoder_layers")),
    ("talker.encoder_layers", 2, ("talker", "encoder_layers", "mono")),
    ("talker", TALKER | {"variant": "dual", "causal": False}, ("talker", "causal", "dual")),
    ("backbone.initializer_range", -0.02, ("backbone", "initializer_range")),
    ("task.depth", 5, ("task", "depth")),
    ("task.depth", 1, ("task", "depth")),
    ("task.targets", -1, ("task", "targets")),
    ("task", {"kind": "tree_search", "depth": 3, "targets": 5, "repeat_targets": False}, ("task", "targets")),
    # numbers out of range
    ("stages.0.steps", 0, ("stages[0]", "steps")),
    ("stages.0.batch_size", 0, ("stages[0]", "batch_size")),
    ("stages.0.evaluate_every", -5, ("stages[0]", "evaluate_every")),
    ("stages.1.objective.k", 0, ("stages[1].objective", "k is 0")),
    ("stages.1.objective.k", float("nan"), ("stages[1].objective", "k is nan")),
    ("stages.1.objective.momentum", 1.5, ("stages[1].objective", "momentum")),
    ("stages.1.objective.momentum", float("nan"), ("stages[1].objective", "momentum")),
    ("stages.0.optimizer", {"lr": -0.1}, ("stages[0].optimizer", "learning rate")),
    ("stages.0.optimizer", {"lr": float("nan")}, ("stages[0].optimizer", "lr")),
    ("stages.0.optimizer", {"lr": float("inf")}, ("stages[0].optimizer", "lr")),
    ("stages.0.optimizer", {"name": "adamw", "lr": 0.02}, ("stages[0].optimizer", "lr is 0.02")),
    ("stages.0.optimizer", {"lr_rest": 0}, ("stages[0].optimizer", "learning rate")),
    ("stages.0.optimizer", {"betas": [0.9]}, ("stages[0].optimizer", "betas")),
    ("stages.0.optimizer", {"betas": [0.9, 1.0]}, ("stages[0].optimizer", "betas")),
    ("stages.0.optimizer", {"clip": 0}, ("stages[0].optimizer", "clip")),
    ("stages.0.optimizer", {"warmup_steps": -1}, ("stages[0].optimizer", "warmup_steps")),
    ("group_by_length", True, ("group_by_length", "tree search offers no lengths")),
    ("threads", 0, ("threads is 0",)),
    ("threads", True, ("threads",)),
    ("evaluation", {"problems": 0}, ("evaluation", "problems")),
    ("evaluation", {"validation_problems": 0}, ("evaluation", "validation_problems")),
    # stages that do not fit together
    ("stages", [], ("stages is empty",)),
    ("stages.1.start", "pretrian", ("stages[1]", "'pretrian'", "did you mean 'pretrain'?")),
    ("stages.1.start", "talker", ("stages[1]", "'talker'", "only to stages listed before it")),
    ("stages.1.start", "sst", ("stages[1]", "'sst'", "only to stages listed before it")),
    ("stages.3.steps_of", ["sst", "tolker"], ("stages[3]", "'tolker'", "did you mean 'talker'?")),
    ("stages.3.steps_of", ["coupled"], ("stages[3]", "'coupled'", "only to stages listed before it")),
    ("stages.3.name", "talker", ("stages[3]", "already a stage")),
    ("stages.3.name", "sst", ("stages[3]", "already a stage")),
    ("stages.3.batch_size", 3, ("stages[3]", "batch_size is 3")),
    # a stage that ends early
    ("stages.0.stop_at", 0.0, ("stages[0]", "stop_at is 0.0")),
    ("stages.0.stop_at", 99, ("stages[0]", "stop_at is 99")),
    ("stages.0.stop_at", "soon", ("stages[0].stop_at", "a number or null")),
    ("stages.0.stop_at", 0.9, ("stages[0]", "optimizer.schedule constant")),
    ("stages.3.stop_at", 0.9, ("stages[3]", "needs steps")),
    # several questions about a tree
    ("stages.0.objective.questions", 0, ("stages[0].objective", "questions is 0")),
    ("stages.0.objective.questions", 2.0, ("stages[0].objective.questions", "a whole number")),
    ("stages.0.objective.questions", 5, ("stages[0]", "questions is 5", "at most 4")),
    ("stages.1.objective.questions", 2, ("stages[1].objective.questions is not a known key",)),
    ("stages.3.objective.questions", 2, ("stages[3]", "2 questions", "'sst' 1", "objective.questions")),
    ("stages.0.name", "pre train", ("stages[0]", "name")),
    ("stages.0.name", "../elsewhere", ("stages[0]", "name")),
    ("stages.0.steps_of", ["sst"], ("stages[0]", "steps and steps_of")),
    ("stages.0.steps", GONE, ("stages[0]", "steps and steps_of")),
    ("stages.2.start", "pretrain", ("stages[2]", "talker", "starts from sst")),
    ("stages.2.start", None, ("stages[2]", "talker", "starts from sst")),
    ("stages.3.start", "sst", ("stages[3]", "next_token", "starts from")),
    ("stages.3.start", "talker", ("stages[3]", "next_token", "starts from")),
    ("talker", None, ("stages[2]", "neither it nor the recipe has a 'talker' shape")),
]


def altered(path: Any, value: Any) -> str:
    """The sound recipe as YAML, with one value replaced or removed."""
    recipe = copy.deepcopy(SOUND)
    *parents, last = path.split(".") if isinstance(path, str) else [path]
    here: Any = recipe
    for piece in parents:
        here = here[int(piece)] if isinstance(here, list) else here[piece]
    last = int(last) if isinstance(here, list) else last
    if value is GONE:
        del here[last]
    else:
        here[last] = value
    return yaml.safe_dump(recipe, sort_keys=False)


def refusal(text: str, *overrides: str, origin: str = "here") -> str:
    """The message with which a recipe is refused; it is one line."""
    with pytest.raises(SettingsError) as caught:
        parse(text, origin, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{origin}: ")
    return message


def test_the_recipe_that_the_cases_alter_is_sound() -> None:
    assert [stage.name for stage in parse(yaml.safe_dump(SOUND), "here").stages] == [
        "pretrain",
        "sst",
        "talker",
        "coupled",
    ]


@pytest.mark.parametrize(
    ("path", "value", "words"), MALFORMED, ids=[f"{case[0]}={case[1]!r}"[:60] for case in MALFORMED]
)
def test_a_malformed_recipe_is_refused_in_one_line_that_names_the_key(
    path: Any, value: Any, words: tuple[str, ...]
) -> None:
    message = refusal(altered(path, value))
    for word in words:
        assert word in message


@pytest.mark.parametrize("text", ["", "just text", "- 1\n- 2\n", "42", "null"])
def test_a_file_that_holds_no_mapping_is_refused(text: str) -> None:
    assert "must be a mapping" in refusal(text)


@pytest.mark.parametrize(
    "text",
    ["name: [1, 2", "name: x\n bad: indent", "a: &b *c", "name: \x07", "{[1]: 2}", "name: !!python/object:os.system x"],
)
def test_text_that_is_not_plain_yaml_is_refused(text: str) -> None:
    assert "not YAML" in refusal(text)


def test_a_key_with_a_line_break_still_gives_one_line() -> None:
    refusal(altered("two\nlines", 1))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.sst.steps", ("'stages.sst.steps'", "key=value")),
        ("=3", ("'=3'", "key=value")),
        ("stages.sstt.steps=3", ("stages.sstt.steps", "'sstt'", "did you mean 'sst'?")),
        ("stages.9.steps=3", ("stages.9.steps", "'9'")),
        ("stages.sst.stepz=3", ("stages[1].stepz", "did you mean 'steps'?")),
        ("stages.sst.steps=many", ("stages[1].steps", "'many'")),
        ("stages.sst.steps=[3", ("stages.sst.steps", "not YAML")),
        ("name.deep.er=3", ("name.deep.er", "is a plain value")),
        ("name.deep=3", ("name.deep", "is a plain value")),
        ("backbone.heads=3", ("backbone", "attention_size")),
        ("optimizer.lr=0.1", ("optimizer is not a known key",)),
    ],
)
def test_a_bad_override_is_refused_by_name(override: str, words: tuple[str, ...]) -> None:
    message = refusal(yaml.safe_dump(SOUND), override)
    for word in words:
        assert word in message


def test_an_override_reaches_a_stage_by_name_and_by_position() -> None:
    text = yaml.safe_dump(SOUND)
    by_name = parse(text, "here", ["stages.sst.steps=5", "stages.sst.optimizer.lr=0.5"])
    assert by_name == parse(text, "here", ["stages.1.steps=5", "stages.1.optimizer.lr=0.5"])
    assert by_name.stage("sst").steps == 5
    assert by_name.stage("sst").optimizer.lr == 0.5


def test_a_number_in_scientific_notation_is_a_number() -> None:
    # YAML 1.1 wants a dot in it, people do not write one.
    assert parse(yaml.safe_dump(SOUND), "here", ["stages.sst.optimizer.lr=1e-3"]).stage("sst").optimizer.lr == 1e-3


def test_sst_may_start_from_random_weights() -> None:
    # The control of open point 31.
    assert parse(altered("stages.1.start", GONE), "here").stage("sst").start is None


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("tree-serach", "tiny", ("'tree-serach'", "did you mean 'tree-search'?")),
        ("tree-search", "huge", ("'tree-search'", "'huge'", "tiny")),
        ("missing.yaml", None, ("missing.yaml",)),
    ],
)
def test_an_unknown_recipe_is_refused_by_name(name: str, size: str, words: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError) as caught:
        load(name, size)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_recipe_file_that_is_not_text_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(SettingsError, match=r"picture\.yaml"):
        load(str(path))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["stages.sst.stop_at=0.9", "stages.sst.optimizer.schedule=constant"],
            ("stages[3]", "steps_of names 'sst'", "leave stop_at out"),
        ),
        (["task.targets=2", "stages.pretrain.objective.questions=2"], ("stages[0]", "questions is 2", "at most 1")),
        (
            ["task={kind: grammar, steps: 4}", "stages.pretrain.objective.questions=2"],
            ("stages[0]", "questions is 2", "grammar", "at most 1"),
        ),
        (
            [
                "task={kind: prose, train: book.txt}",
                "stages.pretrain.stop_at=0.9",
                "stages.pretrain.optimizer.schedule=constant",
            ],
            ("stages[0]", "prose has no answers to match"),
        ),
    ],
)
def test_settings_that_cannot_hold_together_are_refused(overrides: list[str], words: tuple[str, ...]) -> None:
    message = refusal(yaml.safe_dump(SOUND), *overrides)
    for word in words:
        assert word in message
