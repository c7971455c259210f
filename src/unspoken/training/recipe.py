"""A recipe: task, shapes, stages, evaluation. It is read from YAML and checked before anything is built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from unspoken.methods.catalogue import objectives, reasonings, trainable
from unspoken.methods.method import Lineage, Objective
from unspoken.methods.reasoning import Reasoning
from unspoken.reasoning.latents import Sampling
from unspoken.storage import FolderError, read_text
from unspoken.tasks.catalogue import task_configs
from unspoken.tasks.task import TaskConfig
from unspoken.training.parts import LoRA, Optimizer, StackShape, TalkerShape
from unspoken.training.settings import SettingsError, as_mapping, nearest, read
from unspoken.training.yaml_text import SafeLoader, read_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unspoken.backbone import UnspokenConfig

Size = Literal["tiny", "small", "paper"]
_MOST_THREADS = 1024
# Names become folders, which must lie in the one they are made in.
_FOLDER_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run that ends in a folder."""

    name: str  # of the folder, and what later stages refer to
    start: str | None = None  # the stage whose best checkpoint this one continues from; null starts from the backbone
    # What it learns; the keys below it are those of its kind, see ``methods/NAME/stages.py``.
    objective: Objective = field(metadata={"choices": objectives})
    # Training problems of this stage alone, such as smaller ones of the same kind; the recipe's if null. Validation and
    # test problems are always the recipe's.
    task: TaskConfig | None = field(default=None, metadata={"choices": task_configs})
    steps: int | None = None  # optimiser steps, or null if ``steps_of`` gives them; ``labels`` has none
    steps_of: tuple[str, ...] = ()  # as many steps as these stages together, so that a baseline gets equal training
    # Validation exact match at which the stage stops early; ``steps`` is then the maximum.
    stop_at: float | None = None
    batch_size: int = 64  # sequences a step
    # Micro-batches that a step reads one after another; their gradients are added up, so it takes less memory.
    accumulate: int = 1
    optimizer: Optimizer = field(default_factory=Optimizer)  # see `Optimizer`
    lora: LoRA | None = None  # adapters instead of full training; null trains all weights
    talker: TalkerShape | None = None  # shape of this stage's Talker; the recipe's if null
    # How many of the backbone's blocks the Reasoner of an ``sst`` stage keeps, from the first; all if null.
    blocks: int | None = None
    evaluate_every: int = 250  # steps between two validations; a checkpoint is written at each

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"stage name {self.name!r} must be letters, digits and underscores")
        self.objective.check_stage(self)
        if self.lora is not None and self.lora.table and self.objective.adapted_table is None:
            raise ValueError(
                "lora.table is true; this stage trains no encoder that has a table of its own: set it to false"
            )
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        if self.batch_size < 1 or self.evaluate_every < 1:
            raise ValueError("batch_size and evaluate_every must be at least 1")
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate is {self.accumulate} and batch_size {self.batch_size}; accumulate must divide batch_size, "
                "since all micro-batches have as many rows"
            )
        if self.stop_at is not None:
            if not 0 < self.stop_at <= 1:
                raise ValueError(f"stop_at is {self.stop_at}; it must be a fraction of problems, above 0 and at most 1")
            if self.steps is None or self.optimizer.schedule != "constant":
                raise ValueError(
                    "stop_at is set; a stage that may end early needs steps and optimizer.schedule constant"
                )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a finished seed is measured."""

    problems: int = 2000  # test problems, the same for every seed and method
    validation_problems: int = 500  # problems that checkpoints are selected on during training
    batch_size: int = 500  # problems answered at once
    # max_latents, max_answer: caps of chain and answer of a word problem, in steps and tokens
    max_latents: int = 128
    max_answer: int = 16
    sampling: Sampling | None = None  # how the tokens of answers are drawn; null takes the most likely ones
    # Further ways in which finished models answer, each of every measured stage that it suits.
    reasonings: tuple[Reasoning, ...] = field(default=(), metadata={"choices": reasonings})

    def __post_init__(self) -> None:
        sizes = (self.problems, self.validation_problems, self.batch_size, self.max_latents, self.max_answer)
        if min(sizes) < 1:
            names = "problems, validation_problems, batch_size, max_latents and max_answer"
            raise ValueError(f"{names} must be at least 1")
        if len({one.title for one in self.reasonings}) < len(self.reasonings):
            raise ValueError("reasonings has the same way to reason twice; leave one out")


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Inside, an error names a key of the recipe."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def learnable(task: Any) -> list[str]:
    """Kinds of stages that can learn a task, given its configuration or itself."""
    traits = task.traits
    return sorted(
        objective.kind
        for objective in objectives()
        if (traits.has_chain or not objective.chain_needed) and (traits.has_steps or not objective.steps_needed)
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment at one size."""

    name: str
    size: Size
    summary: str = ""
    task: TaskConfig = field(metadata={"choices": task_configs})
    # A shape to train from random weights, or a pretrained model: a folder or a name on the hub.
    backbone: StackShape | str
    # Chat template that replaces that of the backbone's tokenizer; trained folders keep it.
    chat_template: str | None = None
    talker: TalkerShape | None = None
    stages: tuple[Stage, ...]
    evaluation: Evaluation = field(default_factory=Evaluation)
    # ``"bf16"`` trains under bfloat16 autocast, ``"fp32"`` does not, and Muon follows; ``"auto"`` is what the machine
    # multiplies faster, decided when training starts (`resolve`). Evaluation is always in float32.
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    # Entry of transformers' attention interface; ``"auto"`` chooses by device, precision and length.
    # ``"flex_attention"`` skips masked blocks, which is faster in stage 1 on long rows; it needs CUDA.
    attention: Literal["auto", "eager", "sdpa", "flex_attention"] = "auto"
    activation_checkpointing: bool = False
    # Batches of like length (`by_length`): less padding, so faster steps, on the same samples.
    group_by_length: bool = False
    # CPU threads; null uses all. Changing it changes results in the last bits.
    threads: int | None = None

    def __post_init__(self) -> None:
        if not _FOLDER_NAME.fullmatch(self.name):
            raise ValueError(
                f"name is {self.name!r}; it names the run folder, so give letters, digits, dots, hyphens, underscores"
            )
        if self.threads is not None and not 1 <= self.threads <= _MOST_THREADS:
            raise ValueError(f"threads is {self.threads}; it must be at least 1 and at most {_MOST_THREADS}")
        if self.chat_template is not None and not isinstance(self.backbone, str):
            raise ValueError("chat_template is set, but the backbone is not pretrained; leave it out")
        if not self.stages:
            raise ValueError("stages is empty; a recipe trains at least one stage")
        self._check_task()
        names = [stage.name for stage in self.stages]
        for index, stage in enumerate(self.stages):
            if stage.name in names[:index]:
                raise ValueError(f"stages[{index}] ({stage.name}): there is already a stage of that name")
        lineages: dict[str, Lineage] = {}
        for index, stage in enumerate(self.stages):
            where = f"stages[{index}] ({stage.name})"
            self._check_own_task(stage, where)
            self._check_references(stage, names[index:], names[:index], where)
            lineage = Lineage(settings=stage, before=lineages[stage.start] if stage.start else None)
            self._check_lineage(lineage, where)
            lineages[stage.name] = lineage
        shapes = {"talker": self.talker, **{f"stages ({stage.name}): talker": stage.talker for stage in self.stages}}
        for where, shape in shapes.items():
            with _named(where):
                if shape is not None:
                    shape.stack(hidden_size=1)

    def _check_task(self) -> None:
        """Refuse keys of the recipe that do not fit the task's traits."""
        traits, name = self.task.traits, self.task.kind.replace("_", " ")
        if isinstance(self.backbone, str) and traits.own_vocabulary:
            raise ValueError(f"backbone: {name} has a vocabulary of its own; give a shape, not a pretrained model")
        if isinstance(self.backbone, StackShape) and traits.natural_language:
            raise ValueError(f"backbone: {self.task.kind} problems are natural language; give a pretrained model")
        if self.group_by_length and not traits.has_lengths:
            raise ValueError(f"group_by_length is true, but {name} offers no lengths to sort samples by; leave it out")
        for index, way in enumerate(self.evaluation.reasonings):
            if not any(way.suits(stage.objective, traits) for stage in self.stages):
                raise ValueError(
                    f"evaluation.reasonings[{index}]: {way.title} suits no stage of the recipe; leave it out"
                )

    def _check_own_task(self, stage: Stage, where: str) -> None:
        """Refuse training problems that a stage cannot read in place of the recipe's."""
        if stage.task is None:
            return
        if stage.objective.first_rows or stage.objective.writes_data:
            raise ValueError(
                f"{where}: task is set, but a {stage.objective.kind} stage reads the rows of the stages around it; "
                "leave it out"
            )
        if self.task.traits.from_files:
            raise ValueError(f"{where}: task is set, but {self.task.kind} problems are read from files; leave it out")
        # Lengths, markers and steps of problems are taken from the recipe's.
        own = replace(stage.task.traits, questions=self.task.traits.questions)
        if stage.task.kind != self.task.kind or own != self.task.traits:
            raise ValueError(
                f"{where}: task is {stage.task.kind} of another form than the recipe's {self.task.kind}; a stage may "
                "have other problems of the same form, but the tokens of its rows must be the same"
            )

    def _check_references(self, stage: Stage, later: list[str], earlier: list[str], where: str) -> None:
        """Refuse names of stages that do not exist or are not earlier."""
        for name in (*stage.steps_of, *([stage.start] if stage.start else [])):
            if name in later:
                raise ValueError(f"{where} refers to {name!r}, but it can refer only to stages listed before it")
            if name not in earlier:
                raise ValueError(f"{where} refers to {name!r}, which is no stage; {nearest(name, earlier)}")
        for name in stage.steps_of:
            self._check_equal_training(stage, self.stage(name), where)

    def _check_equal_training(self, stage: Stage, other: Stage, where: str) -> None:
        """Refuse ``steps_of`` where equal steps would not be equal training."""
        if stage.batch_size != other.batch_size:
            raise ValueError(
                f"{where}: batch_size is {stage.batch_size}, but {other.name!r} has {other.batch_size}; "
                "equal steps are equal training only at equal batch_size"
            )
        if stage.objective.questions_per_row != other.objective.questions_per_row:
            raise ValueError(
                f"{where}: its rows ask {stage.objective.questions_per_row} questions, but those of {other.name!r} "
                f"{other.objective.questions_per_row}; equal steps are equal training only at equal objective.questions"
            )
        if other.stop_at is not None:
            raise ValueError(
                f"{where}: steps_of names {other.name!r}, whose stop_at may end it after an unknown number of steps; "
                "leave stop_at out there"
            )

    def _check_lineage(self, lineage: Lineage, where: str) -> None:
        """Refuse a stage that cannot learn the task, or not from its start."""
        objective, known = lineage.objective, learnable(self.task)
        if objective.kind not in known:
            raise ValueError(
                f"{where}: a {objective.kind} stage cannot learn the task {self.task.kind}; "
                f"stage kinds that can: {', '.join(known)}"
            )
        if lineage.kind_before not in objective.starts_from:
            starts = " or ".join("random weights" if kind is None else kind for kind in objective.starts_from)
            raise ValueError(
                f"{where}: a {objective.kind} stage starts from {starts}, "
                f"not from {lineage.kind_before or 'random weights'}; set its start"
            )
        if lineage.settings.stop_at is not None and self.task.traits.continues:
            raise ValueError(f"{where}: stop_at is set, but {self.task.kind} has no answers to match; leave it out")
        with _named(where):
            objective.check_lineage(lineage, self)

    def lineage(self, stage: Stage) -> Lineage:
        """A stage with those that it starts from."""
        before = self.lineage(self.stage(stage.start)) if stage.start else None
        return Lineage(settings=stage, before=before)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The task's own tokenizer, or the pretrained backbone's; a ValueError if that has none."""
        own = self.task.build().tokenizer
        if own is not None:
            return own
        from unspoken.backbone.loading import load_answer_tokenizer

        assert isinstance(self.backbone, str)
        with self.loading_backbone():
            tokenizer = load_answer_tokenizer(self.backbone)
        tokenizer.chat_template = self.chat_template or tokenizer.chat_template
        return tokenizer

    @contextmanager
    def loading_backbone(self) -> Iterator[None]:
        """Inside, a pretrained backbone that cannot be read ends in a ValueError of one line."""
        try:
            yield
        except (OSError, ValueError) as error:
            raise ValueError(f"backbone {self.backbone!r} cannot be loaded: {str(error).splitlines()[0]}") from None

    def stage(self, name: str) -> Stage:
        """A stage by name; a ValueError if there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(f"no stage {name!r}; {nearest(name, [stage.name for stage in self.stages])}")

    def steps(self, stage: Stage) -> int:
        """Optimiser steps of a stage, with ``steps_of`` added up; 0 for labels."""
        return stage.steps if stage.steps is not None else sum(self.steps(self.stage(name)) for name in stage.steps_of)

    def samples_before(self, stage: Stage) -> int:
        """Training samples that the stage's ancestors have read; the stage starts after them.

        A stage that reads the first rows goes on where ancestors that read them too ended.
        """
        if stage.start is None:
            return 0
        parent = self.stage(stage.start)
        if stage.objective.first_rows and not parent.objective.first_rows:
            return 0
        return self.samples_before(parent) + self.steps(parent) * parent.batch_size

    def backbone_config(self) -> UnspokenConfig:
        """The blocks that are trained from random weights, for this task's vocabulary."""
        assert isinstance(self.backbone, StackShape)
        tokenizer = self.tokenizer()
        return self.backbone.config(
            vocab_size=len(tokenizer),
            positions=1024,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )

    def talker_config(self, stage: Stage, hidden_size: int) -> UnspokenConfig:
        """The blocks of the Talker that a stage trains.

        Args:
            hidden_size: the latent width, which a pretrained backbone knows and the recipe does not.
        """
        talker = stage.talker or self.talker
        assert talker is not None
        shape, size = talker.stack(hidden_size=hidden_size), len(self.tokenizer())
        return shape.config(vocab_size=size, positions=1024, is_causal=talker.causal, tie_word_embeddings=True)


# --- files -------------------------------------------------------------------------------------------------------


@cache
def shipped() -> Sequence[tuple[str, str, str]]:
    """Name, size and summary of every recipe in the package."""
    recipes = []
    for folder in sorted(resources.files("unspoken.recipes").iterdir(), key=lambda entry: entry.name):
        if folder.is_dir() and not folder.name.startswith("_"):
            for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
                if file.name.endswith(".yaml"):
                    content = yaml.load(file.read_text(), Loader=SafeLoader)
                    recipes.append((folder.name, file.name.removesuffix(".yaml"), str(content.get("summary", ""))))
    return tuple(recipes)


def load(name: str, size: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or any YAML file by path, and apply dotted overrides.

    Args:
        name: for instance ``tree-search``, or a path that ends in ``.yaml``.
        size: ``tiny``, ``small`` or ``paper``, by default ``tiny``; a path has none.
        overrides: ``key=value`` with dots and list positions or stage names: ``stages.sst.steps=100``.

    Raises:
        ValueError: anything wrong with the recipe, in one line.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if size is not None:
            raise SettingsError(f"{name} is a recipe file; --size {size} applies to shipped recipes only; leave it out")
        if not path.is_file():
            raise SettingsError(f"there is no recipe file {name}")
        try:
            text, origin = read_text(path), name
        except FolderError:
            raise SettingsError(f"{name} is not a text file") from None
    else:
        names = sorted({entry[0] for entry in shipped()})
        if name not in names:
            if name in trainable():
                raise SettingsError(f"{name!r} is a method, not a recipe; give it --model and --data")
            raise SettingsError(f"there is no recipe {name!r}; {nearest(name, names)}")
        size, sizes = size or "tiny", [entry[1] for entry in shipped() if entry[0] == name]
        if size not in sizes:
            raise SettingsError(f"recipe {name!r} has no size {size!r}; it has {', '.join(sizes)}")
        text = (resources.files("unspoken.recipes") / name / f"{size}.yaml").read_text()
        origin = f"{name} ({size})"
    return parse(text, origin, overrides)


def parse(text: str, origin: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe out of YAML text; ``origin`` names it in messages."""
    with _one_line(origin):
        values = read_yaml(text)
    apply_overrides(values, origin, overrides)
    with _one_line(origin):
        return read(Recipe, values)


def apply_overrides(values: Any, origin: str, overrides: Sequence[str]) -> None:
    """Set dotted keys in place; a SettingsError where one is no ``key=value`` or names no stage of the recipe."""
    with _one_line(origin):
        for override in overrides:
            _apply(values, override)


@contextmanager
def _one_line(origin: str) -> Iterator[None]:
    """Inside, an error of the settings is one line and names their origin."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(f"{origin}: {' '.join(str(error).split())}") from None


def _apply(values: Any, override: str) -> None:
    """Set one dotted key in place; stages are addressed by name or position."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise SettingsError(f"override {override!r} is not of the form key=value")
    try:
        value = read_yaml(text)
    except SettingsError as error:
        raise SettingsError(f"override {override!r}: {error}") from None
    *parents, last = key.split(".")
    here = values
    for name in parents:
        if isinstance(here, list):
            here = here[_position(here, name, key)]
        elif isinstance(here, dict):
            here = here.setdefault(name, {})
        else:
            raise SettingsError(f"override {key}: the parent of {name!r} is a plain value, so {name!r} cannot be set")
    if isinstance(here, list):
        here[_position(here, last, key)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise SettingsError(f"override {key}: the parent of {last!r} is a plain value, so {last!r} cannot be set")


def _position(entries: list[Any], name: str, key: str) -> int:
    names = [str(entry["name"]) if isinstance(entry, Mapping) and "name" in entry else "" for entry in entries]
    if name and name in names:
        return names.index(name)
    if name.isdigit() and int(name) < len(entries):
        return int(name)
    raise SettingsError(f"override {key}: there is no entry {name!r}; {nearest(name, names)}")


def dump(recipe: Recipe) -> str:
    """The recipe as YAML; `parse` reads it back to the same recipe."""
    return yaml.safe_dump(as_mapping(recipe), sort_keys=False, allow_unicode=True)
