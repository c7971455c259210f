"""Forces wrong tokens on whatever answers reasoning problems (JEPA-Reasoner, section 6.6).

While a system answers, some of its tokens are replaced by wrong ones, and it goes on from them. Its tokens are

- of an explicit chain of thought: the chain and the answer. A token of the chain is a step of the reasoning;
- of a method that reasons in latents and answers with the same stack (Latent-SFT, Coconut): the answer. Its chain is
  finished by then;
- of a Reasoner with a Talker: all that the Talker writes, which is chain and answer again.

Forced are tokens that occur in right answers: a number becomes another number, a concept another concept, and signs and
markers stay. Every position has its own draw, from seed, problem and position alone, and is forced where the draw is
below the rate: so all systems are forced at the same positions as far as they have such tokens there, and what is wrong
at a low rate is wrong in the same way at a higher one.

An answer in which a token was forced is wrong by construction, whatever the method. So an answer counts only where it
was right by itself, some token was forced, and none of those from the first box on, neither with force nor without. A
method that writes nothing but one number in a box therefore has no answers that count, and its later tokens are the
rest of the box.

Axes: B problems, M positions of what is written, R seeds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.evaluation.forcing import Effect, Run, another, effect_of, forced_run, summed
from unspoken.reasoning.picking import FREE
from unspoken.reasoning.system import System
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.task import Problems, Task

RATES = (0.1, 0.3)  # of the tokens are forced
# Columns of the counts of an effect.
# Tokens that could be forced and that were; later tokens (after the first forced one, not forced themselves, signs
# included) and those that changed; 1 where the answer counts, and where that was lost.
_COUNTS = ("words", "forced", "later", "changed", "judged", "lost")


@dataclass(frozen=True, kw_only=True)
class ForcedDecoding:
    """How tokens are forced on a system that is asked some problems."""

    output_kind: str  # what its tokens are, for tables
    run: Run  # gives its tokens as ``[B, M]``, filled up with ends
    answer_from: int  # the first position that can hold the answer
    chain_isolated: bool  # no token can reach its chain, whatever is forced


def forced_decoding(
    system: System, task: Task, problems: Problems, prompt_format: PromptFormat, batch_size: int
) -> ForcedDecoding:
    """Forced decoding of a system that is asked some problems."""
    end = int(prompt_format.tokenizer.eos_token_id)
    steps = system.stop.max_latents if system.explicit and system.speaker.same_stack else 0
    width = steps + system.max_tokens

    def run(tokens: Tensor | None) -> tuple[LatentChain, Tensor]:
        chains, written = [], []
        for rows in torch.arange(len(problems)).split(batch_size):
            ids, mask = task.prompts(problems.select(rows.numpy()), prompt_format)
            chain, some = forced_run(system, ids, mask, fill=end)(None if tokens is None else tokens[rows])
            chains.append(chain)
            written.append(F.pad(some, (0, width - some.shape[1]), value=end))
        return LatentChain.concatenate(chains), torch.cat(written)

    without_chain = "all that its Talker decodes" if system.has_talker else "its answer"
    return ForcedDecoding(
        output_kind="its explicit chain and its answer" if steps else without_chain,
        run=run,
        answer_from=steps,
        chain_isolated=system.has_talker,
    )


def answer_tokens(problems: Problems, prompt_format: PromptFormat) -> Int[Tensor, " K"]:
    """Tokens of letters or digits that occur in the boxes of right answers."""
    tokenizer, box = prompt_format.tokenizer, set(prompt_format.encode("\\boxed{}"))
    answers = [f"\\boxed{{{problem.answer}}}" for problem in problems]  # type: ignore[attr-defined]
    ids = {token for answer in answers for token in prompt_format.encode(answer)} - box
    return torch.tensor(sorted(token for token in ids if tokenizer.decode([token]).strip().isalnum()), dtype=torch.long)


@torch.no_grad()
def effects_of(
    decoding: ForcedDecoding, task: Task, problems: Problems, prompt_format: PromptFormat, others: Tensor, seed: int
) -> list[Effect]:
    """Force wrong tokens at each of `RATES` and see what comes of it; see the top of this file.

    Args:
        others: ``[K]``, tokens that may be forced and that may be replaced.
        seed: of positions and tokens.
    """
    tokenizer = prompt_format.tokenizer
    chain, clean = decoding.run(None)
    can = torch.isin(clean, others)
    # Drawn position by position, so that a draw does not depend on how much a system may write.
    draw, choice = (
        torch.from_numpy(np.random.default_rng([seed, stream]).random(clean.shape[::-1]).T.copy())
        for stream in range(2)
    )
    wrong = another(clean, others, choice)
    is_text = ~torch.isin(clean, torch.tensor([tokenizer.eos_token_id, tokenizer.pad_token_id]))

    def graded(tokens: Tensor) -> tuple[Bool[Tensor, " B"], Bool[Tensor, "B M"]]:
        """Whether each answer is right, and the positions that may hold it."""
        answers = tokens[:, decoding.answer_from :]
        boxes = torch.tensor([_box_from(row, prompt_format) for row in answers]) + decoding.answer_from
        correct = task.grade(prompt_format.decode(answers), problems).correct
        return correct, torch.arange(tokens.shape[1]) >= boxes[:, None]

    right, in_answer = graded(clean)
    effects = []
    for rate in RATES:
        forced = can & (draw < rate)
        again, tokens = decoding.run(torch.where(forced, wrong, FREE))
        still_right, in_new_answer = graded(tokens)
        later = is_text & ~forced & (forced.cumsum(dim=1) > 0)
        counted = right & forced.any(dim=1) & ~(forced & (in_answer | in_new_answer)).any(dim=1)
        sums = [group.sum(dim=1) for group in (can, forced, later, later & (tokens != clean))]
        effect = effect_of([*sums, counted.long(), (counted & ~still_right).long()], chain, again)
        isolated = effect.latents_identical or not decoding.chain_isolated
        assert isolated, "a forced token reached a chain that was finished before it"
        effects.append(effect)
    return effects


def _box_from(row: Int[Tensor, " M"], prompt_format: PromptFormat) -> int:
    """The token that the first box opens with; the length of the row, if there is no box."""

    def opened(length: int) -> bool:
        return "\\boxed" in prompt_format.decode(row[None, : length + 1])[0]

    return bisect_left(range(len(row)), True, key=opened)


def summary(seeds: Sequence[Effect]) -> dict[str, Any]:
    """The effects on the models of several seeds at one rate; see `ForcedTokensProbe.summarise`."""
    ratio, latents = summed(seeds, _COUNTS)
    return {
        "forced": ratio("forced", "words"),
        "later_changed": ratio("changed", "later"),
        "answers_lost": ratio("lost", "judged"),
        "judged": int(sum(effect.counts[:, _COUNTS.index("judged")].sum() for effect in seeds)),
        **latents,
    }
