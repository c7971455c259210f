"""Curves of a stage, out of its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unspoken.backbone.folder import write_manifest
from unspoken.evaluation.curves import curve, has_curve


def evaluation(step: int, **readings: Any) -> dict[str, Any]:
    return {"step": step, "eval_score": 0.1 * step, **readings}


def stage(folder: Path, *history: dict[str, Any]) -> Path:
    write_manifest(folder, {"step": 8, "history": list(history)})
    return folder


def test_losses_and_readings_are_kept_at_their_steps(tmp_path: Path) -> None:
    read = curve(
        stage(
            tmp_path,
            {"step": 2, "loss": 1.234567},
            evaluation(4, eval_exact_match=0.1234567, eval_forced_rank=2.0, eval_rollout_error=0.5, eval_runtime=9.0),
            {"step": 6, "loss": 0.5, "train_unrelated": 1},
            evaluation(8, eval_exact_match=1.0, eval_forced_rank=1.0, eval_rollout_error=0.25, eval_runtime=9.0),
            {"step": 8, "train_runtime": 12.5},
        )
    )
    assert read == {
        "selected_step": 8,
        "steps": [4, 8],
        "exact_match": [0.12346, 1.0],
        "forced_rank": [2.0, 1.0],
        "rollout_error": [0.5, 0.25],
        "loss_steps": [2, 6],
        "loss": [1.23457, 0.5],
        "seconds": 12.5,
    }
    assert has_curve(tmp_path)


def test_a_stage_that_was_validated_once_has_a_curve_of_one_point(tmp_path: Path) -> None:
    read = curve(stage(tmp_path, {"step": 2, "loss": 0.5}, evaluation(4, eval_ended=0.5)))
    assert (read["steps"], read["ended"], read["loss"]) == ([4], [0.5], [0.5])


@pytest.mark.parametrize("first", [True, False])
def test_a_reading_that_one_evaluation_lacks_is_left_out_of_the_curve(tmp_path: Path, first: bool) -> None:
    whole, short = {"eval_ended": 1.0, "eval_rollout_rank": 0.5}, {"eval_ended": 0.5}
    readings = [short, whole] if first else [whole, short]
    read = curve(stage(tmp_path, *(evaluation(4 * place, **one) for place, one in enumerate(readings))))
    assert "rollout_rank" not in read
    assert sorted(read["ended"]) == [0.5, 1.0]
    assert (read["loss"], read["seconds"]) == ([], None)


def test_chains_are_kept_where_every_evaluation_wrote_some_and_they_are_asked_for(tmp_path: Path) -> None:
    folder = stage(tmp_path, evaluation(4, chains=["a"]), evaluation(8, chains=["b"]))
    assert "chains" not in curve(folder)
    assert curve(folder, chains=True)["chains"] == [["a"], ["b"]]
    some = stage(tmp_path, evaluation(4, chains=["a"]), evaluation(8))
    assert "chains" not in curve(some, chains=True)


def test_a_stage_that_trained_nothing_has_no_curve(tmp_path: Path) -> None:
    assert not has_curve(stage(tmp_path))
