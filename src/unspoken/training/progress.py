"""Shows a stage while it trains: a live bar on a terminal, one line an evaluation elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from unspoken.draw.formats import duration, escaped, percent
from unspoken.draw.table import write_line


class Pace:
    """Training rows of all stages and seeds together, and how long the rest of them takes.

    Rows count alike, though those of one stage may take longer than those of another; writing labels and measuring the
    finished models are not counted.

    Args:
        rows: that are to be trained.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.trained = 0
        self.seconds = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Count rows that were trained."""
        self.trained += rows
        self.seconds += seconds

    def skip(self, rows: int) -> None:
        """Leave out rows that need no training: a checkpoint has seen them, or their stage ended before."""
        self.rows -= rows

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes at the pace so far; None before the first row."""
        return None if not self.trained else self.seconds / self.trained * max(0, self.rows - self.trained)


def frozen_in_words(model: Any) -> str:
    """How many of a model's weights a stage trains; empty where it trains all."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    every, trained = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    return "" if trained == every else f"trains {trained:,} of {every:,} weights ({percent(trained / every, 2)})"


class StageProgress(TrainerCallback):
    """Loss, the stage's own metric with the step at which it was measured, tokens a second and time left.

    Args:
        title: seed and stage.
        pace: of the whole run.
    """

    def __init__(self, console: Console, title: str, pace: Pace) -> None:
        self.console = console
        self.title = escaped(title)
        self.pace = pace
        # Before the first step there is no loss, and text has nothing to match.
        self.loss: float | None = None
        self.exact = ""
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.row = self.bar.add_task(self.title, total=None, status="")

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.began, self.tokens_before = time.monotonic(), state.num_input_tokens_seen
        self.counted, self.step = self.began, state.global_step
        self.batch = state.train_batch_size * args.world_size * args.gradient_accumulation_steps
        self.pace.skip(self.step * self.batch)
        if model is not None and (line := frozen_in_words(model)):
            write_line(f"{self.title}  {line}", self.console, "dim")
        self.bar.update(self.row, total=state.max_steps, completed=state.global_step)
        self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        self.pace.add((state.global_step - self.step) * self.batch, now - self.counted)
        self.counted, self.step = now, state.global_step
        if self.console.is_terminal:
            self.bar.update(self.row, completed=state.global_step, status=self._status(state))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.loss = (logs or {}).get("loss", self.loss)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        measured = (metrics or {}).get("eval_exact_match")
        if measured is not None:
            self.exact = f"exact match {percent(measured, 1)} at step {state.global_step}"
        if not self.console.is_terminal:
            line = f"{self.title}  step {state.global_step}/{state.max_steps}  {self._status(state)}"
            write_line(line, self.console)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pace.skip((state.max_steps - state.global_step) * self.batch)
        self.bar.stop()

    def _status(self, state: Any) -> str:
        elapsed = time.monotonic() - self.began
        speed = (state.num_input_tokens_seen - self.tokens_before) / elapsed if elapsed > 0 else 0.0
        left = self.pace.left
        facts = [
            "" if self.loss is None else f"loss {self.loss:.4f}",
            self.exact,
            f"{speed / 1000:.1f}k tokens/s",
            "" if left is None else f"training left: about {duration(left)}",
        ]
        return "  ".join(filter(None, facts))
