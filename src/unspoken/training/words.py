"""What the stages of a word-problem recipe train, on what, and what is measured meanwhile."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from unspoken import distributed
from unspoken.backbone import UnspokenForCausalLM
from unspoken.backbone.folder import remove, verify
from unspoken.backbone.loading import load_config, load_pretrained
from unspoken.evaluation.systems import load_model, system_of
from unspoken.evaluation.word_systems import ChainSpeaker
from unspoken.methods.coconut.model import CoconutModel
from unspoken.methods.coconut.objective import batch_of
from unspoken.methods.coconut.stages import Coconut, StepSpans
from unspoken.methods.coupled.objective import supervised_places
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.jepa_reasoner.stages import SST, TalkerLoss
from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.label_store import LabelIdentity, LabelStore, LabelWriter
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.latent_sft.stages import Labels, LatentShape, Stage1, Stage2
from unspoken.methods.latent_sft.teacher import gold_chain, stage_one_batch
from unspoken.methods.rows import compact_rows, explicit_rows
from unspoken.placement import CPU, moved
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.superposition import perturb
from unspoken.tasks.dataset import Batch
from unspoken.tasks.problems import ReasoningProblem, ReasoningTask, graded
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.training import jepa
from unspoken.training.adapters import add_adapters
from unspoken.training.backbones import require_for, require_rows
from unspoken.training.recipe import Recipe, Stage
from unspoken.training.trainer import MODEL, Validator, publish

LABELS = "labels"
# Entries of a vocabulary from which on unjudged scores are left out; below, that saves little and changes last bits.
LARGE_VOCABULARY = 8192


def task_of(recipe: Recipe) -> ReasoningTask:
    """The recipe's task."""
    task: Any = recipe.task.build()
    return task


def _base(recipe: Recipe, stage: Stage, start: Path | None) -> PreTrainedModel:
    """The causal language model that a stage starts from, in float32.

    Raises:
        ValueError: the stage's method would be wrong around it.
    """
    if start is None and not isinstance(recipe.backbone, str):
        model: PreTrainedModel = UnspokenForCausalLM._from_config(
            recipe.backbone_config(), attn_implementation=recipe.attention
        )
        return model
    source: Any = recipe.backbone if start is None else start
    model = load_pretrained(source, dtype=torch.float32, attn_implementation=recipe.attention)
    require_for(model, stage)
    if isinstance(recipe.backbone, str):  # otherwise the task made the tokenizer, and the table has its size
        require_rows(model, PromptFormat(tokenizer=recipe.tokenizer()))
    return model


def _stage_one(folder: Path, recipe: Recipe) -> LatentSFTModel:
    model = load_pretrained(folder, AutoModel, dtype=torch.float32, attn_implementation=recipe.attention)
    assert isinstance(model, LatentSFTModel)
    return model


def _settings(recipe: Recipe, shape: LatentShape) -> LatentGenerationConfig:
    markers = PromptFormat(tokenizer=recipe.tokenizer()).markers
    return LatentGenerationConfig(
        open_ids=markers.open,
        end_ids=markers.end,
        top_k=shape.top_k,
        temperature=shape.temperature,
        feed=shape.latent,
        max_latents=recipe.evaluation.max_latents,
    )


def build_model(recipe: Recipe, stage: Stage, start: Path | None) -> PreTrainedModel:
    """The stage's model with its starting weights.

    Args:
        start: folder of the stage it continues from; None for the recipe's backbone.
    """
    objective = stage.objective
    if isinstance(objective, NextToken):
        model = _base(recipe, stage, start)
        # An explicit chain is the superposition of one token; without a chain there are none.
        explicit = _settings(recipe, LatentShape(top_k=1))
        (explicit if objective.chain == "explicit" else replace(explicit, max_latents=0, fixed=True)).attach(model)
    elif isinstance(objective, SST | TalkerLoss):
        # Its chain stands for the explicit steps, the end marker and the answer.
        markers = PromptFormat(tokenizer=recipe.tokenizer()).markers
        cap = recipe.evaluation.max_latents + len(markers.end) + recipe.evaluation.max_answer
        before = None if start is None else load_model(start)
        if before is None and isinstance(recipe.backbone, str):
            before = _base(recipe, stage, None)
        model = jepa.build_model(recipe, stage, before, max_latents=cap, opened=markers.open)
    elif isinstance(objective, Coconut):
        base = _base(recipe, stage, start)
        model = CoconutModel._from_config(base.config, attn_implementation=recipe.attention)
        model.start_from(base)
        settings = _settings(recipe, LatentShape(latent="hidden"))
        replace(settings, max_latents=objective.latents, fixed=True).attach(model.decoder)
    elif isinstance(objective, Stage1) and objective.shape is not None:
        base = _base(recipe, stage, start)
        model = _joint(recipe, base, objective.shape, has_encoder=True)
    elif isinstance(objective, Stage1):
        assert start is not None
        model = _stage_one(start, recipe)
    else:
        assert isinstance(objective, Stage2) and start is not None
        base = _base(recipe, stage, start)
        shape = inherited_shape(recipe, stage)
        model = _joint(recipe, base, shape, has_encoder=False)
        _settings(recipe, shape).attach(model.decoder)
    if isinstance(model, LatentSFTModel):
        _choose_halves(model, stage)
    _speak_like(model, recipe)
    if stage.lora is not None:
        add_adapters(model, stage.lora)
    return model


def base_config(recipe: Recipe) -> PreTrainedConfig:
    """Configuration of the causal language model that every stage starts from.

    Raises:
        ValueError: there is no pretrained model of that name, or it has fewer blocks than an SST stage asks for.
    """
    if not isinstance(recipe.backbone, str):
        return recipe.backbone_config()
    try:
        config = load_config(recipe.backbone)
    except (OSError, ValueError) as error:
        raise ValueError(f"backbone {recipe.backbone!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    for stage in recipe.stages:
        if isinstance(stage.objective, SST):
            jepa.first_blocks(config, stage)
    return config


def build_empty(recipe: Recipe, stage: Stage, config: PreTrainedConfig) -> PreTrainedModel:
    """The stage's model with no particular weights, for counting; works on the meta device.

    Args:
        config: the recipe's `base_config`.
    """
    auto: Any = AutoModelForCausalLM
    objective = stage.objective
    if isinstance(objective, NextToken):
        model: PreTrainedModel = auto.from_config(config)
    elif isinstance(objective, SST):
        model = jepa.build_model(recipe, stage, auto.from_config(config), max_latents=1)
    elif isinstance(objective, TalkerLoss):
        assert stage.start is not None
        reasoner = build_empty(recipe, replace(recipe.stage(stage.start), lora=None), config)
        model = jepa.build_model(recipe, stage, reasoner, max_latents=1)
    elif isinstance(objective, Coconut):
        model = CoconutModel(config)
    else:
        model = LatentSFTModel(LatentSFTConfig(base_config=config, has_encoder=isinstance(objective, Stage1)))
        _choose_halves(model, stage)
    if stage.lora is not None:
        add_adapters(model, stage.lora)
    return model


def _choose_halves(model: LatentSFTModel, stage: Stage) -> None:
    trains = stage.objective.train if isinstance(stage.objective, Stage1) else "decoder"
    model.train_only(encoder=trains in ("encoder", "union"), decoder=trains in ("decoder", "union"))


def _joint(recipe: Recipe, base: PreTrainedModel, shape: LatentShape, *, has_encoder: bool) -> LatentSFTModel:
    markers = PromptFormat(tokenizer=recipe.tokenizer()).markers
    config = LatentSFTConfig(
        base_config=base.config,
        shape=asdict(shape),
        open_ids=list(markers.open),
        end_ids=list(markers.end),
        has_encoder=has_encoder,
    )
    model = LatentSFTModel._from_config(config, attn_implementation=recipe.attention)
    model.start_from(base)
    return model


def _speak_like(model: PreTrainedModel, recipe: Recipe) -> None:
    """Ends and padding of answers are the tokenizer's."""
    tokenizer = recipe.tokenizer()
    speaker = model.decoder if isinstance(model, LatentSFTModel | CoconutModel) else model
    if isinstance(speaker, JepaReasonerModel):
        return  # it has no words of its own
    speaker.generation_config.eos_token_id = tokenizer.eos_token_id
    speaker.generation_config.pad_token_id = tokenizer.pad_token_id


def speaker_of(model: PreTrainedModel, recipe: Recipe) -> CausalLMReasoner | ChainSpeaker:
    """The model of a stage as it answers problems."""
    if isinstance(model, JepaReasonerModel | JepaReasonerForCausalLM):
        return ChainSpeaker(system=system_of(model), max_latents=model.config.max_latents)
    if isinstance(model, LatentSFTModel):
        return CausalLMReasoner(model=model.decoder, settings=_settings(recipe, model.config.latent_shape))
    speaker = model.decoder if isinstance(model, CoconutModel) else model
    return CausalLMReasoner(model=speaker, settings=LatentGenerationConfig.of(speaker))


# --- data --------------------------------------------------------------------------------------------------------


def batches(recipe: Recipe, stage: Stage, start: Path | None, seed: int) -> Callable[[NDArray[np.int64]], Batch]:
    """Indices of training samples to a batch."""
    task, objective = task_of(recipe), stage.objective
    prompt_format = PromptFormat(tokenizer=recipe.tokenizer())
    if isinstance(objective, Stage2):
        assert start is not None
        return _labelled(recipe, stage, start, seed)
    if isinstance(objective, Stage1):
        shape = objective.shape or inherited_shape(recipe, stage)
        return lambda indices: {
            **stage_one_batch(
                [prompt_format.spans(problem) for problem in task.sample("train", indices, seed)], prompt_format, shape
            )
        }
    if isinstance(objective, Coconut):
        return lambda indices: coconut_batch(task.sample("train", indices, seed), prompt_format, objective)
    chain = not isinstance(objective, NextToken) or objective.chain == "explicit"
    answers = isinstance(objective, NextToken) and objective.positions == "answer"
    sparse = answers and len(prompt_format.tokenizer) >= LARGE_VOCABULARY

    def make(indices: NDArray[np.int64]) -> Batch:
        batch = explicit_batch(task.sample("train", indices, seed), prompt_format, chain=chain)
        return {**batch, "judged": supervised_places(batch)} if sparse else batch

    return make


def lengths(recipe: Recipe, stage: Stage, seed: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """Indices of training samples to their lengths as a stage reads them, in tokens.

    What every row of a stage has alike, such as markers and the frame of a chat, is not counted.
    """
    task, objective, tokenizer = task_of(recipe), stage.objective, recipe.tokenizer()
    rate = inherited_shape(recipe, stage).rate if isinstance(objective, Stage1 | Stage2) else None
    labelled = None
    if isinstance(objective, Stage2):
        assert stage.start is not None
        labelled = labelled_rows(recipe, recipe.stage(stage.start))

    def chain_of(problem: ReasoningProblem) -> str:
        if isinstance(objective, Coconut):
            return "".join(problem.steps[objective.replaced :]) if objective.rest == "explicit" else ""
        silent = isinstance(objective, NextToken) and objective.chain == "none"
        return problem.chains[0] if problem.chains and not silent else ""

    def measure(indices: NDArray[np.int64]) -> NDArray[np.int64]:
        problems = task.sample("train", indices if labelled is None else _shuffled(indices, labelled, seed)[1], seed)
        texts = [(problem.question, chain_of(problem), problem.solution or problem.answer) for problem in problems]
        # In one call, which a tokenizer spreads over all cores: each rank measures the samples of all of them.
        ids = tokenizer([text for row in texts for text in row], add_special_tokens=False)["input_ids"]
        question, chain, answer = np.array([len(tokens) for tokens in ids], dtype=np.int64).reshape(-1, 3).T
        explicit = 0 if isinstance(objective, Stage2) else chain
        latents = 0 if rate is None else -(-chain // rate)
        total: NDArray[np.int64] = question + explicit + latents + answer
        return total

    return measure


def inherited_shape(recipe: Recipe, stage: Stage) -> LatentShape:
    """What a latent is in the line of stages that this one belongs to."""
    while True:
        if isinstance(stage.objective, Stage1) and stage.objective.shape is not None:
            return stage.objective.shape
        assert stage.start is not None
        stage = recipe.stage(stage.start)


def explicit_batch(problems: list[ReasoningProblem], prompt_format: PromptFormat, *, chain: bool) -> Batch:
    """Rows of plain text: of next-token training, and of JEPA-Reasoner, whose latents stand for tokens one by one."""
    spans = [prompt_format.spans(problem) for problem in problems]
    pad = prompt_format.tokenizer.pad_token_id
    rows = explicit_rows(spans, prompt_format.markers, pad_id=pad, chain=chain)
    return {"input_ids": rows.ids, "attention_mask": rows.real.long(), "answer_mask": rows.target}


def coconut_batch(problems: list[ReasoningProblem], prompt_format: PromptFormat, objective: Coconut) -> Batch:
    """Rows in which latents stand in for the first steps."""
    markers, rows = prompt_format.markers, []
    for problem in problems:
        spans = prompt_format.spans(problem)
        steps = tuple(prompt_format.encode(step) for step in problem.steps)
        cut = StepSpans(prompt=spans.prompt, steps=steps, answer=spans.answer)
        rows.append(objective.row(cut, markers.open, markers.end))
    return {**batch_of(rows, prompt_format.tokenizer.pad_token_id)}


def _shuffled(indices: NDArray[np.int64], rows: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Epoch of each index, and which of so many rows it is there."""
    epochs, places = np.divmod(indices, rows)
    pairs = zip(epochs.tolist(), places, strict=True)
    return epochs, np.array([_permutation(rows, seed, epoch)[place] for epoch, place in pairs])


@lru_cache(maxsize=2)
def _permutation(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch; a batch lies in two of them at most, and the next one in the same."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def _labelled(recipe: Recipe, stage: Stage, start: Path, seed: int) -> Callable[[NDArray[np.int64]], Batch]:
    """Rows of stage 2 with their labels: every epoch in another order, and with other noise."""
    task, prompt_format, objective = task_of(recipe), PromptFormat(tokenizer=recipe.tokenizer()), stage.objective
    assert isinstance(objective, Stage2) and stage.start is not None
    labels_stage = recipe.stage(stage.start)
    assert labels_stage.start is not None
    teacher = start.parents[1] / labels_stage.start / MODEL
    store = LabelStore.open(start / LABELS, label_identity(recipe, labels_stage, teacher, seed))
    rows_wanted = labelled_rows(recipe, labels_stage)
    if len(store) != rows_wanted:
        raise ValueError(f"{start / LABELS} has {len(store)} rows instead of {rows_wanted}; write the labels again")
    shape = inherited_shape(recipe, stage)

    def make(indices: NDArray[np.int64]) -> Batch:
        epochs, chosen = _shuffled(indices, len(store), seed)
        problems = task.sample("train", chosen, seed)
        spans = [prompt_format.spans(problem) for problem in problems]
        rows = compact_rows(spans, prompt_format.markers, rate=shape.rate, pad_id=prompt_format.tokenizer.pad_token_id)
        labels = [store[int(row), problem.key] for row, problem in zip(chosen, problems, strict=True)]
        if shape.latent == "hidden":
            vectors = torch.cat([label.vectors for label in labels if label.vectors is not None])
            return {"decoder": rows, "weights": vectors, "ids": None}
        weights: list[Tensor] = []
        for label, epoch, row in zip(labels, epochs.tolist(), chosen.tolist(), strict=True):
            assert label.weights is not None and label.ids is not None
            noisy = label.weights
            if objective.noise is not None:
                key = hashlib.sha256(f"{seed}:{epoch}:{row}".encode()).digest()[:8]
                generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
                noisy = perturb(
                    noisy, label.ids, generator, end_id=prompt_format.markers.end[0], **asdict(objective.noise)
                )
            weights.append(noisy)
        ids = torch.cat([label.ids for label in labels if label.ids is not None])
        return {"decoder": rows, "weights": torch.cat(weights), "ids": ids}

    return make


# --- measuring while training ------------------------------------------------------------------------------------


def validator_of(recipe: Recipe, stage: Stage) -> Validator:
    """What is measured on the validation problems: right answers, and whether the chain ends by itself.

    A stage of Coconut says the steps that latents do not replace before its answer, and JEPA-Reasoner all of them, so
    they may say more. Stage 1 answers from the encoder's latents of the right chain, which only selects checkpoints;
    every other stage reasons alone. A Reasoner's table is watched for collapse.
    """
    task, prompt_format, settings = task_of(recipe), PromptFormat(tokenizer=recipe.tokenizer()), recipe.evaluation
    problems = task.sample("validation", np.arange(settings.validation_problems))
    own = [problems[row] for row in distributed.rank_slice(len(problems))]

    @torch.no_grad()
    def judge(model: PreTrainedModel) -> dict[str, float]:
        reasoner = speaker_of(model, recipe)
        right, ended, latents = [], [], []
        for start in range(0, len(own), settings.batch_size):
            some = own[start : start + settings.batch_size]
            ids, mask = prompt_format.prompts(some)
            given = None
            if isinstance(model, LatentSFTModel) and model.config.has_encoder:
                given = gold_chain(model, prompt_format, [prompt_format.spans(problem) for problem in some])
            room = settings.max_answer + (settings.max_latents if isinstance(model, CoconutModel) else 0)
            if isinstance(reasoner, ChainSpeaker):
                room = reasoner.max_latents
            chain, said = reasoner.respond(ids, mask, max_tokens=room, given=given)
            right.append(torch.from_numpy(graded(prompt_format.decode(said), some)))
            ended.append((chain.stop == 0).double())
            latents.append(chain.lengths.double())
        found = {
            name: distributed.gather_rows(torch.cat(parts)).double().mean()
            for name, parts in (("exact_match", right), ("ended", ended), ("latents", latents))
        }
        exact = float(found["exact_match"])
        reading = {"exact_match": exact, "score": exact}
        if not (isinstance(model, LatentSFTModel) and model.config.has_encoder):
            reading |= {"ended": float(found["ended"]), "latents": float(found["latents"])}
        if isinstance(model, JepaReasonerModel):
            assert isinstance(stage.objective, SST)
            with distributed.as_single_process():
                reading |= jepa.reading(model, stage.objective, explicit_batch(problems, prompt_format, chain=True))
        return reading

    return judge


# --- between the stages ------------------------------------------------------------------------------------------


def labelled_rows(recipe: Recipe, stage: Stage) -> int:
    """Problems that a labels stage labels: all of them, where there are fewer than it asks for."""
    assert isinstance(stage.objective, Labels)
    size = task_of(recipe).size("train")
    return stage.objective.rows if size is None else min(stage.objective.rows, size)


def label_identity(recipe: Recipe, stage: Stage, teacher: Path, seed: int) -> LabelIdentity:
    """What the labels of a labels stage are made of, found out from the recipe and the teacher's folder.

    Args:
        teacher: folder of the model that makes them.
    """
    shape, config = inherited_shape(recipe, stage), load_config(teacher)
    assert isinstance(config, LatentSFTConfig) and isinstance(config.base_config, PreTrainedConfig)
    vocabulary, hidden = config.base_config.vocab_size, shape.latent == "hidden"
    listed = json.dumps(sorted(verify(teacher)["files"].items()))
    weights = hashlib.sha256(listed.encode()).hexdigest()[:16]
    tokenizer: Any = recipe.tokenizer()
    return LabelIdentity(
        data=task_of(recipe).fingerprint,
        split="train",
        seed=seed,
        tokenizer=hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16],
        rate=shape.rate,
        latent=shape.latent,
        width=config.base_config.hidden_size if hidden else min(shape.top_k or vocabulary, vocabulary),
        top_k=None if hidden else shape.top_k,
        temperature=shape.temperature,
        readout=shape.readout,
        encoder=weights,
        decoder=weights,
    )


@torch.no_grad()
def write_labels(
    recipe: Recipe,
    stage: Stage,
    start: Path,
    folder: Path,
    *,
    seed: int,
    device: torch.device,
    manifest: dict[str, Any],
) -> Path:
    """Write the labels and publish them beside the plain decoder that stage 2 starts from.

    Safe to kill: it continues behind the last block on disk.
    """
    assert isinstance(stage.objective, Labels)
    task, prompt_format = task_of(recipe), PromptFormat(tokenizer=recipe.tokenizer())
    model: Any = _stage_one(start, recipe)
    model = model.to(device).eval()
    shape = model.config.latent_shape
    identity = label_identity(recipe, stage, start, seed)
    rows = labelled_rows(recipe, stage)
    store = folder / LABELS
    if not distributed.run_on_main(store.exists):
        distributed.run_on_main(lambda: LabelWriter.forget(store, unless=distributed.world_size()))
        writer = LabelWriter(store, identity, rows=rows, rank=distributed.rank(), world=distributed.world_size())
        while writer.next_row < writer.share.stop:
            some = np.arange(writer.next_row, min(writer.next_row + 64, writer.share.stop))
            problems = task.sample("train", some, seed)
            batch = stage_one_batch([prompt_format.spans(problem) for problem in problems], prompt_format, shape)
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
        staging = folder / ".model"
        shutil.rmtree(staging, ignore_errors=True)
        _settings(recipe, shape).attach(model.decoder)
        model.decoder.save_pretrained(staging)
        prompt_format.tokenizer.save_pretrained(staging)
        shutil.copytree(store, staging / LABELS)
        publish(staging, folder / MODEL, {**manifest, "step": 0, "validation": {}, "history": []})
        remove(store)
        return folder / MODEL

    return distributed.run_on_main(publish_model)
