"""The example files are read by the programs they are for, and their command lines by ours."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from torch.distributed.run import get_args_parser
from typer.main import get_command

from unspoken.cli import app
from unspoken.training.recipe import load

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def slurm_command() -> list[str]:
    text = (EXAMPLES / "slurm.sbatch").read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("srun")]
    for name, value in (("$SLURM_JOB_NUM_NODES", "2"), ("$head", "a"), ("$SLURM_JOB_ID", "7"), ("$RUN", "runs/x")):
        assert name in line
        line = line.replace(name, value)
    words = shlex.split(line)
    return words[words.index("torchrun") + 1 :]


def kubernetes_parts() -> tuple[dict[str, Any], dict[str, Any]]:
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    return service, job


def kubernetes_command() -> list[str]:
    (container,) = kubernetes_parts()[1]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["torchrun"]
    return list(container["args"])


def accelerate_command() -> list[str]:
    (line,) = [
        line for line in (EXAMPLES / "fsdp2.yaml").read_text().splitlines() if line.startswith("#   accelerate launch")
    ]
    words = shlex.split(line.removeprefix("#"))
    assert words[:4] == ["accelerate", "launch", "--config_file", "fsdp2.yaml"]
    return words[4:]


@pytest.mark.parametrize("command", [slurm_command(), kubernetes_command(), accelerate_command()])
def test_the_command_is_one_of_ours_with_options_that_exist(command: list[str]) -> None:
    verb, *arguments = command[command.index("unspoken.cli") + 1 :]
    context = get_command(app).commands[verb].make_context(verb, arguments)  # type: ignore[attr-defined]
    recipe = load(context.params["recipe"], context.params["size"])
    # Sixteen GPUs at most share a batch.
    assert all(stage.batch_size % 16 == 0 for stage in recipe.stages)


@pytest.mark.parametrize("command", [slurm_command(), kubernetes_command()])
def test_torchrun_takes_the_rest(command: list[str]) -> None:
    options = get_args_parser().parse_args(command)
    assert options.training_script == "unspoken.cli"
    assert (options.module, options.nnodes, options.nproc_per_node, options.rdzv_backend) == (True, "2", "8", "c10d")
    assert options.max_restarts > 0


def test_restarts_do_not_share_a_store() -> None:
    """What else happens: tests/invariants/test_nodes.py."""
    lines = (EXAMPLES / "slurm.sbatch").read_text().splitlines()
    exported = lines.index("export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")
    assert lines[exported + 1].startswith("srun")
    (container,) = kubernetes_parts()[1]["spec"]["template"]["spec"]["containers"]
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in container["env"]


def test_bash_reads_the_slurm_script() -> None:
    subprocess.run(["bash", "-n", EXAMPLES / "slurm.sbatch"], check=True)


def test_the_pods_are_as_many_as_the_launcher_waits_for_and_the_first_is_where_it_looks() -> None:
    service, job = kubernetes_parts()
    options = get_args_parser().parse_args(kubernetes_command())
    assert str(job["spec"]["completions"]) == str(job["spec"]["parallelism"]) == options.nnodes
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    endpoint = f"{job['metadata']['name']}-0.{service['metadata']['name']}:29500"
    assert options.rdzv_endpoint == endpoint


def test_accelerate_knows_every_setting_of_its_file() -> None:
    settings = yaml.safe_load((EXAMPLES / "fsdp2.yaml").read_text())
    assert set(settings) <= {field.name for field in dataclasses.fields(ClusterConfig)}
    assert settings["fsdp_config"]["fsdp_version"] == 2
