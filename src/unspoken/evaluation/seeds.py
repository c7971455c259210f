"""The finished models of a run's seeds, and the systems that they make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from unspoken.evaluation.outcomes import PAIR
from unspoken.methods import catalogue
from unspoken.methods.loading import load_model
from unspoken.placement import CPU
from unspoken.reasoning.system import System


@dataclass(frozen=True, kw_only=True)
class SeedModels:
    """The trained folders of one seed.

    Attributes:
        final: the stages that are measured, by name.
        stages: every stage's folder, by name, for its curve.
        teachers: for a stage that learned from labels, the folder of the model that made them.
        device: where they are measured.
    """

    seed: int
    final: dict[str, Path]
    stages: dict[str, Path]
    teachers: dict[str, Path] = field(default_factory=dict)
    device: torch.device = CPU


def each_system(seeds: Sequence[SeedModels], max_answer: int) -> Iterator[tuple[SeedModels, System]]:
    """Every system of every final stage, seed by seed; one model is in memory at a time.

    Args:
        max_answer: cap of an answer.
    """
    for entry in seeds:
        for stage, folder in entry.final.items():
            model = load_model(folder, device=entry.device)
            for system in catalogue.systems(model, stage=stage, max_answer=max_answer):
                yield entry, system


def named_systems(model: PreTrainedModel, stage: str, max_answer: int) -> list[System]:
    """The systems of a stage of tree search or the grammar; one with a Talker is named by its method, not its stage."""
    systems = catalogue.systems(model, stage=stage, max_answer=max_answer)
    return catalogue.systems(model, stage=PAIR, max_answer=max_answer) if systems[0].has_talker else systems
