"""Moving tensors between devices: the one place that does it.

A model stays on the device on which it was loaded. Data are made on the CPU and moved to the model just before its
stack reads them; results are moved back to the device of the data. So chains, answers and readings are on the CPU, and
code that makes or measures them names no device.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch

T = TypeVar("T")

CPU = torch.device("cpu")


def moved(value: T, device: torch.device) -> T:
    """A value with every tensor in it on a device, and everything else as it is.

    Args:
        value: a tensor, or a dataclass, dict, list or tuple of such, however deep.
        device: where the tensors go. A tensor that is there already is not copied.
    """
    result: Any = value
    if isinstance(value, torch.Tensor):
        result = value.to(device)
    elif is_dataclass(value) and not isinstance(value, type):
        result = replace(value, **{field.name: moved(getattr(value, field.name), device) for field in fields(value)})
    elif isinstance(value, dict):
        result = {name: moved(element, device) for name, element in value.items()}
    elif isinstance(value, list | tuple):
        result = type(value)(moved(element, device) for element in value)
    return result


def synchronize() -> None:
    """Wait for the accelerator, if there is one, before a clock is read."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
