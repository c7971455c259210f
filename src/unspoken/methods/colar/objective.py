"""What CoLaR reads and minimises.

Axes: B batch, T positions, R tokens of a group at most, P predicted latents, S supervised tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unspoken import distributed
from unspoken.methods.colar.model import ColarOutput
from unspoken.methods.colar.stages import Colar, Row
from unspoken.places import padding_mask, places_of


def batch_of(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """Rows as a batch, padded on the right.

    Returns:
        ``ids`` and ``members`` ``[B, T, R]``; ``attention_mask`` ``[B, T]``; ``labels`` ``[B, T]``, the token that the
        output before a position learns, -100 for none; ``grouped`` ``[B, T]``, true where the output before a position
        learns to predict it as a latent.

    Raises:
        ValueError: an empty batch.
    """
    if not rows:
        raise ValueError("the batch is empty; give at least one row")
    widest = max(len(group) for row in rows for group in row.groups)
    padded = [[[*group, *[pad_id] * (widest - len(group))] for group in row.groups] for row in rows]
    counts = [torch.tensor([len(group) for group in row.groups]) for row in rows]
    ids = pad_sequence([torch.tensor(row) for row in padded], batch_first=True, padding_value=pad_id)
    # Padding has one member, so that its row is that of a token, as in every other batch.
    count = pad_sequence(counts, batch_first=True, padding_value=1)
    return {
        "ids": ids,
        "members": torch.arange(widest) < count[..., None],
        "attention_mask": pad_sequence([torch.ones_like(one) for one in counts], batch_first=True),
        "labels": pad_sequence([torch.tensor(row.labels) for row in rows], batch_first=True, padding_value=-100),
        "grouped": pad_sequence([torch.tensor(row.grouped) for row in rows], batch_first=True),
    }


def with_places(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch that is still on the host, with the places of the outputs that learn, and their targets."""
    target = batch["labels"][:, 1:] >= 0
    return {
        **batch,
        "attention_mask": padding_mask(batch["attention_mask"]),
        "before_targets": places_of(F.pad(target, (0, 1))),
        "before_groups": places_of(F.pad(batch["grouped"][:, 1:], (0, 1))),
        "targets": batch["labels"][:, 1:][target],
    }


def latent_losses(output: ColarOutput, floor: float) -> dict[str, Tensor]:
    """Losses ``[P]`` of the predicted latents, each a mean over the width, by name.

    ``mean``: squared distance of the mean; ``sample``: of one draw, as published, which also shrinks the deviation;
    ``nll``: negative log-likelihood, with deviations of at least ``floor``. A head without deviation has the first.
    """
    assert output.mean is not None and output.groups is not None
    mean, groups = output.mean.float(), output.groups.float()
    losses = {"mean": (mean - groups).square().mean(dim=-1)}
    if output.log_deviation is None:
        return losses
    log_deviation = output.log_deviation.float()
    noise = distributed.draw_rank_rows(
        len(mean), lambda rows: torch.randn(rows, mean.shape[-1], device=mean.device), "latents"
    )
    losses["sample"] = (mean + log_deviation.exp() * noise - groups).square().mean(dim=-1)
    floored = log_deviation.clamp(min=math.log(floor))
    quadratic = ((mean - groups) / floored.exp()).square()
    losses["nll"] = (0.5 * (quadratic + math.log(2 * math.pi)) + floored).mean(dim=-1)
    return losses


def colar_loss(objective: Colar, output: ColarOutput, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the group's tokens, the end marker and the answer, and the loss of the latents, of all ranks."""
    assert output.logits is not None
    tokens = batch["targets"]
    token_loss = distributed.rank_weighted_mean(F.cross_entropy(output.logits.float(), tokens), len(tokens))
    losses = {
        name: distributed.rank_weighted_mean(values.mean(), len(values), "latents")
        for name, values in latent_losses(output, objective.floor).items()
    }
    loss = objective.token_weight * token_loss + objective.latent_weight * losses[objective.latent_loss]
    terms = {"token_loss": token_loss, **{f"latent_{name}": value for name, value in losses.items()}}
    if output.log_deviation is not None:
        spread = output.log_deviation.detach().float().exp()
        terms["deviation"] = distributed.rank_weighted_mean(spread.mean(), len(spread), "latents")
    return loss, {name: value.detach() for name, value in terms.items()}
