"""How a stage went, out of its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unspoken.backbone.folder import read_manifest


def curve(folder: Path, *, chains: bool = False) -> dict[str, Any]:
    """Loss and validation readings along one stage, its selected step and its seconds.

    Args:
        chains: and the chains that were written out at each validation, if there are any.
    """
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
        **(_chains(evaluations) if chains else {}),
    }


def _chains(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """What was written out at every validation; nothing where one of them has none."""
    written = [entry.get("chains") for entry in evaluations]
    return {"chains": written} if all(written) else {}


def has_curve(folder: Path) -> bool:
    """Whether the stage trained anything: writing labels does not."""
    return bool(read_manifest(folder)["history"])
