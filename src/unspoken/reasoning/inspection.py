"""Answers as text, and their chains as tables that can be edited and answered from.

Axes: N latent steps, K entries of a distribution, D latent width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unspoken.chain import LatentChain, StopReason
from unspoken.draw.chains import visible
from unspoken.draw.formats import TWO_DECIMALS, count, quantity
from unspoken.draw.table import Column, Table, number, text
from unspoken.placement import moved
from unspoken.reasoning.superposition import embedding_table, mix
from unspoken.tasks.prompt_format import left_padded

if TYPE_CHECKING:
    from unspoken.reasoning.picking import Sample
    from unspoken.reasoning.system import System

_AT_ONCE = 64  # texts answered in one batch


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


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a chain as it is read.

    Attributes:
        tokens: texts with their weights in a superposition. Where latents are trained to point at rows, with the
            coefficients of these, by least squares, or with cosines where there are more rows than a latent has
            numbers. Of hidden states the head's most likely tokens there, if they were scored; otherwise none.
        entropy: of the whole distribution, in nats; None without one.
        nearest: token whose row points most nearly where the latent does; None where rows mean nothing.
        norm: of the latent.
    """

    tokens: tuple[tuple[str, float], ...]
    entropy: float | None
    nearest: str | None
    norm: float


@dataclass(frozen=True, kw_only=True, repr=False)
class Chain:
    """One chain, its reading, and its changes; every change is a new chain. Steps are counted from 0.

    Attributes:
        system: that wrote it.
        record: the chain as a batch of one, without steps after its end.
    """

    system: System
    record: LatentChain

    def __len__(self) -> int:
        return int(self.record.lengths[0])

    def __repr__(self) -> str:
        return f"<Chain of {count(len(self), 'step')} ({self.system.chain_kind}) by {self.system.name}>"

    @property
    def stopped(self) -> StopReason:
        """Why it ended."""
        return StopReason(int(self.record.stop[0]))

    # --- reading -----------------------------------------------------------------------------------------------------

    def steps(self, top: int = 5) -> list[Step]:
        """What each step is made of: at most ``top`` tokens."""
        if not len(self):
            return []
        latents, rows = self.record.latents[0].float(), self._rows()
        cosines = weighed = None
        if rows is not None:
            directions = F.normalize(rows.float(), dim=-1)
            cosines = F.normalize(latents, dim=-1) @ directions.T
            weighed = latents @ torch.linalg.pinv(directions) if self._solvable(rows) else cosines
        ids, weights = self.record.support_ids, self.record.support_weights
        read = []
        for step, latent in enumerate(latents):
            entropy, kept = None, None
            if ids is not None and weights is not None and bool(weights[0, step].any()):
                kept = weights[0, step].float()
                entropy = float(torch.special.entr(kept).sum())
                best = kept.topk(min(top, int((kept > 0).sum())))
                shown = zip(ids[0, step][best.indices].tolist(), best.values.tolist(), strict=True)
            elif weighed is not None and self.system.targets is not None:
                strongest = weighed[step].abs().topk(min(top, weighed.shape[1])).indices
                shown = zip(strongest.tolist(), weighed[step, strongest].tolist(), strict=True)
            else:
                shown = zip((), (), strict=True)
            nearest = None if cosines is None or not latent.any() else self._name(int(cosines[step].argmax()))
            tokens = tuple((self._name(token), weight) for token, weight in shown)
            read.append(Step(tokens=tokens, entropy=entropy, nearest=nearest, norm=float(latent.norm())))
        return read

    def table(self, top: int = 5) -> Table:
        """The steps, of at most ``top`` tokens, as a table, which a terminal prints and a notebook draws."""
        rows = self._rows()
        if rows is None:
            weighed = "by the head"
        else:
            weighed = "made of" if self.system.targets is None or self._solvable(rows) else "cosine with rows"
        columns = (
            Column("step"),
            Column(weighed, classes=""),
            Column("entropy|nats"),
            Column("nearest row", classes=""),
            Column("norm"),
        )
        lines = [
            [
                text(str(index)),
                text("  ".join(f"{visible(token)} {TWO_DECIMALS(weight)}" for token, weight in step.tokens) or "–"),
                number(step.entropy, TWO_DECIMALS),
                text("–" if step.nearest is None else visible(step.nearest)),
                number(step.norm, TWO_DECIMALS),
            ]
            for index, step in enumerate(self.steps(top))
        ]
        return Table(columns=columns, rows=lines, title=repr(self).strip("<>"))

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def _rows(self) -> Float[Tensor, "V D"] | None:
        """Rows at which the latents point, or of which they are mixtures; None where they are neither."""
        if self.system.targets is not None:
            return moved(self.system.targets.target_table, self.record.latents.device)
        table = embedding_table(self.system.model) if self.system.mixes_rows else None
        return None if table is None else moved(table, self.record.latents.device)

    def _solvable(self, rows: Tensor) -> bool:
        """Coefficients of a latent over all rows are unique; with more rows than numbers they are not."""
        return rows.shape[0] <= rows.shape[1]

    def _name(self, token: int) -> str:
        return str(self.system.texts.tokenizer.decode([token]))

    # --- changes -----------------------------------------------------------------------------------------------------

    def edit(self, step: int, weights: Mapping[str | int, float]) -> Chain:
        """One step as another mixture of tokens.

        Where latents are trained to point at rows, the mixture is of their directions, and has the latent's length.

        Args:
            step: negative ones count from the end.
            weights: tokens, as text or as ids, and their weights, which are divided by their sum.

        Raises:
            ValueError: there is no such step or token, a weight is negative or all are 0, or the latents are neither
                mixtures of rows nor point at them.
        """
        at, rows = self._at(step), self._rows()
        if rows is None or not self.system.silent:
            why = "its chain is its answer" if not self.system.silent else "its latents are no mixtures of tokens"
            raise ValueError(f"{self.system.name}: a step cannot be edited with words, since {why}; use zero or swap")
        total = sum(weights.values())
        if total <= 0 or min(weights.values()) < 0:
            raise ValueError(f"the weights are {dict(weights)}; give at least one above 0 and none below")
        ids = torch.tensor([self._token(token) for token in weights], device=self.record.latents.device)
        fractions = torch.tensor([weight / total for weight in weights.values()], device=ids.device)
        if self.system.targets is not None:
            direction = F.normalize(fractions @ F.normalize(rows[ids].float(), dim=-1), dim=-1)
            return self._changed(at, direction * self.record.latents[0, at].float().norm())
        return self._changed(at, mix(fractions[None], ids[None], rows)[0], ids, fractions)

    def swap(self, other: Chain, step: int | None = None) -> Chain:
        """The latents of another chain in place of this one's.

        Args:
            step: the one to exchange for the other's of that number; None exchanges the whole chain.

        Raises:
            ValueError: the other one's latents have another width, or there is no such step.
        """
        if other.record.latents.shape[-1] != self.record.latents.shape[-1]:
            raise ValueError(f"{other!r} has latents of another width than {self!r}; take a chain of the same model")
        if step is None:
            return replace(self, record=other.record)
        at, there, record = self._at(step), other._at(step), other.record
        if record.support_ids is None or record.support_weights is None:
            return self._changed(at, record.latents[0, there])
        return self._changed(
            at, record.latents[0, there], record.support_ids[0, there], record.support_weights[0, there]
        )

    def zero(self, step: int) -> Chain:
        """One step as a vector of zeros."""
        at = self._at(step)
        return self._changed(at, torch.zeros_like(self.record.latents[0, at]))

    def delete(self, step: int) -> Chain:
        """The chain without one step."""
        at = self._at(step)
        return self._only([index for index in range(len(self)) if index != at])

    def truncate(self, steps: int) -> Chain:
        """The first so many steps; a ValueError if there are fewer."""
        if not 0 <= steps <= len(self):
            raise ValueError(f"steps is {steps}, but {self!r}; give 0 to {len(self)}")
        return self._only(list(range(steps)))

    def _only(self, steps: list[int]) -> Chain:
        kept = torch.tensor(steps, dtype=torch.long, device=self.record.mask.device)
        by_step = {name: value for name, value in vars(self.record).items() if name != "stop" and value is not None}
        return replace(self, record=replace(self.record, **{name: value[:, kept] for name, value in by_step.items()}))

    def _changed(self, at: int, latent: Tensor, ids: Tensor | None = None, weights: Tensor | None = None) -> Chain:
        """The chain with another latent; without a distribution of its own, the step has none."""
        record, latents = self.record, self.record.latents.clone()
        latents[0, at] = latent.to(latents.dtype)
        if record.support_ids is None or record.support_weights is None:
            return replace(self, record=replace(record, latents=latents))
        entries = max(record.support_ids.shape[-1], 0 if ids is None else len(ids))
        wider = (0, entries - record.support_ids.shape[-1])
        all_ids, all_weights = F.pad(record.support_ids, wider), F.pad(record.support_weights, wider)
        all_weights[0, at] = 0
        if ids is not None and weights is not None:
            all_ids[0, at, : len(ids)], all_weights[0, at, : len(ids)] = ids, weights.to(all_weights.dtype)
        changed = replace(record, latents=latents, support_ids=all_ids, support_weights=all_weights)
        return replace(self, record=changed)

    def _at(self, step: int) -> int:
        if not -len(self) <= step < len(self):
            raise ValueError(f"there is no step {step} in {self!r}; they are counted from 0")
        return step % len(self)

    def _token(self, token: str | int) -> int:
        """The id of a token, given as it is or as the text that `steps` writes; a ValueError if there is none."""
        tokenizer: Any = self.system.texts.tokenizer
        if isinstance(token, int):
            if not 0 <= token < len(tokenizer):
                raise ValueError(f"there is no token {token}; the vocabulary has {len(tokenizer)}")
            return token
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return int(ids[0])
        known = tokenizer.convert_tokens_to_ids(token)
        if known is None or known == tokenizer.unk_token_id:
            raise ValueError(
                f"{token!r} is no single token of {self.system.name}; give one as `table` writes it, or an id"
            )
        return int(known)


def answer_texts(
    system: System,
    texts: Sequence[str],
    chains: Sequence[Chain] | None,
    *,
    sample: Sample | None,
    max_tokens: int | None,
) -> list[TextAnswer]:
    """See `System.answer`."""
    if chains is not None:
        _check_chains(system, texts, chains)
    return answer_prompts(system, [system.texts.prompt(text) for text in texts], chains, sample, max_tokens)


def answer_prompts(
    system: System,
    prompts: Sequence[tuple[int, ...]],
    chains: Sequence[Chain] | None,
    sample: Sample | None,
    max_tokens: int | None,
) -> list[TextAnswer]:
    """Answers to prompts that are tokens already, some at once."""
    answers: list[TextAnswer] = []
    for first in range(0, len(prompts), _AT_ONCE):
        rows = prompts[first : first + _AT_ONCE]
        ids, mask = left_padded(rows, system.texts.tokenizer.pad_token_id)
        given = None if chains is None else [chain.record for chain in chains[first : first + _AT_ONCE]]
        answer = system.respond(
            ids,
            mask,
            max_tokens=max_tokens,
            chain=None if given is None else LatentChain.concatenate(given),
            sample=sample,
        )
        flops = system.flops(mask.sum(dim=1), answer).tolist()
        for row, (steps, length) in enumerate(zip(answer.chain.lengths.tolist(), answer.lengths.tolist(), strict=True)):
            record = answer.chain.select(torch.tensor([row])) if given is None else given[row]
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


def _check_chains(system: System, texts: Sequence[str], chains: Sequence[Chain]) -> None:
    """Refuse chains that do not belong to the texts or to the system."""
    if len(chains) != len(texts):
        raise ValueError(f"{len(chains)} chains for {len(texts)} texts; give each text one")
    for chain in chains:
        if chain.record.latents.shape[-1] != system.reasoner.stack.config.hidden_size:
            raise ValueError(f"{chain!r} has latents of another width than {system.name}; give a chain of its own")
        if not len(chain) and not system.speaker.same_stack:
            raise ValueError(f"{system.name} writes one token a latent, so an empty chain has no answer")
