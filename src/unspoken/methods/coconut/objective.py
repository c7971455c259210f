"""What a stage of Coconut's curriculum reads and minimises (Hao et al., arXiv 2412.06769, section 3).

Axes: B batch, P prompt tokens, N latents, M tokens behind the latents, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unspoken import distributed
from unspoken.methods.coconut.model import CoconutOutput
from unspoken.methods.coconut.stages import Row
from unspoken.places import at, places_of


def batch_of(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """Rows as three blocks whose borders are the same in every row.

    Returns:
        ``input_ids``, ``attention_mask`` ``[B, P]``, prompts padded on the left; ``latent_mask`` ``[B, N]``, latents
        from the left; ``text_ids``, ``text_mask`` and ``target_mask`` ``[B, M]``, marker and text padded on the right,
        with the text alone as target.

    Raises:
        ValueError: an empty batch.
    """
    if not rows:
        raise ValueError("the batch is empty; give at least one row")
    prompts = [torch.tensor(row.prompt) for row in rows]
    texts = [torch.tensor(row.end + row.text) for row in rows]
    targets = [torch.arange(len(row.end + row.text)) >= len(row.end) for row in rows]
    thoughts = [torch.ones(row.latents, dtype=torch.bool) for row in rows]
    return {
        "input_ids": pad_sequence(prompts, batch_first=True, padding_value=pad_id, padding_side="left"),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in prompts], True, padding_side="left"),
        "latent_mask": pad_sequence(thoughts, batch_first=True),
        "text_ids": pad_sequence(texts, batch_first=True, padding_value=pad_id),
        "text_mask": pad_sequence([torch.ones_like(ids) for ids in texts], batch_first=True),
        "target_mask": pad_sequence(targets, batch_first=True),
    }


def with_places(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch that is still on the host, with the places of its judged outputs and the tokens that judge them."""
    chosen = batch["target_mask"][:, 1:]
    return {**batch, "places": places_of(F.pad(chosen, (0, 1))), "targets": batch["text_ids"][:, 1:][chosen]}


def text_loss(outputs: CoconutOutput, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over the tokens of the text, in nats; questions, latents and markers are not judged."""
    assert outputs.logits is not None
    if "places" not in batch:
        batch = with_places(batch)
    tokens = batch["targets"]
    loss = distributed.rank_weighted_mean(
        F.cross_entropy(at(outputs.logits, batch["places"]).float(), tokens), len(tokens)
    )
    return loss, {"token_loss": loss.detach()}
