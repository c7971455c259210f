"""Chains are shown as what they are made of, are changed as asked, and answers come from changed ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_hub import save_hub_folder
from tiny_recipe import quick_run
from tiny_words import TASK, tiny_word_system
from torch.testing import assert_close

import unspoken
from unspoken.reasoning.picking import Sampler
from unspoken.reasoning.superposition import embedding_table
from unspoken.reasoning.system import System

QUESTIONS = [problem.question for problem in TASK.sample("test", range(3))]
TREE = "LK,LC,KB,KN,CJ,CE[ROOT]L[TARGET]E[ROUTE]"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick_run(tmp_path_factory.mktemp("inspection") / "run")


def superposed() -> System:
    return tiny_word_system(top_k=5, max_latents=6, fixed=True)


def test_several_texts_are_answered_as_each_alone() -> None:
    system = superposed()
    together = system.answer(QUESTIONS)
    for text, answer in zip(QUESTIONS, together, strict=True):
        alone = system.answer(text)
        assert (alone.text, alone.tokens, alone.cost) == (answer.text, answer.tokens, answer.cost)
        assert_close(alone.chain.record.latents, answer.chain.record.latents, rtol=1e-4, atol=1e-5)
    given = system.answer(QUESTIONS, chain=[answer.chain for answer in together])
    assert [answer.tokens for answer in given] == [answer.tokens for answer in together]


def test_an_answer_may_be_drawn() -> None:
    system = superposed()
    drawn = {
        system.answer(QUESTIONS[0], sample=Sampler(5.0, torch.Generator().manual_seed(seed))).text for seed in range(8)
    }
    assert len(drawn) > 1


def test_a_table_shows_what_each_step_is_made_of() -> None:
    system = superposed()
    chain = system.answer(QUESTIONS[0]).chain
    ids, weights = chain.record.support_ids, chain.record.support_weights
    assert ids is not None and weights is not None
    for step, (row, shares) in enumerate(zip(ids[0], weights[0], strict=True)):
        read = chain.steps(top=2)[step]
        names = [TASK.tokenizer.decode([int(token)]) for token in row[:2]]
        assert read.tokens == tuple(zip(names, shares[:2].tolist(), strict=True))
        assert read.entropy == pytest.approx(float(-(shares * shares.log()).sum()), rel=1e-4)
    printed = repr(chain.table(top=2))
    assert "made of" in printed and "nearest row" in printed
    assert len(printed.splitlines()) == 2 + len(chain)
    assert "<table" in chain._repr_html_()
    assert repr(chain) == "<Chain of 6 steps (superposition) by unspoken>"


def test_a_mixture_of_one_s_own_weights_changes_nothing() -> None:
    system = superposed()
    first = system.answer(QUESTIONS[0])
    ids, weights = first.chain.record.support_ids, first.chain.record.support_weights
    assert ids is not None and weights is not None
    same = first.chain.edit(2, dict(zip(ids[0, 2].tolist(), (7 * weights[0, 2]).tolist(), strict=True)))
    assert_close(same.record.latents, first.chain.record.latents, rtol=1e-5, atol=1e-6)
    assert system.answer(QUESTIONS[0], chain=same).tokens == first.tokens


def test_an_edited_step_is_the_mixture_of_its_rows_and_the_answer_comes_from_it() -> None:
    system = superposed()
    first = system.answer(QUESTIONS[0])
    token, other = "3", "12"
    edited = first.chain.edit(-1, {token: 3, other: 1})
    ids = [int(TASK.tokenizer.convert_tokens_to_ids(text)) for text in (token, other)]
    table = embedding_table(system.model)
    assert_close(edited.record.latents[0, -1], 0.75 * table[ids[0]] + 0.25 * table[ids[1]])
    assert edited.steps()[-1].tokens == ((token, 0.75), (other, 0.25))
    assert torch.equal(edited.record.latents[0, :-1], first.chain.record.latents[0, :-1])
    prompt = torch.tensor([system.texts.prompt(QUESTIONS[0])])
    expected = system.respond(prompt, chain=edited.record)
    assert system.answer(QUESTIONS[0], chain=edited).tokens == tuple(
        expected.tokens[0, : int(expected.lengths[0])].tolist()
    )
    # Of different length and with distributions of different size, in one batch.
    several = [edited, first.chain.truncate(2).edit(0, dict.fromkeys(range(9), 1.0))]
    batch = system.answer(QUESTIONS[:2], chain=several)
    assert [answer.tokens for answer in batch] == [
        system.answer(text, chain=chain).tokens for text, chain in zip(QUESTIONS, several, strict=False)
    ]


def test_steps_are_zeroed_deleted_swapped_and_cut_off() -> None:
    system = superposed()
    mine, other = (answer.chain for answer in system.answer(QUESTIONS[:2]))
    latents, theirs = mine.record.latents[0], other.record.latents[0]
    zeroed = mine.zero(1)
    assert not zeroed.record.latents[0, 1].any()
    assert zeroed.steps()[1].tokens == () and zeroed.steps()[1].nearest is None
    assert torch.equal(mine.delete(0).record.latents[0], latents[1:])
    assert torch.equal(mine.truncate(2).record.latents[0], latents[:2])
    assert torch.equal(mine.swap(other, 3).record.latents[0, 3], theirs[3])
    assert torch.equal(mine.swap(other, 3).record.latents[0, :3], latents[:3])
    assert torch.equal(mine.swap(other).record.latents, other.record.latents)
    assert mine.swap(other, 3).steps()[3] == other.steps()[3]
    assert len(system.answer(QUESTIONS[0], chain=mine.truncate(0)).chain) == 0
    assert torch.equal(mine.record.latents[0], latents)  # nothing was changed in place


def test_a_talker_answers_from_an_edited_chain(run: Path) -> None:
    system = unspoken.load(run, device="cpu")
    assert system.targets is not None
    chain = system.answer(TREE).chain
    edited = chain.edit(0, {"K": 1.0})
    step = edited.steps(top=1)[0]
    assert step.nearest == "K"
    assert step.norm == pytest.approx(chain.steps()[0].norm, rel=1e-4)
    assert "K" in repr(edited.table(top=3))
    # Directions of rows are mixed, and the latent keeps its length.
    names = {"K": 3.0, "L": 1.0}
    rows = F.normalize(system.targets.target_table[system.texts.tokenizer.convert_tokens_to_ids([*names])], dim=-1)
    mixed = F.normalize(0.75 * rows[0] + 0.25 * rows[1], dim=-1)
    assert_close(chain.edit(1, names).record.latents[0, 1], mixed * chain.record.latents[0, 1].norm())
    assert system.answer(TREE, chain=edited).chain.steps()[0].nearest == "K"
    with pytest.raises(ValueError, match="writes one token per latent, so an empty chain has no answer"):
        system.answer(TREE, chain=chain.truncate(0))


@pytest.mark.parametrize("share", [0.25, 0.8])
def test_one_token_at_another_weight_leaves_the_rest_in_proportion_and_the_length(share: float, run: Path) -> None:
    system = unspoken.load(run, device="cpu")
    assert system.targets is not None
    chain = system.answer(TREE).chain
    latent, table = chain.record.latents[0, 1].float(), system.targets.target_table
    token = int(system.texts.tokenizer.convert_tokens_to_ids("K"))
    weight = share * float(latent.norm())
    turned = chain.weigh(1, "K", weight).record.latents[0, 1].float()
    assert float(turned.norm()) == pytest.approx(float(latent.norm()), rel=1e-4)
    # With more rows than numbers in a latent, the coefficient is the cosine with the row.
    direction = F.normalize(table[token].float(), dim=-1)
    assert float(turned @ direction) == pytest.approx(weight, rel=1e-3)
    rests = [one - (one @ direction) * direction for one in (latent, turned)]
    assert float(F.cosine_similarity(*rests, dim=0)) == pytest.approx(1, abs=1e-4)
    superposition = superposed()
    mine = superposition.answer(QUESTIONS[0]).chain
    shares = dict(mine.steps(top=5)[2].tokens)
    first = next(iter(shares))
    weighed = dict(mine.weigh(2, first, share).steps(top=5)[2].tokens)
    rest = (1 - share) / (1 - shares[first])
    assert weighed == pytest.approx({name: share if name == first else rest * old for name, old in shares.items()})


def test_what_makes_no_sense_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    system = superposed()
    chain = system.answer(QUESTIONS[0]).chain
    for weights in ({"3": 0.0}, {"3": 2.0, "12": -1.0}, {}):
        with pytest.raises(ValueError, match="give at least one above 0"):
            chain.edit(0, weights)
    with pytest.raises(ValueError, match="is no single token"):
        chain.edit(0, {"3 12": 1.0})
    with pytest.raises(ValueError, match="there is no token 9999"):
        chain.edit(0, {9999: 1.0})
    with pytest.raises(ValueError, match="there is no step 6 in"):
        chain.zero(6)
    with pytest.raises(ValueError, match="give 0 to 6"):
        chain.truncate(7)
    with pytest.raises(ValueError, match="1 chains for 2 texts"):
        system.answer(QUESTIONS[:2], chain=[chain])
    wider = unspoken.load(save_hub_folder(tmp_path), unspoken.SoftThinking(max_latents=2), device="cpu")
    for use in (wider.answer("2+2").chain.swap, lambda given: wider.answer("2+2", chain=given)):
        with pytest.raises(ValueError, match="latents of another width"):
            use(chain)
    hidden = tiny_word_system(feed="hidden", fixed=True, max_latents=3)
    silent = hidden.answer(QUESTIONS[0]).chain
    assert [step.nearest for step in silent.steps()] == [None] * 3
    assert "by the head" in repr(silent.table())
    with pytest.raises(ValueError, match="its latents are no mixtures of tokens; use zero or swap"):
        silent.edit(0, {"3": 1.0})
    spoken = unspoken.load(run, stage="pretrain", device="cpu")
    with pytest.raises(ValueError, match="since it writes no chain apart from its answer"):
        spoken.answer(TREE).chain.edit(0, {"K": 1.0})
    with pytest.raises(ValueError, match="has no tokenizer; open its folder with"):
        replace(system, text_format=None).answer("2")
