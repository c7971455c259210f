"""Killed without warning at random moments: the run ends as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from tiny_drills import drilled, train_and_tell
from tiny_recipe import verify_finished_folders, weights

from unspoken.training.recipe import dump

# Of the recipe of every task; that of word problems holds Latent-SFT, Coconut and JEPA-Reasoner.
KILLS = {"trees": 10, "strings": 6, "prose": 4, "words": 6}


class Driver:
    """Starts the same training run in a process of its own, again and again.

    Imports take seconds and training takes a moment, so one server imports, and what is killed is forked off it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["unspoken.training.run"])

    def start(self, output: Path) -> BaseProcess:
        """A process that is about to train."""
        from_process, ready = self.processes.Pipe(duplex=False)
        process = self.processes.Process(target=train_and_tell, args=(self.text, output, ready), daemon=True)
        process.start()
        ready.close()
        with from_process:
            assert from_process.recv() == "ready"
        return process

    def finish(self, output: Path) -> float:
        """Run to the end; how long the training took."""
        process, began = self.start(output), time.monotonic()
        process.join(timeout=300)
        assert process.exitcode == 0
        return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_a_run_killed_at_random_moments_ends_in_the_same_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = drilled(name, tmp_path)
    often = [f"stages.{stage.name}.evaluate_every=1" for stage in recipe.stages]
    driver = Driver(dump(drilled(name, tmp_path, *often)))
    duration = driver.finish(tmp_path / "undisturbed")
    expected = weights(tmp_path / "undisturbed")
    assert len(expected) >= len(recipe.stages)

    moments = random.Random(0)
    kills, rounds, checked = 0, 0, 0
    # On a busy machine the first kills may come before anything is finished: then there are more of them.
    while (kills < KILLS[name] or checked <= KILLS[name]) and kills < 10 * KILLS[name]:
        output = tmp_path / f"disturbed-{rounds}"
        process = driver.start(output)
        process.join(timeout=moments.uniform(0, duration / 2))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            checked += verify_finished_folders(output)
            continue
        # It was fast enough to finish: look at what it made and go on killing another run.
        assert process.exitcode == 0
        assert weights(output) == expected
        rounds += 1
    output = tmp_path / f"disturbed-{rounds}"
    driver.finish(output)
    assert weights(output) == expected
    assert checked > KILLS[name], "the kills came when there was something on disk"
    leftovers = {path.name for path in (output / "seed-0").glob("*/*")}
    assert leftovers == {"model"}
