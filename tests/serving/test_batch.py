"""Rows that come and go are answered as they would be alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from conformance import CLOSE
from tiny_models import FAMILIES, PAD, prompts, tiny_language_model, tiny_pair, tiny_reasoner
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import LatentStep, StopRule, respond, rollout
from unspoken.reasoning.picking import Sampler
from unspoken.reasoning.row import AnswerDecoding
from unspoken.serving.batch import Batch, Job, Progress

CAP, WORDS = 8, 6
ROWS = [prompt[start:] for prompt, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]
ENDS = {"unspoken": 17, "llama": 7, "qwen2": 13, "gpt2": 19}  # first tokens of markers that chains run into


def spread(rows: list[list[int]]) -> int:
    """The token that rows run into at the most different places: as an end, it makes them differ."""
    return max(range(20), key=lambda token: len({row.index(token) for row in rows if token in row}))


def case_of(family: str, attention: str = "eager") -> tuple[CausalLMReasoner, AnswerDecoding]:
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(ENDS[family], 14), top_k=10)
    reasoner = CausalLMReasoner(model=tiny_language_model(family, attention), settings=settings)
    endless = AnswerDecoding(marker=settings.end_ids, max_tokens=WORDS, end_ids=(99,), pad_id=PAD)
    answer_ids = [alone(reasoner, row, StopRule(max_latents=CAP), endless)[0] for row in ROWS]
    return reasoner, replace(endless, end_ids=(spread(answer_ids),))


def alone(reasoner: Any, prompt: Tensor, stop: StopRule, decoding: AnswerDecoding) -> tuple[list[int], int]:
    """What the engine makes of one row: its words and its steps."""
    chain, answer_ids = respond(reasoner, prompt[None], None, stop, decoding)
    return answer_ids[0].tolist(), int(chain.lengths[0])


class Reported:
    """A row and everything it reported."""

    def __init__(self, prompt: Tensor, speaker: Any, stop: StopRule) -> None:
        self.progress: list[Progress] = []
        self.row = Job(prompt.tolist(), stop, speaker)
        self.row.report = self.progress.append

    @property
    def words(self) -> list[int]:
        return [word for progress in self.progress for word in progress.tokens]


def finish(batch: Batch) -> None:
    for _ in range(100):
        if not batch.rows:
            return
        batch.step()
    raise AssertionError("rows that never end")


@pytest.mark.parametrize(("family", "attention"), [*product(FAMILIES, ["eager"]), ("llama", "sdpa")])
@pytest.mark.parametrize(
    "stop", [StopRule(max_latents=CAP), StopRule(max_latents=3, fixed=True), StopRule(max_latents=0)]
)
def test_a_row_that_joins_late_is_answered_as_it_would_be_alone(family: str, attention: str, stop: StopRule) -> None:
    reasoner, decoding = case_of(family, attention)
    expected = [alone(reasoner, row, stop, decoding) for row in ROWS]
    if stop.max_latents == CAP:
        assert len({steps for _, steps in expected}) >= 3
        assert len({len(words) for words, _ in expected}) >= 2
    batch, reported = Batch(reasoner), [Reported(row, decoding, stop) for row in ROWS]
    # The longest prompt comes last, when the others have thought and spoken.
    for coming in ([1, 3], [], [], [2], [5], [], [], [0, 4]):
        batch.join([reported[index].row for index in coming])
        batch.step()
    finish(batch)
    assert [one.words for one in reported] == [words for words, _ in expected]
    for one, (words, steps) in zip(reported, expected, strict=True):
        assert [progress.over for progress in one.progress] == [False] * (len(words) - 1) + [True]
        assert one.progress[-1].latents == steps
        assert one.progress[-1].capped == (words[-1] not in decoding.end_ids)
    assert [one.row.chain for one in reported] == [None] * len(ROWS)  # nobody asked for them


def test_every_row_draws_from_its_own_generator() -> None:
    reasoner, decoding = case_of("llama")
    stop, jobs, expected = StopRule(max_latents=CAP), [], []
    for index, row in enumerate(ROWS):
        for answers in (jobs, expected):
            drawing = replace(decoding, sample=Sampler(1.0, torch.Generator().manual_seed(index)))
            answers.append(Reported(row, drawing, stop) if answers is jobs else alone(reasoner, row, stop, drawing)[0])
    batch = Batch(reasoner)
    for joining in ([2, 5], [0], [], [1, 3, 4]):
        batch.join([jobs[index].row for index in joining])
        batch.step()
    finish(batch)
    assert [one.words for one in jobs] == expected
    assert expected != [alone(reasoner, row, stop, decoding)[0] for row in ROWS]


@pytest.mark.parametrize("kind", ["pair", "reasoner"])
def test_a_finished_chain_is_handed_over_as_the_engine_writes_it(kind: str) -> None:
    pair = tiny_pair() if kind == "pair" else None
    method = tiny_reasoner() if pair is None else pair.reasoner
    stop, chains = StopRule(max_latents=CAP), dict[int, LatentChain]()
    endless = [rollout(method, row[None], None, StopRule(max_latents=CAP, fixed=True)) for row in ROWS]
    method.config.eos_token_id = spread([method.read_out(chain)[0].tolist() for chain in endless])

    def keep(index: int) -> Any:
        def speak(chain: LatentChain) -> list[int]:
            chains[index] = chain
            return (method.read_out(chain) if pair is None else pair.speak(chain))[0].tolist()

        return speak

    batch, reported = Batch(method), [Reported(row, keep(index), stop) for index, row in enumerate(ROWS)]
    for coming in ([3, 0], [1], [2, 4], [5]):
        batch.join([reported[index].row for index in coming])
        batch.step()
    finish(batch)
    lengths = set()
    for index, prompt in enumerate(ROWS):
        expected = rollout(method, prompt[None], None, stop)
        lengths.add(int(expected.lengths[0]))
        steps = int(expected.lengths[0])
        torch.testing.assert_close(chains[index].latents, expected.latents[:, :steps], **CLOSE)
        assert torch.equal(chains[index].stop, expected.stop)
        words = method.read_out(expected) if pair is None else pair.speak(expected)
        assert reported[index].words == words[0, :steps].tolist()
        assert len(reported[index].progress) == 1
    assert len(lengths) >= 3


@pytest.mark.parametrize("steps", [0, 1])
def test_a_chain_that_is_kept_has_all_its_steps_however_few(steps: int) -> None:
    reasoner, decoding = case_of("llama")
    job, batch = (
        Job(ROWS[0].tolist(), StopRule(max_latents=steps, fixed=True), decoding, keep_chain=True),
        Batch(reasoner),
    )
    job.report = lambda _: None
    batch.join([job])
    finish(batch)
    assert (0 if job.chain is None else job.chain.latents.shape[1]) == steps


class Counted:
    """A reasoner that counts the rows of which it makes steps and scores."""

    def __init__(self, reasoner: CausalLMReasoner) -> None:
        self.reasoner, self.stack, self.embed_prompt = reasoner, reasoner.stack, reasoner.embed_prompt
        self.steps: list[int] = []
        self.scores: list[int] = []

    def step(self, hidden: Tensor) -> LatentStep:
        self.steps.append(len(hidden))
        return self.reasoner.step(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        self.scores.append(len(hidden))
        return self.reasoner.logits(hidden)


def test_steps_are_made_of_rows_that_reason_and_scores_of_those_that_answer() -> None:
    reasoner, decoding = case_of("llama")
    counted, endless = Counted(reasoner), replace(decoding, end_ids=(99,))
    batch = Batch(counted)
    first, second = (
        Reported(row, endless, StopRule(max_latents=steps, fixed=True))
        for row, steps in zip(ROWS, (1, 9), strict=False)
    )
    batch.join([first.row])
    batch.step()
    batch.join([second.row])  # the other one has ended its chain, and its answer ends before this one's chain
    finish(batch)
    assert (counted.steps, counted.scores) == ([1] * 10, [1] * 12)


def test_a_cancelled_row_gives_up_its_place_and_disturbs_nobody() -> None:
    reasoner, decoding = case_of("llama")
    stop = StopRule(max_latents=CAP)
    batch, reported = Batch(reasoner), [Reported(row, decoding, stop) for row in ROWS]
    batch.join([one.row for one in reported])
    batch.step()
    running, progress = len(batch.rows), len(reported[0].progress)
    reported[0].row.cancelled = True
    batch.step()
    assert len(batch.rows) < running
    finish(batch)
    assert len(reported[0].progress) == progress
    assert [one.words for one in reported[1:]] == [alone(reasoner, row, stop, decoding)[0] for row in ROWS[1:]]


def test_columns_that_nobody_uses_are_given_up() -> None:
    # The batch is never empty here; without that the cache would hold every step since the start.
    reasoner, decoding = case_of("unspoken")
    stop = StopRule(max_latents=CAP)
    longest = max(len(row) for row in ROWS) + CAP + len(decoding.marker) + WORDS
    batch, reported = Batch(reasoner), []
    for index in range(30):
        reported.append(Reported(ROWS[index % 6], decoding, stop))
        batch.join([reported[-1].row])
        batch.step()
        assert batch.rows
        decoder = batch.decoder
        assert decoder is not None
        assert decoder.cache.get_seq_length() == decoder.columns <= longest
        assert min(decoder.starts) == 0
    finish(batch)
    expected = [alone(reasoner, row, stop, decoding)[0] for row in ROWS]
    assert [one.words for one in reported] == [expected[index % 6] for index in range(30)]


def test_a_model_that_forgets_what_is_far_back_is_refused() -> None:
    model = tiny_language_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0)
    reasoner = CausalLMReasoner(model=model, settings=LatentGenerationConfig(open_ids=(2,), end_ids=(7,)))
    with pytest.raises(ValueError, match="sliding window"):
        Batch(reasoner)
