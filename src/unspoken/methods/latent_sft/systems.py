"""Latent-SFT as it answers: a chain of superpositions, or of hidden states, then the answer with the same stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from unspoken.backbone.loading import load_config, load_pretrained
from unspoken.methods.latent_sft.building import gold_chain
from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.reasoning.causal_lm import LatentGenerationConfig, causal_lm_system
from unspoken.reasoning.system import System
from unspoken.reasoning.teacher import Teacher
from unspoken.tasks.prompt_format import PromptFormat


def systems(model: PreTrainedModel, *, stage: str, max_answer: int) -> list[System]:
    """The system of a stage in training or finished; nothing if the model is another method's.

    Stage 1 answers from the encoder's chains, which `respond` is given.
    """
    if isinstance(model, LatentSFTModel):
        return [causal_lm_system(model.decoder, _settings(model), name=stage, max_tokens=max_answer)]
    settings = LatentGenerationConfig.recorded(model)
    if settings is None or settings.top_k == 1 or (settings.feed == "hidden" and settings.fixed):
        return []
    return [causal_lm_system(model, settings, name=stage, max_tokens=max_answer)]


def _settings(model: LatentSFTModel) -> LatentGenerationConfig:
    """How the decoder reasons: as recorded by stage 2; stage 1 records nothing, since it writes no chain itself."""
    recorded = LatentGenerationConfig.recorded(model.decoder)
    if recorded is not None:
        return recorded
    shape, markers = model.config.latent_shape, model.config.markers
    return LatentGenerationConfig(open_ids=markers.open, end_ids=markers.end, top_k=shape.top_k, feed=shape.latent)


def require_answering(model: PreTrainedModel, source: str | Path) -> None:
    """Refuse a model of stage 1, which cannot answer, by a ValueError."""
    if isinstance(model, LatentSFTModel):
        raise ValueError(
            f"{source} holds stage 1 of Latent-SFT, which cannot answer by itself; give a folder of a later stage"
        )


def teacher(folder: Path, prompt_format: PromptFormat, *, device: torch.device) -> Teacher | None:
    """The encoder of a stage-1 folder; None if the folder is another's."""
    if load_config(folder).model_type != LatentSFTConfig.model_type:
        return None
    loaded: Any = load_pretrained(folder, AutoModel, dtype=torch.float32).to(device)
    model = loaded.eval()
    return Teacher(rate=model.config.latent_shape.rate, chain=lambda spans: gold_chain(model, prompt_format, spans))
