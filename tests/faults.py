"""What can go wrong with a run, brought about on purpose."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import quiet_stage
from transformers import PreTrainedModel, TrainerCallback

from unspoken.methods.latent_sft.label_store import LabelWriter
from unspoken.methods.latent_sft.stages import Labels
from unspoken.training.recipe import Recipe

Act = Callable[[PreTrainedModel | None], None]


class At(TrainerCallback):
    """Does something at one moment of training."""

    def __init__(self, moment: str, step: int, act: Act) -> None:
        self.step, self.act = step, act
        setattr(self, f"on_{moment}", self._met)

    def _met(self, args: Any, state: Any, control: Any, model: PreTrainedModel | None = None, **_: Any) -> None:
        if state.global_step == self.step:
            self.act(model)


def interrupt(_: PreTrainedModel | None = None) -> None:
    """As a person does."""
    raise KeyboardInterrupt


def StopAt(moment: str, step: int) -> TrainerCallback:
    """Interrupts at one moment of training."""
    return At(moment, step, interrupt)


def poison(model: PreTrainedModel | None) -> None:
    """As a gradient does that is no number."""
    assert model is not None
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.fill_(float("nan"))


@contextmanager
def a_disk_that_can_fill() -> Iterator[Callable[[int], None]]:
    """Gives what makes it full: from then on the kernel refuses what would make a file longer than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def truncate(path: Path) -> None:
    """Lose the second half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# Of a stage with at least four steps that looks at the validation problems after every second one.
_STEPS = {"begin": ("train_begin", 0), "middle": ("step_end", 3), "kept": ("step_end", 4)}
# Of a stage that writes labels in blocks of 256.
_ROWS = {"begin": 0, "middle": 280, "kept": 280}


def stage_in_which(act: Act, moment: str, recipe: Recipe, output: Path, name: str) -> None:
    """Run a stage in which something happens.

    Args:
        moment: "begin", "middle", "kept" (just before weights are looked at and kept) or "end".
    """
    stage = recipe.stage(name)
    if not isinstance(stage.objective, Labels):
        when = _STEPS.get(moment, ("train_end", recipe.steps(stage)))
        quiet_stage(recipe, output, At(*when, act), name=name)
        return
    with pytest.MonkeyPatch.context() as patch:
        for method in ("publish",) if moment == "end" else ("append", "append_vectors"):
            patch.setattr(LabelWriter, method, _and(act, getattr(LabelWriter, method), _ROWS.get(moment)))
        quiet_stage(recipe, output, name=name)


def _and(act: Act, method: Callable[..., None], row: int | None) -> Callable[..., None]:
    """A method of the writer with an act before it if a row's turn has come, or after it where there is no row."""

    def both(writer: LabelWriter, *given: Any) -> None:
        if row is not None and writer.next_row == row:
            act(None)
        method(writer, *given)
        if row is None:
            act(None)

    return both
