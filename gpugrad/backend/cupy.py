"""The CUDA backend: CuPy arrays. CuPy is imported when a CUDA device is first asked for."""

from __future__ import annotations

import sys
from contextlib import nullcontext

from ..errors import DeviceError
from . import device_errors
from .device import device

name = "cupy"

_module = None  # CuPy, once it has been found good
_ndarray = None  # its array class
_get_device = None
_current_stream = None
_devices: list[device] = []  # the devices there are, by number

_HERE = nullcontext()


def cupy():
    """The cupy module, or a DeviceError with the remedy."""
    return _module or _begin()


def _begin():
    """Load CuPy, have its allocations noted and look which devices there are."""
    global _module, _ndarray, _get_device, _current_stream
    from . import cuda_memory, cuda_setup  # not before CUDA is asked for

    module = cuda_setup.load()
    count = _count(module)
    if count:
        cuda_memory.install(module)
        _get_device = module.cuda.runtime.getDevice
        _current_stream = module.cuda.get_current_stream
        _devices[:] = [device("cuda", n) for n in range(count)]
    _ndarray, _module = module.ndarray, module
    for note in _interested:
        note(_ndarray)
    if count > 1:
        while _waiting:
            _waiting.pop()()
    return module


_waiting: list = []
_interested: list = []


def when_loaded(note) -> None:
    """Call ``note(class of CuPy's arrays)`` when CuPy is loaded, now if it is already."""
    _interested.append(note)
    if _module is not None:
        note(_ndarray)


def when_several(prepare) -> None:
    """Call ``prepare()`` when CUDA is first used on a machine with several devices: on others
    nobody needs to ask which one is the current one."""
    _waiting.append(prepare)


def _count(module) -> int:
    try:
        return module.cuda.runtime.getDeviceCount()
    except Exception:  # no driver, or one too old: none is usable
        return 0


def forget() -> None:
    """Look for CuPy anew when it is next asked for (tests put another in its place)."""
    global _module
    _module = None
    _devices.clear()


def is_array(value) -> bool:
    """Whether the value is a CuPy array, also before gpugrad has asked for CuPy."""
    if _module is not None:
        return isinstance(value, _ndarray)
    module = sys.modules.get("cupy")
    return module is not None and isinstance(value, module.ndarray)


# ------------------------------------------------------------------------------------------------
# devices


def is_available() -> bool:
    """Whether CuPy is installed and sees at least one CUDA device. Never raises."""
    return device_count() > 0


def device_count() -> int:
    """Number of CUDA devices CuPy sees; 0 without a CuPy that can be used or without a driver."""
    if _module is None:
        try:
            _begin()
        except DeviceError:
            return 0
    return len(_devices)


def require(d: device) -> device:
    """The device with its number filled in; an error with the remedy if it cannot be used."""
    module = _module or _begin()
    if not _devices:
        from .cuda_setup import no_device

        raise no_device(module, d)
    index = _get_device() if d.index is None else d.index
    if not 0 <= index < len(_devices):
        count = len(_devices)
        there = "there is only cuda:0" if count == 1 else f"there are only cuda:0 to {count - 1}"
        raise DeviceError(f"device cuda:{index} was asked for, but {there}")
    return _devices[index]


def current_device() -> int:
    """Number of the current CUDA device."""
    return _get_device() if _devices else cupy().cuda.runtime.getDevice()


def current_stream():
    """CuPy's current stream of the current device in this thread."""
    return _current_stream()


def device_of(array) -> device:
    index = array.data.device_id
    return _devices[index] if _devices else require(device("cuda", index))


def at(index: int):
    """A context in which a CUDA device is the current one."""
    return _HERE if index == _get_device() else _module.cuda.Device(index)


def on_device_of(array):
    """A context in which the device of a CUDA array is the current one."""
    index = array.data.device_id
    return _HERE if index == current_device() else _module.cuda.Device(index)


def on_device(d: device):
    """A context in which a device is the current one; DeviceError if it is not there."""
    return at(require(d).index)


def in_use() -> bool:
    """Whether CUDA has been asked for in this process, and there is a device."""
    return _get_device is not None


def several() -> bool:
    """Whether there is more than one device, so that arrays may be on another than the current
    one."""
    return len(_devices) > 1


def synchronize(d=None) -> None:
    """Wait until all work queued on a CUDA device is done; errors that its kernels found are raised
    here."""
    index = require(device("cuda") if d is None else device(d)).index
    cupy().cuda.Device(index).synchronize()
    device_errors.check()


def unsupported(dtype, error) -> DeviceError:
    """The error for values that have no counterpart on a GPU."""
    return DeviceError(
        f"dtype {dtype} is not supported on CUDA devices ({error}): convert the tensor first, e.g. "
        "with .to(gpugrad.float64)"
    )


# ------------------------------------------------------------------------------------------------
# arrays


def owns_alone(array) -> bool:
    """Whether no other array shows memory of this one, as far as it is a whole block of a pool.

    Views refer to the array they were made from, which its own reference count tells; other arrays
    over the same memory share its pointer or its block.
    """
    if array.base is not None:
        return False
    block = array.data.mem
    if not isinstance(block, _module.cuda.memory.PooledMemory):  # another library's memory
        return False
    return sys.getrefcount(array.data) <= _POINTER and sys.getrefcount(block) <= _BLOCK


# References to a pointer (the array's, and the argument's) and a block (the pointer's, the local
# variable's, and the argument's).
_POINTER, _BLOCK = 2, 3


def asarray(data, dtype=None):
    """A CuPy array on the current device with these values, or the array itself."""
    return cupy().asarray(data, dtype)


def refuse_capture(stream) -> None:
    """Raise RuntimeError where values are read while a graph is recorded, which computes none."""
    if stream.ptr and stream.is_capturing():
        raise RuntimeError(
            "values of a CUDA tensor cannot be read while a CUDA graph is captured (.item(), "
            "print, bool, .cpu(), .numpy()): nothing is computed before the graph is replayed"
        )


def to_numpy(array):
    """The values in host memory; errors that kernels found are raised here."""
    with on_device_of(array):
        refuse_capture(_module.cuda.get_current_stream())
        values = array.get()
    device_errors.check()
    return values


def item(array):
    """The value of a one-element array as a Python number; errors that kernels found are raised
    here."""
    with on_device_of(array):
        refuse_capture(_module.cuda.get_current_stream())
        value = array.item()
    device_errors.check()
    return value


def zeros(shape, dtype):
    """Zeros (half the time of ``cupy.zeros``)."""
    out = cupy().ndarray(shape, dtype)
    if out.size:
        out.data.memset_async(0, out.nbytes)
    return out


_ones: dict = {}


def one(dtype):
    """A zero-dimensional 1, never to be written to: it is kept, because every backward pass begins
    with one. By stream, whose work alone comes after its making."""
    stream = _current_stream()
    key = (dtype, _get_device(), stream.ptr)
    found = _ones.get(key)
    if found is None:
        found = full((), 1, dtype)
        if not (stream.ptr and stream.is_capturing()):  # a replay would have to make it
            _ones[key] = found
    return found


def full(shape, value, dtype):
    """One number everywhere: an argument of the kernel that fills, nothing is copied."""
    out = cupy().ndarray(shape, dtype)
    out.fill(value)
    return out


def reshape(array, shape):
    """A view in another shape where strides allow it, else a copy."""
    return array.reshape(shape)


def sum_leading(array, lead: int):
    """The sum over the first axes."""
    return array.sum(axis=tuple(range(lead)))


def take_rows(array, index):
    return array[index]


def dot(a, b):
    """The product of two matrices."""
    return cupy().matmul(a, b)


def broadcast_to(array, shape):
    """A view in a larger shape."""
    return cupy().broadcast_to(array, shape)


spread = broadcast_to


def empty(shape, dtype):
    """An uninitialised array (a fifth less time than ``cupy.empty``)."""
    return cupy().ndarray(shape, dtype)


def empty_laid_out_as(shape, like):
    """An uninitialised array with its dimensions in the order in which those of another lie in
    memory: heads that were split off a row are joined again without a copy."""
    order = sorted(range(like.ndim), key=lambda d: (-like.strides[d], d))
    back = sorted(range(like.ndim), key=order.__getitem__)
    return empty([shape[d] for d in order], like.dtype).transpose(back)


def contiguous(array):
    """The array itself if it lies in C order, else a copy that does."""
    return array if array.flags.c_contiguous else cupy().ascontiguousarray(array)
