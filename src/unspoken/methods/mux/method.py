"""MUX as a method."""

from __future__ import annotations

from typing import ClassVar

from unspoken.methods.carrier import AddedLossMethod
from unspoken.methods.method import Objective
from unspoken.methods.mux.stages import Mux


class MuxMethod(AddedLossMethod):
    """See `unspoken.methods.mux`."""

    name: ClassVar[str] = "mux"
    objectives: ClassVar[tuple[type[Objective], ...]] = (Mux,)
