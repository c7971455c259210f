"""Latent-SFT's stages, and what a latent is (arXiv 2510.15522)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from unspoken.methods.method import (
    Batch,
    Context,
    DecoderObjective,
    Indices,
    Line,
    Objective,
    refuse_blocks,
    refuse_talker,
)
from unspoken.methods.rollouts import check_rollout
from unspoken.reasoning.latents import Noise, Readout

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from unspoken.backbone.checks import Method as Property
    from unspoken.chain import LatentChain
    from unspoken.methods.cost import Lengths, RowCost
    from unspoken.tasks.spans import Spans
    from unspoken.training.recipe import Recipe, Stage


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """What a latent is, and how it is trained: the same in all stages of a line, and set by the first one.

    Attributes:
        rate: tokens of the explicit chain that one latent stands for (r).
        top_k: entries of a superposition; null keeps the whole vocabulary.
        temperature: of the read-out.
        readout: "head" (the paper's formula) or "table" (the published code).
        latent: "superposition", or "hidden" for the ablation without the vocabulary step, ``Z_i = h_i``.
        induction_mask, supervision_mask: false replaces the mask by a plain causal one (the ablations).
        positions: of the decoder; "two_track" or "plain" (section 4.3).
        chunk_sees: what chunk text may see besides its latent and itself; "none" is the paper's.
    """

    rate: int = 2
    top_k: int | None = 10
    temperature: float = 1.0
    readout: Readout = "head"
    latent: Literal["superposition", "hidden"] = "superposition"
    induction_mask: bool = True
    supervision_mask: bool = True
    positions: Literal["two_track", "plain"] = "two_track"
    chunk_sees: Literal["none", "first_token", "prompt"] = "none"

    def __post_init__(self) -> None:
        if self.rate < 1:
            raise ValueError(f"rate is {self.rate}; a latent stands for at least 1 token")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or null for the whole vocabulary")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be positive")


@dataclass(frozen=True, kw_only=True)
class Stage1(Objective):
    """Stage 1: make latents that the decoder can use (section 5).

    Attributes:
        train: which half learns.
        shape: what a latent is; given where a line of stages starts, inherited by the later ones.
        mean: over all supervised tokens of a batch alike (the published code), or over the tokens of a chunk, then
            over the chunks of a row, then over rows (the paper's formula); see open point 4.
        noise: on the latents in training, as stage 2 has it on their labels. Ours, off by default: through a noisy
            channel the encoder learns superpositions that are far from each other, which stage 2 can distinguish.
        hint: weight of a second loss: the cross-entropy of the tokens that a latent must predict under its own
            superposition over the whole vocabulary. Ours, off by default: it helps an encoder that starts from random
            weights; the head of a pretrained model gives similar superpositions from the start.
    """

    kind: ClassVar[str] = "stage1"
    starts_from: ClassVar[tuple[str | None, ...]] = (None, "next_token", "stage1")
    chain_needed: ClassVar[bool] = True
    former_kind: ClassVar[str] = "compress"

    train: Literal["encoder", "decoder", "union"]
    shape: LatentShape | None = None
    mean: Literal["tokens", "chunks"] = "tokens"
    noise: Noise | None = None
    hint: float = 0.0

    def __post_init__(self) -> None:
        if self.hint < 0 or (self.hint and self.train == "decoder"):
            raise ValueError(
                f"hint is {self.hint} where train is {self.train!r}; it is not negative, and only an encoder that "
                "learns can take one"
            )
        if (self.train == "encoder") != (self.shape is not None):
            raise ValueError("give shape where train is 'encoder', and nowhere else: later stages inherit it")

    def check_line(self, line: Line, run: Recipe) -> None:
        """Encoder, then decoder, then both; noise needs superpositions of a few tokens."""
        before = None if line.before is None else line.before.objective
        trained = before.train if isinstance(before, Stage1) else None
        expected = {"encoder": (None,), "decoder": ("encoder",), "union": ("encoder", "decoder")}
        if trained not in expected[self.train]:
            raise ValueError("stages of a line train encoder, then decoder, then union; set its start")
        shape = shape_of(line)
        if self.noise and (shape.top_k is None or shape.latent == "hidden"):
            raise ValueError("noise needs superpositions of a few tokens; set top_k, or noise to null")

    def measured(self, *, last: bool, has_chain: bool) -> bool:
        """Its models cannot answer by themselves."""
        return False

    @property
    def properties(self) -> Sequence[Property]:
        """What the halves need, where the line starts."""
        if self.shape is None:
            return ()
        return ("Latent-SFT", "hidden states" if self.shape.latent == "hidden" else "superpositions")

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """Encoder and decoder, of which one or both learn."""
        from unspoken.methods.latent_sft.building import halves_of

        model: Any = start
        if self.shape is not None:
            base = context.base() if start is None else start
            model = halves_of(base, self.shape, context, has_encoder=True)
        model.train_only(encoder=self.train != "decoder", decoder=self.train != "encoder")
        context.name_ends(model.decoder)
        return model

    def adapted(self, model: Any) -> list[nn.Module]:
        """The halves that learn."""
        return [
            half
            for half in (model.decoder.base_model, model.encoder)
            if any(weight.requires_grad for weight in half.parameters())
        ]

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """Rows of encoder and decoder for the same problems."""
        from unspoken.methods.latent_sft.teacher import stage_one_batch

        shape = shape_of(context.line)

        def make(indices: Indices) -> Batch:
            spans = context.task.spans(context.sample(indices, split), context.prompt_format)
            return {**stage_one_batch(spans, context.prompt_format, shape)}

        return make

    def row_length(self, spans: Spans, context: Context) -> int:
        """Text, and a latent for each chunk."""
        latents = -(-len(spans.chain) // shape_of(context.line).rate)
        return len(spans.prompt) + len(spans.chain) + latents + len(spans.answer)

    def with_places(self, batch: Batch) -> Batch:
        from unspoken.methods.latent_sft.objective import stage1_places

        return stage1_places(self, batch)

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        from unspoken.methods.latent_sft.objective import stage1_loss

        outputs = model(decoder=batch["decoder"], encoder=batch["encoder"], noise=self.noise)
        return stage1_loss(self, outputs, batch)

    def answering(self, model: PreTrainedModel) -> PreTrainedModel:
        """Both halves: the decoder answers from the encoder's chains."""
        return model

    def teacher_chain(self, model: Any, context: Context, problems: Any) -> LatentChain | None:
        """The encoder's latents of the right chains; answers from them serve to select checkpoints alone."""
        from unspoken.methods.latent_sft.teacher import gold_chain

        return gold_chain(model, context.prompt_format, context.task.spans(problems, context.prompt_format))

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        """Explicit chains to latents, and latents to the text of the chunks."""
        from unspoken.methods.latent_sft.building import stage1_cost

        return stage1_cost(model, lengths, shape_of(context.line), taught=self.train != "decoder")


@dataclass(frozen=True, kw_only=True)
class Labels(DecoderObjective):
    """Between the stages: write the label of every latent of the first ``rows`` training problems (section 6)."""

    kind: ClassVar[str] = "labels"
    starts_from: ClassVar[tuple[str | None, ...]] = ("stage1",)
    chain_needed: ClassVar[bool] = True
    writes_data: ClassVar[bool] = True

    rows: int = 4096

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows is {self.rows}; it must be at least 1")

    def check_stage(self, stage: Stage) -> None:
        """It takes no steps."""
        if stage.steps is not None or stage.steps_of:
            raise ValueError("a labels stage takes no steps; set objective.rows to the number of problems to label")
        refuse_talker(self.kind, stage)
        refuse_blocks(stage)

    def measured(self, *, last: bool, has_chain: bool) -> bool:
        """It trains nothing."""
        return False

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """The two models that make the labels, which learn nothing more."""
        assert start is not None
        return start.requires_grad_(False)

    def write(
        self, start: PreTrainedModel, context: Context, folder: Path, *, device: torch.device, manifest: dict[str, Any]
    ) -> Path:
        from unspoken.methods.latent_sft.labelling import write_labels

        return write_labels(start, context, folder, device=device, manifest=manifest)

    def leftovers(self, folder: Path) -> list[Path]:
        """The store that was copied into the published folder."""
        from unspoken.methods.latent_sft.labelling import LABELS

        return [folder / LABELS]

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        """The encoder reads, and its outputs are read out."""
        from unspoken.methods.latent_sft.building import labels_cost

        return labels_cost(model, lengths, shape_of(context.line))

    def training_rows(self, steps: int, batch_size: int, size: int | None) -> int:
        """All training problems where there are fewer than ``rows``."""
        return self.rows if size is None else min(self.rows, size)


@dataclass(frozen=True, kw_only=True)
class Stage2(DecoderObjective):
    """Stage 2: the decoder writes the latents itself and learns when to stop (section 7).

    Attributes:
        ce_weight, kl_weight: of the two losses.
        noise: on the labels; null for none (the first version).
        rollout_latents: ours, not the paper's: in every row a random stretch of 1 to this many latents is read as the
            decoder's own superpositions, as in a rollout, with the same targets; 0 reads labels alone.
        rollout_passes: see `LatentSFTModel.forward`; each costs a pass without a gradient.
    """

    kind: ClassVar[str] = "stage2"
    starts_from: ClassVar[tuple[str | None, ...]] = ("labels",)
    chain_needed: ClassVar[bool] = True
    first_rows: ClassVar[bool] = True
    answers_from_latents: ClassVar[bool] = True
    former_kind: ClassVar[str] = "autonomy"

    ce_weight: float = 1.0
    kl_weight: float = 1.0
    noise: Noise | None = field(default_factory=Noise)
    rollout_latents: int = 0
    rollout_passes: int = 1

    def __post_init__(self) -> None:
        check_rollout(self.rollout_latents, self.rollout_passes)

    def measured(self, *, last: bool, has_chain: bool) -> bool:
        """Always: its model writes its own latents."""
        return True

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """The decoder in training, whose folder will record how it reasons."""
        from unspoken.methods.latent_sft.building import generation_of, halves_of

        assert start is not None
        shape = shape_of(context.line)
        model = halves_of(start, shape, context, has_encoder=False)
        generation_of(shape, context).attach(model.decoder)
        model.train_only(encoder=False, decoder=True)
        context.name_ends(model.decoder)
        return model

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """Rows with their labels: every epoch in another order, and with other noise."""
        from unspoken.methods.latent_sft.labelling import labelled_batches

        return labelled_batches(self, context)

    def row_length(self, spans: Spans, context: Context) -> int:
        """Latents replace the chain."""
        return len(spans.prompt) - (-len(spans.chain) // shape_of(context.line).rate) + len(spans.answer)

    def rows_of(self, indices: Indices, context: Context) -> Indices:
        """The labelled problems, shuffled."""
        from unspoken.methods.latent_sft.labelling import labelled_rows, shuffled

        return shuffled(indices, labelled_rows(context), context.seed)[1]

    def with_places(self, batch: Batch) -> Batch:
        from unspoken.methods.latent_sft.objective import stage2_places

        return stage2_places(batch)

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        from unspoken.methods.latent_sft.objective import stage2_inputs, stage2_loss

        return stage2_loss(self, model(**stage2_inputs(self, batch)), batch)

    def teacher(self, line: Line) -> Line | None:
        """The models that wrote the labels."""
        return None if line.before is None else line.before.before

    def row_cost(self, model: Any, lengths: Lengths, context: Context) -> RowCost:
        """One pass over latents and answer, and those that compute the decoder's own latents."""
        from unspoken.methods.latent_sft.building import stage2_cost

        passes = self.rollout_passes if self.rollout_latents else 0
        return stage2_cost(model, lengths, shape_of(context.line), rollout_passes=passes)


def shape_of(line: Line) -> LatentShape:
    """What a latent is in the line of stages that a stage belongs to."""
    for one in line:
        if isinstance(one.objective, Stage1) and one.objective.shape is not None:
            return one.objective.shape
    raise AssertionError("a line of Latent-SFT begins with a stage that has a shape")
