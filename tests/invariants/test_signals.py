"""Ctrl-C, TERM and HUP end a command in one line, keep the last step, and what goes on later is the same to the bit."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import At
from tiny_recipe import one_stage, quiet_stage, quiet_train, tiny_recipe, verify_finished_folders, weights

from unspoken import cli, interruption
from unspoken.backbone.folder import verify
from unspoken.experiment import measure_run
from unspoken.training.recipe import Recipe, dump
from unspoken.training.trainer import StageTrainer

SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
Undisturbed = Callable[[Recipe], tuple[dict[str, bytes], Any]]


def send(name: str) -> Callable[[object], None]:
    """What sends this process a signal."""
    return lambda _: os.kill(os.getpid(), getattr(signal, name))


def history(output: Path) -> list[dict[str, float]]:
    """What was logged and measured, but for times."""
    lines = verify(output / "seed-0" / "pretrain" / "model")["history"]
    timed = ("train_runtime", "total_flos")
    return [
        {key: value for key, value in line.items() if key not in timed} for line in lines if "train_loss" not in line
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Weights and history of a run that nothing stopped, made once a recipe."""
    made: dict[str, tuple[dict[str, bytes], Any]] = {}

    def of(recipe: Recipe) -> tuple[dict[str, bytes], Any]:
        if repr(recipe) not in made:
            torch.set_num_threads(1)
            output = tmp_path_factory.mktemp("undisturbed")
            quiet_train(recipe, output)
            made[repr(recipe)] = weights(output), history(output)
        return made[repr(recipe)]

    return of


@pytest.fixture
def _handled() -> Iterator[None]:
    with interruption.signals_raise():
        yield


def steps(output: Path) -> list[int]:
    """Steps of the checkpoints of the stage."""
    folders = (output / "seed-0" / "pretrain").glob("checkpoint-*")
    return sorted(int(folder.name.rpartition("-")[2]) for folder in folders)


@pytest.mark.usefixtures("_handled")
@pytest.mark.parametrize("name", SIGNALS)
def test_a_stage_ends_after_its_step_and_goes_on_bit_for_bit(
    name: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    recipe = one_stage("stages.pretrain.evaluate_every=3")
    for step, kept in ((1, [1]), (3, [1, 3]), (5, [3, 5])):
        with pytest.raises(interruption.Interrupted) as stop:
            quiet_stage(recipe, tmp_path, At("step_begin", step - 1, send(name)))
        assert stop.value.status == SIGNALS[name]
        assert steps(tmp_path) == kept
        verify_finished_folders(tmp_path)
    quiet_stage(recipe, tmp_path)
    assert (weights(tmp_path), history(tmp_path)) == undisturbed(recipe)


@pytest.mark.usefixtures("_handled")
@pytest.mark.parametrize("step", [0, 2, 6])
def test_a_signal_while_problems_are_answered_keeps_the_step_too(
    step: int, undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialise = StageTrainer.__init__

    def with_a_signal(self: StageTrainer, **settings: Any) -> None:
        initialise(self, **settings)
        validate = self.validate

        def measured(model: Any) -> dict[str, float]:
            if self.state.global_step == step:
                torch.rand(1)  # answers may be drawn
                send("SIGTERM")(None)
            return validate(model)

        self.validate = measured

    for _ in range(2):  # again while the checkpoint that is continued is measured
        with monkeypatch.context() as patch:
            patch.setattr(StageTrainer, "__init__", with_a_signal)
            with pytest.raises(interruption.Interrupted):
                quiet_stage(one_stage(), tmp_path)
        assert steps(tmp_path)[-1:] == ([step] if step else [])
    quiet_stage(one_stage(), tmp_path)
    assert (weights(tmp_path), history(tmp_path)) == undisturbed(one_stage())


@pytest.mark.usefixtures("_handled")
def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    def twice(_: object) -> None:
        send("SIGTERM")(None)
        send("SIGINT")(None)

    with pytest.raises(interruption.Interrupted) as stop:
        quiet_stage(one_stage(), tmp_path, At("step_begin", 3, twice))
    assert stop.value.status == 130
    assert steps(tmp_path) == [2]
    verify_finished_folders(tmp_path)


@pytest.mark.usefixtures("_handled")
def test_infinite_weights_are_not_kept_by_a_signal(tmp_path: Path) -> None:
    def poisoned(model: Any) -> None:
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        send("SIGTERM")(None)

    with pytest.raises(ValueError, match="not finite at step 3"):
        quiet_stage(one_stage(), tmp_path, At("step_end", 3, poisoned))
    assert steps(tmp_path) == [2]


@pytest.mark.usefixtures("_handled")
def test_a_measurement_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    runs = quiet_train(recipe, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(interruption.Interrupted):
        measure_run(recipe, runs, command="", log=send("SIGHUP"))
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path / ".lock").exists()


def test_signals_that_were_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption.signals_raise():
            send("SIGHUP")(None)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("name", SIGNALS)
def test_the_command_line_says_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def preparing(**_: object) -> None:
        send(name)(None)
        time.sleep(9)

    monkeypatch.setattr(cli, "app", preparing)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == SIGNALS[name]
    assert capsys.readouterr().err == "unspoken: stopped; run the same command to continue\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --- real processes --------------------------------------------------------------------------------------------------


def started(recipe: Path, output: Path, **how: Any) -> subprocess.Popen[str]:
    """A training process."""
    command = [sys.executable, "-m", "unspoken.cli", "train", str(recipe), "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "--report-to", "none"], text=True, env=environment, **how)


def begun(recipe: Path, output: Path) -> subprocess.Popen[str]:
    """A training that has taken a step."""
    process = started(recipe, output, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if "step 2/" in line:
            return process
    raise AssertionError(process.wait())


def ends(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Status and last words."""
    _, words = process.communicate(timeout=60)
    return process.returncode, words or ""


def _recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(one_stage("stages.pretrain.steps=4000", "threads=1")))
    return path


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_training_process_obeys(name: str, tmp_path: Path) -> None:
    process = begun(_recipe(tmp_path), tmp_path / "run")
    process.send_signal(getattr(signal, name))
    status, words = ends(process)
    assert (status, words.splitlines()[-1]) == (SIGNALS[name], "unspoken: stopped; run the same command to continue")
    assert "Traceback" not in words
    last = steps(tmp_path / "run")[-1]
    state = json.loads(
        (tmp_path / "run" / "seed-0" / "pretrain" / f"checkpoint-{last}" / "trainer_state.json").read_text()
    )
    assert state["global_step"] == last
    assert not list((tmp_path / "run").rglob(".*"))


@pytest.mark.slow
def test_a_training_process_outlives_its_terminal_by_a_step(tmp_path: Path) -> None:
    """The terminal is closed: the kernel sends HUP, and nothing can be printed any more."""
    main, side = pty.openpty()
    process = started(_recipe(tmp_path), tmp_path / "run", stdout=side, stderr=side, stdin=side, start_new_session=True)
    os.close(side)
    until = time.monotonic() + 120
    # The progress bar must be read, as a terminal does, or the process waits for ever.
    while not list((tmp_path / "run").glob("seed-0/pretrain/best-*")):
        assert time.monotonic() < until, process.poll()
        if select.select([main], [], [], 1)[0]:
            os.read(main, 65536)
    os.close(main)
    process.send_signal(signal.SIGHUP)  # a session leader without a controlling terminal gets none by itself
    assert ends(process)[0] == 129
    assert steps(tmp_path / "run")
    assert not list((tmp_path / "run").rglob(".*"))


@pytest.mark.slow
def test_a_process_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    recipe = one_stage("stages.pretrain.steps=60", "threads=1")
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe))
    for _ in range(3):
        process = begun(path, tmp_path / "run") if not steps(tmp_path / "run") else None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            ends(process)
    quiet_train(recipe, tmp_path / "run")
    quiet_train(recipe, tmp_path / "straight")
    assert weights(tmp_path / "run") == weights(tmp_path / "straight")
