"""Runs every benchmark in turn, prints one table and writes a JSON file: figures, machine, versions."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
SCRIPTS = ("data", "training", "methods", "rollout", "latent_sft")
VERSIONS = ("unspoken", "torch", "transformers", "numpy")


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    total = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "system": platform.system(),
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(total[0] / 1e6, 1) if total else None,
    }


def _lines(path: str) -> list[str]:
    # Only Linux has these.
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def table(content: dict[str, Any]) -> Table:
    """Every figure: a row for each group of them."""
    drawn = Table("what", "figures")
    for where, figures in _groups("", content):
        drawn.add_row(where, ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in figures.items()))
    return drawn


def _groups(where: str, content: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    own = {name: value for name, value in content.items() if not isinstance(value, dict) and name != "benchmark"}
    found = [(where, own)] if own else []
    for name, value in content.items():
        if isinstance(value, dict):
            found += _groups(f"{where} {name}".strip(), value)
    return found


def main() -> None:
    """Each script in a process of its own; its last line is the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE.parent / "results" / "benchmarks.json")
    parser.add_argument("--rounds", type=int, help="of every measurement; each has its own number by default")
    given = parser.parse_args()
    figures = {}
    for name in SCRIPTS:
        print(f"== {name}", file=sys.stderr, flush=True)
        command = [sys.executable, str(HERE / f"{name}.py"), *([] if given.rounds is None else [str(given.rounds)])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures[name] = json.loads(done.stdout.strip().splitlines()[-1])
    versions = {name: version(name) for name in VERSIONS} | {"python": platform.python_version()}
    content = {**figures, "machine": machine(), "versions": versions}
    Console().print(table(content))
    given.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
