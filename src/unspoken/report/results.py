"""Where a run folder keeps what was measured, and how to read it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS, PAGE = "results.json", "report.html"
# Names of stages and keys that older results have.
_KINDS = {"compress": "stage1", "autonomy": "stage2"}
_KEYS = {"own_latents": "rollout_latents", "own_passes": "rollout_passes"}


def read_results(path: Path) -> dict[str, Any]:
    """Results of a run folder or of a results file.

    Raises:
        ValueError: there are none.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"there are no results at {file}; 'unspoken eval {path}' writes them")
    try:
        results: dict[str, Any] = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    for stage in results.get("recipe", {}).get("stages", []):
        objective = {_KEYS.get(key, key): value for key, value in stage["objective"].items()}
        stage["objective"] = objective | {"kind": _KINDS.get(objective["kind"], objective["kind"])}
    return results
