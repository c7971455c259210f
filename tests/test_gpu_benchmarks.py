"""What runs on a GPU now and then works, since nobody can look into it there: at toy size, and where parts fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu_run  # noqa: E402
from gpu_decoding import BareStep, reasoner_of  # noqa: E402
from gpu_measure import FULL, TOY, Notes  # noqa: E402

from unspoken.reasoning.engine import StopRule, rollout  # noqa: E402

# --- the limit that decoding is compared with ------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"top_k": 10}, {"top_k": 1}, {"feed": "hidden"}])
def test_the_bare_step_writes_the_chain_that_the_engine_writes(how: dict[str, Any]) -> None:
    reasoner = reasoner_of(TOY, TOY.model(torch.float32), **how)
    ids = TOY.ids(3, TOY.prompt)
    chain = rollout(reasoner, ids, None, StopRule(max_latents=TOY.steps + 1, fixed=True))
    bare = BareStep(reasoner, ids, TOY.steps)
    for _ in range(2):  # it goes back to the prompt by itself
        torch.testing.assert_close(bare.run(), chain.latents, rtol=1e-4, atol=1e-5)
    assert float(torch.pdist(chain.latents.flatten(1)).min()) > 0.01


def test_the_full_size_is_the_published_shape() -> None:
    with torch.device("meta"):
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM(FULL.config())
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008


def test_a_measurement_that_fails_leaves_its_text_and_the_next_one_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    everything: dict[str, Any] = {"benchmark": "gpu_speed"}
    notes = Notes(everything, "part")
    empty: list[int] = []
    notes.add("bad", lambda: empty[1])
    assert notes.add("good", lambda: 7) == 7
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2
    assert lines[-1]["part"]["good"] == 7
    assert lines[-1]["part"]["bad"]["error"].startswith("IndexError: list index out of range (")
    assert "test_gpu_benchmarks.py:" in lines[-1]["part"]["bad"]["error"]


# --- parts that hang, fail or are cut short --------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu_run.Run:
    """A run whose benchmarks are what a test writes."""
    monkeypatch.setattr(gpu_run, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    return gpu_run.Run(output=tmp_path / "out" / "found.json", toy=True, seconds=60, site=tmp_path / "site")


def write(run: gpu_run.Run, script: str) -> None:
    (run.site.parent / "benchmarks" / "gpu_speed.py").write_text(script)


def test_a_part_that_hangs_is_ended_with_its_children_and_keeps_what_it_found(
    run: gpu_run.Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(gpu_run.PARTS, "rates", 5)
    alive = tmp_path / "alive"
    beat = f"pathlib.Path({str(alive)!r}).write_text(str(n)); time.sleep(0.1)"
    child = f"import time, pathlib\nfor n in range(600):\n  {beat}"
    write(
        run,
        f"import json, subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print(json.dumps({'benchmark': 'gpu_speed', 'rates': {'first': 1}}), flush=True)\n"
        "print('{\"half', flush=True)\ntime.sleep(600)\n",
    )
    began = time.monotonic()
    gpu_run.part(run, "rates")
    assert time.monotonic() - began < 20
    found = json.loads(run.output.read_text())["rates"]
    assert found["first"] == 1
    assert found["status"] == "out of time"
    before = alive.read_text()
    time.sleep(0.5)
    assert alive.read_text() == before


def test_a_part_that_fails_leaves_its_text_and_stops_nothing(run: gpu_run.Run) -> None:
    write(
        run,
        "import json, sys\nif sys.argv[1] == 'rates': raise RuntimeError('CUDA error: an illegal access')\n"
        "more = {'third': {'error': 'no'}} if sys.argv[1] == 'decoding' else {}\n"
        "print(json.dumps({sys.argv[1]: {'second': 2, **more}}))\n",
    )
    for name in ("rates", "training", "decoding"):
        gpu_run.part(run, name)
    found = json.loads(run.output.read_text())
    assert found["rates"]["status"] == "failed with status 1"
    assert "RuntimeError: CUDA error: an illegal access" in found["rates"]["error"]
    assert found["training"]["status"] == "done"
    assert found["training"]["second"] == 2
    assert found["decoding"]["status"] == "done, with errors"
    assert not list(run.output.parent.glob("*.part"))


def test_no_part_begins_when_the_time_is_over(run: gpu_run.Run) -> None:
    write(run, "raise SystemExit('it began')")
    run.seconds = 1
    gpu_run.part(run, "rates")
    assert json.loads(run.output.read_text())["rates"]["status"] == "left out: no time was left"


def test_tests_are_counted_and_failures_named(run: gpu_run.Run, tmp_path: Path) -> None:
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["gpu: here"]\n')
    (tmp_path / "tests" / "gpu" / "test_some.py").write_text(
        "import pytest, warnings\npytestmark = pytest.mark.gpu\n"
        "def test_right(): warnings.warn('of its future', FutureWarning)\n"
        "def test_wrong(): assert 1 == 2, ' PASSED and  ERROR '\n"
        "@pytest.fixture\ndef broken(): raise OSError('no card')\ndef test_broken(broken): pass\n"
        "@pytest.mark.skip\ndef test_not(): pass\n"
    )
    found = gpu_run.tests(run, 60)
    assert [found[name] for name in ("passed", "failed", "errors", "skipped")] == [1, 1, 1, 1]
    assert found["status"] == "failed with status 1"
    assert [failure.partition(" ")[0] for failure in found["failures"]] == [
        "tests/gpu/test_some.py::test_broken",
        "tests/gpu/test_some.py::test_wrong",
    ]
    assert "no card" in found["error"]


# --- what travels ----------------------------------------------------------------------------------------------------


def packed() -> set[str]:
    """The packages that gpu_pack.sh collects."""
    text = (BENCHMARKS / "gpu_pack.sh").read_text()
    return {canonicalize_name(name) for name in text.split("names=(")[1].split(")")[0].split()}


def needed(name: str, without: frozenset[str], found: set[str]) -> set[str]:
    """A package and everything that it needs."""
    name = canonicalize_name(name)
    if name not in found and name not in without:
        found.add(name)
        for line in requires(name) or []:
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"extra": "", "python_version": "3.12"}):
                needed(one.name, without, found)
    return found


def test_the_pack_has_everything_but_torch_and_what_torch_needs() -> None:
    with_torch = needed("torch", frozenset(), set())
    # No test on a GPU and no benchmark asks for a logger (tensorboard) or a test of significance (scipy, 35 megabytes).
    without = frozenset({"torch", "tensorboard", "scipy"})
    wanted: set[str] = set()
    for line in requires("unspoken") or []:
        one = Requirement(line)
        extra = "serve" if "serve" in str(one.marker) else ""
        if one.marker is None or one.marker.evaluate({"extra": extra}):
            needed(one.name, without, wanted)
    for name in ("pytest", "pytest-xdist", "beartype"):
        needed(name, without, wanted)
    assert wanted - with_torch <= packed()
    assert packed() <= wanted
    assert {"transformers", "numpy", "pydantic-core", "fastapi", "starlette", "antlr4-python3-runtime"} <= packed()


def test_a_pack_never_replaces_what_is_no_pack(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "mine.py").write_text("")
    command = ["bash", str(BENCHMARKS / "gpu_pack.sh"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == f"{tmp_path} is there already and is no pack; name another\n"
    assert (tmp_path / "src" / "mine.py").is_file()


# --- everything ------------------------------------------------------------------------------------------------------


def numbers(content: Any) -> list[float]:
    """Every number in nested containers."""
    if isinstance(content, dict):
        return [number for value in content.values() for number in numbers(value)]
    return [content] if isinstance(content, int | float) and not isinstance(content, bool) else []


@pytest.mark.slow
def test_one_call_at_toy_size_tests_and_measures_everything(tmp_path: Path) -> None:
    output = tmp_path / "gpu-speed.json"
    done = subprocess.run(
        ["bash", str(BENCHMARKS / "gpu.sh"), "--toy", "--output", str(output)],
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(output.read_text())
    assert done.returncode == 0, output.read_text()
    assert json.loads(done.stdout.splitlines()[-1]) == found
    assert list(found["machine"])[:4] == ["system", "cores", "card", "driver"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["command"] == f"benchmarks/gpu.sh --toy --output {output}"
    assert found["toy"] is True
    assert found["tests"]["passed"] > 150
    assert [found["tests"][name] for name in ("failed", "errors", "skipped")] == [0, 0, 0]
    stages = ["next_token", "sst", "encoder", "decoder", "union", "autonomy", "next_token_compiled", "sst_compiled"]
    assert [name for name in found["training"] if isinstance(found["training"][name], dict)] == stages
    for stage in stages:
        assert found["training"][stage]["tokens_per_second"] > 0
        assert found["training"][stage]["share_of_bfloat16_product"] > 0
    for batch in TOY.batches:
        decoding, answering = found["decoding"][f"batch_{batch}"], found["answering"][f"batch_{batch}"]
        assert {"generate_growing_cache", "generate_static_compiled", "captured_graph_of_bare_step"} < set(decoding)
        for ours in ("latents", "explicit_chain"):
            assert set(decoding[ours]) == {
                "milliseconds_per_step",
                "steps_per_second",
                "over_faster_generate",
                "over_captured_graph",
            }
        assert answering["explicit_chain"]["over_explicit_chain"] == 1.0
        assert answering["latent_sft"]["over_explicit_chain"] > 0
    assert all(number >= 0 for number in numbers(found))
    assert found["seconds"] < 570
