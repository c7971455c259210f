"""Forced tokens are given, reach exactly what reads them, and never count against an answer they belong to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import enliven, tiny_config
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.evaluation import forced_tokens as measured
from unspoken.evaluation.answering import answer
from unspoken.evaluation.forced_tokens import Effect, ForcedDecoding, answer_tokens, effects_of, forced_decoding
from unspoken.methods import catalogue
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.reasoning.picking import FREE
from unspoken.reasoning.system import System
from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.task import ProblemList

PROBLEMS = TASK.sample("test", range(7))
PAD, END = PROMPT_FORMAT.tokenizer.pad_token_id, PROMPT_FORMAT.tokenizer.eos_token_id
TOKENS = torch.tensor([token for token in range(len(PROMPT_FORMAT.tokenizer)) if token not in (PAD, END)])


def pair(kind: str) -> list[System]:
    """An untrained Reasoner with a Talker, and the same read by its nearest rows."""
    settings = {"vocab_size": len(PROMPT_FORMAT.tokenizer), "max_position_embeddings": 160}
    config = JepaReasonerConfig(
        backbone_config=tiny_config("unspoken", l2_output=True, **settings),
        talker_config=tiny_config("unspoken", **settings),
        talker_kind=kind,
        pad_token_id=PAD,
        eos_token_id=END,
        open_ids=list(PROMPT_FORMAT.markers.open),
        max_latents=8,
    )
    model = JepaReasonerForCausalLM._from_config(config, attn_implementation="eager")
    enliven(model, "unspoken")
    model.reasoner.start_target()
    return catalogue.systems(model.eval(), stage=kind, max_answer=3)


def system_of(kind: str) -> System:
    if kind in ("mono", "dual"):
        return pair(kind)[0]
    known: dict[str, dict[str, Any]] = {
        "explicit": {"top_k": 1},
        "silent": {"top_k": 5},
        "hidden": {"feed": "hidden", "fixed": True, "max_latents": 3},
        "answer only": {"top_k": 1, "max_latents": 0, "fixed": True},
    }
    return replace(tiny_word_system(**known[kind]), max_tokens=6)


KINDS = ("explicit", "silent", "hidden", "answer only", "mono", "dual")


def forced(kind: str, batch_size: int = 7) -> ForcedDecoding:
    return forced_decoding(system_of(kind), TASK, PROBLEMS, PROMPT_FORMAT, batch_size)


def effects(kind: str, batch_size: int, seed: int) -> list[Effect]:
    """What tokens of any kind do: untrained models hardly ever give numbers."""
    return effects_of(forced(kind, batch_size), TASK, PROBLEMS, PROMPT_FORMAT, TOKENS, seed)


# --- forcing tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_without_force_are_those_of_the_answer(kind: str) -> None:
    one, answers = forced(kind), answer(system_of(kind), TASK, PROBLEMS, PROMPT_FORMAT, batch_size=7)
    chain, tokens = one.run(None)
    assert torch.equal(chain.latents, answers.chain.latents)
    written = tokens[:, one.answer_from :]
    assert torch.equal(written, answers.filled(END, written.shape[1]))
    assert one.answer_from == (6 if kind == "explicit" else 0)
    if kind == "explicit":
        assert chain.support_ids is not None
        assert torch.equal(tokens[:, :6][chain.mask], chain.support_ids[:, :, 0][chain.mask])
    again, free = one.run(torch.full_like(tokens, FREE))
    assert torch.equal(free, tokens)
    assert torch.equal(again.latents, chain.latents)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forced_token_is_given_and_nothing_before_it_changes(kind: str) -> None:
    one = forced(kind)
    chain, clean = one.run(None)
    for at in (1, one.answer_from + 1):
        given = torch.full_like(clean, FREE)
        given[:, at] = torch.where(clean[:, at] == TOKENS[40], TOKENS[41], TOKENS[40])
        again, tokens = one.run(given)
        # Where the row has not ended: not every chain or answer is as long as that.
        first = one.answer_from if at > one.answer_from else 0
        running = torch.isin(clean[:, first : at + 1], TOKENS).all(dim=1)
        assert running.sum() > 3
        assert torch.equal(tokens[running, at], given[running, at])
        assert torch.equal(tokens[:, first:at], clean[:, first:at])
        if kind == "explicit" and at == 1:
            assert torch.equal(again.latents[running, 0], chain.latents[running, 0])
            rows = system_of(kind).model.get_input_embeddings()(given[running, 1])
            assert torch.equal(again.latents[running, 1], rows)
        else:
            assert torch.equal(again.latents, chain.latents)


@pytest.mark.parametrize("kind", ["explicit", "dual"])
def test_forced_rows_are_the_same_in_any_company(kind: str) -> None:
    given = torch.full_like(forced(kind).run(None)[1], FREE)
    given[::2, 1], given[1::2, 3] = TOKENS[30], TOKENS[31]
    together = forced(kind).run(given)[1]
    assert torch.equal(forced(kind, 2).run(given)[1], together)


def test_tokens_that_may_be_forced_are_those_of_right_answers() -> None:
    some = asked("7", "12", "7")
    expected = sorted([*PROMPT_FORMAT.encode("7"), *PROMPT_FORMAT.encode("12")])
    assert answer_tokens(some, PROMPT_FORMAT).tolist() == expected


# --- what comes of it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "contained", "changes"),
    [
        ("explicit", False, True),
        ("silent", True, True),
        ("hidden", True, True),
        ("mono", True, False),
        ("dual", True, True),
    ],
)
def test_wrong_tokens_reach_an_explicit_chain_alone(kind: str, contained: bool, changes: bool) -> None:
    last = effects(kind, batch_size=3, seed=1)[-1]
    assert last.latents_identical is contained
    assert (last.largest_latent_change == 0.0) is contained
    _, replaced, later, changed, _, _ = last.counts.sum(axis=0)
    assert replaced > 3
    assert later > 3
    assert bool(changed) is changes


@pytest.mark.parametrize("kind", ["explicit", "dual"])
def test_a_rate_of_zero_does_nothing(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(measured, "RATES", (0.0,))
    (nothing,) = effects(kind, batch_size=7, seed=0)
    assert nothing.counts[:, 0].sum() > 10
    assert not nothing.counts[:, 1:].any()
    assert (nothing.latents_identical, nothing.largest_latent_change) == (True, 0.0)


# A chain of four positions and an answer of four; the second problem is answered wrong, the third has no box.
CHAINS = ("5 + 7 =", "5 + 7 12", "12 7 5 12", "9 + 3 =")
ANSWERS = ("\\boxed{12}", "\\boxed{7}", "12 12 12", "\\boxed{12}")


def asked(*answers: str) -> ProblemList[ReasoningProblem]:
    """Problems with these right answers."""
    return ProblemList(ReasoningProblem(question="", chains=(), answer=answer, key="") for answer in answers)


ASKED = asked(*("12", "9", "12", "12") * 10)
NUMBERS = {token for number in ("12", "9") for token in PROMPT_FORMAT.encode(number)}


def scripted(wider: int = 0, *, isolated: bool = False, seed: int = 3) -> tuple[list[Effect], list[Tensor]]:
    """Effects on a system that loses its answer when a token of its chain was wrong, and what was forced on it."""
    rows = [
        [*PROMPT_FORMAT.encode(chain), *PROMPT_FORMAT.encode(answer), *[END] * (4 - len(PROMPT_FORMAT.encode(answer)))]
        for chain, answer in zip(CHAINS, ANSWERS, strict=True)
    ]
    clean = torch.nn.functional.pad(torch.tensor(rows * 10), (0, wider), value=END)
    given = []

    def run(forced: Tensor | None) -> tuple[LatentChain, Tensor]:
        latents, tokens = torch.zeros(40, 2, 4), clean.clone()
        if forced is not None:
            given.append(forced)
            tokens = torch.where(forced == FREE, clean, forced)
            lost = (forced[:, :4] != FREE).any(dim=1) & (forced[:, 5] == FREE)
            tokens[lost, 5] = PROMPT_FORMAT.encode("3")[0]
            latents[0, 1, 2] = -0.25
        mask = torch.ones(40, 2, dtype=torch.bool)
        return LatentChain(latents=latents, mask=mask, stop=torch.zeros(40, dtype=torch.long)), tokens

    decoding = ForcedDecoding(output_kind="its tokens", run=run, answer_from=4, chain_isolated=isolated)
    others = answer_tokens(ASKED, PROMPT_FORMAT)
    return effects_of(decoding, TASK, ASKED, PROMPT_FORMAT, others, seed), given


def test_effects_are_counted_as_by_hand() -> None:
    kinds = set()
    for effect, given in zip(*scripted(), strict=True):
        assert effect.largest_latent_change == 0.25
        assert not effect.latents_identical
        for row, counts in enumerate(effect.counts.tolist()):
            clean = [*PROMPT_FORMAT.encode(CHAINS[row % 4]), *PROMPT_FORMAT.encode(ANSWERS[row % 4])]
            can = [at for at, token in enumerate(clean) if token in NUMBERS]
            forced = [at for at in range(8) if given[row, at] != FREE]
            assert set(forced) <= set(can)
            assert all(int(given[row, at]) in NUMBERS - {clean[at]} for at in forced)
            later = [at for at in range(len(clean)) if forced and at > forced[0] and at not in forced]
            lost = bool(forced) and forced[0] < 4
            # The number in the box is the sixth token.
            judged = bool(forced) and row % 4 in (0, 3) and 5 not in forced
            changed = [at for at in later if lost and at == 5]
            assert counts == [len(can), len(forced), len(later), len(changed), judged, judged and lost]
            kinds.add((row % 4 in (0, 3), 5 in forced, lost))
    # Answers that are right, forced themselves, after a wrong token, and all of it together.
    assert len(kinds) >= 6


def test_positions_do_not_depend_on_the_system_and_low_rates_are_part_of_high_ones() -> None:
    (_, narrow), (_, wide) = scripted(), scripted(wider=5)
    for one, other in zip(narrow, wide, strict=True):
        assert torch.equal(one, other[:, :8])
    low, high = narrow
    assert torch.equal(low[low != FREE], high[low != FREE])
    assert 0 < (low != FREE).sum() < (high != FREE).sum()
    _, another = scripted(seed=4)
    assert not torch.equal(another[1], high)


def test_a_reasoner_whose_latents_read_forced_tokens_is_an_error() -> None:
    with pytest.raises(AssertionError, match="finished before it"):
        scripted(isolated=True)


def test_a_box_begins_where_it_is_opened() -> None:
    for text in ("5 + 7 \\boxed{12}", "\\boxed{12}", "5 \\boxed{7} \\boxed{12}"):
        row = [*PROMPT_FORMAT.encode(text), END, END]
        assert measured._box_from(torch.tensor(row), PROMPT_FORMAT) == row.index(PROMPT_FORMAT.box[0])
    row = [*PROMPT_FORMAT.encode("5 + 7"), END]
    assert measured._box_from(torch.tensor(row), PROMPT_FORMAT) == len(row)


def test_a_tenth_and_three_tenths_of_the_tokens_that_can_be_are_forced() -> None:
    assert measured.RATES == (0.1, 0.3)
    for effect, rate in zip(scripted()[0], measured.RATES, strict=True):
        words, forced = effect.counts[:, :2].sum(axis=0)
        assert forced / words == pytest.approx(rate, abs=3 * (rate * (1 - rate) / words) ** 0.5)


def test_a_summary_weighs_tokens_and_answers_alike() -> None:
    columns = ("words", "forced", "later", "changed", "judged", "lost")
    rows = [dict(zip(columns, row, strict=True)) for row in ((4, 2, 2, 1, 1, 1), (6, 1, 3, 0, 1, 0))]
    counts = np.array([[float(row[name]) for name in columns] for row in rows])
    seeds = [
        Effect(counts=counts, latents_identical=same, largest_latent_change=0.5 * (not same)) for same in (True, False)
    ]
    found = measured.summary(seeds)
    assert (found["forced"]["mean"], found["later_changed"]["mean"], found["answers_lost"]["mean"]) == (0.3, 0.2, 0.5)
    assert (found["judged"], found["latents_identical"], found["largest_latent_change"]) == (4, False, 0.5)
