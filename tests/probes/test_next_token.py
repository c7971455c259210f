"""Stages that only read, on rows whose readings are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tag_balance import unbalanced
from tiny_models import tiny_language_model
from tiny_prose import VOCABULARY, faithful, prose_task, system_of
from transformers import PreTrainedModel

from unspoken.draw.page import to_html
from unspoken.evaluation.results import read_results
from unspoken.evaluation.teacher_forcing import sentence_pairs
from unspoken.methods import catalogue
from unspoken.probes import next_token
from unspoken.probes.next_token import NextTokenProbe
from unspoken.probes.probe import View
from unspoken.tasks import ProseTask, TreeSearchConfig
from unspoken.tasks.prompt_format import PromptFormat

PROBE = NextTokenProbe()
COMMITTED = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ProseTask:
    return prose_task(tmp_path_factory.mktemp("prose"))


def view(model: PreTrainedModel, task: ProseTask, **rest: Any) -> View:
    return View(
        system=catalogue.systems(model, stage="sst", max_answer=32)[0],
        task=task,
        problems=sentence_pairs(task, 6),
        answers=None,
        prompt_format=PromptFormat(tokenizer=task.tokenizer),
        batch_size=4,
        seed=0,
        **rest,
    )


def even(vocabulary: int = VOCABULARY) -> PreTrainedModel:
    """A language model to which all tokens are as likely."""
    model = tiny_language_model("unspoken", vocab_size=vocabulary)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    return model


def test_a_reasoner_that_names_every_token_is_always_right(task: ProseTask, monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = faithful(monkeypatch).reasoner
    monkeypatch.setattr(reasoner, "nearest_row", lambda latents: latents.argmax(dim=-1))
    reading = PROBE.measure(view(reasoner, task))
    assert reading is not None
    assert reading["tokens"] == 6 * 24
    assert reading["accuracy"].tolist() == [1.0] * 6
    assert "loss" not in reading


def test_even_scores_have_the_perplexity_of_the_vocabulary(task: ProseTask) -> None:
    reading = PROBE.measure(view(even(), task))
    assert reading is not None
    assert reading["loss"] == pytest.approx([math.log(VOCABULARY)] * 6, abs=1e-4)
    perfect = {"tokens": 6 * 24, "accuracy": np.ones(6)}
    summary = PROBE.summarise({"pretrain": [reading, reading], "sst": [perfect]}, baseline=None)
    json.dumps(summary, allow_nan=False)
    assert (summary["rows"], summary["tokens"]) == (6, 144)
    perplexity = summary["systems"]["pretrain"]["perplexity"]
    assert [perplexity[key] for key in ("mean", "low", "high")] == pytest.approx([VOCABULARY] * 3, rel=1e-4)
    assert summary["systems"]["sst"] == {"accuracy": {"mean": 1.0, "low": 1.0, "high": 1.0}}
    section = PROBE.section({"probes": {"next_token": summary}})
    assert section is not None
    assert unbalanced(to_html(section.blocks)) == []


def test_intervals_are_of_two_thousand_draws_and_one_seed_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, plain = list[int](), next_token.bootstrap_means

    def watched(values: Any, *, draws: int) -> Any:
        asked.append(draws)
        return plain(values, draws=draws)

    monkeypatch.setattr(next_token, "bootstrap_means", watched)
    summary = PROBE.summarise({"sst": [{"tokens": 144, "accuracy": np.ones(6)}]}, baseline=None)
    assert (asked, summary["rows"], summary["tokens"]) == ([2000], 6, 144)


def test_there_may_be_more_texts_than_sentences(task: ProseTask) -> None:
    for most, rows in ((9, 9), (10_000, task.size("test"))):
        reading = PROBE.measure(view(even(), task, most=most))
        assert reading is not None
        assert len(reading["accuracy"]) == rows


def test_the_probe_is_for_stages_that_only_read(task: ProseTask, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = faithful(monkeypatch)
    assert not PROBE.applies(system_of(pair), task)
    reasoner = view(pair.reasoner, task)
    assert PROBE.applies(reasoner.system, task)
    assert not PROBE.applies(reasoner.system, TreeSearchConfig().build())
    assert PROBE.measure(view(pair.reasoner, task, as_trained=False)) is None


def test_a_committed_run_has_its_section() -> None:
    results = read_results(COMMITTED / "prose-small.json")
    section = PROBE.section(results)
    assert section is not None
    assert "on 400 test texts of 51,200 tokens" in to_html(section.blocks)
    assert PROBE.section(results | {"probes": {}}) is None
