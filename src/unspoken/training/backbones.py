"""Whether the rows of a stage fit its model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from unspoken.backbone import UnspokenModel
from unspoken.methods.rows import Rows
from unspoken.tasks.dataset import Batch, GeneratedDataset
from unspoken.tasks.prompt_format import PromptFormat


def fitting(data: GeneratedDataset, model: PreTrainedModel) -> GeneratedDataset:
    """The same data; a row that is longer than the model's table of positions raises a ValueError."""
    limit = positions_in_a_table(model)
    if limit is None:
        return data

    def make(indices: NDArray[np.int64]) -> Batch:
        batch = data.make(indices)
        if (length := _longest(batch)) > limit:
            raise ValueError(
                f"a row of {length} positions does not fit {type(model).__name__}, whose table has {limit}; "
                "leave out long problems, or take a model with more positions"
            )
        return batch

    return replace(data, make=make)


def positions_in_a_table(model: PreTrainedModel) -> int | None:
    """Positions of a model that looks each of them up; None if it computes them."""
    for stack in model.modules():
        inner = (module for module in stack.modules() if module is not stack)
        if isinstance(stack, UnspokenModel):
            continue  # rotary
        if not isinstance(stack, PreTrainedModel) or any(isinstance(module, PreTrainedModel) for module in inner):
            continue
        limit = getattr(stack.config, "max_position_embeddings", None)
        tables = [module.weight for module in stack.modules() if isinstance(module, nn.Embedding)]
        try:
            own = stack.get_input_embeddings()
        except NotImplementedError:
            own = None  # a Talker's stack reads vectors
        tables = [table for table in tables if own is None or table is not own.weight]
        tables += [buffer for buffer in stack.buffers() if buffer.ndim == 2]
        # Some families keep a few rows beside those of the positions.
        if limit is not None and any(0 <= len(table) - limit <= 8 for table in tables):
            return int(limit)
    return None


def _longest(batch: Batch) -> int:
    """Positions of the longest row."""
    longest = [int(value.position.max()) + 1 for value in batch.values() if isinstance(value, Rows)]
    if "text_mask" in batch:
        masks = [batch[name].sum(dim=1) for name in ("attention_mask", "latent_mask", "text_mask")]
        longest.append(int(torch.stack(masks).sum(dim=0).max()))
    return max(longest) if longest else int(batch["input_ids"].shape[1])


def require_rows(model: PreTrainedModel, prompt_format: PromptFormat) -> None:
    """Refuse a table without a row for a token that every sample has, by a ValueError that names the tokens."""
    tokenizer, rows = prompt_format.tokenizer, model.get_input_embeddings().weight.shape[0]
    markers = prompt_format.markers
    ids = {*markers.open, *markers.end, *prompt_format.prompt(""), tokenizer.eos_token_id, tokenizer.pad_token_id}
    beyond = sorted(token for token in ids if token is not None and token >= rows)
    if beyond:
        names = ", ".join(f"{tokenizer.convert_ids_to_tokens(token)!r} ({token})" for token in beyond)
        raise ValueError(
            f"the tokenizer has tokens beyond the {rows} rows of the table of {type(model).__name__}: {names}; "
            "use the model's own tokenizer, or resize the table"
        )
