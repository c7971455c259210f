"""Settings of Coconut's curriculum (Hao et al., arXiv 2412.06769, section 3), and what it makes of a problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class StepSpans:
    """Token ids of one problem.

    Attributes:
        prompt: everything before the open marker.
        steps: the explicit chain, cut into steps.
        answer: of a word problem, with its end-of-sequence token.
    """

    prompt: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training sequence: ``prompt | latents | end | text``.

    Attributes:
        prompt: everything before the first latent, the open marker included.
        latents: how many stand there.
        end: the marker behind them. It is given and never predicted, since the number of latents is fixed.
        text: what is predicted: the explicit steps that are left, and the answer.

    Raises:
        ValueError: an empty part, or fewer than 0 latents.
    """

    prompt: tuple[int, ...]
    latents: int
    end: tuple[int, ...]
    text: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("prompt", "end", "text"):
            if not getattr(self, name):
                raise ValueError(f"the {name} of a row has no tokens; give at least one")
        if self.latents < 0:
            raise ValueError(f"a row has {self.latents} latents; it cannot have fewer than 0")


@dataclass(frozen=True, kw_only=True)
class Coconut:
    """One stage: latents stand in for the first steps of the explicit chain, and what is left is learned as text.

    The published curriculum for grade-school arithmetic is ``replaced`` 0, 1, 2, 3 and then 3 again with ``rest``
    "none"; each stage starts from the one before it. A chain with fewer steps gets as many latents as any other, for
    at inference nobody knows how many steps a problem has.

    "k latents, then k tokens" (the baseline of JEPA-Reasoner's grammar task) is a problem whose steps are the k tokens
    that are left out, with ``replaced=k, latents_per_step=1``.

    Attributes:
        replaced: steps replaced by latents (the paper's k).
        latents_per_step: latents for each of them (the paper's c).
        rest: "none" leaves out the steps behind the replaced ones: the last stage.

    Raises:
        ValueError: ``replaced`` below 0, or ``latents_per_step`` below 1.
    """

    kind: ClassVar[str] = "coconut"

    replaced: int
    latents_per_step: int = 2
    rest: Literal["explicit", "none"] = "explicit"

    def __post_init__(self) -> None:
        if self.replaced < 0 or self.latents_per_step < 1:
            raise ValueError(
                f"replaced is {self.replaced} and latents_per_step {self.latents_per_step}; "
                "they must be at least 0 and at least 1"
            )

    @property
    def latents(self) -> int:
        """Length of every chain of this stage."""
        return self.replaced * self.latents_per_step

    def row(self, spans: StepSpans, open_ids: tuple[int, ...], end_ids: tuple[int, ...]) -> Row:
        """A problem as this stage reads it.

        Args:
            spans: the problem.
            open_ids, end_ids: markers around the latents; the open one may be empty.

        Raises:
            ValueError: the end marker, the whole prompt or the whole text is empty.
        """
        left = spans.steps[self.replaced :] if self.rest == "explicit" else ()
        text = (*(token for step in left for token in step), *spans.answer)
        return Row(prompt=spans.prompt + open_ids, latents=self.latents, end=end_ids, text=text)

    def with_places(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What a batch needs before it leaves the host, see `unspoken.methods.coconut.objective.with_places`."""
        from unspoken.methods.coconut.objective import with_places

        return with_places(batch)

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model's forward takes out of a batch."""
        return {name: batch[name] for name in ("input_ids", "attention_mask", "latent_mask", "text_ids", "text_mask")}

    def __call__(self, outputs: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of a batch, see `unspoken.methods.coconut.objective.text_loss`."""
        from unspoken.methods.coconut.objective import text_loss

        return text_loss(outputs, batch)
