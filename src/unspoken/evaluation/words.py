"""Measures finished seeds of a word-problem recipe.

The results have the layout of `measure`, with what belongs to trees left empty and a part ``words``: accuracy on every
test set, which systems say their chain (``explicit``), steps of each kind, causal controls of every system that has a
chain, measures of superposition, and a few chains written out.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel

from unspoken import distributed
from unspoken.analysis.superposition import average_by_step, distinct, ecr, entropy, exit_rate, global_parallelism
from unspoken.backbone.loading import load_pretrained
from unspoken.chain import LatentChain, StopReason
from unspoken.evaluation.controls import CONTROLS
from unspoken.evaluation.cost import answer_flops, cost, timed
from unspoken.evaluation.curves import curve, has_curve
from unspoken.evaluation.measure import SeedModels
from unspoken.evaluation.outcomes import COSTS, fingerprint_of, outcomes_of
from unspoken.evaluation.significance import paired_difference, rate
from unspoken.evaluation.systems import Answers, load_model
from unspoken.evaluation.word_containment import WordEffect, containment_summary, word_containment
from unspoken.evaluation.word_systems import ChainSpeaker, WordSystem, problems_of, systems_of
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.latent_sft.teacher import gold_chain
from unspoken.placement import CPU, moved
from unspoken.reasoning.causal_lm import CausalLMReasoner
from unspoken.reasoning.superposition import embedding_table, mix
from unspoken.tasks.problems import ReasoningProblem, ReasoningTask
from unspoken.tasks.prompt_format import PromptFormat

_LOOKED_AT = 200  # test problems whose chains are taken apart
_ALTERED = 500  # test problems that are answered again from every altered chain
_TIMED = 128  # test problems whose answers are timed
_ECR = (1, 5, 10, 50, 100, 150, 200, 250, 300)


def _answering(system: WordSystem, problems: Sequence[ReasoningProblem]) -> Callable[[int, int, int], Answers]:
    return lambda start, stop, size: system.answer(problems[start:stop], size)


def _flops(system: WordSystem, prompts: Tensor, answers: Answers) -> Tensor:
    """Floating-point operations of each answer; ``prompts`` are lengths of at least as many questions."""
    opened = len(system.reasoner.open_ids) if isinstance(system.reasoner, ChainSpeaker) else 0
    return answer_flops(system.reasoner.model, prompts[: len(answers.words)] + opened, answers, system.settings)


def _steps(system: WordSystem, answers: Answers) -> tuple[float, float, float, float]:
    """Means a problem: latents, markers, words, and sequential passes of all of them."""
    latents, said = (float(x.double().mean()) for x in (answers.chain.lengths, answers.words))
    return latents, system.markers, said, latents + system.spoken_passes(latents, said)


# --- controls (section 9) ----------------------------------------------------------------------------------------


def _no_chain(chain: LatentChain, *_: Any) -> LatentChain:
    """Nothing between the markers."""
    return chain.with_latents(torch.zeros_like(chain.latents), torch.zeros_like(chain.mask))


def _random_mixtures(chain: LatentChain, generator: torch.Generator, table: Tensor) -> LatentChain:
    """The same weights on random tokens: vectors of the same kind and number, without their content."""
    assert chain.support_ids is not None and chain.support_weights is not None
    ids = torch.randint(len(table), chain.support_ids.shape, generator=generator)
    return chain.with_latents(mix(chain.support_weights, ids, table) * chain.mask[..., None])


def controlled(system: WordSystem, chain: LatentChain, seed: int) -> dict[str, LatentChain]:
    """The system's chains, altered in every way; a Talker that is given no latent at all has nothing to say."""
    generator, settings = torch.Generator().manual_seed(seed), system.settings
    altered = {name: CONTROLS[name](chain, generator) for name in ("swap", "shuffle", "truncate", "zero", "mean")}
    if settings is not None:
        altered["no chain"] = _no_chain(chain)
    if settings is not None and settings.feed == "superposition" and chain.support_ids is not None:
        altered["random mixtures"] = _random_mixtures(
            chain, generator, moved(embedding_table(system.reasoner.model), CPU)
        )
    else:
        altered["noise"] = CONTROLS["noise"](chain, generator)
    return altered


# --- inside a chain ----------------------------------------------------------------------------------------------


@torch.no_grad()
def before_latents(
    system: WordSystem, problems: Sequence[ReasoningProblem], chain: LatentChain, batch_size: int
) -> list[Tensor]:
    """The stack's outputs ``[T, D]`` that the latents of each chain were made from, without a cache."""
    reasoner, found = system.reasoner, []
    assert isinstance(reasoner, CausalLMReasoner)
    opened = torch.tensor(reasoner.settings.open_ids)
    for start in range(0, len(problems), batch_size):
        some = problems[start : start + batch_size]
        rows = chain.select(torch.arange(start, start + len(some)))
        lengths = rows.lengths.tolist()
        steps = max(lengths)
        ids, mask = system.prompt_format.prompts(some)
        ids = torch.cat([ids, opened.expand(len(some), -1)], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(some), len(opened)), rows.mask[:, :steps].to(mask)], dim=1)
        device = reasoner.stack.device
        prompts = reasoner.embed_prompt(moved(ids, device))
        hidden = reasoner.stack(
            inputs_embeds=torch.cat([prompts, rows.latents[:, :steps].to(prompts)], dim=1),
            attention_mask=moved(mask, device),
            position_ids=moved((mask.cumsum(dim=1) - 1).clamp(min=0), device),
            use_cache=False,
        ).last_hidden_state
        hidden = moved(hidden, CPU)
        # Prompts end in the same column, since they are padded on the left.
        found += [row[ids.shape[1] - 1 :][:length] for row, length in zip(hidden, lengths, strict=True)]
    return found


@torch.no_grad()
def distributions(
    system: WordSystem, problems: Sequence[ReasoningProblem], chain: LatentChain, batch_size: int
) -> list[Tensor]:
    """The full distribution ``[T, V]`` that the model gives at every latent of each chain."""
    reasoner, device = system.reasoner, system.reasoner.model.device
    assert isinstance(reasoner, CausalLMReasoner)
    return [
        moved((reasoner.logits(moved(hidden, device)) / reasoner.settings.temperature).softmax(dim=-1), CPU)
        for hidden in before_latents(system, problems, chain, batch_size)
    ]


def superposition_facts(
    system: WordSystem,
    problems: Sequence[ReasoningProblem],
    answers: Answers,
    teacher: LatentSFTModel | None,
    seed: int,
    batch_size: int,
) -> dict[str, Any]:
    """How much the chains hold at once (section 10), on the problems that have an explicit chain."""
    chosen = [row for row, problem in enumerate(problems) if problem.chains and answers.chain.lengths[row]]
    chosen = chosen[:_LOOKED_AT]
    some = [problems[row] for row in chosen]
    if not some:
        return {}
    chain = answers.chain.select(torch.tensor(chosen))
    full = distributions(system, some, chain, batch_size)
    vocabulary = full[0].shape[-1]
    explicit = [list(system.prompt_format.spans(problem).chain) for problem in some]
    rates = ecr(full, explicit, [k for k in _ECR if k <= vocabulary])
    mean, count = average_by_step([entropy(steps) for steps in full])
    facts: dict[str, Any] = {
        "ecr": {str(k): float(values.mean()) for k, values in rates.items()},
        "ecr_left_out": len(problems[:_LOOKED_AT]) - len(some),
        "entropy": {"mean": mean.tolist(), "count": count.tolist()},
        "top1": float(torch.cat([steps.max(dim=-1).values for steps in full]).mean()),
        "exit_rate": exit_rate(answers.chain.stop),
        "parallelism": None,
    }
    if teacher is None:
        return facts
    readings = []
    for row, (problem, steps) in enumerate(zip(some, full, strict=True)):
        chains = distinct(problem.chains)
        if len(chains) < 2:
            continue
        spans = [system.prompt_format.spans(replace(problem, chains=(text,))) for text in chains]
        gold = gold_chain(teacher, system.prompt_format, spans)
        readings.append(
            global_parallelism(
                steps,
                chain.latents[row, : len(steps)],
                [list(one.chain) for one in spans],
                [gold.latents[index, : int(gold.lengths[index])] for index in range(len(spans))],
                seed=seed,
            )
        )
    if readings:
        names = ("chains", "n_eff", "n_naive", "ratio", "n_eff_v1", "top2", "top2_v1")
        facts["parallelism"] = {
            "questions": len(readings),
            **{name: float(np.mean([getattr(reading, name) for reading in readings])) for name in names},
            "points": [round(reading.n_eff, 4) for reading in readings],
        }
    return facts


def _strip(
    system: WordSystem, problem: ReasoningProblem, answers: Answers, row: int, rate: int | None
) -> dict[str, Any]:
    """One chain, written out step by step, with the chunk of the explicit chain that each latent stands for."""
    chain, tokenizer = answers.chain, system.prompt_format.tokenizer
    assert chain.support_ids is not None and chain.support_weights is not None
    explicit = system.prompt_format.spans(problem).chain
    chunks = [explicit[at : at + rate] for at in range(0, len(explicit), rate)] if rate else []
    steps = []
    for step in range(int(chain.lengths[row])):
        weights, ids = chain.support_weights[row, step], chain.support_ids[row, step]
        pairs = [[tokenizer.decode([int(t)]), round(float(w), 4)] for w, t in zip(weights, ids, strict=True)]
        steps.append({"tokens": pairs[:5], "entropy": round(float(entropy(weights)), 4)})
    correct = bool(answers.correct[row])
    return {
        "system": system.name,
        "kind": "right" if correct else "wrong",
        "question": problem.question,
        "answer": problem.answer,
        "said": system.prompt_format.decode(answers.spoken[row : row + 1])[0],
        "correct": correct,
        "steps": steps,
        "chunks": [tokenizer.decode(list(chunk)) for chunk in chunks],
    }


# --- the whole ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _TestSet:
    """A test set and, by system, what was done with it.

    Attributes:
        lengths: ``[B]`` tokens of the questions.
        right: outcomes ``[B]`` of each seed.
        spent: latent steps, sequential passes and floating-point operations of each seed, means a problem.
        seconds: of the first seed, a problem in a batch.
    """

    problems: Sequence[ReasoningProblem]
    lengths: Tensor
    right: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    spent: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def answer(self, system: WordSystem, batch_size: int) -> Answers:
        """Let a system answer all problems."""
        given = system.answer(self.problems, batch_size)
        self.right.setdefault(system.name, []).append(given.correct.numpy().astype(np.float64))
        latents, *_, passes = _steps(system, given)
        flops = float(_flops(system, self.lengths, given).mean())
        self.spent.setdefault(system.name, []).append((latents, passes, flops))
        return given

    def cost(self, system: WordSystem, batch_size: int) -> dict[str, Any]:
        """The whole cost of a system's answers to a few problems."""
        few = self.problems[:_TIMED]
        measured = cost(
            _answering(system, few),
            len(few),
            parameters=sum(parameter.numel() for parameter in system.reasoner.model.parameters()),
            spoken_passes=system.spoken_passes,
            flops=partial(_flops, system, self.lengths),
            batch_size=batch_size,
        )
        self.seconds[system.name] = measured.seconds_batched
        return dataclasses.asdict(measured)

    def clock(self, system: WordSystem, batch_size: int) -> None:
        """Take the time of a few problems alone."""
        few = self.problems[:_TIMED]
        respond = _answering(system, few)
        self.seconds[system.name] = distributed.run_on_main(lambda: timed(respond, 0, len(few), batch_size)[1])

    def outcomes(self) -> dict[str, Any]:
        """What other runs are compared with, see `unspoken.evaluation.outcomes`."""
        means = {name: np.mean(found, axis=0).tolist() for name, found in self.spent.items()}
        return outcomes_of(
            fingerprint_of(json.dumps([problem.question, problem.answer]).encode() for problem in self.problems),
            self.right,
            {name: dict(zip(COSTS, [*mean, self.seconds[name]], strict=True)) for name, mean in means.items()},
        )


def _altered(
    system: WordSystem, asked: Sequence[ReasoningProblem], answers: Answers, seed: int, batch_size: int
) -> dict[str, NDArray[np.float64]]:
    """Outcomes of the first problems from every altered chain, and where the answer is asked for at once."""
    some = asked[:_ALTERED]
    own = answers.chain.select(torch.arange(len(some)))
    tried = {
        control: system.answer(some, batch_size, given=chain)
        for control, chain in controlled(system, own, seed).items()
    }
    if not isinstance(system.reasoner, ChainSpeaker):
        tried["forced answer"] = system.answer(some, batch_size, given=own, box=True)
    return {control: result.correct.numpy().astype(np.float64) for control, result in tried.items()}


def _mean_facts(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers averaged over seeds; per-step and per-question lists are the first seed's."""
    first = entries[0]
    if not first:
        return {}
    average = {
        name: float(np.mean([entry[name] for entry in entries])) for name in ("top1", "exit_rate", "ecr_left_out")
    }
    rates = {k: float(np.mean([entry["ecr"][k] for entry in entries])) for k in first["ecr"]}
    several = first["parallelism"]
    if several is not None:
        several = {
            name: value if name == "points" else float(np.mean([entry["parallelism"][name] for entry in entries]))
            for name, value in several.items()
        }
    return {**first, **average, "ecr": rates, "parallelism": several}


def evaluate_words(
    task: ReasoningTask,
    tokenizer: Any,
    seeds: list[SeedModels],
    *,
    baseline: str | None,
    problems: int,
    batch_size: int,
    max_answer: int,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure every final stage on the test problems, once.

    Args:
        tokenizer: of the recipe.
        baseline: the stage that the others are compared with: explicit chains, if the recipe has them.
        problems: number of problems of each test set, the same for all seeds and systems; smaller sets are used whole.

    Returns:
        The layout of `measure.evaluate`, with ``words``. Its ``geometry`` and ``samples`` are left to those who ask for
        them (`evaluation.geometry`, `evaluation.sampling`).
    """
    prompt_format = PromptFormat(tokenizer=tokenizer)
    tests: dict[str, _TestSet] = {}
    for test in task.tests:
        some = problems_of(task, test, problems)
        tests[test] = _TestSet(problems=some, lengths=prompt_format.prompts(some)[1].sum(dim=1))
    headline = tests[task.tests[0]]
    asked = headline.problems
    ended: dict[str, list[float]] = {}
    steps: dict[str, list[tuple[float, float, float, float]]] = {}
    altered: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    facts: dict[str, list[dict[str, Any]]] = {}
    forced: dict[str, list[list[WordEffect]]] = {}
    costs: dict[str, Any] = {}
    explicit: list[str] = []
    strips: list[dict[str, Any]] = []
    for entry in seeds:
        for stage, folder in entry.final.items():
            model = load_model(folder, device=entry.device)
            teacher = None
            if stage in entry.teachers:
                teacher = load_pretrained(entry.teachers[stage], AutoModel, dtype=torch.float32)
                teacher = teacher.to(entry.device).eval()
            for system in systems_of(stage, model, prompt_format, max_answer):
                name = system.name
                for test, test_set in reversed(tests.items()):
                    say(f"seed {entry.seed}  {name}: {len(test_set.problems)} problems of {test}")
                    answers = test_set.answer(system, batch_size)  # the last are the headline's
                    if entry is seeds[0] and test_set is not headline:
                        test_set.clock(system, batch_size)
                # Where the length is fixed there is no end to reach.
                if not bool((answers.chain.stop == StopReason.FIXED).all()):
                    ended.setdefault(name, []).append(float((answers.chain.stop == StopReason.END).double().mean()))
                steps.setdefault(name, []).append(_steps(system, answers))
                chained = bool(answers.chain.lengths.any())
                if chained and name in entry.final:
                    say(f"seed {entry.seed}  {name}: controls")
                    for control, outcome in _altered(system, asked, answers, entry.seed, batch_size).items():
                        altered.setdefault(name, {}).setdefault(control, []).append(outcome)
                effects = word_containment(system, asked, batch_size, seed=entry.seed)
                if effects is not None:
                    forced.setdefault(name, []).append(effects)
                if chained and system.settings is not None and system.settings.feed == "superposition":
                    facts.setdefault(name, []).append(
                        superposition_facts(system, asked, answers, teacher, entry.seed, batch_size)
                    )
                if entry is seeds[0]:
                    explicit += [name] if system.explicit else []
                    costs[name] = headline.cost(system, batch_size)
                    if chained and system.settings is not None and answers.chain.support_ids is not None:
                        compressed = teacher.config.latent_shape.rate if teacher is not None else None
                        rate_of = 1 if system.settings.top_k == 1 else compressed
                        right, wrong = torch.where(answers.correct)[0], torch.where(~answers.correct)[0]
                        picked = [*right[:2].tolist(), *wrong[:1].tolist()]
                        strips += [_strip(system, asked[row], answers, row, rate_of) for row in picked]
    stacked = {name: np.stack(values) for name, values in headline.right.items()}
    compared = baseline if baseline in stacked else None
    return {
        "schema": 1,
        "seeds": [entry.seed for entry in seeds],
        "problems": len(asked),
        "baseline": compared,
        "systems": {
            name: {
                "exact_match": dataclasses.asdict(rate(values)),
                "ended": float(np.mean(ended[name])) if name in ended else None,
                "cost": costs[name],
            }
            for name, values in stacked.items()
        },
        "differences": {
            f"{name} - {compared}": dataclasses.asdict(paired_difference(values, stacked[compared]))
            for name, values in stacked.items()
            if compared is not None and name != compared
        },
        "outcomes": {test: test_set.outcomes() for test, test_set in tests.items()},
        "controls": {},
        "inside": {},
        "reference": {},
        "containment": None,
        "examples": [],
        "pca": None,
        "words": {
            "tests": {
                test: {
                    name: {"exact_match": dataclasses.asdict(rate(np.stack(values)))}
                    for name, values in test_set.right.items()
                }
                for test, test_set in tests.items()
            },
            "explicit": explicit,
            "steps": {
                name: dict(zip(("latents", "marker", "answer", "total"), np.mean(found, axis=0).tolist(), strict=True))
                for name, found in steps.items()
            },
            "controls": {
                name: {
                    control: {
                        "exact_match": dataclasses.asdict(rate(np.stack(values))),
                        "difference": dataclasses.asdict(
                            paired_difference(np.stack(values), stacked[name][:, : len(values[0])])
                        ),
                    }
                    for control, values in found.items()
                }
                for name, found in altered.items()
            },
            "containment": containment_summary(forced),
            "superposition": {name: _mean_facts(entries) for name, entries in facts.items() if entries[0]},
            "strips": strips,
            "geometry": None,
            "samples": None,
        },
        "training": [
            {
                "seed": entry.seed,
                "stages": {name: curve(folder) for name, folder in entry.stages.items() if has_curve(folder)},
            }
            for entry in seeds
        ],
    }
