"""What a system makes of text that it reads: next tokens, latents that stand for them, and what it says of those.

Axes: B rows, T tokens, N latents.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from unspoken.chain import LatentChain, StopReason, pack
from unspoken.evaluation.significance import Outcomes
from unspoken.placement import CPU, moved
from unspoken.reasoning.picking import ForcedTokens
from unspoken.reasoning.system import System


@torch.no_grad()
def next_tokens(system: System, batch: Mapping[str, Tensor], batch_size: int) -> dict[str, Outcomes]:
    """How well the next token of texts is known, a row a text.

    Args:
        system: a causal language model; or one whose latents point at rows of a table, of which the nearest counts.
        batch: ``input_ids`` and ``attention_mask`` ``[B, T]`` without padding, wherever the model is.
        batch_size: texts read at once.

    Returns:
        ``accuracy`` ``[B]`` and, of a language model, ``loss`` ``[B]`` in nats a token.
    """
    right, losses, model = [], [], system.model
    parts = zip(batch["input_ids"].split(batch_size), batch["attention_mask"].split(batch_size), strict=True)
    for ids, mask in (moved(part, model.device) for part in parts):
        if system.targets is not None:
            found = system.targets.nearest_row(system.targets.read(ids, mask)[:, :-1])
        else:
            # The class's forward: while it trains, the instance's is wrapped in autocast, and readings are in float32.
            logits = type(model).forward(model, input_ids=ids, attention_mask=mask).logits[:, :-1]
            found = logits.argmax(dim=-1)
            wrong = F.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none")
            losses.append(moved(wrong.mean(dim=1), CPU))
        right.append(moved(found == ids[:, 1:], CPU).double().mean(dim=1))
    read = {"accuracy": torch.cat(right).numpy()}
    return read | ({"loss": torch.cat(losses).double().numpy()} if losses else {})


@torch.no_grad()
def forced_chain(
    system: System, batch: Mapping[str, Tensor], batch_size: int
) -> tuple[LatentChain, Int[Tensor, "B N"]]:
    """The latents of sentences that the Reasoner reads, and the token that each stands for.

    Args:
        system: one whose latents point at rows of a table.
        batch: ``input_ids``, ``attention_mask`` and ``answer_mask`` ``[B, T]``; latents of answer positions are kept.
            It may be on any device, to which the chain comes back.
        batch_size: sentences read at once.
    """
    home = batch["input_ids"].device
    parts = zip(batch["input_ids"].split(batch_size), batch["attention_mask"].split(batch_size), strict=True)
    assert system.targets is not None
    device = system.model.device
    latents_BTD = torch.cat([moved(system.targets.read(*moved(part, device)), home) for part in parts])
    chosen = batch["answer_mask"][:, 1:]
    latents, mask = pack(latents_BTD[:, :-1], chosen)
    tokens, _ = pack(batch["input_ids"][:, 1:], chosen)
    stop = torch.full((len(mask),), int(StopReason.FIXED), device=mask.device)
    return LatentChain(latents=latents, mask=mask, stop=stop), tokens


def spoken(
    system: System, batch: Mapping[str, Tensor], chain: LatentChain, prime: Tensor | None, batch_size: int
) -> Int[Tensor, "B N"]:
    """What is said of the chains of a batch, `batch_size` at a time; ``prime`` ``[B, P]`` is said first, by force."""

    def say(some: Tensor) -> Tensor:
        sample = None if prime is None else ForcedTokens(prime[some])
        ids, mask = batch["input_ids"][some], batch["attention_mask"][some]
        return system.respond(ids, mask, chain=chain.select(some), sample=sample).tokens

    rows = torch.arange(len(chain), device=chain.mask.device).split(batch_size)
    return torch.cat([say(some) for some in rows])
