"""Compression, entropy and parallel chains of latents whose distributions are planted, from the view to the section."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from tag_balance import unbalanced
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system, word_view
from torch import Tensor

from unspoken.chain import LatentChain, StopReason
from unspoken.draw.page import to_html
from unspoken.draw.section import Figure, Heading
from unspoken.evaluation import distributions as measured
from unspoken.evaluation.answering import Graded
from unspoken.probes import superposition
from unspoken.probes.probe import View
from unspoken.probes.superposition import SuperpositionProbe
from unspoken.reasoning.teacher import Teacher

PROBE = SuperpositionProbe()
PROBLEMS = TASK.sample("test", range(5))
EXPLICIT = [list(spans.chain) for spans in TASK.spans(PROBLEMS, PROMPT_FORMAT)]
WIDTH = max(map(len, EXPLICIT))
VOCABULARY = len(PROMPT_FORMAT.tokenizer)
REST = 1e-4  # of the probability lies on all other tokens
SEVERAL = [row for row, problem in enumerate(PROBLEMS) if len(problem.chains) > 1]


def chain_of(lengths: list[int]) -> LatentChain:
    """Chains whose step t is the t-th axis."""
    mask = torch.arange(WIDTH)[None] < torch.tensor(lengths)[:, None]
    latents = torch.eye(WIDTH)[None] * mask[..., None]
    stop = torch.tensor([StopReason.END, *[StopReason.CAP] * (len(lengths) - 1)])
    return LatentChain(latents=latents, mask=mask, stop=stop)


def cut(chain: list[int], steps: int) -> list[list[int]]:
    """An explicit chain in so many pieces, as the effective compression rate cuts it."""
    starts = [step * len(chain) // steps for step in range(steps + 1)]
    return [chain[start:end] for start, end in pairwise(starts)]


def teacher() -> Teacher:
    return Teacher(rate=1, chain=lambda spans: chain_of([len(one.chain) for one in spans]))


def view(
    monkeypatch: pytest.MonkeyPatch, tokens: int, *, empty: int | None = None, teacher: Teacher | None = None
) -> View:
    """Each latent has so many explicit tokens in equal parts; the problem ``empty`` is answered without a latent."""
    pieces = [cut(chain, math.ceil(len(chain) / tokens)) for chain in EXPLICIT]
    lengths = [0 if row == empty else len(steps) for row, steps in enumerate(pieces)]

    def planted(_system: Any, _task: Any, problems: Any, _format: Any, chain: LatentChain, _size: int) -> list[Tensor]:
        full = []
        for problem, length in zip(problems, chain.lengths.tolist(), strict=True):
            rows = torch.full((length, VOCABULARY), REST / VOCABULARY, dtype=torch.float64)
            for row, piece in zip(rows, pieces[PROBLEMS.index(problem)], strict=True):
                for token in piece:
                    row[token] += (1 - REST) / len(piece)
            full.append(rows)
        return full

    monkeypatch.setattr(measured, "distributions", planted)
    nothing = torch.zeros(len(PROBLEMS), 1, dtype=torch.long)
    answers = Graded(chain=chain_of(lengths), tokens=nothing, lengths=nothing[:, 0], correct=nothing[:, 0] > 0)
    plain = word_view(tiny_word_system(), 1)
    return replace(plain, problems=PROBLEMS, answers=answers, teacher=teacher)


def test_an_explicit_chain_has_a_rate_of_one_and_no_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = PROBE.measure(view(monkeypatch, 1))
    assert reading is not None
    assert list(reading["ecr"]) == [str(k) for k in (1, 5, 10, 50, 100, 150, 200, 250, 300) if k <= VOCABULARY]
    assert reading["ecr"]["1"] == reading["ecr"]["10"] == 1
    assert reading["ecr_left_out"] == 0
    assert max(reading["entropy"]["mean"]) < 0.01
    assert reading["entropy"]["count"] == [sum(len(chain) > step for chain in EXPLICIT) for step in range(WIDTH)]
    assert reading["top1"] == pytest.approx(1, abs=2 * REST)
    assert reading["exit_rate"] == pytest.approx(1 / 5)
    assert reading["parallelism"] is None, "nothing says which latents stand for a chain"


def test_no_more_tokens_are_counted_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superposition, "_ECR", (1, VOCABULARY, VOCABULARY + 1))
    reading = PROBE.measure(view(monkeypatch, 1))
    assert reading is not None
    assert list(reading["ecr"]) == ["1", str(VOCABULARY)]


def test_a_latent_of_two_tokens_covers_both(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = PROBE.measure(view(monkeypatch, 2, empty=1))
    assert reading is not None
    answered = [chain for row, chain in enumerate(EXPLICIT) if row != 1]
    rates = [len(chain) / math.ceil(len(chain) / 2) for chain in answered]
    assert reading["ecr"]["5"] == pytest.approx(sum(rates) / len(rates))
    assert reading["ecr"]["1"] < reading["ecr"]["5"]
    assert reading["ecr_left_out"] == 1
    # Every second step, at most, is of one token alone.
    mean, count = reading["entropy"]["mean"], reading["entropy"]["count"]
    assert (
        0.3 < sum(value * chains for value, chains in zip(mean, count, strict=True)) / sum(count) / math.log(2) < 1.01
    )


def test_latents_of_one_chain_are_not_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SEVERAL
    reading = PROBE.measure(view(monkeypatch, 1, teacher=teacher()))
    assert reading is not None
    several = reading["parallelism"]
    assert (several["questions"], len(several["points"])) == (len(SEVERAL), len(SEVERAL))
    assert several["chains"] == 2
    # Each latent lies on the reference at its own step and gives nothing to the other chain's tokens there.
    assert several["n_eff"] == several["n_eff_v1"] < 1.1 < several["n_naive"]
    assert several["points"] == [round(several["n_eff"], 4)] != [round(several["n_eff"], 5)]
    assert several["top2"] < 0.05


def test_nothing_is_measured_without_a_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = view(monkeypatch, 1)
    silent = replace(looked_at.graded, chain=chain_of([0] * 5))
    assert PROBE.measure(replace(looked_at, answers=silent)) is None
    assert PROBE.applies(tiny_word_system(), TASK)
    assert not PROBE.applies(tiny_word_system(feed="hidden"), TASK)


@pytest.mark.parametrize(("problems", "asked"), [(1, 1), (200, 200), (203, 200)])
def test_the_first_two_hundred_chains_are_taken_apart(
    problems: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def planted(_system: Any, _task: Any, problems: Any, *_: Any) -> list[Tensor]:
        seen.append(len(problems))
        return [torch.full((1, 310), 1 / 310)] * len(problems)

    monkeypatch.setattr(measured, "distributions", planted)
    nothing = torch.zeros(problems, 1, dtype=torch.long)
    answers = Graded(chain=chain_of([1] * problems), tokens=nothing, lengths=nothing[:, 0], correct=nothing[:, 0] > 0)
    asked_of = replace(word_view(tiny_word_system(), 1), problems=TASK.sample("test", range(problems)), answers=answers)
    reading = PROBE.measure(asked_of)
    assert reading is not None
    assert (seen, reading["ecr_left_out"]) == ([asked], 0)
    if problems > 1:
        emptied = replace(answers, chain=chain_of([0, *[1] * (problems - 1)]))
        one_empty = PROBE.measure(replace(asked_of, answers=emptied))
        assert one_empty is not None
        assert (seen[1], one_empty["ecr_left_out"]) == (asked - 1, 1)
    # Of a large vocabulary every K of the paper counts.
    assert [*reading["ecr"]] == ["1", "5", "10", "50", "100", "150", "200", "250", "300"]


@pytest.mark.parametrize(("questions", "drawn", "dots"), [(1, 1, 1), (39, 39, 39), (40, 40, 0), (239, 120, 0)])
def test_of_many_questions_evenly_spaced_ones_are_drawn(questions: int, drawn: int, dots: int) -> None:
    points = [1 + 2 * place / questions for place in range(questions)]
    parallelism = dict.fromkeys(("n_eff", "n_naive", "n_eff_v1", "top2", "top2_v1", "ratio"), 1.5)
    entry = {
        "ecr": {"1": 1.0},
        "ecr_left_out": 0,
        "entropy": {"mean": [1.0], "count": [questions]},
        "top1": 0.5,
        "exit_rate": 0.5,
        "parallelism": {"questions": questions, "chains": 3, **parallelism, "points": points[::-1]},
    }
    section = PROBE.section({"systems": {"it": {}}, "baseline": None, "probes": {"superposition": {"it": entry}}})
    assert section is not None
    figure = section.blocks[-2]
    assert isinstance(figure, Figure)
    drawing = figure.panels[0].drawing  # type: ignore[union-attr]
    (line,) = re.findall(r'<polyline[^>]*points="([^"]*)"', drawing)
    at = [tuple(map(float, point.split(","))) for point in line.split()]
    assert (len(at), drawing.count('class="dot')) == (drawn, dots)
    # From the left to the right end, rising, with steps that are alike.
    steps = [right - left for (left, _), (right, _) in pairwise(at)]
    assert not steps or max(steps) - min(steps) < 0.2
    assert [y for _, y in at] == sorted((y for _, y in at), reverse=True)


def test_seeds_are_averaged_and_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [PROBE.measure(view(monkeypatch, tokens, teacher=teacher())) for tokens in (1, 2)]
    one, two = (seed for seed in seeds if seed is not None)
    summary = PROBE.summarise({"it": [one, two]}, baseline=None)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    entry = summary["it"]
    for key in ("top1", "exit_rate", "ecr_left_out"):
        assert entry[key] == pytest.approx((one[key] + two[key]) / 2)
    assert entry["ecr"]["5"] == pytest.approx((one["ecr"]["5"] + two["ecr"]["5"]) / 2)
    assert entry["parallelism"]["n_eff"] == pytest.approx(
        (one["parallelism"]["n_eff"] + two["parallelism"]["n_eff"]) / 2
    )
    # Lists by step and by question are the first seed's.
    assert entry["entropy"] == one["entropy"]
    assert entry["parallelism"]["points"] == one["parallelism"]["points"]
    section = PROBE.section({"systems": {"it": {}}, "baseline": None, "probes": {"superposition": summary}})
    assert section is not None
    assert [block.text for block in section.blocks if isinstance(block, Heading)] == ["Effective parallelism"]
    body = to_html(section.blocks)
    assert unbalanced(body) == []
    assert f"{entry['parallelism']['n_eff']:.2f}" in body
    assert PROBE.section({"probes": {}}) is None
