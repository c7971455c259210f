"""NoThink and budget forcing as a method: nothing is trained."""

from __future__ import annotations

from typing import ClassVar

from unspoken.methods.budget_forcing.reasoning import BudgetForcing, NoThink
from unspoken.methods.method import Method, Objective
from unspoken.methods.reasoning import Reasoning


class BudgetForcingMethod(Method):
    """See `unspoken.methods.budget_forcing`."""

    name: ClassVar[str] = "budget_forcing"
    objectives: ClassVar[tuple[type[Objective], ...]] = ()
    reasonings: ClassVar[tuple[type[Reasoning], ...]] = (NoThink, BudgetForcing)
