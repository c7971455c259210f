"""CoLaR at another speed than the one that its folder records."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from unspoken.methods.reasoning import Reasoning

if TYPE_CHECKING:
    from unspoken.methods.method import Objective
    from unspoken.reasoning.system import System
    from unspoken.tasks.task import Traits


@dataclass(frozen=True, kw_only=True)
class ThinkingSpeed(Reasoning):
    """A CoLaR model whose latents stand for another number of tokens.

    Attributes:
        compression: that number.
        sampled: latents are drawn from the latent head and not taken at its mean.
        seed: of the draws, which are a function of it, the prompt and the step.

    Raises:
        ValueError: a compression below 1.
    """

    kind: ClassVar[str] = "thinking_speed"

    compression: int
    sampled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.compression < 1:
            raise ValueError(f"compression is {self.compression}; a latent stands for at least 1 token")

    def suits(self, objective: Objective, traits: Traits) -> bool:
        """Stages of CoLaR alone, up to their largest compression; draws need a head with a deviation."""
        from unspoken.methods.colar.stages import Colar

        if not isinstance(objective, Colar) or (self.sampled and objective.latent_loss == "mean"):
            return False
        return self.compression <= objective.max_compression

    def applied(self, system: System) -> System:
        """The same model at this speed.

        Raises:
            ValueError: it is no CoLaR model, was not trained at this speed, or has no deviation to draw with.
        """
        from unspoken.methods.colar.model import ColarForCausalLM, ColarReasoner

        if not isinstance(system.model, ColarForCausalLM):
            raise ValueError(f"{system.name} is no CoLaR model; leave {self.kind} out")
        how = {"max_tokens": system.max_tokens, "compression": self.compression}
        made = system.model.system(name=f"{system.name}, {self.title}", **how)
        if self.sampled and system.model.config.deterministic:
            raise ValueError(f"the latent head of {system.name} has no deviation to draw with; set sampled to false")
        seed = self.seed if self.sampled else None
        return replace(made, reasoner=ColarReasoner(model=system.model, seed=seed), text_format=system.text_format)
