"""Models of JEPA-Reasoner's stages for any task and backbone, and what is measured while they train."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback

from unspoken.backbone import UnspokenConfig
from unspoken.backbone.checks import require
from unspoken.backbone.depth import require_same_blocks
from unspoken.chain import pack
from unspoken.methods.cost import Lengths, RowCost, Scores, StackPass
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.objective import effective_rank, sst_inputs, stage_loss
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.jepa_reasoner.stages import NORMALISED_BEFORE
from unspoken.methods.jepa_reasoner.talker import DualTalker
from unspoken.methods.method import Batch, Context
from unspoken.placement import CPU, moved

if TYPE_CHECKING:
    from unspoken.methods.jepa_reasoner.stages import SST


def first_blocks(config: PreTrainedConfig, count: int | None, stage: str) -> PreTrainedConfig:
    """The first N blocks of a stack (the paper's footnote on initialisation); all of them if ``count`` is None.

    A ValueError if there are fewer than the stage asks for.
    """
    cut = copy.deepcopy(config)
    if count is None:
        return cut
    there = config.num_hidden_layers
    if count > there:
        raise ValueError(
            f"stages ({stage}): blocks is {count}, but the backbone has {there}; give at most as many, or null"
        )
    for name, value in list(vars(cut).items()):
        # Some families describe their blocks one by one, for instance which of them attend to a window.
        if "layer" in name and isinstance(value, list) and len(value) == there:
            setattr(cut, name, value[:count])
    cut.num_hidden_layers = count
    return cut


def reasoner_of(objective: SST, start: PreTrainedModel | None, context: Context) -> JepaReasonerModel:
    """The Reasoner of an SST stage with its starting weights.

    It has the first blocks and the input table of a causal language model, whose head, tied or not, is left out.
    Arguments and errors are those of `Objective.build`; also a ValueError if rows are to enter as they are, but the
    table normalises them itself.
    """
    if start is None and context.pretrained:
        start = context.base()
    blocks, stage = context.lineage.settings.blocks, context.lineage.name
    inner = first_blocks(context.backbone_config() if start is None else start.base_model.config, blocks, stage)
    as_before = False
    if isinstance(inner, UnspokenConfig):
        # The paper switches the L2 half of HybridNorm on when SST starts.
        inner.l2_output, as_before = True, inner.unit_embeddings
        if inner.unit_embeddings and objective.unit_tokens is False:
            raise ValueError(f"stages ({stage}): {NORMALISED_BEFORE}")
    end, pad = context.tokenizer.eos_token_id, context.tokenizer.pad_token_id
    config = JepaReasonerConfig(
        backbone_config=inner,
        unit_tokens=as_before if objective.unit_tokens is None else objective.unit_tokens,
        max_latents=context.full_cap,
        open_ids=list(context.opening),
        eos_token_id=end,
        # A chat prompt contains end tokens; where these also pad, a mask cannot be derived from the ids.
        pad_token_id=None if pad == end else pad,
    )
    reasoner = JepaReasonerModel._from_config(config, attn_implementation=context.attention)
    if start is not None:
        names = reasoner.backbone.state_dict().keys()
        weights = {name: weight for name, weight in start.base_model.state_dict().items() if name in names}
        reasoner.backbone.load_state_dict(weights)
        if blocks is not None:
            require_same_blocks(start.base_model, reasoner.backbone)
        require(reasoner.backbone, "JEPA-Reasoner")
    reasoner.start_target()
    return reasoner


def pair_of(start: PreTrainedModel | None, context: Context) -> JepaReasonerForCausalLM:
    """The pair of a Talker's stage: the finished Reasoner, frozen, and a Talker with random weights."""
    assert isinstance(start, JepaReasonerModel) and context.talker is not None
    shape, before = context.talker, start.config
    inherited: dict[str, Any] = {
        name: getattr(before, name)
        for name in ("backbone_config", "unit_tokens", "input_scale", "open_ids", "eos_token_id", "pad_token_id")
    }
    config = JepaReasonerConfig(
        **inherited,
        max_latents=context.full_cap,
        talker_config=context.talker_config(before.latent_dim),
        talker_kind=shape.variant,
        talker_encoder_layers=shape.encoder_layers or 1,
    )
    both = JepaReasonerForCausalLM._from_config(config, attn_implementation=context.attention)
    both.reasoner.load_state_dict(start.state_dict())
    both.freeze_reasoner()
    context.name_ends(both)
    return both


class EMATarget(TrainerCallback):
    """Moves the target table once after every optimiser step (docs/methods/jepa_reasoner.md, open point 10)."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Called by the Trainer."""
        model.update_target(self.momentum)


@torch.no_grad()
def collapse_readings(model: JepaReasonerModel, objective: SST, batch: Batch) -> dict[str, float]:
    """Signs of collapse: the loss, that of the best constant vector, the table's rank, and latents at their row."""
    batch = moved(batch, model.device)
    # The class's forward: the Trainer has wrapped the instance's in autocast, and readings are in float32.
    forward = partial(type(model).forward, model)
    outputs = forward(**sst_inputs(objective, batch))
    _, terms = stage_loss(objective, outputs, batch)
    assert outputs.latents is not None
    supervised = batch["answer_mask"][:, 1:]
    nearest = model.nearest_row(outputs.latents[:, :-1][supervised])
    hits = moved(nearest == batch["input_ids"][:, 1:][supervised], CPU)
    return {
        **{name: float(value) for name, value in terms.items()},
        "nearest_row": float(hits.double().mean()),
        "effective_rank": effective_rank(model.target_table),
    }


@torch.no_grad()
def forced_latents(model: JepaReasonerModel, objective: SST, batch: Batch) -> Tensor:
    """Teacher-forced latents ``[B, N, D]`` of the answer positions of rows with answers of one length."""
    placed = moved(batch, model.device)
    outputs = type(model).forward(model, **sst_inputs(objective, placed))
    assert outputs.latents is not None
    latents, _ = pack(outputs.latents[:, :-1], placed["answer_mask"][:, 1:])
    return latents


def talker_cost(model: Any, lengths: Lengths) -> RowCost:
    """Of a Talker's stage: a pass of the frozen Reasoner, and the Talker's own."""
    answered, talker = lengths.chain + lengths.end + lengths.answer, model.talker
    passes = [StackPass(stack=model.reasoner.backbone, positions=lengths.total, has_gradient=False)]
    if isinstance(talker, DualTalker):
        passes.append(StackPass(stack=talker.encoder, positions=answered, causal=False))
        passes.append(StackPass(stack=talker.decoder, positions=answered, across=answered))
    else:
        passes.append(StackPass(stack=talker.decoder, positions=answered, causal=talker.decoder.config.is_causal))
    head = talker.decoder.get_input_embeddings() if talker.lm_head is None else talker.lm_head
    scores = Scores(head=head.weight, made=answered, supervised=answered)
    return RowCost(tokens=lengths.total, passes=tuple(passes), scores=(scores,))
