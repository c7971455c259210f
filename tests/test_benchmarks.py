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

from ratios import SLACK, WATCHED, look_up, worse  # noqa: E402
from timing import interleaved, ratio  # noqa: E402

RECORDED = json.loads((ROOT / "results" / "benchmarks.json").read_text())


@pytest.mark.parametrize("higher", [True, False])
def test_a_ratio_may_move_by_the_slack_and_no_further(higher: bool) -> None:
    recorded = 2.0
    bound = 1.4 if higher else 2.0 / 0.7
    better, nearer, farther = (3.0, bound + 0.01, bound - 0.01) if higher else (1.0, bound - 0.01, bound + 0.01)
    assert SLACK == 0.7
    assert not worse(recorded, recorded, higher=higher)
    assert not worse(better, recorded, higher=higher)
    assert not worse(nearer, recorded, higher=higher)
    assert worse(farther, recorded, higher=higher)


def test_a_contender_that_was_slowed_is_noticed() -> None:
    seconds = interleaved(
        {
            "plain": lambda: time.sleep(0.04),
            "quick": lambda: time.sleep(0.01),
            "slowed": lambda: time.sleep(0.03),
        },
        5,
    )
    recorded = 4.0
    assert not worse(ratio(seconds["plain"], seconds["quick"]), recorded, higher=True)
    assert worse(ratio(seconds["plain"], seconds["slowed"]), recorded, higher=True)


def test_every_watched_ratio_is_recorded_and_as_it_should_be() -> None:
    for watched in WATCHED:
        found = look_up(RECORDED, watched.path)
        assert found > 0.9 if watched.higher else found < 1.15, watched.path


@pytest.mark.slow
def test_no_ratio_is_worse_than_the_recorded_one() -> None:
    # In a process without the shape checks and the single thread of the tests, which the recorded ones did not have.
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "ratios.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.strip().splitlines()[-1])
    recorded = {watched.path: look_up(RECORDED, watched.path) for watched in WATCHED}
    lost = [
        f"{watched.path} is {measured[watched.path]}, recorded {recorded[watched.path]}"
        for watched in WATCHED
        if worse(measured[watched.path], recorded[watched.path], higher=watched.higher)
    ]
    assert not lost, "; ".join(lost)
