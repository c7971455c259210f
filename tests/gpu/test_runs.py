"""Whole runs on a GPU: every kind of stage trains, writes its labels, goes on after a stop, and answers a request."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from faults import StopAt
from on_device import DEVICE, placed
from safetensors.torch import load_file
from tiny_drills import TEXTS, drilled
from tiny_recipe import one_stage, quiet_stage, quiet_train, verify_finished_folders
from tiny_words import PROMPT_FORMAT, TASK, tiny_word_system

from unspoken.backbone.folder import read_manifest
from unspoken.methods.latent_sft.building import stage_one_batch
from unspoken.methods.latent_sft.label_store import LabelStore
from unspoken.methods.latent_sft.labelling import LABELS, label_identity
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.latent_sft.stages import Labels
from unspoken.serving import Served, app
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.training.recipe import Recipe
from unspoken.training.stages import SeedRun

pytestmark = pytest.mark.gpu

# Of a number that went through a training step, or was added up in another order.
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def short(name: str, folder: Path, precision: str) -> Recipe:
    """A recipe that holds every kind of stage of its task, with one look at the data before and after two steps."""
    stages = drilled(name).stages
    steps = [f"stages.{stage.name}.steps=2" for stage in stages if not isinstance(stage.objective, Labels)]
    rows = [f"stages.{stage.name}.objective.rows=8" for stage in stages if isinstance(stage.objective, Labels)]
    return drilled(name, folder, f"precision={precision}", *steps, *rows)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], SeedRun]:
    """A run of a recipe in a precision, made once."""

    @cache
    def run_of(name: str, precision: str) -> SeedRun:
        folder = tmp_path_factory.mktemp(name)
        (run,) = quiet_train(short(name, folder, precision), folder / "run", device=DEVICE)
        return run

    return run_of


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", TEXTS)
def test_every_kind_of_stage_trains(name: str, precision: str, finished: Callable[[str, str], SeedRun]) -> None:
    run = finished(name, precision)
    recipe = run.recipe
    assert verify_finished_folders(run.folder.parent) == len(recipe.stages)
    for stage in recipe.stages:
        manifest = read_manifest(run.model_folder(stage.name))
        assert manifest["machine"]["device"] == DEVICE.type
        if isinstance(stage.objective, Labels):
            continue
        losses = [entry["loss"] for entry in manifest["history"] if "loss" in entry]
        assert losses and all(map(math.isfinite, losses)), stage.name
        weights = load_file(run.model_folder(stage.name) / "model.safetensors")
        assert all(bool(part.isfinite().all()) for part in weights.values()), stage.name


def test_labels_are_what_the_encoder_makes_on_a_cpu(finished: Callable[[str, str], SeedRun]) -> None:
    run = finished("words", "fp32")
    recipe = run.recipe
    prompt_format = PromptFormat(tokenizer=recipe.tokenizer())
    for name in ("labels", "hidden_labels"):
        stage = recipe.stage(name)
        teacher = run.model_folder(str(stage.start))
        store = LabelStore.open(run.model_folder(name) / LABELS, label_identity(run.context(stage)))
        model = LatentSFTModel.from_pretrained(teacher, dtype=torch.float32).eval()
        task = recipe.task.build()
        problems = task.sample("train", np.arange(8), run.seed)
        spans = task.spans(problems, prompt_format)
        rows = stage_one_batch(spans, prompt_format, model.config.latent_shape)["encoder"]
        with torch.no_grad():
            weights = torch.cat([row for row, _ in model.labels(rows)])
        labels = [store[row, problem.key] for row, problem in enumerate(problems)]
        kept = torch.cat([part for label in labels for part in (label.weights, label.vectors) if part is not None])
        assert len(kept) == len(weights) > 8
        torch.testing.assert_close(kept.float(), weights, rtol=1e-2, atol=1e-2)


def test_a_stopped_stage_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    recipe = one_stage("precision=fp32")
    (run,) = quiet_train(recipe, tmp_path / "undisturbed", device=DEVICE)
    for step in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            quiet_stage(recipe, tmp_path / "stopped", StopAt("step_end", step), device=DEVICE)
    folder = quiet_stage(recipe, tmp_path / "stopped", device=DEVICE)
    expected = load_file(run.model_folder("pretrain") / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        if DEVICE.type == "cpu":
            assert torch.equal(found[name], weight), name
        # A GPU adds gradients of one table row in any order.
        torch.testing.assert_close(found[name], weight, **CLOSE)


def test_a_server_answers_as_the_model_on_a_cpu_does() -> None:
    problems = TASK.sample("test", range(4))
    cpu = tiny_word_system()
    system = replace(tiny_word_system(), name="tiny")
    placed(system.reasoner)
    server = uvicorn.Server(uvicorn.Config(app(Served(system=system)), port=0, log_level="critical", ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        for problem in problems:
            body = {"model": "tiny", "messages": [{"role": "user", "content": problem.question}]}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                data=json.dumps(body).encode(),
                headers={"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                found = json.load(answer)
            expected = cpu.respond(torch.tensor([PROMPT_FORMAT.prompt(problem.question)]))
            assert found["choices"][0]["message"]["content"] == PROMPT_FORMAT.decode(expected.tokens)[0]
            details = found["usage"]["completion_tokens_details"]
            assert details["reasoning_tokens"] == int(expected.chain.lengths[0])
    finally:
        server.should_exit = True
        thread.join(timeout=20)
