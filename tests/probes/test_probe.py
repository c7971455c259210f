"""What every probe looks at: how many problems, which of them, and of which values its numbers are."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from unspoken.evaluation.outcomes import JEPA_REASONER
from unspoken.probes import latent_noise, token_noise
from unspoken.probes.chains import largest_entropy
from unspoken.probes.controls import ControlsProbe
from unspoken.probes.examples import on_plane, with_first_rows
from unspoken.probes.forced_symbols import ForcedSymbolsProbe
from unspoken.probes.forced_tokens import ForcedTokensProbe
from unspoken.probes.geometry import GeometryProbe
from unspoken.probes.pass_at_k import PassAtKProbe
from unspoken.probes.probe import Probe, View
from unspoken.probes.resampled_answers import ResampledAnswersProbe


class Numbered(list[int]):
    """Problems that are their numbers."""

    def select(self, rows: Any) -> Numbered:
        return Numbered(self[row] for row in rows)


def view(problems: int, answers: Any = None, **rest: Any) -> View:
    task = SimpleNamespace(traits=SimpleNamespace(fixed_steps=2, has_chain=True))
    anything: Any = SimpleNamespace(replaced=0)
    given = {"task": task, "system": anything, "prompt_format": anything, "batch_size": 4, "seed": 0}
    return View(problems=Numbered(range(problems)), answers=answers, **(given | rest))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("probe", "most"),
    [
        (ControlsProbe(), 500),
        (ForcedSymbolsProbe(), 200),
        (ForcedTokensProbe(), 200),
        (GeometryProbe(), 200),
        (ResampledAnswersProbe(), 200),
    ],
)
def test_a_probe_looks_at_the_first_problems(probe: Probe, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def first(self: View, problems: int) -> View:
        asked.append(problems)
        raise InterruptedError

    monkeypatch.setattr(View, "first", first)
    lengths: Any = SimpleNamespace(chain=SimpleNamespace(lengths=torch.tensor([1])))
    with pytest.raises(InterruptedError):
        probe.measure(view(3, lengths))
    assert asked == [most]


def test_the_first_problems_have_their_own_answers() -> None:
    answers: Any = SimpleNamespace(select=lambda rows: [*rows])
    looked_at = view(5, answers)
    assert looked_at.first(5) is looked_at
    few = looked_at.first(4)
    assert (few.problems, few.answers) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert view(5).first(2).answers is None


@pytest.mark.parametrize(("lengths", "has_chain"), [([0, 0], False), ([0, 3], True)])
def test_a_chain_that_is_not_empty_is_one(lengths: list[int], has_chain: bool) -> None:
    answers: Any = SimpleNamespace(chain=SimpleNamespace(lengths=torch.tensor(lengths)))
    assert view(2, answers).has_chain is has_chain
    assert not view(2).has_chain


def test_a_view_is_of_the_first_seed_as_trained_and_of_all_problems_unless_it_is_told() -> None:
    defaults = {one.name: one.default for one in fields(View) if one.name in ("first_seed", "as_trained", "most")}
    assert defaults == {"first_seed": True, "as_trained": True, "most": None}
    assert [Probe.optional, GeometryProbe.optional, PassAtKProbe.optional] == [False, True, True]


def test_the_first_fifty_problems_follow_the_chosen_ones() -> None:
    rows = with_first_rows([("right", 3), ("wrong", 70), ("wrong", 3)], [row % 2 == 0 for row in range(80)])
    assert rows[:4] == [("right", 3), ("wrong", 70), ("right", 0), ("wrong", 1)]
    assert [row for _, row in rows[2:]] == [row for row in range(50) if row != 3]
    assert [row for _, row in with_first_rows([], [True] * 50)] == list(range(50))
    assert with_first_rows([], [False, True]) == [("wrong", 0), ("right", 1)]


def test_places_on_a_plane_have_three_decimals_and_shares_four() -> None:
    chain, rows = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.2345678, 0.0]])
    (points,), squares, explained = on_plane([chain], rows)
    every: list[Tensor] = [torch.tensor(point) for point in (*points, *squares)]
    # All points lie in one plane, so their distances are kept.
    assert torch.dist(every[0], every[1]) == pytest.approx(3, abs=2e-3)
    assert torch.dist(every[0], every[2]) == pytest.approx(1.2346, abs=2e-3)
    values = [value for point in (*points, *squares) for value in point]
    assert values == [round(value, 3) for value in values] != [round(value, 2) for value in values]
    assert explained == [round(share, 4) for share in explained] != [round(share, 3) for share in explained]
    assert sum(explained) == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize(
    ("entropies", "largest"),
    [([[0.5, None], [2.0]], 2.0), ([[None]], 1.0), ([[0.0]], 1.0), ([[]], 1.0), ([], 1.0), ([[0.25]], 0.25)],
)
def test_bars_of_entropy_have_a_highest_one(entropies: list[list[float | None]], largest: float) -> None:
    entries = [{"steps": [{"entropy": entropy} for entropy in one]} for one in entropies]
    assert largest_entropy(entries) == largest


def test_noise_is_measured_at_the_levels_that_the_paper_printed() -> None:
    assert tuple(token_noise.PAPER) == token_noise.RATES
    assert {tuple(levels) for levels in latent_noise.PAPER.values()} == {latent_noise.FRACTIONS}
    assert JEPA_REASONER in latent_noise.PAPER


def test_of_eight_chains_a_problem_powers_of_two_are_reported() -> None:
    import numpy as np

    for probe, every in ((PassAtKProbe(), [1, 2, 4, 8]), (PassAtKProbe(5), [1, 2, 4, 5]), (PassAtKProbe(1), [1])):
        summary = probe.summarise({"it": [np.array([0, probe.draws])]}, baseline=None)
        assert summary["draws"] == every[-1]
        assert {k: rate["mean"] for k, rate in summary["systems"]["it"].items()} == {str(k): 0.5 for k in every}
    with pytest.raises(ValueError, match="0 chains per problem cannot be drawn"):
        PassAtKProbe(0)
