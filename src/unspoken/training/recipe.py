"""What a recipe says: task, shapes, stages, evaluation. Read from YAML, checked before anything is built."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from unspoken.methods.coconut.stages import Coconut
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.jepa_reasoner.stages import SST, TalkerLoss
from unspoken.methods.latent_sft.stages import Labels, Stage1, Stage2
from unspoken.tasks import (
    ArithmeticConfig,
    CompetitionConfig,
    GradeSchoolConfig,
    GrammarConfig,
    LogicConfig,
    ProseConfig,
    TreeSearchConfig,
)
from unspoken.training.parts import LoRA, Optimizer, StackShape, TalkerShape
from unspoken.training.settings import SettingsError, as_mapping, nearest, read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from unspoken.backbone import UnspokenConfig

Size = Literal["tiny", "small", "paper"]
# Names become folders: nothing that leads out of the one they are made in.
_FOLDER_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run that ends in a folder.

    Attributes:
        name: of the folder, and what later stages refer to.
        start: the stage whose best checkpoint this one continues from; null starts from random weights.
        objective: ``next_token`` trains the coupled Transformer, ``sst`` the Reasoner, ``talker`` the Talker;
            ``stage1`` makes latents of explicit chains, ``labels`` writes them down, ``stage2`` learns to say them;
            ``coconut`` replaces explicit steps by hidden states.
        steps: optimiser steps, or null if ``steps_of`` says them; ``labels`` has none.
        steps_of: as many steps as these stages together: how a baseline is given equal training.
        batch_size: sequences a step.
        optimizer: see `Optimizer`.
        lora: adapters instead of full training; null trains all weights.
        talker: shape of this stage's Talker; the recipe's if null.
        blocks: the Reasoner of an ``sst`` stage keeps the first so many of the backbone's; all if null.
        evaluate_every: steps between two looks at the validation problems; checkpoints are written then too.
    """

    name: str
    start: str | None = None
    objective: NextToken | SST | TalkerLoss | Stage1 | Labels | Stage2 | Coconut
    steps: int | None = None
    steps_of: tuple[str, ...] = ()
    batch_size: int = 64
    optimizer: Optimizer = field(default_factory=Optimizer)
    lora: LoRA | None = None
    talker: TalkerShape | None = None
    blocks: int | None = None
    evaluate_every: int = 250

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"stage name {self.name!r} must be letters, digits and underscores")
        if isinstance(self.objective, Labels):
            if self.steps is not None or self.steps_of:
                raise ValueError("a labels stage takes no steps; objective.rows says how many problems it labels")
        elif (self.steps is None) == (not self.steps_of):
            raise ValueError("give exactly one of steps and steps_of")
        if self.talker is not None and self.objective.kind != "talker":
            raise ValueError(f"talker is set, but a {self.objective.kind} stage trains none")
        if self.lora is not None and self.objective.kind == "talker":
            raise ValueError("lora is set, but a Talker starts from random weights and is trained whole; leave it out")
        if self.blocks is not None and (self.objective.kind != "sst" or self.blocks < 1):
            raise ValueError(f"blocks is {self.blocks}; an sst stage may have it, and it must be at least 1")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        if self.batch_size < 1 or self.evaluate_every < 1:
            raise ValueError("batch_size and evaluate_every must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a finished seed is measured.

    Attributes:
        problems: test problems, the same for every seed and method.
        validation_problems: looked at during training, and what checkpoints are selected on.
        batch_size: problems answered at once.
        max_latents, max_answer: caps of chain and answer of a word problem, in steps and tokens.
    """

    problems: int = 2000
    validation_problems: int = 500
    batch_size: int = 500
    max_latents: int = 128
    max_answer: int = 16

    def __post_init__(self) -> None:
        sizes = (self.problems, self.validation_problems, self.batch_size, self.max_latents, self.max_answer)
        if min(sizes) < 1:
            names = "problems, validation_problems, batch_size, max_latents and max_answer"
            raise ValueError(f"{names} must be at least 1")


# What a stage of each kind may start from; None is the backbone itself.
_TREE_STAGES: dict[str, tuple[str | None, ...]] = {
    "next_token": (None, "next_token"),
    "sst": (None, "next_token"),
    "talker": ("sst",),
}
_STRING_STAGES = {**_TREE_STAGES, "coconut": (None, "next_token")}
_WORD_STAGES: dict[str, tuple[str | None, ...]] = {
    "next_token": (None, "next_token"),
    "stage1": (None, "next_token", "stage1"),
    "labels": ("stage1",),
    "stage2": ("labels",),
    "sst": (None, "next_token"),
    "talker": ("sst",),
    "coconut": (None, "next_token", "coconut"),
}
# Tasks with a vocabulary of their own; every other is one of word problems.
_NEEDS = {
    TreeSearchConfig.kind: _TREE_STAGES,
    GrammarConfig.kind: _STRING_STAGES,
    ProseConfig.kind: _TREE_STAGES,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment at one size.

    Attributes:
        backbone: a shape to train from random weights, or a pretrained model: a folder or a name on the hub.
        precision: ``"bf16"`` trains under bfloat16 autocast, ``"fp32"`` does not, and Muon follows; ``"auto"`` is what
            the machine multiplies faster, decided when training starts (`resolve`). Evaluation is always in float32.
        threads: of a CPU; all of them if null. Another number gives other last bits, and so another run.
        attention: entry of the library's attention interface; ``"auto"`` chooses by device, precision and length.
            ``"flex_attention"`` skips what a mask hides, so it suits stage 1 on long rows; it trains on CUDA alone.
        group_by_length: batches of like length (`by_length`): less padding, so faster steps, on the same samples.
    """

    name: str
    size: Size
    summary: str = ""
    task: (
        TreeSearchConfig
        | GrammarConfig
        | ProseConfig
        | ArithmeticConfig
        | GradeSchoolConfig
        | LogicConfig
        | CompetitionConfig
    )
    backbone: StackShape | str
    talker: TalkerShape | None = None
    stages: tuple[Stage, ...]
    evaluation: Evaluation = field(default_factory=Evaluation)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flex_attention"] = "auto"
    activation_checkpointing: bool = False
    group_by_length: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if not _FOLDER_NAME.fullmatch(self.name):
            raise ValueError(
                f"name is {self.name!r}; it names the run folder, so give letters, digits, dots, hyphens, underscores"
            )
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}; it must be at least 1")
        if not self.stages:
            raise ValueError("stages is empty; a recipe trains at least one stage")
        seen: dict[str, Stage] = {}
        needs = _NEEDS.get(self.task.kind, _WORD_STAGES)
        if isinstance(self.backbone, str) and self.task.kind in _NEEDS:
            name = self.task.kind.replace("_", " ")
            raise ValueError(f"backbone: {name} has a vocabulary of its own; give a shape, not a pretrained model")
        if self.group_by_length and isinstance(self.task, TreeSearchConfig | ProseConfig):
            name = self.task.kind.replace("_", " ")
            raise ValueError(f"group_by_length is true, but {name} offers no lengths to sort samples by; leave it out")
        if isinstance(self.task, GrammarConfig) and self.task.steps % 2:
            raise ValueError(
                f"task.steps is {self.task.steps}; give an even number: one half of the symbols is measured under "
                "noise on tokens, the other under noise on latents"
            )
        if isinstance(self.backbone, StackShape) and isinstance(self.task, GradeSchoolConfig | CompetitionConfig):
            raise ValueError(f"backbone: {self.task.kind} problems are natural language; give a pretrained model")
        names = [stage.name for stage in self.stages]
        for index, stage in enumerate(self.stages):
            if stage.name in names[:index]:
                raise ValueError(f"stages[{index}] ({stage.name}): there is already a stage of that name")
        for index, stage in enumerate(self.stages):
            where = f"stages[{index}] ({stage.name})"
            later = [other.name for other in self.stages[index:]]
            for name in (*stage.steps_of, *([stage.start] if stage.start else [])):
                if name in later:
                    raise ValueError(f"{where} refers to {name!r}, which is not before it; put that stage first")
                if name not in seen:
                    raise ValueError(f"{where} refers to {name!r}, which is no stage; {nearest(name, list(seen))}")
            for name in stage.steps_of:
                if seen[name].batch_size != stage.batch_size:
                    raise ValueError(
                        f"{where}: batch_size is {stage.batch_size}, but {name!r} has {seen[name].batch_size}; "
                        "equal steps are equal training only at equal batch_size"
                    )
            if stage.objective.kind not in needs:
                known = ", ".join(sorted(needs))
                raise ValueError(
                    f"{where}: a {stage.objective.kind} stage cannot learn the task {self.task.kind}; it has {known}"
                )
            start = seen[stage.start].objective.kind if stage.start else None
            if start not in needs[stage.objective.kind]:
                wanted = " or ".join("random weights" if kind is None else kind for kind in needs[stage.objective.kind])
                raise ValueError(
                    f"{where}: a {stage.objective.kind} stage starts from {wanted}, "
                    f"not from {start or 'random weights'}; set its start"
                )
            if stage.objective.kind == "talker" and (self.talker or stage.talker) is None:
                raise ValueError(f"{where} trains a Talker, but neither it nor the recipe has a 'talker' shape")
            self._check_line(stage, seen, where)
            seen[stage.name] = stage
        shapes = {"talker": self.talker, **{f"stages ({stage.name}): talker": stage.talker for stage in self.stages}}
        for where, shape in shapes.items():
            if shape is not None:
                try:
                    shape.stack(hidden_size=1)
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from None

    def _check_line(self, stage: Stage, seen: dict[str, Stage], where: str) -> None:
        """What holds along a line of stages.

        Latent-SFT: encoder, then decoder, then both; the shape of the latents is passed on. Coconut: more and more
        latents.
        """
        chainless = isinstance(stage.objective, NextToken) and stage.objective.chain == "none"
        if chainless and self.task.kind in _NEEDS:
            name = self.task.kind.replace("_", " ")
            raise ValueError(f"{where}: chain is 'none', but {name} has no chain to leave out")
        if stage.blocks is not None and isinstance(self.backbone, StackShape) and stage.blocks > self.backbone.layers:
            raise ValueError(f"{where}: blocks is {stage.blocks}, but the backbone has {self.backbone.layers} layers")
        if isinstance(stage.objective, Stage1):
            before = seen[stage.start].objective if stage.start else None
            trained = before.train if isinstance(before, Stage1) else None
            wanted = {"encoder": (None,), "decoder": ("encoder",), "union": ("encoder", "decoder")}
            if trained not in wanted[stage.objective.train]:
                raise ValueError(f"{where}: stages of a line train encoder, then decoder, then union; set its start")
            first = stage
            while isinstance(first.objective, Stage1) and first.objective.shape is None:
                first = seen[str(first.start)]
            shape = first.objective.shape if isinstance(first.objective, Stage1) else None
            if stage.objective.noise and shape and (shape.top_k is None or shape.latent == "hidden"):
                raise ValueError(f"{where}: noise needs superpositions of a few tokens; set top_k, or noise to null")
        if isinstance(stage.objective, Coconut):
            if isinstance(self.task, GrammarConfig):
                whole = Coconut(replaced=self.task.steps // 2, latents_per_step=1)
                if stage.objective != whole:
                    raise ValueError(
                        f"{where}: on the grammar latents stand for the first half of {self.task.steps} symbols, one "
                        f"each; set replaced to {whole.replaced}, latents_per_step to 1 and rest to 'explicit'"
                    )
            before = seen[stage.start].objective if stage.start else None
            if isinstance(before, Coconut) and before.latents > stage.objective.latents:
                raise ValueError(
                    f"{where}: it has {stage.objective.latents} latents and {stage.start!r} before it "
                    f"{before.latents}; later stages of a curriculum replace more steps"
                )
            if self.attention == "flex_attention":
                raise ValueError(
                    f"{where}: flex_attention would compile a kernel for every length of Coconut's growing cache; set "
                    "attention to 'sdpa'"
                )
            if self.activation_checkpointing:
                raise ValueError(
                    f"{where}: activation_checkpointing drops the cache that Coconut keeps its latents in; set it false"
                )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The task's own tokenizer, or the pretrained backbone's.

        Raises:
            ValueError: the backbone has none.
        """
        own = self.task.build().tokenizer
        if own is not None:
            return own
        from unspoken.backbone.loading import load_tokenizer

        assert isinstance(self.backbone, str)
        try:
            found = load_tokenizer(self.backbone, padding_side="left")
        except (OSError, ValueError) as error:
            raise ValueError(f"backbone {self.backbone!r} cannot be loaded: {str(error).splitlines()[0]}") from None
        if found.eos_token_id is None:
            raise ValueError(f"backbone {self.backbone!r}: its tokenizer has no end-of-sequence token; set eos_token")
        if found.pad_token_id is None:
            found.pad_token = found.eos_token
        return found

    def stage(self, name: str) -> Stage:
        """A stage by name.

        Raises:
            ValueError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise ValueError(f"no stage {name!r}; {nearest(name, [stage.name for stage in self.stages])}")

    def steps(self, stage: Stage) -> int:
        """Optimiser steps of a stage, with ``steps_of`` added up; 0 for labels."""
        return stage.steps if stage.steps is not None else sum(self.steps(self.stage(name)) for name in stage.steps_of)

    def samples_before(self, stage: Stage) -> int:
        """Training samples that the stage's ancestors have used up: it starts behind them."""
        if stage.start is None:
            return 0
        parent = self.stage(stage.start)
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

    def talker_of(self, stage: Stage) -> TalkerShape:
        """Shape of the Talker that a stage trains."""
        found = stage.talker or self.talker
        assert found is not None
        return found

    def talker_config(self, talker: TalkerShape, *, hidden_size: int, vocab_size: int | None = None) -> UnspokenConfig:
        """The Talker's blocks.

        Args:
            hidden_size: the latent width, which a pretrained backbone knows and the recipe does not.
            vocab_size: rows of its head; the tokenizer's by default.
        """
        shape = talker.stack(hidden_size=hidden_size)
        size = len(self.tokenizer()) if vocab_size is None else vocab_size
        return shape.config(vocab_size=size, positions=1024, is_causal=talker.causal, tie_word_embeddings=True)


# --- files -------------------------------------------------------------------------------------------------------


def shipped() -> list[tuple[str, str, str]]:
    """Name, size and summary of every recipe in the package."""
    found = []
    for folder in sorted(resources.files("unspoken.recipes").iterdir(), key=lambda entry: entry.name):
        if folder.is_dir() and not folder.name.startswith("_"):
            for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
                if file.name.endswith(".yaml"):
                    content = yaml.safe_load(file.read_text())
                    found.append((folder.name, file.name.removesuffix(".yaml"), str(content.get("summary", ""))))
    return found


def load(name: str, size: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or any YAML file by path, and apply dotted overrides.

    Args:
        name: for instance ``tree-search``, or a path that ends in ``.yaml``.
        size: ``tiny``, ``small`` or ``paper``; ignored for a path.
        overrides: ``key=value`` with dots and list positions or stage names: ``stages.sst.steps=100``.

    Raises:
        ValueError: anything wrong with the recipe, in one line.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise SettingsError(f"there is no recipe file {name}")
        try:
            text, origin = path.read_text(), name
        except UnicodeDecodeError:
            raise SettingsError(f"{name} is not a text file") from None
    else:
        known = shipped()
        names = sorted({entry[0] for entry in known})
        if name not in names:
            raise SettingsError(f"there is no recipe {name!r}; {nearest(name, names)}")
        sizes = [entry[1] for entry in known if entry[0] == name]
        if size not in sizes:
            raise SettingsError(f"recipe {name!r} has no size {size!r}; it has {', '.join(sizes)}")
        text = (resources.files("unspoken.recipes") / name / f"{size}.yaml").read_text()
        origin = f"{name} ({size})"
    return parse(text, origin, overrides)


def parse(text: str, origin: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe out of YAML text; ``origin`` names it in messages."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{origin}: not YAML{line}: {getattr(error, 'problem', None) or 'unreadable'}") from None
    try:
        for override in overrides:
            _apply(values, override)
        return read(Recipe, values)
    except SettingsError as error:
        raise SettingsError(f"{origin}: {' '.join(str(error).split())}") from None


def _apply(values: Any, override: str) -> None:
    """Set one dotted key in place; stages are addressed by name or position."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise SettingsError(f"override {override!r} is not of the form key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingsError(f"override {override!r}: the value is not YAML") from None
    *parents, last = key.split(".")
    here = values
    for part in parents:
        if isinstance(here, list):
            here = _element(here, part, key)
        elif isinstance(here, dict):
            here = here.setdefault(part, {})
        else:
            raise SettingsError(f"override {key}: {part!r} is below a single value")
    if isinstance(here, list):
        here[here.index(_element(here, last, key))] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise SettingsError(f"override {key}: {last!r} is below a single value")


def _element(entries: list[Any], part: str, key: str) -> Any:
    names = [str(entry.get("name")) if isinstance(entry, Mapping) else str(entry) for entry in entries]
    if part in names:
        return entries[names.index(part)]
    if part.isdigit() and int(part) < len(entries):
        return entries[int(part)]
    raise SettingsError(f"override {key}: there is no entry {part!r}; {nearest(part, names)}")


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `parse` reads it back to the same recipe."""
    return yaml.safe_dump(as_mapping(recipe), sort_keys=False, allow_unicode=True)
