"""All tasks: ours, and those of packages that offer more by the entry-point group ``unspoken.tasks``.

An entry point names a configuration class, see `unspoken.tasks.task.TaskConfig`::

    [project.entry-points."unspoken.tasks"]
    sudoku = "my_package.sudoku:SudokuConfig"
"""

from __future__ import annotations

from dataclasses import is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from unspoken.tasks.arithmetic import ArithmeticConfig
from unspoken.tasks.competition import CompetitionConfig
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
    CompetitionConfig,
    JsonlConfig,
)


@cache
def task_configs() -> tuple[type[Any], ...]:
    """The configuration classes of all tasks; other packages are imported at the first call.

    Raises:
        ValueError: another package's task cannot be imported, is no task, or has the kind of another one.
    """
    known: dict[str, tuple[type[Any], str]] = {config.kind: (config, "unspoken") for config in TASKS}
    for entry in entry_points(group=GROUP):
        owner = entry.dist.name if entry.dist is not None else entry.value
        config = _loaded(entry, owner)
        if config.kind in known:
            other = known[config.kind][1]
            raise ValueError(f"the task kind {config.kind!r} of {owner} is also one of {other}; uninstall {owner}")
        known[config.kind] = config, owner
    return tuple(config for config, _ in known.values())


def _loaded(entry: EntryPoint, owner: str) -> Any:
    try:
        config: Any = entry.load()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"the task {entry.name!r} of {owner} cannot be imported ({reason}); repair or uninstall it"
        ) from None
    missing = [name for name in ("kind", "traits", "build") if not hasattr(config, name)]
    if not isinstance(config, type) or not is_dataclass(config) or missing:
        lacks = f", and it has no {', '.join(missing)}" if missing else ""
        raise ValueError(f"the task {entry.name!r} of {owner} must be a frozen dataclass of settings{lacks}")
    return config
