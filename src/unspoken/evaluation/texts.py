"""Measures finished seeds of a run on plain text.

Layout as in `unspoken.evaluation.measure`, with a part ``texts``: ``rows`` and ``tokens`` read; ``language`` (stage ->
``accuracy`` of the next token and, where there are logits, ``perplexity``, each with its interval); ``sentences``,
``prime`` and ``corruption`` (stage -> the ablation of appendix C); ``samples`` of it as text. ``exact_match`` of a
system is the share of sentences that its Talker says word for word from their own latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from unspoken.evaluation.corruption import Ablation, ablate, ablation_summary
from unspoken.evaluation.curves import curve
from unspoken.evaluation.outcomes import fingerprint_of, outcomes_of
from unspoken.evaluation.seeds import SeedModels
from unspoken.evaluation.significance import Outcomes, bootstrap_means, interval
from unspoken.evaluation.teacher_forcing import next_tokens
from unspoken.methods import catalogue
from unspoken.methods.loading import load_model
from unspoken.tasks.prose import MARKERS, ProseTask, Row

_SAMPLES = 3


def _language(seeds: list[dict[str, Outcomes]]) -> dict[str, Any]:
    """Accuracy and perplexity with their intervals."""
    keys = list(seeds[0])
    values = np.stack([np.stack([entry[key] for key in keys], axis=1) for entry in seeds])
    drawn, means = bootstrap_means(values, draws=2000), values.mean(axis=(0, 1))
    found = {}
    for place, key in enumerate(keys):
        mean, sampled = float(means[place]), drawn[:, place]
        if key == "loss":
            found["perplexity"] = asdict(interval(float(np.exp(mean)), np.exp(sampled)))
        else:
            found[key] = asdict(interval(mean, sampled))
    return found


def sentence_pairs(rows: list[Row]) -> list[Row]:
    """Sentences in order of length, so that neighbours are about as long; an odd one out is left out.

    Raises:
        ValueError: there are not two.
    """
    if len(rows) < 2:
        raise ValueError("the test split has a single sentence; give more text, or widen task.sentence_tokens")
    return sorted(rows, key=len)[: len(rows) - len(rows) % 2]


def _samples(task: ProseTask, system: str, ablation: Ablation) -> list[dict[str, Any]]:
    """Pairs from the middle, where sentences have the usual length."""
    middle = len(ablation.tokens) // 2
    rows = range(middle - middle % 2, len(ablation.tokens), 2)[:_SAMPLES]
    return [
        {
            "system": system,
            "sentence": task.text(ablation.tokens[row]),
            "other": task.text(ablation.tokens[row + 1]),
            "said": {name: task.text(said[row]) for name, said in ablation.said.items()},
        }
        for row in rows
    ]


def evaluate_texts(
    task: ProseTask,
    seeds: list[SeedModels],
    *,
    problems: int,
    batch_size: int,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure every stage on test texts, and every pair on test sentences, once.

    Args:
        task: of the recipe.
        seeds: finished folders.
        problems: number of test texts, and of test sentences; fewer where the split has fewer.
        batch_size: rows read or spoken at once.
        say: told what is being done.

    Returns:
        The content described at the top of this file, without recipe and command.
    """
    texts = task.rows(task.first("test", problems))
    rows = sentence_pairs(task.first("test", problems, kind="sentences"))
    sentences = task.rows(rows)
    drawable = torch.arange(len(MARKERS), len(task.tokenizer))
    prime = task.config.prime
    language: dict[str, list[dict[str, Outcomes]]] = {}
    ablations: dict[str, list[Ablation]] = {}
    samples: list[dict[str, Any]] = []
    for entry in seeds:
        for stage, folder in entry.stages.items():
            model = load_model(folder, device=entry.device)
            system = catalogue.systems(model, stage=stage, max_answer=sentences["input_ids"].shape[1])[0]
            if system.has_talker:
                say(f"seed {entry.seed}  {stage}: {len(rows)} test sentences, right and corrupted")
                found = ablate(
                    system, sentences, prime=prime, alternatives=drawable, seed=entry.seed, batch_size=batch_size
                )
                ablations.setdefault(stage, []).append(found)
                samples += _samples(task, stage, found) if entry is seeds[0] else []
            else:
                say(f"seed {entry.seed}  {stage}: {len(texts['input_ids'])} test texts")
                language.setdefault(stage, []).append(next_tokens(system, texts, batch_size))
    corruption = {stage: ablation_summary(found) for stage, found in ablations.items()}
    return {
        "schema": 1,
        "seeds": [entry.seed for entry in seeds],
        "problems": len(rows),
        "systems": {
            stage: {key: summary.pop(key) for key in ("exact_match", "ended")} for stage, summary in corruption.items()
        },
        # Sentences are read and said again, which is no answer that has a cost.
        "outcomes": {
            "test": outcomes_of(
                fingerprint_of(row.tobytes() for row in rows),
                {stage: [ablation.exact for ablation in found] for stage, found in ablations.items()},
                {},
            )
        },
        "texts": {
            "rows": len(texts["input_ids"]),
            "tokens": texts["input_ids"].numel(),
            "language": {stage: _language(found) for stage, found in language.items()},
            "sentences": len(rows),
            "prime": prime,
            "corruption": corruption,
            "samples": samples,
        },
        "training": [
            {"seed": entry.seed, "stages": {name: curve(folder) for name, folder in entry.stages.items()}}
            for entry in seeds
        ],
    }
