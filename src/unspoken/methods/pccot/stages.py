"""PCCoT's one stage (Wu et al., arXiv 2506.18582; details as in the published code, whyNLP/PCCoT at 2e32e3e)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.self_distillation import Projection, SelfDistillation
from unspoken.ranges import require_value

if TYPE_CHECKING:
    from unspoken.methods.cost import StackPass
    from unspoken.methods.pccot.model import PccotForCausalLM


@dataclass(frozen=True, kw_only=True)
class Pccot(SelfDistillation):
    """Latents are guessed all at once, with one learned row, and refined together (Jacobi iteration).

    As many iterations as latents make the chain that CODI would write one latent after another. The outputs of all
    blocks, and not the input of the first one, are drawn to the teacher's.

    Attributes:
        iterations: passes over all latents after the first one (the paper's T); 0 leaves the learned row in place,
            which is then a pause token.
        cut_gradient: no gradient flows from a pass over the latents into the one before it.

    Raises:
        ValueError: no latents, iterations below 0, or as `SelfDistillation`.
    """

    kind: ClassVar[str] = "pccot"
    title: ClassVar[str] = "PCCoT"
    first_state: ClassVar[int] = 1

    latents: int = 24
    iterations: int = 3
    projection: Projection | None = None
    cut_gradient: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_value(self, "latents", lambda value: value >= 1, "at least 1")
        require_value(self, "iterations", lambda value: value >= 0, "0 or more")

    @staticmethod
    def model_class() -> type[PccotForCausalLM]:
        from unspoken.methods.pccot.model import PccotForCausalLM

        return PccotForCausalLM

    @property
    def settings(self) -> dict[str, Any]:
        return {"iterations": self.iterations}

    @property
    def pass_settings(self) -> dict[str, Any]:
        return {"cut_gradient": self.cut_gradient}

    @property
    def projected(self) -> float:
        return self.iterations * super().projected

    def further_passes(self, stack: Any, prompt: float, teacher: float) -> Sequence[StackPass]:
        """One over all latents for each iteration."""
        from unspoken.methods.cost import StackPass

        has_gradient = not self.cut_gradient
        return [
            StackPass(stack=stack, positions=self.latents, across=prompt, has_gradient=has_gradient)
        ] * self.iterations

    def scored(self, prompt: float, text: float) -> float:
        """The last pass reads latents and text, and without iterations the prompt too."""
        return self.latents + text + (0 if self.iterations else prompt)
