"""NoThink (Ma et al., arXiv 2504.09858) and budget forcing (s1, Muennighoff et al., arXiv 2501.19393).

Both cost nothing in training, and are what a method with latents competes with at equal length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.reasoning import Reasoning, markers_of
from unspoken.ranges import require_value

if TYPE_CHECKING:
    from unspoken.reasoning.system import System


@dataclass(frozen=True, kw_only=True)
class ExplicitReasoning(Reasoning):
    """A chain of tokens between two markers, by any model that writes one.

    Attributes:
        markers: texts that open and close a chain; by default those that the folder records, or ``<think>`` and
            ``</think>`` if the tokenizer has them as tokens.
    """

    markers: tuple[str, str] | None = None

    def explicit(self, system: System, cap: int) -> System:
        """The model with chains of so many tokens at most.

        Raises:
            ValueError: its chain is not made of tokens, it was trained to answer without one, or nothing is known to
                close one.
        """
        from unspoken.reasoning.causal_lm import LatentGenerationConfig, causal_lm_system

        recorded = LatentGenerationConfig.recorded(system.model)
        if system.chain_kind != "tokens" or (recorded is not None and not recorded.max_latents):
            raise ValueError(
                f"{system.name} writes no chain of tokens, so there is none to close; leave {self.kind} out"
            )
        markers = markers_of(system, self.markers)
        if markers is None:
            raise ValueError(f"no token of {system.name} closes a chain; give {self.kind} its markers")
        settings = LatentGenerationConfig(
            open_ids=markers.open or markers.end, end_ids=markers.end, top_k=1, max_latents=cap
        )
        name = f"{system.name}, {self.title}"
        made = causal_lm_system(system.model, settings, name=name, max_tokens=system.max_tokens)
        return replace(made, opening=markers.open, text_format=system.text_format)


@dataclass(frozen=True, kw_only=True)
class NoThink(ExplicitReasoning):
    """The chain holds one given sentence and is closed at once; the answer follows.

    Attributes:
        sentence: stands between the open marker and the end marker, with a line break after it. Empty for none.
    """

    kind: ClassVar[str] = "no_think"

    sentence: str = "Okay, I think I have finished thinking."

    def applied(self, system: System) -> System:
        """The same model without a thought.

        Raises:
            ValueError: as `ExplicitReasoning.explicit`, or the tokenizer cannot write the sentence.
        """
        prefill = _written(system, "sentence", f"{self.sentence}\n") if self.sentence else ()
        closed = self.explicit(system, 0)
        return replace(closed, opening=(*closed.opening, *prefill), prefilled=len(prefill))


@dataclass(frozen=True, kw_only=True)
class BudgetForcing(ExplicitReasoning):
    """A chain is closed by force at the budget; one that the model closes too early goes on with a word.

    Attributes:
        budget: the most tokens of a chain; markers and answer do not count.
        least: the fewest; until then the end marker is replaced by the continuation.
        continuation: what replaces it.
        conclusion: follows the end marker by force, such as ``Final Answer:``. Empty for nothing.

    Raises:
        ValueError: a budget below 0 or below ``least``, or an empty continuation.
    """

    kind: ClassVar[str] = "budget_forcing"

    budget: int
    least: int = 0
    continuation: str = "Wait"
    conclusion: str = ""

    def __post_init__(self) -> None:
        require_value(self, "budget", lambda value: value >= 0, "0 or more")
        require_value(
            self, "least", lambda value: 0 <= value <= self.budget, f"from 0 to budget, which is {self.budget}"
        )
        if not self.continuation:
            raise ValueError("continuation is empty; give a word such as 'Wait'")

    def applied(self, system: System) -> System:
        """The same model on a budget.

        Raises:
            ValueError: as `ExplicitReasoning.explicit`, or the tokenizer cannot write a text.
        """
        forced = self.explicit(system, self.budget)
        words = _written(system, "continuation", self.continuation) if self.least else ()
        stop = replace(forced.stop, min_latents=self.least, continuation=words)
        after = _written(system, "conclusion", self.conclusion) if self.conclusion else ()
        speaker: Any = forced.speaker
        speaker = replace(speaker, marker=(*speaker.marker, *after))
        return replace(forced, stop=stop, speaker=speaker)


def _written(system: System, what: str, text: str) -> tuple[int, ...]:
    """The tokens of a text.

    Raises:
        ValueError: the tokenizer cannot write it.
    """
    layout = system.texts.prompt_format
    try:
        ids = layout.encode(text)
        again = layout.tokenizer.decode(list(ids))
    except Exception as error:  # a tokenizer without a token for unknown words raises one of no class of its own
        again, reason = None, f" ({error})"
    else:
        reason = ""
    if again is None or again.split() != text.split():
        raise ValueError(
            f"the tokenizer of {system.name} cannot write the {what} {text.strip()!r}{reason}; give another"
        )
    return ids
