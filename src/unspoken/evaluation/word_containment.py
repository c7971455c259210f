"""Wrong words forced on whatever answers word problems (JEPA-Reasoner, section 6.6).

While a system speaks, some of its words are replaced by wrong ones, and it goes on from them. What it says is

- of an explicit chain of thought: the chain and the answer. A word of the chain is a step of the reasoning;
- of a method that thinks in latents and answers with the same stack (Latent-SFT, Coconut): the answer. Its chain is
  finished by then;
- of a Reasoner with a Talker: all that the Talker says, which is chain and answer again.

Forced are words that occur in right answers: a number becomes another number, a concept another concept, and signs and
markers stay. Every place has its own draw, from seed, problem and place alone, and is forced where the draw is below
the rate: so all systems are forced at the same places as far as they say such words there, and what is wrong at a low
rate is wrong in the same way at a higher one.

An answer in which a word was forced is wrong by construction, whatever the method. So an answer is judged only where it
was right by itself, some word was forced, and none of those from the first box on, neither in what was said nor in what
would have been. A method that says nothing but one number in a box therefore has no answers to judge, and its later
words are the rest of the box.

Axes: B problems, M places in what is said, N places of an explicit chain, R seeds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.evaluation.robustness import Run, another, can_be_forced, forced_run, latent_change, shares
from unspoken.evaluation.significance import Outcomes
from unspoken.reasoning.picking import FREE
from unspoken.reasoning.system import System
from unspoken.tasks.grading import graded
from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.prompt_format import PromptFormat

RATES = (0.1, 0.3)  # share of the words that are forced
PROBLEMS = 200  # that are asked

_COUNTS = ("words", "forced", "later", "changed", "judged", "lost")


@dataclass(frozen=True, kw_only=True)
class ForcedDecoding:
    """How tokens are forced on a system that is asked some problems.

    Attributes:
        says: what its tokens are, for tables.
        run: gives what is said as ``[B, M]``, filled up with ends.
        answer_from: the first place that can hold the answer.
        sealed: no token can reach its chain, whatever is forced.
    """

    says: str
    run: Run
    answer_from: int
    sealed: bool


@dataclass(frozen=True, kw_only=True)
class WordEffect:
    """What wrong words did to one model at one rate.

    Attributes:
        says: what its words are.
        counts: ``[B, 6]``, a row a problem: words that could be forced and words that were; later words (behind the
            first forced one, not forced themselves, signs included) and those that changed; 1 where the answer is
            judged, and where that was lost.
        latents_identical, largest_latent_change: as in `robustness.Effect`.
    """

    says: str
    counts: Outcomes
    latents_identical: bool
    largest_latent_change: float


# --- forcing tokens ----------------------------------------------------------------------------------------------


def forced_decoding(
    system: System, prompt_format: PromptFormat, problems: Sequence[ReasoningProblem], batch_size: int
) -> ForcedDecoding | None:
    """Forced decoding of a system that is asked some problems; None of one whose answer is read off."""
    if not can_be_forced(system):
        return None
    end = int(prompt_format.tokenizer.eos_token_id)
    room = system.stop.max_latents if system.explicit and system.speaker.same_stack else 0
    width = room + system.max_tokens

    def run(tokens: Tensor | None) -> tuple[LatentChain, Tensor]:
        chains, said = [], []
        for rows in torch.arange(len(problems)).split(batch_size):
            ids, mask = prompt_format.prompts([problems[row] for row in rows.tolist()])
            chain, some = forced_run(system, ids, mask, fill=end)(None if tokens is None else tokens[rows])
            chains.append(chain)
            said.append(F.pad(some, (0, width - some.shape[1]), value=end))
        return LatentChain.concatenate(chains), torch.cat(said)

    what = "all that its Talker says" if system.has_talker else "its answer"
    return ForcedDecoding(
        says="its explicit chain and its answer" if room else what,
        run=run,
        answer_from=room,
        sealed=system.has_talker,
    )


# --- measuring ---------------------------------------------------------------------------------------------------


def answer_words(problems: Sequence[ReasoningProblem], prompt_format: PromptFormat) -> Int[Tensor, " K"]:
    """Tokens of letters or digits that occur in the right answers."""
    box = prompt_format.encode("\\boxed{}")
    found = {token for problem in problems for token in prompt_format.encode(f"\\boxed{{{problem.answer}}}")} - set(box)
    kept = sorted(token for token in found if prompt_format.tokenizer.decode([token]).strip().isalnum())
    return torch.tensor(kept, dtype=torch.long)


@torch.no_grad()
def word_containment(
    system: System,
    prompt_format: PromptFormat,
    problems: Sequence[ReasoningProblem],
    batch_size: int,
    *,
    seed: int,
) -> list[WordEffect] | None:
    """Force wrong words on a system and see what comes of it; see the top of this file.

    Args:
        problems: the first `PROBLEMS` of them are asked.
        seed: of places and words.

    Returns:
        An effect for each of `RATES`; None where nothing can be forced: the system says nothing of its own, or the
        right answers do not have two different words.
    """
    asked = problems[:PROBLEMS]
    decoding, others = forced_decoding(system, prompt_format, asked, batch_size), answer_words(asked, prompt_format)
    if decoding is None or len(others) < 2:
        return None
    chain, clean = decoding.run(None)
    can = torch.isin(clean, others)
    # Drawn place by place, so that a draw does not depend on how much a system may say.
    place, choice = (
        torch.from_numpy(np.random.default_rng([seed, part]).random(clean.shape[::-1]).T.copy()) for part in range(2)
    )
    wrong = another(clean, others, choice)
    tokenizer = prompt_format.tokenizer
    spoken = ~torch.isin(clean, torch.tensor([tokenizer.eos_token_id, tokenizer.pad_token_id]))

    def judged(said: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each answer is right ``[B]``, and the places ``[B, M]`` that may hold it."""
        answer = said[:, decoding.answer_from :]
        boxes = torch.tensor([_box_from(row, tokenizer) for row in answer.tolist()]) + decoding.answer_from
        return torch.from_numpy(graded(prompt_format.decode(answer), asked)), torch.arange(said.shape[1]) >= boxes[
            :, None
        ]

    right, held = judged(clean)
    effects = []
    for rate in RATES:
        forced = can & (place < rate)
        again, said = decoding.run(torch.where(forced, wrong, FREE))
        still, holds = judged(said)
        identical, largest = latent_change(chain, again)
        assert identical or not decoding.sealed, "a forced word reached a chain that was finished before it"
        later = spoken & ~forced & (forced.cumsum(dim=1) > 0)
        counted = right & forced.any(dim=1) & ~(forced & (held | holds)).any(dim=1)
        sums = [group.sum(dim=1) for group in (can, forced, later, later & (said != clean))]
        counts = torch.stack([*sums, counted.long(), (counted & ~still).long()], dim=1)
        effects.append(
            WordEffect(
                says=decoding.says,
                counts=counts.numpy().astype(np.float64),
                latents_identical=identical,
                largest_latent_change=largest,
            )
        )
    return effects


def _box_from(row: list[int], tokenizer: Any) -> int:
    """The token that the first box opens with; the length of the row, if there is no box."""

    def opened(count: int) -> bool:
        return "\\boxed" in tokenizer.decode(row[: count + 1], skip_special_tokens=True)

    return bisect_left(range(len(row)), True, key=opened)


def containment_summary(found: Mapping[str, Sequence[Sequence[WordEffect]]]) -> dict[str, Any] | None:
    """The effects on the models of several seeds, with 95 % intervals; plain values.

    Args:
        found: system -> for each seed what `word_containment` gives.

    Returns:
        ``problems``, ``rates`` and ``systems``: for each ``says`` and ``effects``, one for each rate, with ``forced``
        (share of the words that could be), ``later_changed`` and ``answers_lost`` (each ``mean``, ``low``, ``high``, or
        None where there was nothing to change or to judge), ``judged`` (how many answers, over all seeds),
        ``latents_identical`` and ``largest_latent_change`` over all seeds. None if no system was measured.
    """
    if not found:
        return None
    some = next(iter(found.values()))[0][0]
    systems = {
        name: {"says": seeds[0][0].says, "effects": [_summary(each) for each in zip(*seeds, strict=True)]}
        for name, seeds in found.items()
    }
    return {"problems": len(some.counts), "rates": list(RATES), "systems": systems}


def _summary(seeds: Sequence[WordEffect]) -> dict[str, Any]:
    counts = np.stack([effect.counts for effect in seeds])
    share = shares(counts, _COUNTS, draws=2000, seed=0)
    return {
        "forced": share("forced", "words"),
        "later_changed": share("changed", "later"),
        "answers_lost": share("lost", "judged"),
        "judged": int(counts[:, :, _COUNTS.index("judged")].sum()),
        "latents_identical": all(effect.latents_identical for effect in seeds),
        "largest_latent_change": max(effect.largest_latent_change for effect in seeds),
    }
