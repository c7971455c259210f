"""Whatever stops a run, calling it again ends in the weights of a run that nothing stopped, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faults import StopAt
from tiny_recipe import one_stage, quiet_stage, quiet_train, tiny_recipe, verify_finished_folders, weights

from unspoken.training.recipe import Recipe


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], dict[str, bytes]]:
    """Weights of a run that nothing stopped, made once a recipe."""
    made: dict[str, dict[str, bytes]] = {}

    def weights_of(recipe: Recipe) -> dict[str, bytes]:
        if repr(recipe) not in made:
            torch.set_num_threads(1)
            output = tmp_path_factory.mktemp("undisturbed")
            quiet_train(recipe, output)
            made[repr(recipe)] = weights(output)
        return made[repr(recipe)]

    return weights_of


Undisturbed = Callable[[Recipe], dict[str, bytes]]


# --- stopped by a person ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_stage_stopped_anywhere_goes_on_bit_for_bit(
    optimizer: str, schedule: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    settings = f"{{name: {optimizer}, lr: 0.01, lr_rest: 0.003, warmup_steps: 2, schedule: {schedule}}}"
    recipe = one_stage(f"stages.pretrain.optimizer={settings}")
    # Before the first checkpoint, between two, twice at the same place, and just before the end.
    for step in (1, 3, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            quiet_stage(recipe, tmp_path, StopAt("step_end", step))
        verify_finished_folders(tmp_path)
    quiet_stage(recipe, tmp_path)
    assert weights(tmp_path) == undisturbed(recipe)


@pytest.mark.parametrize("kernel", ["precision=bf16 attention=eager", "precision=fp32 attention=sdpa"])
def test_rows_of_several_questions_go_on_bit_for_bit(kernel: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    recipe = one_stage("stages.pretrain.objective.questions=4", *kernel.split())
    with pytest.raises(KeyboardInterrupt):
        quiet_stage(recipe, tmp_path, StopAt("step_end", 3))
    quiet_stage(recipe, tmp_path)
    assert weights(tmp_path) == undisturbed(recipe)
    assert weights(tmp_path) != undisturbed(one_stage(*kernel.split()))


@pytest.mark.parametrize(
    ("moment", "step"),
    [
        ("train_begin", 0),
        ("evaluate", 0),
        ("evaluate", 2),
        ("evaluate", 6),
        ("save", 2),
        ("save", 6),
        ("log", 4),
        ("train_end", 6),
    ],
)
def test_a_stage_stopped_at_an_awkward_moment_goes_on_bit_for_bit(
    moment: str, step: int, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        quiet_stage(one_stage(), tmp_path, StopAt(moment, step))
    verify_finished_folders(tmp_path)
    quiet_stage(one_stage(), tmp_path)
    assert weights(tmp_path) == undisturbed(one_stage())


# --- stopped between two operations on the disk ----------------------------------------------------------------------


class _Stopped(BaseException):
    """What no code catches."""


def stop_at_rename(patch: pytest.MonkeyPatch, count: int, *, after: bool) -> None:
    """Stop just before or just after the count-th rename."""
    rename, seen = Path.replace, [0]

    def replace(self: Path, target: Path) -> Path:
        seen[0] += 1
        if seen[0] == count and not after:
            raise _Stopped
        result = rename(self, target)
        if seen[0] == count:
            raise _Stopped
        return result

    patch.setattr(Path, "replace", replace)


def stop_at_removal(patch: pytest.MonkeyPatch, count: int) -> None:
    """Stop when the count-th folder is half removed: its files go in the order of their names, and one stays."""
    remove, seen = shutil.rmtree, [0]

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        if Path(path).is_dir():
            seen[0] += 1
            if seen[0] == count:
                files = sorted(entry for entry in Path(path).rglob("*") if entry.is_file())
                for entry in files[: len(files) // 2]:
                    entry.unlink()
                raise _Stopped
        remove(path, ignore_errors=ignore_errors)

    patch.setattr(shutil, "rmtree", rmtree)


def stopped_then_continued(arrange: Callable[[pytest.MonkeyPatch], None], recipe: Recipe, output: Path) -> None:
    """Run into the arranged stop, look at what is on disk, and run again."""
    with pytest.MonkeyPatch.context() as patch:
        arrange(patch)
        with pytest.raises(_Stopped):
            quiet_stage(recipe, output)
    verify_finished_folders(output)
    quiet_stage(recipe, output)
    assert verify_finished_folders(output) == 1


SHORT = ("stages.pretrain.steps=4",)


# Every publication renames its manifest and then its folder: five of them here, and the end of the stage.
@pytest.mark.parametrize(("count", "after"), [*((count, False) for count in range(1, 13)), (6, True), (12, True)])
def test_a_stop_at_any_rename_costs_nothing(count: int, after: bool, undisturbed: Undisturbed, tmp_path: Path) -> None:
    recipe = one_stage(*SHORT)
    stopped_then_continued(lambda patch: stop_at_rename(patch, count, after=after), recipe, tmp_path)
    assert weights(tmp_path) == undisturbed(recipe)
    # Nothing but the published folder is left, whenever the stop came.
    assert [path.name for path in (tmp_path / "seed-0" / "pretrain").iterdir()] == ["model"]


@pytest.mark.parametrize("count", range(1, 7))
def test_a_stop_in_the_middle_of_a_removal_costs_nothing(count: int, undisturbed: Undisturbed, tmp_path: Path) -> None:
    recipe = one_stage(*SHORT)
    stopped_then_continued(lambda patch: stop_at_removal(patch, count), recipe, tmp_path)
    assert weights(tmp_path) == undisturbed(recipe)
    assert [path.name for path in (tmp_path / "seed-0" / "pretrain").iterdir()] == ["model"]


# --- the same run in other words -------------------------------------------------------------------------------------


def test_a_run_made_twice_is_the_same_run(undisturbed: Undisturbed, tmp_path: Path) -> None:
    quiet_train(tiny_recipe(), tmp_path)
    assert weights(tmp_path) == undisturbed(tiny_recipe())


def test_stages_trained_one_call_each_are_the_same_run(undisturbed: Undisturbed, tmp_path: Path) -> None:
    for name in ("pretrain", "sst", "talker"):
        torch.randn(7)  # whatever else the process draws in between
        quiet_train(tiny_recipe(), tmp_path, only=name)
    assert weights(tmp_path) == undisturbed(tiny_recipe())


def test_a_seed_does_not_depend_on_the_seeds_before_it(tmp_path: Path) -> None:
    quiet_train(one_stage(), tmp_path / "both", seeds=2)
    quiet_stage(one_stage(), tmp_path / "alone", seed=1)
    (alone,) = weights(tmp_path / "alone").values()
    assert weights(tmp_path / "both")["seed-1/pretrain/model/model.safetensors"] == alone
