"""What a stage of Coconut's curriculum reads and minimises (Hao et al., arXiv 2412.06769, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from unspoken.methods.coconut.model import CoconutOutput
from unspoken.methods.coconut.stages import Row
from unspoken.methods.latent_pass import blocks_of, text_loss, with_text_places


def batch_of(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """Rows as a batch, see `unspoken.methods.latent_pass.blocks_of`."""
    return blocks_of([(row.prompt, row.latents, row.end, row.text) for row in rows], pad_id)


def coconut_loss(outputs: CoconutOutput, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """See `unspoken.methods.latent_pass.text_loss`."""
    assert outputs.logits is not None
    loss = text_loss(outputs.logits, batch if "places" in batch else with_text_places(batch))
    return loss, {"token_loss": loss.detach()}
