"""Runs every benchmark in turn and writes ``results/benchmarks.json``: figures, machine, versions."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = ("data", "training", "rollout", "latent_sft")


def main() -> None:
    """Each script in a process of its own; its last line is the result."""
    figures = {}
    for name in SCRIPTS:
        print(f"== {name}", flush=True)
        done = subprocess.run([sys.executable, str(HERE / f"{name}.py")], stdout=subprocess.PIPE, text=True, check=True)
        figures[name] = json.loads(done.stdout.strip().splitlines()[-1])
        print(json.dumps(figures[name], indent=1))
    content = {
        **figures,
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
    }
    (HERE.parent / "results" / "benchmarks.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
