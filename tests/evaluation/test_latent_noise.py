"""Noise is what its level says, is the same for everyone, and reaches chain and loop."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import CLOSE, assert_row_is, assert_same_chain, naive_chain
from tiny_models import PAD, prompts, tiny_language_model, tiny_reasoner
from torch import Tensor
from transformers import PreTrainedModel

from unspoken.evaluation.latent_noise import LatentNoise, noisy_chain
from unspoken.methods.coupled.reasoner import CoupledReasoner
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import LatentStep, Reasoner, StopRule, rollout

STOP = StopRule(max_latents=5)
KINDS = ["jepa", "coupled", "superposition"]


def method_of(kind: str) -> Any:
    if kind == "jepa":
        return tiny_reasoner()
    model = tiny_language_model("unspoken")
    if kind == "coupled":
        return CoupledReasoner(model=model, end_id=9, pad_id=PAD)
    return CausalLMReasoner(model=model, settings=LatentGenerationConfig(open_ids=(2,), end_ids=(3,), top_k=10))


def test_sigma_is_the_fraction_of_the_largest_absolute_entry_of_each_vector() -> None:
    latents = torch.tensor([[0.5, -2.0, 1.0, 0.0], [0.25, 0.0, -1.0, 0.125]])
    noise = LatentNoise(fraction=0.1, renormalise=False)
    # The same row and step: the same draw, twice as large beside an entry that is twice as large.
    noisy, ratio = noise.add(latents, 3, torch.tensor([7, 7]))
    added = noisy - latents
    torch.testing.assert_close(added[0], 2 * added[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ratio, added.norm(dim=-1) / torch.tensor([5.25**0.5, 1.078125**0.5]))
    stronger, _ = replace(noise, fraction=0.2).add(latents, 3, torch.tensor([7, 7]))
    torch.testing.assert_close(stronger - latents, 2 * added, rtol=1e-5, atol=1e-6)

    wide = torch.zeros(1, 100_000)
    wide[0, 5] = -3.0
    noisy, ratio = noise.add(wide, 0, torch.tensor([0]))
    assert float((noisy - wide).std()) == pytest.approx(0.3, rel=0.01)
    assert float((noisy - wide).mean()) == pytest.approx(0, abs=0.005)
    assert float(ratio) == pytest.approx(0.3 * 100_000**0.5 / 3, rel=0.01)


def test_noise_depends_on_seed_row_and_step_and_on_nothing_else() -> None:
    latents = torch.ones(3, 8)
    noise = LatentNoise(fraction=0.1)

    def drawn(noise: LatentNoise, step: int, *rows: int) -> Tensor:
        return noise.add(latents[: len(rows)], step, torch.tensor(rows))[0]

    both = drawn(noise, 0, 4, 2)
    assert torch.equal(both[1:], drawn(noise, 0, 2))
    for other in (drawn(noise, 1, 4), drawn(noise, 0, 5), drawn(replace(noise, seed=1), 0, 4)):
        assert not torch.equal(other, both[:1])


def test_renormalised_noise_turns_a_vector_and_keeps_its_norm() -> None:
    norms = torch.tensor([1.0, 1.0, 0.125, 0.01, 3.0])
    latents = F.normalize(torch.randn(5, 16), dim=-1) * norms[:, None]
    kept, _ = LatentNoise(fraction=0.15).add(latents, 0, torch.arange(5))
    free, _ = LatentNoise(fraction=0.15, renormalise=False).add(latents, 0, torch.arange(5))
    torch.testing.assert_close(kept.norm(dim=-1), norms)
    torch.testing.assert_close(F.normalize(kept, dim=-1), F.normalize(free, dim=-1))
    assert ((free.norm(dim=-1) / norms - 1).abs() > 1e-3).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("renormalise", [True, False])
def test_no_noise_changes_no_bit(kind: str, renormalise: bool) -> None:
    noise = LatentNoise(fraction=0.0, renormalise=renormalise)
    chain, ratio = noisy_chain(method_of(kind), prompts(), None, STOP, noise, batch_size=6)
    assert_same_chain(chain, rollout(method_of(kind), prompts(), None, STOP))
    assert ratio == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_noisy_row_is_the_same_in_every_batch(kind: str) -> None:
    noise = LatentNoise(fraction=0.15, seed=3)
    method = method_of(kind)
    together, ratio = noisy_chain(method, prompts(), None, STOP, noise, batch_size=6)
    clean = rollout(method, prompts(), None, STOP)
    assert ((together.latents[:, 0] - clean.latents[:, 0]).abs().amax(dim=-1)[clean.mask[:, 0]] > 1e-3).all()
    for size in (1, 4):
        batched, again = noisy_chain(method, prompts(), None, STOP, noise, batch_size=size)
        assert torch.equal(batched.mask, together.mask)
        torch.testing.assert_close(batched.latents, together.latents, **CLOSE)
        assert again == pytest.approx(ratio, rel=1e-4)


@dataclass
class Noisy:
    """The noise of one row, made by hand on its way through the method."""

    method: Any
    noise: LatentNoise
    row: int
    ratios: list[float] = field(default_factory=list)

    @property
    def stack(self) -> PreTrainedModel:
        return self.method.stack

    def embed_prompt(self, input_ids: Tensor) -> Tensor:
        return self.method.embed_prompt(input_ids)

    def step(self, hidden: Tensor) -> LatentStep:
        latent_step = self.method.step(hidden)
        draw = np.random.default_rng([self.noise.seed, self.row, len(self.ratios)]).standard_normal(hidden.shape[-1])
        added = self.noise.fraction * latent_step.latent.abs().max() * torch.from_numpy(draw).float()
        noisy = latent_step.latent + added
        if self.noise.renormalise:
            noisy = F.normalize(noisy, dim=-1) * latent_step.latent.norm()
        self.ratios.append(float(added.norm() / latent_step.latent.norm()))
        return replace(latent_step, latent=noisy, next_input=noisy * getattr(self.method, "scale", 1.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("renormalise", [True, False])
def test_noisy_latents_are_recorded_and_looped(kind: str, renormalise: bool) -> None:
    noise = LatentNoise(fraction=0.15, seed=1, renormalise=renormalise)
    method: Reasoner = method_of(kind)
    chain, ratio = noisy_chain(method, prompts(), None, STOP, noise, batch_size=6)
    ratios = []
    for row, prompt in enumerate(prompts()):
        alone = Noisy(method, noise, row)
        assert_row_is(chain, row, *naive_chain(alone, prompt, STOP))
        ratios += alone.ratios[: int(chain.lengths[row])]
    # Steps after a row's end do not count.
    assert ratio == pytest.approx(np.mean(ratios), rel=1e-3)
    assert not chain.mask.all()
    if kind == "jepa":
        norms = chain.latents.norm(dim=-1)[chain.mask]
        assert bool(((norms - 1).abs() < 1e-5).all()) is renormalise


@pytest.mark.parametrize("setting", [{"fraction": -0.1}, {"fraction": float("nan")}, {"fraction": 0.1, "seed": -1}])
def test_negative_noise_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="neither can be negative"):
        LatentNoise(**setting)


def test_noise_is_renormalised_and_of_the_first_seed_unless_asked() -> None:
    assert LatentNoise(fraction=0.1) == LatentNoise(fraction=0.1, seed=0, renormalise=True)
    assert LatentNoise(fraction=0.0).fraction == 0.0


def test_a_latent_of_zeros_gets_no_noise_and_no_steps_have_no_ratio() -> None:
    noisy, ratio = LatentNoise(fraction=0.5).add(torch.zeros(2, 4), 0, torch.tensor([0, 1]))
    assert not noisy.any()
    assert ratio.tolist() == [0.0, 0.0]
    none = StopRule(max_latents=0)
    chain, mean = noisy_chain(tiny_reasoner(), prompts(), None, none, LatentNoise(fraction=0.5), batch_size=4)
    assert (chain.latents.shape, mean) == ((6, 0, 16), 0.0)
