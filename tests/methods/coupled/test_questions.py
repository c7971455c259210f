"""A row that asks several questions about one tree trains what so many rows of one question would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unspoken.backbone import UnspokenConfig, UnspokenForCausalLM
from unspoken.methods.coupled.stages import NextToken
from unspoken.tasks import TreeSearchConfig
from unspoken.tasks.task import AsksSeveral
from unspoken.tasks.tree_search import TARGET, TreeProblems

TASK = TreeSearchConfig(depth=3, shuffle_edges=True).build()
SEVERAL = [2, 4]


def model_of(attention: str) -> UnspokenForCausalLM:
    torch.manual_seed(0)
    config = UnspokenConfig(
        vocab_size=len(TASK.tokenizer),
        hidden_size=32,
        attention_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    model: UnspokenForCausalLM = UnspokenForCausalLM._from_config(config, attn_implementation=attention)
    return model


def problems(count: int = 5) -> TreeProblems:
    return TASK.sample("train", np.arange(count), seed=3)


def separate(trees: TreeProblems, questions: int) -> list[dict[str, Tensor]]:
    """The same problems in rows of one question, each from its own leaf on."""
    leaves = [TASK.first_leaf + (trees.leaf_B - TASK.first_leaf + shift) % 4 for shift in range(questions)]
    return [TASK.rows(replace(trees, targets_BA=leaf[:, None], leaf_B=leaf)) for leaf in leaves]


def losses(model: UnspokenForCausalLM, row: dict[str, Tensor]) -> Tensor:
    """Loss ``[B, T - 1]`` of every token after the first."""
    scores = model(input_ids=row["input_ids"], use_cache=False).logits[:, :-1]
    return F.cross_entropy(scores.transpose(1, 2), row["input_ids"][:, 1:], reduction="none")


def step(model: UnspokenForCausalLM, objective: NextToken, batch: dict[str, Any]) -> Tensor:
    ready = objective.with_places(batch)
    loss, _ = objective.loss(model, ready)
    return loss


def gradients(model: UnspokenForCausalLM, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("questions", SEVERAL)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_answers_train_as_in_separate_rows(attention: str, questions: int) -> None:
    model, trees = model_of(attention), problems()
    objective = NextToken(positions="answer", questions=questions)
    packed = step(model, objective, TASK.question_rows(trees, questions))
    apart = torch.stack([step(model, NextToken(positions="answer"), row) for row in separate(trees, questions)]).mean()
    assert packed.item() == pytest.approx(apart.item(), abs=1e-5)
    for one, other in zip(gradients(model, packed), gradients(model, apart), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("questions", SEVERAL)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_tree_counts_once_and_a_leaf_that_is_asked_for_never(attention: str, questions: int) -> None:
    model, trees = model_of(attention), problems()
    shared = TASK.prompt_length - 2
    rows = [losses(model, row) for row in separate(trees, questions)]
    counted = torch.cat([rows[0][:, : shared - 1], *(row[:, shared:] for row in rows)], dim=1)
    packed = step(model, NextToken(questions=questions), TASK.question_rows(trees, questions))
    assert packed.item() == pytest.approx(counted.mean().item(), abs=1e-5)


def test_no_question_sees_another() -> None:
    model, objective = model_of("sdpa"), NextToken(questions=4)
    batch = objective.with_places(TASK.question_rows(problems(), 4))
    scores: list[Tensor] = []

    def kept(**inputs: Any) -> Any:
        outputs = model(**inputs)
        scores.append(outputs.logits)
        return outputs

    changed = torch.where(batch["question"] == 2, TARGET, batch["input_ids"])
    for ids in (batch["input_ids"], changed):
        objective.loss(kept, {**batch, "input_ids": ids})
    before, after = scores
    assert torch.equal((before == after).all(dim=-1), batch["question"] != 2)


def test_the_task_says_how_much_it_can_ask() -> None:
    assert isinstance(TASK, AsksSeveral)
    assert [TreeSearchConfig(depth=depth).traits.questions for depth in (2, 3, 4)] == [2, 4, 8]
    assert TreeSearchConfig(depth=3, targets=2).traits.questions == 1


@pytest.mark.parametrize("questions", [1, *SEVERAL])
def test_a_row_asks_for_its_own_leaf_and_those_after_it(questions: int) -> None:
    trees = problems()
    row, apart = TASK.question_rows(trees, questions), separate(trees, questions)
    for number, one in enumerate(apart, start=1):
        chosen = (row["question"] == 0) | (row["question"] == number)
        assert torch.equal(row["input_ids"][chosen], one["input_ids"].flatten())
        assert torch.equal(row["answer_mask"][chosen], one["answer_mask"].flatten())
        assert torch.equal(row["position_ids"][chosen], torch.arange(one["input_ids"].shape[1]).repeat(len(trees)))
    if questions == 1:
        assert all(torch.equal(row[name], piece) for name, piece in TASK.rows(trees).items())


def test_all_leaves_of_a_tree_are_asked_for_once() -> None:
    trees = problems(50)
    assert len(np.unique(trees.leaf_B)) == 4
    row = TASK.question_rows(trees, 4)
    starts = TASK.prompt_length - 2 + 6 * np.arange(4)
    asked = np.sort(row["input_ids"][:, starts].numpy(), axis=1)
    assert np.array_equal(asked, np.sort(trees.names_BM[:, TASK.first_leaf :], axis=1))
