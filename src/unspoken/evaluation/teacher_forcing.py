"""What a system makes of text that it reads: next tokens, latents that stand for them, and what it makes of those.

Axes: B rows, T tokens, N latents.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from unspoken.chain import LatentChain, StopReason, pack
from unspoken.evaluation.answering import Graded
from unspoken.evaluation.significance import Outcomes
from unspoken.placement import CPU, moved
from unspoken.reasoning.picking import ForcedTokens
from unspoken.reasoning.system import Answer, System
from unspoken.tasks import ProseTask
from unspoken.tasks.task import ProblemList, Problems, Task

Batch = Mapping[str, Tensor]


@torch.no_grad()
def next_tokens(system: System, batch: Batch, batch_size: int) -> dict[str, Outcomes]:
    """How well the next token of texts is known, a row a text.

    Args:
        system: a causal language model; or one whose latents point at rows of a table, of which the nearest counts.
        batch: ``input_ids`` and ``attention_mask`` ``[B, T]`` without padding, wherever the model is.
        batch_size: texts read at once.

    Returns:
        ``accuracy`` ``[B]`` and, of a language model, ``loss`` ``[B]`` in nats a token.
    """
    right, losses, model = [], [], system.model
    batches = zip(batch["input_ids"].split(batch_size), batch["attention_mask"].split(batch_size), strict=True)
    for ids, mask in (moved(some, model.device) for some in batches):
        if system.targets is not None:
            predicted = system.targets.nearest_row(system.targets.read(ids, mask)[:, :-1])
        else:
            # The class's forward: while it trains, the instance's is wrapped in autocast, and readings are in float32.
            logits = type(model).forward(model, input_ids=ids, attention_mask=mask).logits[:, :-1]
            predicted = logits.argmax(dim=-1)
            wrong = F.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none")
            losses.append(moved(wrong.mean(dim=1), CPU))
        right.append(moved(predicted == ids[:, 1:], CPU).double().mean(dim=1))
    read = {"accuracy": torch.cat(right).numpy()}
    return read | ({"loss": torch.cat(losses).double().numpy()} if losses else {})


def answer_tokens(batch: Batch) -> Int[Tensor, "B N"]:
    """The tokens of the answers of a batch, which its teacher-forced latents stand for."""
    return pack(batch["input_ids"][:, 1:], batch["answer_mask"][:, 1:])[0]


@torch.no_grad()
def forced_chain(system: System, batch: Batch, batch_size: int) -> LatentChain:
    """The latents of the answers of texts that the Reasoner reads, one for each of `answer_tokens`.

    Args:
        system: one whose latents point at rows of a table.
        batch: ``input_ids``, ``attention_mask`` and ``answer_mask`` ``[B, T]``, on any device, to which the chain comes
            back.
        batch_size: rows read at once.
    """
    home = batch["input_ids"].device
    batches = zip(batch["input_ids"].split(batch_size), batch["attention_mask"].split(batch_size), strict=True)
    assert system.targets is not None
    device = system.model.device
    latents_BTD = torch.cat([moved(system.targets.read(*moved(some, device)), home) for some in batches])
    latents, mask = pack(latents_BTD[:, :-1], batch["answer_mask"][:, 1:])
    stop = torch.full((len(mask),), int(StopReason.FIXED), device=mask.device)
    return LatentChain(latents=latents, mask=mask, stop=stop)


def decoded(system: System, batch: Batch, chain: LatentChain, prime: Tensor | None, batch_size: int) -> Answer:
    """What the Talker makes of chains, `batch_size` at a time; ``prime`` ``[B, P]`` comes first, by force."""

    def respond(rows: Tensor) -> Answer:
        sample = None if prime is None else ForcedTokens(prime[rows])
        return system.respond(
            batch["input_ids"][rows], batch["attention_mask"][rows], chain=chain.select(rows), sample=sample
        )

    answers = [respond(rows) for rows in torch.arange(len(chain), device=chain.mask.device).split(batch_size)]
    tokens, lengths = (torch.cat([getattr(one, key) for one in answers]) for key in ("tokens", "lengths"))
    return Answer(chain=chain, tokens=tokens, lengths=lengths)


def sentence_pairs(task: Task, most: int) -> Problems:
    """The first test sentences in order of length, so that neighbours are about as long; an odd one out is left out.

    Raises:
        ValueError: there are not two.
    """
    assert isinstance(task, ProseTask)
    rows = task.first("test", most, kind="sentences")
    if len(rows) < 2:
        raise ValueError("the test split has a single sentence; give more text, or widen task.sentence_tokens")
    return ProblemList(sorted(rows, key=len)[: len(rows) - len(rows) % 2])


def scored(chain: LatentChain, tokens: Int[Tensor, "B N"], system: System, prime: int) -> Bool[Tensor, "B N"]:
    """The tokens of sentences that are scored: those after the prime and before the end."""
    (end_id,) = system.speaker.end_ids
    after = torch.arange(tokens.shape[1], device=tokens.device) >= prime
    return chain.mask & (tokens != end_id) & after


def prime_of(system: System, tokens: Int[Tensor, "B N"], prime: int) -> Int[Tensor, "B P"] | None:
    """The first tokens of sentences, of a Talker that reads tokens; a Mono-Talker reads none."""
    return tokens[:, :prime] if system.speaker.reads_tokens and prime else None


def read_back(system: System, task: Task, problems: Problems, batch_size: int) -> Graded:
    """Sentences that the Reasoner reads and the Talker decodes from its latents.

    Args:
        system: a Reasoner with its Talker.
        task: running text.
        problems: sentences, longer than the prime of the task.
        batch_size: sentences at once.

    Returns:
        Right is a sentence that comes back token by token after the prime; its end does not count.
    """
    batch, prime = task.rows(problems), task.config.prime
    chain, tokens = forced_chain(system, batch, batch_size), answer_tokens(batch)
    answers = decoded(system, batch, chain, prime_of(system, tokens, prime), batch_size)
    wrong = (answers.tokens != tokens) & scored(chain, tokens, system, prime)
    return Graded(chain=chain, tokens=answers.tokens, lengths=answers.lengths, correct=~wrong.any(dim=1))
