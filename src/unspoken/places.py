"""Where in a batch a loss looks, found on the host where the batch is made.

A boolean index makes the host wait for the device, which must count first; an index of places does not. Places are
counted row by row: place p of a grid ``[B, T]`` is column ``p % T`` of row ``p // T``.

Axes: B rows, T columns, P places.
"""

from __future__ import annotations

from jaxtyping import Bool, Int
from torch import Tensor


def places_of(mask_BT: Bool[Tensor, "B T"]) -> Int[Tensor, " P"]:
    """Places at which a mask is true, in their order."""
    return mask_BT.flatten().nonzero()[:, 0]


def at(values_BTX: Tensor, places: Int[Tensor, " P"]) -> Tensor:
    """Values ``[P, ...]`` of a grid ``[B, T, ...]`` at some places, with a gradient."""
    return values_BTX.flatten(0, 1)[places]


def padding_mask(mask_BT: Int[Tensor, "B T"]) -> Int[Tensor, "B T"] | None:
    """The mask that a causal model needs: None where rows are padded on the right, if at all.

    No real token of a causal model sees what comes after it, whether by attention or by a recurrent state, so only the
    outputs at padding differ. Without a mask the fused causal kernels can run, which take none.
    """
    return None if (mask_BT[:, 1:] <= mask_BT[:, :-1]).all() else mask_BT
