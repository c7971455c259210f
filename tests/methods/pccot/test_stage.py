"""What a stage of PCCoT takes and counts, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from latent_models import MARKERS, around
from plain_stage import CAPS, LENGTHS, facts_of, facts_of_system, sized_model
from tiny_models import END, VOCABULARY, WIDTH, tiny_language_model

from unspoken.methods.cost import ProjectionPass, RowCost, Scores, StackPass
from unspoken.methods.pccot.model import PccotForCausalLM, _residual
from unspoken.methods.pccot.stages import Pccot
from unspoken.methods.self_distillation import Projection
from unspoken.reasoning.engine import StopRule

HEAD: Any = "head"


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_every_iteration_reads_all_latents_beside_the_prompt(iterations: int, cut: bool) -> None:
    objective = Pccot(latents=4, iterations=iterations, cut_gradient=cut)
    student, teacher = 10 + 4 + 7, 10 + 9 + 7
    again = StackPass(stack="stack", positions=4, across=10, has_gradient=not cut)
    passes = (
        StackPass(stack="stack", positions=student),
        StackPass(stack="stack", positions=teacher),
        *[again] * iterations,
    )
    assert objective.row_cost(sized_model(projection=None), LENGTHS, CAPS) == RowCost(
        tokens=student + teacher,
        passes=passes,
        scores=(
            Scores(head=HEAD, made=4 + 7 + (0 if iterations else 10), supervised=5),
            Scores(head=HEAD, made=teacher, supervised=9 + 7),
        ),
    )
    projected = Pccot(latents=4, iterations=iterations, cut_gradient=cut, projection=Projection())
    cost = projected.row_cost(sized_model(projection="projection"), LENGTHS, CAPS)
    assert cost.passes == (*passes, ProjectionPass(stack="projection", positions=4 * iterations))


def test_what_a_stage_needs() -> None:
    assert facts_of(Pccot) == {"chain_needed", "steps_needed", "answers_from_latents"}
    assert Pccot.first_state == 1


def test_the_residual_is_the_last_change_over_the_norm() -> None:
    """Of the last two passes alone, a mean over the rows."""
    first, before = torch.zeros(2, 2, 1), torch.tensor([[[3.0], [0.0]], [[0.0], [2.0]]])
    after = torch.tensor([[[3.0], [4.0]], [[0.0], [4.0]]])
    residual = _residual([first, before, after])
    assert residual is not None
    assert residual.item() == pytest.approx((4 / 5 + 2 / 4) / 2)
    assert _residual([after]) is None


def test_a_system_by_hand() -> None:
    projection = {"width": 24, "dropout": 0.0, "norm": True}
    model = around(PccotForCausalLM, tiny_language_model("llama"), latents=4, iterations=3, projection=projection)
    system = model.system(name="pccot", max_tokens=9)
    assert facts_of_system(system) == {
        "name": "pccot",
        "opening": MARKERS.open,
        "marker": MARKERS.end,
        "ends": (END,),
        "stop": StopRule(max_latents=4, fixed=True),
        "max_tokens": 9,
        "kind": "latent",
        "table": VOCABULARY * WIDTH,
        "scorings": 0,
        "step_flops": 2 * (WIDTH * 24 + 24 * WIDTH),
    }
    reasoner: Any = system.reasoner
    assert (reasoner.shift, reasoner.iterations, reasoner.guess(3).shape) == (1, 3, (3, WIDTH))
