"""One, two and four processes train the same run, by DDP and by FSDP2, and continue each other's checkpoints.

All of it on this machine, over gloo, in float32; what differs is the order in which sums are rounded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import TEXT

pytestmark = pytest.mark.slow

# Of losses and norms of gradients, which lie between 0.1 and 10.
TOLERANCE = {"trees": 2e-5, "words": 2e-5, "muon": 2e-5}

ADAMW = "optimizer: {name: adamw, lr: 0.005, lr_rest: null, warmup_steps: 0}"
TREES = TEXT.replace("precision: bf16", "precision: fp32").replace("optimizer: {warmup_steps: 0}", ADAMW)
MUON = TREES[: TREES.index("  - name: sst")].replace(ADAMW, "optimizer: {warmup_steps: 0}")
MUON += TREES[TREES.index("evaluation: {problems") :]
WORDS = f"""
name: words
size: tiny
precision: fp32
task: {{kind: arithmetic, steps: [1, 2, 3], largest: 20, operations: [add, subtract]}}
backbone: {{hidden_size: 32, attention_size: 32, intermediate_size: 64, layers: 2, heads: 2, unit_embeddings: false}}
stages:
  - name: cot
    objective: {{kind: next_token, positions: answer}}
    steps: 6
    evaluate_every: 2
    batch_size: 8
    {ADAMW}
  - name: encoder
    start: cot
    objective: {{kind: stage1, train: encoder, shape: {{rate: 2, top_k: 5}}}}
    steps: 2
    evaluate_every: 2
    batch_size: 8
    {ADAMW}
  - name: decoder
    start: encoder
    objective: {{kind: stage1, train: decoder, mean: chunks}}
    steps: 2
    evaluate_every: 2
    batch_size: 8
    lora: {{rank: 4, dropout: 0.0}}
    {ADAMW}
  - name: union
    start: decoder
    objective: {{kind: stage1, train: union, noise: {{}}}}
    accumulate: 2
    steps: 6
    evaluate_every: 2
    batch_size: 8
    lora: {{rank: 4, dropout: 0.0, table: true}}
    {ADAMW}
  - {{name: labels, start: union, objective: {{kind: labels, rows: 21}}}}
  - name: autonomy
    start: labels
    objective: {{kind: stage2}}
    steps: 4
    evaluate_every: 2
    batch_size: 8
    {ADAMW}
  - name: silent
    start: cot
    objective: {{kind: coconut, replaced: 1}}
    accumulate: 2
    steps: 4
    evaluate_every: 2
    batch_size: 8
    {ADAMW}
evaluation: {{problems: 12, validation_problems: 10, batch_size: 5, max_latents: 6, max_answer: 5}}
"""

DRIVER = """
import gc

gc.set_threshold(10_000)  # as the command line does; and below as in conftest.py
import json
import shutil
import sys
from pathlib import Path

import torch
from rich.console import Console
from transformers import TrainerCallback

from unspoken import distributed
from unspoken.experiment import measure_run, open_run, run_experiment
from unspoken.training import trainer
from unspoken.training.recipe import load
from unspoken.training.run import train
from unspoken.training.stages import SeedRun, train_stage

folder, name = Path(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
gc.freeze()
distributed.init_distributed()
quiet = Console(quiet=True)


class StopAt(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3:
            raise KeyboardInterrupt


def stopped_in_union(target):
    # A finished run, from the stage with random noise on; that stage is left with a checkpoint at step 2.
    if distributed.is_main_process():
        shutil.copytree(folder / f"words-{name}", target)
        for stage in ("union", "labels", "autonomy"):
            shutil.rmtree(target / "seed-0" / stage)
    distributed.barrier()
    recipe = load(str(folder / "words.yaml"))
    try:
        train_stage(
            SeedRun(recipe=recipe, folder=target / "seed-0", seed=0),
            recipe.stage("union"),
            report_to=[],
            callbacks=[StopAt()],
        )
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not stopped")


def shard(model, objective, shard=trainer.shard):
    shard(model, objective)
    held = [*model.parameters(), *[buffer for path, buffer in model.named_buffers() if path == "target_table"]]
    parts = [part.to_local().numel() for part in held]
    share = {"whole": sum(part.numel() for part in held), "own": sum(parts), "tables": len(held)}
    (folder / f"share-{distributed.rank()}.json").write_text(json.dumps(share))


trainer.shard = shard
for order in sys.argv[3:]:
    kind, _, what = order.partition("=")
    if kind == "run":
        recipe = load(str(folder / f"{what}.yaml"))
        run_experiment(recipe, folder / f"{what}-{name}", seeds=1, report_to=[], console=quiet, command="")
    elif kind == "measure":
        target = folder / f"{what}-on-{name}"
        distributed.run_on_main(lambda: str(shutil.copytree(folder / what, target)))
        measure_run(*open_run(target), command="", log=lambda _: None)
    elif kind == "stop":
        stopped_in_union(folder / what)
    elif kind == "continue":
        train(load(str(folder / "words.yaml")), folder / what, seeds=1, report_to=[], console=quiet)
    elif kind == "unbalanced":
        distributed.rank_weighted_mean = lambda mean, count, of=None: mean
        recipe = load(str(folder / "words.yaml"))
        train(recipe, folder / what, seeds=1, report_to=[], console=quiet, only="cot")
"""

FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config: {fsdp_version: 2}
mixed_precision: "no"
num_machines: 1
num_processes: 2
use_cpu: true
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def launch(*command: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run that is compared below, in four launches."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, text in (("trees", TREES), ("words", WORDS), ("muon", MUON), ("fsdp", FSDP)):
        (folder / f"{name}.yaml").write_text(text)
    (folder / "driver.py").write_text(DRIVER)
    driver, every = (str(folder / "driver.py"), str(folder)), ("run=trees", "run=words")
    two = ("run=muon", "stop=two-to-one", "stop=two-to-four")
    launch(*TORCHRUN, "2", driver[0], driver[1], "2", *every, *two)
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "fsdp.yaml")]
    launch(*accelerate, driver[0], driver[1], "fsdp", *every, "run=muon", "stop=fsdp-to-one")
    again = ("measure=trees-2", "measure=words-2")
    launch(*TORCHRUN, "4", *driver, "4", *every, "run=muon", "continue=two-to-four", "unbalanced=control", *again)
    launch(sys.executable, *driver, "1", *every, "run=muon", "continue=two-to-one", "continue=fsdp-to-one", *again)
    return folder


def manifests(run: Path) -> dict[str, dict[str, Any]]:
    found = {path.parts[-3]: json.loads(path.read_text()) for path in run.glob("seed-0/*/model/run.json")}
    assert found, run
    return found


def distance(run: Path, other: Path) -> float:
    """The largest difference of a loss or a gradient's norm at any step of any stage."""
    mine, theirs = manifests(run), manifests(other)
    worst = [0.0]
    for stage in set(mine) & set(theirs):
        first, second = mine[stage]["history"], theirs[stage]["history"]
        assert [entry["step"] for entry in first] == [entry["step"] for entry in second]
        worst += [
            abs(entry[name] - again[name])
            for entry, again in zip(first, second, strict=True)
            for name in entry
            # The library's train_loss is a mean over the steps of the last call, not of the run.
            if name == "grad_norm" or (name.endswith("loss") and name != "train_loss")
        ]
    return max(worst)


@pytest.mark.parametrize("name", ["trees", "words"])
@pytest.mark.parametrize("ranks", ["2", "4", "fsdp"])
def test_the_same_losses_checkpoints_and_results_on_any_number_of_ranks(name: str, ranks: str, folder: Path) -> None:
    one, several = folder / f"{name}-1", folder / f"{name}-{ranks}"
    assert distance(one, several) < TOLERANCE[name]
    chosen = {stage: manifest["step"] for stage, manifest in manifests(one).items()}
    assert {stage: manifest["step"] for stage, manifest in manifests(several).items()} == chosen
    for stage, manifest in manifests(several).items():
        for metric, value in manifests(one)[stage]["validation"].items():
            assert manifest["validation"][metric] == pytest.approx(value, abs=1e-3), (stage, metric)
    results = [json.loads((run / "results.json").read_text()) for run in (one, several)]
    first, second = ({key: row["exact_match"] for key, row in content["systems"].items()} for content in results)
    assert first == second
    first, second = (
        {
            (system, control): entry["exact_match"]
            for system, entries in content["probes"]["controls"].items()
            for control, entry in entries.items()
        }
        for content in results
    )
    assert first
    assert first == second


def untimed(content: Any) -> Any:
    """Results without what a clock measured, and without when and where that was."""
    if isinstance(content, dict):
        return {key: untimed(value) for key, value in content.items() if not key.startswith(("seconds", "made"))}
    return [untimed(value) for value in content] if isinstance(content, list) else content


@pytest.mark.parametrize("name", ["trees-2", "words-2"])
def test_ranks_that_share_the_problems_find_the_same_to_the_last_bit(name: str, folder: Path) -> None:
    found = [folder / name, *(folder / f"{name}-on-{ranks}" for ranks in ("1", "4"))]
    two, *others = [untimed(json.loads((run / "results.json").read_text())) for run in found]
    assert others == [two, two]


@pytest.mark.parametrize("ranks", ["2", "4", "fsdp"])
def test_muon_in_float32_takes_the_same_steps_on_any_number_of_ranks(ranks: str, folder: Path) -> None:
    assert distance(folder / "muon-1", folder / f"muon-{ranks}") < TOLERANCE["muon"]


def test_the_comparison_sees_a_mean_of_means(folder: Path) -> None:
    # Four ranks whose rows have other numbers of supervised tokens, each taking its own mean.
    assert distance(folder / "words-1", folder / "control") > 10 * TOLERANCE["words"]


@pytest.mark.parametrize("name", ["two-to-one", "two-to-four", "fsdp-to-one"])
def test_a_checkpoint_goes_on_with_another_number_of_ranks(name: str, folder: Path) -> None:
    assert distance(folder / "words-1", folder / name) < TOLERANCE["words"]
    steps = [entry["step"] for entry in manifests(folder / name)["union"]["history"] if "loss" in entry]
    assert steps == [2, 4, 6]


def test_fsdp_leaves_each_rank_half_of_the_weights_and_of_the_target_table(folder: Path) -> None:
    shares = [json.loads((folder / f"share-{rank}.json").read_text()) for rank in (0, 1)]
    assert sum(share["own"] for share in shares) == shares[0]["whole"]
    assert max(share["own"] for share in shares) < 0.6 * shares[0]["whole"]


def test_nothing_is_left_behind(folder: Path) -> None:
    for run in ("trees-4", "words-fsdp", "two-to-four"):
        leftovers = {path.name for path in (folder / run / "seed-0").glob("*/*")}
        assert leftovers == {"model"}
        assert not (folder / run / ".lock").exists()


# --- the command ------------------------------------------------------------------------------------------------------


def test_one_of_the_ranks_prints(folder: Path) -> None:
    recipe, output = str(folder / "muon.yaml"), str(folder / "printed")
    command = ("-m", "unspoken.cli", "run", recipe, "--output", output, "--report-to", "none")
    done = launch(*TORCHRUN, "2", *command)
    assert done.stdout.count("report page:") == 1
    assert done.stderr.count("step 6/6") == 1


def test_an_error_ends_all_ranks_in_one_line_and_status_2(folder: Path) -> None:
    shutil.copytree(folder / "muon-2", folder / "damaged")
    (folder / "damaged" / "seed-0" / "pretrain" / "model" / "model.safetensors").write_bytes(b"half")
    command = ("-m", "unspoken.cli", "train", str(folder / "muon.yaml"), "--output", str(folder / "damaged"))
    done = launch(*TORCHRUN, "4", *command, status=1)  # torchrun's own status
    complaints = [line for line in done.stderr.splitlines() if line.startswith("unspoken: ")]
    assert len(complaints) == 1
    assert "model.safetensors was truncated or changed" in complaints[0]
    assert set(re.findall(r"exitcode\s*:\s*(-?\d+)", done.stderr)) <= {"2", "-15"}
    # The only traceback is torchrun's own.
    assert done.stderr.count("Traceback (most recent call last)") == 1
