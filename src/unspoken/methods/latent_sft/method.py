"""Latent-SFT as a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from unspoken.methods.defaults import COT, TrainingFacts
from unspoken.methods.latent_sft.stages import Labels, Stage1, Stage2
from unspoken.methods.lazy import LazyModule
from unspoken.methods.method import Method, Objective

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

    from unspoken.methods.latent_sft import systems
    from unspoken.reasoning.system import System
    from unspoken.reasoning.teacher import Teacher
    from unspoken.tasks.prompt_format import PromptFormat
else:
    systems = LazyModule("unspoken.methods.latent_sft.systems")


class LatentSFTMethod(Method):
    """See `unspoken.methods.latent_sft`."""

    name: ClassVar[str] = "latent_sft"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Stage1, Labels, Stage2)

    def default_stages(self, facts: TrainingFacts) -> dict[str, list[dict[str, Any]]]:
        """Explicit chains, both halves of stage 1 and both together, labels, stage 2."""
        if not facts.steps:
            return {}
        encoder = {"kind": "stage1", "train": "encoder", "shape": {"rate": 2}}
        stages = [
            COT,
            {"name": "encoder", "start": "cot", "objective": encoder, "epochs": 1},
            {"name": "decoder", "start": "encoder", "objective": {"kind": "stage1", "train": "decoder"}, "epochs": 1},
            {"name": "union", "start": "decoder", "objective": {"kind": "stage1", "train": "union"}, "epochs": 2},
            {"name": "labels", "start": "union", "objective": {"kind": "labels", "rows": facts.rows}},
            {"name": "latent_sft", "start": "labels", "objective": {"kind": "stage2"}, "epochs": 4},
        ]
        return {"latent_sft": stages}

    def register(self) -> None:
        """The pair of encoder and decoder."""
        import unspoken.methods.latent_sft.model  # noqa: F401

    def systems(
        self, model: PreTrainedModel, *, stage: str, max_answer: int, end_id: int | None, pad_id: int | None
    ) -> list[System]:
        return systems.systems(model, stage=stage, max_answer=max_answer)

    def require_answering(self, model: PreTrainedModel, source: str | Path) -> None:
        """Refuse a model of stage 1, which cannot answer by itself."""
        systems.require_answering(model, source)

    def teacher(self, folder: Path, prompt_format: PromptFormat, *, device: torch.device) -> Teacher | None:
        """The encoder of stage 1."""
        return systems.teacher(folder, prompt_format, device=device)
