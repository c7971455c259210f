"""Results written by hand: small, complete, and free of any trained model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tree_results
from words_results import words_results

# Import mode "importlib" leaves sys.path alone; the files that these tests share lie beside this one.
sys.path.insert(0, str(Path(__file__).parent))

Results = tree_results.Results


@pytest.fixture
def complete() -> Callable[..., Results]:
    """Makes results; ``depth`` and ``seeds`` may be given."""
    return tree_results.complete


@pytest.fixture
def sweep() -> Results:
    return tree_results.sweep()


@pytest.fixture
def ambiguous() -> Results:
    return tree_results.ambiguous()


@pytest.fixture
def word_run() -> Results:
    """A run on reasoning problems, with everything that can be measured on them."""
    return words_results()
