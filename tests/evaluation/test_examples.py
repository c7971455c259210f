"""Single chains in results: what is kept of a latent, by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.evaluation.examples import first_examples, has_words, text_example, tree_example
from unspoken.reasoning.speakers import Separate
from unspoken.reasoning.system import System
from unspoken.tasks import TreeSearchConfig

TREES = TreeSearchConfig(depth=2).build()
PROBLEMS = TASK.sample("test", range(2))


@dataclass
class Rows:
    """Targets whose rows are the axes, each of another length: coefficients of a latent are its entries."""

    width: int

    @property
    def target_table(self) -> Tensor:
        return torch.diag(torch.arange(1.0, self.width + 1))

    def nearest_row(self, latents: Tensor) -> Tensor:
        return latents.argmax(dim=-1)

    def read(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        raise NotImplementedError


def tree(latents: Tensor, row: int = 1) -> dict[str, Any]:
    problems = TREES.sample("test", np.arange(3))
    tokens = TREES.answers(problems)[row]
    return tree_example(TREES, problems, row, latents=latents, targets=Rows(21), tokens=tokens, correct=True)


def test_a_tree_stands_beside_its_route_and_the_coefficients_of_names() -> None:
    latents = torch.zeros(2, 21)
    # Six markers come before A: entry 6 is its coefficient. Below 0.005 nothing is kept, and three decimals are.
    latents[0, 6], latents[0, 20], latents[0, 0], latents[0, 9] = 0.4996, -0.25, 3.0, 0.00499
    latents[1, 7] = 0.00501
    problems = TREES.sample("test", np.arange(3))
    text = TREES.questions(problems)[1]
    entry = tree(latents)
    assert entry["coefficients"] == [{"A": 0.5, "O": -0.25}, {"B": 0.005}]
    root, first = entry["heap"][0], entry["heap"][1:]
    assert f"[ROOT]{root}[TARGET]" in text and {f"{root}{name}" for name in first} == set(text[:5].split(","))
    assert entry["route"] == [root, text.split("[TARGET]")[1][0]]
    assert entry["spoken"] == TREES.words(TREES.answers(problems)[1])
    assert entry["correct"] is True


def test_latents_that_a_chain_lacks_are_zeros_and_those_beyond_the_tree_are_left_out() -> None:
    latents = torch.zeros(3, 21)
    latents[:, 6] = 1.0
    assert tree(latents[:1])["coefficients"] == [{"A": 1.0}, {}]
    assert tree(latents)["coefficients"] == [{"A": 1.0}, {"A": 1.0}]
    assert tree(latents[:0])["coefficients"] == [{}, {}]


# --- texts -----------------------------------------------------------------------------------------------------------


def mixed_chain() -> LatentChain:
    """Two chains, of two steps and of one, with weights on both sides of what is kept."""
    ids = torch.arange(7).expand(2, 2, 7) + 8
    weights = torch.tensor([0.96, 0.03, 0.0051, 0.0049, 0.0, 0.0, 0.0])
    flat = torch.tensor([0.002] + [0.0] * 6)
    mask = torch.tensor([[True, True], [True, False]])
    return LatentChain(
        latents=torch.ones(2, 2, 16),
        mask=mask,
        stop=torch.zeros(2, dtype=torch.long),
        support_ids=ids,
        support_weights=torch.stack([torch.stack([weights, flat]), torch.stack([flat, weights])]),
    )


def names(*tokens: int) -> list[str]:
    return [PROMPT_FORMAT.tokenizer.decode([token]) for token in tokens]


def test_small_weights_are_left_out_but_for_the_first() -> None:
    tokens = torch.tensor(PROMPT_FORMAT.encode("\\boxed{7}"))
    entry = text_example(tiny_word_system(), PROMPT_FORMAT, mixed_chain(), 0, tokens)
    kept = zip(names(8, 9, 10), [0.96, 0.03, 0.005], strict=True)
    first, second = entry["steps"]
    assert first["tokens"] == [list(pair) for pair in kept]
    # -sum w log w in nats.
    assert first["entropy"] == round(0.03919 + 0.10520 + 0.02691 + 0.02606, 3)
    assert second["tokens"] == [[names(8)[0], 0.002]]
    assert entry["response"] == "\\boxed{7}"
    assert "decoded" not in entry
    assert len(text_example(tiny_word_system(), PROMPT_FORMAT, mixed_chain(), 1, tokens)["steps"]) == 1


def test_five_tokens_are_kept_of_a_latent_in_which_more_count() -> None:
    chain = mixed_chain()
    assert chain.support_weights is not None
    even = replace(chain, support_weights=torch.full_like(chain.support_weights, 1 / 7))
    for step in text_example(tiny_word_system(), PROMPT_FORMAT, even, 0, torch.tensor([1]))["steps"]:
        assert [weight for _, weight in step["tokens"]] == [0.143] * 5


def pointing(width: int = 16) -> System:
    """A system whose latents point at axes, and whose answer a Talker reads off them."""
    return replace(
        tiny_word_system(),
        chain_kind="latent",
        targets=Rows(width),
        speaker=Separate(decode=lambda chain, _: chain.mask.long(), end_ids=(1,), samples=True),
    )


def test_coefficients_within_the_noise_are_left_out_and_each_latent_has_its_token() -> None:
    latents = torch.zeros(1, 2, 16)
    latents[0, 0, 9], latents[0, 0, 10], latents[0, 0, 11] = -2.0, 0.05, 0.049
    latents[0, 1, 12] = 0.01
    chain = LatentChain(latents=latents, mask=torch.ones(1, 2).bool(), stop=torch.zeros(1).long())
    entry = text_example(pointing(), PROMPT_FORMAT, chain, 0, torch.tensor([12, 13, 14]))
    first, second = ([tuple(pair) for pair in step["tokens"]] for step in entry["steps"])
    assert first == [(names(9)[0], -2.0), (names(10)[0], 0.05)]
    assert second == [(names(12)[0], 0.01)]
    assert [step["entropy"] for step in entry["steps"]] == [None, None]
    # The chain has two latents.
    assert entry["decoded"] == names(12, 13)


def examples(system: System, chain: LatentChain | None = None, task: Any = TASK) -> list[dict[str, Any]]:
    tokens = torch.tensor([PROMPT_FORMAT.encode("\\boxed{7}"), PROMPT_FORMAT.encode("\\boxed{8}")])
    return first_examples(
        system,
        task,
        PROBLEMS,
        PROMPT_FORMAT,
        chain=mixed_chain() if chain is None else chain,
        tokens=tokens,
        correct=torch.tensor([True, False]),
    )


def test_examples_are_of_systems_whose_latents_are_made_of_tokens() -> None:
    system, chain = tiny_word_system(), mixed_chain()
    found = examples(system)
    assert [(one["question"], one["answer"]) for one in found] == [(one.question, one.answer) for one in PROBLEMS]
    assert [one["correct"] for one in found] == [True, False]
    assert [one["response"] for one in found] == ["\\boxed{7}", "\\boxed{8}"]
    assert [len(one["steps"]) for one in found] == [2, 1]
    bare = chain.with_latents(chain.latents)
    assert (has_words(system, chain), has_words(system, bare), has_words(pointing(), bare)) == (True, False, True)
    assert examples(system, bare) == []
    # A chain that is the answer itself is no example, nor are trees without targets.
    assert examples(replace(system, speaker=Separate(decode=lambda *_: bare.mask, end_ids=(), chain_tokens=True))) == []
    assert examples(system, task=TREES) == []


def test_examples_of_trees_have_a_row_a_problem() -> None:
    problems = TREES.sample("test", np.arange(3))
    latents = F.one_hot(torch.tensor([[6, 7], [8, 9], [10, 11]]), 21).float()
    chain = LatentChain(latents=latents, mask=torch.ones(3, 2).bool(), stop=torch.zeros(3).long())
    right = torch.tensor([True, False, True])
    found = first_examples(
        pointing(21), TREES, problems, PROMPT_FORMAT, chain=chain, tokens=TREES.answers(problems), correct=right
    )
    assert [one["coefficients"] for one in found] == [
        [{first: 1.0}, {second: 1.0}] for first, second in ("AB", "CD", "EF")
    ]
    assert [one["correct"] for one in found] == right.tolist()
    assert [one["spoken"] for one in found] == [TREES.words(row) for row in TREES.answers(problems)]
