"""Next-token cross-entropy looks at the right outputs and at nothing else."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from recorded import batch_digest, check_default_stages, check_plans
from settings_checks import check_defaults, check_ranges
from tiny_models import FAMILIES, tiny_language_model
from torch import Tensor

from unspoken.methods.coupled.objective import supervised, supervised_places
from unspoken.methods.coupled.stages import NextToken

# Two rows; the first has two padding tokens on the left, and its answer is its last two tokens.
BATCH = {
    "input_ids": torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    "answer_mask": torch.tensor([[False, False, False, True, True], [False, False, True, True, True]]),
}
EXPECTED = {
    "all": [[False, False, True, True], [True, True, True, True]],
    "answer": [[False, False, True, True], [False, True, True, True]],
}


def loss_of(objective: NextToken, logits: Tensor) -> float:
    loss, terms = objective.loss(lambda **_: SimpleNamespace(logits=logits), BATCH)
    assert torch.equal(terms["token_loss"], loss.detach())
    return float(loss)


@pytest.mark.parametrize("positions", ["all", "answer"])
def test_an_output_is_supervised_by_the_token_after_it(positions: Literal["all", "answer"]) -> None:
    assert supervised(BATCH, positions).tolist() == EXPECTED[positions]


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
    loss, _ = NextToken(positions=positions).loss(lambda **_: SimpleNamespace(logits=logits), BATCH)
    loss.backward()
    assert logits.grad is not None
    touched = logits.grad.abs().amax(dim=-1) > 0
    assert touched[:, :-1].tolist() == EXPECTED[positions]
    assert not touched[:, -1].any()


def test_the_model_is_not_told_which_tokens_are_the_answer() -> None:
    given: set[str] = set()

    def forward(**inputs: Any) -> SimpleNamespace:
        given.update(inputs)
        return SimpleNamespace(logits=torch.zeros(2, 5, 9))

    NextToken().loss(forward, BATCH)
    assert given == {"input_ids", "attention_mask", "use_cache"}


# --- scores at supervised places alone -------------------------------------------------------------------------------


def test_the_places_are_those_where_some_row_is_supervised() -> None:
    assert supervised_places(BATCH).tolist() == [1, 2, 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_at_supervised_places_give_the_same_loss_and_gradients(family: str) -> None:
    model, objective = tiny_language_model(family), NextToken(positions="answer")

    def learn(batch: dict[str, Tensor]) -> tuple[int, Tensor, dict[str, Tensor]]:
        model.zero_grad()
        widths = []

        def forward(**inputs: Any) -> Any:
            outputs = model(**inputs)
            widths.append(outputs.logits.shape[1])
            return outputs

        loss, _ = objective.loss(forward, batch)
        loss.backward()
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        return widths[0], loss.detach(), gradients

    full, loss, gradients = learn(BATCH)
    remaining, same_loss, same_gradients = learn({**BATCH, "supervised": supervised_places(BATCH)})
    assert (full, remaining) == (5, 3)
    torch.testing.assert_close(same_loss, loss)
    torch.testing.assert_close(same_gradients, gradients)
    # A place too few is no smaller loss, but an error.
    with pytest.raises(ValueError, match="batch_size"):
        learn({**BATCH, "supervised": torch.tensor([1, 2])})


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(NextToken, "recipes.md", "methods/latent_sft.md", kind="next_token")


def test_settings_end_where_they_say() -> None:
    check_ranges(NextToken, {"questions": ([1], [0])})


def test_what_is_read_is_what_recorded_runs_read() -> None:
    assert batch_digest("arithmetic", "cot") == "d593b1e81703"
    assert batch_digest("arithmetic", "answer_only") == "f617ee171ae7"
    assert batch_digest("tree-search", "pretrain") == "5fc6aff32e17"


def test_stages_and_what_they_take_are_the_recorded_ones() -> None:
    check_plans("tree-search tiny", "tree-search-ambiguous tiny")
    check_default_stages("cot", "answer-only")
