"""Hidden states of chains beside the embedding table, from folder to results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_words import PROMPT_FORMAT, TASK, saved, table_rows, tiny_word_system
from unspoken.evaluation.geometry import evaluate_geometry

from unspoken.evaluation.answering import answer_questions
from unspoken.evaluation.seeds import SeedModels

PROBLEMS = TASK.sample("test", range(6))


@torch.no_grad()
def test_every_chain_is_measured_and_averaged_over_seeds(tmp_path: Path) -> None:
    seeds, systems = [], []
    for seed, stretch in enumerate((1.0, 3.0)):
        hidden, silent = tiny_word_system("llama", feed="hidden"), tiny_word_system(max_latents=0)
        table_rows(hidden).mul_(stretch)
        folders = {"hidden": saved(hidden, tmp_path / f"h{seed}"), "silent": saved(silent, tmp_path / f"s{seed}")}
        explicit = tiny_word_system(top_k=1, max_latents=4)
        folders["cot"] = saved(explicit, tmp_path / f"c{seed}")
        seeds.append(SeedModels(seed=seed, final=folders, stages={}))
        systems.append(hidden)
    found = evaluate_geometry(TASK, TASK.tokenizer, seeds, problems=6, batch_size=4, max_answer=3)
    json.dumps(found, allow_nan=False)
    assert list(found) == ["hidden", "cot", "soft thinking"]  # nothing of what answers at once
    entry, states, rows = found["hidden"], [], []
    for system in systems:
        # The latents of this system are its hidden states.
        chain = answer_questions(system, PROMPT_FORMAT, PROBLEMS, 6).chain
        states.append(chain.latents[chain.mask])
        rows.append(table_rows(system))
    assert entry["states"] == sum(len(part) for part in states) / 2
    for measure, clouds in (("hidden_norm", states), ("embedding_norm", rows)):
        norms = [cloud.norm(dim=-1).mean() for cloud in clouds]
        assert norms[0] != norms[1]
        assert entry[measure] == pytest.approx(float(sum(norms)) / 2, rel=1e-4), measure
    assert [name for name, measured in found.items() if "plane" in measured] == ["hidden"]
    plane = entry["plane"]
    assert len(plane["hidden"]) == len(states[0])
    assert len(plane["embeddings"]) == len(rows[0])


@torch.no_grad()
def test_a_model_without_any_variety_is_left_out(tmp_path: Path) -> None:
    system = tiny_word_system(top_k=1)
    for parameter in system.model.parameters():
        parameter.zero_()
    seeds = [SeedModels(seed=0, final={"dull": saved(system, tmp_path / "dull")}, stages={})]
    assert evaluate_geometry(TASK, TASK.tokenizer, seeds, problems=3, batch_size=3, max_answer=3) == {}
