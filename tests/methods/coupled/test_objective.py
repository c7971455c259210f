"""Next-token cross-entropy looks at the right outputs and at nothing else."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unspoken.methods.coupled import NextToken
from unspoken.methods.coupled.objective import supervised

# Two rows; the first has two padding tokens on the left, and its answer is its last two tokens.
BATCH = {
    "input_ids": torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    "answer_mask": torch.tensor([[False, False, False, True, True], [False, False, True, True, True]]),
}
WANTED = {
    "all": [[False, False, True, True], [True, True, True, True]],
    "answer": [[False, False, True, True], [False, True, True, True]],
}


def loss_of(objective: NextToken, logits: Tensor) -> float:
    loss, terms = objective(SimpleNamespace(logits=logits), BATCH)
    assert torch.equal(terms["token_loss"], loss.detach())
    return float(loss)


@pytest.mark.parametrize("positions", ["all", "answer"])
def test_an_output_is_judged_by_the_token_after_it(positions: Literal["all", "answer"]) -> None:
    assert supervised(BATCH, positions).tolist() == WANTED[positions]


@pytest.mark.parametrize("positions", ["all", "answer"])
def test_no_answer_costs_the_logarithm_of_the_vocabulary(positions: Literal["all", "answer"]) -> None:
    assert loss_of(NextToken(positions=positions), torch.zeros(2, 5, 9)) == pytest.approx(math.log(9))


def test_the_next_token_shouted_costs_nothing_and_the_same_token_costs_much() -> None:
    following = F.one_hot(BATCH["input_ids"].roll(-1, dims=1), 9).float() * 50
    assert loss_of(NextToken(), following) == pytest.approx(0, abs=1e-6)
    same = F.one_hot(BATCH["input_ids"], 9).float() * 50
    assert loss_of(NextToken(), same) > 10


@pytest.mark.parametrize("positions", ["all", "answer"])
def test_outputs_that_are_not_supervised_get_no_gradient(positions: Literal["all", "answer"]) -> None:
    logits = torch.randn(2, 5, 9, requires_grad=True)
    loss, _ = NextToken(positions=positions)(SimpleNamespace(logits=logits), BATCH)
    loss.backward()
    assert logits.grad is not None
    touched = logits.grad.abs().amax(dim=-1) > 0
    assert touched[:, :-1].tolist() == WANTED[positions]
    assert not touched[:, -1].any()


def test_the_model_is_not_told_which_tokens_are_the_answer() -> None:
    assert set(NextToken().inputs(BATCH)) == {"input_ids", "attention_mask", "use_cache"}
