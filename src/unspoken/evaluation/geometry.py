"""Where the hidden states of chains are, beside the rows of the embedding table (Latent-SFT, preliminary experiments).

The hidden state of a step is the output of the stack that the step was made from: what a method that feeds hidden
states back would put in the step's place. The paper looks at the explicit chain of thought; here every system that
writes a chain is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from unspoken.analysis.geometry import Geometry, geometry, principal_planes
from unspoken.evaluation.answering import answer_questions, first_problems
from unspoken.evaluation.seeds import SeedModels, each_system
from unspoken.evaluation.words import before_latents
from unspoken.placement import CPU, moved
from unspoken.reasoning.superposition import embedding_table
from unspoken.tasks.problems import ReasoningTask
from unspoken.tasks.prompt_format import PromptFormat

_LOOKED_AT = 200  # test problems whose chains are taken


def evaluate_geometry(
    task: ReasoningTask,
    tokenizer: Any,
    seeds: list[SeedModels],
    *,
    problems: int,
    batch_size: int,
    max_answer: int,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, Any]]:
    """Compare the hidden states of every system's chains with the rows of its embedding table.

    Args:
        tokenizer: of the recipe.
        problems: of the first test set; at most 200 are used.

    Returns:
        By system: the numbers of `Geometry` and ``states``, how many hidden states there were, all averaged over
        seeds. Systems that write no chain are left out. The first system also has a ``plane``, the picture of its first
        seed: ``embeddings`` and ``hidden`` (pairs of coordinates), and ``explained``.
    """
    asked = first_problems(task, task.tests[0], min(problems, _LOOKED_AT))
    measured: dict[str, list[dict[str, float]]] = {}
    planes: dict[str, dict[str, Any]] = {}
    prompt_format = PromptFormat(tokenizer=tokenizer)
    for entry, system in each_system(seeds, max_answer):
        if system.targets is not None:
            continue  # latents that are trained to be directions of table rows
        chain = answer_questions(system, prompt_format, asked, batch_size).chain
        if not bool(chain.mask.any()):
            continue
        hidden = torch.cat(before_latents(system, prompt_format, asked, chain, batch_size))
        # A model that says one thing for ever repeats its states, and no distance has a scale among equal rows.
        different = hidden.unique(dim=0)
        if len(different) < 2:
            continue
        say(f"seed {entry.seed}  {system.name}: geometry of {len(hidden)} hidden states")
        table = moved(embedding_table(system.model), CPU)
        found: Geometry = geometry(table, different, seed=entry.seed)
        measured.setdefault(system.name, []).append({**asdict(found), "states": len(hidden)})
        if not planes:
            plane = principal_planes(table, different, seed=entry.seed)
            planes[system.name] = {
                "embeddings": plane.embeddings.numpy().round(4).tolist(),
                "hidden": plane.hidden.numpy().round(4).tolist(),
                "explained": list(plane.explained),
            }
    return {
        name: {
            **{measure: float(np.mean([reading[measure] for reading in readings])) for measure in readings[0]},
            **({"plane": planes[name]} if name in planes else {}),
        }
        for name, readings in measured.items()
    }
