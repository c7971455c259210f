"""Hidden states of chains beside the embedding table, from a system to its section."""

from __future__ import annotations

import json

import pytest
import torch
from tag_balance import unbalanced
from tiny_models import tiny_pair
from tiny_words import TASK, table_rows, tiny_word_system, word_view

from unspoken.draw.page import to_html
from unspoken.evaluation import distributions
from unspoken.methods import catalogue
from unspoken.probes.geometry import GeometryProbe

PROBE = GeometryProbe()


@torch.no_grad()
def test_every_chain_is_measured_and_averaged_over_seeds() -> None:
    readings, states, rows = [], [], []
    for seed, stretch in enumerate((1.0, 3.0)):
        system = tiny_word_system("llama", feed="hidden")
        table_rows(system).mul_(stretch)
        view = word_view(system, seed=seed, first_seed=not seed)
        readings.append(PROBE.measure(view))
        # The latents of this system are its hidden states.
        chain = view.graded.chain
        states.append(chain.latents[chain.mask])
        rows.append(table_rows(system))
    explicit = PROBE.measure(word_view(tiny_word_system(top_k=1, max_latents=4)))
    assert all(reading is not None for reading in (*readings, explicit))
    summary = PROBE.summarise({"hidden": readings, "cot": [explicit]}, baseline=None)  # type: ignore[list-item]
    json.dumps(summary, allow_nan=False)
    entry = summary["hidden"]
    assert entry["states"] == sum(len(cloud) for cloud in states) / 2
    for measure, clouds in (("hidden_norm", states), ("embedding_norm", rows)):
        norms = [cloud.norm(dim=-1).mean() for cloud in clouds]
        assert norms[0] != norms[1]
        assert entry[measure] == pytest.approx(float(sum(norms)) / 2, rel=1e-4), measure
    # The picture is that of the first system's first seed.
    assert [name for name, measured in summary.items() if "plane" in measured] == ["hidden"]
    plane = entry["plane"]
    assert len(plane["hidden"]) == len(states[0])
    assert len(plane["embeddings"]) == len(rows[0])
    values = [value for cloud in ("hidden", "embeddings") for point in plane[cloud] for value in point]
    assert values == [round(value, 4) for value in values] != [round(value, 3) for value in values]
    section = PROBE.section({"probes": {"geometry": summary}})
    assert section is not None
    body = to_html(section.blocks)
    assert unbalanced(body) == []
    assert body.count("<svg") == 1
    assert f"{entry['hidden_norm']:.2f}" in body


@torch.no_grad()
def test_a_model_without_any_variety_is_left_out() -> None:
    system = tiny_word_system(top_k=1)
    for parameter in system.model.parameters():
        parameter.zero_()
    assert PROBE.measure(word_view(system, 3)) is None


@pytest.mark.parametrize(("different", "measured"), [(1, False), (2, True)])
def test_two_different_states_are_measured(different: int, measured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.randn(different, 16)] * 3
    monkeypatch.setattr(distributions, "before_latents", lambda *_: states)
    reading = PROBE.measure(word_view(tiny_word_system(), 2))
    assert (reading is not None) == measured
    assert reading is None or reading["states"] == 6


def test_what_answers_at_once_has_no_hidden_states_of_a_chain() -> None:
    assert PROBE.measure(word_view(tiny_word_system(max_latents=0), 3)) is None


def test_latents_that_are_trained_to_be_rows_are_not_looked_at() -> None:
    reasoner = catalogue.systems(tiny_pair("mono"), stage="pair", max_answer=4)
    assert not any(PROBE.applies(system, TASK) for system in reasoner)
    assert PROBE.applies(tiny_word_system(feed="hidden"), TASK)
    assert PROBE.section({"probes": {}}) is None
