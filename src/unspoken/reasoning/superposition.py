"""The latent token: a mixture of rows of the input table (docs/methods/latent_sft.md).

``alpha = softmax(readout(h) / temperature)``, ``z = sum_v alpha_v e_v``, over the whole vocabulary or over its k most
likely entries, where it is normalised anew.

Axes: N slots, D width, V vocabulary, K entries kept.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from unspoken import distributed
from unspoken.backbone.vocabulary import Head, embedding_table, head_of, scorer
from unspoken.reasoning.latents import Noise, Readout

__all__ = [
    "Head",
    "choose",
    "distribution",
    "embedding_table",
    "heaviest",
    "in_pieces",
    "mix",
    "noisy",
    "perturb",
    "positions_at_once",
    "readout_of",
    "rows_at_once",
    "scorer",
    "superpose",
]

T = TypeVar("T", Tensor, tuple[Tensor, Tensor])

NUMBERS = 2**27  # of the largest tensor that exists at one time: 512 MiB in float32
SCORED = 1024  # positions whose scores over the vocabulary a loss holds at one time, or fewer
RECORDED = 256  # entries of a superposition that a chain keeps at most
_CHUNK = 8192  # vocabulary entries looked at together: bounds the memory of full superpositions


def rows_at_once(width: int) -> int:
    """Rows of ``width`` numbers that may exist at one time."""
    return max(1, NUMBERS // max(width, 1))


def positions_at_once(vocabulary: int) -> int:
    """Positions whose scores over a vocabulary exist at one time, when a loss makes them."""
    return min(SCORED, rows_at_once(vocabulary))


def in_pieces(function: Callable[..., T], rows: int, *tensors: Tensor) -> T:
    """What a function makes of each row, ``rows`` of them at a time, forward and backward.

    What it computes on the way is not kept, but made again in the backward pass. Few rows are one piece, without that.

    Args:
        function: of the tensors' rows; draws no random numbers.
        tensors: ``[N, ...]`` each.
    """
    if len(tensors[0]) <= rows:
        return function(*tensors)
    pieces = zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    made: list[Any] = [checkpoint(function, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    joined: Any = torch.cat(made) if isinstance(made[0], Tensor) else tuple(map(torch.cat, zip(*made, strict=True)))
    return joined


def readout_of(model: PreTrainedModel, readout: Readout) -> Head:
    """What turns an output of the stack into scores; no gradient reaches it.

    ``"table"`` is the published code's choice; with an untied head its labels have little to do with what the model
    would say (docs/methods/latent_sft.md, open point 1), so it warns.
    """
    if readout == "head":
        return head_of(model)
    weight: Any = model.get_input_embeddings().weight
    head: Any = model.get_output_embeddings()
    if head is not None and head.weight is not weight:
        warnings.warn(
            "readout is 'table', but this model's head is not tied to its table: the labels will differ from the "
            "distribution of the head; use readout 'head'",
            stacklevel=2,
        )
    return weight.detach()


def choose(
    scores: Float[Tensor, "N V"], top_k: int | None, temperature: float = 1.0
) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
    """Weights and token ids of superpositions, most likely entry first.

    Args:
        scores: read-out of each slot.
        top_k: entries kept, and normalised among themselves; None keeps the whole vocabulary.
        temperature: divides the scores.

    Returns:
        Weights in float32 that sum to 1, and ids. The choice of ids has no gradient, the weights do.
    """
    kept = scores.shape[-1] if top_k is None else min(top_k, scores.shape[-1])
    scores = scores.float()
    values, ids = (scores if temperature == 1 else scores / temperature).topk(kept, dim=-1)
    return F.softmax(values, dim=-1), ids


def distribution(
    hidden: Float[Tensor, "N D"], readout: Head, top_k: int | None, temperature: float
) -> tuple[Float[Tensor, "N K"], Int[Tensor, "N K"]]:
    """As `choose`, of outputs of the stack; their scores ``[N, V]`` are made a piece at a time."""
    scores = scorer(readout, hidden)
    return in_pieces(lambda some: choose(scores(some), top_k, temperature), rows_at_once(len(readout)), hidden)


def heaviest(weights: Float[Tensor, "N K"], ids: Int[Tensor, "N K"]) -> tuple[Tensor, Tensor]:
    """What a chain records of superpositions: the `RECORDED` largest weights, which then sum to less than 1."""
    if weights.shape[-1] <= RECORDED:
        return weights, ids
    kept, order = weights.topk(RECORDED, dim=-1)
    return kept, ids.gather(-1, order)


def mix(weights: Float[Tensor, "*N K"], ids: Int[Tensor, "*N K"], table: Float[Tensor, "V D"]) -> Float[Tensor, "*N D"]:
    """``sum_k weights_k table[ids_k]``, added up in float32, in the table's precision."""
    # A row of the table for every entry of every slot would be [N, V, D].
    full = ids.shape[-1] == len(table)

    def piece(weights: Tensor, ids: Tensor) -> Tensor:
        with torch.autocast(table.device.type, enabled=False):
            if full:
                mixed = torch.zeros_like(weights).scatter_add(-1, ids, weights) @ table.float()
            else:
                mixed = torch.einsum("...k,...kd->...d", weights, table[ids].float())
        return mixed.to(table.dtype)

    width = math.prod(ids.shape[1:]) * (1 if full else table.shape[-1])
    return in_pieces(piece, rows_at_once(width), weights.float(), ids)


def superpose(
    hidden: Float[Tensor, "N D"],
    readout: Head,
    table: Float[Tensor, "V D"],
    *,
    top_k: int | None,
    temperature: float = 1.0,
    noise: Noise | None = None,
) -> Float[Tensor, "N D"]:
    """Latents out of the stack's outputs; the gradient reaches ``hidden`` alone.

    No superposition holds ``[N, V]``: few entries are chosen a piece of the slots at a time, a full one is made a piece
    of the vocabulary at a time, where the read-out is one matrix. A full one takes no noise.
    """
    if top_k is None and isinstance(readout, Tensor):
        return _Full.apply(hidden, readout, table, temperature)
    weights, ids = distribution(hidden, readout, top_k, temperature)
    return mix(weights if noise is None or top_k is None else noisy(weights, noise), ids, table)


class _Full(torch.autograd.Function):
    """``softmax(h R' / t) E`` by the running log-sum-exp, with the softmax made again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, readout: Tensor, table: Tensor, temperature: float) -> Tensor:
        h = hidden.float()
        top = h.new_full((len(h), 1), float("-inf"))
        total, mixed = h.new_zeros((len(h), 1)), h.new_zeros((len(h), table.shape[-1]))
        # The backward pass makes the same scores again, usually where autocast is off already.
        with torch.autocast(h.device.type, enabled=False):
            for rows, entries in zip(readout.split(_CHUNK), table.split(_CHUNK), strict=True):
                scores = h @ rows.float().T / temperature
                higher = torch.maximum(top, scores.max(dim=-1, keepdim=True).values)
                shrink, weights = (top - higher).exp(), (scores - higher).exp()
                total = total * shrink + weights.sum(dim=-1, keepdim=True)
                mixed = mixed * shrink + weights @ entries.float()
                top = higher
        mixed = mixed / total
        ctx.save_for_backward(hidden, readout, table, mixed, top + total.log())
        ctx.temperature = temperature
        return mixed.to(table.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        hidden, readout, table, mixed, log_total = ctx.saved_tensors
        h, gradient = hidden.float(), gradients[0].float()
        inner = (gradient * mixed).sum(dim=-1, keepdim=True)
        result = torch.zeros_like(h)
        with torch.autocast(h.device.type, enabled=False):
            for rows, entries in zip(readout.split(_CHUNK), table.split(_CHUNK), strict=True):
                weights = (h @ rows.float().T / ctx.temperature - log_total).exp()
                result += (weights * (gradient @ entries.float().T - inner)) @ rows.float() / ctx.temperature
        return result.to(hidden.dtype), None, None, None


def noisy(weights: Float[Tensor, "N K"], noise: Noise) -> Float[Tensor, "N K"]:
    """Noisy weights, by torch's own generator; the gradient goes through."""
    # A row's noise must not depend on which rank it is read by.
    drawn = distributed.draw_rank_rows(
        len(weights), lambda rows: weights.new_empty(rows, weights.shape[-1]).exponential_(), "latents"
    )
    gumbel = -drawn.log()
    bounded = (noise.scale * gumbel).clamp(noise.lowest, noise.highest)
    return F.softmax(((weights + 1e-10).log() + bounded) / noise.temperature, dim=-1)


def perturb(
    weights: Float[Tensor, "N K"],
    ids: Int[Tensor, "N K"],
    generator: torch.Generator,
    *,
    end_id: int,
    scale: float = 1.0,
    temperature: float = 1.0,
    lowest: float = -1.5,
    highest: float = 3.0,
    redraw: Literal["slot", "row"] = "slot",
    attempts: int = 100,
) -> Float[Tensor, "N K"]:
    """Gumbel-Softmax noise on stored superpositions (Latent-Optim, the paper's second version).

    ``softmax((log(alpha + 1e-10) + clamp(scale * g, lowest, highest)) / temperature)``. A slot whose most likely entry
    became the first token of the end marker is drawn again.

    Args:
        weights, ids: superpositions of one row; weights sum to 1.
        generator: of the row, so that a draw depends on nothing else.
        end_id: first token of the end marker.
        redraw: that slot alone, which keeps its clean weights after ``attempts`` draws or where none can help; or all
            slots of the row, which then keep the last draw, as in the published code.
    """
    logs = (weights.float() + 1e-10).log()
    noisy = weights.float().clone()
    pending = torch.arange(len(weights))
    # Slots in which the end marker is further ahead than two draws can be apart, and a thousandth for rounding.
    first, second = F.pad(logs, (0, 1), value=-torch.inf).topk(2, dim=-1).values.unbind(-1)
    hopeless = (first - second > highest - lowest + 1e-3) & (_heaviest_ids(logs, ids) == end_id)
    for _ in range(attempts):
        uniform = torch.rand((len(pending), weights.shape[-1]), generator=generator).clamp(min=1e-20)
        gumbel = -(-uniform.log()).clamp(min=1e-20).log()
        drawn = F.softmax((logs[pending] + (scale * gumbel).clamp(lowest, highest)) / temperature, dim=-1)
        fine = _heaviest_ids(drawn, ids[pending]) != end_id
        if redraw == "row":
            noisy = drawn
            if fine.all():
                break
            continue
        noisy[pending[fine]] = drawn[fine]
        pending = pending[~fine]
        if hopeless[pending].all():
            break
    return noisy


def _heaviest_ids(weights: Float[Tensor, "N K"], ids: Int[Tensor, "N K"]) -> Int[Tensor, " N"]:
    """The most likely entry of each slot."""
    return ids.gather(-1, weights.argmax(dim=-1, keepdim=True))[:, 0]
