"""What a stage of explicit text takes and counts, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from latent_models import caches_kept
from plain_stage import CAPS, LENGTHS, PROBLEM, facts_of
from tiny_models import tiny_language_model

from unspoken.methods.cost import RowCost, Scores, StackPass
from unspoken.methods.coupled.objective import next_token_loss, own_question, supervised, supervised_places, with_places
from unspoken.methods.coupled.stages import LARGE_VOCABULARY, NextToken


@pytest.mark.parametrize("entries", [LARGE_VOCABULARY - 1, LARGE_VOCABULARY])
@pytest.mark.parametrize(
    ("objective", "tokens", "learned"),
    [
        (NextToken(), 29, 29),
        (NextToken(positions="answer"), 29, 19),
        # Without the chain the marker that ends it stays in the row, and is not learned.
        (NextToken(chain="none"), 17, 17),
        (NextToken(positions="answer", chain="none"), 17, 5),
    ],
)
def test_a_large_vocabulary_is_scored_where_a_target_is(
    objective: NextToken, tokens: int, learned: int, entries: int
) -> None:
    head: Any = range(entries)
    model: Any = SimpleNamespace(base_model="stack", get_output_embeddings=lambda: SimpleNamespace(weight=head))
    made = learned if entries == 8192 else tokens
    assert objective.row_cost(model, LENGTHS, CAPS) == RowCost(
        tokens=tokens,
        passes=(StackPass(stack="stack", positions=tokens),),
        scores=(Scores(head=head, made=made, supervised=learned),),
    )


def test_the_chain_counts_unless_it_is_left_out() -> None:
    assert NextToken().row_length(PROBLEM, CAPS) == 15
    assert NextToken(chain="none").row_length(PROBLEM, CAPS) == 9
    assert (NextToken().writes_tokens, NextToken(chain="none").writes_tokens) == (True, False)


def test_what_a_stage_needs() -> None:
    assert facts_of(NextToken) == {"recomputes"}
    assert NextToken().candidate(0)


@pytest.mark.parametrize(
    ("chain", "has_chain", "recorded"),
    [
        ("explicit", True, [{"top_k": 1}]),
        ("none", True, [{"top_k": 1, "max_latents": 0, "fixed": True}]),
        ("explicit", False, []),
    ],
)
def test_the_folder_records_how_the_chain_is_written(chain: Any, has_chain: bool, recorded: Any) -> None:
    attached: list[Any] = []
    base, other = (tiny_language_model("llama") for _ in range(2))
    context: Any = SimpleNamespace(
        has_chain=has_chain,
        base=lambda: base,
        name_ends=attached.append,
        generation=lambda **how: SimpleNamespace(attach=lambda model: attached.append((model, how))),
    )
    for start, built in ((None, base), (other, other)):
        attached.clear()
        built.generation_config.latent = {"end_ids": [7]}
        assert NextToken(chain=chain).build(start, context) is built
        # Without chains nothing is recorded any more of how it reasoned before.
        assert hasattr(built.generation_config, "latent") == has_chain
        assert attached == [*((built, how) for how in recorded), built]


@pytest.mark.parametrize(
    ("positions", "has_chain", "entries", "few"),
    [
        ("answer", True, 8192, True),
        ("answer", True, 8191, False),
        ("answer", False, 8192, False),
        ("all", True, 8192, False),
    ],
)
def test_rows_of_a_large_vocabulary_name_the_places_that_are_scored(
    positions: Any, has_chain: bool, entries: int, few: bool
) -> None:
    explicit: list[bool] = []

    def rows(*_: Any, chain: bool) -> Any:
        explicit.append(chain)
        return BATCH

    context: Any = SimpleNamespace(
        has_chain=has_chain,
        tokenizer=range(entries),
        prompt_format=None,
        sample=lambda *_: None,
        task=SimpleNamespace(rows=rows),
    )
    for chain in ("explicit", "none"):
        batch = NextToken(positions=positions, chain=chain).collate(context)(None)  # type: ignore[arg-type]
        assert ("supervised" in batch) == few
        assert batch["input_ids"] is BATCH["input_ids"]
    assert explicit == [True, False]


def test_a_training_pass_keeps_no_cache() -> None:
    model = tiny_language_model("llama", vocab_size=30)
    with caches_kept(model.base_model) as kept:
        NextToken().loss(model, BATCH)
    assert kept == [False]


@pytest.mark.parametrize(
    ("positions", "last", "has_chain", "measured"),
    [
        ("all", True, True, True),
        ("all", True, False, True),
        ("all", False, True, False),
        ("answer", False, True, True),
        ("answer", False, False, False),
        ("answer", True, False, True),
    ],
)
def test_a_chain_is_measured_even_if_others_start_from_it(
    positions: Any, last: bool, has_chain: bool, measured: bool
) -> None:
    assert NextToken(positions=positions).measured(last=last, has_chain=has_chain) is measured


BATCH: dict[str, Any] = {
    "input_ids": torch.tensor([[3, 11, 21, 1], [4, 22, 1, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    "answer_mask": torch.tensor([[False, False, True, True], [False, True, True, False]]),
}


def test_places_by_hand() -> None:
    assert supervised(BATCH, "all").tolist() == [[True, True, True], [True, True, False]]
    assert supervised(BATCH, "answer").tolist() == [[False, True, True], [True, True, False]]
    assert supervised_places(BATCH).tolist() == [0, 1, 2]
    placed = with_places(BATCH, "answer")
    assert placed["places"].tolist() == [1, 2, 4, 5]
    assert placed["targets"].tolist() == [21, 1, 22, 1]
    # In a grid of the scored columns alone.
    few = with_places({**BATCH, "supervised": torch.tensor([1, 2])}, "answer")
    assert few["places"].tolist() == [0, 1, 2]
    assert NextToken(positions="answer").counts(placed) == {"tokens": 4}


def test_a_question_s_first_token_is_not_learned() -> None:
    batch = {**BATCH, "question": torch.tensor([[0, 1, 1, 2], [0, 1, 1, 1]])}
    assert supervised(batch, "all").tolist() == [[False, True, False], [False, True, False]]


def test_a_question_sees_the_beginning_and_itself() -> None:
    mask = own_question(torch.tensor([[0, 1, 2, 1]]))
    seen = (mask == 0)[0, 0].int().tolist()
    assert seen == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    assert mask[0, 0, 0, 1] == -torch.inf


def test_the_loss_is_a_mean_over_all_targets() -> None:
    """Every score but one is equal over four tokens; that one is certain."""
    logits = torch.zeros(2, 4, 4)
    logits[1, 1, 1] = 100.0
    batch = {**BATCH, "input_ids": torch.tensor([[3, 3, 2, 1], [1, 2, 1, 0]])}
    loss, terms = next_token_loss(SimpleNamespace(logits=logits), batch, "answer")
    assert loss.item() == pytest.approx(0.75 * torch.tensor(4.0).log().item())
    assert terms["token_loss"].item() == loss.item()


@pytest.mark.parametrize("several", [2, 3])
def test_a_row_of_several_questions_is_as_long_as_it_comes_out(several: int) -> None:
    """In the mean over sixteen, of which every second one is two tokens shorter."""

    class Asks:
        def question_rows(self, problems: list[int], questions: int) -> Any:
            assert questions == several
            lengths = torch.tensor([32 - 2 * (problem % 2) for problem in problems])
            return {"input_ids": torch.zeros(len(problems), 32), "attention_mask": torch.arange(32) < lengths[:, None]}

    context: Any = SimpleNamespace(training_task=Asks(), sample=lambda indices, *_: indices.tolist())
    head: Any = range(9000)
    model: Any = SimpleNamespace(base_model="stack", get_output_embeddings=lambda: SimpleNamespace(weight=head))
    objective = NextToken(positions="answer", questions=several)
    cost = objective.row_cost(model, LENGTHS, context)
    assert (cost.tokens, cost.scores[0].supervised, cost.scores[0].made) == (31, several * 19, several * 19)
    assert objective.questions_per_row == several
    assert objective.collate(context)(np.array([0]))["input_ids"].shape == (1, 32)
