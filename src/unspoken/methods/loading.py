"""Reading finished folders of any method."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from unspoken.methods import catalogue
from unspoken.placement import CPU


def load_model(
    folder: Path,
    *,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    attention: Literal["eager", "sdpa"] | None = None,
) -> PreTrainedModel:
    """The model of a finished stage, in evaluation mode.

    Args:
        folder: what the stage published.
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
    config = catalogue.config_of(folder)
    model: Any = catalogue.load(folder, config, dtype=dtype, attn_implementation=kernel)
    placed: PreTrainedModel = model.to(device).eval()
    return placed
