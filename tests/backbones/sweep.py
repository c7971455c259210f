"""Runs every method around every architecture of the table and writes what became of it.

``python tests/backbones/sweep.py --output results/backbones.json`` takes about five minutes on one core; the page
docs/backbones.md is made of that file. With names of architectures it writes only theirs anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from architectures import ARCHITECTURES, VARIANTS, tiny_config
from outcomes import METHODS, PROPERTIES, Outcome, outcomes
from transformers.utils import logging


def entry(name: str, found: dict[str, Outcome]) -> dict[str, Any]:
    """An architecture in the file of results."""
    errors = [error for outcome in found.values() for error in outcome.errors.values() if outcome.verdict == "right"]
    return {
        "model_type": tiny_config(name).model_type,
        "variant": VARIANTS.get(name),
        "error": float(f"{max(errors, default=0.0):.1g}"),
        "methods": {
            method: {"verdict": outcome.verdict, "missing": outcome.missing, "detail": outcome.detail}
            for method, outcome in found.items()
        },
    }


def main(names: list[str], output: Path | None) -> int:
    """Sweep, print a line for each architecture, and fail where a method was neither right nor refused."""
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    swept, failed = {}, 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = outcomes(name, Path(folder))
        swept[name] = entry(name, found)
        failed += sum(not outcome.fine for outcome in found.values())
        words = [f"{method}: {outcome.verdict} {outcome.detail}".strip() for method, outcome in found.items()]
        right = all(outcome.verdict == "right" for outcome in found.values())
        print(f"{name}: {'right everywhere' if right else '; '.join(words)}", flush=True)
    print(f"{len(names)} architectures, {len(METHODS)} methods, {failed} failures")
    if output is not None:
        write(swept, output)
    return 1 if failed else 0


def write(swept: dict[str, Any], output: Path) -> None:
    """Put architectures into a file of results, in the order of the table; others that it has stay."""
    content = {"versions": {name: version(name) for name in ("transformers", "torch")}, "properties": PROPERTIES}
    before = json.loads(output.read_text()) if output.is_file() else {"architectures": {}, **content}
    if before["versions"] != content["versions"]:
        before["architectures"] = {}
    found = {**before["architectures"], **swept}
    content["architectures"] = {name: found[name] for name in ARCHITECTURES if name in found}
    output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures of the table; all by default")
    parser.add_argument("--output", type=Path, help="file of results to write; others that it has stay")
    options = parser.parse_args()
    sys.exit(main(options.names or list(ARCHITECTURES), options.output))
