"""Every number of a calibration, by hand, from latents whose mixtures are planted in an orthonormal table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from planted_trees import PRINTED, WIDTH, chain_of
from torch import Tensor

from unspoken.analysis.calibration import forced_calibration, rollout_calibration, valid_routes
from unspoken.tasks import TreeProblems, TreeSearchConfig, TreeSearchTask

TABLE = torch.eye(21, WIDTH)


def tree(targets: str) -> tuple[TreeSearchTask, TreeProblems]:
    """L over K (over B and N) and C (over J and E); the route leads to the first target."""
    task = TreeSearchConfig(depth=3, targets=len(targets)).build()
    return task, task.parse(PRINTED.format(targets))


def latents(*steps: dict[str, float]) -> Tensor:
    return chain_of(TABLE, steps)[:, : len(steps)]


def test_forced_readings_by_hand() -> None:
    # Odds of the right child: K 3/4 (B, B and N of four leaves), then B 2/3. The latents read 3/5 and 1/4.
    task, problems = tree("BBNJ")
    reading = forced_calibration(latents({"K": 3, "C": 2}, {"B": 1, "N": 3}), TABLE, task, problems)
    assert reading["error_steps"] == pytest.approx([3 / 4 - 3 / 5, 2 / 3 - 1 / 4], abs=1e-6)
    assert reading["error"] == pytest.approx((3 / 20 + 5 / 12) / 2, abs=1e-6)
    assert reading["uniform_error"] == pytest.approx((1 / 4 + 1 / 6) / 2)
    points = [(point["truth"], point["mean"], point["count"]) for point in reading["points"]]
    expected = [(1 / 4, 2 / 5, 1), (1 / 3, 3 / 4, 1), (2 / 3, 1 / 4, 1), (3 / 4, 3 / 5, 1)]
    for point, numbers in zip(points, expected, strict=True):
        assert point == pytest.approx(numbers, abs=1e-4)


def test_the_spread_of_a_point_is_from_a_tenth_to_nine_tenths_of_its_readings() -> None:
    # Eleven trees alike, whose second latents read 0, 0.1, ..., 1 of B where the odds are two to one.
    task, one = tree("BBN")
    problems = TreeProblems(
        **{name: getattr(one, name).repeat(11, axis=0) for name in ("names_BM", "targets_BA", "leaf_B", "edges_BE")}
    )
    chains = torch.cat([latents({"K": 1}, {"B": step / 10, "N": 1 - step / 10}) for step in range(11)])
    (point,) = (
        point
        for point in forced_calibration(chains, TABLE, task, problems)["points"]
        if point["truth"] == pytest.approx(2 / 3, abs=1e-3)
    )
    assert point["truth"] == 0.6667, "rounded to four decimals"
    assert point == pytest.approx({"truth": 0.6667, "mean": 0.5, "low": 0.1, "high": 0.9, "count": 11}, abs=1e-4)


def test_rollout_readings_by_hand() -> None:
    # Marginals: K 3/4, C 1/4; then B 1/2, N 1/4, J 1/4, E 0. Latents hold names of other levels too: L, and K.
    task, problems = tree("BBNJ")
    chain = latents({"K": 1, "C": 1, "L": 2}, {"B": 1, "N": 2, "E": 1, "K": 6})
    reading = rollout_calibration(chain, TABLE, task, problems)
    quarter = -(1 / 4) * math.log(1 / 4)
    half = -(1 / 2) * math.log(1 / 2)
    expected = {
        "distance": [1 / 4, 1 / 2],  # half of |1/2 - 3/4| + |1/2 - 1/4|; of 1/4 + 1/4 + 1/4 + 1/4
        "uniform_distance": [1 / 4, 1 / 4],  # equal fractions: 1/2 each; 1/4 each
        "entropy": [2 * half, half + 2 * quarter],
        "true_entropy": [quarter - 3 / 4 * math.log(3 / 4), half + 2 * quarter],
        "largest": [1 / 2, 1 / 2],
        "true_largest": [3 / 4, 1 / 2],
        "outside": [1 / 2, 6 / 10],
    }
    assert reading.keys() == expected.keys()
    for name, values in expected.items():
        assert reading[name] == pytest.approx(values, abs=1e-5), name


def test_readings_of_several_problems_are_averaged() -> None:
    task, one = tree("BBNJ")
    chains = [latents({"K": 1, "C": 1}, {"B": 1}), latents({"K": 1}, {"B": 1, "N": 1})]
    together = rollout_calibration(torch.cat(chains), TABLE, task, one.select(np.zeros(2, dtype=np.int64)))
    alone = [rollout_calibration(chain, TABLE, task, one) for chain in chains]
    for name, values in together.items():
        assert values == pytest.approx(np.mean([reading[name] for reading in alone], axis=0)), name


def test_a_tree_of_two_levels_has_one_step() -> None:
    task = TreeSearchConfig(depth=2).build()
    reading = rollout_calibration(torch.rand(3, 1, WIDTH), TABLE, task, task.sample("test", np.arange(3)))
    assert {len(values) for values in reading.values()} == {1}


def test_negative_coefficients_count_as_none() -> None:
    task, problems = tree("BBNJ")
    chain = latents({"K": 1, "C": -1}, {"B": 1, "N": -1, "J": 1, "L": -5})
    forced = forced_calibration(chain, TABLE, task, problems)
    assert forced["error_steps"] == pytest.approx([1 / 4, 1 / 3], abs=1e-6)
    rollout = rollout_calibration(chain, TABLE, task, problems)
    assert rollout["largest"] == pytest.approx([1.0, 1 / 2], abs=1e-6)
    assert rollout["outside"] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_a_route_of_an_answer_is_real_and_may_be_meant() -> None:
    # Leaves B, N and J may be meant; E may not.
    task, problems = tree("BBNJ")
    several = problems.select(np.zeros(7, dtype=np.int64))
    routes = ("LKB", "LKN", "LCJ", "LCE", "LKJ", "LKK", "KLB")
    tokens = torch.tensor([task.tokenizer.convert_tokens_to_ids([*route]) for route in routes])
    expected = [True, True, True, False, False, False, False]
    assert valid_routes(tokens, task, several).tolist() == expected
    # What comes after the route does not matter, and a shorter answer is none.
    more = torch.nn.functional.pad(tokens, (0, 2), value=9)
    assert valid_routes(more, task, several).tolist() == expected
    assert valid_routes(tokens[:, :2], task, several).tolist() == [False] * 7


def test_names_that_a_latent_lacks_altogether_have_no_fraction() -> None:
    task, problems = tree("BBNJ")
    nothing = latents({"L": 1}, {"L": 1})
    assert forced_calibration(nothing, TABLE, task, problems)["error_steps"] == pytest.approx([3 / 4, 2 / 3])
    reading = rollout_calibration(nothing, TABLE, task, problems)
    assert reading["outside"] == pytest.approx([1.0, 1.0])
    assert reading["largest"] == reading["entropy"] == pytest.approx([0.0, 0.0])
    assert reading["distance"] == pytest.approx([0.5, 0.5])
