"""What made some results: when, with which sources and versions, on which machine."""

from __future__ import annotations

import json
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("unspoken", "torch", "transformers", "numpy")
_SOURCES = Path(__file__).parent
_PATIENCE = 10.0  # seconds for git, which a network drive can make slow


def made(device: torch.device) -> dict[str, Any]:
    """``date`` (of today, UTC), ``commit`` (None where unknown), ``machine`` and ``versions``, as plain values."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "machine": {"processor": processor(), "threads": torch.get_num_threads(), "device": device.type, **gpu},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }


def processor() -> str:
    """Its name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of the sources: what git knows of a checkout, or what pip recorded when it installed from one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_SOURCES), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PATIENCE).stdout.strip()

    with suppress(OSError, subprocess.SubprocessError):
        # The sources may lie inside of a repository that does not hold them.
        git("ls-files", "--error-unmatch", "provenance.py")
        return git("describe", "--always", "--dirty", "--exclude=*")
    with suppress(PackageNotFoundError):
        origin = json.loads(distribution("unspoken").read_text("direct_url.json") or "{}")
        commit = origin.get("vcs_info", {}).get("commit_id")
        return None if commit is None else str(commit)[:7]
    return None
