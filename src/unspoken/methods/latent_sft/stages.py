"""Latent-SFT's stages, and what a latent is (arXiv 2510.15522; docs/methods/latent_sft.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unspoken.methods.lazy import LazyModule
from unspoken.methods.method import Batch, Context, DecoderObjective, Indices, Lineage, Objective
from unspoken.methods.rollouts import check_rollout
from unspoken.ranges import require_value
from unspoken.reasoning.latents import Noise, Readout

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from unspoken.backbone.checks import Method as Property
    from unspoken.chain import LatentChain
    from unspoken.methods.cost import Lengths, RowCost
    from unspoken.methods.latent_sft import building, labelling, objective
    from unspoken.tasks.spans import Spans
    from unspoken.training.recipe import Recipe, Stage
else:
    building = LazyModule("unspoken.methods.latent_sft.building")
    labelling = LazyModule("unspoken.methods.latent_sft.labelling")
    objective = LazyModule("unspoken.methods.latent_sft.objective")


LatentKind = Literal["superposition", "hidden"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """What a latent is, and how it is trained: the same in all stages of a lineage, and set by the first one."""

    rate: int = 2  # tokens of the explicit chain that one latent stands for (r)
    top_k: int | None = 10  # entries of a superposition; null keeps the whole vocabulary
    # Divides the scores of the encoder's latents, and so makes the labels; latents of the decoder's own have 1.
    temperature: float = 1.0
    readout: Readout = "head"  # "head" (the paper's formula) or "table" (the published code)
    # "superposition", or "hidden" for the ablation without the vocabulary step, ``Z_i = h_i``.
    latent: LatentKind = "superposition"
    # induction_mask, supervision_mask: false replaces the mask by a plain causal one (the ablations)
    induction_mask: bool = True
    supervision_mask: bool = True
    positions: Literal["two_track", "plain"] = "two_track"  # of the decoder; "two_track" or "plain"
    # What chunk text may see besides its latent and itself; "none" is the paper's.
    chunk_sees: Literal["none", "first_token", "prompt"] = "none"

    def __post_init__(self) -> None:
        if self.rate < 1:
            raise ValueError(f"rate is {self.rate}; a latent stands for at least 1 token")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or null for the whole vocabulary")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be positive")
        if self.latent == "hidden" and self.top_k == 1:
            raise ValueError("top_k is 1, but latents that are hidden states have no entries to keep; leave top_k out")


# What is wrong with adapters on a table whose rows are normalised when they are read: in training they are added to
# what is read, and by merging to what is stored.
MERGED_OTHERWISE = (
    "lora.table is true, but the backbone's table normalises its rows when they are read, so a published encoder would "
    "differ from the trained one; set lora.table to false, or train the backbone from scratch with "
    "backbone.unit_embeddings: false"
)


@dataclass(frozen=True, kw_only=True)
class Stage1(Objective):
    """Stage 1: make latents that the decoder can use."""

    kind: ClassVar[str] = "stage1"
    starts_from: ClassVar[tuple[str | None, ...]] = (None, "next_token", "stage1")
    chain_needed: ClassVar[bool] = True
    former_kind: ClassVar[str] = "compress"
    ends_at_marker: ClassVar[bool] = True

    train: Literal["encoder", "decoder", "union"]  # which half learns
    # What a latent is; given where a lineage of stages starts, inherited by the later ones.
    shape: LatentShape | None = None
    # Over all supervised tokens of a batch alike (the published code), or over the tokens of a chunk, then over the
    # chunks of a row, then over rows (the paper's formula); see docs/methods/latent_sft.md, open point 4.
    mean: Literal["tokens", "chunks"] = "tokens"
    # On the latents in training, as stage 2 has it on their labels. Ours, off by default: through a noisy channel the
    # encoder learns superpositions that are far from each other, which stage 2 can distinguish.
    noise: Noise | None = None
    # Weight of a second loss: the cross-entropy of the tokens that a latent must predict, under what the decoder's head
    # makes of the encoder's output: over the whole vocabulary and at temperature 1, whatever the shape's read-out,
    # entries and temperature are. Ours, off by default: it helps an encoder that starts from random weights; the head
    # of a pretrained model gives similar superpositions from the start.
    hint: float = 0.0

    def __post_init__(self) -> None:
        require_value(self, "hint", lambda value: value >= 0, "0 or more")
        if self.hint and self.train == "decoder":
            raise ValueError(
                f"hint is {self.hint} while train is 'decoder'; it weights a loss of the encoder, so set train to "
                "'encoder' or 'union', or hint to 0"
            )
        if self.noise is not None and self.noise.redraw != "slot":
            raise ValueError(f"noise.redraw is {self.noise.redraw!r}, but stage 1 draws nothing again; leave it out")
        if (self.train == "encoder") != (self.shape is not None):
            raise ValueError("give shape where train is 'encoder', and nowhere else: later stages inherit it")

    def check_lineage(self, lineage: Lineage, run: Recipe) -> None:
        """Encoder, then decoder, then both; noise needs superpositions of a few tokens, adapters a table as stored."""
        before = None if lineage.before is None else lineage.before.objective
        trained = before.train if isinstance(before, Stage1) else None
        expected = {"encoder": (None,), "decoder": ("encoder",), "union": ("encoder", "decoder")}
        if trained not in expected[self.train]:
            raise ValueError("stages of a lineage train encoder, then decoder, then union; set its start")
        shape = shape_of(lineage)
        if self.noise and (shape.top_k is None or shape.latent == "hidden"):
            raise ValueError("noise needs superpositions of a few tokens; set top_k, or noise to null")
        if _has_adapted_table(lineage.settings) and getattr(run.backbone, "unit_embeddings", False):
            raise ValueError(MERGED_OTHERWISE)

    def check_backbone(self, config: PreTrainedConfig, stage: Stage) -> None:
        """Its table is read as it is stored, where adapters are put on it."""
        if _has_adapted_table(stage) and getattr(config, "unit_embeddings", False):
            raise ValueError(f"stages ({stage.name}): {MERGED_OTHERWISE}")

    def measured(self, *, last: bool, has_chain: bool) -> bool:
        """Its models cannot answer by themselves."""
        return False

    @property
    def properties(self) -> Sequence[Property]:
        if self.shape is None:
            return ()
        return ("Latent-SFT", "hidden states" if self.shape.latent == "hidden" else "superpositions")

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """Encoder and decoder, of which one or both learn."""
        model: Any = start
        if self.shape is not None:
            base = context.base() if start is None else start
            model = building.halves_of(base, self.shape, context, has_encoder=True)
        model.train_only(encoder=self.train != "decoder", decoder=self.train != "encoder")
        context.name_ends(model.decoder)
        return model

    def adapted(self, model: Any) -> list[nn.Module]:
        return [
            half
            for half in (model.decoder.base_model, model.encoder)
            if any(weight.requires_grad for weight in half.parameters())
        ]

    @property
    def adapted_table(self) -> str | None:
        return None if self.train == "decoder" else "encoder"

    def after_adapters(self, model: Any) -> None:
        """The row of the encoder's extra token moves as those of its table do."""
        model.adapt_extra_row()

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        shape = shape_of(context.lineage)

        def make(indices: Indices) -> Batch:
            spans = context.task.spans(context.sample(indices, split), context.prompt_format)
            return {**building.stage_one_batch(spans, context.prompt_format, shape)}

        return make

    def row_length(self, spans: Spans, context: Context) -> int:
        """Text, and a latent for each chunk."""
        latents = -(-len(spans.chain) // shape_of(context.lineage).rate)
        return len(spans.prompt) + len(spans.chain) + latents + len(spans.answer)

    def with_places(self, batch: Batch) -> Batch:
        return objective.stage1_places(self, batch)

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        return objective.stage1_counts(batch)

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = model(decoder=batch["decoder"], encoder=batch["encoder"], noise=self.noise)
        return objective.stage1_loss(self, outputs, batch)

    def answering(self, model: PreTrainedModel) -> PreTrainedModel:
        """Both halves: the decoder answers from the encoder's chains."""
        return model

    def teacher_chain(self, model: Any, context: Context, problems: Any) -> LatentChain | None:
        """The encoder's latents of the right chains; answers from them serve to select checkpoints alone."""
        spans = context.task.spans(problems, context.prompt_format)
        return building.gold_chain(model, context.prompt_format, spans)

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        return building.stage1_cost(model, lengths, shape_of(context.lineage), taught=self.train != "decoder")


@dataclass(frozen=True, kw_only=True)
class Labels(DecoderObjective):
    """Between the stages: write the label of every latent of the first ``rows`` training problems."""

    kind: ClassVar[str] = "labels"
    starts_from: ClassVar[tuple[str | None, ...]] = ("stage1",)
    chain_needed: ClassVar[bool] = True
    writes_data: ClassVar[bool] = True

    rows: int = 4096
    precision: Precision = "float32"  # of labels on disk, and of noisy ones; "bfloat16" is the published code's

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows is {self.rows}; it must be at least 1")

    def check_stage(self, stage: Stage) -> None:
        """It takes no steps."""
        if stage.steps is not None or stage.steps_of:
            raise ValueError("a labels stage takes no steps; set objective.rows to the number of problems to label")
        super().check_stage(stage)

    def measured(self, *, last: bool, has_chain: bool) -> bool:
        return False

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """The two models that make the labels, which learn nothing more."""
        assert start is not None
        return start.requires_grad_(False)

    def write(
        self, start: PreTrainedModel, context: Context, folder: Path, *, device: torch.device, manifest: dict[str, Any]
    ) -> Path:
        return labelling.write_labels(start, context, folder, device=device, manifest=manifest)

    def leftovers(self, folder: Path) -> list[Path]:
        """The store that was copied into the published folder."""
        return [folder / labelling.LABELS]

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        return building.labels_cost(model, lengths, shape_of(context.lineage))

    def training_rows(self, steps: int, batch_size: int, size: int | None) -> int:
        """All training problems where there are fewer than ``rows``."""
        return self.rows if size is None else min(self.rows, size)


@dataclass(frozen=True, kw_only=True)
class Stage2(DecoderObjective):
    """Stage 2: the decoder writes the latents itself and learns when to stop."""

    kind: ClassVar[str] = "stage2"
    starts_from: ClassVar[tuple[str | None, ...]] = ("labels", "stage2")  # the latter goes on with the same labels
    chain_needed: ClassVar[bool] = True
    first_rows: ClassVar[bool] = True
    answers_from_latents: ClassVar[bool] = True
    former_kind: ClassVar[str] = "autonomy"
    ends_at_marker: ClassVar[bool] = True

    # ce_weight, kl_weight: of the two losses
    ce_weight: float = 1.0
    kl_weight: float = 1.0
    noise: Noise | None = field(default_factory=Noise)  # on the labels; null for none (the first version)
    # Ours, not the paper's: in every row a random stretch of 1 to this many latents is read as the decoder's own
    # superpositions, as in a rollout, with the same targets; 0 reads labels alone.
    rollout_latents: int = 0
    rollout_passes: int = 1  # see `LatentSFTModel.forward`; each costs a pass without a gradient

    def __post_init__(self) -> None:
        check_rollout(self.rollout_latents, self.rollout_passes)

    def measured(self, *, last: bool, has_chain: bool) -> bool:
        """Always: its model writes its own latents."""
        return True

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """The decoder in training, whose folder will record how it reasons."""
        assert start is not None
        shape = shape_of(context.lineage)
        model = building.halves_of(start, shape, context, has_encoder=False)
        building.generation_of(shape, context).attach(model.decoder)
        model.train_only(encoder=False, decoder=True)
        context.name_ends(model.decoder)
        return model

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """Rows with their labels: every epoch in another order, and with other noise."""
        return labelling.labelled_batches(self, context)

    def row_length(self, spans: Spans, context: Context) -> int:
        """Latents replace the chain."""
        return len(spans.prompt) - (-len(spans.chain) // shape_of(context.lineage).rate) + len(spans.answer)

    def rows_of(self, indices: Indices, context: Context) -> Indices:
        return labelling.shuffled(indices, labelling.labelled_rows(context), context.seed)[1]

    def with_places(self, batch: Batch) -> Batch:
        return objective.stage2_places(batch)

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        rows = batch["decoder"]
        counted = {"tokens": len(rows.targets_at), "rows": len(rows.ids)}
        return {**counted, "rows_with_latents": batch["rows_with_latents"]}

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return objective.stage2_loss(self, model(**objective.stage2_inputs(self, batch)), batch)

    def teacher(self, lineage: Lineage) -> Lineage | None:
        return next((one.before for one in lineage if isinstance(one.objective, Labels)), None)

    def rate(self, lineage: Lineage) -> int:
        return shape_of(lineage).rate

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        passes = self.rollout_passes if self.rollout_latents else 0
        return building.stage2_cost(model, lengths, shape_of(context.lineage), rollout_passes=passes)


def _has_adapted_table(stage: Stage) -> bool:
    return stage.lora is not None and stage.lora.table


def shape_of(lineage: Lineage) -> LatentShape:
    """What a latent is in the lineage of stages that a stage belongs to."""
    for one in lineage:
        if isinstance(one.objective, Stage1) and one.objective.shape is not None:
            return one.objective.shape
    raise AssertionError("a lineage of Latent-SFT begins with a stage that has a shape")
