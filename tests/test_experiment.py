"""Which stage of a run is the one that others are compared with, and which one answers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_recipe import tiny_recipe

from unspoken import experiment
from unspoken.backbone.folder import write_manifest
from unspoken.runs import compression_rate, locate
from unspoken.training.settings import as_mapping

ALONE, GOES_ON, SECOND = ("alone", None, ()), ("goes on", "alone", ()), ("second", None, ("alone",))
EQUAL = ("equal", "alone", ("goes on",))


@pytest.mark.parametrize(
    ("explicit", "baseline"),
    [
        ([], None),
        ([ALONE], "alone"),
        ([ALONE, GOES_ON, SECOND], "alone"),
        ([ALONE, GOES_ON, SECOND, EQUAL], "equal"),
    ],
)
def test_the_baseline_is_the_explicit_chain_that_went_on_for_as_many_steps(
    explicit: list[Any], baseline: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {
        name: SimpleNamespace(
            name=name, start=start, steps_of=steps_of, objective=SimpleNamespace(writes_tokens=name != "latent")
        )
        for name, start, steps_of in [("latent", "alone", ("alone",)), *explicit]
    }
    traits = SimpleNamespace(continues=False)
    recipe: Any = SimpleNamespace(stage=stages.get, task=SimpleNamespace(traits=traits))
    monkeypatch.setattr(experiment, "measured_stages", lambda _: [*stages])
    assert experiment._baseline(recipe) == baseline
    traits.continues = True  # running text has no answers to compare
    assert experiment._baseline(recipe) is None


LAST = {"name": "again", "start": "pretrain", "objective": {"kind": "next_token"}, "steps": 1, "batch_size": 8}


@pytest.mark.parametrize(
    ("stages", "answers"),
    [
        (["pretrain", "sst", "talker"], "talker"),
        (["pretrain", "sst", "talker", "again"], "talker"),
        (["pretrain", "again"], "again"),
    ],
)
def test_a_run_answers_by_its_last_stage_of_latents_or_else_by_its_last(
    stages: list[str], answers: str, tmp_path: Path
) -> None:
    content = as_mapping(tiny_recipe())
    content["stages"] = [stage for stage in (*content["stages"], LAST) if stage["name"] in stages]
    (tmp_path / "recipe.json").write_text(json.dumps(content))
    for seed in (0, 1):
        model = tmp_path / f"seed-{seed}" / answers / "model"
        model.mkdir(parents=True)
        assert locate(tmp_path, seed, None)[1] == model
    with pytest.raises(ValueError, match=f"seed-2 has no finished stage '{answers}'"):
        locate(tmp_path, 2, None)


def test_no_rate_is_known_where_no_stage_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert compression_rate(tmp_path, 0, None) is None
    write_manifest(tmp_path, {"recipe": as_mapping(tiny_recipe())})
    assert compression_rate(tmp_path, 0, None) is None
