"""Soft Thinking's filters, noise and cold stop, and the identities of their specification."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance import CAP, CausalConformance, left_padded
from settings_checks import check_defaults, check_ranges
from tiny_hub import save_hub_folder
from tiny_models import FAMILIES, prompts, tiny_language_model
from tiny_words import TEXT_FORMAT

import unspoken
from unspoken.chain import StopReason
from unspoken.methods.soft_thinking import SoftThinking
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig, causal_lm_system
from unspoken.reasoning.engine import StopRule, rollout
from unspoken.reasoning.soft_steps import Filter, SoftReasoner
from unspoken.reasoning.system import System
from unspoken.serving.batch import Batch, Progress
from unspoken.serving.systems import Served

ENDS = {"unspoken": 3, "llama": 7, "qwen2": 11, "gpt2": 4}  # a token that random weights choose early, late and never
ROWS = [row[start:] for row, start in zip(prompts(), (0, 3, 1, 4, 0, 2), strict=True)]


def settings(family: str, **how: Any) -> LatentGenerationConfig:
    return LatentGenerationConfig(open_ids=(2,), end_ids=(ENDS[family], 6), **{"max_latents": CAP, **how})


def soft(family: str = "unspoken", attention: str = "eager", top_k: int | None = 10, **how: Any) -> SoftReasoner:
    model = tiny_language_model(family, attention)
    given = {"filter": Filter(), **how}
    return SoftReasoner(model=model, settings=settings(family, top_k=top_k), **given)


def system_of(way: SoftThinking, family: str = "llama") -> System:
    """A model with explicit chains that thinks softly; no text is read."""
    model = tiny_language_model(family)
    how = settings(family, top_k=1)
    how.attach(model)
    return way.applied(replace(causal_lm_system(model, how, name=family, max_tokens=3), text_format=TEXT_FORMAT))


@pytest.fixture(params=[*product(FAMILIES, ("eager",)), ("llama", "sdpa")], ids="-".join)
def reasoner(request: pytest.FixtureRequest) -> SoftReasoner:
    return soft(*request.param)


class TestConformance(CausalConformance):
    """As it is by default."""


@pytest.mark.parametrize("family", FAMILIES)
def test_without_choices_it_is_the_superposition_of_the_library(family: str) -> None:
    mine = soft(family)
    theirs = CausalLMReasoner(model=mine.model, settings=mine.settings)
    one, two = (rollout(each, prompts(), None, StopRule(max_latents=CAP)) for each in (mine, theirs))
    assert torch.equal(one.mask, two.mask)
    torch.testing.assert_close(one.latents, two.latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise", ["gumbel", "dirichlet"])
def test_noise_depends_on_seed_and_prompt_and_not_on_the_batch(noise: Any) -> None:
    way = SoftThinking(noise=noise, noise_level=1.0, top_k=5)
    system = system_of(way)
    together = system.respond(*left_padded(ROWS))
    for row, prompt in enumerate(ROWS):
        alone = system.respond(prompt[None])
        length = int(alone.chain.lengths[0])
        assert length == int(together.chain.lengths[row])
        torch.testing.assert_close(
            together.chain.latents[row, :length], alone.chain.latents[0, :length], rtol=1e-4, atol=2e-5
        )
    other = system_of(replace(way, seed=1)).respond(*left_padded(ROWS))
    assert not torch.equal(other.chain.mask, together.chain.mask) or not torch.allclose(
        other.chain.latents, together.chain.latents
    )
    served, batch, made = Served(system=system), Batch(system.reasoner), dict[int, list[Progress]]()
    for row, prompt in enumerate(ROWS):
        made[row] = []
        job = served.job(prompt.tolist(), 3)
        job.report = made[row].append
        batch.join([job])
        batch.step()
    while batch.rows:
        batch.step()
    for row, progress in made.items():
        assert progress[-1].latents == int(together.chain.lengths[row])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cold_stop_closes_a_chain_that_has_been_certain_for_long(family: str) -> None:
    free = system_of(SoftThinking(), family).respond(*left_padded(ROWS))
    never = system_of(SoftThinking(entropy_threshold=1e-9, patience=1), family).respond(*left_padded(ROWS))
    assert torch.equal(never.chain.mask, free.chain.mask)
    at_once = system_of(SoftThinking(entropy_threshold=100.0, patience=3), family).respond(*left_padded(ROWS))
    # The step that exhausts the patience is replaced by the end marker.
    assert at_once.chain.lengths.tolist() == [min(2, int(length)) for length in free.chain.lengths]
    for stop, length, before in zip(at_once.chain.stop, at_once.chain.lengths, free.chain.lengths, strict=True):
        ended = int(before) < 3 and free.chain.stop.tolist().count(StopReason.END) > 0
        assert stop == StopReason.CERTAIN or (ended and int(length) == int(before))


def test_the_step_that_the_cold_stop_replaces_is_counted_as_an_end_marker_is() -> None:
    system = system_of(SoftThinking(entropy_threshold=100.0, patience=3))
    answer = system.respond(*left_padded(ROWS))
    assert (answer.chain.stop == StopReason.CERTAIN).any()
    ends = torch.full_like(answer.chain.stop, StopReason.END)
    prompt = torch.tensor([len(row) for row in ROWS])
    asked = system.flops(prompt, answer)
    assert torch.equal(asked, system.flops(prompt, replace(answer, chain=replace(answer.chain, stop=ends))))
    caps = torch.full_like(ends, StopReason.CAP)
    assert (asked > system.flops(prompt, replace(answer, chain=replace(answer.chain, stop=caps)))).all()


def test_defaults_are_those_of_the_page() -> None:
    check_defaults(SoftThinking, "methods/soft_thinking.md")


def test_settings_end_where_they_say() -> None:
    counts = dict.fromkeys(("patience", "top_k", "filter_top_k", "max_latents"), ([1], [0]))
    above = dict.fromkeys(("noise_level", "temperature"), ([1e-6], [0.0]))
    fractions = {"top_p": ([0.01, 1.0], [0.0, 1.01]), "min_p": ([0.0, 0.99], [-0.01, 1.0])}
    at_least = {"seed": ([0], [-1]), "entropy_threshold": ([0.0], [-0.01])}
    check_ranges(SoftThinking, {**counts, **above, **fractions, **at_least})
    with pytest.raises(ValueError, match=r"^top_p is 2; it must be above 0 and at most 1$"):
        SoftThinking(top_p=2)


def test_a_chain_has_at_least_one_step() -> None:
    assert system_of(SoftThinking(max_latents=1)).stop.max_latents == 1
    with pytest.raises(ValueError, match=r"^max_latents is 0; it must be at least 1$"):
        SoftThinking(max_latents=0)


def test_the_cold_stop_is_on_where_steps_can_be_certain() -> None:
    off, on = (system_of(SoftThinking(entropy_threshold=threshold)).stop for threshold in (0.0, 0.01))
    assert (off.patience, on.patience) == (0, 256)


def test_a_model_without_markers_thinks_right_after_the_prompt_until_its_end(tmp_path: Path) -> None:
    system = unspoken.load(save_hub_folder(tmp_path, markers=()), SoftThinking(max_latents=2), device="cpu")
    assert (system.opening, system.speaker.marker) == ((), (system.texts.tokenizer.eos_token_id,))


def test_a_model_that_records_no_cap_has_a_chain_of_at_most_128_steps(tmp_path: Path) -> None:
    folder = save_hub_folder(tmp_path)
    assert unspoken.load(folder, SoftThinking(), device="cpu").stop.max_latents == 128
    assert unspoken.load(folder, SoftThinking(max_latents=3), device="cpu").stop.max_latents == 3
