"""What each stage reads, written out by hand, and what it supervises."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recorded import batch_digest, check_default_stages, check_plans
from settings_checks import check_defaults, check_ranges
from tiny_drills import drilled
from tiny_models import PAD, VOCABULARY
from torch import Tensor

from unspoken.methods.coconut.model import CoconutOutput
from unspoken.methods.coconut.objective import batch_of
from unspoken.methods.coconut.stages import Coconut, Row
from unspoken.tasks import ArithmeticConfig
from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.spans import Spans
from unspoken.training.context import context_of

OPEN, END = (5,), (7, 6)
SPANS = Spans(prompt=(3, 4), steps=((10, 11), (12,), (13, 14)), answer=(18, 1))


def row_of(replaced: int, **how: Any) -> Row:
    return Coconut(replaced=replaced, **how).row(SPANS, OPEN, END)


# --- a chain in steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chain", "steps"),
    [
        ("<<5+3=8>> <<8*2=16>>", ("<<5+3=8>>", " <<8*2=16>>")),
        ("<<5+3=8>>", ("<<5+3=8>>",)),
        ("Tom is a wumpus. Every wumpus is a rempus.", ("Tom is a wumpus.", " Every wumpus is a rempus.")),
        ("He pays 3.50 a kilo.  So 7 in all!\nDone", ("He pays 3.50 a kilo.", "  So 7 in all!", "\nDone")),
        ("5 + 3 = 8 \n\n8 * 2 = 16\n", ("5 + 3 = 8", " \n\n8 * 2 = 16\n")),
        ("He has 5+3=<<5+3=8>>8 left.", ("He has 5+3=<<5+3=8>>8 left.",)),
    ],
)
def test_a_chain_is_cut_behind_equations_sentences_and_lines(chain: str, steps: tuple[str, ...]) -> None:
    problem = ReasoningProblem(question="?", chains=(chain, "<<1+1=2>> <<2+2=4>>"), answer="1", key="k")
    assert problem.steps == steps


def test_tokens_of_steps_are_the_tokens_of_the_chain() -> None:
    task = ArithmeticConfig().build()
    problems = task.sample("train", range(30))
    assert {len(problem.steps) for problem in problems} == {2, 3, 4}
    for problem in problems:
        pieces = [task.tokenizer(step)["input_ids"] for step in problem.steps]
        assert [token for piece in pieces for token in piece] == task.tokenizer(problem.chains[0])["input_ids"]
    assert task.parse("Ann has 3 pears.")[0].steps == ()


# --- the curriculum --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replaced", "how", "latents", "text"),
    [
        (0, {}, 0, (10, 11, 12, 13, 14, 18, 1)),
        (1, {}, 2, (12, 13, 14, 18, 1)),
        (2, {"latents_per_step": 3}, 6, (13, 14, 18, 1)),
        (2, {"rest": "none"}, 4, (18, 1)),
        (3, {}, 6, (18, 1)),
        # Fewer steps than the stage replaces: as many latents as any other problem.
        (5, {}, 10, (18, 1)),
        (0, {"rest": "none"}, 0, (18, 1)),
    ],
)
def test_a_stage_replaces_the_first_steps_by_latents(
    replaced: int, how: dict[str, Any], latents: int, text: tuple[int, ...]
) -> None:
    assert row_of(replaced, **how) == Row(prompt=(3, 4, 5), latents=latents, end=END, text=text)
    assert Coconut(replaced=replaced, **how).latents == latents


def test_mixed_stages_are_drawn_evenly_from_those_that_a_problem_has() -> None:
    stage, problems = Coconut(replaced=2, rest="none", mixed=0.4), 3000
    drawn = [stage.read_at(SPANS, index, 5) for index in range(problems)]
    assert drawn == [stage.read_at(SPANS, index, 5) for index in range(problems)]
    assert drawn != [stage.read_at(SPANS, index, 6) for index in range(problems)]
    # Three steps: stages 0 to 3, of which the last has no explicit step and as many latents as this one.
    rows = Counter(one.row(SPANS, OPEN, END) for one in drawn)
    share = {(row.latents, len(row.text)): count / problems for row, count in rows.items()}
    # The stage itself has no explicit step either.
    assert share == pytest.approx({(0, 7): 0.1, (2, 5): 0.1, (4, 4): 0.1, (4, 2): 0.7}, abs=0.03)
    assert Coconut(replaced=2).read_at(SPANS, 0, 5) == Coconut(replaced=2)


def test_training_reads_mixed_stages_and_validation_does_not() -> None:
    recipe = drilled("words", None, "stages.first.objective.replaced=2", "stages.first.objective.latents_per_step=1")
    for split, counts in (("train", {0, 1, 2}), ("validation", {2})):
        make = recipe.stage("first").objective.collate(context_of(recipe, recipe.stage("first")), split)
        batch = make(np.arange(40))
        assert set(batch["latent_mask"].sum(dim=1).tolist()) == counts
        assert batch["latent_mask"].shape == (40, 2)


def test_four_latents_then_four_tokens() -> None:
    # The last eight symbols of a string, with a bare marker after the latents.
    spans = Spans(prompt=(3, 4, 9), steps=((11,), (12,), (13,), (14,)), answer=(15, 16, 17, 18))
    row = Coconut(replaced=4, latents_per_step=1).row(spans, (), (1,))
    assert row == Row(prompt=(3, 4, 9), latents=4, end=(1,), text=(15, 16, 17, 18))


# --- a batch ---------------------------------------------------------------------------------------------------------

ROWS = [
    Row(prompt=(3, 4, 5), latents=1, end=(7, 6), text=(18, 1)),
    Row(prompt=(8,), latents=0, end=(7, 6), text=(1,)),
    Row(prompt=(9, 5), latents=3, end=(7, 6), text=(14, 15, 16, 1)),
]


def test_a_batch_by_hand() -> None:
    batch = batch_of(ROWS, pad_id=PAD)
    yes, no = True, False
    expected = {
        "input_ids": [[3, 4, 5], [PAD, PAD, 8], [PAD, 9, 5]],
        "attention_mask": [[1, 1, 1], [0, 0, 1], [0, 1, 1]],
        "latent_mask": [[yes, no, no], [no, no, no], [yes, yes, yes]],
        "text_ids": [[7, 6, 18, 1, PAD, PAD], [7, 6, 1, PAD, PAD, PAD], [7, 6, 14, 15, 16, 1]],
        "text_mask": [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]],
        "target_mask": [[no, no, yes, yes, no, no], [no, no, yes, no, no, no], [no, no, yes, yes, yes, yes]],
    }
    assert {name: part.tolist() for name, part in batch.items()} == expected
    assert {name for name, part in batch.items() if part.dtype == torch.bool} == {"latent_mask", "target_mask"}


def test_a_batch_without_latents_has_no_column_for_them() -> None:
    assert batch_of([ROWS[1]], pad_id=PAD)["latent_mask"].shape == (1, 0)


# --- the loss --------------------------------------------------------------------------------------------------------


def loss_of(logits: Tensor) -> float:
    objective = Coconut(replaced=1)
    batch = batch_of(ROWS, pad_id=PAD)
    given: set[str] = set()

    def forward(**inputs: Any) -> CoconutOutput:
        given.update(inputs)
        return CoconutOutput(logits=logits)

    loss, terms = objective.loss(forward, batch)
    assert {name: float(term) for name, term in terms.items()} == {"token_loss": float(loss)}
    assert given == set(batch) - {"target_mask"}
    return float(loss)


def test_no_opinion_costs_the_logarithm_of_the_vocabulary() -> None:
    assert loss_of(torch.zeros(3, 6, VOCABULARY)) == pytest.approx(math.log(VOCABULARY))


def test_the_next_token_shouted_costs_nothing() -> None:
    following = batch_of(ROWS, pad_id=PAD)["text_ids"].roll(-1, dims=1)
    assert loss_of(F.one_hot(following, VOCABULARY).float() * 50) == pytest.approx(0, abs=1e-6)


def test_outputs_before_text_are_supervised_and_no_others() -> None:
    logits = torch.randn(3, 6, VOCABULARY, requires_grad=True)
    loss, _ = Coconut(replaced=1).loss(lambda **_: CoconutOutput(logits=logits), batch_of(ROWS, pad_id=PAD))
    loss.backward()
    assert logits.grad is not None
    touched = logits.grad.abs().amax(dim=-1) > 0
    # The last token of the marker is the first that predicts anything.
    assert touched.nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [2, 1], [2, 2], [2, 3], [2, 4]]
    # Every token weighs the same, whatever its row.
    sizes = logits.grad.abs().sum(dim=-1)[touched]
    likely = 2 * (1 - torch.stack([F.softmax(logits[0, 1], 0)[18], F.softmax(logits[1, 1], 0)[1]])) / 7
    torch.testing.assert_close(sizes[[0, 2]], likely.detach())


# --- what means nothing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{"replaced": -1}, {"replaced": 1, "latents_per_step": -1}])
def test_a_stage_that_means_nothing_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{list(values)[-1]} is -1; it must be 0 or more") as it:
        Coconut(**values)
    assert "\n" not in str(it.value)
    with pytest.raises(ValueError, match="mixed is 5"):
        Coconut(replaced=1, mixed=5)


@pytest.mark.parametrize("part", ["prompt", "end", "text"])
def test_a_row_with_an_empty_part_is_refused(part: str) -> None:
    full: dict[str, Any] = {"prompt": (3,), "latents": 1, "end": (7,), "text": (1,)}
    with pytest.raises(ValueError, match=f"the {part} of a row has no tokens"):
        Row(**(full | {part: ()}))


def test_a_batch_of_nothing_and_a_debt_of_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="the batch is empty"):
        batch_of([], pad_id=PAD)
    with pytest.raises(ValueError, match="a row has -1 latents"):
        Row(prompt=(3,), latents=-1, end=(7,), text=(1,))


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(Coconut, "methods/coconut.md")


def test_settings_end_where_they_say() -> None:
    shape: dict[str, Any] = {"replaced": ([0, 1], [-1]), "latents_per_step": ([0, 1], [-1])}
    check_ranges(Coconut, {**shape, "mixed": ([0.0, 1.0], [-0.01, 1.01])}, replaced=1)


def test_what_is_read_is_what_recorded_runs_read() -> None:
    assert batch_digest("arithmetic-sim-cot", "first") == "4366da115d11"
    assert batch_digest("arithmetic-sim-cot", "coconut") == "394a40384fad"
    assert batch_digest("arithmetic-sim-cot", "coconut", "stages.coconut.objective.mixed=0.5") == "407a4d3be66a"
    assert batch_digest("grammar", "coconut") == "c057c8668ee7"


def test_stages_and_what_they_take_are_the_recorded_ones() -> None:
    check_plans("arithmetic-sim-cot tiny", "grammar tiny")
    check_default_stages("coconut")
