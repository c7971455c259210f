"""What the doctor finds, and that nothing which is missing on a machine keeps it from looking at the rest."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from unspoken import doctor, machine, provenance
from unspoken.training.recipe import load

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return doctor.diagnose()


def printed(facts: dict[str, Any], *, terminal: bool = False, width: int = 80) -> str:
    file = io.StringIO()
    doctor.print_diagnosis(facts, Console(file=file, force_terminal=terminal, width=width, color_system=None))
    return file.getvalue()


def test_it_names_what_runs_here(facts: dict[str, Any]) -> None:
    assert facts["versions"]["torch"] == torch.__version__
    assert all(facts["versions"].values())
    assert facts["processor"]
    assert 1 <= facts["threads"] == machine.usable_threads()
    json.dumps(facts, allow_nan=False)


def test_it_chooses_by_what_it_measured(facts: dict[str, Any]) -> None:
    device = torch.device(facts["device"])
    assert facts["rates"] == {name: machine.product_rate(name, device) for name in ("fp32", "bf16")}
    assert facts["precision"]["value"] == machine.choose_precision(device).value
    assert facts["attention"]["value"] in ("eager", "sdpa")
    assert facts["attention"]["reason"]


def test_the_demo_takes_longer_on_a_slower_machine(facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Rate:
        value = 100e9

        def __call__(self, *_: Any) -> float:
            return self.value

        __wrapped__ = __call__

    rate = Rate()
    monkeypatch.setattr(doctor, "product_rate", rate)
    monkeypatch.setattr(doctor, "resolve_device", lambda _: torch.device("cpu"))
    fast = doctor.diagnose()["demo"]
    rate.value = 10e9
    slow = doctor.diagnose()["demo"]
    assert fast["flops"] == slow["flops"] == facts["demo"]["flops"] > 1e11
    assert 5 * fast["seconds"] < slow["seconds"] < 10 * fast["seconds"]  # start and measuring take as long on both
    # As it was measured: 289 GFLOP/s in bfloat16, and 153 in float32.
    for rate.value, seconds in ((289e9, 92), (153e9, 127)):
        assert doctor.diagnose()["demo"]["seconds"] == pytest.approx(seconds, abs=1)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_attention_is_chosen_for_the_precision_and_the_rows_of_the_demo(
    precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    rates: list[tuple[Any, ...]] = []

    def choose(*given: Any) -> machine.Choice:
        asked.append(given)
        return machine.Choice(value="eager", reason="why")

    monkeypatch.setattr(doctor, "choose_precision", lambda _: machine.Choice(value=precision, reason="why"))
    monkeypatch.setattr(doctor, "choose_attention", choose)
    monkeypatch.setattr(doctor, "product_rate", lambda *_: 1e11)
    doctor.product_rate.__wrapped__ = lambda *given: rates.append(given) or 1e11  # type: ignore[attr-defined]
    doctor.diagnose("cpu")
    task = load("tree-search", "tiny").task.build()
    row = len(task.tokenizer(task.text(task.sample("test", [0]))[0])["input_ids"])
    assert asked == [(precision, torch.device("cpu"), row + 1)]  # and the end
    # The demo is estimated with the threads of its recipe.
    assert rates == [(precision, torch.device("cpu"), 2)]


@pytest.mark.parametrize(
    ("cuda", "hip", "words"),
    [(None, None, "none; this build of torch has no support for one"), ("12.8", None, "none"), (None, "6.2", "none")],
)
def test_without_a_gpu_a_build_that_knows_none_is_named(
    cuda: str | None, hip: str | None, words: str, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    text = printed({**facts, "gpus": []})
    assert f"  GPU        {words}\n" in text
    assert f"  torch         {torch.__version__}\n" in text


def test_the_extras_are_those_of_the_package() -> None:
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"dev", "docs"}


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[..., Any] = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda module: None if module == "uvicorn" else find(module))
    actual = doctor.diagnose()
    assert {name: extra["installed"] for name, extra in actual["extras"].items()}["serve"] is False
    assert "pip install 'unspoken[serve]'" in printed(actual)
    assert "installed (tasks of lm-evaluation-harness)" in printed(actual)


def test_a_missing_package_and_an_unknown_processor_are_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "peft":
            raise PackageNotFoundError(package)
        return "1.0"

    class Nowhere:
        def __init__(self, _: str) -> None:
            pass

        def read_text(self) -> str:
            raise FileNotFoundError

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(provenance, "Path", Nowhere)
    actual = doctor.diagnose()
    assert actual["versions"]["peft"] is None
    assert actual["processor"]
    assert "not installed" in printed(actual)


def test_a_device_that_cannot_compute_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> float:
        raise RuntimeError("CUDA error: no kernel image is available\nFor debugging consider")

    monkeypatch.setattr(doctor, "product_rate", broken)
    with pytest.raises(ValueError, match=r"cannot compute \(CUDA error: no kernel image is available\): see whether"):
        doctor.diagnose()


def test_a_gpu_is_described_and_its_demo_is_not_estimated(
    facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.torch.cuda, "device_count", lambda: 1)

    class Properties:
        name, total_memory = "NVIDIA H100", 80 * 2**30

    monkeypatch.setattr(doctor.torch.cuda, "get_device_properties", lambda _: Properties)
    demo = {**facts["demo"], "seconds": None}
    text = printed({**facts, "gpus": doctor.diagnose()["gpus"], "demo": demo})
    assert "NVIDIA H100, 80 GiB" in text
    assert "not estimated on a GPU" in text


def test_a_pipe_gets_one_line_a_fact_and_a_terminal_gets_no_longer_ones(facts: dict[str, Any]) -> None:
    lines = printed(facts).splitlines()
    assert any(
        line.strip() == f"precision  {facts['precision']['value']}: {facts['precision']['reason']}" for line in lines
    )
    narrow = printed(facts, terminal=True, width=60).splitlines()
    assert max(map(len, narrow)) <= 60
    assert len(narrow) > len(lines)
