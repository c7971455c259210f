"""MUX against its formula, and the identities of its specification."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from latent_models import BOX, MARKERS, NARROW, SPANS, around, assert_same_gradients, gradients
from recorded import batch_digest, check_default_stages, check_plans
from settings_checks import check_defaults, check_ranges
from tiny_drills import drilled
from tiny_models import FAMILIES, PAD, VOCABULARY, tiny_language_model
from tiny_recipe import quiet_stage, quiet_train
from torch import Tensor

from unspoken.methods.codi.model import CodiForCausalLM
from unspoken.methods.codi.stages import Codi
from unspoken.methods.distillation_loss import batch_of
from unspoken.methods.loading import load_model
from unspoken.methods.mux.model import MuxModel
from unspoken.methods.mux.objective import divergence, span_targets, superposed
from unspoken.methods.mux.stages import Mux
from unspoken.training import recipe as recipes
from unspoken.training.context import context_of
from unspoken.training.plan import plan
from unspoken.training.stages import data_of

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
OBJECTIVE = Mux(carrier=Codi(latents=2), weight=0.5, random_cuts=False)
# Chains without their last step; the second is empty, and the last has one token for two latents.
CUT = [[(13,), (14, 15)], [], [(19,)]]


def batch() -> dict[str, Any]:
    given = batch_of(SPANS, MARKERS, BOX, latents=2, last_step=False, pad_id=PAD)
    return {**given, "added": span_targets(CUT, 2, OBJECTIVE.decay)}


def naive_loss(latents: Tensor, head: Tensor) -> Tensor:
    losses = []
    for row, spans in zip(latents, CUT, strict=True):
        for latent, span in zip(row, spans, strict=False):
            expected = torch.zeros(VOCABULARY)
            for place, token in enumerate(span):
                expected[token] += 0.9**place / sum(0.9**other for other in range(len(span)))
            losses.append(F.kl_div(F.log_softmax(head @ latent, dim=-1), expected, reduction="sum"))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_both_losses_are_the_naive_ones_with_their_gradients(family: str) -> None:
    model = MuxModel(around(CodiForCausalLM, tiny_language_model(family), latents=2, projection=NARROW)).eval()
    given = batch()
    alone = {name: part for name, part in given.items() if name != "added"}
    loss, terms = OBJECTIVE.loss(model, given)
    shown: list[Any] = []
    expected, own = OBJECTIVE.carrier.loss(lambda **how: shown.append(model.carrier(**how)) or shown[-1], alone)
    assert all(torch.equal(terms[name], value) for name, value in own.items())
    head = model.carrier.decoder.get_output_embeddings().weight
    added = naive_loss(shown[0].latents, head.detach())
    torch.testing.assert_close(terms["mux_loss"], added, **CLOSE)
    theirs = gradients(expected + 0.5 * added, model)
    assert_same_gradients(gradients(loss, model), theirs)
    assert theirs["carrier.projection.1.weight"].abs().max() > 1e-4


def test_weights_tell_the_order_unless_they_are_all_alike() -> None:
    for decay, distinct in ((0.9, 27), (1.0, 10)):
        mixed = [superposed(span, decay) for span in product((4, 5, 6), repeat=3)]
        assert all(sum(one.values()) == pytest.approx(1) for one in mixed)
        assert len({tuple(round(one.get(token, 0), 9) for token in (4, 5, 6)) for one in mixed}) == distinct
    assert superposed((7, 8, 7), 0.5) == pytest.approx({7: 5 / 7, 8: 2 / 7})


def test_a_span_of_one_token_is_cross_entropy() -> None:
    added = span_targets([[(3,), (9,)]], 2, 0.9)
    scores = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(divergence(scores, added), F.cross_entropy(scores, torch.tensor([3, 9])), **CLOSE)
    # Nothing is left to learn where the scores are the logarithms of the weights.
    mixed = span_targets([[(3, 4, 3)]], 1, 0.9)
    exact = torch.full((1, VOCABULARY), -1e4)
    exact[0, mixed["span_ids"][0]] = mixed["span_weights"][0].log()
    assert divergence(exact, mixed) == pytest.approx(0, abs=1e-6)
    nothing = span_targets([[], []], 0, 0.9)
    assert divergence(torch.zeros(0, VOCABULARY), nothing) == 0


def test_cuts_leave_no_span_empty_and_reach_every_place() -> None:
    objective, chain = Mux(carrier=Codi(latents=3)), tuple(range(3, 9))
    cuts = [objective.cut(chain, 3, (0, index)) for index in range(600)]
    assert cuts == [objective.cut(chain, 3, (0, index)) for index in range(600)]
    assert all(sum(spans, ()) == chain and len(spans) == 3 and all(spans) for spans in cuts)
    ends = Counter((len(spans[0]), len(spans[0]) + len(spans[1])) for spans in cuts)
    assert len(ends) == 10 and min(ends.values()) > 30  # two of five places
    assert OBJECTIVE.cut(chain, 4, (0, 0)) == [(3,), (4, 5), (6,), (7, 8)]
    assert OBJECTIVE.cut((5, 6), 4, (0, 0)) == [(5,), (6,)]


def test_training_reads_the_chain_and_publishes_the_carrier(tmp_path: Path) -> None:
    made = drilled("words")
    stage = made.stage("mux")
    context = context_of(made, stage)
    data = data_of(made, context).__getitems__([*range(4)])
    assert data["added"]["span_weights"].sum(dim=1).tolist() == pytest.approx([1.0] * len(data["added"]["span_ids"]))
    quiet_train(made, tmp_path, only="cot")
    assert isinstance(load_model(quiet_stage(made, tmp_path, name="mux")), CodiForCausalLM)
    flops = {one["stage"]: one["flops"] for one in plan(made)["models"]}
    assert flops["mux"] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mux(carrier=Codi(), decay=0.0), r"decay is 0\.0"),
        (lambda: Mux(carrier=Codi(), temperature=0.0), r"temperature is 0\.0"),
        (lambda: Mux(carrier=Codi(), weight=-1.0), r"weight is -1\.0"),
    ],
)
def test_a_refusal_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_the_shipped_recipe_trains_each_as_long() -> None:
    made = recipes.load("arithmetic-mux", "tiny")
    assert made.steps(made.stage("mux")) == made.steps(made.stage("codi"))


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(Mux, "methods/mux.md")


def test_settings_end_where_they_say() -> None:
    ranges: dict[str, Any] = {"decay": ([1e-6, 1.0], [0.0, 1.01]), "temperature": ([1e-6], [0.0])}
    check_ranges(Mux, {**ranges, "weight": ([1e-6], [0.0])}, carrier=Codi())


def test_what_is_read_is_what_recorded_runs_read() -> None:
    assert batch_digest("arithmetic-mux", "mux") == "9013dd29b203"
    assert batch_digest("arithmetic-mux", "mux", "stages.mux.objective.random_cuts=false") == "735c637b3601"


def test_stages_and_what_they_take_are_the_recorded_ones() -> None:
    check_plans("arithmetic-mux tiny")
    check_default_stages("mux")
