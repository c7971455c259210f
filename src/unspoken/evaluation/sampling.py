"""Several noisy chains per problem (docs/methods/latent_sft.md).

Every draw has noise of its own. An explicit chain is sampled from the model at temperature 1, token by token; a
superposition gets the Gumbel noise on its weights that stage 2 trains with, and a Soft Thinking that has noise gets its
own. Answers are decoded greedily, so draws differ by their chains alone.

Axes: B batch, D width, P problems.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from unspoken.evaluation.answering import answer
from unspoken.reasoning.causal_lm import CausalLMReasoner
from unspoken.reasoning.engine import LatentStep
from unspoken.reasoning.picking import generator_of
from unspoken.reasoning.soft_steps import SoftReasoner
from unspoken.reasoning.superposition import choose, embedding_table, heaviest, mix, perturb
from unspoken.reasoning.system import System
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.task import Problems, Task


@dataclass(frozen=True, kw_only=True)
class NoisyReasoner(CausalLMReasoner):
    """Draws chains with a source of noise for each row, so that a row's noise does not depend on its neighbours.

    Sources are on the CPU, and so is what is drawn: a seed means the same on every device, at a copy either way a step.
    """

    noise: float = 1.0  # scale of the Gumbel noise; of an explicit chain, the temperature it is sampled at
    generators: tuple[torch.Generator, ...]  # one for each row of the batch, used up by one chain

    def step(self, hidden: Float[Tensor, "B D"]) -> LatentStep:
        """One step of every row; an explicit chain ends where its end marker is drawn, others as without noise."""
        scores, end = self.logits(hidden), self.settings.end_ids[0]
        if self.settings.top_k == 1:
            # The arg-max of log p + Gumbel is a draw from p, if nothing bounds the noise.
            uniform = torch.cat([torch.rand((1, scores.shape[-1]), generator=source) for source in self.generators])
            gumbel = -(-uniform.to(scores, non_blocking=True).clamp(min=1e-20).log()).clamp(min=1e-20).log()
            noisy = (F.softmax(scores, dim=-1) + 1e-10).log() + self.noise * gumbel
            ids = noisy.argmax(dim=-1, keepdim=True)
            weights, done = torch.ones_like(noisy[:, :1]), ids[:, 0] == end
        else:
            clean, ids = choose(scores, self.settings.top_k, self.settings.temperature)
            done = scores.argmax(dim=-1) == end
            weights = self._perturbed(clean, ids, done)
        latent = mix(weights, ids, embedding_table(self.model))
        weights, ids = heaviest(weights, ids)
        return LatentStep(
            latent=latent, next_input=latent, done=done, recorded=~done, support_ids=ids, support_weights=weights
        )

    def _perturbed(self, weights: Tensor, ids: Tensor, done: Tensor) -> Tensor:
        """Noisy weights, drawn on the host: whether a row draws again depends on what it drew."""
        # One transfer, so one wait; a float holds any token id below 2 ** 24 exactly.
        packed = torch.cat([weights.float(), ids.float(), done[:, None].float()], dim=1).cpu()
        clean, tokens, over = packed.split([weights.shape[1], ids.shape[1], 1], dim=1)
        end = self.settings.end_ids[0]
        rows = zip(clean.split(1), tokens.long().split(1), self.generators, over[:, 0], strict=True)
        # A row that ends here would be drawn in vain until the guard of the end marker gives up.
        noisy = [w if last else perturb(w, i, g, end_id=end, scale=self.noise) for w, i, g, last in rows]
        return torch.cat(noisy).to(weights.device, non_blocking=True)


def draws_differ(system: System) -> bool:
    """Whether several chains of a problem can be drawn: Soft Thinking as it is published has no noise to draw."""
    reasoner = system.reasoner
    return not isinstance(reasoner, SoftReasoner) or reasoner.mixture_noise != "none"


def draw(
    system: System,
    task: Task,
    problems: Problems,
    prompt_format: PromptFormat,
    *,
    batch_size: int,
    draws: int,
    seed: int,
) -> NDArray[np.bool_]:
    """Answer every problem from several noisy chains.

    The noise of a chain is a function of (seed, key of the problem, draw).

    Returns:
        ``[P, draws]``, true where right.
    """
    system = replace(system, sampling=None)
    clean = system.reasoner
    assert isinstance(clean, CausalLMReasoner)
    if isinstance(clean, SoftReasoner):
        columns = []
        for number in range(draws):
            (state,) = np.random.SeedSequence([clean.seed, seed, number]).generate_state(1)
            drawing = replace(system, reasoner=replace(clean, seed=int(state)))
            answers = answer(drawing, task, problems, prompt_format, batch_size=batch_size)
            columns.append(answers.correct.numpy())
        return np.stack(columns, axis=1)
    rows = [(row, number) for row in range(len(problems)) for number in range(draws)]
    keys = [problem.key for problem in problems]  # type: ignore[attr-defined]
    correct = []
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        sources = tuple(generator_of(f"{seed}:{keys[row]}:{number}") for row, number in some)
        noisy = NoisyReasoner(model=clean.model, settings=clean.settings, generators=sources)
        asked = problems.select([row for row, _ in some])
        answers = answer(replace(system, reasoner=noisy), task, asked, prompt_format, batch_size=len(some))
        correct.append(answers.correct.numpy())
    return np.concatenate(correct).reshape(len(problems), draws)
