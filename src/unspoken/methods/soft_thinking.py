"""Soft Thinking (Zhang et al., arXiv 2505.15778): a model that was taught explicit chains, or nothing, superposes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.method import Method, Objective
from unspoken.methods.reasoning import Reasoning
from unspoken.tasks.spans import END, OPEN

if TYPE_CHECKING:
    from unspoken.reasoning.causal_lm import LatentGenerationConfig
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
        opening, end_ids = self._markers(system, recorded)
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

    def _markers(
        self, system: System, recorded: LatentGenerationConfig | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens that open a chain, which may be none, and tokens that close it."""
        layout = system.texts.prompt_format
        if self.markers is not None:
            opening, end_ids = map(layout.encode, self.markers)
            return opening, end_ids
        if recorded is not None:
            return recorded.open_ids, recorded.end_ids
        if all(_knows(layout.tokenizer, marker) for marker in (OPEN, END)):
            return layout.markers.open, layout.markers.end
        return (), (layout.tokenizer.eos_token_id,)


def _knows(tokenizer: Any, token: str) -> bool:
    return tokenizer.convert_tokens_to_ids(token) not in (None, tokenizer.unk_token_id)


class SoftThinkingMethod(Method):
    """Soft Thinking, which trains nothing."""

    name: ClassVar[str] = "soft_thinking"
    objectives: ClassVar[tuple[type[Objective], ...]] = ()
    reasonings: ClassVar[tuple[type[Reasoning], ...]] = (SoftThinking,)
