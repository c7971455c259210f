"""What a folder records of its pauses, and the row of the table that they are read from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from unspoken.reasoning.causal_lm import record_reasoning


@dataclass(frozen=True, kw_only=True)
class PauseSettings:
    """What a folder records beside its weights: ``generation_config.json``, key ``pause``.

    Attributes:
        token: that is repeated.
        pauses: how often.
        open_ids, end_ids: tokens of the markers around the pauses.
    """

    token: int
    pauses: int
    open_ids: tuple[int, ...]
    end_ids: tuple[int, ...]

    def attach(self, model: PreTrainedModel) -> None:
        """Record the settings in the model's generation config instead of those of a stage before."""
        record_reasoning(model, "pause", asdict(self))

    @staticmethod
    def recorded(model: PreTrainedModel) -> PauseSettings | None:
        """The settings that a model was saved with, if any."""
        recorded = getattr(getattr(model, "generation_config", None), "pause", None)
        if recorded is None:
            return None
        markers = {name: tuple(recorded[name]) for name in ("open_ids", "end_ids")}
        return PauseSettings(**{**recorded, **markers})


@torch.no_grad()
def append_row(model: PreTrainedModel, like: int) -> None:
    """Append a row to the input table and to the head, both copies of the rows of another token."""
    model.resize_token_embeddings(len(model.get_input_embeddings().weight) + 1, mean_resizing=False)
    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    for parameter in (parameter for end in ends for parameter in end.parameters()):
        parameter[-1] = parameter[like]


def train_last_row(model: PreTrainedModel) -> None:
    """Unfreeze the last row of the input table alone, where adapters have frozen everything."""
    table: Any = model.get_input_embeddings()
    table.weight.requires_grad_(True)
    last = torch.arange(len(table.weight), device=table.weight.device)[:, None] == len(table.weight) - 1
    table.weight.register_hook(lambda gradient: gradient * last.to(gradient))
