"""Labels between the stages: written by the models of stage 1, read by stage 2 (docs/methods/latent_sft.md)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from unspoken import distributed
from unspoken.backbone.folder import publish, remove, verify
from unspoken.backbone.loading import load_config
from unspoken.methods.latent_sft.building import generation_of, stage_one_batch
from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.label_store import LabelStore, LabelWriter
from unspoken.methods.latent_sft.labels import Label, LabelIdentity
from unspoken.methods.latent_sft.stages import Labels, Stage2, shape_of
from unspoken.methods.method import Batch, Context, Indices, Lineage
from unspoken.methods.rows import compact_rows
from unspoken.placement import CPU, moved
from unspoken.reasoning.picking import generator_of
from unspoken.reasoning.superposition import perturb
from unspoken.storage import MODEL, new_folder

LABELS = "labels"
_AT_ONCE = 64  # problems


def _labels_stage(context: Context) -> Lineage:
    """The stage that writes the labels: this one, or the one before it."""
    return next(lineage for lineage in context.lineage if isinstance(lineage.objective, Labels))


def labelled_rows(context: Context) -> int:
    """Problems that have labels: all of them, where there are fewer than were asked for."""
    return _labels_stage(context).objective.training_rows(0, 0, context.task.size("train"))


def shuffled(indices: Indices, rows: int, seed: int) -> tuple[Indices, Indices]:
    """Epoch of each index, and its row in the order of that epoch."""
    epochs, positions = np.divmod(indices, rows)
    pairs = zip(epochs.tolist(), positions, strict=True)
    return epochs, np.array([_permutation(rows, seed, epoch)[position] for epoch, position in pairs])


@lru_cache(maxsize=2)
def _permutation(rows: int, seed: int, epoch: int) -> Indices:
    """The order of an epoch; a batch lies in two of them at most, and the next one in the same."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def label_identity(context: Context) -> LabelIdentity:
    """What the labels of a run are made of: the recipe's settings, and the folder of the models that make them."""
    labels = _labels_stage(context)
    maker = labels.before
    assert maker is not None and isinstance(labels.objective, Labels)
    teacher = context.model_folder(maker)
    shape, config = shape_of(maker), load_config(teacher)
    assert isinstance(config, LatentSFTConfig) and isinstance(config.base_config, PreTrainedConfig)
    vocabulary, hidden = config.base_config.vocab_size, shape.latent == "hidden"
    listed = json.dumps(sorted(verify(teacher)["files"].items()))
    weights = hashlib.sha256(listed.encode()).hexdigest()[:16]
    return LabelIdentity(
        data=context.task.fingerprint,
        split="train",
        seed=context.seed,
        tokenizer=hashlib.sha256(context.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16],
        rate=shape.rate,
        latent=shape.latent,
        width=config.base_config.hidden_size if hidden else min(shape.top_k or vocabulary, vocabulary),
        top_k=None if hidden else shape.top_k,
        temperature=shape.temperature,
        readout=shape.readout,
        encoder=weights,
        decoder=weights,
        precision=labels.objective.precision,
    )


@torch.no_grad()
def write_labels(
    start: PreTrainedModel, context: Context, folder: Path, *, device: torch.device, manifest: dict[str, Any]
) -> Path:
    """Write the labels and publish them together with the plain decoder that stage 2 starts from.

    Safe to kill: it continues after the last block on disk. Arguments are those of `Objective.write`.
    """
    model: Any = start.to(device).eval()
    shape, store, rows = shape_of(context.lineage), folder / LABELS, labelled_rows(context)
    if not distributed.run_on_main(store.exists):
        distributed.run_on_main(lambda: LabelWriter.forget(store, unless=distributed.world_size()))
        writer = LabelWriter(
            store, label_identity(context), rows=rows, rank=distributed.rank(), world=distributed.world_size()
        )
        while writer.next_row < writer.own_rows.stop:
            problems = context.sample(np.arange(writer.next_row, min(writer.next_row + _AT_ONCE, writer.own_rows.stop)))
            batch = stage_one_batch(context.task.spans(problems, context.prompt_format), context.prompt_format, shape)
            for problem, label in zip(problems, model.labels(moved(batch["encoder"], device)), strict=True):
                weights, ids = moved(label, CPU)
                if ids is None:
                    writer.append_vectors(problem.key, weights)
                else:
                    writer.append(problem.key, ids, weights)
        writer.finish()
        distributed.barrier()
        distributed.run_on_main(writer.publish)

    def publish_model() -> Path:
        staging = new_folder(folder / MODEL)
        generation_of(shape, context).attach(model.decoder)
        model.decoder.save_pretrained(staging)
        context.tokenizer.save_pretrained(staging)
        shutil.copytree(store, staging / LABELS)
        publish(staging, folder / MODEL, {**manifest, "step": 0, "validation": {}, "history": []})
        remove(store)
        return folder / MODEL

    return distributed.run_on_main(publish_model)


def labelled_batches(objective: Stage2, context: Context) -> Callable[[Indices], Batch]:
    """Rows of stage 2 with their labels; a ValueError if these are missing, damaged or those of another run."""
    labels, shape, prompt_format = _labels_stage(context), shape_of(context.lineage), context.prompt_format
    path = context.model_folder(labels) / LABELS
    store, rows = LabelStore.open(path, label_identity(context)), labelled_rows(context)
    if len(store) != rows:
        raise ValueError(f"{path} has {len(store)} rows instead of {rows}; write the labels again")

    def make(indices: Indices) -> Batch:
        epochs, chosen = shuffled(indices, len(store), context.seed)
        problems = context.sample(chosen)
        spans = context.task.spans(problems, prompt_format)
        pad = prompt_format.tokenizer.pad_token_id
        compact = compact_rows(spans, prompt_format.markers, rate=shape.rate, pad_id=pad)
        of_rows = [store[int(row), problem.key] for row, problem in zip(chosen, problems, strict=True)]
        if shape.latent == "hidden":
            vectors = torch.cat([label.vectors for label in of_rows if label.vectors is not None])
            return {"decoder": compact, "weights": vectors, "ids": None}
        weights = [
            store.rounded(_noisy(objective, label, f"{context.seed}:{epoch}:{row}", prompt_format.markers.end[0]))
            for label, epoch, row in zip(of_rows, epochs.tolist(), chosen.tolist(), strict=True)
        ]
        ids = torch.cat([label.ids for label in of_rows if label.ids is not None])
        return {"decoder": compact, "weights": torch.cat(weights), "ids": ids}

    return make


def _noisy(objective: Stage2, label: Label, name: str, end_id: int) -> Tensor:
    """Weights of a label with the noise that belongs to a name, if the stage has noise."""
    assert label.weights is not None and label.ids is not None
    if objective.noise is None:
        return label.weights
    return perturb(label.weights, label.ids, generator_of(name), end_id=end_id, **asdict(objective.noise))
