"""The probe around the ablation of the Talker, and its section."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tag_balance import unbalanced
from tiny_prose import PRIME, faithful, prose_task, system_of

from unspoken.draw.page import to_html
from unspoken.draw.table import Table, grids
from unspoken.evaluation.results import read_results
from unspoken.evaluation.teacher_forcing import read_back, sentence_pairs
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.probes.corruption import CONDITIONS, CorruptionProbe
from unspoken.probes.probe import View
from unspoken.tasks import ProseTask, TreeSearchConfig
from unspoken.tasks.prompt_format import PromptFormat

PROBE = CorruptionProbe()
COMMITTED = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ProseTask:
    return prose_task(tmp_path_factory.mktemp("prose"))


def view(model: JepaReasonerForCausalLM, task: ProseTask, **rest: Any) -> View:
    system, sentences = system_of(model), sentence_pairs(task, 10)
    return View(
        system=system,
        task=task,
        problems=sentences,
        answers=read_back(system, task, sentences, 10),
        prompt_format=PromptFormat(tokenizer=task.tokenizer),
        batch_size=10,
        **{"seed": 0} | rest,
    )


def test_readings_of_a_faithful_pair_and_their_section(task: ProseTask, monkeypatch: pytest.MonkeyPatch) -> None:
    views = [view(faithful(monkeypatch, variant), task) for variant in ("dual", "mono")]
    later = view(faithful(monkeypatch), task, seed=1, first_seed=False)
    readings = {one.system.name: [PROBE.measure(one)] for one in views}
    readings["dual"].append(PROBE.measure(later))
    summary = PROBE.summarise(readings, baseline=None)
    json.dumps(summary, allow_nan=False)
    assert (summary["sentences"], summary["prime"]) == (10, PRIME)
    for entry in summary["systems"].values():
        assert entry["conditions"]["none"]["right"]["mean"] == 1.0
        assert entry["conditions"]["other sentence"]["other"]["mean"] == 1.0
        assert entry["conditions"]["gaussian"]["change"]["high"] < -0.8
    # Examples are those of the first seed, from the middle of the sentences, each with its neighbour.
    assert [sample["system"] for sample in summary["samples"]] == ["dual"] * 3 + ["mono"] * 3
    first = summary["samples"][0]
    assert first["sentence"] == task.text(views[0].problems[4])
    assert first["other"] == task.text(views[0].problems[5])
    assert first["decoded"]["none"] == first["sentence"]
    assert first["decoded"]["random prime"] != first["sentence"]
    section = PROBE.section({"probes": {"corruption": summary}})
    assert section is not None
    assert unbalanced(to_html(section.blocks)) == []
    table = section.blocks[0]
    assert isinstance(table, Table)
    assert [row[0].text for row in table.rows] == list(CONDITIONS)
    assert [title.partition(":")[0] for title, _ in grids(table)] == ["dual", "mono"]
    # A Mono-Talker is given no prime, so a terminal has no row of it.
    assert [len(lines) for _, lines in grids(table)] == [6, 5]


def test_the_probe_is_for_pairs_on_running_text(task: ProseTask, monkeypatch: pytest.MonkeyPatch) -> None:
    system = system_of(faithful(monkeypatch))
    assert PROBE.applies(system, task)
    assert not PROBE.applies(system, TreeSearchConfig().build())


@pytest.mark.parametrize("name", ["prose-small", "prose-causal-small"])
def test_committed_runs_have_their_section(name: str) -> None:
    results = read_results(COMMITTED / f"{name}.json")
    section = PROBE.section(results)
    assert section is not None
    assert unbalanced(to_html(section.blocks)) == []
    assert PROBE.section(results | {"probes": {}}) is None
