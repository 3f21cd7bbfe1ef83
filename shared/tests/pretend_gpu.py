"""A pretended GPU for tests where there is none: whatever says it is on one computes on the CPU, and may not mix with
what is there.

Within `pretend_gpu()` tensors go to the device that it yields, and back, as to and from a GPU. An operation on tensors
of both devices fails as it does there, and so does reading a pretended tensor's memory. It says nothing of speed, nor
of what kernels of a real GPU compute.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("meta")  # which torch needs no driver for
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}
MOVING = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class There(Tensor):
    """A tensor on the pretended GPU; `own` holds its numbers."""

    own: Tensor

    @staticmethod
    def __new__(cls, own: Tensor) -> "There":
        made = Tensor._make_wrapper_subclass(
            cls, own.size(), strides=own.stride(), storage_offset=own.storage_offset(), dtype=own.dtype, device=GPU
        )
        made.own = own
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.new_tensor:  # torch makes it where the numbers would be lost
            return args[0].own.new_tensor(*args[1:], **(kwargs or {})).to(GPU)
        if func is Tensor.__getitem__ and isinstance(args[1], list):
            args = (args[0], _make(args[1]))
        with torch._C.DisableTorchFunctionSubclass():  # what comes back to the CPU is no longer of this class
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Pretending(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _each(of: Callable[[Tensor], Any], x: Any) -> Any:
    """Arguments or results of an operation with `of` each tensor in the place of the tensor."""
    if isinstance(x, Tensor):
        return of(x)
    return type(x)(_each(of, one) for one in x) if isinstance(x, (list, tuple)) else x


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors: list[Tensor] = []
    _each(tensors.append, [*args, *kwargs.values()])
    there = any(isinstance(x, There) for x in tensors)
    assert all(isinstance(x, There) or x.device.type == "cpu" for x in tensors), f"{func}: numbers were lost before"
    if there and func not in MOVING:
        mixed = tensors[:1] if func in INDEXING else tensors
        here = [tuple(x.shape) for x in mixed if not isinstance(x, There) and x.ndim]
        if here or not any(isinstance(x, There) for x in mixed):
            raise RuntimeError(f"{func}: tensors are on the CPU and on the GPU, {here}")
    to = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    if func is torch.ops.aten.copy_.default:
        there = isinstance(args[0], There)
    elif to is not None:
        there = to.type == GPU.type
        kwargs = kwargs | {"device": torch.device("cpu")}

    def own(x: Tensor) -> Tensor:
        return x.own if isinstance(x, There) else x

    given = {id(own(x)): x for x in tensors}

    def placed(x: Tensor) -> Tensor:
        return given[id(x)] if id(x) in given else There(x) if there else x  # what was changed in place stays itself

    return _each(placed, func(*_each(own, args), **{name: _each(own, x) for name, x in kwargs.items()}))


def _tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
    made: Tensor = _make(data, **options)
    return made if device is None else made.to(device)


_make = torch.tensor


@contextmanager
def pretend_gpu() -> Iterator[torch.device]:
    """Within it the device that is yielded is there."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with mock.patch("torch.tensor", _tensor), _Pretending():
            yield GPU
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
