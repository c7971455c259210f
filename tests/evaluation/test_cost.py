"""Floating-point operations of answers: by hand, and as a counter of the running model sees them."""

from __future__ import annotations

import pytest
import torch
from tiny_models import WIDTH, tiny_pair
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system
from torch.utils.flop_counter import FlopCounterMode

from unspoken.chain import LatentChain, StopReason
from unspoken.evaluation.answering import answer
from unspoken.evaluation.cost import _ALONE, counted, seconds
from unspoken.methods import catalogue
from unspoken.methods.jepa_reasoner.systems import talker_flops
from unspoken.reasoning.flops import stack_flops
from unspoken.reasoning.system import Answer
from unspoken.tasks.task import Problems

# Of the tiny models: two blocks with four matrices of attention and two of the feed-forward part.
BLOCKS = 2 * (4 * 16 * 24 + 2 * 16 * 32)
ATTENTION = 2 * 24


def answers(latents: list[int], tokens: list[int]) -> Answer:
    mask = torch.arange(max(latents))[None] < torch.tensor(latents)[:, None]
    chain = LatentChain(
        latents=torch.zeros(*mask.shape, WIDTH), mask=mask, stop=torch.full((len(latents),), StopReason.CAP)
    )
    return Answer(chain=chain, tokens=mask.long(), lengths=torch.tensor(tokens))


def test_a_talker_is_paid_for_by_the_latent() -> None:
    prompt = torch.tensor([5, 3])
    pair = tiny_pair("mono")
    talked, nearest = catalogue.systems(pair, stage="pair", max_answer=4)
    alone = nearest.flops(prompt, answers([4, 2], [4, 2]))
    # Five tokens and three latents that are fed back; every latent is compared with the table of twenty rows.
    assert alone[0] == 2 * BLOCKS * 8 + 4 * ATTENTION * 36 + 2 * 20 * 16 * 4
    talker = pair.talker.decoder
    of_talker = talked.flops(prompt, answers([4, 2], [4, 2])) - alone
    assert of_talker.tolist() == [float(stack_flops(talker, n)) + 2 * 20 * 16 * n for n in (4, 2)]


def test_a_dual_talker_also_reads_what_its_encoder_made() -> None:
    talker = tiny_pair("dual", attention_size=8).talker
    # Two blocks each, four latents: everywhere in the encoder, with the tokens before in the decoder.
    feed_forward = 2 * 16 * 32
    encoder = 2 * (2 * (4 * 16 * 8 + feed_forward) * 4 + 4 * 8 * 16)
    decoder = 2 * (2 * (2 * 4 * 16 * 8 + feed_forward) * 4 + 4 * 8 * (1 + 2 + 3 + 4) + 4 * 8 * 16)
    assert talker_flops(talker, 4) == encoder + decoder + 2 * 20 * 16 * 4


def test_the_count_is_what_a_counter_sees_in_the_running_model() -> None:
    system = tiny_word_system("unspoken", top_k=3)
    problems = TASK.sample("test", [0])
    with FlopCounterMode(display=False) as counter:
        given = answer(system, TASK, problems, PROMPT_FORMAT, batch_size=1)
    asked = len(PROMPT_FORMAT.prompt(problems[0].question))
    expected = counted(system, torch.tensor([asked]), given)["flops"]
    # The running model scores the whole square of the prompt, also what a position may not see, and mixes three rows.
    read = asked + len(system.opening)
    expected += 4 * ATTENTION * read * (read - 1) / 2 + 2 * 3 * 16 * int(given.chain.lengths)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)


def test_means_of_answers_are_counted_as_the_system_does() -> None:
    system = tiny_word_system("unspoken", top_k=3)
    found = counted(system, torch.tensor([5, 3]), answers([4, 2], [2, 1]))
    flops = system.flops(torch.tensor([5, 3]), answers([4, 2], [2, 1]))
    assert (found["latent_steps"], found["markers"], found["spoken_tokens"]) == (3, 2, 1.5)
    assert found["sequential_passes"] == 6.5
    assert found["flops"] == float(flops.mean())
    assert flops[0] > flops[1]


@pytest.mark.parametrize(("spent", "asked_alone"), [(10.0, 3), (1e-9, 1)])
def test_few_problems_are_answered_one_by_one_where_that_takes_long(
    monkeypatch: pytest.MonkeyPatch, spent: float, asked_alone: int
) -> None:
    monkeypatch.setattr("unspoken.evaluation.cost._SECONDS_ALONE", spent)
    monkeypatch.setattr("unspoken.evaluation.cost._ALONE", 3)
    asked: list[tuple[list[str], int]] = []

    def respond(problems: Problems, batch_size: int) -> Answer:
        asked.append(([problem.key for problem in problems], batch_size))  # type: ignore[attr-defined]
        return answers([2] * len(problems), [1] * len(problems))

    problems = TASK.sample("test", range(5))
    keys = [problem.key for problem in problems]
    found = seconds(respond, problems, 5, alone=True)
    assert asked == [*(([key], 1) for key in keys[:asked_alone]), (keys, 5)]
    assert found["seconds_alone"] > 0
    assert found["seconds_batched"] > 0
    asked.clear()
    assert list(seconds(respond, problems, 2, alone=False)) == ["seconds_batched"]
    assert asked == [(keys, 2)]


def test_seconds_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sizes, alone = [0.0], [], iter([3.0, 5.0, 2.0, *[0.25] * 30])

    def respond(problems: Problems, batch_size: int) -> None:
        sizes.append((len(problems), batch_size))
        clock[0] += next(alone) if batch_size == 1 else 64.0

    monkeypatch.setattr("unspoken.evaluation.cost._ALONE", _ALONE)  # other tests are content with fewer
    monkeypatch.setattr("unspoken.evaluation.cost.time.perf_counter", lambda: clock[0])
    problems = TASK.sample("test", range(130))
    # Alone they take 3 and 5 and 2 seconds, which are ten; 128 problems in batches take 64.
    assert seconds(respond, problems, 50, alone=True) == {"seconds_alone": 3.0, "seconds_batched": 0.5}
    assert sizes == [(1, 1)] * 3 + [(128, 50)]
    # Twenty problems in less time are enough.
    sizes.clear()
    assert seconds(respond, problems, 50, alone=True) == {"seconds_alone": 0.25, "seconds_batched": 0.5}
    assert sizes == [(1, 1)] * 20 + [(128, 50)]
