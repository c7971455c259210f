"""Ratios of speed have not got worse than the recorded ones, and the check would notice if they had."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Scripts, not a package: they find each other beside the one that is started.
sys.path.insert(0, str(ROOT / "benchmarks"))

from ratios import RECORDED, SLACK, TRIES, WATCHED, Ratio, look_up, lost  # noqa: E402
from timing import interleaved, ratio  # noqa: E402


@pytest.mark.parametrize("higher", [True, False])
def test_a_ratio_may_move_by_the_slack_and_no_further(higher: bool) -> None:
    watched, recorded = Ratio(path="", measure=lambda: 0.0, higher=higher), 2.0
    bound = 1.4 if higher else 2.0 / 0.7
    better, nearer, farther = (3.0, bound + 0.01, bound - 0.01) if higher else (1.0, bound - 0.01, bound + 0.01)
    assert SLACK == 0.7
    assert not watched.worse(recorded, recorded)
    assert not watched.worse(better, recorded)
    assert not watched.worse(nearer, recorded)
    assert watched.worse(farther, recorded)


def test_a_contender_that_was_slowed_is_noticed() -> None:
    def beside_plain(seconds: float) -> float:
        taken = interleaved({"plain": lambda: time.sleep(0.04), "other": lambda: time.sleep(seconds)}, 5)
        return ratio(taken["plain"], taken["other"])

    assert lost(Ratio(path="quick", measure=lambda: beside_plain(0.01)), 4.0) is None
    assert lost(Ratio(path="slowed", measure=lambda: beside_plain(0.03)), 4.0) is not None


def test_a_busy_moment_is_no_loss_and_a_lasting_one_is() -> None:
    values = iter([1.0, 3.9])
    assert lost(Ratio(path="", measure=lambda: next(values)), 4.0) is None
    lasting = [1.0] * TRIES
    assert lost(Ratio(path="", measure=lasting.pop), 4.0) == 1.0
    assert not lasting


def test_every_watched_ratio_is_recorded_and_as_it_should_be() -> None:
    results = json.loads(RECORDED.read_text())
    for watched in WATCHED:
        found = look_up(results, watched.path)
        assert found > 0.9 if watched.higher else found < 1.15, watched.path


@pytest.mark.slow
def test_no_ratio_is_worse_than_the_recorded_one() -> None:
    # In a process without the shape checks and the single thread of the tests, which the recorded ones did not have.
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "ratios.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
