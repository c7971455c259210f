"""Plans by hand: operations, hours and memory of small shapes, published counts, and no network anywhere."""

from __future__ import annotations

import io
import json
from functools import cache
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from unspoken.report.plan import print_plan
from unspoken.training.plan import PEAK_FLOPS, USE, plan
from unspoken.training.recipe import load, parse, shipped
from unspoken.training.recorded_plans import recorded_plan
from unspoken.training.shapes import published_shape

# Trees of three nodes: ten tokens of prompt, three of answer. One block: 4 x 8 x 16 + 2 x 8 x 12 weights in matrices.
WORKED = """
name: worked
size: tiny
attention: eager
task: {kind: tree_search, depth: 2}
backbone: {hidden_size: 8, attention_size: 16, intermediate_size: 12, layers: 1, heads: 2}
talker: {attention_size: 24, intermediate_size: 12, layers: 1, heads: 4}
stages:
  - {name: one, objective: {kind: next_token}, steps: 5, batch_size: 16}
  - {name: two, start: one, objective: {kind: sst}, steps: 7, batch_size: 16}
  - {name: three, start: two, objective: {kind: talker}, steps: 11, batch_size: 12}
"""
TOKENS, ANSWER, BLOCK = 13, 3, 704
# Building the adapters of thirty blocks in every stage takes seconds.
DEEP = ("grade-school", "grade-school-v1", "grade-school-v2-code", "gsm8k-jepa")
SHIPPED = [
    pytest.param(name, size, marks=[pytest.mark.slow] if name in DEEP and size == "small" else [])
    for name, size, _ in shipped()
]


def vocabulary() -> int:
    return len(parse(WORKED, "here").tokenizer())


def planned(*overrides: str) -> dict[str, dict[str, Any]]:
    return {entry["stage"]: entry for entry in plan(parse(WORKED, "here", overrides))["models"]}


@cache
def planned_as_shipped(name: str, size: str) -> dict[str, Any]:
    return plan(load(name, size))


def printed(facts: dict[str, Any]) -> str:
    out = io.StringIO()
    print_plan(facts, Console(file=out, force_terminal=False))
    return out.getvalue()


def rounded(facts: Any) -> Any:
    """Another processor may round the last digit of a number otherwise."""
    return json.loads(json.dumps(facts), parse_float=lambda number: f"{float(number):.9g}")


# --- operations and hours --------------------------------------------------------------------------------------------


def test_training_costs_six_a_weight_and_token_and_a_table_costs_nothing() -> None:
    actual = planned()
    pairs = TOKENS * (TOKENS + 1) // 2
    # Forward, and twice that backward; scores and weighted sum of sixteen channels.
    blocks = 3 * (2 * BLOCK * TOKENS + 4 * 16 * pairs)
    head = 3 * 2 * 8 * vocabulary() * TOKENS
    assert actual["one"]["flops"] == 5 * 16 * (blocks + head)
    assert actual["two"]["flops"] == 7 * 16 * blocks
    assert [actual[name]["tokens"] for name in actual] == [5 * 16 * 13, 7 * 16 * 13, 11 * 12 * 13]


def test_a_second_question_costs_its_leaf_its_marker_and_its_names() -> None:
    row, pairs = TOKENS + 2 + ANSWER, (TOKENS + 2 + ANSWER) * (TOKENS + 3 + ANSWER) // 2
    actual = planned("stages.one.objective.questions=2")["one"]
    assert actual["tokens"] == 5 * 16 * row
    assert actual["flops"] == 5 * 16 * 3 * (2 * BLOCK * row + 4 * 16 * pairs + 2 * 8 * vocabulary() * row)


def test_what_is_frozen_only_runs_forward() -> None:
    reasoner = 2 * BLOCK * TOKENS + 4 * 16 * TOKENS * (TOKENS + 1) // 2
    talker = 3 * (2 * (4 * 8 * 24 + 2 * 8 * 12) * ANSWER + 4 * 24 * ANSWER * (ANSWER + 1) // 2)
    head = 3 * 2 * 8 * vocabulary() * ANSWER
    assert planned()["three"]["flops"] == 11 * 12 * (reasoner + talker + head)


def test_checkpointing_runs_the_blocks_once_more() -> None:
    actual, again = planned(), planned("activation_checkpointing=true")
    assert again["two"]["flops"] == pytest.approx(actual["two"]["flops"] * 4 / 3)
    head = 5 * 16 * 3 * 2 * 8 * vocabulary() * TOKENS
    assert again["one"]["flops"] - head == pytest.approx((actual["one"]["flops"] - head) * 4 / 3)


def test_hours_are_operations_over_what_the_gpus_do() -> None:
    actual = planned()["one"]
    assert (PEAK_FLOPS, USE) == (400e12, 0.4)
    assert actual["hours"]["8"] == pytest.approx(actual["flops"] / (8 * 160e12) / 3600)
    assert actual["hours"]["1"] == pytest.approx(8 * actual["hours"]["8"])


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_on_eight_gpus_by_hand() -> None:
    actual, rows = planned()["one"], 2
    weights = 8 * vocabulary() + BLOCK + 2 * 8 + 8  # table, block with its two gains, last gain
    assert actual["parameters"] == weights
    memory = {name: 1e9 * value for name, value in actual["memory_gb"]["8"].items()}
    assert memory["weights"] == memory["gradients"] == pytest.approx(4 * weights / 8)
    # Muon keeps one number for a matrix of a block, AdamW two for the rest.
    assert memory["optimizer"] == pytest.approx(4 * (2 * weights - BLOCK) / 8)
    # There is one block, so everything is whole on every rank: in bfloat16, with its gradients.
    assert memory["gathered"] == pytest.approx(2 * 2 * weights)
    attention = 4 * 8 + 2 * (8 + 3 * 16 + 3 * 16) + 2 * (4 + 2) * TOKENS  # two heads score thirteen tokens
    feed_forward = 4 * 8 + 2 * (8 + 2 * 12)
    assert memory["activations"] == pytest.approx(rows * TOKENS * (attention + feed_forward))
    # Scores in bfloat16, the judged ones again, in float32, and their logarithms.
    assert memory["scores"] == pytest.approx(vocabulary() * rows * TOKENS * (2 + 2 + 4 + 4))
    assert memory["total"] == pytest.approx(sum(value for name, value in memory.items() if name != "total"))


def test_kernels_without_scores_float32_and_checkpointing() -> None:
    def active(*overrides: str) -> float:
        return float(1e9 * planned(*overrides)["two"]["memory_gb"]["8"]["activations"]) / (2 * TOKENS)

    plain = 4 * 8 + 2 * (8 + 6 * 16) + 4 * 8 + 2 * (8 + 2 * 12)
    assert active("attention=sdpa") == pytest.approx(plain)
    wide = 4 * (8 + 8 + 6 * 16 + 8 + 8 + 2 * 12)
    assert active("attention=sdpa", "precision=fp32") == pytest.approx(wide)
    deep = ["attention=sdpa", "backbone.layers=5"]
    assert active(*deep) == pytest.approx(5 * plain)
    assert active(*deep, "activation_checkpointing=true") == pytest.approx(5 * 4 * 8 + plain)


def test_a_rank_has_the_activations_of_one_micro_batch_at_a_time() -> None:
    plain, halved, quarters = (planned(f"stages.one.accumulate={number}")["one"]["memory_gb"] for number in (1, 2, 4))
    for name in ("activations", "scores"):
        assert halved["8"][name] == pytest.approx(plain["8"][name] / 2)
        assert quarters["1"][name] == pytest.approx(plain["1"][name] / 4)
    assert quarters["8"] is None  # sixteen rows


def test_a_target_table_takes_room_but_no_gradient() -> None:
    actual = planned()["two"]["memory_gb"]["1"]
    assert 1e9 * (actual["weights"] - actual["gradients"]) == pytest.approx(4 * 8 * vocabulary())


def test_a_batch_that_does_not_divide_is_said_to() -> None:
    facts = plan(parse(WORKED, "here"))
    three = facts["models"][2]
    assert three["hours"]["8"] is three["memory_gb"]["8"] is None
    assert three["hours"]["1"] is not None
    assert "a batch of 12 rows does not divide over 8 GPUs: set batch_size" in facts["notes"]
    hours, memory = (line for line in printed(facts).splitlines() if line.startswith("  three"))
    assert hours.split()[-2:] == ["–", "–"]
    assert memory.split()[-4:] == ["–"] * 4


# --- published shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008),
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7_615_616_512),
    ],
)
def test_a_published_shape_has_the_published_number_of_weights(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(published_shape(name))
    assert sum(weight.numel() for weight in model.parameters()) == parameters


@pytest.mark.parametrize(("name", "size"), SHIPPED)
def test_every_shipped_recipe_plans_without_a_network(name: str, size: str) -> None:
    facts = planned_as_shipped(name, size)
    json.dumps(facts, allow_nan=False)
    recipe = load(name, size)
    assert [entry["stage"] for entry in facts["models"]] == [stage.name for stage in recipe.stages]
    for entry in facts["models"]:
        assert entry["flops"] > 0
        assert 0 < entry["memory_gb"]["1"]["total"] < 300
    text = printed(facts)
    assert max(len(line) for line in text.splitlines()) <= 120
    assert rounded(recorded_plan(recipe)) == rounded(facts), "record the plans again: python tests/golden/plans.py"


def test_the_paper_s_counts_need_no_folder() -> None:
    facts = planned_as_shipped("gsm8k-jepa", "paper")
    actual = {entry["stage"]: entry for entry in facts["models"]}
    assert round(actual["coupled"]["parameters"] / 1e9, 1) == 0.9
    assert round(actual["sst"]["trained"] / 1e6) == 694
    assert round(actual["jepa_mono"]["trained"] / 1e6) == 198
    assert any("runs/prose-paper/seed-0/pretrain/model is not there yet" in note for note in facts["notes"])


def test_scores_over_a_large_vocabulary_are_counted_as_the_losses_make_them() -> None:
    facts = planned_as_shipped("grade-school", "paper")
    actual = {entry["stage"]: entry["memory_gb"]["8"]["scores"] * 1e9 for entry in facts["models"]}
    rows, size = 64, 128256
    # 98.4 tokens of prompt, 29.5 of chain, 3 of marker and 8.6 of answer: the last three are scored.
    assert actual["cot"] == pytest.approx(size * rows * (2 + 10) * 41.1)
    # Marker and answer, and fifteen latents: both in pieces of at most 1,024 positions.
    assert actual["latent_sft_2"] == pytest.approx(size * 10 * (rows * 11.6 + rows * 15))
    # Chunks after the first, marker and answer are more than a piece; superpositions are scored at once.
    assert actual["union"] == pytest.approx(size * 10 * (1024 + rows * 15))
    assert any("published shape" in note for note in facts["notes"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone=nobody/model", "'nobody/model' cannot be loaded"),
        ("task.train=nobody/data", "lengths of problems are unknown"),
    ],
)
def test_what_nobody_knows_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        plan(load("grade-school", "small", [override]))
    assert "\n" not in str(caught.value)
