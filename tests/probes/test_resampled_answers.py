"""A pair whose chain stays as it is, and one whose chain depends on what is spoken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from planted_trees import right_rows, slanted_table, some, view_of
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.draw.page import to_html
from unspoken.evaluation.results import read_results
from unspoken.probes.probe import View
from unspoken.probes.resampled_answers import ResampledAnswersProbe
from unspoken.reasoning.system import Answer, System

PROBE = ResampledAnswersProbe()
COMMITTED = Path(__file__).parents[2] / "results"


def view(count: int = 8, **rest: Any) -> View:
    task, problems = some(count=count)
    table = slanted_table()
    right = right_rows(task, problems, table)
    return view_of(task, problems, table, rollout=right, forced=right, talker=True, **rest)


def planted(monkeypatch: pytest.MonkeyPatch, seen: list[Tensor], leak: float = 0.0) -> None:
    """Systems that draw four tokens of even scores; the first latent takes up so much of the first token."""

    def respond(self: System, input_ids: Tensor, attention_mask: Tensor, *, sample: Any) -> Answer:
        seen.append(input_ids)
        rows = len(input_ids)
        tokens = sample(torch.zeros(rows, 4, 20), torch.arange(rows), 0)
        latents = torch.ones(rows, 4, 5)
        latents[:, 0, 0] += leak * tokens[:, 0]
        mask = torch.ones(rows, 4, dtype=torch.bool)
        chain = LatentChain(latents=latents, mask=mask, stop=torch.zeros(rows, dtype=torch.long))
        return Answer(chain=chain, tokens=tokens, lengths=torch.full((rows,), 4))

    monkeypatch.setattr(System, "respond", respond)


def test_answers_change_and_chains_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    planted(monkeypatch, seen)
    reading = PROBE.measure(view(count=210))
    assert reading is not None
    assert reading["latents_identical"] is True
    # Four tokens out of twenty are the same by chance once in 160,000 times.
    assert reading["answers_changed"] == 1.0
    assert (reading["problems"], reading["talker_seeds"], len(seen)) == (200, 5, 5)
    assert reading["temperature"] == 20
    assert PROBE.summarise({"pair": [reading]}, baseline=None) == {"pair": reading}
    assert all(len(ids) == 200 for ids in seen)


def test_one_bit_of_one_latent_is_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, [], leak=2.0**-23)
    reading = PROBE.measure(view())
    assert reading is not None
    assert reading["latents_identical"] is False
    for contained in (False, True):
        summary = {"jepa-reasoner": reading | {"latents_identical": contained}}
        section = PROBE.section({"probes": {"resampled_answers": summary}})
        assert section is not None
        body = to_html(section.blocks)
        assert ('class="statement alarm"' in body) == (not contained)
        assert ("and every chain is identical, bit for bit" in body) == contained


def test_only_pairs_of_the_first_seed_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, [])
    assert PROBE.measure(view(first_seed=False)) is None
    task, problems = some()
    table = slanted_table()
    right = right_rows(task, problems, table)
    assert PROBE.applies(view().system, task)
    assert not PROBE.applies(view_of(task, problems, table, rollout=right, forced=right).system, task)


def test_several_talkers_are_named() -> None:
    results = read_results(COMMITTED / "tree-search-small.json")
    (entry,) = results["probes"]["resampled_answers"].values()
    section = PROBE.section({"probes": {"resampled_answers": {"one": entry, "talker_2": entry}}})
    assert section is not None
    body = to_html(section.blocks)
    assert "one, 5 seeds of the Talker" in body.replace("\xa0", " ")
    assert "talker 2, 5 seeds of the Talker" in body.replace("\xa0", " ")
    assert PROBE.section({"probes": {}}) is None
