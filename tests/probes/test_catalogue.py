"""The catalogue of probes: keys, probes of other packages, and pages that are made without torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unspoken.probes.catalogue import PROBES, default_probes, optional_probe, probes
from unspoken.probes.probe import Probe

OWN = "from unspoken.probes.probe import Probe\n\nclass Mine(Probe):\n    key = 'mine'\n\nMINE = Mine()\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts a package that offers a probe on the path, as an installer would."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def put(name: str, source: str = OWN, attribute: str = "MINE") -> None:
        module = f"{name}_of_{tmp_path.name}"
        made.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[unspoken.probes]\nmine = {module}:{attribute}\n")

    probes.cache_clear()
    yield put
    probes.cache_clear()
    for module in made:
        sys.modules.pop(module, None)


def test_keys_are_unique() -> None:
    keys = [probe.key for probe in probes()]
    assert len(set(keys)) == len(keys) >= len(PROBES) > 10
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", key) for key in keys)


def test_probes_are_measured_by_default_or_where_they_are_asked_for() -> None:
    optional = [probe.key for probe in probes() if probe.optional]
    assert {"geometry", "pass_at_k"} <= set(optional)
    assert [*default_probes(), *map(optional_probe, optional)] == sorted(probes(), key=lambda probe: probe.optional)
    with pytest.raises(ValueError, match=r"there is no optional probe 'geometri'; choose from .*geometry"):
        optional_probe("geometri")
    with pytest.raises(ValueError, match="there is no optional probe 'controls'"):
        optional_probe("controls")


def test_a_probe_without_content_keeps_and_shows_nothing() -> None:
    class Silent(Probe):
        key = "silent"

    probe = Silent()
    assert probe.summarise({}, baseline=None) is None
    assert probe.section({"probes": {}}) is None


def test_no_probe_shows_anything_of_results_without_its_summary() -> None:
    bare = {"probes": {}, "systems": {}, "baseline": None}
    assert [probe.key for probe in PROBES if probe.section(bare) is not None] == []


# --- other packages ----------------------------------------------------------------------------------------------


def test_another_package_s_probe_comes_last(install: Callable[..., None]) -> None:
    install("extra")
    assert [probe.key for probe in probes()] == [*(probe.key for probe in PROBES), "mine"]
    assert default_probes()[-1].key == "mine"


@pytest.mark.parametrize(
    ("source", "attribute", "message"),
    [
        ("import nothing_of_that_name", "MINE", "cannot be imported (ModuleNotFoundError: No module named"),
        ("raise RuntimeError('two\\nlines')", "MINE", "cannot be imported (RuntimeError: two lines)"),
        (OWN, "OTHER", "cannot be imported (AttributeError"),
        (OWN, "Mine", "is no unspoken.probes.probe.Probe; uninstall it"),
        (OWN.replace("'mine'", "'controls'"), "MINE", "has the key 'controls' of another one; uninstall it"),
    ],
)
def test_a_broken_package_is_named_in_one_line(
    install: Callable[..., None], source: str, attribute: str, message: str
) -> None:
    install("broken", source, attribute)
    with pytest.raises(ValueError, match=f"'mine' of broken .*{re.escape(message)}") as caught:
        probes()
    assert "\n" not in str(caught.value)


def test_two_packages_with_one_key_are_refused(install: Callable[..., None]) -> None:
    install("first")
    install("second")
    with pytest.raises(ValueError, match=r"of (first|second) has the key 'mine' of another one"):
        probes()


# --- pages without torch -----------------------------------------------------------------------------------------

HEAVY = ("torch", "transformers", "jaxtyping", "peft", "safetensors")


def imported_by(code: str) -> list[str]:
    """Heavy packages that a process of its own has imported after it ran some code."""
    code = f"{code}\nimport sys\nprint(*({{name.split('.')[0] for name in sys.modules}} & {set(HEAVY)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    return done.stdout.split()


def test_a_page_is_made_without_torch() -> None:
    results = Path(__file__).parents[2] / "results" / "arithmetic-tiny.json"
    code = f"""
from pathlib import Path
from unspoken.evaluation.results import read_results
from unspoken.probes.catalogue import PROBES
from unspoken.report.page import render
from unspoken.report.terminal import print_results
assert "What an answer costs" in render([read_results(Path({str(results)!r}))])
"""
    assert imported_by(code) == []


def test_an_import_of_torch_would_be_seen() -> None:
    assert "torch" in imported_by("import unspoken.chain")
