"""A GPU for machines without one: tensors that say they are on ``cuda:0`` and compute on the CPU.

An operation on tensors of both devices fails as CUDA lets it fail, and so does reading without ``.cpu()``;
everything else has its right numbers, so a whole run can be had "on CUDA" and compared with one on the CPU.
What it cannot show: kernels, their rounding, their memory, streams.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
EITHER = {aten.copy_, aten._to_copy, aten.to}
"""Operations that take tensors of two devices."""
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
JOINED = {aten.cat, aten.stack}
"""Operations that take no number of the CPU beside tensors of a GPU."""


class OnGpu(torch.Tensor):
    """A tensor that is on the GPU, as far as Python can see; C++ takes it for one of the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnGpu":
        strides = held.stride() if held.layout is torch.strided else None
        new = torch.Tensor._make_wrapper_subclass(cls, held.shape, strides=strides, dtype=held.dtype)
        new.held = held.detach()
        return new

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, new: torch.Tensor) -> None:
        torch.Tensor.data.__set__(self, new)
        self.held = new.held

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.held})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnGpu":
        new = OnGpu(self.held.clone()).requires_grad_(self.requires_grad)
        new._is_param = getattr(self, "_is_param", False)
        return memo.setdefault(id(self), new)

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(function, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class Generator(torch.Generator):
    """One of either device."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    place: torch.device
    device = property(lambda self: self.place)


class Move(torch.autograd.Function):
    """A copy on the other device; its gradient comes back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.held.clone() if isinstance(x, OnGpu) else OnGpu(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return Move.forward(ctx, grad)


def _call(function: Any, args: Any, kwargs: Any) -> Any:
    """What Python calls and C++ would answer by the device that it sees."""
    generator, first = kwargs.get("generator"), args[0] if args else None
    if generator is not None:
        place = (
            first.device if isinstance(first, torch.Tensor) else torch.device(kwargs.get("device") or "cpu")
        )
        if place.type != generator.device.type:
            raise RuntimeError(f"Expected a {place} generator but found one of {generator.device}")
    with torch._C.DisableTorchFunctionSubclass():
        if isinstance(first, OnGpu):
            if function in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
            if function is torch.Tensor.new_tensor:
                return _moved(torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}), CUDA)
        if function is torch.Tensor.cpu:
            return _moved(args[0], torch.device("cpu"))
        if function is torch.Tensor.cuda:
            return _moved(args[0], CUDA)
        if function is torch.Tensor.to:
            return _to(*args, **kwargs)
        made = function in (torch.tensor, torch.as_tensor) or isinstance(first, OnGpu)
        if made and kwargs.get("device") is not None:
            return _moved(function(*args, **{**kwargs, "device": None}), torch.device(kwargs["device"]))
        return function(*args, **kwargs)


def _moved(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    if "cuda" in (x.device.type, device.type) and x.device.type != device.type:
        return Move.apply(x)
    return x.to(device)


def _to(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for arg in args:
        if isinstance(arg, torch.Tensor):
            device, dtype = arg.device, arg.dtype
        elif isinstance(arg, torch.dtype):
            dtype = arg
        elif isinstance(arg, str | torch.device):
            device = arg
    x = x if device is None else _moved(x, torch.device(device))
    return x if dtype in (None, x.dtype) else torch.Tensor.to(x, dtype)


def _run(function: Any, args: Any, kwargs: Any) -> Any:
    """The operation on the CPU; its results are on the GPU if its tensors are, or if it says so."""
    tensors: list[torch.Tensor] = []
    plain_args, plain_kwargs = _each((args, kwargs), lambda x: tensors.append(x) or getattr(x, "held", x))
    kind, device = function.overloadpacket, kwargs.get("device")
    gpu = any(isinstance(x, OnGpu) for x in tensors)
    if kind in EITHER:
        gpu = isinstance(args[0], OnGpu)
    elif gpu:
        _check(function, kind, args, tensors)
    if device is not None and torch.device(device).type == "cuda":
        gpu, plain_kwargs["device"] = True, torch.device("cpu")
    owners = {id(x.held): x for x in tensors if isinstance(x, OnGpu)}
    found = function(*plain_args, **plain_kwargs)
    if not gpu:
        return found
    return _each(found, lambda x: owners[id(x)] if id(x) in owners else OnGpu(x))


def _each(found: Any, change: Any) -> Any:
    """The same with ``change`` of each tensor in it."""
    if isinstance(found, torch.Tensor):
        return change(found)
    if isinstance(found, list | tuple):
        return type(found)([_each(one, change) for one in found])
    if isinstance(found, dict):
        return {name: _each(one, change) for name, one in found.items()}
    return found


def _check(function: Any, kind: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    if kind in INDEXED:  # indices may be on the CPU
        tensors = [args[0], *(args[2:3] if len(args) > 2 else ())]
    on_cpu = [x for x in tensors if not isinstance(x, OnGpu)]
    into = function._schema.is_mutable and not isinstance(tensors[0], OnGpu)
    if into or any(x.dim() > 0 or kind in JOINED for x in on_cpu):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({function})"
        )


class Calls(TorchFunctionMode):
    """Calls with tensors of the CPU alone are looked at, too, such as ``x.to("cuda")``."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(function, args, kwargs or {})


class Operations(TorchDispatchMode):
    """So are operations without tensors, such as ``torch.zeros(2, device="cuda")``."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


@contextmanager
def a_gpu() -> Iterator[None]:
    """Let there be a GPU for the length of the block: the machine's own where it has one."""
    if torch.cuda.is_available():
        yield
        return
    of_the_cpu = torch.random.get_rng_state
    there = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "mem_get_info": lambda device=None: (1 << 30, 1 << 30),
        "get_device_capability": lambda device=None: (7, 5),
        "get_device_name": lambda device=None: "a GPU for tests",
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_rng_state": lambda device=None: of_the_cpu(),
        "set_rng_state": lambda state, device=None: None,
        "device": lambda device: nullcontext(),
    }
    accelerator = {"current_accelerator": lambda check_available=False: CUDA, "device_count": lambda: 1}
    overwrite = "get_overwrite_module_params_on_conversion"  # not their data: that is another kind of tensor
    with (
        patch.object(torch.__future__, overwrite, lambda: True),
        patch.object(torch, "Generator", Generator),
        patch.multiple(torch.cuda, **there),
        patch.multiple(torch.accelerator, **accelerator),
        Operations(),
        Calls(),
    ):
        yield
