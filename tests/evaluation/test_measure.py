"""A run that went badly can still be measured: the results file is where one sees that it did."""

import json

import numpy as np
import pytest
import torch
from tiny_recipe import quiet_train, tiny_recipe
from unspoken.evaluation.measure import _inspect

from unspoken.backbone.folder import read_manifest, write_manifest
from unspoken.evaluation.answering import answer_trees
from unspoken.evaluation.curves import curve as curve_of
from unspoken.methods import catalogue
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.loading import load_model


@pytest.fixture(scope="module")
def reasoner_folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("measured")
    (run,) = quiet_train(tiny_recipe(), output)
    return run.model_folder("sst")


def test_chains_that_all_stop_at_once_give_finite_readings(reasoner_folder):
    model = load_model(reasoner_folder)
    assert isinstance(model, JepaReasonerModel)
    task = tiny_recipe().task.build()
    problems = task.sample("test", np.arange(4))
    # Every row of the table is end-of-sequence, so the first latent is the last.
    model.nearest_row = lambda latents: torch.full(latents.shape[:-1], model.config.end_id)
    (system,) = catalogue.systems(model, stage="sst", max_answer=8)
    given = answer_trees(system, task, problems, 4)
    assert given.chain.lengths.tolist() == [1, 1, 1, 1]
    json.dumps(_inspect(system, given, task, problems), allow_nan=False)


def test_a_reading_that_one_evaluation_lacks_is_left_out_of_the_curve(reasoner_folder):
    manifest = read_manifest(reasoner_folder)
    evaluations = [entry for entry in manifest["history"] if "eval_score" in entry]
    assert "eval_forced_rank" in evaluations[0]
    evaluations[0]["eval_rollout_rank"] = 0.5
    evaluations[-1].pop("eval_rollout_rank", None)
    write_manifest(reasoner_folder, manifest)
    curve = curve_of(reasoner_folder)
    assert "rollout_rank" not in curve
    assert len(curve["forced_rank"]) == len(curve["steps"])
