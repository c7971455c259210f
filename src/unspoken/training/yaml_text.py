"""Safe reading of the YAML of a recipe: bounded in size and depth, and with no key twice."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import yaml

from unspoken.training.settings import SettingsError

# libyaml reads ten times as fast; not every build of the package has it.
SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LARGEST = 2**17  # characters, and entries, of a recipe; those that are shipped have thousands
_DEEPEST = 200  # brackets, or characters that indent a line


def read_yaml(text: str) -> Any:
    """The content of YAML text.

    Raises:
        SettingsError: it is none, or larger than any recipe, with its aliases written out too.
    """
    if len(text) > _LARGEST:
        raise SettingsError(f"{len(text)} characters are more than the {_LARGEST} that a recipe may have")
    brackets = accumulate({"[": 1, "{": 1, "]": -1, "}": -1}.get(character, 0) for character in text)
    indents = (len(line) - len(line.lstrip(" -?")) for line in text.splitlines())
    if any(depth > _DEEPEST for depth in (*brackets, *indents)):  # libyaml has no limit of its own
        raise SettingsError("it is nested too deeply for a recipe")
    loader = SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if _entries(root, {}) > _LARGEST:
            raise SettingsError(f"expanding its YAML aliases gives more than {_LARGEST} entries; write the values out")
        _refuse_duplicates(root, set())
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise SettingsError(f"not YAML{line}: {getattr(error, 'problem', None) or 'unreadable'}") from None
    except RecursionError:
        raise SettingsError("it is nested too deeply for a recipe") from None
    except SettingsError:
        raise
    except (ValueError, ArithmeticError, LookupError, TypeError) as error:  # of a date, a number, a key that is a list
        raise SettingsError(f"not YAML: {error}") from None
    finally:
        loader.dispose()


def _entries(node: Any, known: dict[int, float]) -> float:
    """Entries that printing a node of YAML shows; infinite where it holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inside = node.value if isinstance(node.value, list) else ()
        children = (child for entry in inside for child in (entry if isinstance(entry, tuple) else (entry,)))
        known[id(node)] = 1 + sum(_entries(child, known) for child in children)
    return known[id(node)]


def _refuse_duplicates(node: Any, known: set[int]) -> None:
    """Refuse a mapping that has a key twice, of which YAML readers keep the last."""
    if id(node) in known:
        return
    known.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in seen:
                    first = seen[key.value]
                    raise SettingsError(f"the key {key.value!r} stands twice (lines {first} and {line}); remove one")
                seen[key.value] = line
    for entry in node.value if isinstance(node.value, list) else ():
        for child in entry if isinstance(entry, tuple) else (entry,):
            _refuse_duplicates(child, known)
