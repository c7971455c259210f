"""What other installed packages offer by entry points: methods, tasks and probes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any


def offered(group: str) -> Iterator[tuple[str, Any]]:
    """What the packages of a group offer, imported one after the other, each with the name for error messages.

    Args:
        group: ``unspoken.methods``, ``unspoken.tasks`` or ``unspoken.probes``.

    Raises:
        ValueError: one of them cannot be imported.
    """
    what = group.rpartition(".")[2].removesuffix("s")
    for entry in entry_points(group=group):
        owner = entry.dist.name if entry.dist is not None else entry.value
        name = f"the {what} {entry.name!r} of {owner}"
        try:
            yield name, entry.load()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{name} cannot be imported ({reason}); repair or uninstall it") from None
