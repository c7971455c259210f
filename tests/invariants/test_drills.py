"""Every kind of stage of every method, stopped, spoiled and starved: it refuses in one line and goes on as if nothing
had happened.

Killed processes are in test_kills.py; every rename and removal of one kind of stage in test_resume.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from faults import a_disk_that_can_fill, flip, interrupt, poison, stage_in_which, truncate
from tiny_drills import TEXTS, drilled, runs_made_once
from tiny_recipe import TEXT, quiet_stage, quiet_train, verify_finished_folders, weights

from unspoken import cli, experiment
from unspoken.backbone.folder import MANIFEST, numbered, read_manifest, verify
from unspoken.methods.catalogue import objectives
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.latent_sft.stages import Labels, LatentShape
from unspoken.training.parts import TalkerShape
from unspoken.training.recipe import Recipe

RECIPES = {name: drilled(name) for name in TEXTS}
STAGES = [(name, stage) for name, recipe in RECIPES.items() for stage in recipe.stages]


def test_every_kind_of_stage_and_every_choice_of_it_is_drilled() -> None:
    drilled_objectives = [stage.objective for _, stage in STAGES]
    assert {type(objective) for objective in drilled_objectives} == set(objectives())
    for kind in objectives():
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            values = [getattr(found, field.name) for found in drilled_objectives if type(found) is kind]
            if typing.get_origin(hints[field.name]) is Literal:
                assert set(values) == set(typing.get_args(hints[field.name])), (kind, field.name)
            else:
                assert [value for value in values if value != field.default], (kind, field.name)
    shapes = [found.shape for found in drilled_objectives if isinstance(getattr(found, "shape", None), LatentShape)]
    assert {shape.latent for shape in shapes} == {"superposition", "hidden"}
    talkers = [recipe.talker for recipe in RECIPES.values()]
    assert {talker.variant for talker in talkers if isinstance(talker, TalkerShape)} == {"mono", "dual"}
    assert {stage.lora is None for _, stage in STAGES} == {True, False}
    assert {recipe.precision for recipe in RECIPES.values()} == {"auto", "bf16", "fp32"}
    traits = [recipe.task.traits for recipe in RECIPES.values()]
    assert {(one.has_chain, one.continues) for one in traits} == {(True, False), (False, False), (False, True)}
    assert {one.selected_by for one in traits} >= {"exact_match", "symbols"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drill:
    """One stage of a recipe whose other stages are finished, and what it makes if nothing disturbs it."""

    recipe: Recipe
    name: str
    output: Path
    finished: Path
    expected: dict[str, bytes]

    @property
    def folder(self) -> Path:
        return self.output / "seed-0" / self.name

    @property
    def writes_labels(self) -> bool:
        return isinstance(self.recipe.stage(self.name).objective, Labels)

    def hit(self, act: Callable[[Any], None], moment: str) -> None:
        """Run it while something happens."""
        stage_in_which(act, moment, self.recipe, self.output, self.name)

    def assert_unharmed(self) -> None:
        """It is not finished, and what is on disk is whole and holds numbers."""
        assert not (self.folder / "model").exists()
        verify_finished_folders(self.output)

    def assert_goes_on(self) -> None:
        """It ends as if nothing had happened, and leaves nothing behind."""
        quiet_stage(self.recipe, self.output, name=self.name)
        assert weights(self.output) == self.expected
        assert [entry.name for entry in self.folder.iterdir()] == ["model"]
        verify(self.folder / "model")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Recipe, Path]]:
    """A whole run that nothing disturbed, made once a recipe."""
    return runs_made_once(tmp_path_factory.mktemp, drilled)


@pytest.fixture(
    params=[
        # Tree search trains in a moment and stands for the others in the quick run.
        pytest.param((name, stage.name), id=f"{name}-{stage.name}", marks=[pytest.mark.slow] * (name != "trees"))
        for name, stage in STAGES
    ]
)
def drill(request: pytest.FixtureRequest, finished: Callable[[str], tuple[Recipe, Path]], tmp_path: Path) -> Drill:
    name, stage = request.param
    recipe, run = finished(name)

    def the_stage(folder: str, _: list[str]) -> list[str]:
        return [stage] if Path(folder) == run / "seed-0" else []

    shutil.copytree(run, tmp_path / "run", ignore=the_stage)
    return Drill(
        recipe=recipe,
        name=stage,
        output=tmp_path / "run",
        finished=run / "seed-0" / stage,
        expected=weights(run),
    )


# --- stopped, spoiled, starved ---------------------------------------------------------------------------------------


def test_stopped_anywhere_it_goes_on_bit_for_bit(drill: Drill) -> None:
    for moment in ("begin", "middle", "end"):
        with pytest.raises(KeyboardInterrupt):
            drill.hit(interrupt, moment)
        drill.assert_unharmed()
    drill.assert_goes_on()


def test_a_full_disk_is_one_clear_line(drill: Drill) -> None:
    def room_but_for(name: str) -> int:
        """Bytes that are too few for a file of the next checkpoint."""
        if drill.writes_labels or not name:
            return 64
        return (drill.folder / "checkpoint-2" / name).stat().st_size - 1

    for moment, name in (("begin", ""), ("middle", "model.safetensors"), ("middle", "optimizer.pt"), ("end", "")):
        with (
            a_disk_that_can_fill() as fill,
            pytest.raises(OSError, match=r"could not be written \(.+\); free space") as error,
        ):
            drill.hit(lambda _, fill=fill, name=name: fill(room_but_for(name)), moment)
        assert str(error.value).startswith(f"{drill.folder}/")
        assert "\n" not in str(error.value)
        drill.assert_unharmed()
    drill.assert_goes_on()


def test_damage_to_what_it_would_go_on_from_is_refused_by_name(drill: Drill) -> None:
    with pytest.raises(KeyboardInterrupt):
        drill.hit(interrupt, "middle")
    if drill.writes_labels:
        place, harms = next(drill.folder.glob(".labels.*/rank-00000")), [("block-00000.safetensors", truncate)]
        message = "is missing or damaged"
    else:
        place, harms = drill.folder / "checkpoint-2", [("model.safetensors", truncate), ("optimizer.pt", flip)]
        message = "was truncated or changed"
    for name, harm in harms:
        before = (place / name).read_bytes()
        harm(place / name)
        with pytest.raises(ValueError, match=f"{re.escape(str(place / name))} {message}") as error:
            quiet_stage(drill.recipe, drill.output, name=drill.name)
        assert "\n" not in str(error.value)
        (place / name).write_bytes(before)
    if not drill.writes_labels:
        _assert_every_file_counts(place, lambda: verify(place))
    drill.assert_goes_on()


def test_damage_to_what_it_published_is_refused_by_name(drill: Drill) -> None:
    model = Path(shutil.copytree(drill.finished, drill.folder)) / "model"
    assert _assert_every_file_counts(model, lambda: quiet_stage(drill.recipe, drill.output, name=drill.name)) > 3


def _assert_every_file_counts(folder: Path, look: Callable[[], object]) -> int:
    """Truncated, changed or lost, each is refused by its name; how many there were."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    for path, harm in itertools.product(files, (truncate, flip, Path.unlink)):
        before = path.read_bytes()
        harm(path)
        with pytest.raises(ValueError, match=f"{re.escape(str(path))} (was truncated or changed|is missing)"):
            look()
        path.write_bytes(before)
    look()
    return len(files)


def test_a_loss_that_is_no_number_stops_it_and_nothing_of_that_is_kept(
    drill: Drill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between two looks at the validation problems, and by the last step before one, whose loss was still a number.
    for moment in ("middle", "kept"):
        message = rf"stage '{drill.name}': (the loss is nan|weights are not finite) at step 4; lower optimizer\.lr"
        with monkeypatch.context() as patch:
            if drill.writes_labels:
                patch.setattr(LatentSFTModel, "labels", _no_numbers_behind({"middle": 256, "kept": 0}[moment]))
                message = r"labels: label of row 256 .* not all finite"
            with pytest.raises(ValueError, match=message):
                drill.hit((lambda _: None) if drill.writes_labels else poison, moment)
        drill.assert_unharmed()
    drill.assert_goes_on()


def _no_numbers_behind(rows: int) -> Callable[[Any, Any], Any]:
    """What makes labels, 64 rows a call, spoiled after so many."""
    labels, calls = LatentSFTModel.labels, itertools.count()

    def spoiled(model: Any, encoder: Any) -> Any:
        lost = 64 * next(calls) >= rows
        for values, ids in labels(model, encoder):
            yield values * float("nan") if lost else values, ids

    return spoiled


@pytest.mark.parametrize(
    ("name", "stage", "leftovers"),
    [
        ("trees", "pretrain", ("checkpoint-6", "best-2")),
        pytest.param("words", "labels", ("labels",), marks=pytest.mark.slow),
    ],
)
def test_a_kill_just_after_publishing_leaves_nothing_for_long(
    name: str, stage: str, leftovers: tuple[str, ...], finished: Any, tmp_path: Path
) -> None:
    recipe, run = finished(name)
    shutil.copytree(run, tmp_path / "run")
    folder = tmp_path / "run" / "seed-0" / stage
    for leftover in leftovers:
        shutil.copytree(folder / "model", folder / leftover)
    quiet_train(recipe, tmp_path / "run")
    assert [entry.name for entry in folder.iterdir()] == ["model"]


# --- a clock that jumps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trees", pytest.param("words", marks=pytest.mark.slow)])
def test_nothing_depends_on_the_wall_clock(
    name: str, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = weights(finished(name)[1])
    years, now, began = itertools.cycle([0, 20, -20, 3, -1]), time.time(), time.monotonic()
    monkeypatch.setattr(time, "time", lambda: now + next(years) * 365 * 86400.0)
    recipe = drilled(name, tmp_path)
    quiet_train(recipe, tmp_path / "run")
    took = time.monotonic() - began
    assert weights(tmp_path / "run") == expected
    for stage in recipe.stages:
        history = read_manifest(tmp_path / "run" / "seed-0" / stage.name / "model")["history"]
        for entry in history:
            for key, value in entry.items():
                if "runtime" in key or "second" in key:
                    assert 0 < value < took, (stage.name, key)
        assert any("train_runtime" in entry for entry in history) != isinstance(stage.objective, Labels)


# --- too little memory -----------------------------------------------------------------------------------------------


def printed_by(command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line in which a command ends with status 2."""
    monkeypatch.setattr(sys, "argv", ["unspoken", *command])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    return printed


@pytest.mark.parametrize(
    ("training", "advice"),
    [
        (True, "stage 'pretrain' with batch_size 8 and accumulate 1: out of memory; set stages.pretrain.accumulate to"),
        (False, "stage 'pretrain': measuring with evaluation.batch_size 10 and evaluation.validation_problems 10: out"),
    ],
)
def test_a_stage_that_runs_out_of_memory_says_which_size_to_lower(
    training: bool, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss, steps = NextToken.loss, itertools.count()

    def costly(objective: Any, model: Any, batch: Any) -> Any:
        # In the fourth step, or the third time that validation problems are looked at.
        if torch.is_grad_enabled() == training and next(steps) >= (3 if training else 2):
            torch.empty(2**50)
        return loss(objective, model, batch)

    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(TEXT)
    command = ["train", str(recipe), "--output", str(run), "--report-to", "none", "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(NextToken, "loss", costly)
        assert f"unspoken: {advice}" in printed_by(command, patch, capsys)
    assert [path.name for path in numbered(run / "seed-0" / "pretrain", "checkpoint")] == ["checkpoint-2"]
    monkeypatch.setattr(sys, "argv", ["unspoken", *command, "--stage", "pretrain"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert verify(run / "seed-0" / "pretrain" / "model")


@pytest.mark.parametrize("command", ["run", "eval"])
def test_measuring_that_runs_out_of_memory_says_which_size_to_lower(
    command: str,
    finished: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "recipe.yaml").write_text(TEXTS["trees"])
    shutil.copytree(finished("trees")[1], tmp_path / "run")
    monkeypatch.setattr(experiment, "evaluate", lambda *_, **__: torch.empty(2**50))
    what = ["run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run")]
    printed = printed_by(what if command == "run" else ["eval", str(tmp_path / "run")], monkeypatch, capsys)
    assert "measuring with evaluation.batch_size 10: out of memory; run the recipe again with" in printed
    assert "--set evaluation.batch_size=2" in printed
