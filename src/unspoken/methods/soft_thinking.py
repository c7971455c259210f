"""Soft Thinking (Zhang et al., arXiv 2505.15778): a model that was taught explicit chains, or nothing, superposes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from unspoken.methods.method import Method, Objective
from unspoken.methods.reasoning import Reasoning, markers_of

if TYPE_CHECKING:
    from unspoken.reasoning.system import System


@dataclass(frozen=True, kw_only=True)
class SoftThinking(Reasoning):
    """Every step of the chain is the mean of the likeliest tokens' rows, weighted by their probabilities.

    Attributes:
        top_k: tokens in it; None takes the whole vocabulary.
        temperature: divides the scores.
        max_latents: cap of a chain; by default the one that the folder records, and 128 where it records none.
        markers: texts that open and close a chain; it closes where the likeliest token is the first of the closing
            text, which is then appended by force. By default those that the folder records, or ``<think>`` and
            ``</think>`` if the tokenizer has them as tokens. Otherwise a chain begins right after the prompt and ends
            with the end-of-sequence token.
    """

    kind: ClassVar[str] = "soft_thinking"

    top_k: int | None = 10
    temperature: float = 1.0
    max_latents: int | None = None
    markers: tuple[str, str] | None = None

    def applied(self, system: System) -> System:
        """The same model in superpositions.

        Raises:
            ValueError: its chain is not made of tokens or superpositions, the folder was taught to answer without one,
                a marker is empty, or superpositions would be wrong around the model.
        """
        from unspoken.reasoning.causal_lm import LatentGenerationConfig, causal_lm_system

        if not system.mixes_rows:
            raise ValueError(
                f"{system.name} was trained to think in vectors that are no mixtures of tokens, which Soft Thinking "
                "cannot replace; load it without reasoning"
            )
        recorded = LatentGenerationConfig.recorded(system.model)
        cap = self.max_latents if self.max_latents is not None else 128 if recorded is None else recorded.max_latents
        if cap < 1:
            raise ValueError(f"{system.name} was taught to answer without a chain; give SoftThinking its max_latents")
        markers = markers_of(system, self.markers)
        # A model of nobody's markers begins its chain right after the prompt and ends it as it ends a text.
        opening, end_ids = ((), (system.texts.tokenizer.eos_token_id,)) if markers is None else markers
        settings = LatentGenerationConfig(
            open_ids=opening or end_ids,
            end_ids=end_ids,
            top_k=self.top_k,
            temperature=self.temperature,
            max_latents=cap,
        )
        soft = causal_lm_system(
            system.model, settings, name=f"{system.name}, {self.title}", max_tokens=system.max_tokens
        )
        return replace(soft, opening=opening, text_format=system.text_format)


class SoftThinkingMethod(Method):
    """Soft Thinking, which trains nothing."""

    name: ClassVar[str] = "soft_thinking"
    objectives: ClassVar[tuple[type[Objective], ...]] = ()
    reasonings: ClassVar[tuple[type[Reasoning], ...]] = (SoftThinking,)
