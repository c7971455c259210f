"""What is shown while a run trains."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tiny_recipe import TEXT, one_stage

from unspoken.training.progress import Pace, StageProgress
from unspoken.training.recipe import parse
from unspoken.training.run import train

ALONE: Any = SimpleNamespace(world_size=1, gradient_accumulation_steps=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time; a test sets it."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_pace_of_what_was_trained_is_that_of_the_rest() -> None:
    pace = Pace(100)
    assert pace.left is None
    pace.add(10, 5.0)
    assert pace.left == 45.0
    pace.skip(50)
    assert pace.left == 20.0
    pace.add(60, 25.0)  # more than was planned
    assert pace.left == 0.0


def test_rows_of_micro_batches_count() -> None:
    pace = Pace(400)
    progress = StageProgress(Console(file=io.StringIO()), "cot", pace)
    state: Any = SimpleNamespace(max_steps=50, global_step=10, num_input_tokens_seen=0, train_batch_size=2)
    progress.on_train_begin(SimpleNamespace(world_size=2, gradient_accumulation_steps=2), state, None)
    assert pace.rows == 400 - 10 * 8


def test_a_stage_that_trains_a_few_weights_tells_how_many(tmp_path: Path) -> None:
    printed = io.StringIO()
    lora = "stages.pretrain.lora={rank: 2}"
    recipe = one_stage(lora, "stages.pretrain.steps=2", "stages.pretrain.optimizer={name: adamw, lr: 0.001}")
    train(recipe, tmp_path / "run", seeds=1, report_to=[], console=Console(file=printed, width=300))
    (line,) = [line for line in printed.getvalue().splitlines() if " trains " in line]
    match = re.search(r"pretrain  trains ([\d,]+) of ([\d,]+) weights \(([\d.]+) %\)", line)
    assert match is not None
    # Two rows and two columns for each of the block's six matrices.
    trained, every = (int(number.replace(",", "")) for number in match.groups()[:2])
    adapted = 2 * (4 * (16 + 16) + 2 * (16 + 32))
    assert trained == adapted
    assert float(match[3]) == pytest.approx(100 * trained / every, abs=0.006)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_metric_says_at_which_step_it_was_measured(terminal: bool, clock: list[float]) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200, legacy_windows=False)
    progress = StageProgress(console, "seed 0  stage 2 of 3: [sst]", Pace(400))
    state: Any = SimpleNamespace(max_steps=50, global_step=0, num_input_tokens_seen=0, train_batch_size=4)
    progress.on_train_begin(ALONE, state, None)
    progress.on_evaluate(ALONE, state, None, {"eval_exact_match": 0.25})
    for _ in range(10):
        clock[0] += 0.5
        state.global_step += 1
        state.num_input_tokens_seen += 1000
        progress.on_step_end(ALONE, state, None)
        assert "2.0k tokens/s" in progress._status(state)
    progress.on_log(ALONE, state, None, {"loss": 1.5})
    status = progress._status(state)
    assert status == "loss 1.5000  exact match 25.0 % at step 0  2.0k tokens/s  training left: about 45 s"
    progress.on_evaluate(ALONE, state, None, {"eval_exact_match": 0.5})
    assert "exact match 50.0 % at step 10" in progress._status(state)
    progress.on_train_end(ALONE, state, None)
    assert progress.pace.left == pytest.approx((400 - 160 - 40) * 5 / 40)  # the stage ended 160 rows early
    written = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line for line in written.splitlines() if "step 10/50" in line]
    assert len(lines) == (0 if terminal else 1)
    assert "stage 2 of 3: [sst]" in written
    if terminal:
        bars = re.findall("[━╸╺]+", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", written))
        assert {len(bar) for bar in bars} == {24}


def test_a_run_without_a_terminal_prints_plain_lines(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    from unspoken.cli import _console

    assert not _console(quiet=False).quiet
    console = Console(file=io.StringIO(), width=30)
    recipe = parse(TEXT, "here")
    train(recipe, tmp_path, seeds=2, report_to=[], console=console)
    printed = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    lines = [line for line in printed if "  step " in line]
    # Nothing was left to the machine, and no problem comes out of a file.
    assert [line for line in printed if " trains " not in line] == lines
    titles = [line.partition("  step ")[0] for line in lines]
    assert list(dict.fromkeys(titles)) == [
        f"seed {seed}  stage {number} of 3: {name}"
        for seed in (0, 1)
        for number, name in enumerate(("pretrain", "sst", "talker"), start=1)
    ]
    assert "training left: about 0 s" in lines[-1]
    assert not any("\x1b" in line for line in lines)
