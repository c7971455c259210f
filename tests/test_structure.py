"""Where code may ask what it has before it: a method's class in its own folder alone, a task's almost only in its file.

A switch point is one class named in ``isinstance``, ``issubclass``, ``type(x) is C`` or a ``case C()`` pattern outside
the folder that defines it, or a comparison of a ``kind`` with a text outside ``methods/`` and ``tasks/``.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "unspoken"
TREES = {path.relative_to(SOURCE): ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
TASK_SWITCHES = 10
LINES, FUNCTION_LINES, BRANCHES = 500, 60, 15
# Classes of tasks that belong to no single task.
SHARED = {"task.py", "catalogue.py", "prompt_format.py", "spans.py", "dataset.py", "problems.py", "grading.py"}


def _room(path: Path) -> str | None:
    """The method whose folder a file lies in."""
    return path.parts[1] if path.parts[0] == "methods" and len(path.parts) > 2 else None


def _classes() -> dict[str, tuple[str, str]]:
    """Names of classes to what they are and where they are at home."""
    homes: dict[str, tuple[str, str]] = {}
    for path, tree in TREES.items():
        room = _room(path)
        task = path.parts[0] == "tasks" and path.name not in SHARED
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and (room or task):
                homes.setdefault(node.name, ("method", room) if room else ("task", "tasks"))
    return homes


def _names(node: ast.expr) -> list[str]:
    match node:
        case ast.Name():
            return [node.id]
        case ast.Attribute():
            return [node.attr]
        case ast.Tuple() | ast.List() | ast.Set():
            return [name for element in node.elts for name in _names(element)]
        case ast.BinOp(op=ast.BitOr()):
            return _names(node.left) + _names(node.right)
    return []


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return bool(node.elts) and all(_is_text(element) for element in node.elts)
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_kind(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "kind"
    return isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value == "kind"


def _asked(tree: ast.AST) -> Iterator[str]:
    """Classes that a file asks for, and ".kind" for each comparison of a kind."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, asked]):
                yield from _names(asked)
            case ast.MatchClass():
                yield from _names(node.cls)
            case ast.Compare():
                sides = [node.left, *node.comparators]
                if any(isinstance(side, ast.Call) and _names(side.func) == ["type"] for side in sides):
                    yield from (name for side in sides for name in _names(side))
                if any(map(_is_text, sides)) and any(map(_is_kind, sides)):
                    yield ".kind"


def _switches() -> dict[str, Counter[str]]:
    homes = _classes()
    counts: dict[str, Counter[str]] = {"method": Counter(), "task": Counter(), "kind": Counter()}
    for path, tree in TREES.items():
        here = _room(path) or path.parts[0]
        for name in _asked(tree):
            what, home = homes.get(name, (None, None))
            if name == ".kind" and path.parts[0] not in ("methods", "tasks"):
                counts["kind"][str(path)] += 1
            elif what is not None and home != here:
                counts[what][str(path)] += 1
    return counts


def _rooms_imported(path: Path, tree: ast.AST) -> set[str]:
    """Rooms that a file outside ``methods/`` imports from."""
    rooms = {room for other in TREES if (room := _room(other)) is not None}
    modules: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    return (
        {room for room in rooms for module in modules if f"{module}.".startswith(f"unspoken.methods.{room}.")}
        if path.parts[0] != "methods"
        else set()
    )


def test_nothing_outside_a_method_s_folder_asks_for_its_classes() -> None:
    assert _switches()["method"] == Counter()


def test_nothing_outside_methods_and_tasks_compares_a_kind() -> None:
    assert _switches()["kind"] == Counter()


def test_few_places_outside_tasks_ask_for_a_task_s_class() -> None:
    switches = _switches()["task"]
    assert switches.total() <= TASK_SWITCHES, switches


def test_nothing_above_the_methods_imports_from_one_of_them() -> None:
    imported = {str(path): rooms for path, tree in TREES.items() if (rooms := _rooms_imported(path, tree))}
    assert imported == {}


def test_no_file_is_longer_than_500_lines() -> None:
    lines = {str(path): len((SOURCE / path).read_text().splitlines()) for path in TREES}
    assert {path: count for path, count in lines.items() if count > LINES} == {}


def _branches(function: ast.AST) -> int:
    kinds = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.comprehension, ast.match_case, ast.BoolOp)
    return sum(isinstance(node, kinds) for node in ast.walk(function))


def test_no_function_has_more_than_60_lines_or_15_branches() -> None:
    found = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - (body[0].lineno if body else node.lineno) + 1
                if lines > FUNCTION_LINES or _branches(node) > BRANCHES:
                    found[f"{path}:{node.name}"] = (lines, _branches(node))
    assert found == {}
