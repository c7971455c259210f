"""Labels between the stages: written by the models of stage 1, read by stage 2 with their noise."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_drills import drilled
from torch import Tensor

from unspoken.backbone.folder import publish, read_manifest
from unspoken.methods.latent_sft import labelling
from unspoken.methods.latent_sft.building import gold_chain, stage_one_batch
from unspoken.methods.latent_sft.label_store import LabelStore
from unspoken.methods.latent_sft.labelling import label_identity
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.latent_sft.stages import Labels, LatentShape, Stage1, Stage2
from unspoken.methods.latent_sft.systems import teacher
from unspoken.methods.method import Context
from unspoken.placement import CPU
from unspoken.storage import MODEL, new_folder
from unspoken.training.context import context_of
from unspoken.training.recipe import Recipe

ROWS = 70
# A stage with superpositions and one with hidden states: what is built first, what makes the labels, and what follows.
LINES = {"labels": ("encoder", "union", "autonomy"), "hidden_labels": ("hidden_encoder",) * 2 + ("hidden_autonomy",)}


@cache
def recipe(*overrides: str) -> Recipe:
    return drilled("words", None, *(f"stages.{name}.objective.rows={ROWS}" for name in LINES), *overrides)


def context(stage: str, folder: Path | None = None, *overrides: str) -> Context:
    made = recipe(*overrides)
    return context_of(made, made.stage(stage), seed=3, folder=folder)


def built(stage: str, start: Any = None) -> Any:
    """A stage's model with its starting weights."""
    torch.manual_seed(0)
    given = context(stage)
    return given.lineage.objective.build(start, given)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, LatentSFTModel], list[int]]:
    """Folder of a seed with labels of both kinds, the models that made them, and problems that these read at once."""
    folder, models, read = tmp_path_factory.mktemp("seed"), dict[str, LatentSFTModel](), list[int]()
    for stage, (first, maker, _) in LINES.items():
        models[stage] = built(first).eval()
        staging = new_folder(folder / maker / MODEL)
        models[stage].save_pretrained(staging)
        publish(staging, folder / maker / MODEL, {"step": 5})
        given = context(stage, folder)
        model = given.lineage.objective.build(models[stage], given)
        assert not any(weight.requires_grad for weight in model.parameters())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                labelling,
                "stage_one_batch",
                lambda spans, *how: read.append(len(spans)) or stage_one_batch(spans, *how),
            )
            path = given.lineage.objective.write(model, given, folder / stage, device=CPU, manifest={"run": "this one"})
        assert path == given.model_folder(given.lineage)
    return folder, models, read


def store_of(folder: Path, stage: str) -> LabelStore:
    given = context(stage, folder)
    return LabelStore.open(folder / stage / MODEL / "labels", label_identity(given))


def rows_of(given: Context, indices: list[int]) -> Any:
    return given.lineage.objective.rows_of(np.array(indices), given)


@torch.no_grad()
def test_every_problem_has_the_label_that_the_models_make_of_it_alone(labelled: Any) -> None:
    folder, models, read = labelled
    assert read == [64, 6] * 2
    for stage in LINES:
        store, given = store_of(folder, stage), context(stage, folder)
        assert len(store) == ROWS
        shape = models[stage].config.latent_shape
        for row in (0, 1, 63, 64, 69):
            (problem,) = problems = given.sample(np.array([row]))
            rows = stage_one_batch(given.task.spans(problems, given.prompt_format), given.prompt_format, shape)
            ((expected, ids),) = models[stage].labels(rows["encoder"])
            label = store[row, problem.key]
            if ids is None:
                assert label.vectors is not None
                torch.testing.assert_close(label.vectors, expected.bfloat16().float(), rtol=0.01, atol=0.01)
            else:
                assert label.weights is not None
                torch.testing.assert_close(label.weights, expected)
                assert torch.equal(label.ids, ids)


def test_what_is_published_is_the_decoder_with_its_labels(labelled: Any) -> None:
    folder, _, _ = labelled
    for stage in LINES:
        path = folder / stage / MODEL
        manifest = read_manifest(path)
        assert {name: manifest[name] for name in ("run", "step", "validation", "history")} == {
            "run": "this one",
            "step": 0,
            "validation": {},
            "history": [],
        }
        assert "tokenizer.json" in manifest["files"]
        assert any(name.startswith("labels/rank-00000/") for name in manifest["files"])
        (kept,) = Labels().leftovers(folder / stage)
        assert kept == folder / stage / "labels" and not kept.exists()
        assert teacher(path, context(stage).prompt_format, device=CPU) is None


@torch.no_grad()
def test_the_folder_of_stage_one_has_a_teacher(labelled: Any) -> None:
    folder, models, _ = labelled
    given = context("labels")
    made = teacher(folder / "union" / MODEL, given.prompt_format, device=CPU)
    assert made is not None and made.rate == 2
    spans = given.task.spans(given.sample(np.arange(3)), given.prompt_format)
    chain, expected = made.chain(spans), gold_chain(models["labels"], given.prompt_format, spans)
    torch.testing.assert_close(chain.latents, expected.latents)


def test_labels_are_known_by_what_they_are_made_of(labelled: Any) -> None:
    folder, _, _ = labelled
    words, vectors = (label_identity(context(stages[2], folder)) for stages in LINES.values())
    assert (words.latent, words.rate, words.width, words.top_k, words.seed) == ("superposition", 2, 5, 5, 3)
    assert (vectors.latent, vectors.rate, vectors.width, vectors.top_k, vectors.seed) == ("hidden", 3, 16, None, 3)
    assert (words.precision, vectors.precision) == ("float32", "bfloat16")
    assert words.tokenizer == vectors.tokenizer
    assert words.encoder == words.decoder != vectors.encoder
    # A part of a hash names a tokenizer and the files of a model.
    for name in (words.tokenizer, words.encoder, vectors.encoder):
        assert re.fullmatch("[0-9a-f]{16}", name)
    # There are no more entries than tokens.
    entries = len(context("labels").tokenizer)
    for kept in ("null", "4000"):
        changes = (f"stages.encoder.objective.shape.top_k={kept}", "stages.encoder.objective.noise=null")
        assert label_identity(context("labels", folder, *changes)).width == entries


def read_weights(folder: Path, indices: list[int], *overrides: str) -> list[Tensor]:
    """Weights of the labels of each row, as stage 2 reads them."""
    given = context("autonomy", folder, *overrides)
    batch = given.lineage.objective.collate(given)(np.array(indices))
    lengths = batch["decoder"].latents
    store, chosen = store_of(folder, "labels"), rows_of(given, indices).tolist()
    problems = given.sample(np.array(chosen))
    labels = [store[row, problem.key] for row, problem in zip(chosen, problems, strict=True)]
    assert torch.equal(batch["ids"], torch.cat([label.ids for label in labels if label.ids is not None]))
    return list(batch["weights"].split(list(lengths)))


def test_noise_belongs_to_seed_epoch_and_row(labelled: Any) -> None:
    folder, _, _ = labelled
    together, alone = read_weights(folder, [4, 5, 6]), read_weights(folder, [5])
    assert torch.equal(together[1], alone[0])
    torch.testing.assert_close(alone[0].sum(dim=1), torch.ones(len(alone[0])))
    # The same problem in the next epoch.
    given = context("autonomy", folder)
    (row,), later = rows_of(given, [5]), rows_of(given, list(range(ROWS, 2 * ROWS))).tolist()
    (again,) = read_weights(folder, [ROWS + later.index(row)])
    assert (again - alone[0]).abs().max() > 0.01
    # Without noise it is what was written.
    (plain,) = read_weights(folder, [5], "stages.autonomy.objective.noise=null")
    (problem,) = given.sample(np.array([row]))
    assert torch.equal(plain, store_of(folder, "labels")[row, problem.key].weights)
    assert (plain - alone[0]).abs().max() > 0.01


def test_vectors_are_read_as_they_are(labelled: Any) -> None:
    folder, _, _ = labelled
    given = context("hidden_autonomy", folder)
    batch = given.lineage.objective.collate(given)(np.array([1, 2]))
    assert batch["ids"] is None
    assert batch["weights"].shape == (sum(batch["decoder"].latents), 16)
    store, (first, _) = store_of(folder, "hidden_labels"), rows_of(given, [1, 2]).tolist()
    (problem,) = given.sample(np.array([first]))
    expected = store[first, problem.key].vectors
    assert expected is not None
    assert torch.equal(batch["weights"][: len(expected)], expected)


def test_every_row_must_have_its_label(labelled: Any) -> None:
    folder, _, _ = labelled
    given = context("autonomy", folder, f"stages.labels.objective.rows={ROWS + 1}")
    with pytest.raises(ValueError, match=f"has {ROWS} rows instead of {ROWS + 1}; write the labels again"):
        given.lineage.objective.collate(given)


# --- models ----------------------------------------------------------------------------------------------------------


def learning(model: Any) -> set[str]:
    """Parts of a model of which some weight learns."""
    return {name.split(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}


def test_halves_learn_in_turn() -> None:
    both = built("encoder")
    assert learning(both) == {"encoder", "compress"}
    assert learning(built("decoder", both)) == {"decoder"}
    assert learning(built("union", both)) == {"encoder", "compress", "decoder"}
    alone = built("autonomy", both.decoder)
    assert {name for name, _ in alone.named_children()} == learning(alone) == {"decoder"}


def test_a_line_states_what_its_latents_need() -> None:
    for shape, needed in ((LatentShape(), "superpositions"), (LatentShape(latent="hidden"), "hidden states")):
        assert Stage1(train="encoder", shape=shape).properties == ("Latent-SFT", needed)
    assert Stage1(train="union").properties == ()


@pytest.mark.parametrize(("steps", "steps_of"), [(None, ()), (3, ()), (None, ("cot",)), (3, ("cot",))])
def test_labels_take_no_steps(steps: int | None, steps_of: tuple[str, ...]) -> None:
    stage: Any = SimpleNamespace(talker=None, blocks=None, steps=steps, steps_of=steps_of)
    if steps is None and not steps_of:
        Labels().check_stage(stage)
        return
    with pytest.raises(ValueError, match=r"takes no steps; set objective\.rows"):
        Labels().check_stage(stage)


def test_every_epoch_of_stage_two_reads_every_labelled_problem() -> None:
    given = context("autonomy")
    assert isinstance(given.lineage.objective, Stage2)
    assert sorted(rows_of(given, list(range(ROWS, 2 * ROWS))).tolist()) == list(range(ROWS))
