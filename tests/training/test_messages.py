"""What a run tells while it trains and where it ends, word for word."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_recipe import tiny_recipe

from unspoken import distributed
from unspoken.training import recorded_plans, run
from unspoken.training.progress import Pace, StageProgress, frozen_in_words
from unspoken.training.recorded_plans import offers, recorded_plan
from unspoken.training.run import _check_loggers, _check_ranks, _memory_to_train, memory_to_measure, seed_runs
from unspoken.training.stopping import EndsAtSignal, restore_unlogged, write_unlogged


def refusal(context: Any) -> str:
    with pytest.raises(ValueError, match="out of memory") as raised, context:
        raise MemoryError
    return str(raised.value)


@pytest.mark.parametrize(
    ("batch", "accumulate", "smaller"),
    [
        (12, 1, 2),
        (12, 4, 12),
        (15, 1, 3),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_saved_by_the_next_smaller_micro_batch(
    batch: int, accumulate: int, smaller: int, checkpointing: bool
) -> None:
    recipe = tiny_recipe(
        f"stages.pretrain.batch_size={batch}",
        f"stages.pretrain.accumulate={accumulate}",
        f"activation_checkpointing={str(checkpointing).lower()}",
    )
    other = "" if checkpointing else " or set activation_checkpointing to true"
    assert refusal(_memory_to_train(recipe, recipe.stages[0])) == (
        f"stage 'pretrain' with batch_size {batch} and accumulate {accumulate}: out of memory; set "
        f"stages.pretrain.accumulate to {smaller} or start more processes (both resume from the last checkpoint); or "
        f"lower stages.pretrain.batch_size{other} in a new --output, because a run folder keeps its recipe"
    )


@pytest.mark.parametrize(
    ("batch", "ranks", "checkpointing", "remedy"),
    [
        (8, 1, "true", "use a machine with more memory"),
        (16, 2, "false", "set activation_checkpointing to true in a new --output, or use a machine with more memory"),
    ],
)
def test_a_micro_batch_of_one_row_cannot_become_smaller(
    monkeypatch: pytest.MonkeyPatch, batch: int, ranks: int, checkpointing: str, remedy: str
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    recipe = tiny_recipe(
        f"stages.pretrain.batch_size={batch}",
        "stages.pretrain.accumulate=8",
        f"activation_checkpointing={checkpointing}",
    )
    message = refusal(_memory_to_train(recipe, recipe.stages[0]))
    assert message.endswith(f": out of memory; each micro-batch has only one row; {remedy}")


@pytest.mark.parametrize(("size", "smaller"), [(500, 125), (7, 1), (3, 1), (1, 1)])
def test_a_quarter_of_the_problems_is_measured_at_once(size: int, smaller: int) -> None:
    recipe = tiny_recipe(f"evaluation.batch_size={size}")
    assert refusal(memory_to_measure(recipe)) == (
        f"measuring with evaluation.batch_size {size}: out of memory; run the recipe again with --set "
        f"evaluation.batch_size={smaller}, which trains nothing anew"
    )


@pytest.mark.parametrize(
    ("batch", "accumulate", "message"),
    [
        (6, 3, None),
        (4, 1, None),
        (5, 1, "batch_size 5 is not divisible by 2 processes; change batch_size or the number"),
        (
            6,
            2,
            "batch_size 6 is not divisible by 2 processes x 2 micro-batches; change batch_size, accumulate or the",
        ),
    ],
)
def test_micro_batches_are_shared_evenly_too(
    monkeypatch: pytest.MonkeyPatch, batch: int, accumulate: int, message: str | None
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    (stage, *_) = tiny_recipe(f"stages.pretrain.batch_size={batch}", f"stages.pretrain.accumulate={accumulate}").stages
    if message is None:
        _check_ranks(stage)
    else:
        with pytest.raises(ValueError, match=message):
            _check_ranks(stage)


def test_loggers_are_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "get_available_reporting_integrations", lambda: ["tensorboard"])
    _check_loggers(["tensorboard", "all", "none"])
    for name, message in (("wandb", "'wandb' is not installed"), ("tensorbord", "did you mean 'tensorboard'")):
        with pytest.raises(ValueError, match=message):
            _check_loggers(["tensorboard", name])


def test_seeds_count_from_nought() -> None:
    runs = seed_runs(tiny_recipe(), Path("there"), 3)
    assert [(run.seed, run.folder.name) for run in runs] == [(0, "seed-0"), (1, "seed-1"), (2, "seed-2")]


def test_a_line_of_progress() -> None:
    """Four rows a step; two of ten steps were done before, one in two seconds, so that seven take fourteen."""
    out, now = io.StringIO(), [50.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", lambda: now[0])
        pace = Pace(40)
        shown = StageProgress(Console(file=out, width=200), "seed 0", pace)
        arguments: Any = SimpleNamespace(world_size=1, gradient_accumulation_steps=2)
        state: Any = SimpleNamespace(max_steps=10, global_step=2, num_input_tokens_seen=1000, train_batch_size=2)
        shown.on_train_begin(arguments, state, None)
        shown.on_evaluate(arguments, state, None, {"eval_score": 1.0})
        now[0], state.global_step, state.num_input_tokens_seen = 52.0, 3, 4000
        shown.on_step_end(arguments, state, None)
        assert (pace.rows, pace.trained, pace.seconds, pace.left) == (32, 4, 2.0, 14.0)
        shown.on_log(arguments, state, None, {"loss": 1.23456})
        shown.on_log(arguments, state, None, {"eval_score": 0.5})
        shown.on_evaluate(arguments, state, None, {"eval_exact_match": 0.125})
        state.global_step = 4
        shown.on_train_end(arguments, state, None)
        assert pace.rows == 32 - 6 * 4
    first, second = out.getvalue().splitlines()
    assert first == "seed 0  step 2/10  0.0k tokens/s"
    assert second == (
        "seed 0  step 3/10  loss 1.2346  exact match 12.5 % at step 3  1.5k tokens/s  training left: about 14 s"
    )


def test_frozen_weights_are_told() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(9, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    assert frozen_in_words(model) == ""
    model[0].requires_grad_(False)
    assert frozen_in_words(model) == "trains 1 of 10 weights (10.00 %)"


def test_the_time_that_is_left_counts_the_rows_of_all_stages_that_are_not_finished(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paces: list[Pace] = []

    def trained(_run: Any, _stage: Any, *, report_to: list[str], callbacks: list[StageProgress]) -> None:
        paces.extend(one.pace for one in callbacks)

    monkeypatch.setattr(run, "train_stage", trained)
    recipe = tiny_recipe()
    runs = seed_runs(recipe, tmp_path, 2, torch.device("cpu"))
    run._train_in_turn(runs, recipe.stages, report_to=[], console=Console(quiet=True))
    # Batches of eight; six, six and four steps a seed.
    assert len(paces) == 2 * 3 and {pace.rows for pace in paces} == {2 * 8 * (6 + 6 + 4)}


# --- where a stage ends at a signal ----------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [False, True])
def test_a_signal_ends_the_stage_with_a_checkpoint(monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    monkeypatch.setattr("unspoken.interruption.requested", lambda: asked)
    control: Any = SimpleNamespace(should_save=False, should_evaluate=True, should_training_stop=False)
    ends = EndsAtSignal()
    ends.on_step_end(SimpleNamespace(logging_steps=25), SimpleNamespace(global_step=3), control)
    assert ends.ended is asked
    assert vars(control) == {"should_save": asked, "should_evaluate": not asked, "should_training_stop": asked}


@pytest.mark.parametrize(("step", "others", "ends"), [(24, 1.0, False), (25, 1.0, True), (25, 0.0, False)])
def test_ranks_end_together_at_a_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, step: int, others: float, ends: bool
) -> None:
    monkeypatch.setattr("unspoken.interruption.requested", lambda: False)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda own: own + others)
    control: Any = SimpleNamespace(should_save=False, should_evaluate=True, should_training_stop=False)
    args = SimpleNamespace(logging_steps=25, device=torch.device("cpu"))
    signals = EndsAtSignal()
    signals.on_step_end(args, SimpleNamespace(global_step=step), control)
    assert signals.ended is control.should_training_stop is ends


def test_sums_since_the_last_line_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trainer(**others: Any) -> Any:
        return SimpleNamespace(args=SimpleNamespace(device="cpu"), **others)

    before = trainer(
        _tr_loss=torch.tensor(2.5),
        _globalstep_last_logged=10,
        state=SimpleNamespace(global_step=13),
        terms={"token_loss": torch.tensor(1.5)},
        terms_steps=3,
    )
    write_unlogged(before, tmp_path)
    after = trainer(_tr_loss=torch.tensor(0.0), _globalstep_last_logged=13, terms={}, terms_steps=0)
    restore_unlogged(after, tmp_path)
    assert (after._tr_loss.item(), after._globalstep_last_logged, after.terms_steps) == (2.5, 10, 3)
    assert after.terms["token_loss"].item() == 1.5
    restore_unlogged(after, tmp_path / "nowhere")
    assert after.terms_steps == 3
    before._tr_loss = torch.tensor(float("inf"))
    before.diverged = ValueError
    with pytest.raises(ValueError, match="the loss is inf"):
        write_unlogged(before, tmp_path)
    # Of several ranks each has sums of its own, and none of them is kept.
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    (tmp_path / "of two").mkdir()
    write_unlogged(before, tmp_path / "of two")
    assert not list((tmp_path / "of two").iterdir())
    restore_unlogged(after, tmp_path)
    assert after._tr_loss.item() == 2.5


# --- what is offered -------------------------------------------------------------------------------------------------


def test_offers_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds on two cores, or on a GPU where these would take more than half a day."""
    flops = {
        ("tree-search", "tiny"): [1.2e11, 2.4e11],
        ("tree-search", "small"): [1e16, 1e10],
        ("cups", "tiny"): [],
    }
    limit = (12 * 3600 - 53) * 1.2e11
    flops["cups", "small"] = [limit / 2]  # it trains in one thread
    flops["tree-search", "paper"] = [limit + 1.2e11]
    plans = {
        f"{name} {size}": {"models": [{"flops": one, "hours": {"1": 2.0 if one > 1e15 else None}} for one in each]}
        for (name, size), each in flops.items()
    }
    monkeypatch.setattr(recorded_plans, "shipped", lambda: [(*key, "summary") for key in flops])
    monkeypatch.setattr(recorded_plans.json, "loads", lambda _: plans)
    listed = offers()
    assert [(one.name, one.size, one.hardware, one.start_here) for one in listed] == [
        ("tree-search", "tiny", "2 CPU cores", True),
        ("tree-search", "small", "1 GPU", False),
        ("tree-search", "paper", "1 GPU", False),
        ("cups", "tiny", "2 CPU cores", False),
        ("cups", "small", "1 CPU core", False),
    ]
    assert [one.seconds for one in listed] == pytest.approx([56, 7200, 7200, 53, 12 * 3600])
    assert listed[0].task == "tree search"


def test_a_changed_recipe_has_no_recorded_plan() -> None:
    from unspoken.training.recipe import load

    assert recorded_plan(load("tree-search", "tiny", ["stages.0.steps=3"])) is None
    assert recorded_plan(tiny_recipe()) is None
    assert recorded_plan(load("tree-search", "tiny")) is not None
