"""Chains and answers that the library writes around a model, compared with what transformers makes of the same rows.

Each function takes a folder of the hub, lets the library build and run a method as a recipe would, and returns the
comparisons. A refusal is an error that the library raises on the way.

Axes: B batch, T places of a row, N latents, M spoken words, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from hub import LATENTS, ROWS, WORDS, Hub, random_words
from torch import Tensor
from transformers import PreTrainedModel
from truth import Agreement, hidden, mixture_error, relative, scores, table

from unspoken.chain import LatentChain
from unspoken.methods.coupled.reasoner import CoupledReasoner
from unspoken.methods.coupled.stages import NextToken
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import StopRule, rollout

RAGGED = (LATENTS, 2, 0)


def explicit(hub: Hub) -> Agreement:
    """Explicit chain of thought: every step is one token, so the truth reads ids alone."""
    found, truth = Agreement(), hub.truth
    model = hub.built("cot").eval()
    reasoner = _reasoner(hub, model)
    _replies(found, hub, reasoner, "tokens")
    ids, mask = hub.prompt_format.prompts(hub.problems)
    coupled = CoupledReasoner(model=model, end_id=-1, pad_id=0)
    chain = rollout(coupled, ids, mask, StopRule(max_latents=LATENTS, fixed=True))
    assert chain.support_ids is not None
    with torch.no_grad():
        for row, spans in enumerate(hub.spans):
            tokens, prompt = chain.support_ids[row, :, 0], torch.tensor(spans.prompt)
            true = scores(truth, torch.cat([prompt, tokens]))[len(prompt) - 1 : -1]
            worse = true.amax(dim=-1) - true.gather(-1, tokens[:, None])[:, 0]
            found.note("greedy tokens", float(worse.max() / true.abs().max()))
        batch, objective = hub.batch("cot"), NextToken(positions="answer")
        loss, _ = objective.loss(model, batch)
        found.compare("loss", loss, _next_token_loss(truth, batch))
    return found


def mixed(hub: Hub) -> Agreement:
    """Superpositions, without any training."""
    found = Agreement()
    model = hub.built("cot").eval()
    reads_rows(found, hub, model)
    reasoner = _reasoner(hub, model, top_k=5)
    _replies(found, hub, reasoner, "mixtures")
    _replies(
        found, hub, replace(reasoner, settings=replace(reasoner.settings, top_k=None)), "mixtures", only_alone=True
    )
    return found


def looped(hub: Hub) -> Agreement:
    """Hidden states fed back, without any training: how Coconut answers."""
    found = Agreement()
    model = hub.built("cot").eval()
    reads_rows(found, hub, model)
    _replies(found, hub, _reasoner(hub, model, feed="hidden"), "hidden")
    return found


def _reasoner(hub: Hub, model: PreTrainedModel, **settings: Any) -> CausalLMReasoner:
    """The model as the library lets it answer, with chains of a fixed length."""
    written = LatentGenerationConfig.of(model)
    return CausalLMReasoner(model=model, settings=replace(written, fixed=True, max_latents=LATENTS, **settings))


def prompts(hub: Hub) -> list[Tensor]:
    """Each prompt with its open marker."""
    return [torch.tensor(spans.prompt + hub.prompt_format.markers.open) for spans in hub.spans]


@torch.no_grad()
def reads_rows(found: Agreement, hub: Hub, model: PreTrainedModel) -> None:
    """Whether the rows of the table stand for the tokens: every method but explicit chains feeds vectors."""
    words = random_words(12, seed=7)
    found.compare("rows for ids", scores(model, table(model, words)), scores(hub.truth, words))


# --- chains and answers ------------------------------------------------------------------------------------------


def _replies(
    found: Agreement,
    hub: Hub,
    reasoner: CausalLMReasoner,
    kind: Literal["tokens", "mixtures", "hidden"],
    *,
    only_alone: bool = False,
) -> None:
    """Chains and answers of a padded batch, of one row alone, and of chains of different length that are given."""
    ids, mask = hub.prompt_format.prompts(hub.problems)
    longest = int(mask.sum(dim=1).argmax())
    _reply(found, hub, reasoner, kind, "alone ", [longest], ids[longest : longest + 1], None, None)
    if only_alone:
        return
    _reply(found, hub, reasoner, kind, "batch ", list(range(ROWS)), ids, mask, None)
    tokens, lengths = random_words(ROWS, LATENTS, seed=4), torch.tensor(RAGGED)
    there = torch.arange(LATENTS) < lengths[:, None]
    with torch.no_grad():
        latents = table(hub.truth, tokens)
        if kind != "tokens":
            latents = 0.6 * latents + 0.4 * latents.flip(1)
    given = LatentChain(
        latents=latents * there[..., None],
        mask=there,
        stop=torch.zeros(ROWS, dtype=torch.long),
        support_ids=tokens[..., None],
        support_weights=torch.ones(ROWS, LATENTS, 1),
    )
    _reply(found, hub, reasoner, kind, "given ", list(range(ROWS)), ids, mask, given)


@torch.no_grad()
def _reply(
    found: Agreement,
    hub: Hub,
    reasoner: CausalLMReasoner,
    kind: str,
    label: str,
    rows: list[int],
    ids: Tensor,
    mask: Tensor | None,
    given: LatentChain | None,
) -> None:
    seen: dict[tuple[int, int], Tensor] = {}

    def sample(scored: Tensor, those: Tensor, first: int) -> Tensor:
        for row, score in zip(those.tolist(), scored[:, 0], strict=True):
            seen[row, first] = score.clone()
        # The best of the words that do not end an answer.
        return scored[:, :, 5:].argmax(dim=-1) + 5

    chain, words = reasoner.respond(ids, mask, max_tokens=WORDS, given=given, sample=sample)
    truth, end = hub.truth, torch.tensor(hub.prompt_format.markers.end)
    assert chain.support_ids is not None
    assert chain.support_weights is not None
    for place, row in enumerate(rows):
        prompt, steps = prompts(hub)[row], int(chain.lengths[place])
        tail, latents = torch.cat([end, words[place, : WORDS - 1]]), chain.latents[place, :steps]
        if kind == "tokens":
            whole = torch.cat([prompt, chain.support_ids[place, :steps, 0], tail])
        else:
            whole = torch.cat([table(truth, prompt), latents, table(truth, tail)])
        true = scores(truth, whole)
        for word in range(WORDS):
            found.steps(f"{label}answers", relative(seen[place, word], true[len(whole) - WORDS + word]))
        if given is not None:
            continue
        start = len(prompt) - 1
        # A model that looks ahead is wrong wherever more follows, so one place is read from a row that ends there.
        true[start] = scores(truth, whole[: start + 1])[-1]
        if kind == "hidden":
            outputs = hidden(truth, whole)
            found.steps(f"{label}latents", relative(latents, outputs[start : start + steps]))
            continue
        for step in range(steps):
            weights, support = chain.support_weights[place, step], chain.support_ids[place, step]
            found.steps(f"{label}chains", mixture_error(true[start + step], weights, support))
            found.compare(f"{label}latents", latents[step], weights @ table(truth, support))


def _next_token_loss(truth: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the supervised tokens of a batch, each row read alone."""
    losses = []
    for ids, real, target in zip(batch["input_ids"], batch["attention_mask"].bool(), batch["answer_mask"], strict=True):
        row, chosen = ids[real], target[real][1:]
        losses.append(F.cross_entropy(scores(truth, row)[:-1][chosen], row[1:][chosen], reduction="none"))
    return torch.cat(losses).mean()


CHAINS: dict[str, Callable[[Hub], Agreement]] = {
    "explicit chain": explicit,
    "superposition": mixed,
    "hidden state": looped,
}
