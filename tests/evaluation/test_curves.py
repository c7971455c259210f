"""Curves of a stage, out of its manifest."""

from __future__ import annotations

from pathlib import Path

from tiny_recipe import quiet_train, tiny_recipe

from unspoken.backbone.folder import read_manifest, write_manifest
from unspoken.evaluation.curves import curve


def test_a_reading_that_one_evaluation_lacks_is_left_out_of_the_curve(tmp_path: Path) -> None:
    (run,) = quiet_train(tiny_recipe(), tmp_path)
    folder = run.model_folder("sst")
    manifest = read_manifest(folder)
    evaluations = [entry for entry in manifest["history"] if "eval_score" in entry]
    assert "eval_forced_rank" in evaluations[0]
    evaluations[0]["eval_rollout_rank"] = 0.5
    evaluations[-1].pop("eval_rollout_rank", None)
    write_manifest(folder, manifest)
    read = curve(folder)
    assert "rollout_rank" not in read
    assert len(read["forced_rank"]) == len(read["steps"])
