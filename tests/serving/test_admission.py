"""Which jobs join a batch, how much of a prompt is read between two steps, and what an engine counts and refuses."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tiny_models import PAD, tiny_language_model
from tiny_words import TASK

from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import StopRule
from unspoken.reasoning.picking import Sampler
from unspoken.reasoning.row import AnswerDecoding
from unspoken.serving import Engine, Limits, Served
from unspoken.serving.batch import Batch, Job, Progress
from unspoken.serving.engine import Counters, QueueFull
from unspoken.serving.server import _metrics

# Five steps, a marker of two tokens and six tokens of an answer: 13 positions after a prompt.
STOP, ANSWER = (
    StopRule(max_latents=5, fixed=True),
    AnswerDecoding(marker=(7, 14), max_tokens=6, end_ids=(99,), pad_id=PAD),
)
AFTER = 13


@pytest.fixture(scope="module")
def method() -> CausalLMReasoner:
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(7, 14), top_k=10)
    return CausalLMReasoner(model=tiny_language_model("llama"), settings=settings)


def job_of(length: int) -> Job:
    job = Job([3] * length, STOP, ANSWER)
    job.report = lambda _: None
    return job


def waiting(method: CausalLMReasoner, *requests: list[int], **limits: int) -> Engine:
    """An engine that was not started, with requests of jobs of these lengths in its queue."""
    engine = Engine(method, Limits(**{"batch_size": 32, "batch_tokens": 2**14, "piece_tokens": 512, **limits}))
    for lengths in requests:
        engine.submit([job_of(length) for length in lengths], lambda *_: None)
    return engine


def admitted(engine: Engine) -> list[int]:
    return sorted(len(job.prompt) for job in engine._admitted())


# --- who joins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "most"), [(1, 1), (3, 3), (4, 3), (8, 6), (32, 24)])
def test_one_request_has_three_quarters_of_the_places(method: CausalLMReasoner, batch_size: int, most: int) -> None:
    assert len(admitted(waiting(method, [3] * 40, batch_size=batch_size))) == most
    both = waiting(method, [3] * 40, [4] * 40, batch_size=batch_size)
    assert len(admitted(both)) == batch_size


def test_one_request_has_three_quarters_of_the_positions(method: CausalLMReasoner) -> None:
    # Jobs of 16 positions each, of which 4 fill the batch.
    positions = 4 * (3 + AFTER)
    assert admitted(waiting(method, [3] * 9, batch_tokens=positions)) == [3] * 3
    assert admitted(waiting(method, [3] * 9, batch_tokens=positions - 1)) == [3] * 3
    assert admitted(waiting(method, [3] * 9, batch_tokens=positions - 4)) == [3] * 2
    assert admitted(waiting(method, [3] * 9, [3] * 9, batch_tokens=positions)) == [3] * 4
    assert admitted(waiting(method, [3] * 9, [3] * 9, batch_tokens=positions - 1)) == [3] * 3
    # Every row counts with the positions of the longest.
    assert admitted(waiting(method, [19], [3] * 9, batch_tokens=2 * 32)) == [3, 19]
    assert admitted(waiting(method, [19], [3] * 9, batch_tokens=2 * 32 - 1)) == [19]
    # A job that is too long for the batch has it for itself.
    assert admitted(waiting(method, [50], [50], batch_tokens=20)) == [50]


def test_prompts_that_are_read_together_stay_within_a_piece(method: CausalLMReasoner) -> None:
    assert admitted(waiting(method, [3] * 9, piece_tokens=9)) == [3] * 3
    assert admitted(waiting(method, [3] * 9, piece_tokens=8)) == [3] * 2
    assert admitted(waiting(method, [2, 4, 4], piece_tokens=8)) == [2, 4]
    assert admitted(waiting(method, [8, 1], piece_tokens=8)) == [8]
    assert admitted(waiting(method, [1, 8], piece_tokens=8)) == [1]
    # A prompt longer than a piece is read by itself, one at a time, beside short ones.
    assert admitted(waiting(method, [9, 9], [3, 3, 3], piece_tokens=8)) == [3, 3, 9]


def test_rows_of_the_batch_count_with_those_that_join(method: CausalLMReasoner) -> None:
    engine = waiting(method, [3] * 6, [3] * 6, batch_size=4)
    engine._batch.join(engine._admitted())
    assert len(engine._batch.rows) == 4
    assert admitted(engine) == []
    engine._batch.clear()
    assert len(admitted(engine)) == 4


def test_a_long_job_lets_short_ones_pass_for_five_seconds(
    method: CausalLMReasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for seconds, passing in ((5.0, [3]), (5.25, [])):
        engine = waiting(method, [47], batch_tokens=4 * 60)
        engine._batch.join(engine._admitted())
        now[0] = 1000.0
        for length in (108, 3):  # with the long one, two rows of 121 positions are too many
            engine.submit([job_of(length)], lambda *_: None)
        now[0] += seconds
        assert admitted(engine) == passing


# --- how much is read ------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes in the stack alone: so much for each token of prompts, and for each step of rows."""

    def __init__(self, method: Any, monkeypatch: pytest.MonkeyPatch, *, token: float, step: float) -> None:
        self.now, self.token, self.step = 0.0, token, step
        forward = method.stack.forward

        def timed(*arguments: Any, **named: Any) -> Any:
            rows, columns = named["inputs_embeds"].shape[:2]
            self.now += rows * columns * self.token if columns > 1 else self.step
            return forward(*arguments, **named)

        monkeypatch.setattr(method.stack, "forward", timed)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def test_a_piece_takes_as_long_as_a_step_of_the_rows(method: CausalLMReasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(method, monkeypatch, token=2**-10, step=2**-3)
    batch = Batch(method)
    assert batch.budget == 512
    batch.join([job_of(40), job_of(20)])  # read together, both as long as the longer one
    batch.step()
    assert batch.budget == 128
    clock.step = 2**-2
    batch.step()
    assert batch.budget == int(0.8 * 128 + 0.2 * 256)
    clock.step = 2**10
    batch.step()
    assert batch.budget == 512  # no more than a piece


def test_a_piece_has_at_least_32_tokens(method: CausalLMReasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(method, monkeypatch, token=2**-10, step=2**-8)
    batch = Batch(method, 100)
    batch.join([job_of(40)])
    batch.step()
    assert batch.budget == 32
    batch.join([job_of(100)])  # in one piece
    assert not batch.reads_long
    batch.join([job_of(101)])
    assert batch.reads_long
    # 32 tokens at a time: the fourth piece is the last of it.
    clock.step = 2**-20
    for _ in range(3):
        batch.step()
        assert batch.reads_long
    batch.step()
    assert not batch.reads_long
    batch.clear()
    assert batch.budget == 100  # no row waits for its next step


def test_the_length_of_a_job_is_all_that_the_cache_may_hold() -> None:
    assert job_of(3).length == 3 + AFTER
    silent = Job([3] * 4, StopRule(max_latents=7), lambda _: [1])
    assert silent.length == 4 + 7


def test_a_job_fails_once() -> None:
    progress: list[Progress] = []
    job = Job([3], STOP, ANSWER)
    job.report = progress.append
    job.fail("out of memory")
    job.fail("again")
    assert progress == [Progress(tokens=(), over=True, latents=0, capped=False, failure="out of memory")]


# --- the engine ------------------------------------------------------------------------------------------------------


def test_a_queue_takes_as_many_answers_and_calls_as_it_has_places(method: CausalLMReasoner) -> None:
    engine = waiting(method, [3] * 4, batch_size=2, queue=3)
    with pytest.raises(QueueFull):
        engine.submit([job_of(3), job_of(3)], lambda *_: None)
    engine.submit([job_of(3)], lambda *_: None)
    assert (engine.waiting, engine.running, engine.alive) == (5, 0, False)
    with pytest.raises(QueueFull):
        engine.submit([job_of(3)], lambda *_: None)
    calls = [engine.call(lambda: 7) for _ in range(3)]
    with pytest.raises(QueueFull):
        engine.call(lambda: 7)
    assert engine._thread.daemon  # a program that forgets it can end
    engine.start()
    assert [call.result(20) for call in calls] == [7, 7, 7]
    engine.close()
    assert engine.counters.answers == 5


def test_what_was_computed_is_counted(served: Served) -> None:
    engine = Engine(served.system.reasoner, Limits())
    assert (
        engine.counters
        == Counters()
        == Counters(answers=0, failures=0, prompt_tokens=0, answer_tokens=0, latent_steps=0, passes=0, seconds=0.0)
    )
    questions = [problem.question for problem in TASK.sample("test", range(3))]
    jobs = [served.job(served.prompt(question, chat=True), 8, Sampler()) for question in questions]
    progress: list[Progress] = []
    began = time.monotonic()
    engine.submit(jobs, lambda _, one: progress.append(one))
    engine.start()
    engine.close()
    last = [one for one in progress if one.over]
    counters = engine.counters
    assert (counters.answers, counters.failures) == (3, 0)
    assert counters.prompt_tokens == sum(len(job.prompt) for job in jobs)
    assert counters.answer_tokens == sum(len(one.tokens) for one in progress) > 3
    assert counters.latent_steps == sum(one.latents for one in last) > 0
    # All prompts are read in the first pass; the others make a step, read the marker, or give a token.
    assert counters.passes == max(one.latents for one in last) + 8
    assert 0 < counters.seconds < 3 * (time.monotonic() - began)


def test_an_answer_that_is_complete_early_counts_as_answered(method: CausalLMReasoner) -> None:
    engine = waiting(method, [3, 4])
    job, _ = engine._admitted()
    engine.finish(job)
    counters = engine.counters
    assert (counters.answers, counters.failures, counters.prompt_tokens, job.cancelled) == (1, 0, 3, True)


def test_the_end_of_an_engine_is_waited_for_ten_seconds(
    method: CausalLMReasoner, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, waited = waiting(method), list[float]()
    monkeypatch.setattr(engine._thread, "join", waited.append)
    engine.close()
    assert waited == [10]


def test_counters_are_written_as_prometheus_reads_them(method: CausalLMReasoner) -> None:
    engine = waiting(method, [3, 3])
    engine.counters = Counters(
        answers=1, failures=2, prompt_tokens=3, answer_tokens=4, latent_steps=5, passes=6, seconds=1.23456789
    )
    lines = _metrics(engine, {404: 2, 200: 7}).split("\n")  # type: ignore[arg-type]
    assert lines[:4] == [
        "# HELP unspoken_http_responses_total Responses by status.",
        "# TYPE unspoken_http_responses_total counter",
        'unspoken_http_responses_total{code="200"} 7',
        'unspoken_http_responses_total{code="404"} 2',
    ]
    assert lines[4:7] == [
        "# HELP unspoken_answers_total Answers that were completed.",
        "# TYPE unspoken_answers_total counter",
        "unspoken_answers_total 1",
    ]
    assert [line for line in lines[4:] if line and not line.startswith("#")] == [
        "unspoken_answers_total 1",
        "unspoken_failures_total 2",
        "unspoken_prompt_tokens_total 3",
        "unspoken_answer_tokens_total 4",
        "unspoken_latent_steps_total 5",
        "unspoken_stack_passes_total 6",
        "unspoken_answer_seconds_total 1.234568",
        "unspoken_answers_running 0",
        "unspoken_answers_waiting 2",
    ]
    assert [line for line in lines if line.endswith("gauge")] == [
        "# TYPE unspoken_answers_running gauge",
        "# TYPE unspoken_answers_waiting gauge",
    ]
    assert lines[-1] == ""
