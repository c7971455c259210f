"""SIM-CoT as a method."""

from __future__ import annotations

from typing import ClassVar

from unspoken.methods.carrier import AddedLossMethod
from unspoken.methods.method import Objective
from unspoken.methods.sim_cot.stages import SimCot


class SimCotMethod(AddedLossMethod):
    """See `unspoken.methods.sim_cot`."""

    name: ClassVar[str] = "sim_cot"
    objectives: ClassVar[tuple[type[Objective], ...]] = (SimCot,)
