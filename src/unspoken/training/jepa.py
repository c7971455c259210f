"""The models of JEPA-Reasoner's stages, whatever the task."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from unspoken.methods.jepa_reasoner import (
    SST,
    JepaReasonerConfig,
    JepaReasonerForCausalLM,
    JepaReasonerModel,
    effective_rank,
)
from unspoken.tasks.dataset import Batch
from unspoken.training.recipe import Recipe, StackShape, Stage


def build_model(recipe: Recipe, stage: Stage, start: PreTrainedModel | None, *, max_latents: int) -> PreTrainedModel:
    """The Reasoner of an SST stage, or the pair of a Talker's stage, with its starting weights.

    Args:
        start: the finished model of the stage it continues from: a causal language model for SST (None for random
            weights), the Reasoner for a Talker.
        max_latents: cap of a chain, recorded in the folder.
    """
    assert isinstance(recipe.backbone, StackShape)
    settings: dict[str, Any] = {"attn_implementation": recipe.attention}
    backbone = recipe.backbone_config()
    # The paper switches the L2 half of HybridNorm on when SST starts.
    backbone.l2_output = True
    shape: dict[str, Any] = {
        "backbone_config": backbone,
        "unit_tokens": recipe.backbone.unit_embeddings,
        "max_latents": max_latents,
        "eos_token_id": backbone.eos_token_id,
        "pad_token_id": backbone.pad_token_id,
    }
    if stage.objective.kind == "sst":
        reasoner = JepaReasonerModel._from_config(JepaReasonerConfig(**shape), **settings)
        if start is not None:
            reasoner.backbone.load_state_dict(start.base_model.state_dict(), strict=True)
        reasoner.start_target()
        return reasoner
    talker = recipe.talker_of(stage)
    assert start is not None
    config = JepaReasonerConfig(
        **shape,
        talker_config=recipe.talker_config(talker),
        talker_kind=talker.variant,
        talker_encoder_layers=talker.encoder_layers or 1,
    )
    both = JepaReasonerForCausalLM._from_config(config, **settings)
    both.reasoner.load_state_dict(start.state_dict(), strict=True)
    both.freeze_reasoner()
    return both


def reading(model: JepaReasonerModel, objective: SST, batch: Batch) -> dict[str, float]:
    """What shows a collapse: the loss beside the best constant vector's, the table's rank, and latents at their row."""
    # The class's forward: the Trainer has wrapped the instance's in autocast, and readings are in float32.
    outputs = type(model).forward(model, **objective.inputs(batch))
    _, terms = objective(outputs, batch)
    assert outputs.latents is not None
    judged = batch["answer_mask"][:, 1:]
    found = model.nearest_row(outputs.latents[:, :-1][judged]) == batch["input_ids"][:, 1:][judged]
    return {
        **{name: float(value) for name, value in terms.items()},
        "nearest_row": float(found.double().mean()),
        "effective_rank": effective_rank(model.target_table),
    }
