"""What a stage of Coconut takes and counts, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from plain_stage import CAPS, LENGTHS, PROBLEM, facts_of, one_pass, sized_model
from tiny_drills import drilled

from unspoken.methods.coconut.method import CoconutMethod
from unspoken.methods.coconut.stages import Coconut
from unspoken.methods.cost import Lengths
from unspoken.methods.defaults import TrainingFacts
from unspoken.reasoning.causal_lm import LatentGenerationConfig
from unspoken.training.context import context_of


@pytest.mark.parametrize(
    ("objective", "left"),
    [
        # Of a chain of twelve tokens in four steps, as much is left as steps are.
        (Coconut(replaced=0), 12),
        (Coconut(replaced=1), 9),
        (Coconut(replaced=3, latents_per_step=1), 3),
        (Coconut(replaced=3, latents_per_step=0), 3),
        (Coconut(replaced=6), 0),
        (Coconut(replaced=1, rest="none"), 0),
    ],
)
def test_latents_and_text_go_through_the_blocks_once(objective: Coconut, left: int) -> None:
    latents, text = objective.replaced * objective.latents_per_step, 2 + left + 5
    # The last latent, or without latents the prompt of ten tokens, is read with the text and scored too.
    expected = one_pass(10 + latents + text, made=text + (1 if latents else 10), supervised=text)
    assert objective.row_cost(sized_model(), LENGTHS, CAPS) == expected


@pytest.mark.parametrize(
    ("replaced", "rest", "left"), [(0, "explicit", 6), (1, "explicit", 4), (3, "explicit", 0), (1, "none", 0)]
)
def test_a_row_is_as_long_as_what_is_left_of_it(replaced: int, rest: Any, left: int) -> None:
    assert Coconut(replaced=replaced, rest=rest).row_length(PROBLEM, CAPS) == 5 + left + 4


def test_latents_stand_for_the_steps_that_are_not_text() -> None:
    for replaced in (0, 2, 9):
        assert Coconut(replaced=replaced).replaced_steps(PROBLEM, 0, 0) == PROBLEM.steps[:replaced]
        assert Coconut(replaced=replaced, rest="none").replaced_steps(PROBLEM, 0, 0) == PROBLEM.steps
    assert Coconut(replaced=3, latents_per_step=4).latents == 12
    assert Coconut(replaced=3, latents_per_step=4).latents_per_explicit_step == 4


def test_stages_that_are_mixed_in() -> None:
    """Up to the stage itself with the rest in text, above it the last stage with as many latents."""
    objective = Coconut(replaced=1, latents_per_step=3, mixed=1.0)
    read = {objective.read_at(PROBLEM, index, 0) for index in range(60)}
    assert read == {
        Coconut(replaced=0, latents_per_step=3),
        Coconut(replaced=1, latents_per_step=3),
        Coconut(replaced=1, latents_per_step=3, rest="none"),
    }
    assert {Coconut(replaced=1).read_at(PROBLEM, index, 0) for index in range(9)} == {Coconut(replaced=1)}


def test_what_is_never_mixed_is_not_mixed_by_the_smallest_number_either(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = SimpleNamespace(random=lambda: 0.0, integers=lambda _: 0)
    monkeypatch.setattr(np.random, "default_rng", lambda _: drawn)
    assert Coconut(replaced=1).read_at(PROBLEM, 0, 0) == Coconut(replaced=1)
    assert Coconut(replaced=1, mixed=1e-9).read_at(PROBLEM, 0, 0) == Coconut(replaced=0)


def test_later_stages_have_as_many_latents_or_more() -> None:
    run: Any = SimpleNamespace(
        task=SimpleNamespace(traits=SimpleNamespace(fixed_steps=None)), attention="sdpa", activation_checkpointing=False
    )
    line: Any = SimpleNamespace(before=SimpleNamespace(objective=Coconut(replaced=2), name="earlier"))
    Coconut(replaced=2, rest="none").check_lineage(line, run)
    Coconut(replaced=4, latents_per_step=1).check_lineage(line, run)
    with pytest.raises(ValueError, match="replaces 3 steps by 3 latents and 'earlier' before it 2 by 4;"):
        Coconut(replaced=3, latents_per_step=1).check_lineage(line, run)


def test_the_folder_records_a_fixed_number_of_hidden_states() -> None:
    made = drilled("words")
    model: Any = made.stage("second").objective.build(None, context_of(made, made.stage("second")))
    recorded = LatentGenerationConfig.recorded(model.decoder)
    assert recorded is not None
    assert (recorded.feed, recorded.max_latents, recorded.fixed) == ("hidden", 4, True)


def test_steps_that_are_left_come_before_the_answer() -> None:
    assert Coconut(replaced=1).answer_tokens(CAPS) == 27


def test_symbols_of_a_task_with_fixed_steps_count_twice_and_two_markers() -> None:
    context: Any = SimpleNamespace(traits=SimpleNamespace(fixed_steps=3, row_tokens=(9, 4)))
    expected = Lengths(prompt=9, chain=3, end=2, answer=3, steps=3)
    assert Coconut(replaced=3).mean_lengths(context) == expected
    context.traits.fixed_steps = None
    assert Coconut(replaced=3).mean_lengths(context) == Lengths(prompt=9, answer=4)


def test_what_a_stage_needs() -> None:
    assert facts_of(Coconut) == {"steps_needed"}


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_default_stages_replace_one_step_more_each_and_three_at_most(steps: int) -> None:
    facts = TrainingFacts(rows=100, steps=steps, chain=9, width=8, heads=2, batch_size=4)
    _, *stages = CoconutMethod().default_stages(facts)["coconut"]
    most = min(steps, 3)
    assert [stage["objective"]["replaced"] for stage in stages] == list(range(1, most + 1))
    assert [stage["epochs"] for stage in stages] == [1] * (most - 1) + [3]
    assert [stage["start"] for stage in stages] == ["cot", *(stage["name"] for stage in stages[:-1])]
