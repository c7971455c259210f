"""Settings of steps and chains: defaults that the papers and the pages state, and ends of ranges."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from settings_checks import check_ranges, documented

from unspoken.chain import StopReason
from unspoken.reasoning.causal_lm import LatentGenerationConfig
from unspoken.reasoning.engine import StopRule
from unspoken.reasoning.latents import Noise, Sampling
from unspoken.reasoning.picking import Sampler
from unspoken.reasoning.row import AnswerDecoding, Phase, Row
from unspoken.reasoning.soft_steps import Filter, SoftReasoner
from unspoken.reasoning.superposition import choose, heaviest, in_pieces, perturb, positions_at_once, rows_at_once

SOFT = {name: value for (name, _), value in documented("methods/soft_thinking.md").items()}
SUPERPOSED = {name: value for (name, _), value in documented("methods/latent_sft.md").items()}


def defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


def test_soft_thinking_filters_nothing_and_draws_nothing_unless_asked() -> None:
    given = Filter()
    assert (given.top_k, given.top_p, given.min_p) == (SOFT["filter_top_k"], SOFT["top_p"], SOFT["min_p"])
    assert (
        defaults(SoftReasoner).items()
        >= {
            "mixture_noise": SOFT["noise"],
            "level": SOFT["noise_level"],
            "certain_below": SOFT["entropy_threshold"],
            "seed": SOFT["seed"],
        }.items()
    )


def test_noise_on_superpositions_is_the_published_one() -> None:
    names = ("scale", "temperature", "lowest", "highest", "redraw")
    published = {name: SUPERPOSED[f"noise.{name}"] for name in names}
    # The published code gives up after a hundred draws.
    assert defaults(perturb) == {**published, "attempts": 100}
    assert defaults(choose) == {"temperature": SUPERPOSED["shape.temperature"]}


def test_a_folder_without_settings_means_the_documented_ones() -> None:
    settings = LatentGenerationConfig(open_ids=(1,), end_ids=(2,))
    assert (settings.top_k, settings.temperature) == (SUPERPOSED["shape.top_k"], SUPERPOSED["shape.temperature"])
    assert (settings.max_latents, settings.fixed) == (SUPERPOSED["evaluation.max_latents"], False)
    ranges: dict[str, Any] = {"top_k": ([1, None], [0]), "temperature": ([1e-6], [0.0]), "max_latents": ([0], [-1])}
    check_ranges(LatentGenerationConfig, ranges, open_ids=(1,), end_ids=(2,))


def test_a_chain_ends_by_its_own_rule_unless_asked() -> None:
    rule = StopRule(max_latents=3)
    assert (rule.fixed, rule.min_latents, rule.continuation, rule.patience) == (False, 0, (), 0)
    check_ranges(StopRule, {name: ([0], [-1]) for name in ("max_latents", "min_latents", "patience")}, max_latents=0)


def test_a_row_begins_with_its_chain_and_nothing_done() -> None:
    row, rule = Row(max_latents=3), StopRule(max_latents=3)
    assert (row.fixed, row.min_latents, row.continuation, row.patience) == (False, 0, (), 0)
    assert all(getattr(row, name) == getattr(rule, name) for name in ("fixed", "min_latents", "patience"))
    assert (row.phase, row.reason, row.recorded, row.tokens, row.forced) == (Phase.CHAIN, StopReason.CAP, [], [], None)
    assert (row.key, row.index, row.cancelled, row.steps_left) == (0, 0, False, 3)
    assert Row(max_latents=3, fixed=True).reason is StopReason.FIXED
    assert Row(max_latents=0).phase is Phase.OVER
    assert (
        Row(max_latents=0, decoding=AnswerDecoding(marker=(1, 2), max_tokens=4, end_ids=(), pad_id=0)).steps_left == 6
    )
    check_ranges(AnswerDecoding, {"max_tokens": ([1], [0])}, marker=(1,), end_ids=(), pad_id=0)


def test_a_sampler_takes_the_most_likely_token_unless_asked() -> None:
    sampler = Sampler()
    assert (sampler.temperature, sampler.top_p) == (0, 1)
    check_ranges(Sampler, {"temperature": ([0.0, 1e-6], [-0.01]), "top_p": ([1e-6, 1.0], [0.0, 1.01])})


def test_tensors_of_one_time_are_of_half_a_gibibyte_and_a_chain_keeps_256_entries() -> None:
    # In float32; of scores at most 1,024 positions.
    assert rows_at_once(1000) * 1000 * 4 <= 2**29 < (rows_at_once(1000) + 1) * 1000 * 4
    assert (rows_at_once(0), rows_at_once(2**40)) == (2**27, 1)
    assert (positions_at_once(1000), positions_at_once(2**20), positions_at_once(2**40)) == (1024, 128, 1)
    weights, ids = torch.rand(2, 300), torch.arange(300).expand(2, -1)
    kept, places = heaviest(weights, ids)
    assert kept.shape == (2, 256)
    assert kept[:, -1].min() >= 0
    assert torch.equal(weights.gather(-1, places), kept)
    assert torch.equal(weights.sort(descending=True).values[:, :256], kept)
    assert torch.equal(heaviest(weights[:, :256], ids[:, :256])[1], ids[:, :256])


def test_answers_are_drawn_and_labels_are_noisy_within_bounds() -> None:
    assert (Sampling().temperature, Sampling().top_p) == (0.6, 0.95)
    check_ranges(Sampling, {"temperature": ([1e-6], [0.0]), "top_p": ([1e-6, 1.0], [0.0, 1.01])})
    published = {name: SUPERPOSED[f"noise.{name}"] for name in ("scale", "temperature", "lowest", "highest", "redraw")}
    assert vars(Noise()) == published
    check_ranges(Noise, {"scale": ([1e-6], [0.0]), "temperature": ([1e-6], [0.0])})
    for lowest, highest in ((0.0, 0.0), (1.0, 0.5)):
        with pytest.raises(ValueError, match="must be below highest"):
            Noise(lowest=lowest, highest=highest)
    assert Noise(lowest=0.0, highest=1e-6).lowest == 0.0


def test_rows_are_made_in_pieces_where_they_are_more_than_fit() -> None:
    for rows, sizes in ((5, [5]), (4, [4, 1]), (2, [2, 2, 1]), (9, [5])):
        called: list[int] = []

        def double(some: torch.Tensor, called: list[int] = called) -> tuple[torch.Tensor, torch.Tensor]:
            called.append(len(some))
            return 2 * some, some + 1

        one, two = in_pieces(double, rows, torch.arange(5.0))
        assert (one.tolist(), two.tolist(), called) == ([0, 2, 4, 6, 8], [1, 2, 3, 4, 5], sizes)
    assert in_pieces(lambda some: 3 * some, 2, torch.arange(3.0)).tolist() == [0, 3, 6]
