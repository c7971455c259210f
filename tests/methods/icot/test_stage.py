"""What a stage of iCoT takes, removes and counts, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain_stage import CAPS, LENGTHS, PROBLEM, facts_of, one_pass, sized_model

from unspoken.methods.defaults import TrainingFacts
from unspoken.methods.icot.method import IcotMethod
from unspoken.methods.icot.objective import FreshOptimizer, batch_of, with_places
from unspoken.methods.icot.stages import LARGEST_OFFSET, Icot
from unspoken.methods.rows import Kind
from unspoken.tasks.spans import Markers

SHORT = Icot(steps_per_token=3, pretrain_steps=2, remove_all_beyond=4, smoothing=None)


def in_stage(steps: int) -> Any:
    return SimpleNamespace(lineage=SimpleNamespace(settings=SimpleNamespace(steps=steps)))


def test_the_schedule_step_by_step() -> None:
    assert [SHORT.scheduled(step) for step in range(15)] == [0] * 5 + [1] * 3 + [2] * 3 + [3] * 3 + [4]
    assert [replace(SHORT, steps_per_token=1).scheduled(step) for step in range(5)] == [0, 0, 0, 1, 2]
    assert SHORT.steps_until_removed == 14
    assert replace(SHORT, remove_all_beyond=0).steps_until_removed == 0
    assert [SHORT.removed(step, 0, 9) for step in (4, 5, 13, 14)] == [0, 1, 3, 9]
    assert [SHORT.removed(step, 2, 4) for step in (4, 5, 13)] == [2, 3, 4]


def test_a_stage_of_twenty_steps_reads_what_is_left_of_its_chains() -> None:
    # Twelve tokens for five steps, then 11, 10 and 9 for three each, and none in six.
    left = (5 * 12 + 3 * (11 + 10 + 9)) / 20
    supervised = left + 2 + 5
    expected = one_pass(10 + supervised, made=supervised, supervised=supervised)
    assert SHORT.row_cost(sized_model(), LENGTHS, in_stage(20)) == expected
    smooth = replace(SHORT, smoothing=math.log(2))  # offsets of one token on average
    left = (5 * 11 + 3 * (10 + 9 + 8)) / 20
    cost = smooth.row_cost(sized_model(), LENGTHS, in_stage(20))
    assert cost.tokens == pytest.approx(10 + left + 2 + 5)
    # No chain has less than nothing left.
    rough = replace(SHORT, smoothing=math.log(1 + 1 / 20)).row_cost(sized_model(), LENGTHS, in_stage(20))
    assert rough.tokens == pytest.approx(10 + 2 + 5)


def test_a_row_is_as_long_as_with_its_chain() -> None:
    assert SHORT.row_length(PROBLEM, CAPS) == 15


def test_what_a_stage_needs() -> None:
    assert facts_of(Icot) == {"chain_needed", "reads_in_order", "recomputes"}
    assert not SHORT.writes_tokens


def test_checkpoints_without_a_chain_may_be_selected() -> None:
    assert [SHORT.candidate(step) for step in (0, 1, 13, 14, 20)] == [False, False, False, True, True]
    at_once = replace(SHORT, remove_all_beyond=0)
    assert [at_once.candidate(step) for step in (0, 1)] == [False, True]


def test_offsets_are_cut_where_they_are_very_large() -> None:
    rare = replace(SHORT, smoothing=1e-4)
    offsets = [rare.offset(0, index) for index in range(200)]
    assert max(offsets) == LARGEST_OFFSET == 99
    assert [SHORT.offset(0, index) for index in range(20)] == [0] * 20
    # A probability of a half for none, of a quarter for one, and so on.
    even = [replace(SHORT, smoothing=math.log(2)).offset(0, index) for index in range(4000)]
    assert [even.count(number) / 4000 for number in range(3)] == pytest.approx([0.5, 0.25, 0.125], abs=0.02)


@pytest.mark.parametrize("from_right", [False, True])
def test_a_batch_by_hand(from_right: bool) -> None:
    objective = replace(SHORT, from_right=from_right, keep_position=True)
    markers = Markers(open=(8,), end=(9,))
    batch = batch_of(objective, [PROBLEM, PROBLEM], (2, 5), markers, scheduled=2, pad_id=0)
    rows = batch["rows"]
    left = ([11, 12, 13, 14], [11]) if from_right else ([13, 14, 15, 16], [16])
    head, tail = [3, 4, 5, 6, 7, 8], [9, 21, 22, 23, 1]
    assert rows.ids.tolist() == [head + left[0] + tail, head + left[1] + tail + [0] * 3]
    # What comes after the removed tokens stands where it stood before.
    if from_right:
        expected = [[*range(10), *range(12, 17)], [*range(7), *range(12, 17), 0, 0, 0]]
    else:
        expected = [[*range(6), *range(8, 17)], [*range(6), *range(11, 17), 0, 0, 0]]
    assert rows.position.tolist() == expected
    assert batch["supervised"].tolist() == list(range(5, 14))
    assert batch["scheduled"].item() == 2
    placed = with_places(batch)
    assert placed["targets"].tolist() == left[0] + tail + left[1] + tail
    # Outputs before them, in rows of nine columns that are scored.
    assert placed["places"].tolist() == [*range(9), *range(9, 15)]
    every = with_places({"rows": rows})
    assert every["places"].tolist() == [*range(5, 14), *range(15 + 5, 15 + 11)]
    assert objective.counts(placed) == {"tokens": 15}


def lineage_after(*before: tuple[int | None, int]) -> Any:
    stages = [
        SimpleNamespace(name="cot", settings=SimpleNamespace(steps=steps, batch_size=size)) for steps, size in before
    ]
    return SimpleNamespace(before=stages or None, settings=SimpleNamespace(steps=20, batch_size=2))


@pytest.mark.parametrize(("before", "first"), [((), 0), (((10, 3),), 30), (((10, 3), (5, 4)), 50)])
def test_the_step_of_a_row_counts_the_rows_that_were_read_before(before: Any, first: int) -> None:
    chains = Markers(open=(8,), end=(9,))
    context: Any = SimpleNamespace(
        lineage=lineage_after(*before),
        markers=chains,
        tokenizer=SimpleNamespace(pad_token_id=0, eos_token_id=1),
        seed=0,
        sample=lambda indices, _: [PROBLEM] * len(indices),
        prompt_format=None,
        task=SimpleNamespace(spans=lambda problems, _: problems),
    )
    objective = replace(SHORT, eos_separators=False)
    # Rows 10 and 11 of the stage are those of step 5, at which the first token is removed.
    for row, left in ((8, 6), (10, 5), (27, 3), (28, 0)):
        batch = objective.collate(context)(torch.tensor([first + row, first + row + 1]).numpy())
        assert (batch["rows"].kind == Kind.TEXT).sum(dim=1).tolist() == [left, left], row
    measured = objective.collate(context, "validation")(torch.tensor([0]).numpy())
    assert not (measured["rows"].kind == Kind.TEXT).any()
    ended = SHORT.collate(context)(torch.tensor([first]).numpy())["rows"].ids.tolist()
    assert ended == [[3, 4, 5, 6, 7, 1, 11, 12, 13, 14, 15, 16, 1, 21, 22, 23, 1]]


@pytest.mark.parametrize(
    ("step", "left", "emptied"),
    # Removals come before steps 5, 8, 11 and 14; at the last one chains may be gone already.
    [(0, 6, False), (4, 6, False), (5, 6, True), (6, 6, False), (8, 5, True), (14, 1, True), (14, 0, False)],
)
def test_the_optimizer_is_emptied_before_the_first_step_of_a_removal(step: int, left: int, emptied: bool) -> None:
    class Data:
        read: list[int]

        def __len__(self) -> int:
            return 40

        def __getitems__(self, indices: list[int]) -> Any:
            self.read = indices
            kinds = [[Kind.PROMPT] + [Kind.TEXT] * left + [Kind.FINAL]]
            return {"rows": SimpleNamespace(kind=torch.tensor(kinds))}

    data, parts = Data(), [SimpleNamespace(state={"moment": 1}), SimpleNamespace(state={"moment": 2})]
    optimizer = SimpleNamespace(optimizer=SimpleNamespace(parts=parts))
    FreshOptimizer(SHORT).on_step_begin(
        None,
        SimpleNamespace(global_step=step, max_steps=20),
        None,
        optimizer=optimizer,
        train_dataloader=SimpleNamespace(dataset=data),
    )
    assert [one.state for one in parts] == ([{}, {}] if emptied else [{"moment": 1}, {"moment": 2}])
    if emptied:
        assert data.read == [2 * step - 2, 2 * step - 1]


@pytest.mark.parametrize(
    ("steps", "pretrain", "beyond", "fits"), [(15, 2, 4, True), (14, 2, 4, False), (1, 0, 0, True), (0, 0, 0, False)]
)
def test_a_stage_comes_to_the_end_of_its_schedule(steps: int, pretrain: int, beyond: int, fits: bool) -> None:
    objective = replace(SHORT, pretrain_steps=pretrain, remove_all_beyond=beyond)
    stage: Any = SimpleNamespace(talker=None, blocks=None, steps=steps, steps_of=())
    if fits:
        objective.check_stage(stage)
    else:
        with pytest.raises(ValueError, match=f"steps is {steps}"):
            objective.check_stage(stage)


@pytest.mark.parametrize(
    ("rows", "chain", "tokens", "each"),
    # Eight epochs are at least 160 steps, of which 120 remove one token after another.
    [(40, 6, 6, 20), (40, 50, 39, 3), (7000, 50, 39, 33), (40, 39, 39, 3)],
)
def test_three_quarters_of_the_default_steps_remove_tokens(rows: int, chain: int, tokens: int, each: int) -> None:
    facts = TrainingFacts(rows=rows, steps=2, chain=chain, width=8, heads=2, batch_size=32)
    _, stage = IcotMethod().default_stages(facts)["icot"]
    assert stage["objective"]["remove_all_beyond"] == tokens
    assert stage["objective"]["steps_per_token"] == each
    assert stage["epochs"] == 8
    assert Icot(**{name: value for name, value in stage["objective"].items() if name != "kind"}).pretrain_steps == 0
