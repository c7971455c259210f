"""Soft Thinking (Zhang et al., arXiv 2505.15778): probability-weighted mixtures of token embeddings, untrained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from unspoken.methods.method import Method, Objective
from unspoken.methods.reasoning import Reasoning, markers_of
from unspoken.ranges import require_value

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
        filter_top_k, top_p, min_p: what stays of the distribution before its ``top_k`` likeliest tokens are mixed; the
            published settings are 30, 0.95 and 0.001, with a temperature of 0.6.
        noise: on the weights, see `unspoken.reasoning.soft_steps.SoftReasoner`; a function of seed, prompt and step.
        noise_level: temperature of ``gumbel`` (published 0.5) or concentration of ``dirichlet`` (1.0).
        seed: of the noise.
        entropy_threshold: nats below which a step is certain (published 0.01); 0 turns the cold stop off.
        patience: certain steps in a row after which the chain is closed by force ("cold stop"; published 256).

    Raises:
        ValueError: a number out of range.
    """

    kind: ClassVar[str] = "soft_thinking"

    top_k: int | None = 10
    temperature: float = 1.0
    max_latents: int | None = None
    markers: tuple[str, str] | None = None
    filter_top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    noise: Literal["none", "gumbel", "dirichlet"] = "none"
    noise_level: float = 0.5
    seed: int = 0
    entropy_threshold: float = 0.0
    patience: int = 256

    def __post_init__(self) -> None:
        for name in ("top_k", "max_latents", "filter_top_k", "patience"):
            require_value(self, name, lambda value: value is None or value >= 1, "at least 1")
        for name in ("seed", "entropy_threshold"):
            require_value(self, name, lambda value: value >= 0, "0 or more")
        for name in ("temperature", "noise_level"):
            require_value(self, name, lambda value: value > 0, "above 0")
        require_value(self, "top_p", lambda value: 0 < value <= 1, "above 0 and at most 1")
        require_value(self, "min_p", lambda value: 0 <= value < 1, "at least 0 and below 1")

    def applied(self, system: System) -> System:
        """The same model in superpositions.

        Raises:
            ValueError: its chain is not made of tokens or superpositions, the folder was trained to answer without one,
                a marker is empty, or superpositions would be wrong around the model.
        """
        from unspoken.reasoning.causal_lm import LatentGenerationConfig, causal_lm_system
        from unspoken.reasoning.soft_steps import Filter, SoftReasoner

        if not system.mixes_rows:
            raise ValueError(
                f"{system.name} was trained to think in vectors that are no mixtures of tokens, which Soft Thinking "
                "cannot replace; load it without reasoning"
            )
        recorded = LatentGenerationConfig.recorded(system.model)
        cap = self.max_latents if self.max_latents is not None else 128 if recorded is None else recorded.max_latents
        if cap < 1:
            raise ValueError(f"{system.name} was trained to answer without a chain; give SoftThinking max_latents")
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
        reasoner = SoftReasoner(
            model=system.model,
            settings=settings,
            filter=Filter(top_k=self.filter_top_k, top_p=self.top_p, min_p=self.min_p),
            mixture_noise=self.noise,
            level=self.noise_level,
            certain_below=self.entropy_threshold,
            seed=self.seed,
        )
        stop = replace(soft.stop, patience=self.patience if self.entropy_threshold else 0)
        return replace(soft, reasoner=reasoner, stop=stop, opening=opening, text_format=system.text_format)


class SoftThinkingMethod(Method):
    """Soft Thinking, which trains nothing."""

    name: ClassVar[str] = "soft_thinking"
    objectives: ClassVar[tuple[type[Objective], ...]] = ()
    reasonings: ClassVar[tuple[type[Reasoning], ...]] = (SoftThinking,)
