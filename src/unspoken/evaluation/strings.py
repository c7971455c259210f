"""Measures finished seeds that continue the strings of a grammar (JEPA-Reasoner, sections 6.2, 6.3 and 6.6).

The layout is that of `unspoken.evaluation.measure`, with ``strings``. Every system answers for the same symbols, so
exact match is that of the second half of a continuation: Coconut says no other, for its latents stand for the first.

``strings`` holds ``symbols`` and ``half``; ``coconut``, that system's name; ``steps`` (system -> accuracy of each
symbol, None where it is not said); ``valid`` (system -> rate of whole continuations that begin some string);
``token_noise`` (``systems`` and ``comparison`` as `robustness.summary` and `robustness.comparison` give them, and
``valid``, a mean for each level); ``latent_noise`` (``renormalised`` and ``free``, each ``systems``, ``comparison`` and
``norm_ratio``); ``containment`` (`robustness.effect_summary`); ``prime`` of a Dual-Talker.

Axes: B strings, P prompt tokens, M symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from unspoken import distributed
from unspoken.chain import LatentChain
from unspoken.evaluation.controls import CONTROLS
from unspoken.evaluation.cost import cost
from unspoken.evaluation.curves import curve
from unspoken.evaluation.outcomes import COUPLED, PAIR, compared, fingerprint_of, outcomes_of
from unspoken.evaluation.robustness import (
    Effect,
    Hits,
    can_be_forced,
    comparison,
    containment,
    corrupted,
    effect_summary,
    forced_run,
    hits,
    latent_noise,
    summary,
    token_noise,
)
from unspoken.evaluation.seeds import SeedModels, named_systems
from unspoken.evaluation.significance import Outcomes, paired_difference, rate
from unspoken.methods.loading import load_model
from unspoken.reasoning.picking import ForcedTokens
from unspoken.reasoning.system import Answer, System, opened
from unspoken.tasks import GrammarProblems, GrammarTask
from unspoken.tasks.context_free import EOS, FIRST_TERMINAL, PAD, TERMINALS

TOKEN_RATES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
FRACTIONS = (0.0, 0.05, 0.1, 0.15)
SYMBOLS = torch.arange(FIRST_TERMINAL, FIRST_TERMINAL + len(TERMINALS))

_FORCED = 0.25  # share of the words that containment makes wrong
_FEW = 200  # problems for containment and cost


# --- continuing strings ------------------------------------------------------------------------------------------


@torch.no_grad()
def continued(
    system: System, prompts: tuple[Tensor, Tensor], steps: int, batch_size: int
) -> tuple[LatentChain, Int[Tensor, "B M"]]:
    """The chains of some prompts and so many symbols said from them.

    Args:
        prompts: token ids and mask ``[B, P]``, padded on the left.
        steps: symbols; where each of them has a latent, every chain has that length.
    """
    one, (ids, mask) = system.of_length(steps), prompts

    def respond(rows: Tensor) -> tuple[LatentChain, Tensor]:
        answer = one.respond(ids[rows], mask[rows])
        return answer.chain, F.pad(answer.tokens, (0, steps - answer.tokens.shape[1]), value=PAD)

    rows = torch.arange(len(ids))
    chains, said = zip(*distributed.map_over_ranks(rows.split(batch_size), respond), strict=True)
    return LatentChain.concatenate(list(chains)), torch.cat(said)


@torch.no_grad()
def under_noise(
    system: System,
    prompts: tuple[Tensor, Tensor],
    right: Int[Tensor, "B M"],
    *,
    steps: int,
    fractions: Iterable[float],
    seed: int,
    renormalise: bool = True,
    batch_size: int,
) -> tuple[Hits, dict[float, float]]:
    """Say the symbols ``right``, the last of ``steps``, from noisy chains; see `robustness.latent_noise`."""
    one, (ids, mask) = system.of_length(steps), prompts

    def speak(chain: LatentChain) -> Tensor:
        said = []
        for rows in torch.arange(len(ids)).split(batch_size):
            tokens = one.respond(ids[rows], mask[rows], chain=chain.select(rows)).tokens
            said.append(F.pad(tokens, (0, steps - tokens.shape[1]), value=PAD))
        return torch.cat(said)[:, steps - right.shape[1] :]

    opened_ids, opened_mask = opened(ids, mask, one.opening)
    return latent_noise(
        one.reasoner,
        speak,
        opened_ids,
        right,
        attention_mask=opened_mask,
        stop=one.stop,
        fractions=fractions,
        seed=seed,
        renormalise=renormalise,
        batch_size=batch_size,
    )


# --- one model ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What one model of one seed did.

    Attributes:
        exact: ``[B]``, whether the whole second half was right.
        steps: accuracy of each symbol that was said.
        valid: ``[B]``; None of a system that does not say all symbols, like the next two.
        token: the first half, said behind corrupted prompts.
        token_valid: for each rate, how often it begins some string behind the clean prompt.
        latent, ratio: the second half with noise on every latent, renormalised and not.
        effect: of wrong words in its mouth.
    """

    exact: Outcomes
    steps: list[float]
    valid: Outcomes | None = None
    token: Hits | None = None
    token_valid: list[float] = field(default_factory=list)
    latent: dict[bool, Hits]
    ratio: dict[bool, dict[float, float]]
    effect: Effect | None


def _whole(found: Outcomes) -> Outcomes:
    """Whether every symbol of a row was right."""
    outcome: Outcomes = found.min(axis=1)
    return outcome


def _some(problems: GrammarProblems, rows: slice) -> GrammarProblems:
    return GrammarProblems(
        ids_BT=problems.ids_BT[rows], length_B=problems.length_B[rows], prompt_B=problems.prompt_B[rows]
    )


def _prefixes(
    one: System, task: GrammarTask, problems: GrammarProblems, seed: int, batch_size: int
) -> tuple[Hits, list[float]]:
    """The first half behind corrupted prompts (section 6.2), and how often it is valid behind the clean ones."""
    short = replace(task.config, steps=task.config.steps // 2).build()
    (clean, mask), valid = task.prompts(problems), []

    def answer(ids: Tensor) -> Tensor:
        _, said = continued(one, (ids, mask), short.config.steps, batch_size)
        valid.append(float(short.valid(said, problems).double().mean()))
        return said

    found = token_noise(answer, clean, short.answers(problems), rates=TOKEN_RATES, alternatives=SYMBOLS, seed=seed)
    return found, valid


def _read(
    one: System,
    said: Tensor,
    task: GrammarTask,
    problems: GrammarProblems,
    seed: int,
    batch_size: int,
) -> _Reading:
    steps, half = said.shape[1], task.config.steps // 2
    prompts, right = task.prompts(problems), task.answers(problems)
    second = right[:, half:]
    clean = hits(said[:, half - one.unsaid :], second)
    latent: dict[bool, Hits] = {}
    ratio: dict[bool, dict[float, float]] = {}
    for renormalise in (True, False):
        found, norms = under_noise(
            one,
            prompts,
            second,
            steps=steps,
            fractions=FRACTIONS[1:],
            seed=seed,
            renormalise=renormalise,
            batch_size=batch_size,
        )
        latent[renormalise], ratio[renormalise] = {0.0: clean, **found}, {0.0: 0.0, **norms}
    effect = None
    if can_be_forced(one):
        few = _some(problems, slice(_FEW))
        asked, expected = task.prompts(few), task.answers(few)[:, one.unsaid :]
        run = forced_run(one.of_length(steps), *asked, fill=EOS)
        effect = containment(run, expected, alternatives=SYMBOLS, rate=_FORCED, seed=seed)
    complete: dict[str, Any] = {}
    if not one.unsaid:
        token, token_valid = _prefixes(one, task, problems, seed, batch_size)
        valid = task.valid(said, problems).numpy().astype(np.float64)
        complete = {"valid": valid, "token": token, "token_valid": token_valid}
    return _Reading(
        exact=_whole(clean),
        steps=hits(said, right[:, one.unsaid :]).mean(axis=0).tolist(),
        latent=latent,
        ratio=ratio,
        effect=effect,
        **complete,
    )


def _cost(one: System, task: GrammarTask, problems: GrammarProblems, batch_size: int) -> dict[str, Any]:
    steps = task.config.steps - one.unsaid
    prompts = torch.from_numpy(problems.prompt_B)

    def respond(start: int, stop: int, at_once: int) -> Answer:
        chain, said = continued(one, task.prompts(_some(problems, slice(start, stop))), steps, at_once)
        return Answer(chain=chain, tokens=said, lengths=torch.full((len(said),), steps))

    spent = cost(
        respond,
        min(len(problems), _FEW),
        parameters=one.parameters,
        passes=one.sequential_passes,
        flops=lambda answer: one.flops(prompts[: len(answer.lengths)], answer),
        batch_size=batch_size,
    )
    return asdict(spent)


def _controls(
    one: System, prompts: tuple[Tensor, Tensor], chain: LatentChain, right: Tensor, seed: int
) -> tuple[dict[str, Outcomes], dict[str, Outcomes]]:
    """Hits ``[B, M]`` of the second half: from every altered chain, and after right and wrong first halves.

    Only a Dual-Talker reads what it has said before; a Mono-Talker has no second result.
    """
    half = right.shape[1] // 2
    altered = {}
    for name, control in CONTROLS.items():
        said = one.respond(*prompts, chain=control(chain, torch.Generator().manual_seed(seed))).tokens
        altered[name] = hits(said[:, half:], right[:, half:])
    if not one.speaker.reads_tokens:
        return altered, {}
    wrong = corrupted(first := right[:, :half], torch.ones_like(first, dtype=torch.bool), 1.0, SYMBOLS, seed)
    primed = {
        name: hits(one.respond(*prompts, chain=chain, sample=ForcedTokens(prime)).tokens[:, half:], right[:, half:])
        for name, prime in (("right", first), ("wrong", wrong))
    }
    return altered, primed


# --- all of them -------------------------------------------------------------------------------------------------


def _rated(seeds: Sequence[Outcomes]) -> dict[str, Any]:
    return asdict(rate(np.stack(seeds)))


def _halves(seeds: Sequence[Outcomes]) -> dict[str, Any]:
    whole = [_whole(found) for found in seeds]
    return {"exact_match": _rated(whole), "symbol_accuracy": float(np.mean(seeds))}


def _noise(found: Mapping[str, Sequence[Hits]], against: str | None) -> dict[str, Any]:
    """Every system's curves, and its paired tests against one of them, if that was measured."""
    base = None if against is None else found.get(against)
    return {
        "systems": {name: summary(seeds) for name, seeds in found.items()},
        "comparison": {
            f"{name} - {against}": comparison(seeds, base)
            for name, seeds in found.items()
            if base is not None and seeds is not base
        },
    }


def _gathered(readings: Mapping[str, Sequence[_Reading]], task: GrammarTask, coconut: str | None) -> dict[str, Any]:
    steps = task.config.steps
    token = {name: [r.token for r in seeds if r.token is not None] for name, seeds in readings.items()}
    valid = {name: [r.valid for r in seeds if r.valid is not None] for name, seeds in readings.items()}
    effects = {name: [r.effect for r in seeds if r.effect is not None] for name, seeds in readings.items()}
    latent = {}
    for renormalise, kind in ((True, "renormalised"), (False, "free")):
        noisy = {name: [r.latent[renormalise] for r in seeds] for name, seeds in readings.items()}
        # One kind is tested: twice the tests would be twice the chances to find something.
        latent[kind] = _noise(noisy, coconut if renormalise else None)
        latent[kind]["norm_ratio"] = {
            name: [float(np.mean([r.ratio[renormalise][level] for r in seeds])) for level in FRACTIONS]
            for name, seeds in readings.items()
        }
    means = {name: np.mean([r.steps for r in seeds], axis=0).tolist() for name, seeds in readings.items()}
    return {
        "symbols": steps,
        "half": steps // 2,
        "coconut": coconut,
        "steps": {name: [None] * (steps - len(values)) + values for name, values in means.items()},
        "valid": {name: _rated(seeds) for name, seeds in valid.items() if seeds},
        "token_noise": {
            **_noise({name: seeds for name, seeds in token.items() if seeds}, COUPLED),
            "valid": {
                name: np.mean([r.token_valid for r in readings[name]], axis=0).tolist()
                for name, seeds in token.items()
                if seeds
            },
        },
        "latent_noise": latent,
        "containment": {name: effect_summary(seeds) for name, seeds in effects.items() if seeds},
    }


def evaluate_strings(
    task: GrammarTask,
    seeds: list[SeedModels],
    *,
    problems: int,
    batch_size: int,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure every final stage on the test strings.

    The first pair of a seed is also read without its Talker, and its chains are altered.

    Args:
        task: with an even number of symbols to say: the first half under noise on tokens, the second under noise on
            latents. The paper's are four and four.
        seeds: finished folders.
        problems: number of test problems, the same for all seeds and systems.
        batch_size: problems answered at once.
        say: told what is being done.

    Returns:
        The content described at the top of this file, without recipe and command.
    """
    test = task.sample("test", np.arange(problems))
    prompts, right = task.prompts(test), task.answers(test)
    readings: dict[str, list[_Reading]] = {}
    costs: dict[str, dict[str, Any]] = {}
    altered: dict[str, list[Outcomes]] = {}
    primed: dict[str, list[Outcomes]] = {}
    both = (altered, primed)
    coconut: str | None = None
    for entry in seeds:
        taken: list[str] = []
        for stage, folder in entry.final.items():
            systems = named_systems(load_model(folder, device=entry.device), stage, task.config.steps)
            if systems[0].name in taken:
                # A second Talker is named by its stage too; the nearest rows were read already.
                systems = [replace(systems[0], name=f"{systems[0].name}, {stage}")]
            taken.append(systems[0].name)
            for one in systems:
                say(f"seed {entry.seed}  {one.name}: {problems} test strings")
                coconut = coconut or (one.name if one.unsaid else None)
                chain, said = continued(one, prompts, task.config.steps - one.unsaid, batch_size)
                reading = _read(one, said, task, test, entry.seed, batch_size)
                readings.setdefault(one.name, []).append(reading)
                if entry is seeds[0]:
                    costs[one.name] = _cost(one, task, test, batch_size)
                if one.has_talker and one.name == PAIR:
                    for kept, found in zip(both, _controls(one, prompts, chain, right, entry.seed), strict=True):
                        for control, outcome in found.items():
                            kept.setdefault(control, []).append(outcome)
    exact = {name: [reading.exact for reading in found] for name, found in readings.items()}
    stacked = {name: np.stack(found) for name, found in exact.items()}
    asked = fingerprint_of(row.tobytes() for row in torch.cat([prompts[0], right], dim=1).numpy())
    strings = _gathered(readings, task, coconut) | {"prime": {name: _halves(found) for name, found in primed.items()}}
    return {
        "schema": 1,
        "seeds": [entry.seed for entry in seeds],
        "problems": problems,
        "systems": {
            # A continuation has a fixed length: nothing ends by itself.
            name: {"cost": costs[name], "exact_match": asdict(rate(values)), "ended": None}
            for name, values in stacked.items()
        },
        "differences": {
            f"{name} - {COUPLED}": asdict(paired_difference(values, stacked[COUPLED]))
            for name, values in stacked.items()
            if COUPLED in stacked and name != COUPLED
        },
        "outcomes": {"test": outcomes_of(asked, exact, {name: compared(spent) for name, spent in costs.items()})},
        "controls": {name: _halves(found) for name, found in altered.items()},
        **{"inside": {}, "reference": {}, "containment": None, "examples": [], "pca": None},
        "strings": strings,
        "training": [
            {"seed": entry.seed, "stages": {name: curve(folder) for name, folder in entry.stages.items()}}
            for entry in seeds
        ],
    }
