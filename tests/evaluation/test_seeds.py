"""The systems of a stage, with the caps of its task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model, tiny_pair
from tiny_words import PROMPT_FORMAT, TEXT_FORMAT, saved, tiny_word_system

from unspoken.evaluation.answering import first_problems, padded
from unspoken.evaluation.seeds import SeedModels, capped, measured_systems, stage_systems
from unspoken.methods import catalogue
from unspoken.methods.soft_thinking import SoftThinking
from unspoken.reasoning.engine import StopRule
from unspoken.tasks import TreeSearchConfig, TreeSearchTask
from unspoken.tasks.arithmetic import ArithmeticConfig
from unspoken.tasks.task import Traits

WORDS = ArithmeticConfig(steps=(1, 2, 3), largest=20).traits
TREES = TreeSearchConfig(depth=2).traits


def fixed(cap: int | None, steps: int | None = 2) -> Traits:
    return replace(WORDS, answer_cap=cap, fixed_steps=steps)


def test_answers_have_the_length_that_a_task_fixes() -> None:
    (system,) = catalogue.systems(tiny_language_model("unspoken"), stage="it", max_answer=7)
    assert capped(system, fixed(5)).max_tokens == 5
    assert capped(system, fixed(5)).stop == StopRule(max_latents=5, fixed=True)
    # Latents that stand for the first tokens leave as many fewer to write.
    assert capped(replace(system, replaced=2), fixed(5)).max_tokens == 3
    for free in (fixed(None), fixed(5, None), WORDS):
        assert capped(system, free) is system


def test_a_stage_names_its_systems_and_the_task_caps_them() -> None:
    for traits, cap in ((fixed(None, None), 7), (fixed(5, None), 5)):
        (system,) = stage_systems(tiny_language_model("unspoken"), "it", traits, 7)
        assert (system.name, system.max_tokens) == ("it", cap)
    for traits, name in ((TREES, "jepa-reasoner"), (WORDS, "it"), (replace(TREES, continues=True), "it")):
        names = [system.name for system in stage_systems(tiny_pair(), "it", traits, 7)]
        assert names == [name, f"{name}, nearest row"]


def test_measured_stages_are_opened_in_turn_with_their_further_ways(tmp_path: Path) -> None:
    folder = saved(tiny_word_system(top_k=1), tmp_path)
    way = SoftThinking(max_latents=2)
    entry = SeedModels(seed=3, measured={"cot": folder, "again": folder}, reasonings={"cot": (way,)})
    named = {
        stage: [system.name for system in systems]
        for stage, systems in measured_systems(entry, WORDS, 4, PROMPT_FORMAT)
    }
    assert list(named) == ["cot", "again"]
    assert named["cot"][0] == "cot" and named["again"][0] == "again"
    assert len(named["cot"]) == len(named["again"]) + 1


def test_the_second_talker_of_a_reasoner_is_named_by_its_stage_and_read_once(tmp_path: Path) -> None:
    tiny_pair().save_pretrained(tmp_path)
    entry = SeedModels(seed=0, measured={"mono": tmp_path, "dual": tmp_path})
    named = {
        stage: [system.name for system in systems]
        for stage, systems in measured_systems(entry, TREES, 4, PROMPT_FORMAT)
    }
    assert named == {
        "mono": ["jepa-reasoner", "jepa-reasoner, nearest row"],
        "dual": ["jepa-reasoner, dual"],
    }


def test_a_system_that_is_open_is_measured_as_it_is() -> None:
    system = replace(tiny_word_system(), text_format=TEXT_FORMAT)
    ((name, systems),) = measured_systems(SeedModels(seed=0, opened=system), WORDS, 4, PROMPT_FORMAT)
    assert (name, systems) == ("unspoken", [system])


def test_rows_of_batches_are_filled_up_on_the_right() -> None:
    batches = [torch.tensor([[1, 2]]), torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.zeros(1, 0, dtype=torch.long)]
    assert padded(batches, 9).tolist() == [[1, 2, 9], [3, 4, 5], [6, 7, 8], [9, 9, 9]]


@pytest.mark.parametrize(("size", "most", "taken"), [(None, 3, 3), (2, 3, 2), (5, 3, 3), (3, 3, 3)])
def test_a_smaller_test_set_is_used_in_full(size: int | None, most: int, taken: int) -> None:
    asked: list[tuple[str, list[int]]] = []

    class Sized(TreeSearchTask):
        def size(self, split: str) -> int | None:
            return size

        def sample(self, split: str, indices: Any, seed: int = 0) -> Any:
            asked.append((split, indices.tolist()))
            return super().sample("test", indices)

    assert len(first_problems(Sized(TreeSearchConfig(depth=2)), "hard", most)) == taken
    assert asked == [("hard", list(range(taken)))]
