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

from unspoken import distributed
from unspoken.analysis.superposition import average_by_step, distinct, ecr, entropy, exit_rate, global_parallelism
from unspoken.chain import LatentChain, StopReason
from unspoken.evaluation.answering import Graded, answer_questions, first_problems
from unspoken.evaluation.controls import CONTROLS
from unspoken.evaluation.cost import cost, timed
from unspoken.evaluation.curves import curve, has_curve
from unspoken.evaluation.outcomes import COSTS, fingerprint_of, outcomes_of
from unspoken.evaluation.seeds import SeedModels
from unspoken.evaluation.significance import paired_difference, rate
from unspoken.evaluation.word_containment import WordEffect, containment_summary, word_containment
from unspoken.methods import catalogue
from unspoken.methods.loading import load_model
from unspoken.placement import CPU, moved
from unspoken.reasoning.causal_lm import CausalLMReasoner
from unspoken.reasoning.superposition import embedding_table, mix
from unspoken.reasoning.system import Answer, System, opened
from unspoken.reasoning.teacher import Teacher
from unspoken.tasks.problems import ReasoningProblem, ReasoningTask
from unspoken.tasks.prompt_format import PromptFormat

_LOOKED_AT = 200  # test problems whose chains are taken apart
_ALTERED = 500  # test problems that are answered again from every altered chain
_TIMED = 128  # test problems whose answers are timed
_ECR = (1, 5, 10, 50, 100, 150, 200, 250, 300)


def _answering(
    system: System, prompt_format: PromptFormat, problems: Sequence[ReasoningProblem]
) -> Callable[[int, int, int], Answer]:
    return lambda start, stop, size: answer_questions(system, prompt_format, problems[start:stop], size)


def _passes(system: System, steps: float, tokens: float) -> float:
    """Sequential passes, where the open marker counts like a token that is said, as it does in an explicit chain."""
    opening = len(system.opening) if system.speaker.same_stack else 0
    return opening + system.sequential_passes(steps, tokens)


def _steps(system: System, answers: Answer) -> tuple[float, float, float, float]:
    """Means a problem: latents, markers, tokens of the answer, and sequential passes of all of them."""
    latents, tokens = (float(x.double().mean()) for x in (answers.chain.lengths, answers.lengths))
    return latents, system.markers, tokens, _passes(system, latents, tokens)


# --- controls (section 9) ----------------------------------------------------------------------------------------


def _no_chain(chain: LatentChain, *_: Any) -> LatentChain:
    """Nothing between the markers."""
    return chain.with_latents(torch.zeros_like(chain.latents), torch.zeros_like(chain.mask))


def _random_mixtures(chain: LatentChain, generator: torch.Generator, table: Tensor) -> LatentChain:
    """The same weights on random tokens: vectors of the same kind and number, without their content."""
    assert chain.support_ids is not None and chain.support_weights is not None
    ids = torch.randint(len(table), chain.support_ids.shape, generator=generator)
    return chain.with_latents(mix(chain.support_weights, ids, table) * chain.mask[..., None])


def controlled(system: System, chain: LatentChain, seed: int) -> dict[str, LatentChain]:
    """The system's chains, altered in every way; a Talker that is given no latent at all has nothing to say."""
    generator = torch.Generator().manual_seed(seed)
    altered = {name: CONTROLS[name](chain, generator) for name in ("swap", "shuffle", "truncate", "zero", "mean")}
    if system.speaker.same_stack:
        altered["no chain"] = _no_chain(chain)
    if system.mixes_rows and chain.support_ids is not None:
        altered["random mixtures"] = _random_mixtures(chain, generator, moved(embedding_table(system.model), CPU))
    else:
        altered["noise"] = CONTROLS["noise"](chain, generator)
    return altered


# --- inside a chain ----------------------------------------------------------------------------------------------


@torch.no_grad()
def before_latents(
    system: System,
    prompt_format: PromptFormat,
    problems: Sequence[ReasoningProblem],
    chain: LatentChain,
    batch_size: int,
) -> list[Tensor]:
    """The stack's outputs ``[T, D]`` that the latents of each chain were made from, without a cache."""
    reasoner, found = system.reasoner, []
    for start in range(0, len(problems), batch_size):
        some = problems[start : start + batch_size]
        rows = chain.select(torch.arange(start, start + len(some)))
        lengths = rows.lengths.tolist()
        steps = max(lengths)
        ids, real = opened(*prompt_format.prompts(some), system.opening)
        assert real is not None
        mask = torch.cat([real, rows.mask[:, :steps].to(real)], dim=1)
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
    system: System,
    prompt_format: PromptFormat,
    problems: Sequence[ReasoningProblem],
    chain: LatentChain,
    batch_size: int,
) -> list[Tensor]:
    """The full distribution ``[T, V]`` that the model gives at every latent of each chain."""
    reasoner, device = system.reasoner, system.model.device
    assert isinstance(reasoner, CausalLMReasoner)
    return [
        moved((reasoner.logits(moved(hidden, device)) / reasoner.settings.temperature).softmax(dim=-1), CPU)
        for hidden in before_latents(system, prompt_format, problems, chain, batch_size)
    ]


def superposition_facts(
    system: System,
    prompt_format: PromptFormat,
    problems: Sequence[ReasoningProblem],
    answers: Answer,
    teacher: Teacher | None,
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
    full = distributions(system, prompt_format, some, chain, batch_size)
    vocabulary = full[0].shape[-1]
    explicit = [list(prompt_format.spans(problem).chain) for problem in some]
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
        spans = [prompt_format.spans(replace(problem, chains=(text,))) for text in chains]
        gold = teacher.chain(spans)
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
    system: System,
    prompt_format: PromptFormat,
    problem: ReasoningProblem,
    answers: Graded,
    row: int,
    rate: int | None,
) -> dict[str, Any]:
    """One chain, written out step by step, with the chunk of the explicit chain that each latent stands for."""
    chain, tokenizer = answers.chain, prompt_format.tokenizer
    assert chain.support_ids is not None and chain.support_weights is not None
    explicit = prompt_format.spans(problem).chain
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
        "said": prompt_format.decode(answers.tokens[row : row + 1])[0],
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

    prompt_format: PromptFormat
    problems: Sequence[ReasoningProblem]
    lengths: Tensor
    right: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    spent: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def answer(self, system: System, batch_size: int) -> Graded:
        """Let a system answer all problems."""
        given = answer_questions(system, self.prompt_format, self.problems, batch_size)
        self.right.setdefault(system.name, []).append(given.correct.numpy().astype(np.float64))
        latents, *_, passes = _steps(system, given)
        flops = float(system.flops(self.lengths, given).mean())
        self.spent.setdefault(system.name, []).append((latents, passes, flops))
        return given

    def cost(self, system: System, batch_size: int) -> dict[str, Any]:
        """The whole cost of a system's answers to a few problems."""
        few = self.problems[:_TIMED]
        measured = cost(
            _answering(system, self.prompt_format, few),
            len(few),
            parameters=system.parameters,
            passes=partial(_passes, system),
            flops=lambda answer: system.flops(self.lengths[: len(answer.lengths)], answer),
            batch_size=batch_size,
        )
        self.seconds[system.name] = measured.seconds_batched
        return dataclasses.asdict(measured)

    def clock(self, system: System, batch_size: int) -> None:
        """Take the time of a few problems alone."""
        few = self.problems[:_TIMED]
        respond = _answering(system, self.prompt_format, few)
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
    system: System,
    prompt_format: PromptFormat,
    asked: Sequence[ReasoningProblem],
    answers: Answer,
    seed: int,
    batch_size: int,
) -> dict[str, NDArray[np.float64]]:
    """Outcomes of the first problems from every altered chain, and where the answer is asked for at once."""
    some = asked[:_ALTERED]
    own = answers.chain.select(torch.arange(len(some)))
    tried = {
        control: answer_questions(system, prompt_format, some, batch_size, chain=chain)
        for control, chain in controlled(system, own, seed).items()
    }
    if system.speaker.same_stack:
        tried["forced answer"] = answer_questions(system, prompt_format, some, batch_size, chain=own, boxed=True)
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
        some = first_problems(task, test, problems)
        tests[test] = _TestSet(
            prompt_format=prompt_format, problems=some, lengths=prompt_format.prompts(some)[1].sum(dim=1)
        )
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
                teacher = catalogue.teacher(entry.teachers[stage], prompt_format, device=entry.device)
            for system in catalogue.systems(model, stage=stage, max_answer=max_answer):
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
                    tried = _altered(system, prompt_format, asked, answers, entry.seed, batch_size)
                    for control, outcome in tried.items():
                        altered.setdefault(name, {}).setdefault(control, []).append(outcome)
                effects = word_containment(system, prompt_format, asked, batch_size, seed=entry.seed)
                if effects is not None:
                    forced.setdefault(name, []).append(effects)
                if chained and system.mixes_rows:
                    facts.setdefault(name, []).append(
                        superposition_facts(system, prompt_format, asked, answers, teacher, entry.seed, batch_size)
                    )
                if entry is seeds[0]:
                    explicit += [name] if system.explicit else []
                    costs[name] = headline.cost(system, batch_size)
                    if chained and answers.chain.support_ids is not None:
                        compressed = None if teacher is None else teacher.rate
                        rate_of = 1 if system.explicit else compressed
                        right, wrong = torch.where(answers.correct)[0], torch.where(~answers.correct)[0]
                        picked = [*right[:2].tolist(), *wrong[:1].tolist()]
                        strips += [_strip(system, prompt_format, asked[row], answers, row, rate_of) for row in picked]
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
