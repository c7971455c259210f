"""What a stage's trainer does at a step and at a validation, with planted losses and readings."""

from __future__ import annotations

import signal
import time
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer

from unspoken import distributed, interruption
from unspoken.methods.rows import explicit_rows
from unspoken.tasks.spans import Markers, Spans
from unspoken.training import trainer as trainers
from unspoken.training.trainer import StageTrainer


def trainer(**others: Any) -> Any:
    """Some attributes of a trainer, on which its methods are called."""
    made = SimpleNamespace(
        stage=SimpleNamespace(name="cot", stop_at=None),
        state=SimpleNamespace(global_step=7, num_input_tokens_seen=100, log_history=[]),
        terms={},
        terms_steps=0,
        _micro_batches=None,
        _began=50.0,
    )
    vars(made).update(others)
    made.diverged = lambda what: StageTrainer.diverged(made, what)
    return made


def test_terms_are_means_over_the_steps_since_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[Any] = []
    monkeypatch.setattr(StageTrainer, "__init__", lambda *_: None)
    monkeypatch.setattr(Trainer, "log", lambda _, logs, begin: lines.append((dict(logs), begin)))
    one = StageTrainer()  # type: ignore[call-arg]
    vars(one).update(vars(trainer(terms={"token_loss": torch.tensor(6.0), "rank": torch.tensor(3.0)}, terms_steps=4)))
    one.log({"eval_score": 0.5})
    one.log({"loss": 2.0}, 1.0)
    assert lines == [({"eval_score": 0.5}, None), ({"loss": 2.0, "token_loss": 1.5, "rank": 0.75}, 1.0)]
    assert (one.terms, one.terms_steps) == ({}, 0)
    one.log({"loss": 1.0})
    assert lines[-1][0] == {"loss": 1.0}
    with monkeypatch.context() as patch:
        # Another rank has summed up 14.
        patch.setattr(distributed, "world_size", lambda: 2)
        patch.setattr(distributed, "all_reduce_sum", lambda own: own + 14)
        one.terms, one.terms_steps = {"rank": torch.tensor(10.0)}, 3
        one.log({"loss": 1.0})
    assert lines[-1][0] == {"loss": 1.0, "rank": 24 / 6}
    monkeypatch.setattr(time, "monotonic", lambda: 80.0)
    one.log({"train_runtime": 9.0, "train_steps_per_second": 3.0, "train_loss": 0.25})
    assert lines[-1][0] == {"train_runtime": 30.0, "train_loss": 0.25}
    one.terms, one.terms_steps = {"a": torch.tensor(1.0)}, 1
    with pytest.raises(ValueError, match=r"stage 'cot': the loss is nan at step 7; lower optimizer\.lr"):
        one.log({"loss": float("nan")})


def test_terms_and_tokens_are_summed_up() -> None:
    rows = explicit_rows([Spans(prompt=(3,), steps=((4, 5),), answer=(6,))] * 2, Markers(open=(8,), end=(9,)), pad_id=0)
    objective = SimpleNamespace(loss=lambda *_: (torch.tensor(2.0), {"token_loss": torch.tensor(1.5)}))
    one = trainer(objective=objective)
    batch = {"input_ids": torch.zeros(2, 5), "text_ids": torch.zeros(2, 3), "labels": torch.zeros(2, 2), "rows": rows}
    for steps in (1, 2):
        loss = StageTrainer.compute_loss(one, None, {**batch, "attention_mask": torch.zeros(2, 40)})
        assert loss.item() == 2.0
        # Rows of six tokens, twice.
        assert one.state.num_input_tokens_seen == 100 + steps * (10 + 6 + 4 + 12)
        assert (one.terms["token_loss"].item(), one.terms_steps) == (1.5 * steps, steps)
    assert StageTrainer.compute_loss(one, None, batch, return_outputs=True)[1] is None


@pytest.mark.parametrize("keeps", [False, True])
def test_columns_to_score_go_to_models_that_take_them(keeps: bool) -> None:
    def taking(logits_to_keep: Any) -> None: ...
    def taking_all() -> None: ...

    one = trainer(
        model=SimpleNamespace(forward=taking if keeps else taking_all),
        objective=SimpleNamespace(with_places=lambda batch: {**batch, "places": 1}),
    )
    batch = StageTrainer._collate(one, {"supervised": 2, "input_ids": 3})
    assert batch == {"input_ids": 3, "places": 1, **({"supervised": 2} if keeps else {})}


@pytest.mark.parametrize(
    ("stop_at", "step", "candidate", "exact", "ends"),
    [
        (None, 5, True, 1.0, False),
        (0.9, 5, True, 0.9, True),
        (0.9, 5, True, 0.89, False),
        (0.9, 0, True, 1.0, False),
        (0.9, 1, True, 1.0, True),
        (0.9, 5, False, 1.0, False),
    ],
)
def test_a_stage_ends_early_once_enough_is_right(
    stop_at: float | None, step: int, candidate: bool, exact: float, ends: bool
) -> None:
    one = trainer(
        stage=SimpleNamespace(name="cot", stop_at=stop_at), objective=SimpleNamespace(candidate=lambda _: candidate)
    )
    assert StageTrainer._enough(one, step, exact) is ends


@pytest.mark.parametrize(("score", "kept"), [(0.49, False), (0.5, True), (0.6, True)])
def test_a_tie_is_won_by_the_later_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, score: float, kept: bool
) -> None:
    exported: list[Any] = []
    removed: list[Path] = []
    before: list[Path] = []
    scores = {"best-3": 0.9, "best-5": 0.5}
    monkeypatch.setattr(trainers, "numbered", lambda *_: before)
    monkeypatch.setattr(trainers, "read_manifest", lambda folder: {"validation": {"score": scores[folder.name]}})
    monkeypatch.setattr(trainers, "remove", removed.append)
    one = trainer(folder=tmp_path, _export=lambda *given: exported.append(given))
    StageTrainer._keep(one, {"score": -5.0})
    assert exported == [(tmp_path / "best-7", {"score": -5.0})]
    before += [tmp_path / name for name in scores]
    StageTrainer._keep(one, {"score": score})
    assert exported[1:] == ([(tmp_path / "best-7", {"score": score})] if kept else [])
    assert removed == (before if kept else [])


def test_a_warning_compares_the_first_reading_with_the_latest() -> None:
    seen: list[Any] = []

    def warning(first: Any, now: Any) -> str | None:
        seen.append((first, now))
        return "wrong" if now["loss"] > 1 else None

    one = trainer(objective=SimpleNamespace(warning=warning))
    StageTrainer._warn(one, {"loss": 5.0})
    assert seen == []
    one.state.log_history = [{"loss": 9}, {"eval_score": 0.1, "eval_loss": 3, "chains": []}, {"eval_score": 0.2}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StageTrainer._warn(one, {"loss": 0.5})
    assert seen == [({"score": 0.1, "loss": 3}, {"loss": 0.5})]
    with pytest.warns(UserWarning, match="stage 'cot' at step 7: wrong") as warned:
        StageTrainer._warn(one, {"loss": 2.0})
    assert warned[0].filename == __file__  # it names who measured


@pytest.mark.parametrize("infinite", [False, True])
def test_weights_that_are_not_finite_are_not_kept(infinite: bool) -> None:
    model = torch.nn.Linear(2, 2)
    if infinite:
        torch.nn.init.constant_(model.bias, float("inf"))
        with pytest.raises(ValueError, match="weights are not finite at step 7"):
            StageTrainer._refuse_infinite(trainer(model=model))
    else:
        StageTrainer._refuse_infinite(trainer(model=model))


@pytest.mark.parametrize(
    ("history", "step", "measures", "ended"),
    [
        # Steps are measured by fours, and the last one, 6: where a checkpoint of such a step was not, that comes first.
        ([], 4, True, False),
        ([], 5, False, False),
        ([], 6, True, False),
        ([{"eval_score": 1.0, "step": 6}], 6, False, False),
        ([{"eval_score": 1.0, "step": 4}], 4, False, False),
        ([{"eval_score": 1.0, "step": 0}], 4, True, False),
        ([{"loss": 1.0, "step": 4}], 4, True, False),
        ([{"eval_score": 1.0, "eval_exact_match": 0.4, "step": 4}], 4, False, True),
        ([{"eval_score": 1.0, "eval_exact_match": 0.3, "step": 4}], 4, False, False),
    ],
)
def test_a_checkpoint_is_measured_before_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, history: list[Any], step: int, measures: bool, ended: bool
) -> None:
    before = SimpleNamespace(global_step=step, log_history=history)
    monkeypatch.setattr(trainers, "read_manifest", lambda _: {"step": step})
    monkeypatch.setattr(trainers.TrainerState, "load_from_json", lambda _: before)
    trained: list[Any] = []
    one = trainer(
        stage=SimpleNamespace(name="cot", stop_at=0.4),
        objective=SimpleNamespace(candidate=lambda _: True),
        args=SimpleNamespace(eval_steps=4, max_steps=6, eval_on_start=None),
        _newest=lambda: "checkpoint-4",
        _finish=lambda: Path("finished"),
        _signal=SimpleNamespace(ended=False),
        train=lambda **given: trained.append(given),
    )
    one._enough = lambda *given: StageTrainer._enough(one, *given)
    assert StageTrainer._run(one) == Path("finished")
    assert one.args.eval_on_start is measures
    assert trained == ([] if ended else [{"resume_from_checkpoint": "checkpoint-4"}])
    monkeypatch.setattr(trainers, "read_manifest", lambda _: {"step": step + 1})
    with pytest.raises(ValueError, match=f"is of step {step}"):
        StageTrainer._run(one)


def test_micro_batches_are_counted_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StageTrainer, "__init__", lambda *_: None)
    one = StageTrainer()  # type: ignore[call-arg]
    one._micro_batches = None
    one.objective = SimpleNamespace(counts=lambda batch: {"tokens": batch})  # type: ignore[assignment]
    for batches, several in (([3], False), ([3, 4], True)):
        monkeypatch.setattr(Trainer, "get_batch_samples", lambda *_, batches=batches: (batches, None))
        assert one.get_batch_samples(None, len(batches), None) == (batches, None)
        assert (one._micro_batches is not None) is several


@pytest.mark.parametrize(
    ("ranks", "step", "there", "saved"),
    [(1, 1, False, True), (1, 0, False, False), (1, 1, True, False), (2, 1, False, False)],
)
def test_a_signal_while_it_is_measured_saves_what_is_not_saved_yet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ranks: int, step: int, there: bool, saved: bool
) -> None:
    """Several ranks cannot save together what only one of them knows of."""
    calls: list[Any] = []
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    if there:
        (tmp_path / f"checkpoint-{step}").mkdir()
    one = trainer(
        folder=tmp_path,
        state=SimpleNamespace(global_step=step),
        model_wrapped="model",
        _save_checkpoint=lambda *given: calls.append(given),
    )
    with pytest.raises(interruption.Interrupted), StageTrainer._measuring(one):
        raise interruption.Interrupted(signal.SIGTERM)
    assert calls == [("model", None)] * saved


@pytest.mark.parametrize(
    ("checkpoint", "epoch", "restored"), [("there", 2, True), ("there", 3, False), (None, 2, False)]
)
def test_sums_are_restored_in_the_epoch_that_a_checkpoint_continues(
    monkeypatch: pytest.MonkeyPatch, checkpoint: str | None, epoch: int, restored: bool
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(StageTrainer, "__init__", lambda *_: None)
    monkeypatch.setattr(Trainer, "_run_epoch", lambda _, **given: calls.append(given))
    monkeypatch.setattr(trainers, "restore_unlogged", lambda _, folder: calls.append(folder))
    one = StageTrainer()  # type: ignore[call-arg]
    one.control = SimpleNamespace(should_training_stop=False)  # type: ignore[assignment]
    given = {"resume_from_checkpoint": checkpoint, "epoch": epoch, "epochs_trained": 2}
    one._run_epoch(**given)
    assert calls == [*([Path("there")] if restored else []), given]


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_nothing_in_a_checkpoint_runs_code(name: str, tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([torch.zeros(2)], lr=0.1)
    folder, ran = tmp_path / "checkpoint", tmp_path / "ran"
    folder.mkdir()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(Touches(ran), folder / name)
    args, rate = SimpleNamespace(device=torch.device("cpu")), SimpleNamespace(load_state_dict=lambda _: None)
    one = trainer(_blank="sharded", args=args, optimizer=optimizer, lr_scheduler=rate)
    one._load_optimizer = partial(StageTrainer._load_optimizer, one)
    load = StageTrainer._load_rng_state if name == "rng_state.pth" else StageTrainer._load_optimizer_and_scheduler
    with pytest.raises(ValueError, match=rf"^{folder} cannot be continued \(UnpicklingError: .*; remove it to resume"):
        load(one, str(folder))
    assert not ran.exists()


@pytest.mark.parametrize(("blank", "checkpoint"), [(None, "there"), ("sharded", None)])
def test_what_is_not_sharded_or_not_there_is_loaded_by_the_library(
    monkeypatch: pytest.MonkeyPatch, blank: str | None, checkpoint: str | None
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(StageTrainer, "__init__", lambda *_: None)
    monkeypatch.setattr(Trainer, "_load_optimizer_and_scheduler", lambda _, given: calls.append(given))
    one = StageTrainer()  # type: ignore[call-arg]
    one._blank = blank  # type: ignore[assignment]
    one._load_optimizer_and_scheduler(checkpoint)
    assert calls == [checkpoint]
