"""The record of the silent part of an answer.

Axes: B batch, N latent steps, D latent width, K entries of a per-step distribution over the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class StopReason(IntEnum):
    """Why a row stopped reasoning."""

    END = 0  # the method's own rule, for instance "the nearest table row is end-of-sequence"
    FIXED = 1  # the caller asked for exactly this many steps
    CAP = 2  # the cap was reached first; reported, because the chain is probably unfinished
    CERTAIN = 3  # entropy stayed below the threshold for `patience` steps in a row (cold stop of Soft Thinking)


@dataclass(frozen=True, kw_only=True)
class LatentChain:
    """The latent chains of a batch of answers.

    Attributes:
        latents: ``[B, N, D]``, left-aligned: row b has its real steps first.
        mask: ``[B, N]``, true on real steps.
        stop: ``[B]``, one `StopReason` value a row.
        support_ids, support_weights: ``[B, N, K]``, the distribution over the vocabulary at each step where the
            method defines one (explicit chain of thought: K = 1, weight 1), else None. Of one over a large vocabulary
            they are its largest entries alone.
    """

    latents: Float[Tensor, "B N D"]
    mask: Bool[Tensor, "B N"]
    stop: Int[Tensor, " B"]
    support_ids: Int[Tensor, "B N K"] | None = None
    support_weights: Float[Tensor, "B N K"] | None = None

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        """Number of real steps in each row."""
        return self.mask.sum(dim=1)

    def __len__(self) -> int:
        return self.mask.shape[0]

    def with_latents(self, latents: Tensor, mask: Tensor | None = None) -> LatentChain:
        """The same chain with other vectors: how every causal control is made.

        The distributions are dropped, since they no longer describe the vectors.
        """
        mask = self.mask if mask is None else mask
        return replace(self, latents=latents, mask=mask, support_ids=None, support_weights=None)

    def select(self, rows: Tensor) -> LatentChain:
        """The chain of some rows, in the given order."""

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows]

        return LatentChain(
            latents=self.latents[rows],
            mask=self.mask[rows],
            stop=self.stop[rows],
            support_ids=pick(self.support_ids),
            support_weights=pick(self.support_weights),
        )

    @staticmethod
    def concatenate(chains: list[LatentChain]) -> LatentChain:
        """Stack the rows of several chains, padding on the right to the longest chain and the largest distribution.

        Raises:
            ValueError: no chain given, or chains of different width or kind.
        """
        if not chains:
            raise ValueError("cannot concatenate an empty list of chains")
        if len({(chain.latents.shape[-1], chain.support_ids is None) for chain in chains}) > 1:
            raise ValueError("cannot concatenate chains of different width or kind")

        def stack(parts: list[Tensor]) -> Tensor:
            sizes = [max(part.shape[dim] for part in parts) for dim in range(1, parts[0].dim())]
            padded = []
            for part in parts:
                filled = part.new_zeros((part.shape[0], *sizes))
                filled[tuple(map(slice, part.shape))] = part
                padded.append(filled)
            return torch.cat(padded)

        ids = [chain.support_ids for chain in chains if chain.support_ids is not None]
        weights = [chain.support_weights for chain in chains if chain.support_weights is not None]
        return LatentChain(
            latents=stack([chain.latents for chain in chains]),
            mask=stack([chain.mask for chain in chains]),
            stop=torch.cat([chain.stop for chain in chains]),
            support_ids=stack(ids) if ids else None,
            support_weights=stack(weights) if weights else None,
        )


def real_last(mask_BT: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Columns of each row with the masked ones first and the real ones last, both in their order: no holes are left."""
    return torch.argsort(mask_BT.to(torch.int8), dim=1, stable=True)


def pack(values_BTX: Tensor, mask_BT: Bool[Tensor, "B T"], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Move the selected positions of every row to the left.

    Args:
        values_BTX: ``[B, T, ...]``.
        mask_BT: positions to keep.
        length: size of the new axis; the longest row by default.

    Returns:
        ``[B, N, ...]`` and its mask ``[B, N]``; places without a value hold zeros.
    """
    counts_B = mask_BT.sum(dim=1)
    length = int(counts_B.max()) if length is None else length
    # A stable sort on "not selected" keeps the order of the selected positions.
    order_BT = torch.argsort((~mask_BT).to(torch.int8), dim=1, stable=True)[:, :length]
    index = order_BT.reshape(*order_BT.shape, *([1] * (values_BTX.dim() - 2))).expand(-1, -1, *values_BTX.shape[2:])
    packed = torch.gather(values_BTX, 1, index)
    if packed.shape[1] < length:
        room = packed.new_zeros((packed.shape[0], length - packed.shape[1], *packed.shape[2:]))
        packed = torch.cat([packed, room], dim=1)
    packed_mask = torch.arange(length, device=mask_BT.device)[None] < counts_B[:, None]
    keep = packed_mask.reshape(*packed_mask.shape, *([1] * (values_BTX.dim() - 2)))
    return torch.where(keep, packed, torch.zeros((), dtype=packed.dtype, device=packed.device)), packed_mask
