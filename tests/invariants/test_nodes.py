"""Two nodes: a worker that is killed on one of them costs both a restart, and the run ends as if nothing had happened.

The nodes are two network namespaces of this machine, joined by a cable of their own, that see the same disk.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_recipe import one_stage, quiet_train, verify_finished_folders

from unspoken.backbone.folder import verify
from unspoken.training.recipe import dump

pytestmark = pytest.mark.slow

STEPS = 160
RECIPE = one_stage(
    f"stages.pretrain.steps={STEPS}",
    "stages.pretrain.evaluate_every=20",
    "stages.pretrain.optimizer={name: adamw, lr: 0.001, lr_rest: null, warmup_steps: 0}",
    "precision=fp32",
)
# By default all restarts share one store, where the addresses of dead workers stay (pytorch issue 135712).
SEPARATE_STORES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def nodes() -> Iterator[dict[str, str]]:
    """Name and address of both."""
    if shutil.which("ip") is None:
        pytest.skip("there is no command ip to make network namespaces with")
    found = {f"us{os.getpid()}{letter}": f"10.203.77.{last}" for letter, last in (("a", 1), ("b", 2))}
    first, second = found
    try:
        try:
            for name in found:
                ip("netns", "add", name)
            ip("link", "add", first, "netns", first, "type", "veth", "peer", "name", second, "netns", second)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        for name, address in found.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield found
    finally:
        for name in found:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def start(name: str, address: str, master: str, recipe: Path, output: Path) -> subprocess.Popen[bytes]:
    """The launcher of one node."""
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={master}:29511"]
    options += ["--rdzv-id=nodes", "--max-restarts=3", f"--local-addr={address}"]
    # Both nodes have this machine's name, which says nothing about who has which address.
    options.append(f"--rdzv-conf=is_host={str(address == master).lower()}")
    command = ["-m", "unspoken.cli", "train", str(recipe), "--output", str(output), "--report-to", "none"]
    with output.with_name(f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *options, *command],
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": name} | SEPARATE_STORES,
        )


def workers_of(launcher: subprocess.Popen[bytes]) -> list[int]:
    """The processes that train, one at most; `ip` has become the launcher by then."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(child) for child in children if b"unspoken.cli" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_a_worker_killed_on_one_node_costs_a_restart(nodes: dict[str, str], tmp_path: Path) -> None:
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(dump(RECIPE))
    master = next(iter(nodes.values()))
    launchers = [start(name, address, master, recipe, output) for name, address in nodes.items()]

    def logs() -> str:
        return "\n".join(tmp_path.joinpath(f"{name}.log").read_text()[-4000:] for name in nodes)

    try:
        stage, deadline = output / "seed-0" / "pretrain", time.monotonic() + 300
        while not list(stage.glob("checkpoint-*/run.json")):
            assert time.monotonic() < deadline, logs()
            assert all(launcher.poll() is None for launcher in launchers), logs()
            time.sleep(0.02)
        (before,), (killed,) = map(workers_of, launchers)
        os.kill(killed, signal.SIGKILL)
        assert not (stage / "model").exists(), "the kill came too late to test anything"
        while not (after := [worker for worker in workers_of(launchers[0]) if worker != before]):
            assert time.monotonic() < deadline, logs()
            time.sleep(0.02)
        # The other node's new worker comes first, and must not take what the old ones left in a store for the new.
        os.kill(after[0], signal.SIGSTOP)
        time.sleep(20)
        os.kill(after[0], signal.SIGCONT)
        deadline = time.monotonic() + 300
        while None in (codes := [launcher.poll() for launcher in launchers]):
            assert time.monotonic() < deadline, logs()
            time.sleep(0.1)
        assert codes == [0, 0], logs()
    finally:
        for launcher in launchers:
            launcher.terminate()
            launcher.wait()
    verify_finished_folders(output)
    torch.set_num_threads(1)
    quiet_train(RECIPE, tmp_path / "undisturbed")
    histories = [
        [entry for entry in verify(run / "seed-0" / "pretrain" / "model")["history"] if "loss" in entry]
        for run in (tmp_path / "undisturbed", output)
    ]
    expected, found = ([(entry["step"], entry["loss"]) for entry in history] for history in histories)
    assert expected[-1][0] == STEPS
    # A step that was lost, or taken twice, would move every later loss by far more.
    assert found == [(step, pytest.approx(loss, abs=1e-4)) for step, loss in expected]
