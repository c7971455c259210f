"""Answers as text: from chains that a model writes, that are given to it, or that it goes on with.

Axes: N latent steps, K entries of a distribution, D latent width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.draw.formats import count, quantity
from unspoken.placement import moved
from unspoken.reasoning.engine import Intervention, LatentStep
from unspoken.reasoning.inspection import Chain
from unspoken.tasks.prompt_format import left_padded

if TYPE_CHECKING:
    from unspoken.reasoning.picking import Sample
    from unspoken.reasoning.system import System

_AT_ONCE = 64  # texts answered in one batch
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one answer takes, given alone and with a cache; an answer from a given chain counts it as if it was written.

    Attributes:
        latent_steps: of the chain; those of an explicit chain are tokens.
        tokens: of the answer, its end included.
        passes: forward passes that wait for one another, the prompt's included.
        flops: floating-point operations, see `System.flops`.
    """

    latent_steps: int
    tokens: int
    passes: float
    flops: float

    def __str__(self) -> str:
        steps, passes = count(self.latent_steps, "latent step"), count(round(self.passes), "pass", "passes")
        return f"{steps}, {count(self.tokens, 'token')}, {passes}, {quantity(self.flops)}FLOP"


@dataclass(frozen=True, kw_only=True)
class TextAnswer:
    """One answer; as text it is ``text``.

    Attributes:
        text: without its end.
        tokens: the same as ids, the end included.
        chain: that it was made from.
        cost: see `Cost`.
    """

    text: str
    tokens: tuple[int, ...]
    chain: Chain
    cost: Cost

    def __str__(self) -> str:
        return self.text


def beginning(system: System, given: LatentChain) -> Intervention:
    """Makes given steps the first ones of chains, which the model then goes on with.

    A given step ends its chain only where latents point at rows and it points at an end, as one that the model wrote.
    """

    def padded(values: Tensor, width: int) -> Tensor:
        return F.pad(values, (0, width - values.shape[-1]))

    def intervene(step: LatentStep, index: int) -> LatentStep:
        changed: dict[str, Tensor] = {}
        home = moved(given, step.latent.device)
        is_given = home.mask[:, index] if index < home.mask.shape[1] else torch.zeros_like(step.done)
        if step.support_ids is not None and step.support_weights is not None:
            # Of every step of the chain.
            width = max(ids.shape[-1] for ids in (given.support_ids, step.support_ids) if ids is not None)
            changed = {name: padded(getattr(step, name), width) for name in ("support_ids", "support_weights")}
        if index >= home.mask.shape[1]:
            return replace(step, **changed)
        for name, own in changed.items():
            steps = getattr(home, name)
            theirs = torch.zeros_like(own) if steps is None else padded(steps[:, index], own.shape[-1]).to(own)
            changed[name] = torch.where(is_given[:, None], theirs, own)
        latent = home.latents[:, index].to(step.latent)
        # Methods feed a multiple of their latent.
        scale = step.next_input.norm(dim=-1, keepdim=True) / step.latent.norm(dim=-1, keepdim=True).clamp(min=_TINY)
        ends = torch.zeros_like(step.done)
        if system.targets is not None:
            end_ids = torch.tensor(system.speaker.end_ids, device=latent.device)
            ends = torch.isin(system.targets.nearest_row(latent), end_ids) & latent.any(dim=-1)
        return replace(
            step,
            latent=torch.where(is_given[:, None], latent, step.latent),
            next_input=torch.where(is_given[:, None], (latent * scale).to(step.next_input), step.next_input),
            done=torch.where(is_given, ends, step.done),
            recorded=None if step.recorded is None else step.recorded | is_given,
            **changed,
        )

    return intervene


def answer_texts(
    system: System,
    texts: Sequence[str],
    chains: Sequence[Chain] | None,
    *,
    continue_chain: bool,
    sample: Sample | None,
    max_tokens: int | None,
) -> list[TextAnswer]:
    """See `System.answer`."""
    if chains is not None:
        _check_chains(system, texts, chains, continue_chain=continue_chain)
    prompts = [system.texts.prompt(text) for text in texts]
    return answer_prompts(system, prompts, chains, sample, max_tokens, continue_chain=continue_chain)


def answer_prompts(
    system: System,
    prompts: Sequence[tuple[int, ...]],
    chains: Sequence[Chain] | None,
    sample: Sample | None,
    max_tokens: int | None,
    *,
    continue_chain: bool = False,
) -> list[TextAnswer]:
    """Answers to prompts that are tokens already, in batches; with ``sample``, which gets row numbers, in one batch."""
    answers: list[TextAnswer] = []
    at_once = _AT_ONCE if sample is None else max(1, len(prompts))
    for first in range(0, len(prompts), at_once):
        rows = prompts[first : first + at_once]
        ids, mask = left_padded(rows, system.texts.tokenizer.pad_token_id)
        given = None if chains is None else [chain.record for chain in chains[first : first + at_once]]
        record = None if given is None else LatentChain.concatenate(given)
        answer = system.respond(
            ids,
            mask,
            max_tokens=max_tokens,
            chain=None if continue_chain else record,
            sample=sample,
            intervene=beginning(system, record) if continue_chain and record is not None else None,
        )
        flops = system.flops(mask.sum(dim=1), answer).tolist()
        for row, (steps, length) in enumerate(zip(answer.chain.lengths.tolist(), answer.lengths.tolist(), strict=True)):
            written = continue_chain or given is None
            record = answer.chain.select(torch.tensor([row])) if written or given is None else given[row]
            tokens, passes = answer.tokens[row, :length].tolist(), system.sequential_passes(steps, length)
            answers.append(
                TextAnswer(
                    text=system.texts.decode(tokens),
                    tokens=tuple(tokens),
                    chain=Chain(system=system, record=record).truncate(steps),
                    cost=Cost(latent_steps=steps, tokens=length, passes=passes, flops=flops[row]),
                )
            )
    return answers


def _check_chains(system: System, texts: Sequence[str], chains: Sequence[Chain], *, continue_chain: bool) -> None:
    """Refuse chains that do not belong to the texts or to the system."""
    if len(chains) != len(texts):
        raise ValueError(f"{len(chains)} chains for {len(texts)} texts; give each text one")
    for chain in chains:
        if chain.record.latents.shape[-1] != system.reasoner.stack.config.hidden_size:
            raise ValueError(f"{chain!r} has latents of another width than {system.name}; give a chain of its own")
        if not len(chain) and not system.speaker.same_stack and not continue_chain:
            raise ValueError(f"{system.name} writes one token per latent, so an empty chain has no answer")
