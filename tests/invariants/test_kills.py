"""Killed without warning, twenty times at random moments: the run ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_recipe import TEXT, verify_finished_folders, weights

KILLS = 20
# Imports take seconds and training takes a moment, so a kill is timed from the word that the driver prints in between.
DRIVER = """
import sys
from pathlib import Path
import torch
from rich.console import Console
from unspoken.training.recipe import load
from unspoken.training.run import train

torch.set_num_threads(1)
recipe = load(sys.argv[1], "")
print("ready", flush=True)
train(recipe, Path(sys.argv[2]), seeds=1, report_to=[], console=Console(quiet=True))
"""


class Driver:
    """Starts the same training run in a process of its own, again and again."""

    def __init__(self, folder: Path) -> None:
        self.script, self.recipe, self.log = folder / "driver.py", folder / "recipe.yaml", folder / "errors.txt"
        self.script.write_text(DRIVER)
        self.recipe.write_text(TEXT.replace("evaluate_every: 2", "evaluate_every: 1"))

    def start(self, output: Path) -> subprocess.Popen[str]:
        """A process that is about to train."""
        with self.log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, str(self.script), str(self.recipe), str(output)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", self.log.read_text()
        return process

    def finish(self, output: Path) -> float:
        """Run to the end; how long the training took."""
        with self.start(output) as process:
            began = time.monotonic()
            assert process.wait(timeout=300) == 0, self.log.read_text()
            return time.monotonic() - began


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_in_the_same_weights(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    duration = driver.finish(tmp_path / "undisturbed")
    expected = weights(tmp_path / "undisturbed")
    assert len(expected) == 3

    moments = random.Random(0)
    kills, rounds, checked = 0, 0, 0
    while kills < KILLS:
        output = tmp_path / f"disturbed-{rounds}"
        with driver.start(output) as process:
            try:
                process.wait(timeout=moments.uniform(0, duration))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                checked += verify_finished_folders(output)
                continue
            # It was fast enough to finish: look at what it made and go on killing another run.
            assert process.returncode == 0, driver.log.read_text()
            assert weights(output) == expected
            rounds += 1
    output = tmp_path / f"disturbed-{rounds}"
    driver.finish(output)
    assert weights(output) == expected
    assert checked > KILLS, "the kills came when there was something on disk"
    leftovers = {path.name for path in (output / "seed-0").glob("*/*")}
    assert leftovers == {"model"}
