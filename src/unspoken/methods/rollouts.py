"""Which positions of a training row are read as the model's own latents, as in a rollout. Ours, in neither paper.

Axes: B batch, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def check_rollout(latents: int, passes: int) -> None:
    """Refuse settings of a stage that are out of range.

    Raises:
        ValueError: fewer than 0 latents, or fewer than 1 pass.
    """
    if latents < 0:
        raise ValueError(f"rollout_latents is {latents}; it must be 0 or more")
    if passes < 1:
        raise ValueError(f"rollout_passes is {passes}; it must be at least 1")


def random_spans(able: Tensor, longest: int) -> Tensor:
    """A random stretch ``[B, T]`` of 1 to ``longest`` neighbours in every row, among those that can be latents.

    Args:
        able: ``[B, T]``, true where a position may be read as a latent. A stretch is consecutive among these
            positions.
        longest: positions of the longest stretch, cut to those that a row has.
    """
    import torch

    from unspoken import distributed

    draws_B2 = distributed.draw_rank_rows(len(able), lambda rows: torch.rand(rows, 2, device=able.device), "rows")
    count_B = 1 + (draws_B2[:, 0] * longest).long()
    first_B = (draws_B2[:, 1] * (able.sum(dim=1) - count_B + 1).clamp(min=1)).long()
    place_BT = able.cumsum(dim=1) - 1
    return able & (place_BT >= first_B[:, None]) & (place_BT < (first_B + count_B)[:, None])
