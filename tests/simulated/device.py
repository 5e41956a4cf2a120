"""A simulated accelerator: CPU memory that pretends to be a device and is as strict as CUDA about it.

``with simulated() as device:`` makes ``torch.device("simulated")`` usable. A tensor on it holds a CPU tensor, so it has
the CPU's values, while PyTorch sees another device. What CUDA refuses is refused (:class:`WrongDevice`), and what makes
the host wait for a CUDA device is noted with the line of code that did it:

* ``device.reads``: a result is fetched: ``item``, ``tolist``, ``bool``, ``cpu``, and whatever has a shape that depends
  on values (``nonzero``, a mask as an index).
* ``device.uploads``: a blocking copy from host memory, for which PyTorch waits as well: ``torch.tensor(..., device=)``,
  ``to(device)`` without ``non_blocking``, a list or a CPU tensor as an index.

As on CUDA, operations may mix a device with CPU numbers of no dimensions where they work element by element, and with
CPU tensors as indices. Kernels of CUDA, its memory, its streams and its rounding are not simulated.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "simulated"
THIS = Path(__file__).resolve()
ROOT = THIS.parents[2]
aten = torch.ops.aten

NEEDS_VALUES = {
    aten.nonzero, aten.masked_select, aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive,
    aten.bincount, aten.equal, aten.allclose, aten._local_scalar_dense, aten.is_nonzero,
}  # fmt: skip
"""Operations after which the host waits: it needs a value, or a shape that only the values tell."""

INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
"""Operations that take CPU tensors as indices of a tensor on the device."""

TAKES_NUMBERS = {aten.masked_fill, aten.masked_fill_, aten.fill_, aten.fill, aten.where, *INDEXED}
"""Operations beside the element-wise ones that take a CPU number of no dimensions."""


class WrongDevice(RuntimeError):
    """An operation that CUDA would refuse."""


@dataclass
class Device:
    """What happened on the device.

    Attributes:
        reads: "operation at file:line" of each wait for a result.
        uploads: likewise of each blocking copy to the device.
        refused: what a backward pass that still runs did wrong.
    """

    reads: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def forget(self) -> None:
        """Start counting anew."""
        self.reads.clear()
        self.uploads.clear()
        self.refused.clear()


class SimulatedTensor(Tensor):
    """A tensor on the device; ``held`` is the CPU tensor with its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> SimulatedTensor:
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, held: Tensor):
        self.held = held

    def __repr__(self, **_: Any) -> str:  # without the values: printing them would be a read
        return f"SimulatedTensor(shape={list(self.shape)}, dtype={self.dtype})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise WrongDevice(f"{func} on a tensor of the simulated device, outside of `with simulated()`")

    def tolist(self) -> Any:
        """Fetch the values, in one wait."""
        return self.cpu().tolist()

    def untyped_storage(self) -> Any:
        """Where the values are: tells which tensors share memory."""
        return self.held.untyped_storage()

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as on CUDA."""
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy; use Tensor.cpu() first")
        return self.detach().cpu().numpy()

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()


def _is_on_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _where() -> str:
    """The innermost line of this repository that is running, as "file:line"."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts and path != THIS:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside of the repository"


class _Operations(TorchDispatchMode):
    """Runs every operation on what the tensors hold, if CUDA would run it."""

    def __init__(self, device: Device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = list(_tensors((*args, *kwargs.values())))
        here = [tensor for tensor in tensors if isinstance(tensor, SimulatedTensor)]
        there = [tensor for tensor in tensors if not isinstance(tensor, SimulatedTensor)]
        if "device" in kwargs and kwargs["device"] is not None:
            to_device = _is_on_device(kwargs["device"])
        else:
            to_device = bool(here)
        if (here or to_device) and _is_composite(func):  # in inference mode they come here as they are
            with self:
                return func.decompose(*args, **kwargs)
        packet = func.overloadpacket
        if packet is aten._to_copy:
            self._copied(func, to_device, bool(here), kwargs.get("non_blocking", False), args[0])
        elif packet is aten.copy_:
            to_device = isinstance(args[0], SimulatedTensor)
            blocking = not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking", False)
            self._copied(func, to_device, isinstance(args[1], SimulatedTensor), not blocking, args[1])
        elif here:
            self._check(func, args, there)
            if packet in NEEDS_VALUES or (packet is aten.repeat_interleave and kwargs.get("output_size") is None):
                self.device.reads.append(f"{func} at {_where()}")
            if packet in INDEXED:
                self._indexed(func, args)
        if packet is aten._fused_sdp_choice and here:
            return 0  # the plain route, which is made of operations that this device has
        if not here and not to_device:
            return func(*args, **kwargs)
        held_args, held_kwargs = _map(_held, args), {name: _map(_held, value) for name, value in kwargs.items()}
        if _is_on_device(held_kwargs.get("device")):
            held_kwargs["device"] = torch.device("cpu")
        if held_kwargs.get("pin_memory"):
            held_kwargs["pin_memory"] = False
        result = func(*held_args, **held_kwargs)
        if packet is aten.copy_:
            return args[0]
        if not to_device:
            return result
        # A view of a tensor from outside of inference mode shares its count of versions, so it is not of that mode.
        views = here and _returns_views(func) and not here[0].is_inference()
        with torch.inference_mode(torch.is_inference_mode_enabled() and not views):
            wrapped = _map(lambda leaf: SimulatedTensor(leaf) if isinstance(leaf, Tensor) else leaf, result)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if here else wrapped

    def _copied(self, func: Any, to_device: bool, from_device: bool, non_blocking: bool, source: Tensor) -> None:
        """Note a copy between host and device. A fetch waits in any case: its target is not pinned."""
        if from_device and not to_device:
            self.device.reads.append(f"{func} at {_where()}")
        elif to_device and not from_device and not non_blocking and source.numel():
            self.device.uploads.append(f"{func} at {_where()}")

    def _check(self, func: Any, args: Any, there: list[Tensor]) -> None:
        """Refuse CPU tensors where CUDA does."""
        packet = func.overloadpacket
        allowed: list[Tensor] = []
        if packet in INDEXED:
            allowed += [index for index in args[1] if isinstance(index, Tensor)]
        if torch.Tag.pointwise in func.tags or packet in TAKES_NUMBERS:
            allowed += [tensor for tensor in there if tensor.dim() == 0]
        written = [
            arg for arg, fact in zip(args, func._schema.arguments) if fact.alias_info and fact.alias_info.is_write
        ]
        strange = [t for t in there if not any(t is each for each in allowed) or any(t is each for each in written)]
        if strange:
            what = ", ".join(f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}" for tensor in strange)
            message = f"{func} at {_where()} mixes tensors of the device with {what}"
            if torch._C._current_graph_task_id() == -1:
                raise WrongDevice(message)
            self.device.refused.append(message)  # an error inside a backward pass would end the process

    def _indexed(self, func: Any, args: Any) -> None:
        """Note what indices cost: CPU ones are uploaded; masks become places, and the host must know how many."""
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
        if len(args) > 2 and args[2].dim() == 0 and not isinstance(args[2], SimulatedTensor) and len(masks) == 1:
            if len(indices) == 1 and isinstance(masks[0], SimulatedTensor):
                return  # CUDA fills under the mask
        note = f"{func} at {_where()}"
        self.device.reads += [note for mask in masks if isinstance(mask, SimulatedTensor)]
        self.device.uploads += [note for i in indices if not isinstance(i, SimulatedTensor) and i.numel()]


@functools.cache
def _written_places(func: Any) -> list[int]:
    """Which arguments an operation writes to."""
    facts = [argument.alias_info for argument in func._schema.arguments]
    return [place for place, fact in enumerate(facts) if fact is not None and fact.is_write]


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether an operation is made of others for every device."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@functools.cache
def _returns_views(func: Any) -> bool:
    """Whether an operation gives views of what it is given."""
    facts = [result.alias_info for result in func._schema.returns]
    return any(fact is not None and not fact.is_write for fact in facts)


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """The function applied to what lists and tuples hold; other containers are no arguments of operations."""
    if isinstance(value, list | tuple):
        return type(value)([_map(function, item) for item in value])
    return function(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors among arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, SimulatedTensor) else leaf


def _as_index(index: Any) -> Any:
    """A list as the CPU tensor that PyTorch would make of it and copy."""
    if not isinstance(index, list):
        return index
    made = torch.tensor(index)
    return made if made.numel() else made.long()


class _Functions(TorchFunctionMode):
    """Makes what PyTorch makes past all modes: tensors of Python's numbers and of NumPy's."""

    MAKERS = (torch.tensor, torch.as_tensor, torch.asarray)

    def __init__(self, device: Device):
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.MAKERS and isinstance(args[0], SimulatedTensor):
            device, dtype = kwargs.get("device", args[0].device), kwargs.get("dtype", args[0].dtype)
            return args[0].detach().to(device, dtype, copy=func is torch.tensor)
        if func in self.MAKERS and _is_on_device(kwargs.get("device")):
            made = func(*args, **{**kwargs, "device": "cpu"}).detach()
            return made.to(kwargs["device"]).requires_grad_(kwargs.get("requires_grad", False))
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], SimulatedTensor):
            index = tuple(map(_as_index, args[1])) if isinstance(args[1], tuple) else _as_index(args[1])
            values = (torch.tensor(v, dtype=args[0].dtype) if isinstance(v, int | float) else v for v in args[2:])
            args = (args[0], index, *values)  # CUDA as well is given numbers as they are
        result = func(*args, **kwargs)
        if self.device.refused:
            raise WrongDevice("\n".join(self.device.refused))
        return result


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    """Tells PyTorch whether the device is there: only inside :func:`simulated`."""

    present = False

    def is_available(self) -> bool:
        return _Hooks.present

    def has_primary_context(self, index: int) -> bool:
        return _Hooks.present

    def is_built(self) -> bool:
        return True


class _Module(_DummyBackendModule):
    """``torch.simulated``."""

    def is_available(self) -> bool:
        return _Hooks.present

    def device_count(self) -> int:
        return int(_Hooks.present)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()  # the device draws its random numbers from the CPU's generator

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


@functools.cache
def _register() -> None:
    """Give PyTorch's spare backend its name, once per process."""
    # The first backward pass of a process starts a thread per device that is known by then, and a process with such
    # threads cannot be forked. Without them the pass runs where it was called (see `simulated`).
    torch.zeros((), requires_grad=True).backward()
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module(), hook=_Hooks())


@contextmanager
def simulated() -> Iterator[Device]:
    """Within, the simulated device exists; gives its notes."""
    _register()
    device = Device()
    _Hooks.present = True
    try:
        with torch.autograd.set_multithreading_enabled(False), _Operations(device), _Functions(device):
            yield device
    finally:
        _Hooks.present = False
