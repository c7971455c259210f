"""What a stage of LOTUS takes and counts, and its batch and loss by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from latent_models import MARKERS, around
from plain_stage import CAPS, LENGTHS, PROBLEM, facts_of, facts_of_system, sized_model
from tiny_models import END, VOCABULARY, WIDTH, tiny_language_model

from unspoken.methods.cost import RowCost, Scores, StackPass
from unspoken.methods.defaults import TrainingFacts
from unspoken.methods.lotus.method import LotusMethod
from unspoken.methods.lotus.model import LotusForCausalLM, LotusOutput
from unspoken.methods.lotus.objective import batch_of, lotus_loss, with_places
from unspoken.methods.lotus.stages import Lotus
from unspoken.reasoning.engine import StopRule
from unspoken.tasks.spans import Markers, Spans


@pytest.mark.parametrize(
    ("objective", "replaced", "supervised"),
    [
        # Two of four steps are six tokens, of which five latents stand for five.
        (Lotus(replaced=2, latents_per_step=5), 6, 6),
        (Lotus(replaced=2, latents_per_step=2), 6, 4),
        (Lotus(replaced=2, latents_per_step=5, iterations=0), 6, 6),
        (Lotus(replaced=2, latents_per_step=5, iterations=3), 6, 6),
        (Lotus(replaced=9, latents_per_step=2), 12, 12),
    ],
)
def test_one_pass_over_everything_and_one_over_the_latents_for_each_iteration(
    objective: Lotus, replaced: int, supervised: int
) -> None:
    latents = objective.replaced * objective.latents_per_step
    loops = objective.replaced if objective.iterations is None else objective.iterations
    text = 2 + 12 - replaced + 5
    # The last pass reads the prompt's last token again, and the whole prompt where it is the only one.
    made = text + latents + (1 if loops else 10)
    again = StackPass(stack="stack", positions=latents, across=10)
    assert objective.row_cost(sized_model(), LENGTHS, CAPS) == RowCost(
        tokens=10 + latents + text,
        passes=(StackPass(stack="stack", positions=10 + latents + text), *[again] * loops),
        scores=(Scores(head="head", made=made, supervised=supervised + text),),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("steps", [0.5, 1.0])
def test_a_chain_of_one_step_is_replaced_as_one(steps: float) -> None:
    cost = Lotus(replaced=1, latents_per_step=20).row_cost(sized_model(), replace(LENGTHS, steps=steps), CAPS)
    assert cost.tokens == 10 + 20 + 2 + 5


def test_a_row_is_as_long_as_its_text() -> None:
    assert [Lotus(replaced=steps).row_length(PROBLEM, CAPS) for steps in (1, 2, 3)] == [13, 12, 9]
    assert Lotus(replaced=1).answer_tokens(CAPS) == 27


def test_what_a_stage_needs() -> None:
    assert facts_of(Lotus) == {"chain_needed", "steps_needed", "answers_from_latents"}


def test_a_batch_by_hand() -> None:
    markers = Markers(open=(8,), end=(9,))
    rows = [PROBLEM, Spans(prompt=(3,), steps=((17, 18, 19),), answer=(24, 1))]
    batch = batch_of(Lotus(replaced=2, latents_per_step=2), rows, markers, 0)
    assert batch["input_ids"].tolist() == [[3, 4, 5, 6, 7, 8], [0, 0, 0, 0, 3, 8]]
    assert batch["latent_mask"].tolist() == [[True] * 4] * 2
    assert batch["text_ids"].tolist() == [[9, 14, 15, 16, 21, 22, 23, 1], [9, 24, 1, 0, 0, 0, 0, 0]]
    assert batch["step_ids"].tolist() == [[11, 12, 13, 0], [17, 18, 0, 0]]
    assert batch["step_mask"].tolist() == [[True, True, True, False], [True, True, False, False]]
    # One of the four tokens of replaced steps of the second row has no latent.
    assert batch["cut"].item() == 0.5
    placed = with_places(batch)
    assert placed["step_targets"].tolist() == [11, 12, 13, 17, 18]
    assert placed["step_places"].tolist() == [0, 1, 2, 4, 5]
    assert placed["targets"].tolist() == [14, 15, 16, 21, 22, 23, 1, 24, 1]
    counts = Lotus(replaced=2, latents_per_step=2).counts(placed)
    assert counts == {"tokens": 9, "steps": 5}


def test_the_loss_of_scores_that_favour_one_token() -> None:
    """Three tokens of vocabulary; the right one has a probability of a half or of a quarter."""
    half, quarter = [math.log(2), 0.0, 0.0], [0.0, math.log(2), 0.0]
    batch: dict[str, Any] = {
        "text_ids": torch.tensor([[1, 0, 0]]),
        "target_mask": torch.tensor([[False, True, True]]),
        "step_ids": torch.tensor([[0, 0]]),
        "step_mask": torch.tensor([[True, False]]),
        "cut": torch.tensor(0.0),
    }
    outputs = LotusOutput(
        logits=torch.tensor([[half, quarter, quarter]]), latent_logits=torch.tensor([[quarter, half]])
    )
    loss, terms = lotus_loss(Lotus(replaced=1, latent_weight=0.5), outputs, batch)
    text, latent = 1.5 * math.log(2), 2 * math.log(2)
    assert terms["token_loss"].item() == pytest.approx(text)
    assert terms["latent_loss"].item() == pytest.approx(latent)
    assert loss.item() == pytest.approx(text + 0.5 * latent)
    batch["step_mask"] = torch.tensor([[False, False]])
    assert lotus_loss(Lotus(replaced=1), outputs, batch)[1]["latent_loss"].item() == 0


def test_curricula_that_fit() -> None:
    """Later stages replace as many steps or more, by the same kind of latents."""
    run: Any = SimpleNamespace(attention="eager", activation_checkpointing=False)

    def check(before: Any, after: Lotus) -> None:
        line: Any = SimpleNamespace(before=SimpleNamespace(objective=before, name="earlier"))
        after.check_lineage(line, run)

    two = Lotus(replaced=2)
    check(two, two)
    check(two, replace(two, replaced=3))
    check(object(), replace(two, replaced=1))
    two.check_lineage(SimpleNamespace(before=None), run)  # type: ignore[arg-type]
    for wrong in (replace(two, replaced=1), replace(two, add_row=False)):
        with pytest.raises(ValueError, match="'earlier' before it has 2 and True"):
            check(two, wrong)


@pytest.mark.parametrize("steps", [0, 1, 2, 6, 9])
def test_default_stages_replace_one_step_more_each_and_six_at_most(steps: int) -> None:
    facts = TrainingFacts(rows=100, steps=steps, chain=9, width=8, heads=2, batch_size=4)
    made = LotusMethod().default_stages(facts)
    if not steps:
        assert made == {}
        return
    _, *stages = made["lotus"]
    most = min(steps, 6)
    assert [stage["objective"]["replaced"] for stage in stages] == list(range(1, most + 1))
    assert [stage["name"] for stage in stages] == [*(f"lotus_{number}" for number in range(1, most)), "lotus"]
    assert [stage["epochs"] for stage in stages] == [1] * (most - 1) + [3]


def test_a_system_by_hand() -> None:
    model = around(LotusForCausalLM, tiny_language_model("llama"), latents=4, iterations=3)
    system = model.system(name="lotus", max_tokens=9)
    assert facts_of_system(system) == {
        "name": "lotus",
        "opening": MARKERS.open,
        "marker": MARKERS.end,
        "ends": (END,),
        "stop": StopRule(max_latents=4, fixed=True),
        "max_tokens": 9,
        "kind": "hidden",
        "table": VOCABULARY * WIDTH,
        "scorings": 0,
    }
    reasoner: Any = system.reasoner
    assert (reasoner.shift, reasoner.iterations, reasoner.guess(3).shape) == (0, 3, (3, WIDTH))
