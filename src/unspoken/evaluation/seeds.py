"""The finished models of a run's seeds, and the systems that they make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from unspoken.evaluation.outcomes import JEPA_REASONER
from unspoken.methods import catalogue
from unspoken.methods.loading import load_model
from unspoken.methods.reasoning import Reasoning
from unspoken.placement import CPU
from unspoken.reasoning.system import System
from unspoken.tasks.prompt_format import PromptFormat, TextFormat
from unspoken.tasks.task import Traits


@dataclass(frozen=True, kw_only=True)
class SeedModels:
    """The trained folders of one seed, or a system that is open already."""

    seed: int
    measured: dict[str, Path] = field(default_factory=dict)  # the stages that are measured, by name
    stages: dict[str, Path] = field(default_factory=dict)  # every stage's folder, by name, for its curve
    # For a stage that learned from labels, the folder of the model that made them.
    teachers: dict[str, Path] = field(default_factory=dict)
    # Further ways in which the model of a measured stage answers.
    reasonings: dict[str, tuple[Reasoning, ...]] = field(default_factory=dict)
    device: torch.device = CPU  # where they are measured
    opened: System | None = None  # is measured in place of folders


def capped(system: System, traits: Traits) -> System:
    """The system with the caps of a task; where the task fixes the length of its answers, they have that length."""
    if traits.fixed_steps is None or traits.answer_cap is None:
        return system
    return system.of_length(traits.answer_cap - system.replaced)


def stage_systems(model: PreTrainedModel, stage: str, traits: Traits, max_answer: int) -> list[System]:
    """The systems of a stage with the caps of a task; the first is the stage as it was trained.

    Its name is that of the stage. Where the answer itself is the chain, a Reasoner with its Talker is named by the
    method. ``max_answer`` is the cap of an answer, where the task has none of its own.
    """
    cap = traits.answer_cap or max_answer
    systems = catalogue.systems(model, stage=stage, max_answer=cap)
    if systems[0].has_talker and not (traits.has_chain or traits.continues):
        systems = catalogue.systems(model, stage=JEPA_REASONER, max_answer=cap)
    return [capped(system, traits) for system in systems]


def measured_systems(
    entry: SeedModels, traits: Traits, max_answer: int, prompt_format: PromptFormat
) -> Iterator[tuple[str, list[System]]]:
    """Each measured stage with its systems; one model is in memory at a time.

    Of two Talkers of one Reasoner the second is named by its stage too, and the nearest rows are not read again.
    """
    if entry.opened is not None:
        yield entry.opened.name, [capped(entry.opened, traits)]
    names: set[str] = set()
    for stage, folder in entry.measured.items():
        systems = stage_systems(load_model(folder, device=entry.device), stage, traits, max_answer)
        if systems[0].name in names:
            systems = [replace(systems[0], name=f"{systems[0].name}, {stage}")]
        names.add(systems[0].name)
        as_trained = replace(systems[0], text_format=TextFormat(prompt_format=prompt_format))
        systems += [capped(way.applied(as_trained), traits) for way in entry.reasonings.get(stage, ())]
        yield stage, systems
