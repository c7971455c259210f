"""Modules of a method that need torch, imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class LazyModule:
    """A module of a method that is imported where it is first used, so that a recipe is read without torch.

    Args:
        name: of the module, for instance ``unspoken.methods.codi.building``.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)
