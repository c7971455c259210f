"""Small trained models that come with the package, so that a first answer needs no training and no network.

``python benchmarks/weights.py`` trains and writes them; each folder is a published one, with its manifest.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def shipped_models() -> list[str]:
    """Names of the models."""
    return sorted(entry.parent.name for entry in _HERE.glob("*/run.json"))


def shipped_model(name: str | Path) -> Path | None:
    """The folder of the model of a name; None where there is none, or something else of that name where we are."""
    return _HERE / name if str(name) in shipped_models() and not Path(name).exists() else None
