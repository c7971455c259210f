"""Chains written out: the tokens of each latent, and the piece of the explicit chain that it stands for."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from planted_trees import Rows
from tag_balance import unbalanced
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system, word_view

from unspoken.chain import LatentChain
from unspoken.draw.page import to_html
from unspoken.draw.section import Fold
from unspoken.evaluation.results import upgraded
from unspoken.probes.chains import ChainsProbe
from unspoken.probes.probe import View
from unspoken.reasoning.teacher import Teacher
from unspoken.tasks import TreeSearchConfig

PROBE = ChainsProbe()
RIGHT = [False, True, False, True, True, False]


def view(teacher_rate: int | None = None, *, right: list[bool] = RIGHT, **settings: Any) -> View:
    """A system whose answers count as right where we say so."""
    plain = word_view(tiny_word_system("llama", **settings))
    teacher = None
    if teacher_rate is not None:
        teacher = Teacher(rate=teacher_rate, chain=lambda _: plain.graded.chain)
    return replace(plain, answers=replace(plain.graded, correct=torch.tensor(right)), teacher=teacher)


def test_two_right_chains_and_a_wrong_one_are_written_out() -> None:
    looked_at = view()
    reading = PROBE.measure(looked_at)
    assert reading is not None
    json.dumps(reading, allow_nan=False)
    entries = reading["examples"]
    found = [(entry["kind"], entry["correct"]) for entry in entries[:3]]
    assert found == [("right", True)] * 2 + [("wrong", False)]
    problems, chain = looked_at.problems, looked_at.graded.chain
    assert chain.support_ids is not None and chain.support_weights is not None
    tokenizer = PROMPT_FORMAT.tokenizer
    # Then the others in their order.
    for entry, row in zip(entries, (1, 3, 0, 2, 4, 5), strict=True):
        assert entry["question"] == problems.select([row])[0].question  # type: ignore[index]
        assert entry["response"] == PROMPT_FORMAT.decode(looked_at.graded.tokens[row : row + 1])[0]
        assert len(entry["steps"]) == int(chain.lengths[row])
        for step, weights, ids in zip(entry["steps"], chain.support_weights[row], chain.support_ids[row], strict=False):
            kept = weights[:5] >= 0.005
            assert [token for token, _ in step["tokens"]] == [tokenizer.decode([int(one)]) for one in ids[:5][kept]]
            assert [weight for _, weight in step["tokens"]] == pytest.approx(weights[:5][kept].tolist(), abs=1e-3)
            assert step["entropy"] == pytest.approx(float(-(weights * weights.log()).nansum()), abs=1e-3)
        assert entry["chunks"] == [], "nothing cut the chains that it learned from"


@pytest.mark.parametrize(("settings", "rate", "tokens"), [({}, 2, 2), ({"top_k": 1}, None, 1)])
def test_the_explicit_chain_is_cut_as_training_cuts_it(settings: Any, rate: int | None, tokens: int) -> None:
    looked_at = view(rate, **settings)
    reading = PROBE.measure(looked_at)
    assert reading is not None
    for entry, row in zip(reading["examples"][:3], (1, 3, 0), strict=True):
        explicit = list(TASK.spans(looked_at.problems.select([row]), PROMPT_FORMAT)[0].chain)
        cut = [explicit[at : at + tokens] for at in range(0, len(explicit), tokens)]
        assert entry["chunks"] == [PROMPT_FORMAT.tokenizer.decode(piece) for piece in cut]


def test_examples_are_of_the_first_seed_and_of_chains_with_tokens() -> None:
    assert PROBE.measure(replace(view(), first_seed=False)) is None
    assert PROBE.measure(view(max_latents=0)) is None
    nothing_wrong = PROBE.measure(view(right=[True] * 6))
    assert nothing_wrong is not None and [entry["kind"] for entry in nothing_wrong["examples"]] == ["right"] * 6
    assert PROBE.applies(tiny_word_system(), TASK)
    assert not PROBE.applies(tiny_word_system(), TreeSearchConfig(depth=2).build()), "the answer itself is the chain"


def test_fifty_chains_of_what_reasons_in_latents_are_kept_and_three_of_the_others() -> None:
    many = word_view(tiny_word_system("llama"), problems=60)
    reading = PROBE.measure(many)
    assert reading is not None
    assert len(reading["examples"]) in (50, 51), "the first wrong or right one may lie beyond the fifty"
    assert all(len(entry["at"]) == len(entry["steps"]) for entry in reading["examples"])
    other_way = PROBE.measure(replace(many, as_trained=False))
    assert other_way is not None and len(other_way["examples"]) <= 3 and other_way["plane"] is None


def test_a_latent_lies_between_the_rows_that_it_is_mixed_of() -> None:
    looked_at = view()
    reading = PROBE.measure(looked_at)
    assert reading is not None
    chain, table = looked_at.graded.chain, looked_at.system.model.get_input_embeddings().weight.detach()
    latents = chain.latents[1, : int(chain.lengths[1])]
    names = reading["plane"]["names"]
    tokenizer = PROMPT_FORMAT.tokenizer
    rows = torch.stack([table[tokenizer.encode(name, add_special_tokens=False)[0]] for name in names])
    # A plane keeps differences of points: those of latents are seen as those of their shadows, never longer.
    shadows = torch.cdist(torch.tensor(reading["examples"][0]["at"]), torch.tensor([*names.values()]))
    assert bool((shadows <= torch.cdist(latents, rows) + 1e-2).all())


def planted(heaviest: list[list[int]], **rest: Any) -> View:
    """Six chains; each latent mixes two tokens, of which the second is the heavier one."""
    steps = max(map(len, heaviest))
    ids = torch.tensor([[[30, token] for token in row] + [[30, 30]] * (steps - len(row)) for row in heaviest])
    mask = torch.arange(steps) < torch.tensor([len(row) for row in heaviest])[:, None]
    weights = torch.tensor([0.25, 0.75]).expand(ids.shape) * mask[..., None]
    latents = torch.randn(6, steps, 16) * mask[..., None]
    chain = LatentChain(
        latents=latents, mask=mask, stop=torch.zeros(6).long(), support_ids=ids, support_weights=weights
    )
    plain = view()
    return replace(plain, answers=replace(plain.graded, chain=chain), **rest)


def test_the_twelve_rows_that_are_nearest_to_most_latents_are_on_the_plane() -> None:
    # Thirteen tokens in order; then the eighth of them three times more, and the last one twice.
    tokens = [*range(8, 21), 15, 15, 15, 20, 20]
    reading = PROBE.measure(planted([tokens[at : at + 3] for at in range(0, 18, 3)]))
    assert reading is not None
    expected = [15, 20, *range(8, 15), 16, 17, 18]
    assert [*reading["plane"]["names"]] == [PROMPT_FORMAT.tokenizer.decode([token]) for token in expected]


@pytest.mark.parametrize(("first", "drawn"), [([8], False), ([8, 9], True)])
def test_a_plane_takes_two_latents(first: list[int], drawn: bool) -> None:
    reading = PROBE.measure(planted([first, [], [], [], [], []]))
    assert reading is not None and (reading["plane"] is not None) == drawn


def test_a_latent_that_is_a_row_at_which_it_may_point_lies_on_its_square() -> None:
    looked_at = view()
    table = torch.randn(len(PROMPT_FORMAT.tokenizer), 16) * torch.rand(len(PROMPT_FORMAT.tokenizer), 1).add(0.5)
    rows = Rows(target_table=table, forced=table)
    latents = torch.nn.functional.normalize(table, dim=-1)[torch.arange(8, 26).view(6, 3)]
    chain = LatentChain(latents=latents, mask=torch.ones(6, 3).bool(), stop=torch.zeros(6).long())
    system = replace(looked_at.system, chain_kind="latent", targets=rows)
    reading = PROBE.measure(replace(looked_at, system=system, answers=replace(looked_at.graded, chain=chain)))
    assert reading is not None
    squares = {name: pytest.approx(at, abs=2e-3) for name, at in reading["plane"]["names"].items()}
    assert len(squares) == 12
    for example in reading["examples"]:
        for step, at in zip(example["steps"], example["at"], strict=True):
            name = step["tokens"][0][0]
            assert name not in squares or at == squares[name]


def test_one_wrong_chain_is_chosen() -> None:
    reading = PROBE.measure(view(right=[False, True, True, True, False, False]))
    assert reading is not None
    # Two right ones and the first wrong one; then the others as they come.
    assert [entry["correct"] for entry in reading["examples"]] == [True, True, False, True, False, False]


def test_the_section_shows_every_chain_of_every_system() -> None:
    one, other = PROBE.measure(view(2)), PROBE.measure(view())
    assert one is not None and other is not None
    for entry in other["examples"]:
        entry["system"] = "other_one"
    summary = PROBE.summarise({"llama": [one], "other_one": [other]}, baseline=None)
    assert summary == {
        "examples": [*one["examples"], *other["examples"]],
        "planes": {"llama": one["plane"], "other_one": other["plane"]},
    }
    systems = {name: {"chain": "superposition"} for name in ("llama", "other_one")}
    section = PROBE.section({"systems": systems, "probes": {"chains": summary}})
    assert section is not None
    folds = [block for block in section.blocks if isinstance(block, Fold)]
    assert [(fold.summary, fold.remark, fold.opened) for fold in folds] == [
        ("llama", "6 chains", True),
        ("other one", "6 chains", False),
    ]
    body = to_html(section.blocks)
    assert unbalanced(body) == []
    # Each latent is in the chain and on the plane by one name; a piece of text has it too.
    names = re.findall(r'data-latent="([^"]+)"', body)
    counts = Counter(names)
    steps = sum(len(entry["steps"]) for entry in summary["examples"])
    assert len(counts) == steps and set(counts.values()) <= {2, 3}
    assert 3 in counts.values()
    assert PROBE.section({"systems": {}, "probes": {}}) is None


def test_older_results_without_places_are_drawn() -> None:
    reading = PROBE.measure(view(2))
    assert reading is not None
    for entry in reading["examples"]:
        del entry["at"]
    older = upgraded(
        {"schema": 2, "systems": {"llama": {"chain": "superposition"}}, "probes": {"chains": reading["examples"]}}
    )
    section = PROBE.section(older)
    assert section is not None
    body = to_html(section.blocks)
    assert unbalanced(body) == [] and "<svg" not in body
