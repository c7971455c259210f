"""What a stage of MUX takes, its cuts, its targets and its loss, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain_stage import CAPS, LENGTHS, PROBLEM, facts_of

from unspoken.methods.carrier import CarriedRow
from unspoken.methods.coconut.stages import Coconut
from unspoken.methods.codi.stages import Codi
from unspoken.methods.cost import Scores
from unspoken.methods.mux.objective import divergence, span_targets, superposed
from unspoken.methods.mux.stages import Mux

CHAIN = (11, 12, 13, 14, 15, 16, 17)


def test_the_head_scores_every_latent_and_does_not_learn() -> None:
    head = torch.nn.Parameter(torch.ones(3, 2))
    decoder = SimpleNamespace(
        base_model="stack", get_output_embeddings=lambda: SimpleNamespace(weight=head, numel=head.numel)
    )
    carrier = SimpleNamespace(decoder=decoder, projection=None)
    model: Any = SimpleNamespace(carrier=carrier)
    codi = Codi(latents=6)
    cost, own = Mux(carrier=codi).row_cost(model, LENGTHS, CAPS), codi.row_cost(carrier, LENGTHS, CAPS)
    assert (cost.tokens, cost.passes) == (own.tokens, own.passes)
    *scores, added = cost.scores
    assert len(scores) == 2
    assert (added.made, added.supervised, added.has_gradient, added.products, added.pieces) == (6, 6, True, 1, False)
    assert not added.head.requires_grad
    assert isinstance(added, Scores)


def test_what_a_stage_needs_and_caps() -> None:
    assert facts_of(Mux) == {"chain_needed", "steps_needed", "answers_from_latents"}
    on_codi, on_coconut = Mux(carrier=Codi()), Mux(carrier=Coconut(replaced=1))
    # The carrier's row, and the chain of six tokens once more.
    assert on_codi.row_length(PROBLEM, CAPS) == 2 * (5 + 4) + 3 + 6
    assert on_coconut.row_length(PROBLEM, CAPS) == 5 + 4 + 4 + 6
    assert (on_codi.answer_tokens(CAPS), on_coconut.answer_tokens(CAPS)) == (7, 27)


def test_equal_cuts() -> None:
    objective = Mux(carrier=Codi(), random_cuts=False)
    assert objective.cut(CHAIN, 1, (0,)) == [CHAIN]
    assert objective.cut(CHAIN, 2, (0,)) == [CHAIN[:3], CHAIN[3:]]
    assert objective.cut(CHAIN, 3, (0,)) == [CHAIN[:2], CHAIN[2:4], CHAIN[4:]]
    for count in (7, 9):
        assert objective.cut(CHAIN, count, (0,)) == [(token,) for token in CHAIN]


def test_random_cuts_are_every_cut_without_an_empty_span() -> None:
    objective = Mux(carrier=Codi())
    cuts = [objective.cut(CHAIN, 3, (seed, 5)) for seed in range(400)]
    assert all(sum(spans, ()) == CHAIN and all(spans) and len(spans) == 3 for spans in cuts)
    assert len(set(map(tuple, cuts))) == math.comb(6, 2)
    assert objective.cut(CHAIN, 3, (8, 5)) == objective.cut(CHAIN, 3, (8, 5))


def test_weights_fall_by_the_decay() -> None:
    assert superposed((11, 12, 11), 0.5) == pytest.approx({11: 1.25 / 1.75, 12: 0.5 / 1.75})
    assert superposed((11, 12), 1.0) == {11: 0.5, 12: 0.5}


def test_targets_by_hand() -> None:
    targets = span_targets([[(11, 12), (13,)], [], [(14,)]], 3, 0.5)
    assert targets["span_places"].tolist() == [0, 1, 6]
    assert targets["span_ids"].tolist() == [[11, 12], [13, 0], [14, 0]]
    assert targets["span_weights"].flatten().tolist() == pytest.approx([2 / 3, 1 / 3, 1, 0, 1, 0])
    assert [len(one) for one in span_targets([[], []], 3, 0.5).values()] == [0, 0, 0]


def test_rows_without_latents_have_no_spans() -> None:
    rows = [
        CarriedRow(index=0, steps=((11, 12), (13,)), latents=2, answer=(21,)),
        CarriedRow(index=1, steps=((14,),), latents=0, answer=(21,)),
        CarriedRow(index=2, steps=((15,),), latents=3, answer=(21,)),
    ]
    objective, context = Mux(carrier=Codi(), random_cuts=False), SimpleNamespace(seed=0)
    targets = objective.targets(rows, context)  # type: ignore[arg-type]
    # Three tokens in two spans are one and two; rows are as wide as the most latents.
    assert targets["span_places"].tolist() == [0, 1, 6]
    assert targets["span_ids"].tolist() == [[11, 0], [12, 13], [15, 0]]
    assert objective.added_counts(targets) == {"spans": 3}


def test_the_divergence_by_hand() -> None:
    added = {"span_ids": torch.tensor([[0, 1], [2, 0]]), "span_weights": torch.tensor([[0.5, 0.5], [1.0, 0.0]])}
    # Probabilities of a half, a quarter and a quarter in both rows.
    scores = torch.tensor([[math.log(2), 0.0, 0.0]] * 2)
    first = 0.5 * math.log(0.5 / 0.5) + 0.5 * math.log(0.5 / 0.25)
    expected = (first + math.log(4)) / 2
    assert divergence(scores, added).item() == pytest.approx(expected)
    objective = Mux(carrier=Codi(), temperature=2.0)
    assert objective.added_loss(2 * scores, added).item() == pytest.approx(expected)
    nothing = {"span_ids": torch.zeros(0, 1, dtype=torch.long), "span_weights": torch.zeros(0, 1)}
    assert divergence(torch.zeros(0, 3), nothing).item() == 0


def test_the_loss_is_the_carrier_s_and_the_weighted_divergence() -> None:
    class Alone(Codi):
        def loss(self, model: Any, batch: Any) -> Any:
            assert set(batch) == {"rows"}
            model(rows=batch["rows"])
            return torch.tensor(1.0), {"text_loss": torch.tensor(1.0)}

    added = {"span_ids": torch.tensor([[0]]), "span_weights": torch.tensor([[1.0]])}
    objective = Mux(carrier=Alone(), weight=3.0)
    loss, terms = objective.loss(lambda **_: (None, torch.zeros(1, 2)), {"rows": 5, "added": added})
    assert loss.item() == pytest.approx(1 + 3 * math.log(2))
    assert terms["mux_loss"].item() == pytest.approx(math.log(2))
    assert terms["text_loss"].item() == 1
