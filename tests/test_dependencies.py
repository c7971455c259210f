"""What the package imports, what it declares and what was tested together agree, and nothing that it reads is run."""

from __future__ import annotations

import ast
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# FastAPI's own interface is made of these, and it says which versions.
THROUGH = {"pydantic": "fastapi", "starlette": "fastapi"}
# What `--report-to` names by default: transformers imports it.
IMPORTED_BY_OTHERS = {"tensorboard"}


def names_of(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(requirement).name) for requirement in requirements}


@cache
def imported() -> dict[str, set[str]]:
    """Top-level modules of others that the package imports, anywhere in a file, and by which files."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [str(node.module)]
            for module in modules:
                found.setdefault(module.partition(".")[0], set()).add(str(path.relative_to(ROOT)))
    return {name: files for name, files in found.items() if name not in {*sys.stdlib_module_names, "unspoken"}}


@cache
def installed() -> Mapping[str, list[str]]:
    """Top-level modules here and the packages that bring them; looking through all packages takes half a second."""
    return packages_distributions()


def distributions_of(module: str) -> set[str]:
    """Declared names that bring a module."""
    return {canonicalize_name(name) for name in installed()[THROUGH.get(module, module)]}


def test_every_import_is_declared() -> None:
    for_users = names_of(PROJECT["dependencies"])
    for extra in ("hub", "harness", "serve"):
        for_users |= names_of(PROJECT["optional-dependencies"][extra])
    undeclared = {module: files for module, files in imported().items() if not distributions_of(module) & for_users}
    assert not undeclared


def test_every_declared_dependency_is_imported() -> None:
    used = {name for module in imported() for name in distributions_of(module)} | IMPORTED_BY_OTHERS
    assert names_of(PROJECT["dependencies"]) - used == set()


def test_every_declared_dependency_is_pinned_to_what_is_installed_here() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pinned = {canonicalize_name(name): number for name, number in pins.items()}
    declared = itertools.chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for requirement in map(Requirement, declared):
        name = canonicalize_name(requirement.name)
        # The installed build of torch also says what it was built for.
        assert pinned.get(name) == Version(version(name)).public, name
        assert pinned[name] in requirement.specifier, name


# --- nothing that is read is run -------------------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def dangers(source: str) -> Iterator[str]:
    """Ways to run what a file or a repository holds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            yield from (f"import {name}" for name in modules if name.partition(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in ("eval", "exec"):
                yield called
            if called == "torch.load" and given.get("weights_only") != "True":
                yield called
            if called in ("yaml.load", "yaml.load_all") and not given.get("Loader", "").endswith("SafeLoader"):
                yield called
            if called.startswith("yaml.") and called.endswith(("unsafe_load", "full_load", "unsafe_load_all")):
                yield called
            if given.get("trust_remote_code", "False") != "False":
                yield "trust_remote_code"
            if given.get("allow_pickle", "False") != "False":
                yield "allow_pickle"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", ["import pickle"]),
        ("from dill.source import x", ["import dill.source"]),
        ("def f():\n    eval('1')\n    exec('1')", ["eval", "exec"]),
        ("def eval(): ...\nmodel.eval()", []),
        ("torch.load(path)", ["torch.load"]),
        ("torch.load(path, weights_only=False)", ["torch.load"]),
        ("torch.load(path, weights_only=True)", []),
        ("yaml.load(text, Loader=yaml.Loader)", ["yaml.load"]),
        ("yaml.full_load(text)", ["yaml.full_load"]),
        ("yaml.load(text, Loader=yaml.SafeLoader), yaml.safe_load(text)", []),
        ("AutoModel.from_pretrained(name, trust_remote_code=True)", ["trust_remote_code"]),
        ("AutoModel.from_pretrained(name, trust_remote_code=wanted)", ["trust_remote_code"]),
        ("np.load(path, allow_pickle=True)", ["allow_pickle"]),
    ],
)
def test_what_would_be_found(source: str, found: list[str]) -> None:
    assert list(dangers(source)) == found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_nothing_that_is_read_is_run(path: Path) -> None:
    assert list(dangers(path.read_text())) == []
