"""Prompts that are read in pieces are answered as if they were read at once, and nobody waits for all of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conformance import CLOSE
from tiny_hub import tiny_hub_model
from tiny_models import PAD, tiny_language_model, tiny_pair

from unspoken.chain import LatentChain
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import StopRule
from unspoken.reasoning.row import AnswerDecoding
from unspoken.serving.batch import Batch, Job, Progress
from unspoken.serving.engine import Engine, Limits
from unspoken.serving.queue import Queue

LENGTHS = (23, 4, 17, 9, 2, 30)
ANSWER = AnswerDecoding(marker=(7, 14), max_tokens=6, end_ids=(99,), pad_id=PAD)
STOP = StopRule(max_latents=5, fixed=True)


def prompts_of(vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]


def answered(method: Any, speaker: Any, prompts: list[list[int]], piece: int) -> list[tuple[list[int], LatentChain]]:
    """Tokens and chains of prompts that join one after another."""
    batch, jobs, tokens = Batch(method, piece), list[Job](), list[list[int]]()
    for prompt in prompts:
        answer_ids: list[int] = []

        def report(progress: Progress, answer_ids: list[int] = answer_ids) -> None:
            assert not progress.failure
            answer_ids.extend(progress.tokens)

        job = Job(prompt, STOP, speaker, keep_chain=True)
        job.report = report
        jobs.append(job)
        tokens.append(answer_ids)
        batch.join([job])
        batch.step()
    for _ in range(300):
        if not batch.rows:
            break
        batch.step()
    chains = [job.chain for job in jobs]
    assert all(chain is not None for chain in chains)
    return [(answer_ids, chain) for answer_ids, chain in zip(tokens, chains, strict=True) if chain is not None]


def method_of(kind: str) -> tuple[Any, Any, int]:
    if kind == "pair":
        pair = tiny_pair()
        return pair.reasoner, lambda chain: pair.speak(chain)[0].tolist(), 20
    hub, vocabulary = kind in ("gemma", "qwen3"), 60
    model = tiny_hub_model(kind) if hub else tiny_language_model(kind)
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(7, 14), top_k=10)
    return CausalLMReasoner(model=model, settings=settings), ANSWER, vocabulary if hub else 20


@pytest.mark.parametrize("kind", ["unspoken", "llama", "gpt2", "qwen3", "gemma", "pair"])
def test_tokens_and_chains_are_those_of_prompts_that_are_read_at_once(kind: str) -> None:
    method, speaker, vocabulary = method_of(kind)
    prompts = prompts_of(vocabulary)
    at_once = answered(method, speaker, prompts, piece=1000)
    ends = torch.stack([chain.latents[0, -1] for _, chain in at_once])
    assert torch.cdist(ends, ends).add(torch.eye(len(ends))).min() > 1e-3  # a prompt read wrongly would be seen
    for piece in (1, 3, 8):
        in_pieces = answered(method, speaker, prompts, piece)
        assert [tokens for tokens, _ in in_pieces] == [tokens for tokens, _ in at_once]
        for (_, chain), (_, expected) in zip(in_pieces, at_once, strict=True):
            torch.testing.assert_close(chain.latents, expected.latents, **CLOSE)
            assert torch.equal(chain.stop, expected.stop)


class Watched:
    """A method that notes how many columns its stack reads at once."""

    def __init__(self, method: Any) -> None:
        self.method, self.columns = method, list[int]()
        forward = method.stack.forward

        def noted(*args: Any, **named: Any) -> Any:
            self.columns.append(named["inputs_embeds"].shape[0] * named["inputs_embeds"].shape[1])
            return forward(*args, **named)

        method.stack.forward = noted


def job_of(prompt: list[int], request: object = None) -> Job:
    job = Job(prompt, STOP, ANSWER)
    job.report, job.request = lambda _: None, request
    return job


def test_no_pass_reads_more_than_a_piece_and_short_prompts_go_on_beside_long_ones() -> None:
    method, _, _ = method_of("llama")
    watched, batch = Watched(method), Batch(method, 8)
    long, short = [job_of([3] * 40) for _ in range(3)], job_of([3, 4, 5])
    batch.join(long)
    batch.step()
    batch.join([short])
    for _ in range(1 + 5 + 2 + 6):  # its prompt was read when it joined; its chain, marker and answer follow
        batch.step()
    assert short not in batch.rows
    assert long[1] in batch.rows
    while batch.rows:
        batch.step()
    assert max(watched.columns) <= 8


def test_a_row_that_is_given_up_while_it_is_read_disturbs_nobody() -> None:
    method, _, _ = method_of("llama")
    batch, jobs = Batch(method, 8), [job_of([3] * 40) for _ in range(4)]
    batch.join(jobs)
    batch.step()
    jobs[0].cancelled = jobs[2].cancelled = True
    for _ in range(100):
        batch.step()
    assert not batch.rows
    assert [len(job.tokens) for job in jobs] == [0, 6, 0, 6]


def taken(queue: Queue, count: int, fits: Any = lambda _: True) -> list[Any]:
    jobs = [queue.take(fits) for _ in range(count)]
    return [None if job is None else job.request for job in jobs]


def test_requests_take_turns() -> None:
    queue = Queue()
    for request, count in (("a", 4), ("b", 1), ("c", 2)):
        queue.add([job_of([3], request) for _ in range(count)])
    assert len(queue) == 7
    assert taken(queue, 8) == ["a", "b", "c", "a", "c", "a", "a", None]


def test_a_job_that_does_not_fit_lets_others_pass_unless_they_must_wait_for_it() -> None:
    queue, patient = Queue(), [True]
    queue.add([job_of([3] * 50, "large")])
    queue.add([job_of([3], "small") for _ in range(5)])

    def fits(job: Job) -> bool | None:
        return True if len(job.prompt) < 10 else False if patient[0] else None

    assert taken(queue, 2, fits) == ["small"] * 2
    patient[0] = False
    assert taken(queue, 1, fits) == [None]
    assert taken(queue, 2) == ["large", "small"]


def test_a_batch_is_filled_by_tokens_and_not_by_one_request() -> None:
    method, _, _ = method_of("llama")
    engine = Engine(method, Limits(batch_size=8, batch_tokens=400, piece_tokens=100))
    engine.submit([job_of([3] * 47) for _ in range(8)], lambda *_: None)  # 60 positions with what follows
    engine.submit([job_of([3] * 3)], lambda *_: None)
    for _ in range(10):
        engine._batch.join(engine._admitted())
    # A sixth long one would leave others less than a quarter of the tokens.
    assert sorted(len(job.prompt) for job in engine._batch.rows) == [3] + [47] * 5
    engine.submit([job_of([3] * 47)], lambda *_: None)
    assert engine._admitted() == []  # seven rows of 60 positions are too many
    assert engine.waiting == 4


def test_one_long_prompt_is_read_at_a_time_and_short_ones_pass() -> None:
    method, _, _ = method_of("llama")
    engine = Engine(method, Limits(piece_tokens=20))
    engine.submit([job_of([3] * 47) for _ in range(8)], lambda *_: None)
    engine.submit([job_of([3] * 3)], lambda *_: None)
    first = engine._admitted()
    assert [len(job.prompt) for job in first] == [47, 3]
    engine._batch.join(first)
    assert engine._admitted() == []
    while engine._batch.reads_long:
        engine._batch.step()
    assert [len(job.prompt) for job in engine._admitted()] == [47]
