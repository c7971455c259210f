"""Every kind of recipe trains, is measured, answers and is served on a device that is not the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pretend_jobs
import pytest
from pretend_jobs import Outcome
from pretend_process import Elsewhere, elsewhere

# Waits of one training step by the kind of its stage, and of one step of decoding. They are to become fewer: whoever
# saves some lowers these.
TRAINING = {"trees": 8, "strings": 13, "prose": 9, "words": 70}
THINKING, ANSWERING, SERVING_THINKING, SERVING_ANSWERING = 2, 7, 4, 60


@pytest.fixture(scope="module")
def there() -> Iterator[Elsewhere]:
    with elsewhere() as call:
        yield call


def _check(outcome: Outcome, name: str) -> None:
    assert not outcome.unlike_cpu
    assert outcome.devices == {"pretend"}
    assert outcome.served == outcome.answers
    print(name, json.dumps(outcome.waits, indent=1))  # what is left to save, for whoever runs this alone
    steps = {stage: count for stage, (count, _) in outcome.waits.items() if count > TRAINING[name]}
    assert not steps, f"training steps wait more often than before: {steps}"


def test_tree_search(there: Elsewhere, tmp_path: Path) -> None:
    outcome = there(pretend_jobs.run, "trees", tmp_path)
    _check(outcome, "trees")
    assert outcome.systems == ["jepa-reasoner", "jepa-reasoner, nearest row"]
    assert list(outcome.answers) == ["talker"]


def test_the_grammar(there: Elsewhere, tmp_path: Path) -> None:
    outcome = there(pretend_jobs.run, "strings", tmp_path)
    _check(outcome, "strings")
    assert outcome.systems == ["coconut", "jepa-reasoner", "jepa-reasoner, nearest row"]


def test_prose(there: Elsewhere, tmp_path: Path) -> None:
    outcome = there(pretend_jobs.run, "prose", tmp_path)
    _check(outcome, "prose")
    assert outcome.systems == ["talker"]


# Small enough to be quick, with chains and answers long enough to be altered.
FEW = (
    "evaluation.problems=3",
    "evaluation.validation_problems=3",
    "evaluation.batch_size=3",
    "evaluation.max_latents=4",
    "evaluation.max_answer=3",
    "stages.labels.objective.rows=24",
    "stages.hidden_labels.objective.rows=24",
)
# The quick test leaves out stages that are others with other choices; the slow one trains them, and leaves out what the
# quick one has trained and it does not need.
SLOW_STAGES = ("answer_only", "hidden_encoder", "hidden_labels", "hidden_autonomy", "colar_sample", "colar_mean")
QUICK_STAGES = (
    *("sst", "talker", "first", "second", "codi", "colar", "icot", "pccot", "sim_cot", "loop", "lotus", "mux"),
    *("pause", "filler"),
)


def test_word_problems(there: Elsewhere, tmp_path: Path) -> None:
    outcome = there(pretend_jobs.run, "words", tmp_path, FEW, SLOW_STAGES)
    _check(outcome, "words")
    assert outcome.systems == [
        "autonomy",
        "codi",
        "colar",
        "cot",
        "filler",
        "icot",
        "lotus",
        "mux",
        "pause",
        "pccot",
        "second",
        "sim_cot",
        "soft thinking",
        "talker",
        "talker, nearest row",
    ]
    latent = {"autonomy", "codi", "colar", "icot", "lotus", "mux", "pccot", "second", "sim_cot", "talker"}
    assert set(outcome.answers) == {"cot", "filler", "pause", *latent}


@pytest.mark.slow
def test_word_problems_with_the_other_choices_and_all_that_is_measured_on_request(
    there: Elsewhere, tmp_path: Path
) -> None:
    outcome = there(pretend_jobs.run, "words", tmp_path, FEW, QUICK_STAGES)
    _check(outcome, "words")
    assert {"answer_only", "autonomy", "colar_mean", "colar_sample", "cot", "hidden_autonomy"} < set(outcome.systems)
    found = there(pretend_jobs.look_inside, tmp_path)
    assert {"cot", "autonomy"} <= set(found["geometry"])
    assert {"cot", "autonomy"} <= set(found["pass_at_k"]["systems"])


@pytest.mark.parametrize("there_first", [True, False], ids=["begun there", "begun on the CPU"])
def test_a_stage_goes_on_on_another_device(there: Elsewhere, tmp_path: Path, there_first: bool) -> None:
    assert there(pretend_jobs.resume, tmp_path, there_first)


def test_one_process_uses_one_gpu_of_several(there: Elsewhere, tmp_path: Path) -> None:
    assert there(pretend_jobs.several_gpus, tmp_path)


def test_a_step_of_decoding_waits_no_more_often_than_before(there: Elsewhere) -> None:
    for limit, work, *given in (
        (THINKING, pretend_jobs.thinking_waits),
        (ANSWERING, pretend_jobs.answering_waits),
        (SERVING_THINKING, pretend_jobs.serving_waits, 16, True),
        (SERVING_ANSWERING, pretend_jobs.serving_waits, 16, False),
    ):
        count, lines = there(work, *given)
        print(work.__name__, *given, count, json.dumps(lines, indent=1))
        assert count <= limit, lines
