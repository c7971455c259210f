"""How many positions a model and a row have, with tables of planted sizes, and what starting weights depend on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_recipe import tiny_recipe
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from unspoken.methods.rows import decoder_rows
from unspoken.placement import CPU
from unspoken.tasks.dataset import GeneratedDataset
from unspoken.tasks.spans import Markers, Spans
from unspoken.training import stages
from unspoken.training.backbones import _longest, fitting, positions_in_a_table
from unspoken.training.stages import SeedRun, data_of, row_lengths, train_stage


class Tables(PreTrainedModel):
    """A stack with a table of tokens and one of so many positions."""

    config_class = PreTrainedConfig

    def __init__(self, rows: int, *, tokens: int = 10, buffer: bool = False) -> None:
        super().__init__(PreTrainedConfig(max_position_embeddings=10))
        self.tokens = nn.Embedding(tokens, 2)
        if buffer:
            self.register_buffer("places", torch.zeros(rows, 2))
        else:
            self.places = nn.Embedding(rows, 2)

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens


@pytest.mark.parametrize("buffer", [False, True])
@pytest.mark.parametrize(("rows", "limit"), [(9, None), (10, 10), (18, 10), (19, None)])
def test_a_table_may_have_a_few_rows_besides(rows: int, limit: int | None, buffer: bool) -> None:
    """The table of tokens does not count, though it has as many rows."""
    assert positions_in_a_table(Tables(rows, buffer=buffer)) == limit


def test_the_longest_row_of_a_batch() -> None:
    spans = [Spans(prompt=(3,), steps=((4, 5, 6, 7, 8),), answer=(9,)), Spans(prompt=(3,), steps=((4,),), answer=(9,))]
    rows = decoder_rows(spans, Markers(open=(1,), end=(2,)), rate=2, pad_id=0)
    # The prompt and its marker, three latents, the end marker and the answer; text beside latents takes no position.
    assert _longest({"decoder": rows}) == 7
    masks: dict[str, Any] = {
        "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]),
        "latent_mask": torch.tensor([[True, False], [True, True]]),
        "text_mask": torch.tensor([[1, 0, 0], [1, 1, 1]]),
    }
    assert _longest(masks) == 7
    assert _longest({**masks, "teacher": rows, "input_ids": torch.zeros(2, 30)}) == 7
    assert _longest({"input_ids": torch.zeros(2, 30)}) == 30


@pytest.mark.parametrize(("length", "fits"), [(10, True), (11, False)])
def test_rows_fill_a_table_to_its_last_position(length: int, fits: bool) -> None:
    data = fitting(
        GeneratedDataset(make=lambda _: {"input_ids": torch.zeros(1, length)}, first=0, size=1, order=None), Tables(10)
    )
    if fits:
        data.make(torch.zeros(1, dtype=torch.long).numpy())
    else:
        with pytest.raises(ValueError, match="a row of 11 positions does not fit Tables, whose table has 10"):
            data.make(torch.zeros(1, dtype=torch.long).numpy())


def test_a_stage_is_grouped_by_the_lengths_of_its_own_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "row_lengths", lambda _: lambda samples: 2 * samples)
    monkeypatch.setattr(stages, "by_length", lambda lengths, **how: (lengths(np.arange(3)).tolist(), how))
    settings = SimpleNamespace(name="later", batch_size=4)
    objective = SimpleNamespace(collate=lambda _: "batches")
    context: Any = SimpleNamespace(lineage=SimpleNamespace(settings=settings, objective=objective), seed=5)
    recipe: Any = SimpleNamespace(
        group_by_length=True, stage=lambda name: name, steps=lambda _: 3, samples_before=lambda _: 10
    )
    data: Any = data_of(recipe, context)
    assert (data.make, data.first, data.size) == ("batches", 10, 12)
    assert data.order == ([20, 22, 24], {"size": 12, "batch_size": 4, "seed": 5})


def test_rows_without_a_chain_are_as_long_as_their_masks() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]])
    context: Any = SimpleNamespace(
        lineage=SimpleNamespace(objective=SimpleNamespace(rows_of=lambda indices, _: indices)),
        sample=lambda indices: indices,
        task=SimpleNamespace(rows=lambda chosen: {"attention_mask": mask[chosen]}),
        has_chain=False,
    )
    assert row_lengths(context)(np.array([2, 0, 1])).tolist() == [1, 2, 3]


@pytest.mark.parametrize(("seed", "stage", "drawn"), [(0, "pretrain", 0), (3, "pretrain", 3000), (3, "sst", 3001)])
def test_starting_weights_depend_on_seed_and_stage_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int, stage: str, drawn: int
) -> None:
    class Built(Exception):
        pass

    def build(*_: Any) -> None:
        raise Built(torch.initial_seed())

    monkeypatch.setattr(stages, "build", build)
    recipe = tiny_recipe("stages.sst.start=null")
    run = SeedRun(recipe=recipe, folder=tmp_path / f"seed-{seed}", seed=seed, device=CPU)
    with pytest.raises(Built, match=f"^{drawn}$"):
        train_stage(run, recipe.stage(stage), report_to=[], callbacks=[])
