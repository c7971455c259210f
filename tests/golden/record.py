"""What every shipped tiny recipe trains and measures in a few steps: what a change of structure must keep.

``python tests/golden/record.py --output FILE`` runs each recipe through the command line with a handful of steps a
stage and writes a digest of every weight, the validation readings and the results. ``--against FILE`` also compares and
names what differs. Digests are equal to the bit on one machine; on another one, numbers differ in their last digits, so
readings are compared with a tolerance there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open
from typer.testing import CliRunner

from unspoken.cli import app

STEPS = 4
ROWS = 64
PROBLEMS = 24
# Wall-clock, and what names this copy of the program or its machine.
PASSING = (
    "train_runtime",
    "seconds",
    "seconds_alone",
    "seconds_batched",
    "command",
    "recipe",
    "versions",
    "machine",
    "made",
)


def tiny_recipes() -> list[str]:
    """Names of the recipes that have the size tiny."""
    folders = (entry for entry in resources.files("unspoken.recipes").iterdir() if entry.is_dir())
    return sorted(entry.name for entry in folders if (entry / "tiny.yaml").is_file())


def shortened(name: str) -> list[str]:
    """Overrides that leave every stage of a recipe in place and give it a few steps."""
    content = yaml.safe_load((resources.files("unspoken.recipes") / name / "tiny.yaml").read_text())
    changes = [
        f"evaluation.problems={PROBLEMS}",
        f"evaluation.validation_problems={PROBLEMS // 2}",
        "evaluation.max_latents=8",
        "precision=fp32",
        "threads=1",
    ]
    for stage in content["stages"]:
        if "steps" in stage:
            changes.append(f"stages.{stage['name']}.steps={STEPS}")
        if stage["objective"]["kind"] == "labels":
            changes.append(f"stages.{stage['name']}.objective.rows={ROWS}")
        else:
            changes += [f"stages.{stage['name']}.evaluate_every={STEPS // 2}", f"stages.{stage['name']}.batch_size=8"]
    return [part for change in changes for part in ("--set", change)]


def digest(model: Path) -> str:
    """One hash of the names and values of all weights in a published folder."""
    total = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="np") as weights:
            for key in sorted(weights.keys()):
                total.update(key.encode() + weights.get_tensor(key).tobytes())
    return total.hexdigest()


def without_passing(content: Any) -> Any:
    """Results without times and without what names the program or the machine."""
    if isinstance(content, dict):
        return {key: without_passing(value) for key, value in content.items() if key not in PASSING}
    if isinstance(content, list):
        return [without_passing(value) for value in content]
    return content


def record(name: str, folder: Path) -> dict[str, Any]:
    """Run one recipe and record it."""
    arguments = ["run", name, "--size", "tiny", "--output", str(folder), "--device", "cpu", "--quiet", *shortened(name)]
    outcome = CliRunner().invoke(app, arguments)
    if outcome.exit_code:
        raise SystemExit(f"{name}: {outcome.output}") from outcome.exception
    stages = {}
    for model in sorted(folder.glob("seed-0/*/model")):
        manifest = json.loads((model / "run.json").read_text())
        stages[model.parent.name] = {
            "weights": digest(model),
            **{key: manifest[key] for key in ("step", "validation", "history") if key in manifest},
        }
    return {"stages": stages, "results": without_passing(json.loads((folder / "results.json").read_text()))}


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Paths at which two records differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in sorted({*before, *after}, key=str)
            for line in differences(before.get(key), after.get(key), f"{where}/{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for at, (old, new) in pairs for line in differences(old, new, f"{where}/{at}")]
    return [] if before == after else [f"{where}: {str(before)[:80]} -> {str(after)[:80]}"]


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--against", type=Path)
    parser.add_argument("recipes", nargs="*", help="all tiny recipes by default")
    chosen = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.recipes or tiny_recipes():
            found[name] = record(name, Path(folder) / name)
            print(name, *(f"{stage} {one['weights'][:8]}" for stage, one in found[name]["stages"].items()), flush=True)
    chosen.output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    if chosen.against is not None:
        before = json.loads(chosen.against.read_text())
        lines = differences({name: before.get(name) for name in found}, found)
        print("\n".join(lines[:200]) or "no difference")
        sys.exit(bool(lines))


if __name__ == "__main__":
    main()
