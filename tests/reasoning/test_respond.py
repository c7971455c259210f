"""Reasoning, closing the chain and answering from one cache, against a loop that computes everything anew.

The reference takes one row at a time, without cache, padding or given positions, and makes its superpositions itself.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from conformance import CLOSE, assert_row_is, assert_same_chain, left_padded
from tiny_models import FAMILIES, PAD, prompts, tiny_language_model
from torch import Tensor

from unspoken.chain import LatentChain, StopReason
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import StopRule, respond
from unspoken.reasoning.row import AnswerDecoding

CAP, WORDS = 8, 6
# The first token of the end marker, and two tokens that end an answer: chains and answers end early, late and never.
STOPS: dict[tuple[str, str], tuple[int, tuple[int, int]]] = {
    ("unspoken", "superposition"): (17, (15, 10)),
    ("llama", "superposition"): (7, (8, 1)),
    ("qwen2", "superposition"): (13, (11, 4)),
    ("gpt2", "superposition"): (19, (5, 18)),
    ("unspoken", "hidden"): (5, (5, 15)),
    ("llama", "hidden"): (7, (8, 3)),
    ("qwen2", "hidden"): (5, (13, 18)),
    ("gpt2", "hidden"): (19, (19, 17)),
}
ROWS = [prompt[start:] for prompt, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]


class Case(NamedTuple):
    """A model with its end marker and the tokens that end its answers."""

    reasoner: CausalLMReasoner
    decoding: AnswerDecoding


def case_of(family: str, feed: Any = "superposition", rest: tuple[int, ...] = (), attention: str = "eager") -> Case:
    end, ends = STOPS[family, feed]
    marker = (end, *rest)
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=marker, top_k=10, feed=feed)
    model = tiny_language_model(family, attention)
    return Case(
        CausalLMReasoner(model=model, settings=settings),
        AnswerDecoding(marker=marker, max_tokens=WORDS, end_ids=ends, pad_id=PAD),
    )


@pytest.fixture(
    params=[
        *product(FAMILIES, ("superposition",), ((), (14, 9))),
        *product(FAMILIES, ("hidden",), ((14, 9),)),
    ],
    ids=str,
)
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(*request.param)


class Naive(NamedTuple):
    """The chain and the answer of one row."""

    latents_ND: Tensor
    reason: StopReason
    words: list[int]


def latent_by_hand(reasoner: CausalLMReasoner, hidden_D: Tensor) -> Tensor:
    model, settings = reasoner.model, reasoner.settings
    if settings.feed == "hidden":
        return hidden_D
    weights = (model.get_output_embeddings()(hidden_D) / settings.temperature).exp()
    assert settings.top_k is not None
    weights[weights < weights.sort(descending=True).values[settings.top_k - 1]] = 0
    return (weights / weights.sum()) @ model.get_input_embeddings()(torch.arange(len(weights)))


@torch.no_grad()
def naive(case: Case, prompt_T: Tensor, cap: int = CAP, given_ND: Tensor | None = None, fixed: bool = False) -> Naive:
    (reasoner, decoding), model = case, case.reasoner.model
    rows = [model.get_input_embeddings()(prompt_T)]
    rows += [] if given_ND is None else [given_ND]

    def output() -> Tensor:
        hidden: Tensor = model.base_model(inputs_embeds=torch.cat(rows)[None], use_cache=False).last_hidden_state
        return hidden[0, -1]

    latents, reason = [rows[0].new_zeros((0, rows[0].shape[-1]))], StopReason.FIXED if fixed else StopReason.CAP
    for _ in range(cap):
        hidden = output()
        if not fixed and int(model.get_output_embeddings()(hidden).argmax()) == decoding.marker[0]:
            reason = StopReason.END
            break
        latents.append(latent_by_hand(reasoner, hidden)[None])
        rows.append(latents[-1])
    rows.append(model.get_input_embeddings()(torch.tensor(decoding.marker)))
    words: list[int] = []
    while len(words) < decoding.max_tokens and not (words and words[-1] in decoding.end_ids):
        words.append(int(model.get_output_embeddings()(output()).argmax()))
        rows.append(model.get_input_embeddings()(torch.tensor(words[-1:])))
    return Naive(torch.cat(latents), reason, words)


def assert_answer(answer_ids: Tensor, row: int, words: list[int]) -> None:
    """Exactly these words, and padding after them."""
    assert answer_ids[row].tolist() == words + [PAD] * (answer_ids.shape[1] - len(words))


def assert_equals_naive(chain: LatentChain, answer_ids: Tensor, found: list[Naive]) -> None:
    for row, one in enumerate(found):
        assert_row_is(chain, row, one.latents_ND, one.reason)
        assert_answer(answer_ids, row, one.words)
    assert answer_ids.shape[1] == max(len(one.words) for one in found)


# --- the whole loop --------------------------------------------------------------------------------------------------


def test_the_rows_of_this_file_are_in_different_phases(case: Case) -> None:
    # Otherwise the other tests would compare rows that go in step.
    found = [naive(case, row) for row in ROWS]
    assert {one.reason for one in found} == {StopReason.END, StopReason.CAP}
    assert len({len(one.latents_ND) for one in found}) >= 3
    assert len({len(one.words) for one in found}) >= 3


def test_every_row_of_a_padded_batch_thinks_closes_and_answers_as_it_would_alone(case: Case) -> None:
    ids, mask = left_padded(ROWS)
    chain, answer_ids = respond(case.reasoner, ids, mask, StopRule(max_latents=CAP), case.decoding)
    assert_equals_naive(chain, answer_ids, [naive(case, row) for row in ROWS])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_batch_without_padding_needs_no_mask(family: str, attention: str) -> None:
    case = case_of(family, rest=(14, 9), attention=attention)
    found = [naive(case, row) for row in prompts()]
    for mask in (None, torch.ones_like(prompts())):
        assert_equals_naive(*respond(case.reasoner, prompts(), mask, StopRule(max_latents=CAP), case.decoding), found)


def test_a_fixed_chain_is_followed_by_the_marker_too(case: Case) -> None:
    ids, mask = left_padded(ROWS)
    chain, answer_ids = respond(case.reasoner, ids, mask, StopRule(max_latents=3, fixed=True), case.decoding)
    assert_equals_naive(chain, answer_ids, [naive(case, row, cap=3, fixed=True) for row in ROWS])
    assert chain.stop.tolist() == [StopReason.FIXED] * 6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chain_of_single_tokens_is_the_library_s_greedy_generation(family: str) -> None:
    end, ends = {"unspoken": 9, "llama": 7, "qwen2": 11, "gpt2": 4}[family], STOPS[family, "superposition"][1]
    model = tiny_language_model(family)
    reasoner = CausalLMReasoner(model=model, settings=LatentGenerationConfig(open_ids=(2,), end_ids=(end,), top_k=1))
    ids, mask = left_padded(ROWS)
    decoding = AnswerDecoding(marker=(end,), max_tokens=WORDS, end_ids=ends, pad_id=PAD)
    chain, answer_ids = respond(reasoner, ids, mask, StopRule(max_latents=20), decoding)
    assert chain.support_ids is not None
    ended = 0
    for row, prompt in enumerate(ROWS):
        written = model.generate(prompt[None], max_new_tokens=27, do_sample=False, eos_token_id=None)[0, len(prompt) :]
        steps = int(chain.lengths[row])
        assert chain.support_ids[row, :steps, 0].tolist() == written[:steps].tolist()
        if chain.stop[row] == StopReason.CAP:
            assert end not in written[:20]
            continue
        ended += 1
        assert written[steps] == end
        answer = written[steps + 1 : steps + 1 + WORDS].tolist()
        lasts = [place for place, word in enumerate(answer) if word in ends]
        assert_answer(answer_ids, row, answer[: lasts[0] + 1] if lasts else answer)
    assert ended


# --- the ends of the silent part -------------------------------------------------------------------------------------


@pytest.mark.parametrize("feed", ["superposition", "hidden"])
def test_a_row_that_stops_at_once_has_no_latents(feed: str) -> None:
    case = case_of("unspoken", feed)
    with torch.no_grad():
        first = int(case.reasoner.model(ROWS[2][None]).logits[0, -1].argmax())
    settings = LatentGenerationConfig(open_ids=(2,), end_ids=(first, 14), feed=feed)  # type: ignore[arg-type]
    reasoner = CausalLMReasoner(model=case.reasoner.model, settings=settings)
    case = Case(reasoner, AnswerDecoding(marker=(first, 14), max_tokens=WORDS, end_ids=(15,), pad_id=PAD))
    chain, answer_ids = respond(reasoner, ROWS[2][None], None, StopRule(max_latents=CAP), case.decoding)
    assert chain.lengths.tolist() == [0]
    assert chain.stop.tolist() == [StopReason.END]
    assert not chain.latents.any()
    assert_answer(answer_ids, 0, naive(case, ROWS[2]).words)
    # Beside rows that think on, it answers the same.
    ids, mask = left_padded(ROWS)
    together, answers = respond(reasoner, ids, mask, StopRule(max_latents=CAP), case.decoding)
    assert together.lengths[2] == 0
    assert together.lengths.max() > 2
    assert_answer(answers, 2, naive(case, ROWS[2]).words)


@pytest.mark.parametrize("rest", [(), (14, 9)])
def test_the_cap_is_reported_and_the_marker_is_forced_all_the_same(rest: tuple[int, ...]) -> None:
    case = case_of("unspoken", rest=rest)
    ids, mask = left_padded(ROWS)
    chain, answer_ids = respond(case.reasoner, ids, mask, StopRule(max_latents=2), case.decoding)
    found = [naive(case, row, cap=2) for row in ROWS]
    assert_equals_naive(chain, answer_ids, found)
    assert [one.reason for one in found].count(StopReason.CAP) >= 4
    # The marker matters: after another one the same chains are answered otherwise.
    other = replace(case.decoding, marker=(11, 3, 4))
    capped = chain.stop == StopReason.CAP
    again, words = respond(case.reasoner, ids, mask, StopRule(max_latents=2), other)
    assert torch.equal(again.latents, chain.latents)
    width = min(words.shape[1], answer_ids.shape[1])
    assert (words[capped, :width] != answer_ids[capped, :width]).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_without_latents_the_library_s_greedy_generation_answers_the_same(family: str) -> None:
    case = case_of(family, rest=(14, 9))
    ids, mask = left_padded(ROWS)
    chain, answer_ids = respond(case.reasoner, ids, mask, StopRule(max_latents=0), case.decoding)
    assert chain.mask.shape == (6, 0)
    assert chain.latents.shape == (6, 0, 16)
    assert chain.stop.tolist() == [StopReason.CAP] * 6
    marker = torch.tensor(case.decoding.marker).expand(6, -1)
    expected = case.reasoner.model.generate(
        torch.cat([ids, marker], dim=1),
        attention_mask=torch.cat([mask, torch.ones_like(marker)], dim=1),
        max_new_tokens=WORDS,
        do_sample=False,
        eos_token_id=list(case.decoding.end_ids),
        pad_token_id=PAD,
    )
    assert torch.equal(answer_ids, expected[:, ids.shape[1] + 3 :])


# --- a given chain ---------------------------------------------------------------------------------------------------


def chain_of(lengths: list[int], filler: float = 0.0) -> LatentChain:
    """Random latents, rows of different length; places after a row's end hold ``filler``."""
    latents = torch.randn(len(lengths), max(lengths), 16, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    stop = torch.zeros(len(lengths), dtype=torch.long)
    return LatentChain(latents=latents.masked_fill(~mask[..., None], filler), mask=mask, stop=stop)


LENGTHS = [2, 0, 5, 1, 3, 0]


@pytest.mark.parametrize("cap", [0, CAP])
def test_a_given_chain_is_fed_as_it_is_whatever_its_length(case: Case, cap: int) -> None:
    ids, mask = left_padded(ROWS)
    given = chain_of(LENGTHS)
    chain, answer_ids = respond(case.reasoner, ids, mask, StopRule(max_latents=cap), case.decoding, given)
    own = [given.latents[row, :length] for row, length in enumerate(LENGTHS)]
    assert_equals_naive(chain, answer_ids, [naive(case, row, cap, own[index]) for index, row in enumerate(ROWS)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cap", [0, CAP])
def test_what_stands_behind_the_end_of_a_given_chain_is_never_seen(family: str, cap: int) -> None:
    case = case_of(family)
    ids, mask = left_padded(ROWS)
    stop = StopRule(max_latents=cap)
    clean, answer_ids = respond(case.reasoner, ids, mask, stop, case.decoding, chain_of(LENGTHS))
    dirty, words = respond(case.reasoner, ids, mask, stop, case.decoding, chain_of(LENGTHS, filler=50.0))
    torch.testing.assert_close(dirty.latents, clean.latents, **CLOSE)
    assert torch.equal(dirty.mask, clean.mask)
    assert torch.equal(words, answer_ids)


def test_a_chain_given_back_is_answered_as_it_was_when_it_was_thought(case: Case) -> None:
    # Every causal control stands on this: with nothing changed, nothing changes.
    ids, mask = left_padded(ROWS)
    chain, answer_ids = respond(case.reasoner, ids, mask, StopRule(max_latents=CAP), case.decoding)
    _, again = respond(case.reasoner, ids, mask, StopRule(max_latents=0), case.decoding, chain)
    assert torch.equal(again, answer_ids)


def test_a_given_chain_decides_what_is_said() -> None:
    case = case_of("unspoken")
    stop = StopRule(max_latents=0)
    first, second = chain_of([3] * 6), chain_of([3] * 6)
    _, answer_ids = respond(case.reasoner, prompts(), None, stop, case.decoding, first)
    _, other = respond(case.reasoner, prompts(), None, stop, case.decoding, second.with_latents(-second.latents))
    assert not torch.equal(answer_ids, other)


@pytest.mark.parametrize("steps", [0, 4])
def test_a_given_chain_without_latents_is_no_chain(steps: int) -> None:
    case = case_of("unspoken")
    ids, mask = left_padded(ROWS)
    nothing = LatentChain(
        latents=torch.ones(6, steps, 16),
        mask=torch.zeros(6, steps, dtype=torch.bool),
        stop=torch.zeros(6, dtype=torch.long),
    )
    for cap in (0, CAP):
        stop = StopRule(max_latents=cap)
        chain, answer_ids = respond(case.reasoner, ids, mask, stop, case.decoding, nothing)
        expected, words = respond(case.reasoner, ids, mask, stop, case.decoding)
        torch.testing.assert_close(chain.latents, expected.latents, **CLOSE)
        assert torch.equal(answer_ids, words)


# --- the spoken part -------------------------------------------------------------------------------------------------


def test_either_of_two_tokens_ends_an_answer() -> None:
    case = case_of("unspoken")
    ids, mask = left_padded(ROWS)
    _, answer_ids = respond(case.reasoner, ids, mask, StopRule(max_latents=CAP), case.decoding)
    last = [[word for word in row.tolist() if word != PAD][-1] for row in answer_ids]
    assert set(case.decoding.end_ids) <= set(last)
    one = replace(case.decoding, end_ids=case.decoding.end_ids[:1])
    _, longer = respond(case.reasoner, ids, mask, StopRule(max_latents=CAP), one)
    for row, word in enumerate(last):
        continues = word == case.decoding.end_ids[1]
        assert ((longer[row] != PAD).sum() > (answer_ids[row] != PAD).sum()) == continues


@pytest.mark.parametrize("words", [1, 2, 5])
def test_no_answer_is_longer_than_its_cap(words: int) -> None:
    case = case_of("llama", rest=(14, 9))
    ids, mask = left_padded(ROWS)
    free = replace(case.decoding, max_tokens=12, end_ids=(19,))
    short = replace(free, max_tokens=words)
    stop = StopRule(max_latents=CAP)
    _, long = respond(case.reasoner, ids, mask, stop, free)
    assert long.shape == (6, 12)
    _, answer_ids = respond(case.reasoner, ids, mask, stop, short)
    assert torch.equal(answer_ids, long[:, :words])


def test_words_are_picked_row_by_row_from_what_the_row_has_said() -> None:
    case = case_of("unspoken", rest=(14, 9))
    ids, mask = left_padded(ROWS)

    def by_rule(row: int, answer_ids: list[int]) -> int:
        return 3 + (5 * row + 7 * len(answer_ids) + sum(answer_ids)) % 12

    answers: list[list[int]] = [[] for _ in ROWS]

    def sample(scores: Tensor, rows: Tensor, first: int) -> Tensor:
        assert scores.shape == (len(rows), 1, 20)
        for row in rows.tolist():
            assert len(answers[row]) == first
            answers[row].append(by_rule(row, answers[row]))
        return torch.tensor([[answers[row][first]] for row in rows.tolist()])

    decoding = replace(case.decoding, end_ids=(9,), sample=sample)
    chain, answer_ids = respond(case.reasoner, ids, mask, StopRule(max_latents=CAP), decoding)
    assert len(set(chain.lengths.tolist())) >= 3
    for row in range(6):
        words: list[int] = []
        while len(words) < WORDS and 9 not in words:
            words.append(by_rule(row, words))
        assert_answer(answer_ids, row, words)


def test_rows_with_fewer_tokens_are_picked_for_first() -> None:
    # So what a shared source draws for them does not depend on their order.
    case = case_of("unspoken", rest=(14, 9))
    passes: list[list[int]] = []
    case.reasoner.stack.register_forward_pre_hook(lambda *_: passes.append([]))

    def sample(scores: Tensor, _rows: Tensor, first: int) -> Tensor:
        passes[-1].append(first)
        return scores.argmax(dim=-1)

    ids, mask = left_padded(ROWS)
    decoding = replace(case.decoding, end_ids=(99,), sample=sample)
    chain, _ = respond(case.reasoner, ids, mask, StopRule(max_latents=CAP), decoding)
    lengths = chain.lengths.tolist()
    assert lengths != sorted(lengths, reverse=True), "the longest chains, whose answers are shortest, do not come first"
    assert all(firsts == sorted(set(firsts)) for firsts in passes)
    assert max(map(len, passes)) > 1


def test_a_batch_may_be_empty() -> None:
    case, nothing = case_of("unspoken"), torch.empty(0, 64, dtype=torch.long)
    chain, answers = respond(case.reasoner, nothing, None, StopRule(max_latents=CAP), case.decoding)
    assert (chain.latents.shape, answers.shape) == ((0, 0, 16), (0, 0))


def test_scores_are_those_of_the_row_that_is_picked_for() -> None:
    case = case_of("gpt2", rest=(14, 9))
    ids, mask = left_padded(ROWS)
    seen: dict[int, list[int]] = {row: [] for row in range(6)}

    def watched(scores: Tensor, rows: Tensor, first: int) -> Tensor:
        for row, (best,) in zip(rows.tolist(), scores.argmax(dim=-1).tolist(), strict=True):
            seen[row].append(best)
        return scores.argmax(dim=-1)

    respond(case.reasoner, ids, mask, StopRule(max_latents=CAP), replace(case.decoding, sample=watched))
    assert [seen[row] for row in range(6)] == [naive(case, row).words for row in ROWS]


# --- cost, and what is refused ---------------------------------------------------------------------------------------


def test_the_prompt_is_read_once_and_then_one_step_at_a_time() -> None:
    case = case_of("unspoken", rest=(14, 9))
    widths: list[int] = []
    case.reasoner.stack.register_forward_pre_hook(
        lambda _module, _args, how: widths.append(how["inputs_embeds"].shape[1]), with_kwargs=True
    )
    ids, mask = left_padded(ROWS)
    chain, answer_ids = respond(case.reasoner, ids, mask, StopRule(max_latents=CAP), case.decoding, chain_of(LENGTHS))
    assert widths[0] == 5 + 5
    assert set(widths[1:]) == {1}
    spoken = (answer_ids != PAD).sum(dim=1)
    # The last word of the slowest row is not fed.
    assert len(widths) == int((chain.lengths + 3 + spoken).max())


def test_responding_twice_gives_the_same_bits_and_no_gradient() -> None:
    case = case_of("llama")
    ids, mask = left_padded(ROWS)
    chain, answer_ids = respond(case.reasoner, ids, mask, StopRule(max_latents=CAP), case.decoding)
    again, words = respond(case.reasoner, ids, mask, StopRule(max_latents=CAP), case.decoding)
    assert_same_chain(chain, again)
    assert torch.equal(answer_ids, words)
    assert not chain.latents.requires_grad


def test_a_chain_records_the_distribution_of_every_step() -> None:
    case = case_of("unspoken")
    ids, mask = left_padded(ROWS)
    chain, _ = respond(case.reasoner, ids, mask, StopRule(max_latents=CAP), case.decoding)
    assert chain.support_ids is not None
    assert chain.support_weights is not None
    table = case.reasoner.model.get_input_embeddings()(torch.arange(20)).detach()
    mixed = (chain.support_weights[..., None] * table[chain.support_ids]).sum(dim=2)
    torch.testing.assert_close(mixed[chain.mask], chain.latents[chain.mask])


def test_prompt_latents_marker_and_answer_must_fit_the_model() -> None:
    # The model has 64 positions: 40 of the prompt, 8 latents, 3 of the marker, and room for 13 words.
    case = case_of("gpt2", rest=(14, 9))
    fits = replace(case.decoding, max_tokens=13, end_ids=(99,))
    _, answer_ids = respond(case.reasoner, prompts(length=40), None, StopRule(max_latents=8, fixed=True), fits)
    assert answer_ids.shape == (6, 13)
    longer = replace(case.decoding, max_tokens=14)
    with pytest.raises(ValueError, match=r"40 tokens and up to 25 more steps may follow .*, but the model has 64"):
        respond(case.reasoner, prompts(length=40), None, StopRule(max_latents=8), longer)
    given = chain_of([2, 0, 9, 1, 3, 0])
    with pytest.raises(ValueError, match="40 tokens and up to 25 more steps"):
        respond(case.reasoner, prompts(length=40), None, StopRule(max_latents=0), fits, given)
    assert respond(case.reasoner, prompts(length=39), None, StopRule(max_latents=0), fits, given)[1].shape == (6, 13)


def test_padding_on_the_right_is_refused() -> None:
    case = case_of("unspoken")
    mask = torch.ones(6, 5, dtype=torch.long)
    mask[3, -1] = 0
    for given in (None, chain_of(LENGTHS)):
        with pytest.raises(ValueError, match="padded on the left"):
            respond(case.reasoner, prompts(), mask, StopRule(max_latents=2), case.decoding, given)


@pytest.mark.parametrize(("marker", "words"), [((), 3), ((4,), 0)])
def test_a_speech_has_a_marker_and_at_least_one_word(marker: tuple[int, ...], words: int) -> None:
    with pytest.raises(ValueError, match=f"marker has {len(marker)} tokens and max_tokens is {words}"):
        AnswerDecoding(marker=marker, max_tokens=words, end_ids=(1,), pad_id=PAD)
