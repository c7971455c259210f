"""What a stage of SIM-CoT takes, its targets and its loss, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain_stage import CAPS, LENGTHS, facts_of, sized_model

from unspoken.distributed import MicroBatches
from unspoken.methods.carrier import CarriedRow
from unspoken.methods.coconut.stages import Coconut
from unspoken.methods.codi.stages import Codi
from unspoken.methods.cost import Scores, StackPass
from unspoken.methods.sim_cot.objective import spelling_loss, step_targets
from unspoken.methods.sim_cot.stages import SimCot


@pytest.mark.parametrize(
    ("carrier", "steps", "size", "read"),
    [
        # Twelve tokens in four steps are three a step; a chain has no more tokens than it has.
        (Coconut(replaced=2, latents_per_step=3), 2, 3, 6),
        (Coconut(replaced=8, latents_per_step=1), 8, 1, 12),
        (Codi(latents=4), 4, 1, 12),
    ],
)
def test_one_short_pass_over_each_step(carrier: Any, steps: int, size: int, read: int) -> None:
    spelling = SimpleNamespace(
        base_model="second stack", get_output_embeddings=lambda: SimpleNamespace(weight="second")
    )
    own = sized_model(projection=None)
    model: Any = SimpleNamespace(carrier=own, step_decoder=spelling)
    cost, before = SimCot(carrier=carrier).row_cost(model, LENGTHS, CAPS), carrier.row_cost(own, LENGTHS, CAPS)
    one = StackPass(stack="second stack", positions=size + read / steps)
    assert cost.passes == (*before.passes, *[one] * steps)
    head: Any = "second"
    # Every step is ended by one token more.
    assert cost.scores == (*before.scores, Scores(head=head, made=steps * size + read, supervised=read + steps))
    few = replace(LENGTHS, steps=0.5)
    assert SimCot(carrier=carrier).row_cost(model, few, CAPS).scores[-1].supervised == 12 + steps


def test_what_a_stage_needs() -> None:
    assert facts_of(SimCot) == {"chain_needed", "steps_needed", "answers_from_latents"}
    assert SimCot(carrier=Coconut(replaced=3, latents_per_step=2)).units == 3


def test_targets_by_hand() -> None:
    steps = [((11,), (12,), (13,)), ((14, 1),)]
    targets = step_targets(steps, [2, 2], [(), (21, 1)], end_id=1, pad_id=0)
    # Of three steps the last latent spells two; the second row spells its answer where it has no step.
    assert targets["step_ids"].tolist() == [[11, 1, 0], [12, 13, 1], [14, 1, 0], [21, 1, 0]]
    assert targets["step_places"].tolist() == [0, 1, 3, 4, 5, 6, 7, 9, 10]
    assert targets["step_targets"].tolist() == [11, 1, 12, 13, 1, 14, 1, 21, 1]
    assert targets["step_numbers"].tolist() == [0, 0, 1, 1, 1, 0, 0, 1, 1]


def test_rows_can_spell_different_numbers_of_steps() -> None:
    targets = step_targets([((11,), (12,)), ((13,), (14,)), ((15,),)], [1, 0, 2], [(), (), ()], end_id=1, pad_id=0)
    assert targets["step_ids"].tolist() == [[11, 12, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [15, 1, 0], [0, 0, 0]]
    assert targets["step_numbers"].tolist() == [0, 0, 0, 0, 0]
    assert targets["step_places"].tolist() == [0, 1, 2, 12, 13]
    nothing = step_targets([((11,),)], [0], [()], end_id=1, pad_id=0)
    assert {name: tuple(values.shape) for name, values in nothing.items()} == {
        "step_ids": (0, 1),
        "step_places": (0,),
        "step_targets": (0,),
        "step_numbers": (0,),
    }


@pytest.mark.parametrize(("pseudo", "second"), [(False, [[0, 0], [0, 0]]), (True, [[21, 1], [21, 1]])])
def test_latents_without_a_step_are_left_alone_or_spell_the_answer(pseudo: bool, second: Any) -> None:
    objective = SimCot(carrier=Coconut(replaced=2, latents_per_step=2), pseudo_steps=pseudo)
    rows = [
        CarriedRow(index=0, steps=((11,), (12,)), latents=4, answer=(22, 1)),
        CarriedRow(index=1, steps=(), latents=4, answer=(21, 1)),
    ]
    context: Any = SimpleNamespace(tokenizer=SimpleNamespace(eos_token_id=1, pad_token_id=0))
    targets = objective.targets(rows, context)
    assert targets["step_ids"].tolist() == [[11, 1], [12, 1], *second]
    counts: Any = objective.added_counts(targets)
    assert counts["numbers"].tolist() == ([4, 4] if pseudo else [2, 2])


def test_the_loss_is_a_mean_over_tokens_then_over_numbers_of_steps() -> None:
    # The first step has one token, of probability a quarter, the third one two, of a half and a quarter.
    scores = torch.tensor([[math.log(2), 0.0, 0.0]] * 3)
    added = {"step_targets": torch.tensor([1, 0, 1]), "step_numbers": torch.tensor([0, 2, 2])}
    expected = (math.log(4) + (math.log(2) + math.log(4)) / 2) / 2
    assert spelling_loss(scores, added, 3).item() == pytest.approx(expected)
    # The average of two micro-batches that are alike is that of each.
    twice = MicroBatches([{"numbers": torch.tensor([1.0, 0.0, 2.0])}] * 2)
    with twice.following():
        assert spelling_loss(scores, added, 3).item() == pytest.approx(expected)
    one = {"step_targets": torch.tensor([1, 0]), "step_numbers": torch.tensor([0, 0])}
    assert spelling_loss(scores[:2], one, 1).item() == pytest.approx((math.log(4) + math.log(2)) / 2)
    none = {"step_targets": torch.zeros(0, dtype=torch.long), "step_numbers": torch.zeros(0, dtype=torch.long)}
    assert spelling_loss(torch.zeros(0, 3), none, 2).item() == 0
