"""What results record about their origin."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from unspoken import provenance

CPU = torch.device("cpu")


def test_results_record_when_with_what_and_where_they_were_made() -> None:
    facts = json.loads(json.dumps(provenance.made(CPU)))
    assert len(facts["date"].split("-")) == 3
    assert facts["machine"]["processor"]
    assert facts["machine"]["threads"] == torch.get_num_threads()
    assert facts["versions"].keys() >= {"python", "unspoken", "torch"}


def test_the_commit_is_that_of_the_repository_that_holds_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "other.py").touch()
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    (tmp_path / "provenance.py").touch()

    class Installed:
        def read_text(self, _: str) -> str | None:
            return origin

    origin: str | None = None
    monkeypatch.setattr(provenance, "_SOURCES", tmp_path)
    monkeypatch.setattr(provenance, "distribution", lambda _: Installed())
    assert provenance.made(CPU)["commit"] is None, "the repository around an installation is not its own"
    origin = json.dumps({"vcs_info": {"commit_id": "0123456789abcdef"}})
    assert provenance.made(CPU)["commit"] == "0123456"
    git("add", ".")
    git("commit", "--quiet", "-m", "second")
    assert provenance.made(CPU)["commit"] == git("rev-parse", "--short", "HEAD")
    (tmp_path / "provenance.py").write_text("changed")
    assert provenance.made(CPU)["commit"].endswith("-dirty")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.made(CPU)["commit"] == "0123456", "git need not be there"


@pytest.mark.parametrize(
    ("cores", "system", "name"),
    [
        ("model name\t: First: 2 GHz\nflags\t: fast\nmodel name\t: Second\n", "there", "First: 2 GHz"),
        ("", "of the system", "of the system"),
        ("", "", "of the machine"),
    ],
)
def test_a_processor_has_the_name_that_the_system_gives(
    cores: str, system: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: cores)
    monkeypatch.setattr(provenance.platform, "processor", lambda: system)
    monkeypatch.setattr(provenance.platform, "machine", lambda: "of the machine")
    assert provenance.processor() == name
