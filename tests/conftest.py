"""Switches on runtime shape checks wherever the package annotates shapes, and keeps torch on one thread.

The hook must be in place before `unspoken` is first imported: pytest (and each xdist worker) imports this file before
any test module, and this file imports nothing of the package above the hook.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before the library of the hub is first imported: no test waits for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from jaxtyping import install_import_hook
from transformers.utils.generic import ModelOutput

# Import mode "importlib" leaves sys.path alone; the files that tests share lie beside this one.
sys.path.insert(0, str(Path(__file__).parent))
import shape_checks

pytest.register_assert_rewrite("conformance", "printed_trees")

assert "unspoken" not in sys.modules, "unspoken was imported before its shape checks were switched on"
spec = importlib.util.find_spec("unspoken")
assert spec is not None
assert spec.origin is not None
source = Path(spec.origin).parent
# The transformers library turns its configuration classes into dataclasses of its own kind, whose constructor takes
# any keyword, and builds its outputs out of a dictionary; the hook would refuse both, so it leaves them alone. Packages
# hold nothing but imports.
ModelOutput.__no_type_check__ = True
# Only what annotates shapes is checked: of other types mypy knows more, and a check takes time in every call.
checked = [
    file
    for file in source.rglob("*.py")
    if file.stem not in ("__init__", "configuration") and "from jaxtyping import" in file.read_text()
]
names = [".".join(("unspoken", *file.relative_to(source).with_suffix("").parts)) for file in checked]
shape_checks.leave_other_functions_alone()
install_import_hook(names, "shape_checks.checked")

# Programs that tests start may compute with two threads beside a test that computes too. By default threads of PyTorch
# wait for each other in a loop that holds a core: a training then takes 85 seconds in place of 48.
os.environ["OMP_WAIT_POLICY"] = "passive"

# What was found out about tiny models is kept for these tests, and not in the cache of whoever runs them.
cache = tempfile.TemporaryDirectory(prefix="unspoken-tests-")
os.environ["XDG_CACHE_HOME"] = cache.name
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(autouse=True)
def _one_thread_and_known_noise() -> None:
    """Bit-equal comparisons need one thread; a test that draws weights draws the same ones every time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _nothing_is_waited_for() -> Iterator[None]:
    """Times of single problems are of no use in tests, and no test cuts the power, against which files are flushed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unspoken.evaluation.cost._ALONE", 2)
        patch.setattr(os, "fsync", lambda _: None)
        yield


# Python looks for garbage after every 700 new objects; imports make half a million, and none of it is garbage.
gc.set_threshold(10_000)


def pytest_collection_finish() -> None:
    """Every training begins with a full garbage collection, which looks at all that the imports left: half a second."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Nor does the end of Python."""
    gc.freeze()


# Files with long tests are begun first, so that at the end no worker waits for one of them.
LONG = (
    "test_main_job.py",
    "test_drills.py",
    "test_ranks.py",
    "test_kills.py",
    "test_hostile.py",
    "test_hostile_recipes.py",
    "test_benchmarks.py",
    "test_notebooks.py",
    "test_gpu_benchmarks.py",
    "test_nodes.py",
    "test_pretend_runs.py",
    "test_soak.py",
    "test_wheel.py",
    "test_reasoning_problems.py",
    "test_api.py",
    "test_resume.py",
    "test_learning.py",
    "test_grammar_run.py",
    "test_hub_jepa.py",
    "test_python_page.py",
    "test_own_method.py",
    "test_prosqa.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked "gpu" need one, or a device that stands in for it (`on_device`)."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    if torch.cuda.is_available() or "UNSPOKEN_TEST_DEVICE" in os.environ:
        return
    skip = pytest.mark.skip(reason="there is no GPU here; UNSPOKEN_TEST_DEVICE=cpu runs these tests on the CPU")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)
