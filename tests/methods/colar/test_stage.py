"""What a stage of CoLaR takes and counts, and its batch and losses by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from plain_stage import CAPS, LENGTHS, PROBLEM, facts_of, sized_model

from unspoken.methods.colar.model import ColarOutput
from unspoken.methods.colar.objective import batch_of, colar_loss, latent_losses, with_places
from unspoken.methods.colar.reasoning import ThinkingSpeed
from unspoken.methods.colar.stages import Colar, Row
from unspoken.methods.cost import ProjectionPass, RowCost, Scores, StackPass
from unspoken.tasks.spans import Markers

HEAD: Any = "head"


def named(*lengths: int) -> Any:
    """A context whose tokenizer names speeds with so many tokens."""
    texts = {str(number): (40 + number,) * length for number, length in enumerate(lengths, start=1)}
    return SimpleNamespace(prompt_format=SimpleNamespace(encode=texts.__getitem__))


def test_groups_are_averaged_over_the_speeds() -> None:
    objective = Colar(max_compression=5, speed="{}")
    # Twelve tokens in groups of 1, 2, 3, 4 and 5, and speeds of one to three tokens.
    groups, speed = (12 + 6 + 4 + 3 + 3) / 5, (1 + 1 + 2 + 3 + 3) / 5
    supervised = groups + 7
    tokens = 10 + speed + supervised
    assert objective.row_cost(sized_model(latent_head="latent head"), LENGTHS, named(1, 1, 2, 3, 3)) == RowCost(
        tokens=tokens,
        passes=(
            StackPass(stack="stack", positions=tokens),
            # The end marker is predicted by the latent head too.
            ProjectionPass(stack="latent head", positions=groups + 1),
        ),
        scores=(Scores(head=HEAD, made=supervised, supervised=supervised),),
    )


def test_a_row_is_as_long_as_without_compression() -> None:
    assert Colar().row_length(PROBLEM, CAPS) == 5 + 6 + 4


def test_what_a_stage_needs() -> None:
    assert facts_of(Colar) == {"chain_needed", "answers_from_latents", "recomputes"}


@pytest.mark.parametrize(
    ("loss", "floor", "deterministic"), [("nll", 0.25, False), ("sample", 0.0, False), ("mean", 0.0, True)]
)
@pytest.mark.parametrize(("known", "spread"), [({"initializer_range": 0.5}, 0.5), ({}, 0.02)])
def test_a_deviation_has_a_floor_where_its_likelihood_is_learned(
    loss: Any, floor: float, deterministic: bool, known: Any, spread: float
) -> None:
    class Made(Colar):
        @staticmethod
        def model_class() -> Any:
            return SimpleNamespace(around=lambda *_, **settings: settings)

    context = named(1)
    context.max_latents = 20
    base: Any = SimpleNamespace(config=SimpleNamespace(**known))
    objective = Made(max_compression=1, compression=1, speed="{}", latent_loss=loss, floor=0.25)
    made: Any = objective.build(base, context)
    assert (made["floor"], made["deterministic"], made["initializer_range"]) == (floor, deterministic, spread)
    assert (made["latents"], made["speed_ids"], made["compression"]) == (20, [[41]], 1)


def test_each_speed_has_its_own_name() -> None:
    assert Colar(max_compression=3, compression=1, speed="{}").speeds(named(1, 2, 1)) == [[41], [42, 42], [43]]


def test_a_row_by_hand() -> None:
    """With one speed alone nothing but the labels is drawn."""
    objective = Colar(max_compression=1, compression=1)
    row = objective.row(PROBLEM, Markers(open=(8,), end=(9, 10)), [[41, 42]], np.random.default_rng(0))
    assert row.groups == tuple(
        (token,) for token in (3, 4, 5, 6, 7, 41, 42, 8, 11, 12, 13, 14, 15, 16, 9, 10, 21, 22, 23, 1)
    )
    assert row.labels == (*[-100] * 8, 11, 12, 13, 14, 15, 16, 9, 10, 21, 22, 23, 1)
    # The groups of the chain and the first token of the end marker are predicted as latents.
    assert row.grouped == (*[False] * 8, *[True] * 7, *[False] * 5)


def test_all_speeds_and_all_tokens_of_a_group_are_drawn() -> None:
    objective, speeds, random = Colar(max_compression=3), [[41], [42], [43]], np.random.default_rng(0)
    markers = Markers(open=(8,), end=(9,))
    rows = [objective.row(PROBLEM, markers, speeds, random) for _ in range(80)]
    chains = {
        41: ((11,), (12,), (13,), (14,), (15,), (16,)),
        42: ((11, 12), (13, 14), (15, 16)),
        43: ((11, 12, 13), (14, 15, 16)),
    }
    drawn: dict[int, set[int]] = {41: set(), 42: set(), 43: set()}
    for row in rows:
        (speed,) = row.groups[5]
        chain = chains[speed]
        assert row.groups[7 : 7 + len(chain)] == chain
        labels = row.labels[7 : 7 + len(chain)]
        assert all(label in group for label, group in zip(labels, chain, strict=True))
        drawn[speed] |= set(labels)
    assert drawn == {key: {11, 12, 13, 14, 15, 16} for key in chains}


def test_a_batch_by_hand() -> None:
    rows = [
        Row(groups=((3,), (11, 12), (9,), (1,)), labels=(-100, 12, 9, 1), grouped=(False, True, True, False)),
        Row(groups=((4,), (9,)), labels=(-100, 9), grouped=(False, True)),
    ]
    batch = batch_of(rows, 0)
    assert batch["ids"].tolist() == [[[3, 0], [11, 12], [9, 0], [1, 0]], [[4, 0], [9, 0], [0, 0], [0, 0]]]
    single, both = [True, False], [True, True]
    assert batch["members"].tolist() == [[single, both, single, single], [single] * 4]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    placed = with_places(batch)
    # Outputs before the labels, of rows of four.
    assert placed["before_targets"].tolist() == [0, 1, 2, 4]
    assert placed["targets"].tolist() == [12, 9, 1, 9]
    assert placed["before_groups"].tolist() == [0, 1, 4]
    assert Colar().counts(placed) == {"tokens": 4, "latents": 3}


def output_of(deviation: float | None) -> ColarOutput:
    """Two latents of two numbers, the first a distance of 3 and 1 off; tokens with a probability of a half each."""
    return ColarOutput(
        logits=torch.zeros(2, 2),
        mean=torch.tensor([[3.0, 0.0], [0.0, 0.0]]),
        groups=torch.tensor([[0.0, 1.0], [0.0, 0.0]]),
        log_deviation=None if deviation is None else torch.full((2, 2), math.log(deviation)),
    )


def test_the_likelihood_is_that_of_a_gaussian() -> None:
    losses = latent_losses(output_of(2.0), floor=0.1)
    assert losses["mean"].tolist() == [5.0, 0.0]
    constant = 0.5 * math.log(2 * math.pi) + math.log(2)
    assert losses["nll"].tolist() == pytest.approx([constant + 5 / 8, constant])
    # Below the floor the deviation is the floor.
    floored = 0.5 * math.log(2 * math.pi) + math.log(4)
    assert latent_losses(output_of(2.0), floor=4.0)["nll"].tolist() == pytest.approx([floored + 5 / 32, floored])
    assert set(latent_losses(output_of(None), floor=0.1)) == {"mean"}


def test_a_draw_is_as_far_off_as_mean_and_deviation_make_it() -> None:
    """The squared distance of a draw is that of the mean and the variance, on average."""
    torch.manual_seed(0)
    output = ColarOutput(
        mean=torch.full((4000, 2), 1.0), groups=torch.zeros(4000, 2), log_deviation=torch.full((4000, 2), math.log(2.0))
    )
    assert latent_losses(output, floor=0.1)["sample"].mean().item() == pytest.approx(1 + 4, rel=0.05)


def test_a_draw_above_the_mean_is_farther_from_a_group_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn", lambda *size, **_: torch.ones(size))
    losses = latent_losses(output_of(2.0), floor=0.1)
    # The mean is 3 above its group and 1 below, and every draw two above the mean.
    assert losses["sample"].tolist() == pytest.approx([((3 + 2) ** 2 + (-1 + 2) ** 2) / 2, 2**2])


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    objective = Colar(latent_loss="mean", token_weight=2.0, latent_weight=3.0)
    loss, terms = colar_loss(objective, output_of(2.0), {"targets": torch.tensor([0, 1])})
    assert loss.item() == pytest.approx(2 * math.log(2) + 3 * 2.5)
    assert {name: terms[name].item() for name in ("token_loss", "latent_mean", "deviation")} == pytest.approx(
        {"token_loss": math.log(2), "latent_mean": 2.5, "deviation": 2.0}
    )
    assert "deviation" not in colar_loss(objective, output_of(None), {"targets": torch.tensor([0, 1])})[1]


def test_a_speed_suits_stages_that_learned_it() -> None:
    traits: Any = None
    three = Colar(max_compression=3)
    assert [ThinkingSpeed(compression=speed).suits(three, traits) for speed in (1, 3, 4)] == [True, True, False]
    assert not ThinkingSpeed(compression=1).suits(object(), traits)  # type: ignore[arg-type]
    assert ThinkingSpeed(compression=2).title == "thinking speed, compression 2"
    assert (
        ThinkingSpeed(compression=2, sampled=True, seed=1).title
        == "thinking speed, compression 2, sampled True, seed 1"
    )
