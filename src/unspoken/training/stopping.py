"""How a stage ends at a signal, and goes on later as if there had been none."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from unspoken import distributed, interruption
from unspoken.storage import read_json, write_json

_UNLOGGED = "unlogged.json"


class EndsAtSignal(TrainerCallback):
    """Ends a stage after the step in which a signal came; ranks may differ by a step and agree at lines of the log."""

    ended = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint of this step, which is measured when the stage is continued."""
        asked = interruption.requested()
        if distributed.world_size() > 1:
            if state.global_step % args.logging_steps:
                return
            asked = bool(distributed.all_reduce_sum(torch.tensor(float(asked), device=args.device)))
        if asked:
            control.should_save, control.should_evaluate, control.should_training_stop = True, False, True
            self.ended = True


def write_unlogged(trainer: Any, checkpoint: Path) -> None:
    """Keep in a checkpoint what one process has summed up since its last line of the log.

    Raises:
        ValueError: the loss is no longer a number.
    """
    if distributed.world_size() > 1:
        return
    loss = trainer._tr_loss.item()
    if not math.isfinite(loss):
        raise trainer.diverged(f"the loss is {loss}")
    sums = {
        "loss": loss,
        "steps": trainer.state.global_step - trainer._globalstep_last_logged,
        "terms": {name: value.item() for name, value in trainer.terms.items()},
        "terms_steps": trainer.terms_steps,
    }
    write_json(checkpoint / _UNLOGGED, sums)


def restore_random_state(states: dict[str, Any], device: torch.device) -> None:
    """Go on drawing where a checkpoint ended; one that was written on another device has no state for this one."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        cuda = states["cuda"]
        torch.cuda.set_rng_state(cuda[0] if isinstance(cuda, list) else cuda, device)


def restore_unlogged(trainer: Any, checkpoint: Path) -> None:
    """Go on summing up where a checkpoint ended, so that the next line of the log is the same."""
    if distributed.world_size() > 1 or not (checkpoint / _UNLOGGED).is_file():
        return
    sums = read_json(checkpoint / _UNLOGGED)
    trainer._tr_loss += sums["loss"]
    trainer._globalstep_last_logged -= sums["steps"]
    trainer.terms = {name: torch.tensor(value, device=trainer.args.device) for name, value in sums["terms"].items()}
    trainer.terms_steps = sums["terms_steps"]
