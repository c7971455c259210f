"""Names of systems as tables write them: of further ways to reason, the settings that tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unspoken.evaluation.results import Results

_AND = ", "  # between the stage, the way to reason and each setting that differs from its default


def short_names(names: Sequence[str]) -> dict[str, str]:
    """By name a shorter one, of those that can be shorter; no two are the same.

    Settings that all variants of a way to reason have are left out. Of settings that always occur together the first
    stands for all, with an ellipsis.
    """
    short = {}
    for name in names:
        stage, way, *settings = [*name.split(_AND), ""][: max(2, name.count(_AND) + 1)]
        if not settings:
            continue
        # The default settings of the first stage's way have its name alone.
        variants = [other.split(_AND) for other in names if other == way or _named(other, stage, way)]
        groups: dict[tuple[bool, ...], list[str]] = {}
        for setting in settings:
            groups.setdefault(tuple(setting in variant for variant in variants), []).append(setting)
        shown = [first + (" …" if others else "") for having, (first, *others) in groups.items() if not all(having)]
        short[name] = _AND.join([stage, way, *shown])
    return {name: other for name, other in short.items() if other != name}


def _named(name: str, stage: str, way: str) -> bool:
    return name == f"{stage}{_AND}{way}" or name.startswith(f"{stage}{_AND}{way}{_AND}")


def with_short_names(results: Results) -> Results:
    """The same results with `short_names`, and ``full_names`` by short name if there are any."""
    short = short_names(list(results["systems"]))
    if not short:
        return results

    def renamed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {_renamed_text(key, short): renamed(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [renamed(entry) for entry in value]
        return short.get(value, value) if isinstance(value, str) else value

    measured = {key: renamed(value) for key, value in results.items() if key != "recipe"}
    full = {other: name for name, other in short.items()}
    return {**results, **measured, "full_names": full}


def _renamed_text(key: Any, short: Mapping[str, str]) -> Any:
    """A name, or two of a paired test."""
    return " - ".join(short.get(name, name) for name in key.split(" - ")) if isinstance(key, str) else key
