"""Several noisy chains a problem, and pass@k: how often one of k leads to the right answer (Latent-SFT, section 9).

Every draw has Gumbel noise of its own. An explicit chain is sampled from the model at temperature 1, token by token; a
superposition gets the noise on its weights that stage 2 trains with. Answers are spoken greedily, so draws differ by
their chains alone.

Axes: B batch, D width, P problems.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from unspoken.evaluation.answering import answer_questions, first_problems
from unspoken.evaluation.seeds import SeedModels, each_system
from unspoken.evaluation.significance import rate
from unspoken.reasoning.causal_lm import CausalLMReasoner
from unspoken.reasoning.engine import LatentStep
from unspoken.reasoning.superposition import choose, embedding_table, heaviest, mix, perturb
from unspoken.reasoning.system import System
from unspoken.tasks.problems import ReasoningProblem, ReasoningTask
from unspoken.tasks.prompt_format import PromptFormat


@dataclass(frozen=True, kw_only=True)
class NoisyReasoner(CausalLMReasoner):
    """Draws chains with a source of noise for each row, so that a row's noise does not depend on its neighbours.

    Sources are on the CPU, and so is what is drawn: a seed means the same on every device, at a copy either way a step.

    Attributes:
        noise: scale of the Gumbel noise; of an explicit chain, the temperature it is sampled at.
        generators: one for each row of the batch, used up by one chain.
    """

    noise: float = 1.0
    generators: tuple[torch.Generator, ...]

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


def pass_at(k: int, right: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """Chance that k of a problem's draws hold a right one: unbiased for k new draws (Chen et al., 2021, equation 1).

    Args:
        right: ``[P]``, how many draws of each problem are right.
        draws: how many there are of each problem.

    Returns:
        ``[P]``.

    Raises:
        ValueError: k is not from 1 to ``draws``, or a count is not from 0 to ``draws``.
    """
    if not 1 <= k <= draws:
        raise ValueError(f"pass@{k} out of {draws} draws is not defined; k goes from 1 to {draws}")
    if right.size and not (right.min() >= 0 and right.max() <= draws):
        raise ValueError(f"counts of right draws go from {right.min()} to {right.max()}; they must be 0 to {draws}")
    none_right = [math.comb(draws - count, k) / math.comb(draws, k) for count in range(draws + 1)]
    return 1 - np.array(none_right)[right]


def draw(
    system: System,
    prompt_format: PromptFormat,
    problems: Sequence[ReasoningProblem],
    batch_size: int,
    *,
    draws: int,
    seed: int,
) -> NDArray[np.bool_]:
    """Answer every problem from several noisy chains.

    The noise of a chain is a function of (seed, key of the problem, draw).

    Returns:
        ``[P, draws]``, true where right.

    Raises:
        ValueError: the system feeds no weights back that noise could be put on.
    """
    clean = system.reasoner
    if not isinstance(clean, CausalLMReasoner):
        raise ValueError(f"{system.name} does not draw its chains; only what it says can be sampled")
    asked = [(problem, number) for problem in problems for number in range(draws)]
    correct = []
    for start in range(0, len(asked), batch_size):
        some = asked[start : start + batch_size]
        sources = tuple(_generator(f"{seed}:{problem.key}:{number}") for problem, number in some)
        noisy = NoisyReasoner(model=clean.model, settings=clean.settings, generators=sources)
        one = replace(system, reasoner=noisy)
        answers = answer_questions(one, prompt_format, [problem for problem, _ in some], len(some))
        correct.append(answers.correct.numpy())
    return np.concatenate(correct).reshape(len(problems), draws)


def _generator(key: str) -> torch.Generator:
    digest = hashlib.sha256(key.encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def evaluate_samples(
    task: ReasoningTask,
    tokenizer: Any,
    seeds: list[SeedModels],
    *,
    draws: int,
    problems: int,
    batch_size: int,
    max_answer: int,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure pass@k for k in 1, 2, 4, ... up to ``draws``, and for ``draws`` itself.

    Args:
        tokenizer: of the recipe.
        draws: chains for each problem.
        problems: of the first test set, as in `evaluate_words`, whose exact match is that of the clean chain.

    Returns:
        ``draws``, and ``systems``: by name and k the `Rate` over seeds and problems. Its interval is that of outcomes
        which are right or wrong, so it is too wide rather than too narrow for k below ``draws``. Systems without a
        chain, or with hidden states in it, are left out.

    Raises:
        ValueError: ``draws`` is below 1.
    """
    if draws < 1:
        raise ValueError(f"{draws} chains a problem cannot be drawn; ask for at least 1")
    asked = first_problems(task, task.tests[0], problems)
    counts: dict[str, list[NDArray[np.int64]]] = {}
    prompt_format = PromptFormat(tokenizer=tokenizer)
    for entry, system in each_system(seeds, max_answer):
        if not system.mixes_rows or not system.stop.max_latents:
            continue
        say(f"seed {entry.seed}  {system.name}: {draws} noisy chains for each of {len(asked)} problems")
        correct = draw(system, prompt_format, asked, batch_size, draws=draws, seed=entry.seed)
        counts.setdefault(system.name, []).append(correct.sum(axis=1))
    every = sorted({draws, *(2**power for power in range(draws.bit_length()))})
    return {
        "draws": draws,
        "systems": {
            name: {str(k): asdict(rate(np.stack([pass_at(k, right, draws) for right in found]))) for k in every}
            for name, found in counts.items()
        },
    }
