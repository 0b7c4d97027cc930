"""Which CUDA device is the current one, and what the devices are."""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import random
from ..backend import cupy as backend
from ..backend.device import device as device_class


def index_of(d: Any = None) -> int:
    """The number of a CUDA device given as a number, a name, a device or None (the current one).

    Raises DeviceError if it is not there, ValueError if it is no CUDA device.
    """
    named = device_class("cuda") if d is None else device_class(d)
    if named.type != "cuda":
        raise ValueError(f"Expected a cuda device, but got: {named}")
    return backend.require(named).index or 0


def current_device() -> int:
    """Number of the current CUDA device. Raises DeviceError if there is none."""
    return index_of()


def set_device(device: Any) -> None:
    """Make a CUDA device the current one of this thread; negative numbers change nothing."""
    if isinstance(device, int) and device < 0:
        return
    index = index_of(device)
    backend.cupy().cuda.Device(index).use()


class device:
    """A context in which a CUDA device is the current one: ``with gg.cuda.device(1): ...``.

    The current device is the one meant by ``device="cuda"``. None and negative numbers change
    nothing, as in torch.
    """

    def __init__(self, device: Any):
        stay = device is None or (isinstance(device, int) and device < 0)
        self.idx = -1 if stay else index_of(device)
        self._before: list[int] = []

    def __enter__(self) -> device:
        if self.idx >= 0:
            self._before.append(backend.current_device())
            set_device(self.idx)
        return self

    def __exit__(self, *exc) -> None:
        if self.idx >= 0:
            set_device(self._before.pop())


class device_of(device):
    """A context in which the device of a tensor is the current one; nothing for CPU tensors."""

    def __init__(self, obj: Any):
        super().__init__(obj.device.index if obj.is_cuda else None)


class DeviceProperties(NamedTuple):
    """What a device is."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int
    warp_size: int
    max_threads_per_multi_processor: int
    shared_memory_per_block: int
    L2_cache_size: int


def get_device_properties(device: Any = None) -> DeviceProperties:
    """Name, compute capability (``major``, ``minor``), memory in bytes and more of a device."""
    index = index_of(device)
    found = backend.cupy().cuda.runtime.getDeviceProperties(index)
    return DeviceProperties(
        found["name"].decode(),
        found["major"],
        found["minor"],
        found["totalGlobalMem"],
        found["multiProcessorCount"],
        found["warpSize"],
        found["maxThreadsPerMultiProcessor"],
        found["sharedMemPerBlock"],
        found["l2CacheSize"],
    )


def get_device_name(device: Any = None) -> str:
    """The name of a device."""
    return get_device_properties(device).name


def get_device_capability(device: Any = None) -> tuple[int, int]:
    """Compute capability, e.g. ``(9, 0)``."""
    properties = get_device_properties(device)
    return properties.major, properties.minor


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Whether the current device computes with bfloat16: natively from compute capability 8.0 on,
    in float32 with rounding on older ones."""
    if not backend.is_available():
        return False
    return including_emulation or get_device_capability()[0] >= 8


def manual_seed(seed: int) -> None:
    """Seed the default generator. There is one for all devices, which draw the same numbers."""
    random.manual_seed(seed)


manual_seed_all = manual_seed
