"""What a stage of LOTUS reads and minimises (arXiv 2606.31779).

Axes: B batch, N latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unspoken import distributed
from unspoken.methods.latent_pass import blocks_of, text_loss, with_text_places
from unspoken.methods.lotus.model import LotusOutput
from unspoken.methods.lotus.stages import Lotus
from unspoken.places import at, places_of
from unspoken.tasks.spans import Markers, Spans


def batch_of(objective: Lotus, spans: Sequence[Spans], markers: Markers, pad_id: int) -> dict[str, Any]:
    """Problems whose first steps are replaced.

    Returns:
        The blocks of `unspoken.methods.latent_pass.blocks_of`; ``step_ids`` and ``step_mask`` ``[B, N]``, the tokens
        that latents stand for; and ``cut``, tokens per row of replaced steps that no latent stands for.

    Raises:
        ValueError: an empty batch.
    """
    size, count = objective.latents_per_step, objective.latents
    rows = [(row.prompt + markers.open, count, markers.end, objective.text(row)) for row in spans]
    ids = torch.full((len(spans), count), pad_id)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    cut = 0
    for number, row in enumerate(spans):
        for block, step in enumerate(row.steps[: objective.replaced]):
            kept = torch.tensor(step[:size])
            first = block * size
            ids[number, first : first + len(kept)] = kept
            mask[number, first : first + len(kept)] = True
            cut += len(step) - len(kept)
    return {**blocks_of(rows, pad_id), "step_ids": ids, "step_mask": mask, "cut": torch.tensor(cut / len(rows))}


def with_places(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch that is still on the host, with the places of its supervised outputs and their targets."""
    places = places_of(batch["step_mask"])
    return {**with_text_places(batch), "step_places": places, "step_targets": at(batch["step_ids"], places)}


def lotus_loss(objective: Lotus, outputs: LotusOutput, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the text, and that of the tokens that latents stand for, in nats per token."""
    assert outputs.logits is not None and outputs.latent_logits is not None
    batch = batch if "places" in batch else with_places(batch)
    targets = batch["step_targets"]
    text = text_loss(outputs.logits, batch)
    # The sum, so that a batch without steps has a loss of 0 and not of nothing.
    total = F.cross_entropy(at(outputs.latent_logits, batch["step_places"]).float(), targets, reduction="sum")
    latent = distributed.rank_weighted_mean(total / max(len(targets), 1), len(targets), "steps")
    terms = {"token_loss": text.detach(), "latent_loss": latent.detach(), "cut": batch["cut"]}
    return text + objective.latent_weight * latent, terms
