"""The device of the tests marked "gpu", and the tiny models of the other tests on it.

It is a GPU, or what the environment variable ``UNSPOKEN_TEST_DEVICE`` names: "cpu" runs the same tests without one, and
"pretend" on the strict device of `pretend_device`, where tensors of two devices do not mix.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pretend_device
import torch
from torch import nn

NAME = os.environ.get("UNSPOKEN_TEST_DEVICE", "cuda")
DEVICE = pretend_device.install() if NAME == pretend_device.NAME else torch.device(NAME)


def placed(method: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A reasoner, or a model, whose weights were moved to the device and rounded."""
    model = method if isinstance(method, nn.Module) else method.model
    model.to(DEVICE, dtype)
    return method


def again(path: str) -> ModuleType:
    """Another file of tests, by its path below ``tests``: its fixtures and its conformance class are used again."""
    spec = importlib.util.spec_from_file_location(
        f"again_{path.replace('/', '_')}", Path(__file__).parent / f"{path}.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
