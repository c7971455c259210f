"""The pretend device refuses what CUDA and Metal refuse, counts the waits of the host, and computes as the CPU does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pretend_checks
import pytest
from pretend_process import Elsewhere, elsewhere

CHECKS = [
    name
    for name, check in vars(pretend_checks).items()
    if getattr(check, "__module__", "") == pretend_checks.__name__ and not name.startswith("_")
]


@pytest.fixture(scope="module")
def there() -> Iterator[Elsewhere]:
    with elsewhere() as call:
        yield call


@pytest.mark.parametrize("name", CHECKS)
def test_the_pretend_device(name: str, there: Elsewhere, tmp_path: Path) -> None:
    check: Any = getattr(pretend_checks, name)
    there(check, *([tmp_path] if check.__code__.co_argcount else []))


def test_every_check_is_found() -> None:
    assert len(CHECKS) == 15
