"""What a method supplies to training: stages, each a frozen dataclass that is a recipe's ``objective``.

A recipe is read without torch, so this module and ``methods/NAME/stages.py`` import it, models and losses only inside
of functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from unspoken.ranges import require_value
from unspoken.storage import MODEL
from unspoken.tasks.spans import Markers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback

    from unspoken.backbone import UnspokenConfig
    from unspoken.backbone.checks import Method as Property
    from unspoken.backbone.checks import Needs
    from unspoken.chain import LatentChain
    from unspoken.methods.cost import Lengths, RowCost
    from unspoken.methods.defaults import TrainingFacts
    from unspoken.methods.reasoning import Reasoning
    from unspoken.reasoning.causal_lm import LatentGenerationConfig
    from unspoken.reasoning.latents import Sampling
    from unspoken.reasoning.system import System
    from unspoken.reasoning.teacher import Teacher
    from unspoken.tasks.prompt_format import PromptFormat
    from unspoken.tasks.spans import Spans
    from unspoken.tasks.task import Task, Traits
    from unspoken.training.parts import TalkerShape
    from unspoken.training.recipe import Recipe, Stage

Batch = dict[str, Any]
Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """A stage and, one after another, the stages that it starts from."""

    settings: Stage  # of the stage
    before: Lineage | None = None  # the lineage of the stage that it starts from; None if it starts from the backbone

    @property
    def name(self) -> str:
        """Name of the stage."""
        return self.settings.name

    @property
    def objective(self) -> Objective:
        """What the stage trains."""
        return self.settings.objective

    @property
    def kind_before(self) -> str | None:
        """Kind of the stage that it starts from."""
        return None if self.before is None else self.before.objective.kind

    def __iter__(self) -> Iterator[Lineage]:
        lineage: Lineage | None = self
        while lineage is not None:
            yield lineage
            lineage = lineage.before


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a stage is given to build its model, to make its batches and to be measured."""

    lineage: Lineage  # the stage with those before it
    traits: Traits  # of the task
    make_task: Callable[[], Task]  # builds the task, which may read files
    make_training_task: Callable[[], Task] | None = None  # that of the stage's own training problems; None: the same
    prompt_format: PromptFormat  # how problems become tokens
    base: Callable[[], PreTrainedModel]  # makes the causal language model of the recipe's backbone, in float32
    backbone_config: Callable[[], PreTrainedConfig]  # of that model, without its weights
    talker: TalkerShape | None  # shape of the Talker that the stage trains; None if it trains none
    talker_config: Callable[[int], UnspokenConfig]  # the latent width to the configuration of the Talker's blocks
    pretrained: bool  # the backbone has weights; otherwise it starts from random ones
    attention: Any  # of models that are built
    # max_latents, max_answer, batch_size: caps of chain and answer, and problems answered at once
    max_latents: int
    max_answer: int
    batch_size: int
    sampling: Sampling | None = None  # how answers are drawn; None takes the most likely tokens
    seed: int = 0  # of the run
    folder: Path | None = None  # of the run's seed; None where nothing is read from it

    @cached_property
    def task(self) -> Task:
        """What the run learns, and what the stage is measured on."""
        return self.make_task()

    @cached_property
    def training_task(self) -> Task:
        """Makes the stage's training problems."""
        return self.task if self.make_training_task is None else self.make_training_task()

    @property
    def tokenizer(self) -> Any:
        """The task's, or the pretrained backbone's."""
        return self.prompt_format.tokenizer

    @property
    def has_chain(self) -> bool:
        """Whether text to learn from has an explicit chain between two markers, before its answer."""
        return self.traits.has_chain

    @cached_property
    def markers(self) -> Markers:
        """Tokens before and after a chain."""
        if self.traits.markers is not None:
            return self.prompt_format.markers
        end = (self.tokenizer.eos_token_id,)  # it occurs in no text, so no further token is needed
        return Markers(open=end, end=end)

    @property
    def opening(self) -> tuple[int, ...]:
        """Tokens between a prompt and the first latent of a chain that stands for everything after the prompt."""
        return self.markers.open if self.has_chain else ()

    @property
    def full_cap(self) -> int:
        """Cap of a chain that stands for everything after the prompt: explicit steps, end marker and answer."""
        if self.traits.chain_cap is not None:
            return self.traits.chain_cap
        return self.max_latents + (len(self.markers.end) + self.max_answer if self.has_chain else 0)

    def generation(self, **changes: Any) -> LatentGenerationConfig:
        """Settings of a causal language model that writes its chain between the markers."""
        from unspoken.reasoning.causal_lm import LatentGenerationConfig

        settings: dict[str, Any] = {"max_latents": self.max_latents, **changes}
        return LatentGenerationConfig(open_ids=self.markers.open, end_ids=self.markers.end, **settings)

    def name_ends(self, model: PreTrainedModel) -> None:
        """Record the tokenizer's end and padding tokens in a model's generation settings."""
        model.generation_config.eos_token_id = self.tokenizer.eos_token_id
        model.generation_config.pad_token_id = self.tokenizer.pad_token_id

    def sample(self, indices: Indices, split: str = "train") -> Any:
        """Problems of the run's data; those that it is measured on are the same for every seed."""
        own = split == "train"
        return (self.training_task if own else self.task).sample(split, indices, self.seed if own else 0)

    def model_folder(self, lineage: Lineage) -> Path:
        """The finished folder of a stage of this run."""
        assert self.folder is not None
        return self.folder / lineage.name / MODEL


class Objective:
    """What one stage of a method learns. Its fields are the keys below ``objective`` in a recipe.

    Attributes:
        kind: names it in a recipe.
        starts_from: kinds of the stages that it may start from; None is the backbone itself.
        steps_needed: it learns from the steps of an explicit chain, which some tasks do not have.
        chain_needed: it learns from an explicit chain between markers.
        first_rows: it reads the first training problems, whatever the stages before it have read.
        reads_in_order: what it makes of a problem depends on when it is read, so rows are not sorted by length.
        properties: what a model must have so that the method computes the right thing with it, see
            `unspoken.backbone.checks`.
        writes_data: it trains nothing; `write` makes its folder.
        trains_talker: the stage may have a Talker's shape of its own.
        cuts_blocks: the stage may keep the first ``blocks`` of the backbone alone.
        answers_from_latents: its finished model writes a chain of latents and answers from it.
        recomputes: activation checkpointing may recompute its blocks.
    """

    kind: ClassVar[str]
    starts_from: ClassVar[tuple[str | None, ...]]
    steps_needed: ClassVar[bool] = False
    chain_needed: ClassVar[bool] = False
    first_rows: ClassVar[bool] = False
    reads_in_order: ClassVar[bool] = False
    writes_data: ClassVar[bool] = False
    trains_talker: ClassVar[bool] = False
    cuts_blocks: ClassVar[bool] = False
    answers_from_latents: ClassVar[bool] = False
    recomputes: ClassVar[bool] = True

    # --- checks ----------------------------------------------------------------------------------------------------

    def check_stage(self, stage: Stage) -> None:
        """Refuse keys of the stage other than its objective.

        Raises:
            ValueError: a key that this objective has no use for, or one that it needs is missing.
        """
        if stage.talker is not None and not self.trains_talker:
            raise ValueError(f"talker is set, but a {self.kind} stage trains no Talker; remove it")
        if stage.blocks is not None and not self.cuts_blocks:
            raise ValueError(f"blocks is set, but a {self.kind} stage cannot truncate its backbone; remove it")
        require_value(stage, "blocks", lambda value: value is None or value >= 1, "at least 1, or null for all")
        if not self.writes_data and (stage.steps is None) == (not stage.steps_of):
            raise ValueError("give exactly one of steps and steps_of")

    def check_lineage(self, lineage: Lineage, run: Recipe) -> None:
        """Refuse a stage that does not fit the stages before it, the task or the recipe.

        Raises:
            ValueError: names what does not fit, and what to change.
        """

    def measured(self, *, last: bool, has_chain: bool) -> bool:
        """Whether its model is measured on test problems.

        Args:
            last: no other stage starts from it.
            has_chain: the task has an explicit chain.
        """
        return last

    def check_backbone(self, config: PreTrainedConfig, stage: Stage) -> None:
        """Refuse the configuration of a pretrained backbone that the stage cannot start from, by a ValueError."""

    # --- model -----------------------------------------------------------------------------------------------------

    @property
    def writes_tokens(self) -> bool:
        """Its model reasons in an explicit chain, so other methods are compared with it."""
        return False

    @property
    def ends_at_marker(self) -> bool:
        """Its chain ends where the first token of the end marker is the most likely one, as an explicit chain does."""
        return self.writes_tokens

    @property
    def properties(self) -> Sequence[Property | Needs]:
        """Of the causal language model that the stage starts from."""
        return ()

    def build(self, start: PreTrainedModel | None, context: Context) -> PreTrainedModel:
        """The stage's model with its starting weights; also on the meta device.

        Args:
            start: the finished model of the stage that it starts from; None for the backbone.

        Raises:
            ValueError: the method would be wrong around the model.
        """
        raise NotImplementedError

    def exported(self, model: PreTrainedModel) -> PreTrainedModel:
        """What the stage's folder holds."""
        return model

    def adapted(self, model: PreTrainedModel) -> list[nn.Module]:
        """Parts of a model whose linear layers get adapters."""
        return [model]

    @property
    def adapted_table(self) -> str | None:
        """The one of these parts whose input table may get adapters too, by its name in the model."""
        return None

    def after_adapters(self, model: PreTrainedModel) -> None:
        """Train in full what adapters must not replace."""

    def after_sharding(self, model: PreTrainedModel) -> None:
        """Shard over the ranks what FSDP2 does not, see `unspoken.training.sharding`."""

    # --- data ------------------------------------------------------------------------------------------------------

    @property
    def questions_per_row(self) -> int:
        """Problems that a training row holds."""
        return 1

    def collate(self, context: Context, split: str = "train") -> Callable[[Indices], Batch]:
        """Indices of samples to a batch."""
        return lambda indices: context.task.rows(context.sample(indices, split), context.prompt_format)

    def row_length(self, spans: Spans, context: Context) -> int:
        """Tokens and latents of a problem's row, without those that all rows have."""
        return len(spans.prompt) + len(spans.chain) + len(spans.answer)

    def rows_of(self, indices: Indices, context: Context) -> Indices:
        """The training problems that are read at some positions of the stage."""
        return indices

    # --- training --------------------------------------------------------------------------------------------------

    def with_places(self, batch: Batch) -> Batch:
        """A batch that is still on the host, with indices that its loss would otherwise look up on the device."""
        return batch

    def counts(self, batch: Batch) -> dict[str, int | Tensor]:
        """Number of items that each loss term averages over, by name (such as tokens), and of rows with random draws.

        `batch` is the result of `with_places`. See `unspoken.distributed.rank_weighted_mean`.
        """
        return {"tokens": len(batch["targets"])} if "targets" in batch else {}

    def loss(self, model: Callable[..., Any], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, and named terms of it, by any number of passes of a model or of what calls its forward."""
        raise NotImplementedError

    def callbacks(self) -> list[TrainerCallback]:
        """What the Trainer calls while the stage trains."""
        return []

    def write(
        self, start: PreTrainedModel, context: Context, folder: Path, *, device: torch.device, manifest: dict[str, Any]
    ) -> Path:
        """Make the stage's folder without training; safe to kill.

        Args:
            start: the finished model of the stage that it starts from.
            manifest: what the published folder records.
        """
        raise NotImplementedError

    def leftovers(self, folder: Path) -> list[Path]:
        """What may lie in the stage's working folder after its last file was published."""
        return []

    def teacher(self, lineage: Lineage) -> Lineage | None:
        """The stage whose model made what this one learned from."""
        return None

    def rate(self, lineage: Lineage) -> int | None:
        """Tokens of an explicit chain that one latent stands for; None where nothing cuts it."""
        return None

    # --- validation ------------------------------------------------------------------------------------------------

    def candidate(self, step: int) -> bool:
        """Whether the checkpoint after so many optimiser steps may be selected.

        By default all but the start: its score is luck, or that of the stage before.
        """
        return step > 0

    def answer_tokens(self, context: Context) -> int:
        """Cap of an answer while the stage is validated."""
        return context.max_answer

    def teacher_chain(self, model: PreTrainedModel, context: Context, problems: Any) -> LatentChain | None:
        """A chain that is given to a model that does not write its own yet."""
        return None

    def answering(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model in training as it answers."""
        return self.exported(model)

    def readings(self, model: PreTrainedModel, context: Context, rows: Callable[[], Batch]) -> dict[str, float]:
        """Further measurements on validation problems.

        Args:
            rows: makes their rows of plain text.
        """
        return {}

    def forced_latents(self, model: PreTrainedModel, batch: Batch) -> Tensor | None:
        """Teacher-forced latents ``[B, N, D]`` of the answers of rows with answers of one length; None without any."""
        return None

    def warning(self, first: dict[str, float], now: dict[str, float]) -> str | None:
        """What is wrong with a run, from its first and its latest reading; None if nothing is."""
        return None

    # --- cost ------------------------------------------------------------------------------------------------------

    def row_cost(self, model: PreTrainedModel, lengths: Lengths, context: Context) -> RowCost:
        """What one training row takes."""
        raise NotImplementedError

    def mean_lengths(self, context: Context) -> Lengths:
        """Mean lengths of the rows that the stage reads, measured on some problems where the task does not know them.

        Raises:
            ValueError, OSError: the data cannot be read.
        """
        from unspoken.methods.cost import Lengths, measured_lengths

        known = context.traits.row_tokens
        return measured_lengths(context) if known is None else Lengths(prompt=known[0], answer=known[1])

    def training_rows(self, steps: int, batch_size: int, size: int | None) -> int:
        """Rows that the stage reads.

        Args:
            size: of the training data; None if it never ends, or if that is not known.
        """
        return steps * batch_size


class DecoderObjective(Objective):
    """What is learned in a model around a causal language model, its ``decoder``, which alone is published."""

    def exported(self, model: Any) -> PreTrainedModel:
        """The plain causal language model."""
        return model.decoder

    def adapted(self, model: Any) -> list[nn.Module]:
        """The language model, whose head is frozen as its table is."""
        return [model.decoder]


def refuse_cacheless(method: str, run: Recipe) -> None:
    """Refuse what a method cannot have whose latents are written one after another into a growing cache.

    Raises:
        ValueError: the attention would be compiled for each length, or checkpointing would drop the cache.
    """
    if run.attention == "flex_attention":
        raise ValueError(
            f"flex_attention would compile a kernel for every length of {method}'s growing cache; set attention to "
            "'sdpa'"
        )
    if run.activation_checkpointing:
        raise ValueError(f"activation_checkpointing drops the cache that {method} keeps its latents in; set it false")


class Method:
    """A way of reasoning: what its stages learn, and how its finished models answer.

    Each is a subclass in ``methods/NAME/method.py``; a third-party package offers an instance by the entry-point group
    ``unspoken.methods``. Torch and models are imported when a function is called.

    Attributes:
        name: for messages.
        objectives: what its stages can learn.
        reasonings: ways in which models of this or of other methods can reason without further training.
        untrained: what makes a model of it out of a causal language model without training; None if nothing can.
    """

    name: ClassVar[str]
    objectives: ClassVar[tuple[type[Objective], ...]]
    reasonings: ClassVar[tuple[type[Reasoning], ...]] = ()
    untrained: ClassVar[Objective | None] = None

    def register(self) -> None:
        """Register the method's kinds of models with transformers, so that their folders can be loaded."""

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """How a pretrained model learns the method from problems of one's own.

        Returns:
            Stages by the name of what they train, each as a recipe has it, with ``epochs`` in place of ``steps``. What
            is left out is the same for all methods, see `unspoken.training.own_data`; a stage without epochs is left
            as it is. What the problems do not allow is missing.
        """
        return {}

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        """How a model can answer: first as it was trained; nothing if the model is another method's.

        Args:
            stage: names the first system; the names of the others begin with it.
            max_answer: cap of an answer where the folder records none.
            end_id: of a plain causal language model; the one of its configuration if None.
            pad_id: as `end_id`, for the padding token.

        Raises:
            ValueError: the method would be wrong around the model, or nothing could end an answer.
        """
        return []

    def require_answering(self, model: PreTrainedModel, source: str | Path) -> None:
        """Refuse a loaded model of this method that cannot answer, or around whose backbone the method would be wrong.

        Args:
            source: its folder, for the message of the ValueError.
        """

    def teacher(self, folder: Path, prompt_format: PromptFormat, *, device: torch.device) -> Teacher | None:
        """What made the latents that a stage learned from, out of the folder of its model; None if it makes none.

        Raises:
            ValueError: as `unspoken.backbone.loading.load_pretrained`.
        """
        return None
