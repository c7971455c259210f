"""Properties that a model must have so that a method computes the right thing with it, tested on a few tokens.

No family is known by name. Each property is a function that runs the model as the methods do. A method states the
properties that it needs and is refused in one line where one is missing. Results are cached on disk, under a hash of
all that they depend on.

Axes: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache

from unspoken.backbone.around import from_config
from unspoken.backbone.attention import attention_mask
from unspoken.backbone.modeling import UnspokenForCausalLM, UnspokenModel
from unspoken.backbone.vocabulary import head_of, scores
from unspoken.storage import read_json, write_json

Method = Literal["explicit chains", "superpositions", "hidden states", "Coconut", "Latent-SFT", "JEPA-Reasoner"]

_LOOPED = ("rows", "causal", "cached", "batched", "padded")
_EXPLICIT = ("stack", *_LOOPED, "scores")
# The properties that each method needs.
NEEDS: dict[Method, tuple[str, ...]] = {
    "explicit chains": _EXPLICIT,
    "superpositions": (*_EXPLICIT, "vectors"),
    "hidden states": (*_EXPLICIT, "vectors", "width"),
    "Coconut": (*_EXPLICIT, "vectors", "width", "gradient"),
    "Latent-SFT": (*_EXPLICIT, "vectors", "rebuilt", "masked", "positions"),
    "JEPA-Reasoner": (*_LOOPED, "vectors", "width", "named", "rebuilt"),
}


# Methods that an error suggests instead, by their keys in `NEEDS`.
_ADVICE: tuple[tuple[Method, str], ...] = (
    *(("explicit chains", "an explicit chain of thought"), ("superpositions", "Soft Thinking")),
    *(("Coconut", "Coconut"), ("Latent-SFT", "Latent-SFT"), ("JEPA-Reasoner", "JEPA-Reasoner")),
)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method needs of a model, stated where the method is.

    Attributes:
        method: as messages call it.
        properties: keys of `_PROPERTIES`.
    """

    method: str
    properties: tuple[str, ...]


Wrong = dict[str, str]  # names of missing properties to what is wrong
_FLOAT32 = 2e-4  # two ways to sum the same numbers differ by this much at most, relative to the largest
_REACH = 3  # positions that a layer with a limited reach sees during the tests
_REACHES = ("sliding_window", "attention_chunk_size", "index_topk")  # names of that limit in configs
# Keys of a config that name the model or its tokens, or change while it is trained and saved.
_NO_PART = (
    *("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
_known: dict[str, Wrong] = {}


def require(model: PreTrainedModel, method: Method | Needs) -> None:
    """Refuse a model around which a method would be wrong.

    The first call takes about as long as twenty short passes, and a copy of weights that are not in float32; later ones
    take no time. Our own decoder is known to be right.

    Args:
        model: a causal language model; its stack alone for a JEPA-Reasoner.
        method: that will use it.

    Raises:
        ValueError: a property is missing; names it, the model and methods that do not need it.
    """
    if right(model, method):
        return
    wrong, needs = missing(model), _needs(method)
    first = next(wrong[name] for name in needs.properties if name in wrong)
    others = " or ".join(text for other, text in _ADVICE if right(model, other))
    advice = f"use {others} with this model, or take" if others else "take"
    raise ValueError(f"{needs.method} cannot be used with {type(model).__name__}: {first}; {advice} another model")


def right(model: PreTrainedModel, method: Method | Needs) -> bool:
    """Whether a method is right around a model, see `require`."""
    return not missing(model).keys() & set(_needs(method).properties)


def _needs(method: Method | Needs) -> Needs:
    return method if isinstance(method, Needs) else Needs(method=method, properties=NEEDS[method])


def missing(model: PreTrainedModel) -> Wrong:
    """The properties that a model does not have, each with a sentence that names it."""
    if isinstance(model, UnspokenForCausalLM | UnspokenModel) or model.device.type == "meta":
        return {}
    key = _key(model)
    if key not in _known:
        answers = _read(key)
        if answers is None:
            answers = _ask(model)
            _write(key, answers)
        _known[key] = answers
    return _known[key]


# --- cached results ---------------------------------------------------------------------------------------------------


def _key(model: PreTrainedModel) -> str:
    """A hash of all that the properties depend on; weights are not among it."""
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NO_PART}
    facts = {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "config": config,
        "attention": model.config._attn_implementation,
        "device": model.device.type,
        "versions": [version(name) for name in ("torch", "transformers")],
        "questions": [_hash(Path(__file__).with_name(name)) for name in ("checks.py", "attention.py", "vocabulary.py")],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


@lru_cache
def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unspoken" / "backbones"


def _read(key: str) -> Wrong | None:
    try:
        content = read_json(_folder() / f"{key}.json")
    except (OSError, ValueError, RuntimeError):  # not there, damaged, or no home
        return None
    return content if isinstance(content, dict) and all(isinstance(text, str) for text in content.values()) else None


def _write(key: str, wrong: Wrong) -> None:
    """Cache a result if the folder can be written."""
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{key}.json", wrong)
    except (OSError, RuntimeError):
        return


# --- running the tests ------------------------------------------------------------------------------------------------


class _Lacking(Exception):
    """A property is missing; the text stands in brackets after the sentence."""


def _ask(model: PreTrainedModel) -> Wrong:
    """Test every property. The model, the random state and the warning filters of the caller stay as they are."""
    modes = {module: module.training for module in model.modules()}
    subject = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    devices = [model.device] if model.device.type == "cuda" else []
    with _short(subject.config), _uncompiled(subject), torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = (_Probe(subject.eval(), seed=seed) for seed in (0, 1))
        first_answers = {name: _answer(name, first) for name in _PROPERTIES}
        # Where two experts tie for a token, rounding chooses between them, so a property must fail on two rows.
        second_answers = {name: _answer(name, second) for name, text in first_answers.items() if text is not None}
    for module, training in modes.items():
        module.training = training
    return {name: text for name, text in second_answers.items() if text is not None}


def _answer(name: str, probe: _Probe) -> str | None:
    """What is wrong, or None if the model has the property."""
    sentence, question = _PROPERTIES[name]
    try:
        with torch.enable_grad() if name == "gradient" else torch.no_grad():
            question(probe)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except _Lacking as lacking:
        return f"{sentence} ({lacking})"
    except Exception as error:
        return f"{sentence} ({_first(error)})"
    return None


def _first(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


@contextmanager
def _short(config: PreTrainedConfig) -> Iterator[None]:
    """Shorten the reach of layers, so that a few tokens exceed it."""
    config = config.get_text_config()
    places = getattr(config, "max_position_embeddings", None) or float("inf")
    reaches = {name: getattr(config, name, None) for name in _REACHES}
    # A reach beyond the last position is none.
    before = {name: value for name, value in reaches.items() if isinstance(value, int) and _REACH < value < places}
    for name in before:
        setattr(config, name, _REACH)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


@contextmanager
def _uncompiled(model: PreTrainedModel) -> Iterator[None]:
    """Plain attention, with the same masks, instead of FlexAttention, which would compile a kernel for every length."""
    before = model.config._attn_implementation
    if before != "flex_attention":
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _differ(given: Tensor, expected: Tensor) -> float:
    error = (given.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-6)
    return float(error) if bool(torch.isfinite(error)) else float("inf")


def _same(given: Tensor, expected: Tensor, limit: float = _FLOAT32) -> None:
    if given.shape != expected.shape:
        raise _Lacking(f"shape {tuple(given.shape)} instead of {tuple(expected.shape)}")
    if (error := _differ(given, expected)) > limit:
        raise _Lacking(f"off by {error:.1g}")


class _Probe:
    """A model, and a few rows for it.

    Two prompts of 4 and 6 tokens, each followed by 3 latents. Outputs that several tests need are computed once.
    """

    def __init__(self, model: PreTrainedModel, *, seed: int) -> None:
        self.model = model
        self.stack: PreTrainedModel = model.base_model
        self.embed: nn.Module = model.get_input_embeddings()
        size = int(self.embed.weight.shape[0])
        generator = torch.Generator().manual_seed(seed)

        def draw(count: int) -> Tensor:
            # On the CPU, whatever the caller's default device is.
            drawn = torch.randint(size // 4, size - size // 8, (count,), generator=generator, device="cpu")
            return drawn.to(model.device)

        self.short, self.long = draw(4), draw(6)
        self.mixed = (0.6 * self.rows(draw(6)) + 0.4 * self.rows(draw(6))).view(2, 3, -1)
        self.unmixed = self.rows(draw(6)).view(2, 3, -1)

    @cached_property
    def refusal(self) -> str | None:
        """The error of the model for vectors that are not rows of its table; None if it takes them."""
        try:
            self.run(self.mixed[0])
        except Exception as error:
            return _first(error)
        return None

    @property
    def latents_2LD(self) -> Tensor:
        """Latents after both prompts: mixtures of rows, or rows where the model takes nothing else."""
        return self.mixed if self.refusal is None else self.unmixed

    @cached_property
    def of_ids(self) -> Tensor:
        """Outputs for the long prompt, given as ids."""
        hidden: Tensor = self.stack(input_ids=self.long[None], use_cache=False).last_hidden_state
        return hidden[0]

    @cached_property
    def of_rows(self) -> Tensor:
        """Outputs for the long prompt, given as rows of the table."""
        return self.run(self.rows(self.long))

    @cached_property
    def together(self) -> Float[Tensor, "B L D"]:
        """Outputs for both rows in one batch, step by step; the short one is padded on the left."""
        missing = len(self.long) - len(self.short)
        rows = torch.stack([F.pad(self.rows(self.short), (0, 0, missing, 0)), self.rows(self.long)])
        rows[0, :missing] = self.rows(self.long[:missing])
        mask = torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device)
        mask[0, :missing] = 0
        return self.step_by_step(rows, mask, self.latents_2LD)

    @cached_property
    def masked(self) -> tuple[Tensor, Tensor]:
        """Outputs for the long row with three hidden tokens in it, and again with three others."""
        one, two = (_masked(self, hidden_TD) for hidden_TD in self.latents_2LD)
        return one, two

    def rows(self, ids: Tensor) -> Float[Tensor, "T D"]:
        """Rows of the table."""
        return self.embed(ids).detach()

    def run(self, inputs_TD: Tensor, **how: Any) -> Float[Tensor, "T D"]:
        """Outputs of the stack for one row, computed anew."""
        hidden: Tensor = self.stack(inputs_embeds=inputs_TD.clone()[None], use_cache=False, **how).last_hidden_state
        return hidden[0]

    @cached_property
    def whole(self) -> tuple[Tensor, Tensor]:
        """Outputs for both prompts with their latents, each row alone and computed anew."""
        both = zip((self.short, self.long), self.latents_2LD, strict=True)
        short, long = (self.run(torch.cat([self.rows(ids), latents])) for ids, latents in both)
        return short, long

    def step_by_step(self, inputs_BTD: Tensor, mask_BT: Tensor | None, latents_BLD: Tensor) -> Float[Tensor, "B L D"]:
        """Outputs before and at the latents, which enter one at a time, as in a rollout."""
        cache = DynamicCache(config=self.stack.config)
        rows, width = inputs_BTD.shape[:2]
        start = torch.zeros(rows, 1, dtype=torch.long, device=inputs_BTD.device)
        positions = start + torch.arange(width, device=start.device)
        if mask_BT is not None:
            positions = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        outputs = []
        for latent_BD in (None, *latents_BLD.unbind(dim=1)):
            new = inputs_BTD if latent_BD is None else latent_BD[:, None]
            if latent_BD is not None:
                positions = positions[:, -1:] + 1
                mask_BT = None if mask_BT is None else F.pad(mask_BT, (0, 1), value=1)
            hidden = self.stack(
                inputs_embeds=new.clone(),
                attention_mask=mask_BT,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            outputs.append(hidden[:, -1])
        return torch.stack(outputs, dim=1)


def _has_a_stack(probe: _Probe) -> None:
    if probe.stack is probe.model:
        raise _Lacking("base_model is the model itself")


def _keeps_its_width(probe: _Probe) -> None:
    outside, inside = probe.whole[0].shape[-1], probe.unmixed.shape[-1]
    if outside != inside:
        raise _Lacking(f"{outside} and {inside}")


def _names_its_width(probe: _Probe) -> None:
    inside, named = probe.unmixed.shape[-1], getattr(probe.stack.config, "hidden_size", None)
    if inside != named:
        raise _Lacking(f"{named} and {inside}")


def _takes_any_vector(probe: _Probe) -> None:
    if probe.refusal is not None:
        raise _Lacking(probe.refusal)


def _takes_rows_for_ids(probe: _Probe) -> None:
    _same(probe.of_rows, probe.of_ids)


def _looks_back_only(probe: _Probe) -> None:
    _same(probe.of_rows, probe.whole[1][: len(probe.long)])


def _caches(probe: _Probe) -> None:
    given = probe.step_by_step(probe.rows(probe.long)[None], None, probe.latents_2LD[1:])
    _same(given[0], probe.whole[1][len(probe.long) - 1 :])


def _batches(probe: _Probe) -> None:
    _same(probe.together[1], probe.whole[1][len(probe.long) - 1 :])


def _pads(probe: _Probe) -> None:
    _same(probe.together[0], probe.whole[0][len(probe.short) - 1 :])


def _scores(probe: _Probe) -> None:
    # The class's forward: a trainer may have wrapped the instance's.
    expected = type(probe.model).forward(probe.model, input_ids=probe.long[None], use_cache=False).logits[0]
    _same(scores(probe.of_ids, head_of(probe.model)), expected)


def _masked(probe: _Probe, hidden_TD: Tensor) -> Float[Tensor, "T D"]:
    """Outputs for the long row with three more tokens in its middle, which only they themselves may see."""
    first, row = 3, torch.cat([probe.rows(probe.long), probe.latents_2LD[1]])
    last = first + len(hidden_TD)
    inputs = torch.cat([row[:first], hidden_TD, row[first:]])
    position = torch.arange(len(inputs), device=inputs.device)
    aside = (position >= first) & (position < last)
    positions = torch.where(position < last, position, position - len(hidden_TD))
    mask = attention_mask(
        lambda _b, _h, q, kv: (kv <= q) & (~aside[kv] | (aside[q] & aside[kv])), positions[None], probe.stack
    )
    return probe.run(inputs, attention_mask=mask, position_ids=positions[None])[~aside]


def _obeys_masks(probe: _Probe) -> None:
    # Hidden tokens have no effect, except that experts sum in another order.
    _same(*probe.masked, _FLOAT32 / 10)


def _obeys_positions(probe: _Probe) -> None:
    config = probe.stack.config.get_text_config()
    for name in ("window_size", "attention_window_size"):
        if getattr(config, name, None) is not None and name not in config.attribute_map:
            raise _Lacking(f"config.{name} counts tokens, not position_ids")
    _same(probe.masked[0], probe.whole[1])


def _trains_through_its_cache(probe: _Probe) -> None:
    weights = torch.linspace(-1, 1, probe.unmixed.shape[-1], device=probe.model.device)

    def gradient(cached: bool) -> Tensor:
        """Of the second of two latents, made as Coconut makes them, with respect to the prompt."""
        prompt = probe.rows(probe.short)[None].requires_grad_(True)
        cache, read, new = DynamicCache(config=probe.stack.config), prompt.clone(), prompt.clone()
        hidden = new
        for _ in range(3):
            past = read.shape[1] - new.shape[1]
            how: dict[str, Any] = {"inputs_embeds": read.clone(), "use_cache": False}
            if cached:
                how = {"inputs_embeds": new.clone(), "use_cache": True, "past_key_values": cache}
                how["position_ids"] = torch.arange(past, read.shape[1], device=new.device)[None]
            hidden = probe.stack(**how).last_hidden_state[:, -1:]
            read, new = torch.cat([read, hidden], dim=1), hidden
        (prompt_gradient,) = torch.autograd.grad((hidden * weights).sum(), prompt)
        return prompt_gradient

    _same(gradient(cached=True), gradient(cached=False), 20 * _FLOAT32)


def _returns_states(probe: _Probe) -> None:
    rows = probe.rows(probe.long)[None]
    states = probe.stack(inputs_embeds=rows, use_cache=False, output_hidden_states=True).hidden_states
    expected = probe.stack.config.get_text_config().num_hidden_layers + 1
    if states is None or len(states) != expected:
        raise _Lacking(f"{len(states or ())} instead of {expected}")
    if len(shapes := {tuple(state.shape) for state in states}) > 1:
        raise _Lacking(f"of different shapes, {' and '.join(map(str, sorted(shapes)))}")


def _can_be_rebuilt(probe: _Probe) -> None:
    with torch.device("meta"):
        again = from_config(AutoModel, probe.stack.config)
    if type(again) is not type(probe.stack):
        raise _Lacking(f"{type(again).__name__} instead of {type(probe.stack).__name__}")
    if again.state_dict().keys() != probe.stack.state_dict().keys():
        raise _Lacking(f"{type(again).__name__} with other weights")


_PROPERTIES: dict[str, tuple[str, Callable[[_Probe], None]]] = {
    "stack": ("it has no base model separate from its LM head", _has_a_stack),
    "rows": ("inputs_embeds from its embedding table give other outputs than input_ids", _takes_rows_for_ids),
    "causal": ("its outputs depend on later tokens", _looks_back_only),
    "cached": ("its outputs with past_key_values differ from those without", _caches),
    "batched": ("its outputs for a sequence depend on the other sequences of the batch", _batches),
    "padded": ("left padding changes its outputs", _pads),
    "vectors": ("it refuses inputs_embeds that are not rows of its embedding table", _takes_any_vector),
    "width": ("its hidden states and input embeddings differ in width", _keeps_its_width),
    "named": ("config.hidden_size is not the width of its input embeddings", _names_its_width),
    "scores": ("its logits are not computed from last_hidden_state alone", _scores),
    "rebuilt": ("AutoModel.from_config(config) builds another model", _can_be_rebuilt),
    "masked": ("some layers ignore or reject a custom attention mask", _obeys_masks),
    "positions": ("it does not support custom position_ids", _obeys_positions),
    "gradient": ("gradients through past_key_values fail or differ from those without it", _trains_through_its_cache),
    "states": ("output_hidden_states does not return the embedding output and one state per layer", _returns_states),
}
