"""Shows a stage while it trains: a live bar on a terminal, one line an evaluation elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from unspoken.draw.formats import escaped


class StageProgress(TrainerCallback):
    """Loss, the stage's own metric, tokens a second and time left."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = escaped(title)
        # Before the first step there is no loss, and text has nothing to match.
        self.loss: float | None = None
        self.exact: float | None = None
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

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.tokens_before = time.monotonic(), state.num_input_tokens_seen
        self.bar.update(self.row, total=state.max_steps, completed=state.global_step)
        self.bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.console.is_terminal:
            self.bar.update(self.row, completed=state.global_step, status=self._status(state))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.loss = (logs or {}).get("loss", self.loss)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        self.exact = (metrics or {}).get("eval_exact_match", self.exact)
        if not self.console.is_terminal and not self.console.quiet:
            print(f"{self.title}  step {state.global_step}/{state.max_steps}  {self._status(state)}", flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.stop()

    def _status(self, state: Any) -> str:
        elapsed = time.monotonic() - self.began
        speed = (state.num_input_tokens_seen - self.tokens_before) / elapsed if elapsed > 0 else 0.0
        facts = [
            "" if self.loss is None else f"loss {self.loss:.4f}",
            "" if self.exact is None else f"exact match {self.exact:.1%}",
            f"{speed / 1000:.1f}k tokens/s",
        ]
        return "  ".join(filter(None, facts))
