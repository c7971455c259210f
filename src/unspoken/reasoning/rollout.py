"""The generation engine: one loop that writes a chain for every method.

A method says how a prompt becomes vectors, what one output of the stack means, and when a row is done. The engine
does what is common: the cache, positions of left-padded rows, stopping row by row, and the record.

Axes: B batch, T prompt tokens, N latent steps, D latent width, K entries of a distribution over the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from unspoken.chain import LatentChain, StopReason


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """When reasoning ends.

    Attributes:
        max_latents: the cap. A row that meets it before its method says "done" is reported as `StopReason.CAP`.
        fixed: write exactly ``max_latents`` steps in every row, whatever the method says.
    """

    max_latents: int
    fixed: bool = False

    def __post_init__(self) -> None:
        if self.max_latents < 1:
            raise ValueError(f"max_latents is {self.max_latents}; a chain has at least one step")


@dataclass(frozen=True, kw_only=True)
class Thought:
    """One step of silent reasoning, for a whole batch.

    Attributes:
        latent: what the chain records.
        feed: what enters the first block next.
        done: rows for which this is the last step by the method's own rule.
        support_ids, support_weights: the distribution over the vocabulary, where there is one.
    """

    latent: Float[Tensor, "B D"]
    feed: Float[Tensor, "B D"]
    done: Bool[Tensor, " B"]
    support_ids: Int[Tensor, "B K"] | None = None
    support_weights: Float[Tensor, "B K"] | None = None


@runtime_checkable
class SilentReasoner(Protocol):
    """What a method supplies to the engine."""

    @property
    def stack(self) -> PreTrainedModel:
        """A decoder-only transformers model without its head."""
        ...

    def embed_prompt(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """The prompt as vectors that the stack's first block accepts."""
        ...

    def think(self, hidden: Float[Tensor, "B D"]) -> Thought:
        """Read one output of the stack."""
        ...


@torch.no_grad()
def rollout(
    method: SilentReasoner,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"] | None,
    stop: StopRule,
) -> LatentChain:
    """Reason about a batch of prompts with a key-value cache.

    Args:
        method: see `SilentReasoner`.
        input_ids: prompts, padded on the left.
        attention_mask: 1 for real tokens; None means no padding.
        stop: the cap, or a fixed length.

    Returns:
        The chain. Rows that finish early go on being computed with the batch, but the record ignores them.

    Raises:
        ValueError: an empty prompt, padding on the right, or a prompt that leaves no room for ``max_latents``.
    """
    rows, prompt_length = input_ids.shape
    if attention_mask is not None:
        if not bool(attention_mask[:, -1].all()):
            raise ValueError("prompts must be padded on the left: the last column of attention_mask holds a zero")
        if bool(attention_mask.all()):
            attention_mask = None
    limit = getattr(method.stack.config, "max_position_embeddings", None)
    if prompt_length == 0 or (limit is not None and prompt_length + stop.max_latents > limit):
        raise ValueError(
            f"a prompt of {prompt_length} tokens with up to {stop.max_latents} latents does not fit the model, "
            f"which has {limit} positions and needs at least one prompt token"
        )
    cache = DynamicCache(config=method.stack.config)
    inputs = method.embed_prompt(input_ids)
    positions = None
    if attention_mask is not None:
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    thoughts: list[Thought] = []
    real: list[Tensor] = []
    running = torch.ones(rows, dtype=torch.bool, device=input_ids.device)
    reason = torch.full((rows,), int(StopReason.FIXED if stop.fixed else StopReason.CAP), device=input_ids.device)
    for _ in range(stop.max_latents):
        outputs = method.stack(
            inputs_embeds=inputs,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        thought = method.think(outputs.last_hidden_state[:, -1])
        thoughts.append(thought)
        real.append(running)
        if not stop.fixed:
            reason = torch.where(running & thought.done, int(StopReason.END), reason)
            running = running & ~thought.done
            if not bool(running.any()):
                break
        inputs = thought.feed[:, None].to(inputs.dtype)
        if attention_mask is not None and positions is not None:
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones((rows, 1))], dim=1)
            positions = positions[:, -1:] + 1
    mask = torch.stack(real, dim=1)
    ids = [thought.support_ids for thought in thoughts if thought.support_ids is not None]
    weights = [thought.support_weights for thought in thoughts if thought.support_weights is not None]
    return LatentChain(
        latents=torch.stack([thought.latent for thought in thoughts], dim=1) * mask[:, :, None],
        mask=mask,
        stop=reason,
        support_ids=torch.stack(ids, dim=1) if ids else None,
        support_weights=torch.stack(weights, dim=1) if weights else None,
    )
