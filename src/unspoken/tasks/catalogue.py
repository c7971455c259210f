"""All tasks: ours, and those of packages that offer more by the entry-point group ``unspoken.tasks``.

An entry point names a configuration class, see `unspoken.tasks.task.TaskConfig`::

    [project.entry-points."unspoken.tasks"]
    sudoku = "my_package.sudoku:SudokuConfig"
"""

from __future__ import annotations

from dataclasses import is_dataclass
from functools import cache
from typing import Any

from unspoken.plugins import offered
from unspoken.tasks.arithmetic import ArithmeticConfig
from unspoken.tasks.competition import CompetitionConfig
from unspoken.tasks.cups import CupsConfig
from unspoken.tasks.grade_school import GradeSchoolConfig
from unspoken.tasks.grammar import GrammarConfig
from unspoken.tasks.jsonl import JsonlConfig
from unspoken.tasks.logic import LogicConfig
from unspoken.tasks.prose import ProseConfig
from unspoken.tasks.tree_search import TreeSearchConfig

GROUP = "unspoken.tasks"
TASKS: tuple[type[Any], ...] = (
    TreeSearchConfig,
    GrammarConfig,
    ProseConfig,
    ArithmeticConfig,
    GradeSchoolConfig,
    LogicConfig,
    CupsConfig,
    CompetitionConfig,
    JsonlConfig,
)


@cache
def task_configs() -> tuple[type[Any], ...]:
    """The configuration classes of all tasks; other packages are imported at the first call.

    Raises:
        ValueError: another package's task cannot be imported, is no task, or has the kind of another one.
    """
    known = {config.kind: config for config in TASKS}
    for name, offer in offered(GROUP):
        missing = [attribute for attribute in ("kind", "traits", "build") if not hasattr(offer, attribute)]
        if not isinstance(offer, type) or not is_dataclass(offer) or missing:
            lacks = f", and it has no {', '.join(missing)}" if missing else ""
            raise ValueError(f"{name} must be a frozen dataclass of settings{lacks}")
        config: type[Any] = offer
        if config.kind in known:
            raise ValueError(f"{name} has the kind {config.kind!r} of another task; uninstall it")
        known[config.kind] = config
    return tuple(known.values())
