"""What a recipe will cost, found out on the meta device: nothing is allocated and nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unspoken.evaluation.cost import attention_width
from unspoken.methods.coconut.stages import Coconut
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.jepa_reasoner.stages import SST, TalkerLoss
from unspoken.methods.jepa_reasoner.talker import DualTalker
from unspoken.methods.latent_sft.objective import positions_at_once
from unspoken.methods.latent_sft.stages import Labels, LatentShape, Stage1, Stage2
from unspoken.tasks import GrammarConfig, ProseConfig, TreeSearchConfig
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.training import strings, trees, words
from unspoken.training.optimizers import is_matrix
from unspoken.training.recipe import Recipe, Stage
from unspoken.training.shapes import Lengths, measured_lengths, published_shape
from unspoken.training.stages import OWN_KINDS

RANKS = (1, 8, 64)  # GPUs that a plan is made for
PEAK_FLOPS = 400e12  # of a GPU: dense products in bfloat16, a second
USE = 0.4  # share of the peak that training reaches
_LABELLED = 64  # problems of a labels stage at a time
_FULL = 4  # bytes of float32: weights, gradients, optimiser state, residual stream, losses


# --- what is not at hand -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tokens:
    """A tokenizer that is known by its size alone."""

    size: int
    eos_token_id: int = 1
    pad_token_id: int = 0

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True, kw_only=True)
class _Sketch(Recipe):
    """A recipe whose tokenizer is out of reach, or takes long to make."""

    vocabulary: int

    def tokenizer(self) -> Any:
        return _Tokens(self.vocabulary)


def _sketch(recipe: Recipe, vocabulary: int) -> Recipe:
    return _Sketch(**{field.name: getattr(recipe, field.name) for field in fields(Recipe)}, vocabulary=vocabulary)


def _base(recipe: Recipe) -> tuple[Recipe, PreTrainedConfig, list[str]]:
    """The recipe as it can be planned here, the configuration of its backbone, and what has to be said about it."""
    if isinstance(recipe.task, ProseConfig):
        recipe = _sketch(recipe, recipe.task.vocabulary)
    if not isinstance(recipe.backbone, str):
        return recipe, recipe.backbone_config(), []
    # A plan of a shipped recipe waits for no download.
    config = None if Path(recipe.backbone).is_dir() else published_shape(recipe.backbone)
    if config is None:
        return recipe, words.base_config(recipe), []
    if recipe.backbone.startswith("runs/"):
        note = f"{recipe.backbone} is not there yet: planned with the shape that it will have (see the recipe)"
    else:
        note = f"{recipe.backbone}: planned with its published shape, nothing was loaded"
    return _sketch(recipe, config.vocab_size), config, [note]


def _lengths(recipe: Recipe) -> tuple[Lengths, list[str]]:
    """Mean lengths of training rows; of word problems, measured on some."""
    if isinstance(recipe.task, TreeSearchConfig):
        task = trees.task_of(recipe)
        return Lengths(prompt=task.prompt_length, answer=task.answer_length), []
    if isinstance(recipe.task, GrammarConfig):
        # A prompt ends between the middle and the last place from which enough symbols follow.
        mean, steps = strings.task_of(recipe).grammar.mean_length, recipe.task.steps
        prompt = (1.5 * mean - steps) / 2
        return Lengths(prompt=prompt, answer=mean + 1 - prompt), []
    if isinstance(recipe.task, ProseConfig):
        return Lengths(prompt=0, answer=recipe.task.length), []
    known = measured_lengths(getattr(recipe.task, "train", None))
    try:
        if isinstance(recipe, _Sketch):
            raise ValueError(
                f"{recipe.task.kind}: without the tokenizer of {recipe.backbone} nobody knows how long problems are; "
                "make it reachable, or give a recipe whose data is known (whynlp/gsm8k-aug)"
            )
        prompt_format = PromptFormat(tokenizer=recipe.tokenizer())
        problems = words.task_of(recipe).sample("train", range(64))
    except (ValueError, OSError):
        if known is None:
            raise
        return known, ["lengths of problems: means measured on GSM8K-Aug with the tokenizer of SmolLM2"]
    spans = [prompt_format.spans(problem) for problem in problems]

    def mean_of(counts: Sequence[int]) -> float:
        return sum(counts) / len(counts)

    return Lengths(
        prompt=mean_of([len(row.prompt) for row in spans]) + len(prompt_format.markers.open),
        chain=mean_of([len(row.chain) for row in spans]),
        end=len(prompt_format.markers.end),
        answer=mean_of([len(row.answer) for row in spans]),
        steps=mean_of([len(problem.steps) for problem in problems]),
    ), []


# --- what one row takes ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """Positions of one row that go through one stack of blocks.

    Attributes:
        graded: gradients flow through, even where no weight of it is trained.
        across: positions of another stack that each one also sees.
    """

    stack: Any
    positions: float
    graded: bool = True
    causal: bool = True
    across: float = 0.0

    def flops(self, *, again: bool) -> float:
        """Floating-point operations, forward and backward; ``again`` runs graded blocks a second time.

        Two for every weight of a linear layer and position, forward; as many backward for the gradient of the inputs,
        and as many for that of a trained weight. Attention as in `evaluation.cost.stack_flops`. Tables are looked up.
        """
        twice = self.graded and again
        weights = 0
        for part in self.stack.modules():
            if isinstance(part, nn.Linear | Conv1D):
                times = 1 + twice + (self.graded + part.weight.requires_grad if self.graded else 0)
                weights += times * part.weight.numel()
        seen = ((self.positions + 1) / 2 if self.causal else self.positions) + self.across
        channels = 4 * attention_width(self.stack.config) * seen
        return self.positions * (2 * weights + (3 + twice if self.graded else 1) * channels)

    def kept(self, recipe: Recipe, width: int) -> float:
        """Bytes a row that are kept for the backward pass, about.

        A block keeps the residual stream in float32 before its two norms and, in ``width`` bytes, what goes into its
        matrices: normed inputs, queries and keys before and after the rotation, values, what attention returns, and the
        feed-forward part; the scores too unless the kernel makes them again. With activation checkpointing every block
        keeps its input, and one block at a time the rest.
        """
        if not self.graded:
            return 0.0
        config, layers = self.stack.config, self.stack.config.num_hidden_layers
        hidden, heads = config.hidden_size, config.num_attention_heads
        attention = attention_width(config) / layers
        keys = attention * (getattr(config, "num_key_value_heads", None) or heads) / heads
        inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
        gated = any(name.endswith("gate_proj") for name, _ in self.stack.named_modules())
        scores = heads * (_FULL + (width if width < _FULL else 0)) if recipe.attention == "eager" else 0
        one = _FULL * hidden + width * (hidden + 3 * attention + 3 * keys)
        block = one + scores * self.positions + _FULL * hidden + width * (hidden + (4 if gated else 2) * inner)
        if self.across:
            block += one + scores * self.across
        if recipe.activation_checkpointing:
            return self.positions * (_FULL * hidden * layers + block)
        return self.positions * block * layers


@dataclass(frozen=True, kw_only=True)
class _Scores:
    """Positions of one row that are scored over the vocabulary.

    Attributes:
        head: what scores them.
        made: positions whose scores the model returns; 0 where the loss makes its own.
        judged: positions whose scores are looked at.
        graded: gradients flow through.
        products: with a matrix as large as the head, a position.
        pieces: made a piece at a time, and again in the backward pass.
    """

    head: torch.Tensor
    made: float = 0.0
    judged: float
    graded: bool = True
    products: int = 1
    pieces: bool = False

    def flops(self, rows: int) -> float:
        """Floating-point operations of a row, ``rows`` of them at once."""
        again = self.graded and self.pieces and rows * self.judged > positions_at_once(len(self.head))
        times = 1 + again + (1 + self.head.requires_grad if self.graded else 0)
        return 2 * self.head.numel() * self.products * max(self.made, self.judged) * times

    def kept(self, rows: float, width: int) -> float:
        """Bytes of ``rows`` rows: scores, the judged ones once more in float32, and their logarithms."""
        at_once = min(rows * self.judged, positions_at_once(len(self.head))) if self.pieces else rows * self.judged
        copies = width + (_FULL if width < _FULL else 0) + _FULL
        return self.head.shape[0] * (width * rows * self.made + copies * at_once)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What one training row takes."""

    tokens: float
    passes: tuple[_Pass, ...]
    scores: tuple[_Scores, ...] = ()


def _row(recipe: Recipe, stage: Stage, model: Any, lengths: Lengths) -> _Row:
    objective = stage.objective
    if isinstance(objective, NextToken):
        explicit = objective.chain == "explicit"
        tokens = lengths.whole - (0 if explicit else lengths.chain)
        spoken = lengths.answer + (lengths.chain + lengths.end if explicit else 0)
        head = model.get_output_embeddings().weight
        judged = tokens if objective.positions == "all" else spoken
        # Of a large vocabulary only the judged places are scored.
        made = judged if len(head) >= words.LARGE_VOCABULARY else tokens
        scores = _Scores(head=head, made=made, judged=judged)
        return _Row(tokens=tokens, passes=(_Pass(stack=model.base_model, positions=tokens),), scores=(scores,))
    if isinstance(objective, SST):
        return _Row(tokens=lengths.whole, passes=(_Pass(stack=model.backbone, positions=lengths.whole),))
    if isinstance(objective, TalkerLoss):
        return _talker_row(recipe, model, lengths)
    if isinstance(objective, Coconut):
        left = 0.0 if objective.rest == "none" else lengths.chain * max(0.0, 1 - objective.replaced / lengths.steps)
        text = lengths.end + left + lengths.answer
        if isinstance(recipe.task, GrammarConfig):
            text = 2.0 + recipe.task.steps - objective.replaced  # a marker on either side of the latents
        tokens = lengths.prompt + objective.latents + text
        scores = _Scores(head=model.decoder.get_output_embeddings().weight, made=text + 1, judged=text)
        return _Row(tokens=tokens, passes=(_Pass(stack=model.decoder.base_model, positions=tokens),), scores=(scores,))
    return _latent_row(recipe, stage, model, lengths)


def _talker_row(recipe: Recipe, model: Any, lengths: Lengths) -> _Row:
    """The frozen Reasoner reads, the Talker says what its latents stand for."""
    tokens = lengths.whole
    said = lengths.chain + lengths.end + lengths.answer
    if isinstance(recipe.task, GrammarConfig):
        said = (1 + recipe.task.steps) / 2  # stretches of all lengths
    elif isinstance(recipe.task, ProseConfig):
        said = sum(recipe.task.sentence_tokens) / 2 + 1
        tokens = said + 1
    talker = model.talker
    spoken: tuple[_Pass, ...]
    if isinstance(talker, DualTalker):
        head = talker.decoder.get_input_embeddings().weight if talker.lm_head is None else talker.lm_head.weight
        spoken = (
            _Pass(stack=talker.encoder, positions=said, causal=False),
            _Pass(stack=talker.decoder, positions=said, across=said),
        )
    else:
        head = talker.lm_head.weight
        spoken = (_Pass(stack=talker.decoder, positions=said, causal=talker.decoder.config.is_causal),)
    heard = _Pass(stack=model.reasoner.backbone, positions=tokens, graded=False)
    return _Row(tokens=tokens, passes=(heard, *spoken), scores=(_Scores(head=head, made=said, judged=said),))


def _latent_row(recipe: Recipe, stage: Stage, model: Any, lengths: Lengths) -> _Row:
    """Of Latent-SFT: explicit chains to latents, to labels, or labels to latents."""
    objective, shape = stage.objective, words.inherited_shape(recipe, stage)
    head, stack = model.decoder.get_output_embeddings().weight, model.decoder.base_model
    latents = math.ceil(lengths.chain / shape.rate)
    compact = lengths.prompt + latents + lengths.end + lengths.answer
    spoken = lengths.end + lengths.answer
    if isinstance(objective, Stage2):
        judged = (spoken,) if shape.latent == "hidden" else (spoken, float(latents))
        scores = tuple(_Scores(head=head, judged=count, pieces=True) for count in judged)
        return _Row(tokens=compact, passes=(_Pass(stack=stack, positions=compact),), scores=scores)
    encoder = lengths.prompt + lengths.chain + latents + lengths.end
    taught = isinstance(objective, Stage1) and objective.train != "decoder"
    summed = _Pass(stack=model.encoder, positions=encoder, graded=taught)
    read_out = _read_out(head, shape, latents, graded=taught)
    if isinstance(objective, Labels):
        return _Row(tokens=encoder, passes=(summed,), scores=read_out)
    behind = max(0.0, lengths.chain - shape.rate)  # the first chunk is left out
    passes = (summed, _Pass(stack=stack, positions=compact + behind))
    return _Row(
        tokens=encoder + compact + behind,
        passes=passes,
        scores=(*read_out, _Scores(head=head, judged=spoken + behind, pieces=True)),
    )


def _read_out(head: Any, shape: LatentShape, latents: int, *, graded: bool) -> tuple[_Scores, ...]:
    """Superpositions: scores of every latent at once, or of the whole vocabulary a piece at a time, mixed too."""
    if shape.latent == "hidden":
        return ()
    whole = shape.top_k is None
    return (_Scores(head=head, judged=float(latents), graded=graded, products=1 + whole, pieces=whole),)


# --- what a stage takes ------------------------------------------------------------------------------------------


def _whole_at_once(model: nn.Module) -> tuple[int, int]:
    """Weights, and trained ones, that every rank holds whole while it computes: outside of blocks, and one block."""
    blocks = [block for part in model.modules() if isinstance(part, nn.ModuleList) for block in part]
    inside = {id(weight) for block in blocks for weight in block.parameters()}
    outside = [weight for weight in model.parameters() if id(weight) not in inside]
    largest = max(([*block.parameters()] for block in blocks), key=_count, default=[])
    gathered = [*outside, *largest]
    return _count(gathered), _count([weight for weight in gathered if weight.requires_grad])


def _count(weights: Sequence[torch.Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def _stage_facts(recipe: Recipe, stage: Stage, model: PreTrainedModel, lengths: Lengths) -> dict[str, Any]:
    labels = isinstance(stage.objective, Labels)
    if labels:
        model.requires_grad_(False)
    row = _row(recipe, stage, model, lengths)
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    learned = _count([weight for _, weight in trained])
    # Muon keeps one number a weight, AdamW two.
    matrices = [weight for name, weight in trained if stage.optimizer.name == "muon" and is_matrix(name, weight)]
    sharded = {
        "weights": _count([*model.parameters(), *model.buffers()]),
        "gradients": learned,
        "optimizer": 2 * learned - _count(matrices),
    }
    width = 2 if recipe.precision == "bf16" else _FULL
    gathered = width * sum(_whole_at_once(model))
    batch = _LABELLED if labels else stage.batch_size
    rows = _rows(recipe, stage)
    flops = rows * (
        sum(one.flops(again=recipe.activation_checkpointing) for one in row.passes)
        + sum(one.flops(batch) for one in row.scores)
    )
    memory: dict[str, dict[str, float] | None] = {}
    hours: dict[str, float | None] = {}
    for ranks in RANKS:
        key = str(ranks)
        if batch % ranks and not labels:
            memory[key] = hours[key] = None
            continue
        share = batch if labels else batch // ranks
        parts = {name: _FULL * number / ranks for name, number in sharded.items()} | {
            "gathered": gathered,
            "activations": share * sum(one.kept(recipe, width) for one in row.passes),
            "scores": sum(one.kept(share, width) for one in row.scores),
        }
        memory[key] = {name: number / 1e9 for name, number in {**parts, "total": sum(parts.values())}.items()}
        hours[key] = flops / (ranks * PEAK_FLOPS * USE) / 3600
    return {
        "stage": stage.name,
        "parameters": _count([*model.parameters()]),
        "trained": learned,
        "steps": recipe.steps(stage),
        "batch_size": batch,
        "tokens": round(rows * row.tokens),
        "flops": flops,
        "hours": hours,
        "memory_gb": memory,
    }


def _rows(recipe: Recipe, stage: Stage) -> int:
    """Training rows that a stage reads."""
    if isinstance(stage.objective, Labels):
        return stage.objective.rows if isinstance(recipe, _Sketch) else words.labelled_rows(recipe, stage)
    return recipe.steps(stage) * stage.batch_size


def _models(recipe: Recipe, config: PreTrainedConfig) -> list[PreTrainedModel]:
    """The stages' models in order, on the meta device."""
    built: dict[str, PreTrainedModel] = {}
    with torch.device("meta"):
        for stage in recipe.stages:
            if recipe.task.kind in OWN_KINDS:
                start = built.get(stage.start) if stage.start else None
                built[stage.name] = OWN_KINDS[recipe.task.kind].build_model(recipe, stage, start)
            else:
                # Labels are written by the two models that the stage before them made.
                made_by = recipe.stage(str(stage.start)) if isinstance(stage.objective, Labels) else stage
                made_by = replace(made_by, lora=None) if made_by is not stage else stage
                built[stage.name] = words.build_empty(recipe, made_by, config)
    return list(built.values())


def plan(recipe: Recipe) -> dict[str, Any]:
    """Parameters, tokens, floating-point operations, hours and memory of every stage, on 1, 8 and 64 GPUs.

    Returns:
        ``models``, a mapping a stage: ``parameters``, ``trained``, ``steps``, ``batch_size``, ``tokens``, ``flops``
        and, by number of GPUs, ``hours`` and ``memory_gb``, which are None where the batch cannot be divided. Memory is
        of one GPU: ``weights``, ``gradients`` and ``optimizer``, its share of them; ``gathered``, ``activations`` and
        ``scores``, its own; and the ``total``. Also ``steps`` and ``tokens`` by stage, ``assumptions`` and ``notes``.

    Raises:
        ValueError: model or data can be neither read nor taken from what is known of them.
    """
    # GPUs have bfloat16 and fused kernels.
    precision = "bf16" if recipe.precision == "auto" else recipe.precision
    attention = "sdpa" if recipe.attention == "auto" else recipe.attention
    recipe, config, notes = _base(replace(recipe, precision=precision, attention=attention))
    lengths, about = _lengths(recipe)
    models = [
        _stage_facts(recipe, stage, model, lengths)
        for stage, model in zip(recipe.stages, _models(recipe, config), strict=True)
    ]
    for ranks in RANKS:
        uneven = sorted({one["batch_size"] for one in models if one["hours"][str(ranks)] is None})
        if uneven:
            notes.append(
                f"a batch of {' or '.join(map(str, uneven))} rows does not divide over {ranks} GPUs: set batch_size"
            )
    kept = "with" if recipe.activation_checkpointing else "without"
    compute = "bfloat16" if recipe.precision == "bf16" else "float32"
    return {
        "name": recipe.name,
        "size": recipe.size,
        "models": models,
        "steps": {one["stage"]: one["steps"] for one in models},
        "tokens": {one["stage"]: one["tokens"] for one in models},
        "assumptions": {"peak_flops": PEAK_FLOPS, "use": USE, "gpus": list(RANKS)},
        "notes": [
            f"hours: {100 * USE:.0f} % of {PEAK_FLOPS / 1e12:.0f} TFLOP/s (dense bfloat16 peak) a GPU; no measuring",
            "GB under FSDP2: weights, gradients and optimiser state are float32 and shared out; whole (tables and the "
            f"largest block, in {compute}) and active (activations {kept} checkpointing, scores) are not",
            *notes,
            *about,
        ],
    }
