"""Micro-batches one after another train what one batch trains, up to the rounding of sums, in every kind of stage.

What is drawn for a step is the same too; only dropout has other masks, so these recipes have none.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from faults import interrupt, stage_in_which
from tiny_drills import TEXTS, runs_made_once
from tiny_prose import corpus
from tiny_recipe import one_stage, quiet_stage, quiet_train, weights

from unspoken import distributed
from unspoken.backbone.folder import read_manifest
from unspoken.methods.method import Batch, Objective
from unspoken.training.parts import Optimizer
from unspoken.training.recipe import Recipe, Stage, parse

TOLERANCE = 5e-5  # of losses and norms of gradients, which lie between 0.1 and 10
GENTLE = Optimizer(name="adamw", lr=0.001, lr_rest=None, warmup_steps=0)


def changed(recipe: Recipe, change: Callable[[Stage], Stage]) -> Recipe:
    """A recipe with other stages."""
    return dataclasses.replace(recipe, stages=tuple(map(change, recipe.stages)))


def accumulating(recipe: Recipe, name: str, micro_batches: int) -> Recipe:
    """A recipe in which one stage reads a step in micro-batches."""
    return changed(
        recipe, lambda stage: dataclasses.replace(stage, accumulate=micro_batches) if stage.name == name else stage
    )


def comparable(name: str, folder: Path | None = None) -> Recipe:
    """One of the recipes of the drills in float32, without dropout and without means over a whole batch."""
    text = TEXTS[name].replace("dropout: 0.1", "dropout: 0.0").replace("{rank: 4", "{rank: 4, dropout: 0.0")
    text = text.replace("latents: 2, last_step: true}}", "latents: 2, last_step: true, divide_by_std: false}}")
    files = [f"task.train={corpus(folder)}"] if name == "prose" and folder is not None else []
    recipe = parse(text, name, ["precision=fp32", *files])
    gentle = changed(recipe, lambda stage: dataclasses.replace(stage, optimizer=GENTLE))
    return dataclasses.replace(gentle, threads=1)


def history(output: Path, name: str) -> list[dict[str, float]]:
    """Lines of training of a finished stage."""
    entries = read_manifest(output / "seed-0" / name / "model")["history"]
    return [entry for entry in entries if "loss" in entry]


def assert_same_path(one: list[dict[str, float]], other: list[dict[str, float]]) -> None:
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        # The best constant vector is that of a micro-batch, see `all_reduce_mean`.
        assert {name: first[name] for name in first if name != "best_constant_loss"} == pytest.approx(
            {name: second[name] for name in second if name != "best_constant_loss"}, rel=TOLERANCE, abs=TOLERANCE
        )


STAGES = [(name, stage) for name in TEXTS for stage in comparable(name).stages if not stage.objective.writes_data]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Recipe, Path]]:
    """A run that reads every step as one batch, made once a recipe."""
    return runs_made_once(tmp_path_factory.mktemp, comparable)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        # Tree search trains in a moment and stands for the others in the quick run.
        pytest.param(name, stage, id=f"{name}-{stage.name}", marks=[pytest.mark.slow] * (name != "trees"))
        for name, stage in STAGES
    ],
)
def test_a_row_at_a_time_is_the_same_path(
    name: str, stage: Stage, finished: Callable[[str], tuple[Recipe, Path]], tmp_path: Path
) -> None:
    recipe, output = finished(name)
    again = tmp_path / "run"
    shutil.copytree(output, again)
    shutil.rmtree(again / "seed-0" / stage.name)
    quiet_stage(accumulating(recipe, stage.name, stage.batch_size), again, name=stage.name)
    assert_same_path(history(output, stage.name), history(again, stage.name))


# Rows with other numbers of supervised tokens.
WORDS = """
name: words
size: tiny
precision: fp32
attention: eager
task: {kind: arithmetic, steps: [1, 2, 3], largest: 20, operations: [add, subtract]}
backbone: {hidden_size: 16, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}
stages:
  - name: cot
    objective: {kind: next_token, positions: answer}
    steps: 4
    evaluate_every: 2
    batch_size: 8
    optimizer: {name: adamw, lr: 0.001, lr_rest: null, warmup_steps: 0}
evaluation: {problems: 4, validation_problems: 4, batch_size: 4, max_latents: 4, max_answer: 4}
threads: 1
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A run of one stage that reads every step as one batch."""
    recipe, output = parse(WORDS, "words"), tmp_path_factory.mktemp("words") / "run"
    quiet_train(recipe, output)
    return recipe, output


def test_of_rows_of_other_lengths_too_and_the_mean_of_means_is_another_path(
    words: tuple[Recipe, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, output = words
    rows = accumulating(recipe, "cot", 8)
    quiet_train(rows, tmp_path / "right")
    assert_same_path(history(output, "cot"), history(tmp_path / "right", "cot"))
    monkeypatch.setattr(distributed, "_weighted", lambda mean, *_: mean)
    quiet_train(rows, tmp_path / "wrong")
    with pytest.raises(AssertionError):
        assert_same_path(history(output, "cot"), history(tmp_path / "wrong", "cot"))


def test_stopped_in_the_middle_it_goes_on_bit_for_bit(words: tuple[Recipe, Path], tmp_path: Path) -> None:
    pairs = accumulating(words[0], "cot", 4)
    quiet_train(pairs, tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        stage_in_which(interrupt, "middle", pairs, tmp_path / "run", "cot")
    quiet_stage(pairs, tmp_path / "run", name="cot")
    assert weights(tmp_path / "run") == weights(tmp_path / "undisturbed")


def test_a_run_goes_on_in_smaller_micro_batches(words: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, output = words
    quiet_train(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "seed-0" / "cot")
    with pytest.raises(KeyboardInterrupt):
        stage_in_which(interrupt, "middle", recipe, tmp_path / "run", "cot")
    quiet_train(accumulating(recipe, "cot", 8), tmp_path / "run")
    assert_same_path(history(output, "cot"), history(tmp_path / "run", "cot"))


@pytest.mark.parametrize("counts", [[3, 1], [2, 2, 7, 1], [4, 0], [0, 0, 5]])
def test_micro_batches_together_are_the_mean_over_all_items_and_so_is_the_gradient(counts: list[int]) -> None:
    scores = torch.randn(sum(counts), 5, requires_grad=True)
    tokens = torch.randint(5, (sum(counts),))
    mean = F.cross_entropy(scores, tokens)
    step, losses = distributed.MicroBatches([{"tokens": count} for count in counts]), []
    for number, count in enumerate(counts):
        own = slice(sum(counts[:number]), sum(counts[: number + 1]))
        with step.following():
            losses.append(distributed.rank_weighted_mean(F.cross_entropy(scores[own], tokens[own]), count))
    average = torch.stack(losses).mean()
    torch.testing.assert_close(average, mean)
    expected = torch.autograd.grad(mean, scores)[0]
    torch.testing.assert_close(torch.autograd.grad(average, scores)[0], expected)


def test_what_is_drawn_for_a_step_is_drawn_once() -> None:
    counts = [2, 1, 3]
    torch.manual_seed(0)
    expected, second, after = torch.rand(6, 4), torch.rand(6), torch.rand(3)
    torch.manual_seed(0)
    step, drawn, again = distributed.MicroBatches([{"rows": count} for count in counts]), [], []
    for count in counts:
        with step.following():
            drawn.append(distributed.draw_rank_rows(count, lambda rows: torch.rand(rows, 4), "rows"))
            again.append(distributed.draw_rank_rows(count, torch.rand, "rows"))
    assert torch.equal(torch.cat(drawn), expected)
    assert torch.equal(torch.cat(again), second)
    assert torch.equal(torch.rand(3), after)


def test_ranks_take_micro_batches_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two ranks with two micro-batches each; rows are read in the order (first, rank 0), (first, rank 1), ...
    counts_by_rank = [[1, 2], [3, 4]]
    starts = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        step = distributed.MicroBatches([{}, {}])
        for _ in range(2):
            with step.following():
                starts.append(step.before(counts_by_rank))
    assert starts == [0, 1 + 3, 1, 1 + 3 + 2]


class Uncounted(Objective):
    """A stage of one's own that counts nothing."""

    def counts(self, batch: Batch) -> dict[str, int | torch.Tensor]:
        return {}


def test_what_an_objective_does_not_count_is_refused_by_name() -> None:
    step = distributed.MicroBatches([Uncounted().counts({}), Uncounted().counts({})])
    with step.following(), pytest.raises(ValueError, match=r"does not count 'tokens' .*; set its accumulate to 1"):
        distributed.rank_weighted_mean(torch.tensor(1.0), 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.pretrain.accumulate=3", "accumulate is 3 and batch_size 8; accumulate must divide batch_size"),
        ("stages.pretrain.accumulate=0", "accumulate is 0"),
    ],
)
def test_micro_batches_of_one_size_are_needed(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one_stage(override)


def test_a_deviation_over_the_whole_batch_is_refused() -> None:
    text = WORDS.replace("{kind: next_token, positions: answer}", "{kind: codi, latents: 2}")
    message = "divide_by_std takes the deviation over the whole batch.*set accumulate to 1, or objective.divide_by_std"
    with pytest.raises(ValueError, match=message):
        parse(text, "codi", ["stages.cot.accumulate=2"])
    assert parse(text, "codi", ["stages.cot.accumulate=2", "stages.cot.objective.divide_by_std=false"])
