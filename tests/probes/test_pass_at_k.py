"""pass@k: the estimator by counting, draws whose outcomes are planted, and who is asked for several chains."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from tiny_words import TASK, tiny_word_system, word_view

from unspoken.draw.section import Section
from unspoken.draw.table import Table, grids
from unspoken.evaluation import sampling
from unspoken.evaluation.results import SCHEMA
from unspoken.methods.soft_thinking import SoftThinking
from unspoken.probes.pass_at_k import PassAtKProbe, pass_at


@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_draw(k: int) -> None:
    for right in range(7):
        draws = [True] * right + [False] * (6 - right)
        subsets = [any(subset) for subset in combinations(draws, k)]
        (found,) = pass_at(k, np.array([right]), 6)
        assert found == pytest.approx(sum(subsets) / len(subsets), abs=1e-12), right


def test_pass_at_k_keeps_the_order_of_problems_and_large_numbers() -> None:
    assert pass_at(1, np.array([3, 0, 4]), 4).tolist() == [0.75, 0.0, 1.0]
    assert 0.9 < pass_at(512, np.array([5]), 1024)[0] < 1


@pytest.mark.parametrize(("k", "right"), [(0, 1), (5, 1), (2, 5), (2, -1)])
def test_what_cannot_be_counted_is_refused(k: int, right: int) -> None:
    with pytest.raises(AssertionError, match="draws") as caught:
        pass_at(k, np.array([right]), 4)
    assert "\n" not in str(caught.value)


# --- the probe ---------------------------------------------------------------------------------------------------


def test_draws_are_summed_up_over_seeds_and_drawn_beside_the_clean_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of three draws of four problems none, one, two and all are right; the second seed has no right draw at all.
    right = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=bool)
    probe, asked = PassAtKProbe(3), []

    def draw(*_: Any, draws: int, seed: int, **__: Any) -> Any:
        asked.append((draws, seed))
        return right & (seed == 4)

    monkeypatch.setattr(sampling, "draw", draw)
    system = tiny_word_system("llama")
    readings = [probe.measure(word_view(system, 4, seed=seed)) for seed in (4, 5)]
    assert asked == [(3, 4), (3, 5)]
    assert readings[0].tolist() == [0, 1, 2, 3]
    summary = probe.summarise({"llama": readings}, baseline=None)
    rates = summary["systems"]["llama"]
    assert (summary["draws"], list(rates)) == (3, ["1", "2", "3"])
    # Of one seed: (0 + 1 + 2 + 3) / 3 of four; two of three draws hold a right one in 0, 2 / 3, 1 and 1; all: 3 / 4.
    assert rates["1"]["seeds"] == pytest.approx([1 / 2, 0])
    assert rates["2"]["seeds"] == pytest.approx([2 / 3, 0])
    assert rates["3"]["seeds"] == pytest.approx([3 / 4, 0])
    clean = {"mean": 0.5, "low": 0.4, "high": 0.6, "seeds": [0.5], "problems": 4}
    results = {"systems": {"llama": {"exact_match": clean}}, "baseline": None, "probes": {"pass_at_k": summary}}
    section = probe.section(results | {"schema": SCHEMA})
    assert isinstance(section, Section)
    (table,) = section.blocks
    assert isinstance(table, Table)
    ((_, lines),) = grids(table)
    assert lines == [
        ["system", "clean chain", "@1", "@2", "@3"],
        ["llama", "50.00 %", "25.00 %", "33.33 %", "37.50 %"],
    ]


def test_only_steps_that_are_drawn_from_the_vocabulary_can_be_noisy() -> None:
    probe = PassAtKProbe(2)
    assert probe.applies(tiny_word_system(), TASK)
    assert probe.applies(tiny_word_system(top_k=1), TASK)
    assert probe.applies(tiny_word_system(max_latents=1), TASK)
    assert not probe.applies(tiny_word_system(feed="hidden"), TASK), "hidden states have no weights for noise"
    assert not probe.applies(tiny_word_system(top_k=1, max_latents=0), TASK), "there is no chain"
    explicit = tiny_word_system(top_k=1)
    assert probe.applies(SoftThinking(noise="dirichlet").applied(explicit), TASK)
    assert not probe.applies(SoftThinking(filter_top_k=3).applied(explicit), TASK), "every draw would be the same"


def test_less_than_one_chain_is_refused() -> None:
    with pytest.raises(ValueError, match="0 chains per problem cannot be drawn") as caught:
        PassAtKProbe(0)
    assert "\n" not in str(caught.value)
