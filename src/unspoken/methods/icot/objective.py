"""What iCoT reads and minimises, and when its optimiser is reset (Deng et al., arXiv 2405.14838).

Axes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import TrainerCallback

from unspoken.methods.icot.stages import Icot
from unspoken.methods.latent_pass import text_loss
from unspoken.methods.rows import Kind, explicit_rows
from unspoken.places import places_of
from unspoken.tasks.spans import Markers, Spans


def batch_of(
    objective: Icot, spans: Sequence[Spans], removed: Sequence[int], markers: Markers, *, scheduled: int, pad_id: int
) -> dict[str, Any]:
    """Problems whose chains are shortened.

    Args:
        removed: tokens that each chain loses.
        scheduled: tokens that the schedule removes, to be logged.

    Returns:
        ``rows``, of `rows.explicit_rows`; ``supervised``, columns whose outputs have a target in any row; and
        ``scheduled``.

    Raises:
        ValueError: an empty batch.
    """
    short = [objective.shortened(row, count) for row, count in zip(spans, removed, strict=True)]
    rows = explicit_rows(short, markers, pad_id=pad_id)
    if objective.keep_position:
        kept = [len(row.chain) if objective.from_right else 0 for row in short]
        first = [len(row.prompt) + len(markers.open) + left for row, left in zip(short, kept, strict=True)]
        later_BT = rows.real & (torch.arange(rows.ids.shape[1]) >= torch.tensor(first)[:, None])
        rows = replace(rows, position=rows.position + later_BT * torch.tensor(removed)[:, None])
    supervised = rows.target.any(dim=0).nonzero()[:, 0] - 1
    return {"rows": rows, "supervised": supervised, "scheduled": torch.tensor(float(scheduled))}


def with_places(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch that is still on the host, with the places of its supervised outputs and their targets."""
    rows = batch["rows"]
    grid = rows.target[:, batch["supervised"] + 1] if "supervised" in batch else F.pad(rows.target[:, 1:], (0, 1))
    return {**batch, "places": places_of(grid), "targets": rows.ids[rows.target]}


def icot_loss(objective: Icot, model: Callable[..., Any], batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over what is left of the chains, the end markers and the answers of all ranks, in nats."""
    batch = batch if "places" in batch else with_places(batch)
    rows = batch["rows"]
    # An argument of transformers models: whatever a model does to its scores, it does to these.
    given = {"logits_to_keep": batch["supervised"]} if "supervised" in batch else {}
    if objective.keep_position:
        # Without a mask transformers takes a gap between positions for the border of two texts.
        given |= {"position_ids": rows.position, "attention_mask": rows.real.long()}
    loss = text_loss(model(input_ids=rows.ids, use_cache=False, **given).logits, batch)
    left = (rows.kind == Kind.TEXT).sum() / len(rows.ids)
    return loss, {"token_loss": loss.detach(), "chain_left": left, "scheduled": batch["scheduled"]}


class FreshOptimizer(TrainerCallback):
    """Empties the optimiser's state before the first step of each removal, unless the step before had no chain left.

    It keeps nothing from step to step, so a run that goes on from a checkpoint resets where an undisturbed one does.
    """

    def __init__(self, objective: Icot) -> None:
        self.objective = objective

    def on_step_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, train_dataloader: Any = None, **_: Any
    ) -> None:
        """Called by the Trainer."""
        step = state.global_step
        if not step or self.objective.scheduled(step) == self.objective.scheduled(step - 1):
            return
        data = train_dataloader.dataset
        size = len(data) // state.max_steps
        before = data.__getitems__([*range((step - 1) * size, step * size)])
        if (before["rows"].kind == Kind.TEXT).any():
            inner = getattr(optimizer, "optimizer", optimizer)
            for one in getattr(inner, "parts", [inner]):
                one.state.clear()
