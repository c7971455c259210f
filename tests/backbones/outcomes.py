"""Right, refused, or something that must not be: what becomes of a method on an architecture."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chains import CHAINS
from hub import Hub, noise_of_architectures
from learning import LEARNING

from unspoken.backbone import checks

METHODS = {**CHAINS, **LEARNING}
# What a refusal must name: the sentence of a property.
PROPERTIES = {name: sentence for name, (sentence, _) in checks._PROPERTIES.items()}


@dataclass(frozen=True)
class Outcome:
    """What became of a method on an architecture.

    Attributes:
        verdict: "right" or "refused"; "wrong" and "crashed" are failures.
        detail: the refusal, the failed checks, or the error.
        missing: the property that a refusal names.
        errors: the largest relative error of every comparison, where the method ran.
    """

    verdict: Literal["right", "refused", "wrong", "crashed"]
    detail: str = ""
    missing: str | None = None
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def fine(self) -> bool:
        """Right or refused."""
        return self.verdict in ("right", "refused")


def outcome(method: str, hub: Hub) -> Outcome:
    """Run a method on a model and judge it."""
    try:
        with noise_of_architectures():
            found = METHODS[method](hub)
    except Exception as error:
        message, frame = str(error), traceback.extract_tb(error.__traceback__)[-1]
        missing = next((name for name, sentence in PROPERTIES.items() if sentence in message), None)
        if type(error) is ValueError and missing is not None and "\n" not in message:
            return Outcome("refused", message, missing)
        first = message.splitlines()[0] if message else ""
        return Outcome("crashed", f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {first}")
    if found.wrong:
        worst = sorted(found.wrong.items(), key=lambda entry: -entry[1])
        return Outcome("wrong", ", ".join(f"{check} {error:.2g}" for check, error in worst), errors=found.errors)
    return Outcome("right", errors=found.errors)


def outcomes(name: str, folder: Path) -> dict[str, Outcome]:
    """Every method on an architecture of the table, which is written into a folder."""
    hub = Hub.of(name, folder)
    return {method: outcome(method, hub) for method in METHODS}
