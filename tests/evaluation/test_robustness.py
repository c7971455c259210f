"""Noise is what its level says, is the same for everyone, and reaches exactly what can hear it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import CLOSE, assert_row_is, assert_same_chain, naive_chain
from tiny_models import PAD, prompts, tiny_language_model, tiny_pair, tiny_reasoner
from torch import Tensor
from transformers import PreTrainedModel
from unspoken.evaluation.robustness import (
    Effect,
    LatentNoise,
    Run,
    comparison,
    containment,
    corrupted,
    effect_summary,
    forced_run,
    hits,
    latent_noise,
    noisy_chain,
    summary,
    token_noise,
)

from unspoken.chain import LatentChain
from unspoken.methods import catalogue
from unspoken.methods.coupled.reasoner import CoupledReasoner
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig, causal_lm_system
from unspoken.reasoning.engine import LatentStep, Reasoner, StopRule, rollout
from unspoken.reasoning.picking import FREE

TERMINALS = torch.tensor([14, 15, 16])
STOP = StopRule(max_latents=5)


def method_of(kind: str) -> Any:
    if kind == "jepa":
        return tiny_reasoner()
    model = tiny_language_model("unspoken")
    if kind == "coupled":
        return CoupledReasoner(model=model, end_id=9, pad_id=PAD)
    return CausalLMReasoner(model=model, settings=LatentGenerationConfig(open_ids=(2,), end_ids=(3,), top_k=10))


KINDS = ["jepa", "coupled", "superposition"]


# --- noise on latents ------------------------------------------------------------------------------------------------


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
    latents = F.normalize(torch.randn(5, 16), dim=-1) * torch.tensor([1.0, 1.0, 1.0, 1.0, 3.0])[:, None]
    kept, _ = LatentNoise(fraction=0.15).add(latents, 0, torch.arange(5))
    free, _ = LatentNoise(fraction=0.15, renormalise=False).add(latents, 0, torch.arange(5))
    torch.testing.assert_close(kept.norm(dim=-1), torch.tensor([1.0, 1.0, 1.0, 1.0, 3.0]))
    torch.testing.assert_close(F.normalize(kept, dim=-1), F.normalize(free, dim=-1))
    assert ((free.norm(dim=-1) - latents.norm(dim=-1)).abs() > 1e-3).all()


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
    whole, ratio = noisy_chain(method, prompts(), None, STOP, noise, batch_size=6)
    clean = rollout(method, prompts(), None, STOP)
    assert ((whole.latents[:, 0] - clean.latents[:, 0]).abs().amax(dim=-1)[clean.mask[:, 0]] > 1e-3).all()
    for size in (1, 4):
        parts, again = noisy_chain(method, prompts(), None, STOP, noise, batch_size=size)
        assert torch.equal(parts.mask, whole.mask)
        torch.testing.assert_close(parts.latents, whole.latents, **CLOSE)
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
    # Steps behind a row's end do not count.
    assert ratio == pytest.approx(np.mean(ratios), rel=1e-3)
    assert not chain.mask.all()
    if kind == "jepa":
        norms = chain.latents.norm(dim=-1)[chain.mask]
        assert bool(((norms - 1).abs() < 1e-5).all()) is renormalise


def test_the_speaker_speaks_from_the_noisy_chain_and_only_what_it_returns_is_scored() -> None:
    model, stop, spoken = tiny_pair(), StopRule(max_latents=8, fixed=True), []
    right = model.speak(model.reason(prompts(), None, stop))[:, -4:]

    def speak(chain: LatentChain) -> Tensor:
        spoken.append(chain.latents)
        return model.speak(chain)[:, -4:]

    found, ratios = latent_noise(
        model.reasoner, speak, prompts(), right, stop=stop, fractions=(0.0, 0.05, 1.0), seed=0, batch_size=4
    )
    assert found[0.0].shape == (6, 4)
    assert found[0.0].all()
    assert found[1.0].mean() < 0.9
    assert ratios[0.0] == 0 < ratios[0.05] < 0.5 < ratios[1.0]
    assert not torch.equal(spoken[1], spoken[0])


@pytest.mark.parametrize("setting", [{"fraction": -0.1}, {"fraction": float("nan")}, {"fraction": 0.1, "seed": -1}])
def test_negative_noise_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="neither can be negative"):
        LatentNoise(**setting)


# --- wrong tokens ----------------------------------------------------------------------------------------------------


def terminals(rows: int, length: int) -> Tensor:
    return torch.randint(14, 17, (rows, length), generator=torch.Generator().manual_seed(1))


def test_a_share_of_the_masked_tokens_becomes_another_alternative() -> None:
    ids = terminals(4, 20)
    mask = torch.arange(20)[None] >= torch.tensor([0, 10, 13, 20])[:, None]
    before = ids.clone()
    for rate, wrong in ((0.0, [0, 0, 0, 0]), (0.15, [3, 2, 1, 0]), (0.5, [10, 5, 4, 0]), (1.0, [20, 10, 7, 0])):
        other = corrupted(ids, mask, rate, TERMINALS, seed=0)
        assert (other != ids).sum(dim=1).tolist() == wrong
        assert torch.equal(other[~mask], ids[~mask])
        assert torch.isin(other, TERMINALS).all()
    assert torch.equal(ids, before)


def test_higher_rates_add_to_what_is_wrong_and_seeds_choose_it() -> None:
    ids = terminals(30, 20)
    mask = torch.ones_like(ids, dtype=torch.bool)
    low, high = (corrupted(ids, mask, rate, TERMINALS, seed=0) for rate in (0.2, 0.5))
    assert torch.equal(low[low != ids], high[low != ids])
    assert torch.equal(low, corrupted(ids, mask, 0.2, TERMINALS, seed=0))
    assert not torch.equal(low, corrupted(ids, mask, 0.2, TERMINALS, seed=1))


def test_places_and_wrong_tokens_are_uniform() -> None:
    ids = torch.full((20_000, 10), 15)
    ids[:, 5:] = 3  # not one of the alternatives: each of the three may take its place
    other = corrupted(ids, torch.ones_like(ids, dtype=torch.bool), 0.3, TERMINALS, seed=0)
    places = (other != ids).double().mean(dim=0)
    torch.testing.assert_close(places, torch.full_like(places, 0.3), rtol=0, atol=0.015)
    for part, wanted in ((slice(0, 5), [0.5, 0.5]), (slice(5, 10), [1 / 3, 1 / 3, 1 / 3])):
        wrong = other[:, part][other[:, part] != ids[:, part]]
        shares = wrong.unique(return_counts=True)[1] / len(wrong)
        torch.testing.assert_close(shares, torch.tensor(wanted), rtol=0, atol=0.015)


@pytest.mark.parametrize(("rate", "alternatives"), [(1.5, [14, 15]), (-0.1, [14, 15]), (0.1, [14, 14])])
def test_impossible_corruption_is_refused(rate: float, alternatives: list[int]) -> None:
    ids = terminals(2, 4)
    with pytest.raises(ValueError, match=f"cannot corrupt at rate {rate} with [12] different"):
        corrupted(ids, ids > 0, rate, torch.tensor(alternatives), seed=0)


def test_every_system_continues_the_same_prefixes_and_markers_stay() -> None:
    ids = torch.cat([torch.full((8, 2), PAD), terminals(8, 10), torch.full((8, 1), 3)], dim=1)
    heard: list[list[Tensor]] = [[], []]

    def echo(place: int) -> Callable[[Tensor], Tensor]:
        def answer(prefix: Tensor) -> Tensor:
            heard[place].append(prefix)
            return prefix[:, 2:5]

        return answer

    right, how = ids[:, 2:6], {"rates": (0.0, 0.3), "alternatives": TERMINALS, "seed": 5}
    found = token_noise(echo(0), ids, right, **how)  # type: ignore[arg-type]
    token_noise(echo(1), ids, right, **how)  # type: ignore[arg-type]
    assert all(torch.equal(one, two) for one, two in zip(*heard, strict=True))
    assert torch.equal(heard[0][0], ids)
    assert (heard[0][1] != ids).sum(dim=1).tolist() == [3] * 8
    assert torch.equal(heard[0][1][:, [0, 1, 12]], ids[:, [0, 1, 12]])
    # Three symbols of four were said: those that were not corrupted are right.
    assert found[0.0].tolist() == [[1, 1, 1, 0]] * 8
    assert np.array_equal(found[0.3][:, :3], (heard[0][1] == ids)[:, 2:5].numpy())


def test_hits_are_scored_place_by_place() -> None:
    right = torch.tensor([[1, 9, 2], [3, 4, 5]])
    assert hits(torch.tensor([[1, 2], [3, 4]]), right).tolist() == [[1, 0, 0], [1, 1, 0]]
    assert hits(torch.tensor([[1, 2, 2, 9], [4, 4, 5, 1]]), right).tolist() == [[1, 0, 1], [0, 1, 1]]


# --- forced tokens ----------------------------------------------------------------------------------------

# Everything but padding and the ends of the models below.
WORDS = torch.tensor([*range(2, 9), *range(10, 20)])


def run_of(kind: str) -> Run:
    if kind == "superposition":
        settings = LatentGenerationConfig(open_ids=(2,), end_ids=(3,), top_k=10, max_latents=4)
        model = tiny_language_model("unspoken")
        return forced_run(causal_lm_system(model, settings, name=kind, max_tokens=6), prompts(), fill=PAD)
    model = tiny_language_model("unspoken") if kind == "coupled" else tiny_pair(kind)
    system = catalogue.systems(model, stage=kind, max_answer=6, end_id=9, pad_id=PAD)[0]
    return forced_run(system.of_length(6), prompts(), fill=PAD)


RUNS = ["mono", "dual", "coupled", "superposition"]


@pytest.mark.parametrize("kind", RUNS)
def test_forced_words_are_said_and_free_ones_are_the_system_s_own(kind: str) -> None:
    run = run_of(kind)
    chain, clean = run(None)
    again, said = run(torch.full_like(clean, FREE))
    assert torch.equal(said, clean)
    assert_same_chain(again, chain)
    words = torch.full_like(clean, FREE)
    words[:, 1] = torch.where(clean[:, 1] == 5, 6, 5)
    spoken = torch.isin(clean[:, :2], WORDS).all(dim=1)
    assert spoken.any()
    said = run(words)[1]
    assert torch.equal(said[spoken, 1], words[spoken, 1])
    assert torch.equal(said[:, 0], clean[:, 0])


@pytest.mark.parametrize(
    ("kind", "contained", "changes"),
    [("mono", True, False), ("dual", True, True), ("coupled", False, True), ("superposition", True, True)],
)
def test_wrong_words_reach_the_chain_of_the_coupled_model_alone(kind: str, contained: bool, changes: bool) -> None:
    run = run_of(kind)
    effect = containment(run, run(None)[1], alternatives=WORDS, rate=0.3, seed=0)
    assert effect.latents_identical is contained
    assert (effect.largest_latent_change == 0.0) is contained
    _, forced, later, changed, right_clean, right_forced = effect.counts.T
    assert forced.sum() > 3
    assert later.sum() > 3
    assert bool(changed.any()) is changes
    # What would have been said counts as right here.
    assert np.array_equal(right_clean, later)
    assert np.array_equal(right_forced, later - changed)


def test_no_force_has_no_effect() -> None:
    effect = containment(run_of("coupled"), torch.zeros(6, 6, dtype=torch.long), alternatives=WORDS, rate=0.0, seed=0)
    assert effect.latents_identical
    assert not effect.counts[:, 1:].any()
    assert effect.counts[:, 0].sum() > 10


def test_effects_are_counted_behind_the_first_forced_word() -> None:
    clean = torch.tensor([[5, 6, 7, 1, 1], [5, 5, 5, 5, 8], [1, 1, 1, 1, 1]])
    right = torch.tensor([[5, 6, 9, 1, 1], [9, 5, 5, 9, 9], [1, 1, 1, 1, 1]])
    given = []

    def run(words: Tensor | None) -> tuple[LatentChain, Tensor]:
        mask = torch.ones(3, 2, dtype=torch.bool)
        latents = torch.zeros(3, 2, 4)
        said = clean.clone()
        if words is not None:
            given.append(words)
            latents[1, 1, 2] = -0.25
            for row in range(3):  # a free word behind a forced one becomes a nine
                for place in range(5):
                    if words[row, place] != FREE:
                        said[row, place] = words[row, place]
                    elif (words[row, :place] != FREE).any():
                        said[row, place] = 9
        return LatentChain(latents=latents, mask=mask, stop=torch.zeros(3, dtype=torch.long)), said

    effect = containment(run, right, alternatives=torch.tensor([5, 6, 7, 8]), rate=0.4, seed=2)
    assert effect.largest_latent_change == 0.25
    assert not effect.latents_identical
    wanted = []
    for row, can in enumerate(([0, 1, 2], [0, 1, 2, 3, 4], [])):
        forced = [place for place in range(5) if given[0][row, place] != FREE]
        later = [place for place in can if forced and place > forced[0] and place not in forced]
        right_clean = sum(bool(clean[row, place] == right[row, place]) for place in later)
        right_forced = sum(bool(right[row, place] == 9) for place in later)
        wanted.append([len(can), len(forced), len(later), len(later), right_clean, right_forced])
    assert effect.counts.tolist() == wanted
    assert [row[1] for row in wanted] == [1, 2, 0]
    assert sum(row[2] for row in wanted) > 0


def test_the_summary_of_effects_weighs_every_word_alike() -> None:
    first = Effect(
        counts=np.array([[4.0, 2, 1, 1, 1, 0], [4, 2, 3, 0, 3, 3]]),
        latents_identical=True,
        largest_latent_change=0.0,
    )
    second = Effect(
        counts=np.array([[4.0, 2, 2, 2, 1, 0], [4, 0, 0, 0, 0, 0]]),
        latents_identical=False,
        largest_latent_change=0.5,
    )
    found = effect_summary([first, second], draws=200)
    assert found["forced"]["mean"] == 6 / 16
    assert found["later_changed"]["mean"] == 3 / 6
    assert found["later_accuracy"]["clean"]["mean"] == 5 / 6
    assert found["later_accuracy"]["forced"]["mean"] == 3 / 6
    assert found["later_changed"]["low"] < 0.5 < found["later_changed"]["high"]
    assert (found["latents_identical"], found["largest_latent_change"]) == (False, 0.5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    nothing = Effect(counts=np.zeros((3, 6)), latents_identical=True, largest_latent_change=0.0)
    assert effect_summary([nothing], draws=20)["later_changed"] is None


# --- tables ----------------------------------------------------------------------------------------------------------

CLEAN = np.array([[[1.0, 1], [1, 0]], [[1, 1], [0, 1]]])  # two seeds, two problems, two steps
NOISY = np.array([[[1.0, 0], [0, 0]], [[1, 1], [0, 0]]])


def by_seed(**levels: np.ndarray[Any, Any]) -> list[dict[float, np.ndarray[Any, Any]]]:
    return [{int(name[1:]) / 100: values[seed] for name, values in levels.items()} for seed in range(2)]


def test_a_summary_holds_steps_and_wholes_absolute_and_relative() -> None:
    found = summary(by_seed(_30=NOISY, _0=CLEAN), draws=100)
    assert (found["seeds"], found["problems"]) == (2, 2)
    clean, noisy = found["levels"]
    assert (clean["level"], noisy["level"]) == (0.0, 0.3)
    assert [entry["mean"] for entry in clean["symbol"]] == [0.75, 0.75]
    assert [entry["mean"] for entry in clean["exact"]] == [0.75, 0.5]
    assert [entry["mean"] for entry in noisy["symbol"]] == [0.5, 0.25]
    assert [entry["mean"] for entry in noisy["exact"]] == [0.5, 0.25]
    assert clean["symbol"][0]["seeds"] == [1.0, 0.5]
    assert noisy["exact"][1]["seeds"] == [0.0, 0.5]
    relative = [entry["relative"]["mean"] for entry in (*noisy["symbol"], *noisy["exact"])]
    assert relative == pytest.approx([2 / 3, 1 / 3, 2 / 3, 1 / 2])
    assert clean["exact"][1]["relative"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_relative_accuracy_is_paired_with_the_clean_run() -> None:
    some = (np.random.default_rng(0).random((2, 50, 1)) < 0.5).astype(float)
    entry = summary(by_seed(_0=some, _10=some), draws=100)["levels"][1]["symbol"][0]
    assert entry["high"] - entry["low"] > 0.1
    assert entry["relative"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert summary(by_seed(_0=0 * some, _10=some), draws=20)["levels"][1]["symbol"][0]["relative"] is None


def test_a_system_may_be_worse_and_yet_degrade_less() -> None:
    generator = np.random.default_rng(1)
    draw = generator.random((2, 2000, 1))
    better = by_seed(_0=(draw < 0.9).astype(float), _30=(draw < 0.6).astype(float))
    worse = by_seed(_0=(draw < 0.5).astype(float), _30=(draw < 0.45).astype(float))
    found = comparison(better, worse, draws=300)["levels"][1]["exact"][0]
    assert found["absolute"]["mean"] == pytest.approx(0.15, abs=0.03)
    assert found["absolute"]["low"] > 0
    assert found["relative"]["mean"] == pytest.approx(0.6 / 0.9 - 0.45 / 0.5, abs=0.03)
    assert found["relative"]["high"] < 0
    assert max(found["absolute"]["p"], found["relative"]["p"]) < 0.01
    same = comparison(better, better, draws=50)["levels"][1]["symbol"][0]
    assert same["absolute"] == same["relative"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    nothing = comparison(better, by_seed(_0=0 * draw, _30=0 * draw), draws=20)["levels"][1]["symbol"][0]
    assert nothing["relative"] is None
    json.dumps(comparison(better, worse, draws=20), allow_nan=False)


def test_runs_that_do_not_belong_together_are_refused() -> None:
    for wrong in (by_seed(_10=NOISY), [{0.0: CLEAN[0]}, {0.0: CLEAN[1], 0.3: NOISY[1]}], []):
        with pytest.raises(ValueError, match="clean level 0"):
            summary(wrong)
    with pytest.raises(ValueError, match="cannot be paired"):
        comparison(by_seed(_0=CLEAN), by_seed(_0=CLEAN[:, :1]))
