"""How much a latent chain holds at once: covered tokens, parallel chains, entropy (Latent-SFT, arXiv 2510.15522).

A latent of this method is a mixture of embedding rows, so it comes with a distribution over the vocabulary. Effective
Compression Rate (ECR@K) counts the explicit tokens that one latent covers; Effective Global Parallelism (N_eff) counts
the explicit chains of one question among which the latents are undecided.

No formula of either was at hand. N_eff and N_naive follow the description of a script that the authors published and
withdrew; ECR, the N_eff of the paper's first version and the top-2 score are reconstructions that agree with what the
figures show, and may differ from the authors' own code.

All of them need full distributions: a cached label of ten tokens leaves the fiftieth open.

Axes: T latent steps, V vocabulary, D latent width, M chains of one question, L tokens of a chain, S spans of a chain,
R matchings of steps to spans, K entries of a distribution, B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unspoken.chain import StopReason

_CANDIDATES = 100  # tokens of a step that can support a chain
_EPSILON = 1e-12
_DRAWS = 64


def entropy(weights: Float[Tensor, "*N K"]) -> Float[Tensor, "*N"]:
    """Entropy in nats of full distributions, or of the weights of a support: they are taken as they are."""
    return torch.special.entr(weights).sum(dim=-1)


def average_by_step(values: Sequence[Float[Tensor, " _"]]) -> tuple[Float[Tensor, " T"], Int[Tensor, " T"]]:
    """Mean over chains of different length, a step at a time.

    Args:
        values: one number a step, for each chain.

    Returns:
        Mean over the chains that reach each step, and how many do; T is the longest chain's length.

    Raises:
        ValueError: no chain given.
    """
    if not values:
        raise ValueError("no chain to average by step; give at least one")
    lengths_B = torch.tensor([len(chain) for chain in values], device=values[0].device)
    total_T = pad_sequence(list(values), batch_first=True).sum(dim=0)
    counts_T = (lengths_B[:, None] > torch.arange(len(total_T), device=lengths_B.device)).sum(dim=0)
    return total_T / counts_T, counts_T


def exit_rate(stop: Int[Tensor, " B"]) -> float:
    """Rate of free rows that ended their chain by themselves; the others ran into the cap.

    Args:
        stop: one `StopReason` value a row; rows with a fixed number of steps do not count.

    Raises:
        ValueError: no row was free to end.
    """
    free = stop[stop != StopReason.FIXED]
    if not len(free):
        raise ValueError("exit rate of no free row; generate without a fixed number of steps")
    return float((free == StopReason.END).double().mean())


def distinct(chains: Sequence[str]) -> list[str]:
    """The chains of one question without repetitions, in order; case and runs of white space make no difference."""
    first: dict[str, str] = {}
    for chain in chains:
        first.setdefault(" ".join(chain.casefold().split()), chain)
    return list(first.values())


def ecr(
    distributions: Sequence[Float[Tensor, "_ V"]],
    chains: Sequence[Sequence[int]],
    top: Sequence[int] = (50, 100, 150, 200, 250, 300),
) -> dict[int, NDArray[np.float64]]:
    """Effective Compression Rate at each K: explicit tokens that a latent has among its K most likely ones.

    The chain is cut into as many contiguous spans as there are latents, span t from ``floor(t L / T)``; a latent covers
    tokens of its own span only, and every occurrence counts. The rate goes to L / T as K grows; 1 is explicit chain
    of thought. A reconstruction (see the head of this file).

    Args:
        distributions: the full distributions ``[T, V]`` of each sample.
        chains: token ids of each sample's explicit chain.
        top: the values of K; one of V or more takes every token.

    Returns:
        For each K the rates of the samples, in order. A sample without any step has no rate and is left out, so
        ``len(distributions)`` minus the number of rates is how many were.

    Raises:
        ValueError: other numbers of samples and chains, no or impossible K, a token outside the vocabulary, or
            distributions that were cut to fewer than K tokens.
    """
    if len(distributions) != len(chains):
        raise ValueError(f"{len(distributions)} distributions but {len(chains)} chains; ECR needs one chain per sample")
    if not top or min(top) < 1:
        raise ValueError(f"top is {tuple(top)}; ECR needs at least one K, each 1 or more")
    rates: dict[int, list[float]] = {most_likely: [] for most_likely in top}
    for sample, (distribution_TV, chain) in enumerate(zip(distributions, chains, strict=True)):
        steps, vocabulary = distribution_TV.shape
        if not steps:
            continue
        tokens_L = _token_ids(chain, distribution_TV, f"the chain of sample {sample}")
        leading_TK = distribution_TV.topk(min(max(top), vocabulary), dim=-1)
        for most_likely in top:
            if most_likely < vocabulary and bool((leading_TK.values[:, most_likely - 1] <= 0).any()):
                raise ValueError(
                    f"sample {sample} has a step with fewer than {most_likely} possible tokens; "
                    "ECR needs full distributions, not top-k labels"
                )
        found_LK = leading_TK.indices[_spans(tokens_L, steps)] == tokens_L[:, None]
        for most_likely in top:
            rates[most_likely].append(int(found_LK[:, :most_likely].sum()) / steps)
    return {most_likely: np.array(values, dtype=np.float64) for most_likely, values in rates.items()}


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """Among how many explicit chains one question's latents are undecided.

    With equal averaged scores N_eff is near M by itself; read it beside `n_naive`, `chains` and `ratio`.
    """

    chains: int  # M, the upper bound of every N
    # Exp of the entropy of the chains' weights, each latent matched to the nearest free span (the reworked metric).
    n_eff: float
    n_naive: float  # the same for random one-to-one matchings, mean over 64
    n_eff_v1: float  # the same with latent t matched to span t (the paper's first version)
    top2: float  # the second-largest weight over the largest, for `n_eff`
    top2_v1: float  # the same for `n_eff_v1`

    @property
    def ratio(self) -> float:
        """N_eff over N_naive: what the matching adds to chance."""
        return self.n_eff / self.n_naive


def global_parallelism(
    distributions: Float[Tensor, "T V"],
    latents: Float[Tensor, "T D"],
    chains: Sequence[Sequence[int]],
    references: Sequence[Float[Tensor, "_ D"]],
    *,
    seed: int,
) -> Parallelism:
    """Effective Global Parallelism of one question, with its controls. A reconstruction (see the head of this file).

    A chain's score is the mean over steps of ``log(eps + mass)``, where mass is the probability that the step gives to
    the tokens of its matched span, each occurrence counted, tokens beyond the step's hundred most likely left out. A
    softmax over the chains (temperature 1) turns scores into weights.

    Only the first ``min(T, references)`` steps and references of a chain are compared, and the chain is cut into that
    many spans (span i from ``floor(i L / S)``): references are meant to be one a span.

    Args:
        distributions: full distributions of the steps.
        latents: the latents themselves, compared with the references by cosine.
        chains: token ids of M explicit chains, all different (`distinct`).
        references: the latents ``[S, D]`` that stand for each chain.
        seed: of the random matchings.

    Raises:
        ValueError: fewer than two chains, a chain without reference, no step, steps and latents that do not
            correspond, or a token outside the vocabulary.
    """
    steps, vocabulary = distributions.shape
    if len(chains) < 2:
        raise ValueError(f"{len(chains)} chain(s) for the question; parallelism needs at least 2 distinct ones")
    if len(references) != len(chains):
        raise ValueError(f"{len(references)} references for {len(chains)} chains; give one reference per chain")
    if len(latents) != steps:
        raise ValueError(f"{len(latents)} latents but {steps} distributions; give one of each per step")
    if not steps or not all(len(reference) for reference in references):
        raise ValueError(
            "parallelism needs at least one step and one reference latent per chain; leave this question out"
        )
    leading = distributions.topk(min(_CANDIDATES, vocabulary), dim=-1)
    mass_TV = torch.zeros_like(distributions).scatter(-1, leading.indices, leading.values).double()
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for number, (chain, reference) in enumerate(zip(chains, references, strict=True)):
        tokens_L = _token_ids(chain, distributions, f"chain {number} of the question")
        spans = min(steps, len(reference))
        each_S = torch.arange(spans, device=latents.device)
        mass_SS = mass_TV.new_zeros(spans, spans)
        mass_SS.index_add_(1, _spans(tokens_L, spans), mass_TV[:spans, tokens_L])
        nearest_S = _greedy(latents[:spans], reference[:spans])
        random_RS = torch.rand(_DRAWS, spans, generator=generator).argsort(dim=-1).to(latents.device)
        matchings_RS = torch.cat([nearest_S[None], each_S[None], random_RS])
        scores.append((mass_SS + _EPSILON).log()[each_S, matchings_RS].mean(dim=-1))
    weights_RM = torch.stack(scores, dim=-1).softmax(dim=-1)
    effective_R = entropy(weights_RM).exp()
    largest, second = weights_RM.topk(2, dim=-1).values.unbind(dim=-1)
    return Parallelism(
        chains=len(chains),
        n_eff=float(effective_R[0]),
        n_naive=float(effective_R[2:].mean()),
        n_eff_v1=float(effective_R[1]),
        top2=float(second[0] / largest[0]),
        top2_v1=float(second[1] / largest[1]),
    )


def _token_ids(chain: Sequence[int], distribution: Float[Tensor, "_ V"], where: str) -> Int[Tensor, " L"]:
    vocabulary = distribution.shape[-1]
    if chain and not 0 <= min(chain) <= max(chain) < vocabulary:
        raise ValueError(
            f"{where} has token ids {min(chain)} to {max(chain)}, but the distributions have {vocabulary} tokens; "
            "use the tokenizer of the model that made them"
        )
    return torch.tensor(list(chain), dtype=torch.long, device=distribution.device)


def _spans(tokens: Int[Tensor, " L"], count: int) -> Int[Tensor, " L"]:
    """For each token its span, of ``count`` contiguous ones; span i starts at ``floor(i L / count)``."""
    length = len(tokens)
    starts = torch.arange(1, count, device=tokens.device) * length // count  # of all spans but the first
    return torch.searchsorted(starts, torch.arange(length, device=tokens.device), right=True)


def _greedy(latents: Float[Tensor, "S D"], reference: Float[Tensor, "S D"]) -> Int[Tensor, " S"]:
    """For each latent in turn the nearest reference, by cosine, that no earlier one took."""
    cosine_SS = F.normalize(latents.double(), dim=-1) @ F.normalize(reference.double(), dim=-1).T
    taken = []
    for step in range(len(latents)):
        span = int(cosine_SS[step].argmax())
        cosine_SS[:, span] = -torch.inf
        taken.append(span)
    return torch.tensor(taken, device=latents.device)
