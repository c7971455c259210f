"""Chains as tables that can be edited and answered from.

Axes: N latent steps, K entries of a distribution, D latent width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.chain import LatentChain, StopReason
from unspoken.draw.chains import visible
from unspoken.draw.formats import TWO_DECIMALS, count
from unspoken.draw.table import Column, Table, number, text
from unspoken.placement import moved
from unspoken.reasoning.superposition import embedding_table, mix

if TYPE_CHECKING:
    from unspoken.reasoning.system import System

_ROUNDING = 1e-3  # of the length of a unit vector


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a chain as it is read.

    Attributes:
        tokens: texts with their weights in a superposition. Where latents are trained to point at rows, with the
            coefficients of these, by least squares, or with cosines where there are more rows than a latent has
            numbers. Of hidden states the head's most likely tokens there, if they were scored; otherwise none.
        entropy: of the whole distribution, in nats; None without one.
        rows: tokens whose rows point most nearly where the latent does, with their cosines; none where rows mean
            nothing.
        norm: of the latent.
    """

    tokens: tuple[tuple[str, float], ...]
    entropy: float | None
    rows: tuple[tuple[str, float], ...]
    norm: float

    @property
    def nearest(self) -> str | None:
        """The token of the nearest row; None where rows mean nothing."""
        return self.rows[0][0] if self.rows else None


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
        """What each step is made of: at most ``top`` tokens, and as many nearest rows."""
        if not len(self):
            return []
        latents, rows = self.record.latents[0].float(), self._rows()
        cosines = None if rows is None else _cosines(latents, rows)
        weighed = None if rows is None else self._coefficients(latents, rows)
        read = []
        for step, latent in enumerate(latents):
            entropy, support = None, _support(self.record, step)
            if support is not None and bool(support[1].any()):
                ids, weights = support[0], support[1].float()
                entropy = float(torch.special.entr(weights).sum())
                best = weights.topk(min(top, int((weights > 0).sum())))
                shown = zip(ids[best.indices].tolist(), best.values.tolist(), strict=True)
            elif weighed is not None and self.system.targets is not None:
                strongest = weighed[step].abs().topk(min(top, weighed.shape[1])).indices
                shown = zip(strongest.tolist(), weighed[step, strongest].tolist(), strict=True)
            else:
                shown = zip((), (), strict=True)
            tokens = tuple((self._name(token), weight) for token, weight in shown)
            nearest: tuple[tuple[str, float], ...] = ()
            if cosines is not None and latent.any():
                closest = cosines[step].topk(min(max(top, 1), cosines.shape[1]))
                pairs = zip(closest.indices.tolist(), closest.values.tolist(), strict=True)
                nearest = tuple((self._name(token), cosine) for token, cosine in pairs)
            read.append(Step(tokens=tokens, entropy=entropy, rows=nearest, norm=float(latent.norm())))
        return read

    def distances(self, pieces: Sequence[Sequence[int]]) -> list[float | None]:
        """How far each step is from the piece of an explicit chain in its place: 1 - cosine.

        The cosine is that with the nearest row of the piece's tokens.

        Args:
            pieces: token ids, step by step; there may be more or fewer of them than steps.

        Returns:
            One number per step; None without a piece, of a step of zeros, and where rows mean nothing.
        """
        rows = self._rows()
        if rows is None or not len(self):
            return [None] * len(self)
        cosines, latents = _cosines(self.record.latents[0].float(), rows), self.record.latents[0]
        return [
            1 - float(cosines[step, [*piece]].max()) if piece and latents[step].any() else None
            for step, piece in zip(range(len(self)), [*pieces, *[()] * len(self)], strict=False)
        ]

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

    def _coefficients(self, latents: Float[Tensor, "N D"], rows: Float[Tensor, "V D"]) -> Float[Tensor, "N V"]:
        """Of directions of rows in each latent, by least squares; or cosines, see `Step`."""
        if not self._solvable(rows):
            return _cosines(latents, rows)
        return latents @ torch.linalg.pinv(F.normalize(rows.float(), dim=-1))

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
        at, rows = self.check_step(step), self._editable_rows()
        total = sum(weights.values())
        if total <= 0 or min(weights.values()) < 0:
            raise ValueError(f"the weights are {dict(weights)}; give at least one above 0 and none below")
        ids = torch.tensor([self._token(token) for token in weights], device=self.record.latents.device)
        fractions = torch.tensor([weight / total for weight in weights.values()], device=ids.device)
        if self.system.targets is not None:
            direction = F.normalize(fractions @ F.normalize(rows[ids].float(), dim=-1), dim=-1)
            return self.with_latent(at, direction * self.record.latents[0, at].float().norm())
        return self.with_latent(at, mix(fractions[None], ids[None], rows)[0], ids, fractions)

    def weigh(self, step: int, token: str | int, weight: float) -> Chain:
        """One token of a step at another weight; the others keep their proportions.

        Of a superposition, weights sum to 1. Where latents are trained to point at rows, the weight is the coefficient
        of the token's direction (see `Step`), and the latent keeps its length.

        Args:
            step: see `edit`.
            token: see `edit`.
            weight: 0 to 1, or to the latent's length.

        Raises:
            ValueError: as `edit`; the weight is out of range, or there is nothing else in the step that could have the
                rest.
        """
        at, rows, chosen = self.check_step(step), self._editable_rows(), self._token(token)
        record, latent = self.record, self.record.latents[0, at].float()
        most = 1.0 if self.system.targets is None else float(latent.norm())
        if not 0 <= weight <= most * (1 + _ROUNDING):
            raise ValueError(f"the weight is {weight}; it must be from 0 to {most:.4g}")
        if self.system.targets is not None:
            own = self._coefficients(latent[None], rows)[0, chosen]
            turned = _turned(latent, F.normalize(rows[chosen].float(), dim=-1), float(own), weight)
            if turned is not None:
                return self.with_latent(at, turned)
        else:
            kept = _entries(record, at)
            kept.pop(chosen, None)
            total = sum(kept.values())
            if total or weight == 1:
                mixture: dict[str | int, float] = {other: value * (1 - weight) / total for other, value in kept.items()}
                return self.edit(at, {**mixture, chosen: weight})
        raise ValueError(f"step {at} is {self._name(chosen)!r} alone; use edit to name what it shall be")

    def mixed(self, other: Chain, fraction: float) -> Chain:
        """A chain between this one and another, step by step.

        Superpositions are mixed by their weights, latents that point at rows by their directions, at a length between
        the two. Where one chain is longer, the further steps are those of the nearer chain.

        Args:
            fraction: of the other chain, 0 to 1, where the result is the other chain.

        Raises:
            ValueError: the fraction is out of range, or the other one's latents have another width.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"the fraction is {fraction}; it must be from 0 to 1")
        swapped = self.swap(other)  # which refuses another width
        nearer = swapped if fraction > 0.5 else self
        shared, mixed = min(len(self), len(other)), nearer
        for step in range(shared if 0 < fraction < 1 else 0):
            mine, theirs = self.record.latents[0, step].float(), other.record.latents[0, step].float()
            latent = (1 - fraction) * mine + fraction * theirs
            if self.system.targets is not None:
                length = (1 - fraction) * mine.norm() + fraction * theirs.norm()
                latent = F.normalize(latent, dim=-1) * length
            support: dict[int, float] = {}
            for record, factor in ((self.record, 1 - fraction), (other.record, fraction)):
                for token, weight in _entries(record, step).items():
                    support[token] = support.get(token, 0.0) + factor * weight
            ids = torch.tensor([*support], dtype=torch.long, device=latent.device)
            mixed = mixed.with_latent(step, latent, ids, torch.tensor([*support.values()], device=latent.device))
        return mixed

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
        at, there = self.check_step(step), other.check_step(step)
        return self.with_latent(at, other.record.latents[0, there], *(_support(other.record, there) or ()))

    def zero(self, step: int) -> Chain:
        """One step as a vector of zeros."""
        at = self.check_step(step)
        return self.with_latent(at, torch.zeros_like(self.record.latents[0, at]))

    def delete(self, step: int) -> Chain:
        """The chain without one step."""
        at = self.check_step(step)
        return self._only([index for index in range(len(self)) if index != at])

    def move(self, step: int, to: int) -> Chain:
        """One step in another place; those between the two move up."""
        at, place = self.check_step(step), self.check_step(to)
        order = [index for index in range(len(self)) if index != at]
        return self._only([*order[:place], at, *order[place:]])

    def truncate(self, steps: int) -> Chain:
        """The first so many steps; a ValueError if there are fewer."""
        if not 0 <= steps <= len(self):
            raise ValueError(f"steps is {steps}, but {self!r}; give 0 to {len(self)}")
        return self._only(list(range(steps)))

    def _editable_rows(self) -> Float[Tensor, "V D"]:
        """The rows that a step can be a mixture of; a ValueError if it cannot."""
        rows = self._rows()
        if rows is None or not self.system.silent:
            no_chain = "it writes no chain apart from its answer"
            why = "its latents are no mixtures of tokens" if self.system.silent else no_chain
            raise ValueError(f"{self.system.name}: a step cannot be edited with words, since {why}; use zero or swap")
        return rows

    def _only(self, steps: list[int]) -> Chain:
        kept = torch.tensor(steps, dtype=torch.long, device=self.record.mask.device)
        by_step = {name: value for name, value in vars(self.record).items() if name != "stop" and value is not None}
        return replace(self, record=replace(self.record, **{name: value[:, kept] for name, value in by_step.items()}))

    def with_latent(
        self,
        step: int,
        latent: Float[Tensor, " D"],
        ids: Int[Tensor, " K"] | None = None,
        weights: Float[Tensor, " K"] | None = None,
    ) -> Chain:
        """The chain with any vector as one of its steps.

        Args:
            step: negative ones count from the end.
            latent: the vector.
            ids: tokens that it is a mixture of; without them, the step has no distribution.
            weights: of these tokens.
        """
        at = self.check_step(step)
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

    def check_step(self, step: int) -> int:
        """The place of a step, counted from 0; a ValueError if there is none."""
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
        try:
            ids = self.system.texts.prompt_format.encode(token)
        except Exception:  # of no type of its own: a vocabulary without an entry for unknown texts
            ids = ()
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return int(ids[0])
        known = tokenizer.convert_tokens_to_ids(token)
        if known is None or known == tokenizer.unk_token_id:
            raise ValueError(
                f"{token!r} is no single token of {self.system.name}; give one as `table` writes it, or an id"
            )
        return int(known)


def _support(record: LatentChain, step: int) -> tuple[Int[Tensor, " K"], Float[Tensor, " K"]] | None:
    """Ids and weights of the distribution of a step, where the chain has any."""
    if record.support_ids is None or record.support_weights is None:
        return None
    return record.support_ids[0, step], record.support_weights[0, step]


def _entries(record: LatentChain, step: int) -> dict[int, float]:
    """Tokens of a step's distribution with their weights, without what only fills it up."""
    support = _support(record, step)
    if support is None:
        return {}
    ids, weights = support
    return {token: weight for token, weight in zip(ids.tolist(), weights.tolist(), strict=True) if weight > 0}


def _cosines(latents: Float[Tensor, "N D"], rows: Float[Tensor, "V D"]) -> Float[Tensor, "N V"]:
    return F.normalize(latents, dim=-1) @ F.normalize(rows.float(), dim=-1).T


def _turned(latent: Float[Tensor, " D"], direction: Tensor, own: float, weight: float) -> Tensor | None:
    """A latent of the same length with another coefficient of a direction; None if it has nothing else in it."""
    rest = latent - own * direction
    # |weight * direction + scale * rest| = |latent|, solved for the positive scale.
    square, product = float(rest @ rest), weight * float(direction @ rest)
    missing = max(float(latent @ latent) - weight**2, 0.0)
    if square <= 1e-12 * float(latent @ latent):
        return None
    scale = ((product**2 + square * missing) ** 0.5 - product) / square
    return weight * direction + scale * rest
