"""A GPU for tests on machines without one: tensors say that they are on `cuda:0` and keep their numbers on the CPU.

torch's own `FakeTensorMode` has no numbers, and in a build of torch for the CPU no gradients of CUDA tensors either.
Here every operation runs, on the CPU, so that results can be compared, and one that gets tensors of both devices fails
as it does on a GPU. To C++ the tensors are on the device `meta`, for which autograd needs no driver.

One thing is stricter than on a GPU, where it works but makes it wait: a tensor of indices on the CPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
_META = torch.device("meta")


class FakeGPUTensor(torch.Tensor):
    """A tensor of the fake GPU; `values` are its numbers."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> FakeGPUTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=_META,
        )
        made.values = values
        return made

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"FakeGPUTensor({self.values!r})"

    def numpy(self, **_: object) -> np.ndarray:
        """Refused, as by CUDA."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host first")

    def tolist(self) -> Any:
        """torch's own knows no subclasses."""
        return self.cpu().tolist()

    def __array__(self, *_: object) -> np.ndarray:
        return self.numpy()

    def __reduce_ex__(self, _: object) -> Any:
        raise TypeError("a tensor of the GPU is about to be written to a file: move it to the CPU first")

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(operation, args, kwargs or {})


WAITS: list[str] = []
"""Operations since the fake GPU began that a real one would have to be waited for: their result is on the CPU, or has
a size that the CPU must know."""
_WAITED_FOR = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "equal", "is_nonzero")
_MOVES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


def _run(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation on the CPU; its result is on the GPU if its arguments are, or if it is asked to be."""
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    on_gpu = [isinstance(tensor, FakeGPUTensor) for tensor in tensors]
    device = kwargs.get("device")
    if any(on_gpu) and operation not in _MOVES:
        # Element by element, a number may come from the CPU.
        scalars = torch.Tag.pointwise in operation.tags
        strangers = [t for t, there in zip(tensors, on_gpu, strict=True) if not (there or (scalars and t.dim() == 0))]
        if strangers:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but `{operation}` got tensors on cuda:0 and one of "
                f"shape {list(strangers[0].shape)} on cpu"
            )
    to_gpu = any(on_gpu) if device is None else torch.device(device).type != "cpu"
    name = operation.__name__.partition(".")[0]
    # What a mask selects has to be counted first.
    by_mask = name == "index" and any(tensor.dtype == torch.bool for tensor in tensors[1:])
    if any(on_gpu) and (not to_gpu or name in _WAITED_FOR or by_mask):
        WAITS.append(str(operation))
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(lambda x: x.values if isinstance(x, FakeGPUTensor) else x, (args, kwargs))
    result = operation(*args, **kwargs)
    if not to_gpu:
        return result
    # What was written in place is returned as it came.
    before = {id(t.values): t for t in tensors if isinstance(t, FakeGPUTensor)}
    return tree_map(
        lambda x: before.get(id(x)) if id(x) in before else FakeGPUTensor(x) if isinstance(x, Tensor) else x, result
    )


class _Operations(TorchDispatchMode):
    """Sends operations that make tensors to the fake GPU, where they are asked for there."""

    def __torch_dispatch__(
        self, operation: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _run(operation, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Has functions of Python that are asked for the device `cuda` say `meta` to C++."""

    def __torch_function__(
        self, function: Callable[..., Any], types: object, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor):
            # They read numbers in C++, past all modes: a tensor made on `meta` would have none.
            device = kwargs.pop("device", None)
            made = function(*args, **kwargs)
            return made if device is None else made.to(_named_for_cpp(device))
        if function is not torch.device:
            args, kwargs = tree_map(_named_for_cpp, (args, kwargs))
        return function(*args, **kwargs)


def _named_for_cpp(value: object) -> object:
    if isinstance(value, torch.device):
        return _META if value.type == "cuda" else value
    return _META if isinstance(value, str) and re.fullmatch(r"cuda(:\d+)?", value) else value


_load_script = torch.jit.load


def _load_script_there(path: object, map_location: object = None) -> Any:
    """`torch.jit.load`, which reads files in C++: what lies on the CPU is replaced afterwards."""
    script = _load_script(path, map_location="cpu")
    if torch.device(map_location).type == "cuda":  # type: ignore[arg-type]
        for module in script.modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                module._c.setattr(name, tensor.to(CUDA))
    return script


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Within this context `cuda` is the fake GPU."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch("torch.cuda.is_available", return_value=True))
        stack.enter_context(mock.patch("torch.cuda.device_count", return_value=1))
        stack.enter_context(mock.patch("torch.jit.load", _load_script_there))
        stack.enter_context(_Functions())
        stack.enter_context(_Operations())
        WAITS.clear()
        yield
