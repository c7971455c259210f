"""Latents that are plain names, or mixtures of siblings alone; runs of the paper's task and of others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from planted_trees import chain_of, printed, right_rows, slanted_table, some, view_of
from tag_balance import unbalanced

from unspoken.analysis.mixture import name_rows, siblings
from unspoken.draw.page import to_html
from unspoken.draw.section import Heading
from unspoken.draw.table import Table
from unspoken.evaluation.results import read_results
from unspoken.probes.mixture import MixtureProbe

PROBE = MixtureProbe()
COMMITTED = Path(__file__).parents[2] / "results"
PURE, MIXED = 7.5 / 105, 1 / 105


def test_plain_names_and_mixtures_of_siblings_have_their_ranks_and_coefficients() -> None:
    task, problems = some(depth=4, count=6)
    table = slanted_table()
    right = right_rows(task, problems, table)
    expected, rows, mixed = siblings(task, problems), name_rows(table), right.clone()
    mixed[:, 1:4] = 0.6 * rows[expected.right] + 0.8 * rows[expected.other]
    reading = PROBE.measure(view_of(task, problems, table, rollout=right, forced=F.normalize(mixed, dim=-1)))
    assert reading["rollout"]["rank"] == pytest.approx(PURE)
    assert reading["rollout"]["right_steps"] == pytest.approx([1.0] * 3, abs=1e-4)
    assert reading["rollout"]["other_inner"] == pytest.approx(0.0, abs=1e-4)
    assert reading["rollout"]["major"] == 1.0
    assert reading["forced"]["rank_steps"] == pytest.approx([MIXED] * 3)
    assert reading["forced"]["major_inner"] == 0.0
    ratio = reading["forced"]["right_inner"] / reading["forced"]["other_inner"]
    assert ratio == pytest.approx(0.75, abs=0.01)


def test_a_chain_that_stopped_early_is_left_out() -> None:
    task, problems = some(count=3)
    table = slanted_table()
    right = right_rows(task, problems, table)
    stopped = right.clone()
    stopped[0, 1:] = 0
    planted = view_of(task, problems, table, rollout=stopped, forced=right)
    chain = planted.graded.chain
    mask = chain.mask.clone()
    mask[0, 1:] = False
    shorter = replace(planted, answers=replace(planted.graded, chain=replace(chain, mask=mask)))
    assert PROBE.measure(shorter)["rollout"]["right_inner"] == pytest.approx(1.0, abs=1e-4)
    assert PROBE.measure(planted)["rollout"]["right_inner"] == pytest.approx(2 / 3, abs=1e-4)


def test_chains_that_all_stop_at_once_give_finite_readings() -> None:
    task, problems = some(count=4)
    table = slanted_table()
    right = right_rows(task, problems, table)
    planted = view_of(task, problems, table, rollout=right[:, :1], forced=right)
    reading = PROBE.measure(planted)
    json.dumps(reading, allow_nan=False)
    assert reading["rollout"]["right_inner"] == 0.0


def test_means_over_seeds_and_the_reference() -> None:
    task, problems = printed("B")
    table = slanted_table()
    right = right_rows(task, problems, table)
    even = chain_of(table, ({"L": 1.0}, {"K": 1.0, "C": 1.0}, {"B": 1.0, "N": 1.0}))
    readings = [
        PROBE.measure(view_of(task, problems, table, rollout=latents, forced=right)) for latents in (right, even)
    ]
    summary = PROBE.summarise({"sst": readings}, baseline=None)
    rank = summary["systems"]["sst"]["rollout"]["rank"]
    assert rank["seeds"] == pytest.approx([PURE, MIXED])
    assert rank["mean"] == pytest.approx((PURE + MIXED) / 2)
    assert summary["reference"] == pytest.approx({"no_sibling": PURE, "true_mixture": MIXED})
    alone = PROBE.summarise({"sst": readings[:1]}, baseline=None)["systems"]["sst"]
    assert alone["rollout"]["rank"]["seeds"] == pytest.approx([PURE])


def headings(section: Any) -> list[str]:
    return [block.text for block in section.blocks if isinstance(block, Heading)]


@pytest.mark.parametrize("name", ["small", "ambiguous-small", "siblings-small"])
def test_committed_runs_have_their_section(name: str) -> None:
    results = read_results(COMMITTED / f"tree-search-{name}.json")
    section = PROBE.section(results)
    assert section is not None
    assert unbalanced(to_html(section.blocks)) == []
    along = ["Along SST, teacher-forced", "Along SST, rollout"]
    assert headings(section)[:2] == along
    table = section.blocks[0]
    assert isinstance(table, Table)
    names = [row[0].text for row in table.rows]
    if name == "ambiguous-small":
        assert headings(section) == along
        assert names == ["level 2", "level 3", "leaf", "inner nodes", "all nodes"]
    elif name == "small":
        assert headings(section) == [*along, "Beside the paper"]
        assert names[-1] == "all nodes, the paper’s"
    else:
        assert len(names) == 2 * len(results["systems"]) + 1


def test_the_papers_numbers_stand_beside_ours_on_a_page_alone() -> None:
    results = read_results(COMMITTED / "tree-search-small.json")
    section = PROBE.section(results)
    assert section is not None
    paper = section.blocks[-1]
    assert isinstance(paper, Table)
    assert paper.terminal == "absent"
    assert [row[1].text for row in paper.rows[:3]] == ["99.87 %", "99.89 %", "1.72 %"]
    ours = results["systems"]["jepa-reasoner"]["exact_match"]["mean"]
    assert paper.rows[0][2].value == ours
    assert [column.head for column in paper.columns] == ["Measure", "Paper", "jepa-reasoner"]


def test_without_curves_the_table_stands_alone() -> None:
    results = read_results(COMMITTED / "tree-search-ambiguous-small.json")
    section = PROBE.section(results | {"training": []})
    assert section is not None
    assert headings(section) == []
    assert PROBE.section(results | {"probes": {}}) is None


def test_readings_of_a_batch_do_not_depend_on_the_others() -> None:
    task, problems = some(count=4)
    table = slanted_table()
    right = F.normalize(right_rows(task, problems, table) + 0.1 * torch.randn(4, 4, table.shape[1]), dim=-1)
    together = PROBE.measure(view_of(task, problems, table, rollout=right, forced=right))
    alone = [
        PROBE.measure(
            view_of(task, problems.select([row]), table, rollout=right[row : row + 1], forced=right[row : row + 1])
        )
        for row in range(4)
    ]
    mean = sum(reading["forced"]["right_inner"] for reading in alone) / 4
    assert together["forced"]["right_inner"] == pytest.approx(mean, abs=1e-5)
