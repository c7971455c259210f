"""Reading finished folders of any method, and any model of the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from unspoken.backbone.loading import load_answer_tokenizer
from unspoken.methods import catalogue
from unspoken.placement import CPU
from unspoken.reasoning.system import System
from unspoken.tasks.prompt_format import PromptFormat, TextFormat
from unspoken.tasks.task import TaskConfig


def load_model(
    source: str | Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    attention: Literal["eager", "sdpa"] | None = None,
) -> PreTrainedModel:
    """The model of a finished stage or of the hub, in evaluation mode.

    Args:
        source: what the stage published; any other folder of a model, or a name on the hub.
        device: where it goes.
        dtype: of the weights.
        attention: by default the one that is fastest for prompts below about 200 tokens: plain attention on a CPU, the
            fused kernel elsewhere.

    Raises:
        ValueError: as `load_pretrained`: a file was changed or is damaged, or the weights are not those of the model;
            the folder cannot answer; or its method is wrong around its backbone.
    """
    transformers_logging.disable_progress_bar()
    kernel = attention or ("eager" if device.type == "cpu" else "sdpa")
    model: Any = catalogue.load(source, dtype=dtype, attn_implementation=kernel)
    catalogue.require_answering(model, source)
    placed: PreTrainedModel = model.to(device).eval()
    return placed


def load_system(
    source: str | Path,
    *,
    name: str,
    max_answer: int | None = None,
    trained_on: TaskConfig | None = None,
    **settings: Any,
) -> System:
    """The model of a folder as it was trained to answer, with its tokenizer.

    Args:
        source: see `load_model`.
        name: of the system.
        max_answer: cap of an answer where the folder records none; by default 256 tokens, or a quarter of the positions
            that the model has.
        trained_on: see `TextFormat`; a tokenizer of its own is the model's.
        settings: as of `load_model`.

    Raises:
        ValueError: as `load_model`; or the tokenizer is missing or names no end of an answer, or ``max_answer`` is
            below 1.
    """
    own = None if trained_on is None or trained_on.traits.from_files else trained_on.build().tokenizer
    model, tokenizer = load_model(source, **settings), own or load_answer_tokenizer(source)
    if max_answer is not None and max_answer < 1:
        raise ValueError(f"max_answer is {max_answer}; it must be at least 1")
    cap = max_answer or min(256, (getattr(model.config, "max_position_embeddings", None) or 1024) // 4)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    system = catalogue.systems(model, stage=name, max_answer=cap, end_id=end, pad_id=pad)[0]
    text_format = TextFormat(prompt_format=PromptFormat(tokenizer=tokenizer), trained_on=trained_on)
    return replace(system, text_format=text_format)
