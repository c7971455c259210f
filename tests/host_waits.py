"""Counts where the host would wait for an accelerator: operations whose outcome the host must see to go on.

It runs on a CPU, where nothing waits. What it cannot see there are copies between host and device.
"""

from __future__ import annotations

import traceback
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
_READ = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_COPIED = {Tensor.tolist, Tensor.numpy, Tensor.cpu}


class HostWaits:
    """While it is entered, ``sites`` counts file, line and operation of every wait."""

    def __init__(self) -> None:
        self.sites: Counter[str] = Counter()
        self._modes = (_Operations(self), _Methods(self))

    def note(self, what: str) -> None:
        """Count a wait."""
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename and __file__ != f.filename]
        ours = [frame for frame in frames if "/unspoken/" in frame.filename] or frames
        self.sites[f"{ours[-1].filename.rpartition('/')[2]}:{ours[-1].lineno} {what}"] += 1

    def __enter__(self) -> HostWaits:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Operations(TorchDispatchMode):
    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        masks = args[1] if function in _INDEXED else ()
        counted = function in _READ and kwargs.get("output_size") is None
        if counted or any(isinstance(mask, Tensor) and mask.dtype == torch.bool for mask in masks):
            self.waits.note(str(function))
        return function(*args, **kwargs)


class _Methods(TorchFunctionMode):
    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _COPIED:
            self.waits.note(function.__name__)
        return function(*args, **(kwargs or {}))
