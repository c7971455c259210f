"""The queue, failures and the end of the engine's thread."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from typing import Any

import pytest
from tiny_words import TASK
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.reasoning.engine import LatentStep, StopRule
from unspoken.reasoning.picking import Sampler
from unspoken.serving import Engine, Limits, Served
from unspoken.serving.batch import Job, Progress
from unspoken.serving.engine import Closing, QueueFull


def jobs_of(served: Served, count: int, words: int = 8) -> list[Job]:
    questions = [problem.question for problem in TASK.sample("test", range(count))]
    return [served.job(served.prompt(text, chat=True), words, Sampler()) for text in questions]


class Reports:
    """What was reported of each job."""

    def __init__(self) -> None:
        self.progress: dict[int, list[Progress]] = defaultdict(list)

    def __call__(self, index: int, progress: Progress) -> None:
        self.progress[index].append(progress)

    def over(self) -> set[int]:
        return {index for index, progress in list(self.progress.items()) if progress[-1].over}


def test_more_than_the_queue_holds_is_refused_whole_and_a_cancelled_row_makes_place(held: Any, wait: Any) -> None:
    reasoner, served = held
    engine, reports = Engine(reasoner, Limits(batch_size=2, queue=3)), Reports()
    engine.start()
    jobs = jobs_of(served, 4)
    engine.submit(jobs, reports)
    wait(lambda: engine.running == 2)
    assert engine.waiting == 2
    with pytest.raises(QueueFull):
        engine.submit(jobs_of(served, 2), reports)
    assert engine.waiting == 2
    engine.cancel(jobs[2:3])
    assert engine.waiting == 1
    engine.submit(jobs_of(served, 2), Reports())
    with pytest.raises(QueueFull):
        engine.submit(jobs_of(served, 1), reports)
    reasoner.let(1000)
    engine.close()
    assert reports.over() == {0, 1, 3}
    assert 2 not in reports.progress
    assert engine.counters.answers == 5


def test_closing_finishes_what_was_taken_and_refuses_the_rest(held: Any, wait: Any) -> None:
    reasoner, served = held
    engine, reports = Engine(reasoner, Limits(batch_size=1, queue=5)), Reports()
    engine.start()
    engine.submit(jobs_of(served, 3), reports)
    wait(lambda: engine.running == 1)
    assert engine.alive
    closing = threading.Thread(target=engine.close)
    closing.start()
    wait(lambda: not engine.alive)
    with pytest.raises(Closing):
        engine.submit(jobs_of(served, 1), reports)
    assert not reports.over()
    reasoner.let(1000)
    closing.join(timeout=10)
    assert reports.over() == {0, 1, 2}


class Broken:
    """A reasoner that fails once."""

    def __init__(self, reasoner: Any) -> None:
        self.reasoner = reasoner
        self.fails = True

    @property
    def stack(self) -> Any:
        return self.reasoner.stack

    def embed_prompt(self, input_ids: Tensor) -> Tensor:
        return self.reasoner.embed_prompt(input_ids)

    def step(self, hidden: Tensor) -> LatentStep:
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory")
        return self.reasoner.step(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.reasoner.logits(hidden)


def test_a_batch_that_fails_is_reported_and_the_next_one_is_answered(
    held: Any, wait: Any, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken(held[0].reasoner)
    engine, reports, second = Engine(broken, Limits()), Reports(), Reports()
    with caplog.at_level(logging.CRITICAL):
        engine.start()
        engine.submit(jobs_of(held[1], 2), reports)
        wait(lambda: reports.over() == {0, 1})
    assert [progress[-1].failure for progress in reports.progress.values()] == [
        "RuntimeError while computing the answer"
    ] * 2
    engine.submit(jobs_of(held[1], 2), second)
    wait(lambda: second.over() == {0, 1})
    assert not any(progress[-1].failure for progress in second.progress.values())
    assert (engine.counters.failures, engine.counters.answers) == (2, 2)
    engine.close()


def test_a_finished_chain_that_cannot_be_read_is_reported(
    held: Any, wait: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_chain: LatentChain) -> list[int]:
        raise IndexError("no such token")

    engine, reports = Engine(held[0].reasoner, Limits()), Reports()
    with caplog.at_level(logging.CRITICAL):
        engine.start()
        engine.submit([Job([5, 6, 7], StopRule(max_latents=3, fixed=True), fails)], reports)
        wait(lambda: reports.over() == {0})
    assert [progress.failure for progress in reports.progress[0]] == ["IndexError while computing the answer"]
    assert (engine.counters.failures, engine.counters.answers) == (1, 0)
    engine.close()


@pytest.mark.parametrize("name", ["batch_size", "queue", "prompt_tokens", "answer_tokens"])
def test_limits_are_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"the limit {name} is 0"):
        Limits(**{name: 0})
