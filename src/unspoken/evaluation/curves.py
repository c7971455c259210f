"""How a stage went, out of its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unspoken.backbone.folder import read_manifest


def curve(folder: Path) -> dict[str, Any]:
    """Loss and validation readings along one stage, its selected step and its seconds."""
    manifest = read_manifest(folder)
    evaluations = [entry for entry in manifest["history"] if "eval_score" in entry]
    losses = [entry for entry in manifest["history"] if "loss" in entry]
    keep = (
        "exact_match",
        "token_accuracy",
        "perplexity",
        "ended",
        "latents",
        "effective_rank",
        "nearest_row",
        "sst_loss",
        "best_constant_loss",
    )
    names = [
        name
        for name in evaluations[0]
        # A reading of the rollout is missing where every chain was too short for it.
        if all(name in entry for entry in evaluations)
        and (name.removeprefix("eval_") in keep or name.startswith(("eval_forced_", "eval_rollout_")))
    ]
    return {
        "selected_step": manifest["step"],
        "steps": [entry["step"] for entry in evaluations],
        **{name.removeprefix("eval_"): [round(entry[name], 5) for entry in evaluations] for name in names},
        "loss_steps": [entry["step"] for entry in losses],
        "loss": [round(entry["loss"], 5) for entry in losses],
        "seconds": next((entry["train_runtime"] for entry in manifest["history"] if "train_runtime" in entry), None),
    }


def has_curve(folder: Path) -> bool:
    """Whether the stage trained anything: writing labels does not."""
    return bool(read_manifest(folder)["history"])
