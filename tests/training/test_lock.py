"""Two runs in one folder: the second is refused in one line, and a run that died blocks nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_recipe import TEXT, one_stage, quiet_train

from unspoken import cli
from unspoken.experiment import measure_run
from unspoken.training.lock import LOCK, held

HOLDER = """
import sys, time
from pathlib import Path
from unspoken.training.lock import held

with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    quiet_train(one_stage("stages.pretrain.steps=1"), folder)
    return folder


@pytest.fixture(scope="module")
def other(finished: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(finished)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_training_measuring_and_the_command_are_refused_in_one_line(
    finished: Path,
    other: subprocess.Popen[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = one_stage("stages.pretrain.steps=1")
    message = rf"{finished} is in use by another run \(process {other.pid} on .*\); wait until it ends"
    with pytest.raises(ValueError, match=message):
        runs = quiet_train(recipe, finished)
    runs = quiet_train(recipe, tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=message):
        measure_run(recipe, [type(runs[0])(recipe=recipe, folder=finished / "seed-0", seed=0)], command="", say=print)

    (tmp_path / "recipe.yaml").write_text(TEXT)
    monkeypatch.setattr(sys, "argv", ["unspoken", "train", str(tmp_path / "recipe.yaml"), "--output", str(finished)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "is in use by another run" in said


def test_the_lock_dies_with_its_process(finished: Path, other: subprocess.Popen[str]) -> None:
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with held(finished):
        assert f"process {os.getpid()} " in (finished / LOCK).read_text()
    assert not (finished / LOCK).exists()
    quiet_train(one_stage("stages.pretrain.steps=1"), finished)


def test_one_process_may_hold_a_folder_twice_and_an_error_lets_it_go(tmp_path: Path) -> None:
    def fail() -> None:
        with held(tmp_path), held(tmp_path / "x" / ".."):
            assert (tmp_path / LOCK).exists()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not (tmp_path / LOCK).exists()
