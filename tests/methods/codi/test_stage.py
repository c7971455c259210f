"""What a stage of CODI takes and counts, and its batch and loss by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain_stage import CAPS, LENGTHS, PROBLEM, facts_of, sized_model

from unspoken.methods.codi.stages import Codi
from unspoken.methods.cost import Lengths, ProjectionPass, RowCost, Scores, StackPass
from unspoken.methods.distillation_loss import batch_of, before_value, distances, distillation_loss, with_places
from unspoken.methods.self_distillation import SelfDistillation
from unspoken.methods.self_distilled import SelfDistilledOutput
from unspoken.tasks.spans import Markers, Spans

HEAD: Any = "head"


@pytest.mark.parametrize(
    ("objective", "latents", "chain"),
    [
        (Codi(), 6, 9),  # three of four steps are nine of twelve tokens
        (Codi(last_step=True), 6, 12),
        (Codi(latents=0), 0, 9),
        (Codi(latents=2, separate_teacher=True), 2, 9),
    ],
)
def test_both_sequences_go_through_the_blocks(objective: Codi, latents: int, chain: int) -> None:
    student, teacher = 10 + latents + 7, 10 + chain + 7
    passes = [StackPass(stack="stack", positions=student), StackPass(stack="stack", positions=teacher)]
    if objective.separate_teacher:
        passes.append(StackPass(stack="stack", positions=teacher, has_gradient=False))
    scores = (
        # The last latent is read with the text; without latents the prompt is.
        Scores(head=HEAD, made=7 + (1 if latents else 10), supervised=5),
        Scores(head=HEAD, made=teacher, supervised=chain + 7),
    )
    expected = RowCost(tokens=student + teacher, passes=tuple(passes), scores=scores)
    assert objective.row_cost(sized_model(projection=None), LENGTHS, CAPS) == expected
    projected = objective.row_cost(sized_model(projection="projection"), LENGTHS, CAPS)
    assert projected.passes == (*passes, ProjectionPass(stack="projection", positions=latents))
    assert projected.scores == scores


def test_a_chain_of_one_step_without_its_last_step_is_empty() -> None:
    for steps in (0.5, 1.0):
        lengths = Lengths(prompt=10, chain=12, end=2, answer=5, steps=steps)
        assert Codi().row_cost(sized_model(projection=None), lengths, CAPS).scores[1].supervised == 7


def test_a_row_is_as_long_as_both_sequences() -> None:
    assert Codi().row_length(PROBLEM, CAPS) == 2 * (5 + 4) + 3
    assert Codi(last_step=True).row_length(PROBLEM, CAPS) == 2 * (5 + 4) + 6


@pytest.mark.parametrize(("known", "spread"), [({"initializer_range": 0.5}, 0.5), ({}, 0.02)])
def test_new_weights_are_drawn_as_the_model_s_own_were(known: Any, spread: float) -> None:
    class Made(Codi):
        @staticmethod
        def model_class() -> Any:
            return SimpleNamespace(around=lambda *_, **settings: settings)

    base: Any = SimpleNamespace(config=SimpleNamespace(**known))
    made: Any = SelfDistillation.build(Made(latents=3), base, CAPS)
    projection = {"width": None, "dropout": 0.0, "norm": True}
    assert made == {"latents": 3, "projection": projection, "initializer_range": spread}
    # Without latents nothing is projected.
    assert SelfDistillation.build(Made(latents=0), base, CAPS)["projection"] is None  # type: ignore[index]


def test_what_a_stage_needs() -> None:
    assert facts_of(Codi) == {"chain_needed", "steps_needed", "answers_from_latents"}


@pytest.mark.parametrize(
    ("answer", "box", "before"),
    [((5, 8, 13, 1), (5, 8), 2), ((5, 9, 1), (5, 8), 1), ((7, 1), (5, 8), 0), ((5,), (5, 8), 1), ((5, 8), (), 0)],
)
def test_the_value_begins_where_the_text_before_it_ends(answer: Any, box: Any, before: int) -> None:
    assert before_value(answer, box) == before


def test_a_batch_by_hand() -> None:
    markers = Markers(open=(8,), end=(9, 10))
    rows = [PROBLEM, Spans(prompt=(3,), steps=((17, 18),), answer=(21, 24, 1))]
    batch = batch_of(rows, markers, (21, 22), latents=3, last_step=False, pad_id=0)
    assert batch["text_ids"].tolist() == [[9, 10, 21, 22, 23, 1], [9, 10, 21, 24, 1, 0]]
    # The value is 23, or 24: the outputs before it are at the third and at the second token after the first marker.
    assert batch["distilled_at"].tolist() == [3, 2]
    teacher = batch["teacher"].ids.tolist()
    assert teacher == [[3, 4, 5, 6, 7, 8, 11, 12, 13, 9, 10, 21, 22, 23, 1], [3, 8, 9, 10, 21, 24, 1, *[0] * 8]]
    assert [row[at] for row, at in zip(teacher, batch["teacher_at"].tolist(), strict=True)] == [22, 21]
    kept = batch_of(rows, markers, (21, 22), latents=3, last_step=True, pad_id=0)
    assert kept["teacher"].ids[1, :6].tolist() == [3, 8, 17, 18, 9, 10]
    assert (kept["teacher_at"] - batch["teacher_at"]).tolist() == [3, 2]
    placed = with_places(batch)
    assert placed["teacher_targets"].tolist() == [11, 12, 13, 9, 10, 21, 22, 23, 1, 9, 10, 21, 24, 1]
    assert Codi().counts(placed) == {"tokens": 7, "teacher": 14, "rows": 2}


def test_distances_by_hand() -> None:
    """Smooth L1 is half the square below a difference of one, and the difference less a half above."""
    teacher = torch.tensor([[[0.0, 2.0], [4.0, 6.0]]])
    student = teacher + torch.tensor([[[0.5, -0.5], [3.0, 0.0]]])
    mean = (0.125 + 0.125 + 2.5) / 4
    assert distances(student, teacher, divide_by_std=False).tolist() == pytest.approx([mean])
    # Deviations of -3, -1, 1 and 3 from the mean, over three.
    assert distances(student, teacher, divide_by_std=True).tolist() == pytest.approx([mean / math.sqrt(20 / 3)])


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    half, quarter = [math.log(2), 0.0, 0.0], [0.0, math.log(2), 0.0]
    batch = {
        "text_ids": torch.tensor([[1, 0]]),
        "target_mask": torch.tensor([[False, True]]),
        "places": torch.tensor([0]),
        "targets": torch.tensor([0]),
        "teacher_targets": torch.tensor([0, 0]),
    }
    outputs = SelfDistilledOutput(
        logits=torch.tensor([[half, half]]),
        teacher_logits=torch.tensor([quarter, quarter]),
        states=torch.tensor([[[9.0]], [[3.0]], [[2.0]]]),
        teacher_states=torch.tensor([[[0.0]], [[0.0]], [[0.0]]]),
        residual=torch.tensor(0.25),
    )
    objective = Codi(divide_by_std=False, teacher_weight=0.5, distance_weight=3.0)
    loss, terms = distillation_loss(objective, outputs, batch)
    distance = (8.5 + 2.5 + 1.5) / 3
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(
        {
            "student_loss": math.log(2),
            "teacher_loss": 2 * math.log(2),
            "distance": distance,
            "distance_0": 8.5,
            "distance_1": 2.5,
            "distance_2": 1.5,
            "residual": 0.25,
        }
    )
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * 2 * math.log(2) + 3 * distance)
