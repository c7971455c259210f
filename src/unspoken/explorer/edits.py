"""Changes of a chain as a page asks for them; the arithmetic is that of `unspoken.reasoning.inspection.Chain`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from unspoken.evaluation.latent_noise import LatentNoise
from unspoken.reasoning.inspection import Chain

ProblemName = int | str  # the number of a test problem, or a problem as a person types it
ChainOf = Callable[[ProblemName], Chain]
Rest = Literal["keep", "write"]  # steps after a change stay as they are, or the model writes them anew
_LOUDEST = 100.0  # noise, over the largest entry of a latent


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One change of a chain."""

    kind: ClassVar[str]

    def applied(self, chain: Chain, chain_of: ChainOf) -> Chain:
        """The changed chain.

        Args:
            chain_of: the model's own chain of another problem.

        Raises:
            ValueError: there is no such step or token, or the change makes no sense of this chain.
        """
        raise NotImplementedError

    def written_from(self, chain: Chain) -> int | None:
        """The step of a chain from which on the model writes it anew; None where the rest stays as it is."""
        return None


@dataclass(frozen=True, kw_only=True)
class StepEdit(Edit):
    """A change of one step."""

    step: int
    rest: Rest = "keep"

    def written_from(self, chain: Chain) -> int | None:
        return chain.check_step(self.step) + 1 if self.rest == "write" else None


@dataclass(frozen=True, kw_only=True)
class Weigh(StepEdit):
    """One token of a step at another weight."""

    kind: ClassVar[str] = "weigh"
    token: str
    weight: float

    def applied(self, chain: Chain, chain_of: ChainOf) -> Chain:
        return chain.weigh(self.step, self.token, self.weight)


@dataclass(frozen=True, kw_only=True)
class Swap(StepEdit):
    """The step of the same number in the chain of another problem."""

    kind: ClassVar[str] = "swap"
    problem: ProblemName

    def applied(self, chain: Chain, chain_of: ChainOf) -> Chain:
        return chain.swap(chain_of(self.problem), self.step)


@dataclass(frozen=True, kw_only=True)
class Zero(StepEdit):
    """A vector of zeros."""

    kind: ClassVar[str] = "zero"

    def applied(self, chain: Chain, chain_of: ChainOf) -> Chain:
        return chain.zero(self.step)


@dataclass(frozen=True, kw_only=True)
class Noise(StepEdit):
    """Gaussian noise at the step's own length, see `LatentNoise`."""

    kind: ClassVar[str] = "noise"
    amount: float  # of its standard deviation over the largest entry of the latent
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.amount <= _LOUDEST or self.seed < 0:
            raise ValueError(f"amount is {self.amount} and seed {self.seed}; give 0 to {_LOUDEST:g}, and a seed from 0")

    def applied(self, chain: Chain, chain_of: ChainOf) -> Chain:
        chain.check_step(self.step)
        noise, row = LatentNoise(fraction=self.amount, seed=self.seed), torch.tensor([0])
        noisy, _ = noise.add(chain.record.latents[:, self.step].float(), self.step % len(chain), row)
        return chain.with_latent(self.step, noisy[0])


@dataclass(frozen=True, kw_only=True)
class Move(StepEdit):
    """A step in another place."""

    kind: ClassVar[str] = "move"
    to: int

    def written_from(self, chain: Chain) -> int | None:
        return max(map(chain.check_step, (self.step, self.to))) + 1 if self.rest == "write" else None

    def applied(self, chain: Chain, chain_of: ChainOf) -> Chain:
        return chain.move(self.step, self.to)


@dataclass(frozen=True, kw_only=True)
class Delete(Edit):
    """The chain without a step. The rest stays: written anew, it would be the same chain again."""

    kind: ClassVar[str] = "delete"
    step: int

    def applied(self, chain: Chain, chain_of: ChainOf) -> Chain:
        return chain.delete(self.step)


@dataclass(frozen=True, kw_only=True)
class Truncate(Edit):
    """The first steps alone."""

    kind: ClassVar[str] = "truncate"
    steps: int

    def applied(self, chain: Chain, chain_of: ChainOf) -> Chain:
        return chain.truncate(self.steps)


@dataclass(frozen=True, kw_only=True)
class Mix(Edit):
    """A chain between this one and that of another problem."""

    kind: ClassVar[str] = "mix"
    problem: ProblemName
    fraction: float  # of the other one

    def applied(self, chain: Chain, chain_of: ChainOf) -> Chain:
        return chain.mixed(chain_of(self.problem), self.fraction)


def edits() -> tuple[type[Edit], ...]:
    """Every kind of change."""
    return (Weigh, Swap, Zero, Noise, Move, Delete, Truncate, Mix)
