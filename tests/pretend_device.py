"""A pretend accelerator: a device of its own name whose tensors lie in main memory, for machines without a GPU.

It is as strict as CUDA and Apple's Metal together, so that what runs here runs there:

- tensors of two devices do not mix, but for what CUDA allows: a CPU number (a tensor without axes) in arithmetic, and
  CPU indices into a tensor of the device;
- a tensor of the device is no numpy array until it has been moved;
- a generator draws on its own device alone;
- there is no float64 on the device, as on Metal.

It counts what makes the host wait for the device (`counting`), with the line of our source that waits. Waiting costs
nothing here; on a GPU each wait leaves the queue of kernels empty. Counted are copies between host and device, which
wait in either direction as PyTorch does them without ``non_blocking``, and every operation that must know its result to
go on: the value of an element, what a mask selects, ``unique``, decompositions of `torch.linalg`, and others.

What it does not see: the order of kernels (a copy with ``non_blocking`` is finished at once, so a race goes unnoticed),
memory, precision (numbers are the CPU's, bit for bit, but for fused attention, which is made of its parts here;
autocast changes nothing), and kernels that a real device lacks.

PyTorch keeps one such backend a process and cannot take it back: `install` it in a process of its own.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch._C import DispatchKey
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import unspoken

NAME = "pretend"
OURS = Path(unspoken.__file__).parent
_LIBRARIES = ("transformers", "accelerate", "peft")

aten = torch.ops.aten

# Where CPU indices are welcome, and copies that go from one device to another.
_INDEXING = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
_COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
# Arithmetic takes a CPU number as it takes a Python one; these want it on the device.
_NO_NUMBERS = {
    "addmm",
    "baddbmm",
    "bmm",
    "bucketize",
    "cat",
    "embedding",
    "gather",
    "index_add",
    "index_select",
    "masked_select",
    "mm",
    "mv",
    "nll_loss_forward",
    "scatter",
    "scatter_add",
    "searchsorted",
    "sort",
    "stack",
    "topk",
}
# Operations whose result decides what the host does next.
_WAITS = {
    "_local_scalar_dense": "value",
    "_linalg_det": "linalg",
    "_linalg_eigh": "linalg",
    "_linalg_svd": "linalg",
    "_unique2": "unique",
    "bincount": "bincount",
    "equal": "equal",
    "is_nonzero": "value",
    "linalg_cholesky_ex": "linalg",
    "linalg_inv_ex": "linalg",
    "linalg_lu_factor_ex": "linalg",
    "linalg_qr": "linalg",
    "linalg_solve_triangular": "linalg",
    "masked_select": "mask",
    "multinomial": "multinomial",
    "nonzero": "mask",
    "unique_consecutive": "unique",
    "unique_dim": "unique",
}


@dataclass(eq=False)
class Waits:
    """How often the host waited, and for what.

    Attributes:
        kinds: by what was waited for: "to host", "to device", "value", "mask", "indices", "repeats" or the operation.
        lines: by the line of our source that waits ("reasoning/engine.py:140"), or the library's below it.
        kernels: operations that were given to the device.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    kernels: int = 0

    @property
    def total(self) -> int:
        """Waits of every kind."""
        return self.kinds.total()


_counts: list[Waits] = []


@contextmanager
def counting() -> Iterator[Waits]:
    """Count the waits of everything inside, in whichever thread it runs."""
    waits = Waits()
    _counts.append(waits)
    try:
        yield waits
    finally:
        _counts.remove(waits)


def _wait(kind: str) -> None:
    if _counts:
        line = _line()
        for waits in _counts:
            waits.kinds[kind] += 1
            waits.lines[line] += 1


def _line() -> str:
    """The innermost line of our source on the stack, and the library's line that it called, if it called one."""
    frame, library = sys._getframe(2), ""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if OURS in path.parents and path.name != "placement.py":  # of a move, its caller is asked for
            return f"{path.relative_to(OURS)}:{frame.f_lineno}" + (f" ({library})" if library else "")
        if not library and any(name in path.parts for name in _LIBRARIES):
            first = next(place for place, part in enumerate(path.parts) if part in _LIBRARIES)
            library = f"{'/'.join(path.parts[first:])}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return library or "elsewhere"  # the backward pass, or a test


class PretendTensor(torch.Tensor):
    """A tensor of the device; ``host`` holds its numbers."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor, requires_grad: bool = False) -> PretendTensor:
        if host.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"there is no {host.dtype} on {NAME}, as on Metal; move the tensor to the CPU first")
        made: PretendTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )
        made.host = host
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})

    # Two of these let ``module.to`` exchange a weight in place, so that tied weights stay tied.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["host"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, torch.Tensor], _: Any, _size: Any, _stride: Any) -> PretendTensor:
        return PretendTensor(parts["host"])

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({self.host!r})"

    # What lies below the dispatcher: memory, which numpy and files ask for.
    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    # A list as an index becomes a tensor below the dispatcher; here it does so above.
    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_listed(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_listed(index), value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied: torch.Tensor = PretendTensor(self.host.clone(), self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.host.detach().__reduce_ex__(protocol)


def _listed(index: Any) -> Any:
    """An index with its lists as tensors on the CPU."""
    if isinstance(index, tuple):
        return tuple(_listed(part) for part in index)
    return torch.tensor(index, dtype=None if index else torch.long) if isinstance(index, list) else index


# --- one operation ---------------------------------------------------------------------------------------------------


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Check an operation as the device would, count it, and compute it in main memory."""
    if operation is aten._fused_sdp_choice.default:
        return 0  # the plain formula
    tensors = [value for value in _values((*args, *kwargs.values())) if isinstance(value, torch.Tensor)]
    there = any(isinstance(tensor, PretendTensor) for tensor in tensors)
    asked = kwargs.get("device")
    target = there if asked is None else torch.device(asked).type == NAME
    if operation in _COPIES:
        return _copy(operation, args, kwargs, target)
    _check_devices(operation, args, [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)], there)
    generator = kwargs.get("generator")
    if generator is not None and target and generator.device.type != NAME:
        raise RuntimeError(f"Expected a {NAME!r} device type for generator but found {generator.device.type!r}")
    if there or target:
        for waits in _counts:
            waits.kernels += 1
        if (kind := _waits_for(operation, args, kwargs)) is not None:
            _wait(kind)
    on_host = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory")}
    if asked is not None:
        on_host["device"] = asked if torch.device(asked).type == "meta" else "cpu"
    found = operation(*map(_host, args), **{name: _host(value) for name, value in on_host.items()})
    return _placed(operation, args, kwargs, found) if target else found


def _values(arguments: Any) -> Iterator[Any]:
    """Arguments, and what is in those that are lists."""
    for argument in arguments:
        if isinstance(argument, list | tuple):
            yield from argument
        else:
            yield argument


def _host(value: Any) -> Any:
    """An argument as the CPU takes it."""
    if isinstance(value, PretendTensor):
        return value.host
    return type(value)(map(_host, value)) if isinstance(value, list | tuple) else value


def _name(operation: Any) -> str:
    """The operation's name, the same in place and not."""
    return str(operation.overloadpacket.__name__).removesuffix("_")


def _check_devices(operation: Any, args: Any, strangers: list[torch.Tensor], there: bool) -> None:
    if not there or not strangers:
        return
    indexed = operation in _INDEXING and isinstance(args[0], PretendTensor)
    if indexed:
        # Indices may be anywhere; what is put there must be here, or a number.
        strangers = [value for value in args[2:3] if not isinstance(value, PretendTensor)]
    numbers_welcome = indexed or _name(operation) not in _NO_NUMBERS
    if any(tensor.dim() or not numbers_welcome for tensor in strangers) or (operation in _INDEXING and not indexed):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! "
            f"({operation} at {_line()})"
        )


def _waits_for(operation: Any, args: Any, kwargs: dict[str, Any]) -> str | None:
    """What the host waits for, if it does."""
    if operation in _INDEXING:
        indices = [index for index in args[1] if index is not None]
        # A single number under one mask needs no places: it is filled in.
        filled = len(args) > 2 and len(indices) == 1 and args[2].dim() == 0
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return None if filled else "mask"
        return None if all(isinstance(index, PretendTensor) for index in indices) else "indices"
    name = _name(operation)
    if name == "repeat_interleave":
        return "repeats" if kwargs.get("output_size") is None else None
    return _WAITS.get(name)


def _copy(operation: Any, args: Any, kwargs: dict[str, Any], target: bool) -> Any:
    """A copy within the device, onto it, or off it."""
    if operation is aten._to_copy.default:
        source = args[0]
        on_host = {name: "cpu" if name == "device" and value is not None else value for name, value in kwargs.items()}
        copied = operation(_host(source), **{**on_host, "non_blocking": False})
        if copied.data_ptr() == _host(source).data_ptr():
            copied = copied.clone()
        _count_copy(isinstance(source, PretendTensor), target, kwargs.get("non_blocking", False))
        return PretendTensor(copied) if target else copied
    # ``_copy_from`` is what the dispatcher calls on the source's side: from args[0] to args[1].
    into, source = args[:2] if operation is aten.copy_.default else (args[1], args[0])
    blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    _host(into).copy_(_host(source))
    _count_copy(isinstance(source, PretendTensor), isinstance(into, PretendTensor), not blocking)
    return into


def _count_copy(here: bool, there: bool, non_blocking: bool) -> None:
    for waits in _counts:
        waits.kernels += 1
    if here != there and not non_blocking:
        _wait("to device" if there else "to host")


def _placed(operation: Any, args: Any, kwargs: dict[str, Any], found: Any) -> Any:
    """Results on the device; what was changed in place is the very tensor that was given."""
    returns = operation._schema.returns
    if not isinstance(found, tuple | list):
        return _one(operation, args, kwargs, returns[0] if returns else None, found)
    if len(returns) == len(found) and isinstance(found, tuple):
        return tuple(_one(operation, args, kwargs, how, part) for how, part in zip(returns, found, strict=True))
    return type(found)(_one(operation, args, kwargs, None, part) for part in found)


def _one(operation: Any, args: Any, kwargs: dict[str, Any], how: Any, found: Any) -> Any:
    if not isinstance(found, torch.Tensor):
        return found
    if how is None or how.alias_info is None or not how.alias_info.is_write:
        return PretendTensor(found)
    for place, argument in enumerate(operation._schema.arguments):
        alias = argument.alias_info
        if alias is not None and alias.is_write and alias.before_set == how.alias_info.before_set:
            given = args[place] if place < len(args) else kwargs[argument.name]
            if given.shape != found.shape or given.stride() != found.stride():
                # As ``squeeze_`` does: what the tensor says of itself follows what its host says.
                shape = (found.shape, found.stride(), found.storage_offset())
                aten.as_strided_.default._op_dk(DispatchKey.CompositeExplicitAutogradNonFunctional, given, *shape)
            return given
    raise NotImplementedError(f"{operation} names no argument that it changes")


# --- the backend -----------------------------------------------------------------------------------------------------


class _Backend:
    """``torch.pretend``, as far as PyTorch and the libraries ask for it."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, _: Any) -> None:
        pass

    def synchronize(self, _: Any = None) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False

    # Random numbers are the CPU's.
    def manual_seed_all(self, _: int) -> None:
        pass

    def get_rng_state(self, _: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, _: Any = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


_library: Any = None
_new: Any = None


def _made_by(name: str) -> Any:
    """A maker of new tensors, by its name and overload."""
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(aten, packet), overload or "default")
    return lambda *args, **kwargs: _run(operation, args, kwargs)


def _moving(make: Any) -> Any:
    """``torch.tensor`` and ``torch.as_tensor`` move their data below the dispatcher; here it is done above."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != NAME:
            return make(data, *args, device=device, **kwargs)
        return data if isinstance(data, PretendTensor) else make(data, *args, **kwargs).to(device)

    return made


def install() -> torch.device:
    """Make the device known to this process, once and for all, and return it."""
    global _library, _new  # noqa: PLW0603
    if _library is None:
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
        # What has no tensor among its arguments yet: new tensors on the device.
        _library = torch.library.Library("_", "IMPL")
        _library.fallback(lambda operation, *args, **kwargs: _run(operation, args, kwargs), "PrivateUse1")
        # These would be made empty and then stretched, which our tensors cannot.
        _new = torch.library.Library("aten", "IMPL")
        for name in ("arange", "arange.start", "arange.start_step", "eye", "eye.m"):
            _new.impl(name, _made_by(name), "PrivateUse1")
        torch.tensor, torch.as_tensor = _moving(torch.tensor), _moving(torch.as_tensor)
        torch.accelerator.synchronize = lambda *_: _wait("synchronize")
        torch.Tensor.pin_memory = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
        # A file that was written on the device is read into main memory; whoever loads it moves it.
        torch.serialization.register_package(
            0, lambda _: None, lambda storage, place: storage if place.startswith(NAME) else None
        )
    return torch.device(NAME, 0)
