"""The models of JEPA-Reasoner's stages, whatever the task and whoever trained the backbone."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from unspoken.backbone import UnspokenConfig
from unspoken.backbone.checks import require
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.objective import effective_rank
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.jepa_reasoner.stages import SST
from unspoken.placement import CPU, moved
from unspoken.tasks.dataset import Batch
from unspoken.training.backbones import require_for, require_same_blocks
from unspoken.training.recipe import Recipe, Stage


def first_blocks(config: PreTrainedConfig, stage: Stage) -> PreTrainedConfig:
    """The stack of an SST stage: the first N blocks of the one it starts from (the paper's footnote on initialisation).

    Raises:
        ValueError: there are fewer blocks than the stage asks for.
    """
    cut, count = copy.deepcopy(config), stage.blocks
    if count is None:
        return cut
    there = config.num_hidden_layers
    if count > there:
        raise ValueError(
            f"stages ({stage.name}): blocks is {count}, but the backbone has {there}; give at most as many, or null"
        )
    for name, value in list(vars(cut).items()):
        # Some families describe their blocks one by one, for instance which of them attend to a window.
        if "layer" in name and isinstance(value, list) and len(value) == there:
            setattr(cut, name, value[:count])
    cut.num_hidden_layers = count
    return cut


def _reasoner(
    recipe: Recipe, stage: Stage, start: PreTrainedModel | None, max_latents: int, opened: tuple[int, ...]
) -> JepaReasonerModel:
    """The first blocks and the input table of a causal language model; its head, tied or not, is left behind."""
    assert isinstance(stage.objective, SST)
    if start is not None:
        require_for(start, stage)
    backbone = first_blocks(recipe.backbone_config() if start is None else start.base_model.config, stage)
    as_before = False
    if isinstance(backbone, UnspokenConfig):
        # The paper switches the L2 half of HybridNorm on when SST starts.
        backbone.l2_output, as_before = True, backbone.unit_embeddings
    tokenizer = recipe.tokenizer()
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    config = JepaReasonerConfig(
        backbone_config=backbone,
        unit_tokens=as_before if stage.objective.unit_tokens is None else stage.objective.unit_tokens,
        max_latents=max_latents,
        open_ids=list(opened),
        eos_token_id=end,
        # A chat prompt holds end tokens; where they also pad, a prompt without a mask must be taken as it is.
        pad_token_id=None if pad == end else pad,
    )
    reasoner = JepaReasonerModel._from_config(config, attn_implementation=recipe.attention)
    if start is not None:
        kept = reasoner.backbone.state_dict().keys()
        weights = {name: weight for name, weight in start.base_model.state_dict().items() if name in kept}
        reasoner.backbone.load_state_dict(weights, strict=True)
        if stage.blocks is not None:
            require_same_blocks(start.base_model, reasoner.backbone)
        require(reasoner.backbone, "JEPA-Reasoner")
    reasoner.start_target()
    return reasoner


def build_model(
    recipe: Recipe,
    stage: Stage,
    start: PreTrainedModel | None,
    *,
    max_latents: int,
    opened: tuple[int, ...] = (),
) -> PreTrainedModel:
    """The Reasoner of an SST stage, or the pair of a Talker's stage, with its starting weights.

    Args:
        start: the model that it continues from: any causal language model for SST (None for random weights of the
            recipe's shape), the finished Reasoner for a Talker.
        max_latents: cap of a chain, recorded in the folder.
        opened: tokens between a prompt and its first latent, recorded in the folder.

    Raises:
        ValueError: as `first_blocks`, or JEPA-Reasoner would be wrong around the model.
    """
    if isinstance(stage.objective, SST):
        return _reasoner(recipe, stage, start, max_latents, opened)
    assert isinstance(start, JepaReasonerModel)
    talker, before = recipe.talker_of(stage), start.config
    inherited: dict[str, Any] = {
        name: getattr(before, name)
        for name in ("backbone_config", "unit_tokens", "open_ids", "eos_token_id", "pad_token_id")
    }
    config = JepaReasonerConfig(
        **inherited,
        max_latents=max_latents,
        talker_config=recipe.talker_config(talker, hidden_size=before.latent_dim),
        talker_kind=talker.variant,
        talker_encoder_layers=talker.encoder_layers or 1,
    )
    both = JepaReasonerForCausalLM._from_config(config, attn_implementation=recipe.attention)
    both.reasoner.load_state_dict(start.state_dict(), strict=True)
    both.freeze_reasoner()
    return both


def reading(model: JepaReasonerModel, objective: SST, batch: Batch) -> dict[str, float]:
    """What shows a collapse: the loss beside the best constant vector's, the table's rank, and latents at their row."""
    # The class's forward: the Trainer has wrapped the instance's in autocast, and readings are in float32.
    batch = moved(batch, model.device)
    outputs = type(model).forward(model, **objective.inputs(batch))
    _, terms = objective(outputs, batch)
    assert outputs.latents is not None
    judged = batch["answer_mask"][:, 1:]
    found = moved(model.nearest_row(outputs.latents[:, :-1][judged]) == batch["input_ids"][:, 1:][judged], CPU)
    return {
        **{name: float(value) for name, value in terms.items()},
        "nearest_row": float(found.double().mean()),
        "effective_rank": effective_rank(model.target_table),
    }
