"""What the stages of JEPA-Reasoner take, count and refuse, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_stage import CAPS, LENGTHS, PROBLEM, facts_of
from transformers import LlamaConfig, Qwen2Config

from unspoken.backbone import UnspokenConfig
from unspoken.methods.cost import Lengths, RowCost, Scores, StackPass
from unspoken.methods.jepa_reasoner.building import first_blocks, talker_cost
from unspoken.methods.jepa_reasoner.objective import (
    best_constant_loss,
    collapsed,
    effective_rank,
    sst_loss,
    sst_places,
    stage_loss,
    talker_loss,
    talker_places,
)
from unspoken.methods.jepa_reasoner.stages import SST, TalkerLoss
from unspoken.methods.jepa_reasoner.systems import talker_flops
from unspoken.methods.jepa_reasoner.talker import DualTalker, MonoTalker
from unspoken.reasoning.flops import stack_flops
from unspoken.training.parts import StackShape

SHAPE: dict[str, Any] = {
    "hidden_size": 8,
    "attention_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 12,
}


@pytest.mark.parametrize(("latents", "passes", "again"), [(0, 1, 0), (0, 3, 0), (5, 1, 1), (5, 3, 3)])
def test_passes_without_a_gradient_compute_own_latents(latents: int, passes: int, again: int) -> None:
    objective = SST(rollout_latents=latents, rollout_passes=passes)
    one = StackPass(stack="backbone", positions=29)
    plain = StackPass(stack="backbone", positions=29, has_gradient=False)
    model: Any = SimpleNamespace(backbone="backbone")
    assert objective.row_cost(model, LENGTHS, CAPS) == RowCost(tokens=29, passes=(one, *[plain] * again))


def test_a_talker_reads_latents_of_all_that_it_writes() -> None:
    reasoner, answered = StackPass(stack="backbone", positions=29, has_gradient=False), 12 + 2 + 5

    def taken(talker: Any) -> RowCost:
        model = SimpleNamespace(talker=talker, reasoner=SimpleNamespace(backbone="backbone"))
        cost = TalkerLoss().row_cost(model, LENGTHS, CAPS)
        assert cost == talker_cost(model, LENGTHS)
        assert cost.tokens == 29
        assert cost.passes[0] == reasoner
        (scores,) = cost.scores
        assert (scores.made, scores.supervised) == (answered, answered)
        return cost

    for causal in (True, False):
        mono = MonoTalker(UnspokenConfig(**SHAPE, is_causal=causal))
        cost = taken(mono)
        assert cost.passes[1:] == (StackPass(stack=mono.decoder, positions=answered, causal=causal),)
        assert cost.scores == (Scores(head=mono.lm_head.weight, made=answered, supervised=answered),)
    for tied in (True, False):
        dual = DualTalker(UnspokenConfig(**SHAPE, tie_word_embeddings=tied), encoder_layers=1)
        cost = taken(dual)
        assert cost.passes[1:] == (
            StackPass(stack=dual.encoder, positions=answered, causal=False),
            StackPass(stack=dual.decoder, positions=answered, across=answered),
        )
        assert len(cost.scores[0].head) == (13 if tied else 12)


def test_operations_of_a_talker() -> None:
    """Two operations for every weight and latent, and four for every channel and pair of positions."""
    blocks = 2 * (3 * 8 * 16 + 16 * 8 + 2 * 8 * 24)
    mono = MonoTalker(UnspokenConfig(**SHAPE, is_causal=False))
    # Two blocks of sixteen channels each.
    assert talker_flops(mono, 5) == 5 * 2 * blocks + 5 * 5 * 4 * 32 + 5 * 2 * 8 * 12
    causal = MonoTalker(UnspokenConfig(**SHAPE, is_causal=True))
    assert talker_flops(mono, 5) - talker_flops(causal, 5) == (25 - 15) * 4 * 32
    dual = DualTalker(UnspokenConfig(**SHAPE), encoder_layers=1)
    parts = stack_flops(dual.encoder, 5, causal=False) + stack_flops(dual.decoder, 5)
    assert talker_flops(dual, 5) == parts + 25 * 4 * 32 + 5 * 2 * 8 * 12
    counts = torch.tensor([5, 2])
    assert talker_flops(dual, counts).tolist() == [talker_flops(dual, 5), talker_flops(dual, 2)]


def test_what_the_stages_need() -> None:
    assert facts_of(SST) == {"cuts_blocks", "recomputes"}
    assert facts_of(TalkerLoss) == {"trains_talker", "answers_from_latents", "recomputes"}
    assert SST().row_length(PROBLEM, CAPS) == 15


def test_a_talker_s_row_may_be_shorter_than_the_task_s() -> None:
    context: Any = SimpleNamespace(traits=SimpleNamespace(talker_tokens=(9, 4), row_tokens=(30, 20)))
    assert TalkerLoss().mean_lengths(context) == Lengths(prompt=5, answer=4)
    context.traits.talker_tokens = None
    assert TalkerLoss().mean_lengths(context) == Lengths(prompt=30, answer=20)


def test_talker_rows_of_validation_are_the_same_for_every_seed() -> None:
    task = SimpleNamespace(talker_rows=lambda *given: given)
    context: Any = SimpleNamespace(task=task, seed=3, prompt_format="format")
    assert TalkerLoss().collate(context)("rows") == ("rows", 3, "train", "format")  # type: ignore[arg-type]
    assert TalkerLoss().collate(context, "validation")("rows") == ("rows", 0, "validation", "format")  # type: ignore[arg-type]


@pytest.mark.parametrize(("blocks", "layers", "fits"), [(None, 2, True), (2, 2, True), (2, None, True), (3, 2, False)])
def test_no_more_blocks_are_kept_than_there_are(blocks: int | None, layers: int | None, fits: bool) -> None:
    line: Any = SimpleNamespace(settings=SimpleNamespace(blocks=blocks, talker=None))
    run: Any = SimpleNamespace(backbone="a model of the hub" if layers is None else shape_of(layers), talker=None)
    if fits:
        SST().check_lineage(line, run)
    else:
        with pytest.raises(ValueError, match="blocks is 3, but the backbone has 2 layers"):
            SST().check_lineage(line, run)
    with pytest.raises(ValueError, match="'talker' shape"):
        TalkerLoss().check_lineage(line, run)
    run.talker = "shape"
    TalkerLoss().check_lineage(line, run)
    run.talker, line.settings.talker = None, "shape"
    TalkerLoss().check_lineage(line, run)


def shape_of(layers: int, **changes: Any) -> StackShape:
    sizes = {"hidden_size": 8, "attention_size": 8, "intermediate_size": 8, "heads": 2}
    return StackShape(layers=layers, **sizes, **changes)


@pytest.mark.parametrize("unit_tokens", [None, True, False])
@pytest.mark.parametrize("unit_embeddings", [True, False])
def test_rows_that_are_normalised_before_cannot_enter_as_they_are(
    unit_tokens: bool | None, unit_embeddings: bool
) -> None:
    line: Any = SimpleNamespace(settings=SimpleNamespace(blocks=None))
    stage = SST(unit_tokens=unit_tokens)
    stage.check_lineage(line, SimpleNamespace(backbone="a model of the hub"))  # type: ignore[arg-type]
    run: Any = SimpleNamespace(backbone=shape_of(2, unit_embeddings=unit_embeddings))
    if unit_tokens is False and unit_embeddings:
        with pytest.raises(
            ValueError, match=r"unit_tokens is false.*pretrain the backbone with backbone\.unit_embeddings"
        ) as caught:
            stage.check_lineage(line, run)
        assert "\n" not in str(caught.value)
    else:
        stage.check_lineage(line, run)


def test_the_first_blocks_of_a_stack() -> None:
    config: Any = Qwen2Config(num_hidden_layers=4, layer_types=["full_attention", *["sliding_attention"] * 3])
    cut: Any = first_blocks(config, 2, "sst")
    assert (cut.num_hidden_layers, cut.layer_types) == (2, ["full_attention", "sliding_attention"])
    assert (config.num_hidden_layers, len(config.layer_types)) == (4, 4)
    assert first_blocks(config, None, "sst").num_hidden_layers == 4
    assert first_blocks(LlamaConfig(num_hidden_layers=4), 4, "sst").num_hidden_layers == 4
    with pytest.raises(ValueError, match=r"stages \(sst\): blocks is 5, but the backbone has 4"):
        first_blocks(config, 5, "sst")


BATCH: dict[str, Any] = {
    "input_ids": torch.tensor([[3, 4, 2, 1], [4, 2, 1, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    "answer_mask": torch.tensor([[False, False, True, True], [False, True, True, False]]),
}


def test_places_by_hand() -> None:
    answer, every = sst_places(SST(), BATCH), sst_places(SST(positions="all"), BATCH)
    assert answer["places"].tolist() == [1, 2, 4, 5]
    assert answer["targets"].tolist() == [2, 1, 2, 1]
    assert answer["able"].tolist() == BATCH["answer_mask"].tolist()
    assert every["places"].tolist() == [0, 1, 2, 4, 5]
    assert every["targets"].tolist() == [4, 2, 1, 2, 1]
    # No latent stands before the first token.
    assert every["able"].tolist() == [[False, True, True, True], [False, True, True, False]]
    assert SST().counts(answer) == {"tokens": 4, "rows": 2}
    packed = talker_places(BATCH)
    assert (packed["length"], packed["places"].tolist()) == (2, [0, 1, 2, 3])
    assert TalkerLoss().counts(packed) == {"tokens": 4}
    short = talker_places(
        {**BATCH, "answer_mask": torch.tensor([[False, False, True, True], [False, False, True, False]])}
    )
    assert (short["length"], short["places"].tolist()) == (2, [0, 1, 2])


def test_the_loss_of_directions() -> None:
    """Four times one minus the cosine: 0 for the same direction, 4 for a right angle, 8 for the opposite."""
    target = torch.tensor([[1.0, 0.0]] * 3)
    predicted = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    assert sst_loss(predicted, target, 4.0).item() == pytest.approx((0 + 4 + 8) / 3)
    # The mean of two directions at a right angle is as long as half a diagonal.
    right = torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    assert best_constant_loss(right, 4.0).item() == pytest.approx(4 * (1 - math.sqrt(0.5)))
    assert effective_rank(torch.eye(3)) == pytest.approx(3)
    # Singular values of directions (1, 0), (1, 0), (0, 1): the root of two, and one.
    weights = [math.sqrt(2) / (1 + math.sqrt(2)), 1 / (1 + math.sqrt(2))]
    entropy = -sum(weight * math.log(weight) for weight in weights)
    table = torch.tensor([[1.0, 0.0], [7.0, 0.0], [0.0, 1.0]])
    assert effective_rank(table) == pytest.approx(math.exp(entropy))


def test_the_target_is_the_row_of_the_next_token() -> None:
    table = F.normalize(torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]), dim=-1)
    latents = table[torch.tensor([[4, 2, 1, 0], [2, 1, 0, 0]])]
    outputs = SimpleNamespace(latents=latents, target_table=table)
    loss, terms = stage_loss(SST(k=2.0), outputs, BATCH)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert terms["sst_loss"].item() == loss.item()
    # Directions (0, 1) and (1, 0) twice each.
    assert terms["best_constant_loss"].item() == pytest.approx(2 * (1 - math.sqrt(0.5)))


def test_a_talker_that_is_certain_half_the_time() -> None:
    logits = torch.tensor([[[100.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 100.0]]])
    tokens, mask = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[True, True], [True, False]])
    loss, terms = talker_loss(SimpleNamespace(logits=logits, tokens=tokens, mask=mask), {})
    assert loss.item() == pytest.approx((0 + math.log(2) + math.log(2)) / 3)
    assert terms["talker_loss"].item() == loss.item()


@pytest.mark.parametrize(
    ("loss", "rank", "nearest", "collapse"),
    [
        (0.9, 4.9, 0.12, True),
        (1.0, 4.9, 0.12, False),  # the loss has not fallen
        (0.9, 5.0, 0.12, False),  # the table has half its rank
        (0.9, 4.9, 0.13, False),  # latents find their rows
    ],
)
def test_collapse(loss: float, rank: float, nearest: float, collapse: bool) -> None:
    start = {"sst_loss": 1.0, "effective_rank": 10.0, "nearest_row": 0.1}
    now = {"sst_loss": loss, "effective_rank": rank, "nearest_row": nearest}
    assert collapsed(start, now) is collapse
    warning = SST().warning(start, now)
    assert warning == (
        "collapse: the SST loss fell to 0.9000 while the effective rank of the target table fell from 10.0 to 4.9, and "
        "12.0% of latents (at the start 10.0%) have the target token's row as nearest row; raise "
        "objective.momentum or lower the learning rate"
        if collapse
        else None
    )
    assert SST().warning({"sst_loss": 1.0}, now) is None


def test_two_points_more_that_find_their_rows_are_no_more() -> None:
    start = {"sst_loss": 1.0, "effective_rank": 10.0, "nearest_row": 0.0}
    now = {"sst_loss": 0.9, "effective_rank": 4.9}
    assert [collapsed(start, {**now, "nearest_row": at}) for at in (0.02, 0.0201)] == [True, False]
