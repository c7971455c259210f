"""Models that reason in tokens: a plain language model, an explicit chain of thought, an answer without a chain."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from unspoken.backbone.checks import right
from unspoken.methods.coupled.reasoner import CoupledReasoner
from unspoken.reasoning.causal_lm import LatentGenerationConfig, causal_lm_system
from unspoken.reasoning.engine import StopRule
from unspoken.reasoning.speakers import Separate
from unspoken.reasoning.system import System

SOFT_THINKING = "soft thinking"


def systems(
    model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None = None, pad_id: int | None = None
) -> list[System]:
    """Systems of a plain language model; none for the model of another method.

    A folder that records how it reasons was trained on explicit chains between markers, or on answers alone; where
    superpositions are right around the model it also gives Soft Thinking. Any other language model writes its chain as
    its answer.

    Args:
        end_id, pad_id: of a language model that records nothing; those of its configuration by default.

    Raises:
        ValueError: no token is named that ends an answer, or explicit chains would be wrong around the model.
    """
    settings = LatentGenerationConfig.recorded(model)
    if settings is None:
        return [_coupled(model, stage, max_answer, end_id, pad_id)] if _has_head(model) else []
    if settings.feed != "superposition" or settings.top_k != 1:
        return []
    settings_by_name = {stage: settings}
    if settings.max_latents and right(model, "superpositions"):
        settings_by_name[SOFT_THINKING if stage == "cot" else f"{stage}, {SOFT_THINKING}"] = replace(settings, top_k=10)
    return [causal_lm_system(model, one, name=name, max_tokens=max_answer) for name, one in settings_by_name.items()]


def _has_head(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings() is not None


def _coupled(model: PreTrainedModel, name: str, max_answer: int, end_id: int | None, pad_id: int | None) -> System:
    end = model.config.eos_token_id if end_id is None else end_id
    pad = model.config.pad_token_id if pad_id is None else pad_id
    if not isinstance(end, int):
        raise ValueError(f"{name}: eos_token_id is {end!r} in the model's configuration; name one token that ends it")
    reasoner = CoupledReasoner(model=model, end_id=end, pad_id=end if pad is None else pad)
    return System(
        name=name,
        model=model,
        reasoner=reasoner,
        speaker=Separate(decode=lambda chain, _sample: reasoner.speak(chain), end_ids=(end,), chain_tokens=True),
        stop=StopRule(max_latents=max_answer),
        max_tokens=max_answer,
        chain_kind="tokens",
        table_size=model.get_output_embeddings().weight.numel(),
    )
