"""Language models that reason without speaking.

Importing the package imports neither torch nor transformers; what is below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from unspoken.auto_classes import extend_auto_classes

if TYPE_CHECKING:
    from unspoken.api import convert, load, new_recipe, train
    from unspoken.methods.method import Method
    from unspoken.methods.soft_thinking import SoftThinking
    from unspoken.probes.probe import Probe
    from unspoken.reasoning.system import System
    from unspoken.tasks.task import Task

__all__ = ["Method", "Probe", "SoftThinking", "System", "Task", "convert", "load", "new_recipe", "train"]

_HOMES = {
    "Method": "unspoken.methods.method",
    "Probe": "unspoken.probes.probe",
    "SoftThinking": "unspoken.methods.soft_thinking",
    "System": "unspoken.reasoning.system",
    "Task": "unspoken.tasks.task",
    "convert": "unspoken.api",
    "load": "unspoken.api",
    "new_recipe": "unspoken.api",
    "train": "unspoken.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'unspoken' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


extend_auto_classes()
