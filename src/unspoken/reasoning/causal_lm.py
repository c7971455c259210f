"""Reasoning in superpositions with a plain causal language model (docs/methods/latent_sft.md).

One class covers the family, because an explicit chain is the superposition of one token: ``top_k=1`` is greedy chain of
thought, ``top_k=10`` on a model that was only tuned on explicit chains is Soft Thinking, and on a model that learned
from labels it is Latent-SFT. A fixed length of 0 is the answer-only baseline, and a fixed number of hidden states is
Coconut.

Axes: B batch, T prompt tokens, N latent steps, M tokens of an answer, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.utils.generic import ModelOutput

from unspoken.backbone.checks import Method, require
from unspoken.backbone.vocabulary import scores
from unspoken.chain import LatentChain
from unspoken.ranges import require_value
from unspoken.reasoning.engine import Intervention, LatentStep, StopRule
from unspoken.reasoning.picking import Sample, draw
from unspoken.reasoning.speakers import Request, SameStack, ends_and_pad
from unspoken.reasoning.superposition import choose, embedding_table, heaviest, mix, readout_of
from unspoken.reasoning.system import ChainKind, System, opened
from unspoken.tasks.spans import Markers


def forget_reasoning(model: PreTrainedModel) -> None:
    """Remove from a model's generation config how it reasoned before it was trained for something else."""
    config = model.generation_config
    for name in [name for name, value in vars(config).items() if isinstance(value, Mapping) and "end_ids" in value]:
        delattr(config, name)


def record_reasoning(model: PreTrainedModel, name: str, settings: Mapping[str, Any]) -> None:
    """Record in a model's generation config how it reasons, in place of what a stage before it recorded.

    Args:
        name: key in ``generation_config.json``.
        settings: with ``end_ids``, the tokens that end a chain; `forget_reasoning` knows a record by them.
    """
    forget_reasoning(model)
    config = model.generation_config
    setattr(config, name, dict(settings))
    config.use_cache = True
    # Otherwise transformers makes a new one out of the model's config when it loads the folder.
    config._from_model_config = False


@dataclass(frozen=True, kw_only=True)
class LatentGenerationConfig:
    """What a folder records beside its weights: ``generation_config.json``, key ``latent``.

    Attributes:
        open_ids, end_ids: tokens of the markers around the chain.
        top_k, temperature: of the superposition that is fed back.
        feed: "superposition", or "hidden" for the ablation that feeds the output of the stack.
        max_latents: cap of a chain.
        fixed: every chain has ``max_latents`` steps; otherwise it ends where the end marker is most likely.

    Raises:
        ValueError: a marker without tokens, or a number out of range.
    """

    open_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    top_k: int | None = 10
    temperature: float = 1.0
    feed: Literal["superposition", "hidden"] = "superposition"
    max_latents: int = 128
    fixed: bool = False

    def __post_init__(self) -> None:
        Markers(open=self.open_ids, end=self.end_ids)  # refuses a marker without tokens
        require_value(self, "top_k", lambda value: value is None or value >= 1, "at least 1, or None for all tokens")
        require_value(self, "temperature", lambda value: value > 0, "above 0")
        require_value(self, "max_latents", lambda value: value >= 0, "0 or more")

    def attach(self, model: PreTrainedModel) -> None:
        """Record the settings in the model's generation config, so that ``save_pretrained`` keeps them."""
        record_reasoning(model, "latent", asdict(self))

    @staticmethod
    def recorded(model: PreTrainedModel) -> LatentGenerationConfig | None:
        """The settings that a model was saved with, if any."""
        saved = getattr(getattr(model, "generation_config", None), "latent", None)
        if saved is None:
            return None
        markers = {name: tuple(saved[name]) for name in ("open_ids", "end_ids")}
        return LatentGenerationConfig(**saved | markers)

    @staticmethod
    def of(model: PreTrainedModel) -> LatentGenerationConfig:
        """The settings that a model was saved with; a ValueError if it has none."""
        settings = LatentGenerationConfig.recorded(model)
        if settings is None:
            raise ValueError(
                "this model's generation config has no 'latent' settings, which state how it reasons; "
                "pass latent=LatentGenerationConfig(...)"
            )
        return settings


@dataclass(frozen=True, kw_only=True)
class CausalLMReasoner:
    """A causal language model that feeds back its own next-token distribution until its most likely token ends it.

    Raises:
        ValueError: noise below 0, or noise on vectors that are no superpositions; or a model around which the latents
            would be wrong.
    """

    model: PreTrainedModel  # a decoder-only transformers model with a head
    settings: LatentGenerationConfig  # see `LatentGenerationConfig`
    # Scale of Gumbel noise on each superposition, to draw different chains; the stop looks at clean scores.
    noise: float = 0.0
    # Of the noise, on any device; torch's own of the model's device by default.
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.noise < 0 or (self.noise and self.settings.feed == "hidden"):
            raise ValueError(
                f"noise is {self.noise} where the feed is {self.settings.feed!r}; it must be 0, or above 0 with the "
                "feed 'superposition', whose weights it changes"
            )
        require(self.model, self._method)

    @property
    def _method(self) -> Method:
        if self.settings.feed == "hidden":
            return "hidden states"
        return "explicit chains" if self.settings.top_k == 1 else "superpositions"

    @property
    def stack(self) -> PreTrainedModel:
        """The model without its head."""
        return self.model.base_model

    def embed_prompt(self, input_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Rows of the input table."""
        return self.model.get_input_embeddings()(input_ids)

    def logits(self, hidden: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        """Scores of the next token."""
        return scores(hidden, readout_of(self.model, "head")).float()

    def step(self, hidden: Float[Tensor, "B D"]) -> LatentStep:
        """Superpose; the row is done when the clean arg-max is the first token of the end marker."""
        logits = self.logits(hidden)
        done = logits.argmax(dim=-1) == self.settings.end_ids[0]
        weights, ids = choose(logits, self.settings.top_k, self.settings.temperature)
        if self.noise:
            drawn_on = weights.device if self.generator is None else self.generator.device
            drawn = torch.rand(weights.shape, generator=self.generator, device=drawn_on)
            uniform = drawn.to(weights, non_blocking=True).clamp(min=1e-20)
            weights = F.softmax(weights.clamp(min=1e-20).log() - self.noise * (-uniform.log()).log(), dim=-1)
        latent = hidden if self.settings.feed == "hidden" else mix(weights, ids, embedding_table(self.model))
        kept, kept_ids = heaviest(weights, ids)
        return LatentStep(
            latent=latent, next_input=latent, done=done, recorded=~done, support_ids=kept_ids, support_weights=kept
        )

    def respond(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Tensor | None = None,
        *,
        max_latents: int | None = None,
        max_tokens: int,
        given: LatentChain | None = None,
        forced: tuple[int, ...] = (),
        sample: Sample | None = None,
        config: GenerationConfig | None = None,
        intervene: Intervention | None = None,
    ) -> tuple[LatentChain, Int[Tensor, "B M"]]:
        """Reason and answer.

        Args:
            input_ids, attention_mask: questions without the open marker, padded on the left.
            max_latents: cap of the chain, the settings' by default; 0 answers at once.
            max_tokens: cap of the answer.
            given: answer from this chain instead of writing one; every causal control does.
            forced: tokens that are appended by force after the end marker; they are not returned.
            sample: how the answer's tokens are chosen, see `unspoken.reasoning.row.AnswerDecoding`.
            config: names the tokens that end and pad an answer; the model's generation config by default.
            intervene: changes every step, see `unspoken.reasoning.engine`.

        Raises:
            ValueError: as `unspoken.reasoning.respond`, or nothing is named that could end an answer.
        """
        ids, mask = opened(input_ids, attention_mask, self.settings.open_ids)
        ends, pad = ends_and_pad(config or self.model.generation_config)
        cap = self.settings.max_latents if max_latents is None else max_latents
        request = Request(
            input_ids=ids,
            attention_mask=mask,
            stop=StopRule(max_latents=cap, fixed=self.settings.fixed),
            max_tokens=max_tokens,
            chain=given,
            forced=forced,
            sample=sample,
            intervene=intervene,
        )
        return SameStack(marker=self.settings.end_ids, end_ids=ends, pad_id=pad).respond(self, request)


def causal_lm_system(
    model: PreTrainedModel, settings: LatentGenerationConfig, *, name: str, max_tokens: int, replaced: int = 0
) -> System:
    """A causal language model that reasons by its latent settings and answers with the same stack, see `System`.

    Raises:
        ValueError: as `CausalLMReasoner`, or nothing is named that could end an answer.
    """
    hidden = settings.feed == "hidden"
    kind: ChainKind = "hidden" if hidden else "tokens" if settings.top_k == 1 else "superposition"
    # A chain of hidden states of fixed length is never scored; a superposition of the whole vocabulary is a product
    # with the table as large as the scores.
    scorings = 0 if hidden and settings.fixed else 2 if settings.top_k is None and not hidden else 1
    ends, pad = ends_and_pad(model.generation_config)
    return System(
        name=name,
        model=model,
        reasoner=CausalLMReasoner(model=model, settings=settings),
        speaker=SameStack(marker=settings.end_ids, end_ids=ends, pad_id=pad),
        opening=settings.open_ids,
        stop=StopRule(max_latents=settings.max_latents, fixed=settings.fixed),
        max_tokens=max_tokens,
        chain_kind=kind,
        replaced=replaced,
        table_size=model.get_output_embeddings().weight.numel(),
        scorings=scorings,
    )


@dataclass
class LatentGenerateOutput(ModelOutput):
    """``sequences`` ``[B, T + M]`` and the chain that was there before the answer."""

    sequences: Tensor | None = None
    chain: LatentChain | None = None


def latent_generate(
    model: Any,
    input_ids: Int[Tensor, "B T"],
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    latent: LatentGenerationConfig | Mapping[str, Any] | None = None,
    latent_noise: float = 0.0,
    return_chain: bool = False,
    **model_kwargs: Any,
) -> Tensor | LatentGenerateOutput:
    """Reasoning in latents as a custom decoding loop of transformers.

    ``model.generate(**inputs, custom_generate=latent_generate)`` works on any plain causal language model folder.
    ``max_new_tokens`` caps the answer; the chain has its own cap in the latent settings. Sampling options and stopping
    criteria hold for the answer; the chain is deterministic unless ``latent_noise`` is set. A
    ``streamer`` and an ``assistant_model`` have no effect, since transformers passes neither on: the streamer gets the
    prompt alone (``unspoken serve`` streams answers).

    Args:
        latent: the settings, or a mapping of those that differ from the model's generation config, which holds the
            default.
        latent_noise: scale of Gumbel noise on the superpositions, to draw different chains.
        return_chain: also return the chain, with its distributions.

    Returns:
        ``[B, T + M]``: prompt, both markers, answer. There are no tokens between the markers. With ``return_chain`` or
        ``return_dict_in_generate`` a `LatentGenerateOutput`.

    Raises:
        ValueError: the model has no latent settings and none were given, prompts are padded on the right, or something
            is asked for that would have no effect: beams or another search, embeddings, a cache, scores.
    """
    _refuse_without_effect(generation_config, model_kwargs)
    settings = _latent_settings(model, latent)
    reasoner = CausalLMReasoner(model=model, settings=settings, noise=latent_noise)
    max_tokens = max(1, (generation_config.max_length or 0) - input_ids.shape[1])
    answers = input_ids.new_zeros((len(input_ids), max_tokens))
    stopped = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def sample(scores: Tensor, rows: Tensor, first: int) -> Tensor:
        before = torch.cat([input_ids[rows], answers[rows, :first]], dim=1)
        scores = logits_processor(before, scores[:, 0])
        token = draw(F.softmax(scores, dim=-1)) if generation_config.do_sample else scores.argmax(dim=-1)
        # A row that a criterion stopped ends with the next token.
        token = torch.where(stopped[rows], ends_and_pad(generation_config)[0][0], token)
        stopped[rows] |= stopping_criteria(torch.cat([before, token[:, None]], dim=1), scores)
        answers[rows, first] = token
        return token[:, None]

    # Not a parameter of this function, or transformers would pass the mask twice.
    mask = model_kwargs.get("attention_mask")
    chain, answer = reasoner.respond(input_ids, mask, max_tokens=max_tokens, sample=sample, config=generation_config)
    markers = torch.tensor([*settings.open_ids, *settings.end_ids], device=input_ids.device)
    sequences = torch.cat([input_ids, markers.expand(len(input_ids), -1), answer], dim=1)
    if return_chain or generation_config.return_dict_in_generate:
        return LatentGenerateOutput(sequences=sequences, chain=chain)
    return sequences


def _latent_settings(model: Any, given: LatentGenerationConfig | Mapping[str, Any] | None) -> LatentGenerationConfig:
    """The settings that hold, of those of the model and what a caller gives; a ValueError names what is none."""
    if isinstance(given, LatentGenerationConfig):
        return given
    if not given:
        return LatentGenerationConfig.of(model)
    known = [field.name for field in fields(LatentGenerationConfig)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"latent has no {unknown[0]!r}; known are {', '.join(known)}")
    changes: dict[str, Any] = {
        name: tuple(value) if name in ("open_ids", "end_ids") else value for name, value in given.items()
    }
    recorded = LatentGenerationConfig.recorded(model)
    if recorded is not None:
        return replace(recorded, **changes)
    missing = [name for name in ("open_ids", "end_ids") if name not in given]
    if missing:
        raise ValueError(f"latent lacks {missing[0]!r}, and this model's generation config has no 'latent' settings")
    return LatentGenerationConfig(**changes)


def _refuse_without_effect(config: GenerationConfig, model_kwargs: Mapping[str, Any]) -> None:
    """Refuse options of ``generate`` that have no effect here, by a ValueError that names the option."""
    if (config.num_beams or 1) != 1:
        raise ValueError(f"num_beams is {config.num_beams}; latents are not searched with beams, use 1")
    cache = model_kwargs.get("past_key_values")
    neutral: dict[str, tuple[Any, ...]] = {
        **dict.fromkeys(("prompt_lookup_num_tokens", "assistant_early_exit", "penalty_alpha", "dola_layers"), (None,)),
        **dict.fromkeys(("constraints", "force_words_ids"), (None,)),
        "guidance_scale": (None, 1),
        **dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), (None, False)),
    }
    asked = {
        name: getattr(config, name, None)
        for name, values in neutral.items()
        if getattr(config, name, None) not in values
    }
    asked |= {name: "given" for name in ("inputs_embeds",) if model_kwargs.get(name) is not None}
    if cache is not None and cache.get_seq_length():
        asked["past_key_values"] = "filled"
    for name, value in asked.items():
        raise ValueError(
            f"{name} is {value}; latent_generate reads token ids and returns tokens and the chain, so leave it out"
        )
