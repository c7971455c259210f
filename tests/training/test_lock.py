"""Two runs in one folder: the second is refused in one line, and a run that died blocks nobody."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
from tiny_recipe import TEXT, one_stage, quiet_train

from unspoken import cli
from unspoken.experiment import measure_run
from unspoken.training.lock import LOCK, run_lock

HOLDER = """
import os, sys, time
from pathlib import Path
from unspoken.training.lock import run_lock

with run_lock(Path(sys.argv[1])):
    if os.fork():  # as a worker that loads data, which may live longer than its parent
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
    """Another process that holds the folder, with a child."""
    command = [sys.executable, "-c", HOLDER, str(finished)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        os.killpg(process.pid, signal.SIGKILL)


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
        measure_run(recipe, [type(runs[0])(recipe=recipe, folder=finished / "seed-0", seed=0)], command="", log=print)

    (tmp_path / "recipe.yaml").write_text(TEXT)
    monkeypatch.setattr(sys, "argv", ["unspoken", "train", str(tmp_path / "recipe.yaml"), "--output", str(finished)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    answer = capsys.readouterr().err
    assert answer.count("\n") == 1
    assert "is in use by another run" in answer


def test_the_lock_dies_with_its_process_whatever_becomes_of_children(
    finished: Path, other: subprocess.Popen[str]
) -> None:
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    os.killpg(other.pid, 0)  # the child is alive
    with run_lock(finished):
        assert f"process {os.getpid()} " in (finished / LOCK).read_text()
    assert not (finished / LOCK).exists()
    quiet_train(one_stage("stages.pretrain.steps=1"), finished)


def test_one_process_may_hold_a_folder_twice_and_an_error_lets_it_go(tmp_path: Path) -> None:
    def fail() -> None:
        with run_lock(tmp_path):
            with run_lock(tmp_path / "x" / ".."):
                assert (tmp_path / LOCK).exists()
            assert (tmp_path / LOCK).exists()
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()
        assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("target", ["kept words", None], ids=["of a file", "of nothing"])
def test_a_lock_is_never_taken_through_a_symbolic_link(tmp_path: Path, target: str | None) -> None:
    run, victim = tmp_path / "run", tmp_path / "victim"
    run.mkdir()
    (run / LOCK).symlink_to(victim)
    if target is not None:
        victim.write_text(target)
    with pytest.raises(ValueError, match=rf"{run / LOCK} is a symbolic link, .*; remove it$"), run_lock(run):
        pass
    assert (victim.read_text() if victim.exists() else None) == target
    assert (run / LOCK).is_symlink()


def test_a_lock_file_of_a_dead_process_is_signed_anew(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("process 1 on some host with a long name\n" * 3)
    with run_lock(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_lock_that_is_another_file_too_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("kept")
    (tmp_path / LOCK).hardlink_to(tmp_path / "words")
    with pytest.raises(ValueError, match="is a hard link, so it is another file too; remove it"), run_lock(tmp_path):
        pass
    assert (tmp_path / "words").read_text() == "kept"


def test_every_thread_of_the_process_may_hold_the_folder(tmp_path: Path) -> None:
    def hold() -> str:
        with run_lock(tmp_path):
            return (tmp_path / LOCK).read_text()

    with run_lock(tmp_path), ThreadPoolExecutor(1) as pool:
        assert pool.submit(hold).result().startswith(f"process {os.getpid()} ")


def test_a_lock_file_may_be_gone_when_the_folder_is_let_go(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"
    with run_lock(folder):
        (folder / LOCK).unlink()
    assert not list(folder.iterdir())


def test_two_hundred_letters_of_a_foreign_lock_file_are_shown(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("ab" * 300)
    with (tmp_path / LOCK).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=rf"in use by another run \({'ab' * 100}\); wait"), run_lock(tmp_path):
            pass


def test_without_locks_of_the_file_system_nothing_takes_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> NoReturn:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.raises(OSError, match="not implemented"), run_lock(tmp_path):
        pass
