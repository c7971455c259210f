"""Identities of the SST loss, and the signs of collapse."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recorded import batch_digest, check_default_stages, check_plans
from settings_checks import check_defaults, check_ranges, check_recorded
from torch import Tensor

from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.objective import (
    best_constant_loss,
    collapsed,
    effective_rank,
    sst_inputs,
    sst_loss,
    talker_places,
)
from unspoken.methods.jepa_reasoner.stages import SST, TalkerLoss


def sphere(count: int, width: int = 8) -> Tensor:
    return F.normalize(torch.randn(count, width), dim=-1)


# --- the loss --------------------------------------------------------------------------------------------------------


def test_on_the_sphere_one_minus_cosine_is_half_the_squared_distance() -> None:
    x, y = sphere(200), sphere(200)
    halved = (x - y).square().sum(dim=-1).mean() / 2
    torch.testing.assert_close(sst_loss(x, y, 1.0), halved)


@pytest.mark.parametrize("k", [1.0, 4.0, 6.0])
def test_the_loss_lies_between_zero_and_twice_k(k: float) -> None:
    x = sphere(500)
    for y in (sphere(500), x, -x):
        loss = torch.stack([sst_loss(a[None], b[None], k) for a, b in zip(x, y, strict=True)])
        assert loss.min() >= -1e-5
        assert loss.max() <= 2 * k + 1e-5
    torch.testing.assert_close(sst_loss(x, x, k), torch.tensor(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(sst_loss(x, -x, k), torch.tensor(2 * k))


def test_the_norms_of_prediction_and_target_do_not_matter() -> None:
    x, y = sphere(50), sphere(50)
    torch.testing.assert_close(sst_loss(x * 7, y * 0.01, 4.0), sst_loss(x, y, 4.0))


def test_the_loss_is_the_mean_over_positions() -> None:
    x, y = sphere(10), sphere(10)
    each = torch.stack([sst_loss(a[None], b[None], 4.0) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(sst_loss(x, y, 4.0), each.mean())


def test_the_normalised_posterior_mean_is_the_best_prediction() -> None:
    # Spec 4.2: why latents are mixtures. Targets e_i come with probabilities p_i; no unit vector does better.
    directions, odds = sphere(6), torch.softmax(torch.randn(6), dim=0)

    def expected_loss(prediction: Tensor) -> Tensor:
        return (odds * torch.stack([sst_loss(prediction[None], row[None], 4.0) for row in directions])).sum()

    mean = odds @ directions
    best = expected_loss(F.normalize(mean, dim=-1))
    torch.testing.assert_close(best, 4 * (1 - mean.norm()))
    near = [F.normalize(F.normalize(mean, dim=-1) + 0.05 * torch.randn(8), dim=-1) for _ in range(200)]
    others = torch.stack([expected_loss(vector) for vector in (*sphere(200), *near, *directions)])
    assert best < others.min()


def test_the_best_constant_is_the_best_that_optimisation_finds() -> None:
    target = F.normalize(torch.randn(40, 8) + torch.tensor([1.5] + [0.0] * 7), dim=-1)
    constant = torch.randn(8, requires_grad=True)
    optimizer = torch.optim.Adam([constant], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        loss = sst_loss(constant.expand(40, 8), target, 4.0)
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(best_constant_loss(target, 4.0), loss.detach(), rtol=1e-4, atol=1e-4)


def test_equal_targets_make_a_constant_perfect() -> None:
    # The anisotropic table in the extreme: loss near zero without having learned anything.
    target = sphere(1).expand(30, 8) * torch.rand(30, 1)
    torch.testing.assert_close(best_constant_loss(target, 4.0), torch.tensor(0.0), rtol=0, atol=1e-5)


# --- rank and collapse -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 21])
def test_orthogonal_rows_have_full_effective_rank(size: int) -> None:
    assert effective_rank(torch.eye(size)) == pytest.approx(size, rel=1e-4)
    rotation, _ = torch.linalg.qr(torch.randn(size, size))
    assert effective_rank(rotation * torch.rand(size, 1).add(0.1)) == pytest.approx(size, rel=1e-4)


def test_rows_along_one_line_have_effective_rank_one() -> None:
    assert effective_rank(torch.randn(10, 1) * torch.randn(1, 8)) == pytest.approx(1, rel=1e-3)


def test_pairs_of_equal_rows_have_half_the_effective_rank() -> None:
    assert effective_rank(torch.eye(6).repeat_interleave(2, dim=0)) == pytest.approx(6, rel=1e-4)


@pytest.mark.parametrize(("falls", "flattens", "finds"), [*product([True, False], repeat=3)])
def test_collapse_is_a_falling_loss_on_a_flattening_table_that_finds_no_rows(
    falls: bool, flattens: bool, finds: bool
) -> None:
    start = {"sst_loss": 3.0, "effective_rank": 20.0, "nearest_row": 0.10}
    now = {
        "sst_loss": 1.0 if falls else 3.0,
        "effective_rank": 9.0 if flattens else 11.0,
        "nearest_row": 0.50 if finds else 0.11,
    }
    assert collapsed(start, now) == (falls and flattens and not finds)


# --- the objective of stage 2 ----------------------------------------------------------------------------------------

BATCH = {
    "input_ids": torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 1]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    "answer_mask": torch.tensor([[False, False, False, True, True], [False, False, True, True, True]]),
}
SUPERVISED = {
    "all": [[False, False, True, True], [True, True, True, True]],
    "answer": [[False, False, True, True], [False, True, True, True]],
}


def outputs(latents: Tensor, table: Tensor) -> Callable[..., SimpleNamespace]:
    """A model that returns these latents, whatever it reads."""
    return lambda **_: SimpleNamespace(latents=latents, target_table=table)


@pytest.mark.parametrize("objective", [SST(positions="all"), SST(positions="answer"), SST(k=1.0, positions="all")])
def test_the_target_of_a_latent_is_the_row_of_the_token_after_it(objective: SST) -> None:
    table = torch.randn(9, 8)
    perfect = table[BATCH["input_ids"].roll(-1, dims=1)]
    loss, terms = objective.loss(outputs(perfect, table), BATCH)
    assert float(loss) == pytest.approx(0, abs=1e-5)
    assert set(terms) == {"sst_loss", "best_constant_loss"}
    # Known mistake of other implementations: no shift.
    unshifted, _ = objective.loss(outputs(table[BATCH["input_ids"]], table), BATCH)
    assert float(unshifted) > 0.5


@pytest.mark.parametrize("positions", ["all", "answer"])
def test_only_supervised_latents_get_a_gradient_and_the_table_gets_none(positions: str) -> None:
    latents, table = torch.randn(2, 5, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    loss, _ = SST(positions=positions).loss(outputs(latents, table), BATCH)  # type: ignore[arg-type]
    loss.backward()
    assert table.grad is None
    assert latents.grad is not None
    touched = latents.grad.abs().amax(dim=-1) > 0
    assert touched[:, :-1].tolist() == SUPERVISED[positions]
    assert not touched[:, -1].any()


def test_the_best_constant_is_measured_on_the_supervised_targets() -> None:
    table = torch.randn(9, 8)
    _, terms = SST().loss(outputs(torch.randn(2, 5, 8), table), BATCH)
    torch.testing.assert_close(terms["best_constant_loss"], best_constant_loss(table[[6, 7, 5, 6, 1]], 4.0))


@pytest.mark.parametrize("settings", [{"k": 0.0}, {"k": -1.0}, {"momentum": -0.1}, {"momentum": 1.1}], ids=str)
def test_impossible_settings_are_refused_by_name(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        SST(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("positions", ["all", "answer"])
def test_own_latents_are_one_stretch_a_row_where_a_rollout_could_be(positions: str) -> None:
    real = torch.ones(400, 12, dtype=torch.long)
    real[::2, :3] = 0
    answers = torch.zeros(400, 12, dtype=torch.bool)
    answers[:, 7:] = True
    batch = {"input_ids": real, "attention_mask": real, "answer_mask": answers}
    own = sst_inputs(SST(positions=positions, rollout_latents=4), batch)["own"]  # type: ignore[arg-type]
    counts = own.sum(dim=1)
    assert set(counts.tolist()) == {1, 2, 3, 4}
    starts = (own & ~F.pad(own[:, :-1], (1, 0))).sum(dim=1)
    assert starts.eq(1).all()
    reached = own.any(dim=0).nonzero()[:, 0].tolist()
    assert reached == (list(range(7, 12)) if positions == "answer" else list(range(1, 12)))
    assert own[::2].any(dim=0).nonzero()[0] == (7 if positions == "answer" else 4)
    assert "own" not in sst_inputs(SST(positions=positions), batch)  # type: ignore[arg-type]
    with torch.no_grad():
        assert "own" not in sst_inputs(SST(positions=positions, rollout_latents=4), batch)  # type: ignore[arg-type]


def test_the_defaults_are_the_paper_s() -> None:
    assert (SST().k, SST().momentum, SST().positions) == (4.0, 0.98, "answer")


# --- the objective of stage 3 ----------------------------------------------------------------------------------------


def test_the_talker_s_loss_is_cross_entropy_over_real_steps() -> None:
    logits, tokens = torch.randn(2, 3, 9), torch.randint(0, 9, (2, 3))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    loss, terms = TalkerLoss().loss(lambda **_: SimpleNamespace(logits=logits, tokens=tokens, mask=mask), BATCH)
    each = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(2, 3)
    torch.testing.assert_close(loss, (each[0, 0] + each[0, 1] + each[1, 0]) / 3)
    assert torch.equal(terms["talker_loss"], loss)


def test_places_of_a_talker_are_those_of_the_answer_packed_to_the_left() -> None:
    # The first row answers three tokens, the second one; a latent stands before each of them.
    batch = {
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]),
        "answer_mask": torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool),
    }
    placed = talker_places(batch)
    assert placed["length"] == 3
    assert placed["places"].tolist() == [0, 1, 2, 3]  # of two rows of three, flat
    # What is read must be real: an answer whose latent would stand on padding has no place.
    batch["attention_mask"][0, 1] = 0
    assert talker_places(batch)["places"].tolist() == [0, 1, 2]
    assert talker_places(batch)["length"] == 2


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(SST, "recipes.md", kind="sst")
    check_recorded(JepaReasonerConfig)


def test_settings_end_where_they_say() -> None:
    rollouts: dict[str, Any] = {"rollout_latents": ([0], [-1]), "rollout_passes": ([1], [0])}
    check_ranges(SST, {**rollouts, "k": ([1e-6], [0.0]), "momentum": ([0.0, 1.0], [-0.01, 1.01])})


def test_what_is_read_is_what_recorded_runs_read() -> None:
    assert batch_digest("grammar", "sst") == "fc60ffd7f664"
    assert batch_digest("grammar", "talker") == "b8588b3e2e0f"


def test_stages_and_what_they_take_are_the_recorded_ones() -> None:
    check_plans("tree-search tiny", "prose tiny")
    check_default_stages("jepa-reasoner")
