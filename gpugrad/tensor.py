"""The tensor: an array, where it came from, and a version.

The class holds state and what Python itself asks of an object. Operations become methods in
``functions.py``, from the same functions that are exported at the top level.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from .backend import arrays as backend_arrays
from .backend.device import device as device_class
from .config import modes
from .dtypes import is_bfloat16, is_differentiable, is_floating
from .errors import no_complex_gradients, user_line

_ndarray = backend_arrays._ndarray


class _Clock:
    """Counts in-place writes in the whole process; a record of the tape remembers the time it was
    made."""

    __slots__ = ("lock", "now")

    def __init__(self):
        self.now = 0
        self.lock = threading.Lock()


clock = _Clock()


class Tensor:
    """An n-dimensional array that can record what is computed from it.

    ``tensor.array`` is the NumPy or CuPy array itself, without a copy. ``gradient`` functions are
    PyTorch's:
    ``requires_grad``, ``backward()``, ``grad``, ``detach()``.

    >>> import numpy as np, gpugrad as gg
    >>> x = gg.Tensor(np.array([1.0, 2.0]), requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    tensor([2., 4.], dtype=float64)
    """

    # _version is [time of the last in-place write, its line, weak references of views...], shared
    # by all tensors over the same memory; None until it is needed (see version_of).
    # _view is None or (base tensor, operations that lead from it to this view).
    __slots__ = ("__weakref__", "_node", "_version", "_view", "array", "grad")

    if TYPE_CHECKING:  # installed by functions.py from the operations of the same names
        array: Any
        grad: Tensor | None
        _node: Any
        _version: list | None
        _view: Any

        def __getattr__(self, name: str) -> Any: ...
        def __add__(self, other) -> Tensor: ...
        def __radd__(self, other) -> Tensor: ...
        def __sub__(self, other) -> Tensor: ...
        def __rsub__(self, other) -> Tensor: ...
        def __mul__(self, other) -> Tensor: ...
        def __rmul__(self, other) -> Tensor: ...
        def __truediv__(self, other) -> Tensor: ...
        def __rtruediv__(self, other) -> Tensor: ...
        def __floordiv__(self, other) -> Tensor: ...
        def __mod__(self, other) -> Tensor: ...
        def __pow__(self, other) -> Tensor: ...
        def __rpow__(self, other) -> Tensor: ...
        def __matmul__(self, other) -> Tensor: ...
        def __rmatmul__(self, other) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __eq__(self, other) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other) -> Tensor: ...  # type: ignore[override]
        def __lt__(self, other) -> Tensor: ...
        def __le__(self, other) -> Tensor: ...
        def __gt__(self, other) -> Tensor: ...
        def __ge__(self, other) -> Tensor: ...
        def __and__(self, other) -> Tensor: ...
        def __or__(self, other) -> Tensor: ...
        def __getitem__(self, index) -> Tensor: ...
        def __setitem__(self, index, value) -> None: ...

    # which of the open transformations of functions it belongs to (lifted.py); 0: to none
    _level = 0

    __array_priority__ = 1000  # numpy_array * tensor asks the tensor

    def __init__(self, data=None, *, requires_grad: bool = False):
        if isinstance(data, Tensor):
            array, version = data.array, version_of(data)
        elif backend_arrays.is_array(data):
            array, version = over(data).array, None
        elif data is None:
            array, version = backend_arrays.new_array([], _default_dtype()), None
        else:
            raise TypeError(
                f"Tensor() takes a NumPy or CuPy array, got {type(data).__name__}; use "
                f"gpugrad.tensor(...) for lists and numbers"
            )
        self.array = array
        self.grad = None
        self._node = None
        self._version = version
        self._view = None
        if requires_grad:
            self.requires_grad_()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        from .eager import register_tensor_type

        register_tensor_type(cls)

    # ---- what it is

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self):
        return self.array.dtype

    @property
    def device(self) -> device_class:
        return backend_arrays.device_of(self.array)

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def is_cuda(self) -> bool:
        return not isinstance(self.array, _ndarray) and backend_arrays.is_cuda(self.array)

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    @property
    def itemsize(self) -> int:
        return self.array.itemsize

    def numel(self) -> int:
        """Number of elements."""
        return self.array.size

    nelement = numel

    def dim(self) -> int:
        """Number of dimensions."""
        return self.array.ndim

    ndimension = dim

    def size(self, dim: int | None = None):
        """The shape, or its extent along one dimension."""
        return self.array.shape if dim is None else self.array.shape[dim]

    def element_size(self) -> int:
        """Bytes of one element."""
        return self.array.itemsize

    def stride(self, dim: int | None = None):
        """Steps between neighbours along each dimension, in elements."""
        steps = tuple(s // self.array.itemsize for s in self.array.strides)
        return steps if dim is None else steps[dim]

    def is_contiguous(self) -> bool:
        return self.array.flags.c_contiguous

    def is_floating_point(self) -> bool:
        return is_floating(self.array.dtype)

    def data_ptr(self) -> int:
        """Address of the first element."""
        a = self.array
        return a.ctypes.data if isinstance(a, _ndarray) else a.data.ptr

    # ---- its place on the tape

    @property
    def requires_grad(self) -> bool:
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Record operations on this tensor from now on; it becomes a leaf whose gradient lands in
        ``.grad``."""
        from .autograd.engine import Leaf

        if requires_grad:
            if self._node is None:
                if self.array.dtype.kind == "c":
                    raise no_complex_gradients("a complex tensor cannot require gradients")
                if not is_differentiable(self.array.dtype):
                    raise RuntimeError(
                        "only Tensors of floating point and complex dtype can require gradients, "
                        "got "
                        f"{self.array.dtype}; convert it with .float() first"
                    )
                self._node = Leaf(self)
        elif self._node is not None:
            if not self.is_leaf:
                raise RuntimeError(
                    "you can only change requires_grad flags of leaf variables. If you want to "
                    "use a computed variable "
                    "in a subgraph that doesn't require differentiation use var_no_grad = "
                    "var.detach()."
                )
            self._node = None
        return self

    @property
    def is_leaf(self) -> bool:
        from .autograd.engine import Leaf

        return self._node is None or isinstance(self._node, Leaf)

    @property
    def grad_fn(self):
        """The record that made this tensor; None for leaves."""
        return None if self.is_leaf else self._node

    @property
    def data(self) -> Tensor:
        """The same memory without history. Writing through it is not seen by the tape's checks, as
        in torch."""
        if modes.special and modes.local.recording is not None:
            modes.local.recording.see(self)
        return Tensor(self.array)

    @data.setter
    def data(self, value: Tensor) -> None:
        if modes.special and modes.local.recording is not None:
            modes.local.recording.fail("a tensor is given the memory of another (.data = ...)")
        self.array = value.array
        self._version = None
        if self._node is not None and self.is_leaf:
            self._node.shape = value.array.shape

    @property
    def version(self) -> int:
        """When this memory was last written in place (0: never)."""
        return 0 if self._version is None else self._version[0]

    # ---- Python's protocols

    def __len__(self) -> int:
        if not self.array.ndim:
            raise TypeError("len() of a 0-d tensor")
        return self.array.shape[0]

    def __iter__(self):
        if not self.array.ndim:
            raise TypeError("iteration over a 0-d tensor")
        return (self[i] for i in range(self.array.shape[0]))

    def __bool__(self) -> bool:
        if self.array.size != 1:
            raise RuntimeError(
                f"Boolean value of Tensor with "
                f"{'no values' if not self.array.size else 'more than one value'} is ambiguous "
                f"(shape {tuple(self.shape)}); use .any() or .all()"
            )
        truth = bool(_item(self))
        if modes.special and modes.local.recording is not None:
            modes.local.recording.guard(self, truth)
        return truth

    def __int__(self) -> int:
        if modes.special and modes.local.recording is not None and self.array.size == 1:
            return int(self.item())  # the recorder goes on seeing it
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __complex__(self) -> complex:
        return complex(self._number())

    def _number(self):
        if self.array.size != 1:
            raise ValueError(
                f"only one element tensors can be converted to Python scalars (shape "
                f"{tuple(self.shape)})"
            )
        _read("a conversion to a Python number")
        return backend_arrays.item(self.array)

    def __index__(self) -> int:
        if self.array.dtype.kind not in "iub":
            raise TypeError("only integer tensors of a single element can be converted to an index")
        return int(self.item())

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return _format(self)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.array.ndim == 0 and spec else str(self)

    def __contains__(self, value) -> bool:
        _read("the operator in")
        return bool(backend_arrays.item((self.array == getattr(value, "array", value)).any()))

    def __copy__(self) -> Tensor:
        return self.__deepcopy__({}, share=True)

    def __deepcopy__(self, memo, share: bool = False) -> Tensor:
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user (graph leaves) support the deepcopy "
                "protocol at the moment. "
                "Use tensor.detach().clone() for a copy of a computed one."
            )
        copy = self.__class__.__new__(self.__class__)
        Tensor.__init__(
            copy, self.array if share else self.array.copy(), requires_grad=self.requires_grad
        )
        memo[id(self)] = copy
        if self.grad is not None:
            copy.grad = self.grad if share else self.grad.__deepcopy__(memo)
        for name, value in getattr(self, "__dict__", {}).items():
            setattr(copy, name, value)
        return copy

    def __reduce_ex__(self, protocol):
        if not self.is_leaf:
            raise RuntimeError(
                "only leaf tensors can be pickled; use tensor.detach() for a computed one"
            )
        return _rebuild, (
            self.__class__,
            backend_arrays.to_numpy(self.array),
            str(self.device),
            self.requires_grad,
        )

    # ---- interchange without copies

    def __array__(self, dtype=None, copy=None):
        array = self.numpy()
        if dtype is not None and dtype != array.dtype:
            if copy is False:
                raise ValueError(f"an array of {array.dtype} is no array of {dtype} without a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    @property
    def __cuda_array_interface__(self):
        if isinstance(self.array, _ndarray):
            raise AttributeError("a CPU tensor has no __cuda_array_interface__")
        return self.array.__cuda_array_interface__

    def __dlpack__(self, **kwargs):
        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        if isinstance(self.array, _ndarray) and is_bfloat16(self.array.dtype):
            from .backend import dlpack

            return dlpack.export(self.array, **kwargs)
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def numpy(self, *, force: bool = False):
        """The NumPy array over the same memory; ``force`` detaches and copies from a GPU first."""
        if self.requires_grad and not force:
            raise RuntimeError(
                "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() "
                "instead."
            )
        if self.is_cuda and not force:
            raise TypeError(
                f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to "
                f"copy the tensor to host "
                "memory first."
            )
        _read("numpy()")
        return backend_arrays.to_numpy(self.array)

    def item(self):
        """The value of a one-element tensor as a Python number (waits for the GPU)."""
        if self.array.size != 1:
            raise RuntimeError(
                f"a Tensor with {self.array.size} elements cannot be converted to Scalar (shape "
                f"{tuple(self.shape)}); "
                "use .tolist() or reduce it first"
            )
        if modes.special and modes.local.recording is not None:
            return modes.local.recording.number(self)
        return _item(self)

    def tolist(self):
        """The values as nested Python lists (a number for a zero-dimensional tensor)."""
        _read("tolist()")
        return backend_arrays.to_numpy(self.array).tolist()


def _item(t: Tensor):
    a = t.array
    return a.item() if a.__class__ is _ndarray else backend_arrays.item(a)


def _read(what: str) -> None:
    """Tell the recorder, if there is one, that values become Python objects."""
    if modes.special and modes.local.recording is not None:
        modes.local.recording.read(what)


def _default_dtype():
    from .config import settings

    return settings.default_dtype


def _rebuild(cls, array, device, requires_grad):
    tensor = cls.__new__(cls)
    Tensor.__init__(
        tensor, backend_arrays.to_device(array, device_class(device)), requires_grad=requires_grad
    )
    return tensor


_new = Tensor.__new__


def wrap(array) -> Tensor:
    """A tensor without history over an array."""
    t = _new(Tensor)
    t.array = array
    t.grad = None
    t._node = None
    t._version = t._view = None
    return t


def constant(array) -> Tensor:
    """A tensor over an array that was made of numbers alone: the same at every call of a compiled
    program."""
    if modes.special and modes.local.recording is not None:
        modes.local.recording.constant(array)
    return wrap(array)


def over(array) -> Tensor:
    """A tensor over an array of somebody else's; a compiled program reads it at every call."""
    if modes.special and modes.local.recording is not None:
        modes.local.recording.see(array)
    return wrap(array)


def highest(values) -> Any:
    """The tensor of the innermost transformation among some values (lifted.py); None if there are
    only ordinary ones."""
    top = None
    for v in values:
        if isinstance(v, Tensor) and v._level > (0 if top is None else top._level):
            top = v
    return top


def version_of(tensor: Tensor) -> list:
    """The version that a tensor shares with all others over its memory, made on first use."""
    if tensor._version is None:
        tensor._version = [0, None]
    return tensor._version


def bump_version(tensor: Tensor) -> None:
    """Note that the memory of a tensor was just written in place, and by which line."""
    version = version_of(tensor)
    with clock.lock:
        clock.now += 1
        version[0] = clock.now
    version[1] = user_line()


def bump_versions(lists) -> None:
    """``bump_version`` of lists of tensors that were written together: one time, one line."""
    line = user_line()
    with clock.lock:
        clock.now = now = clock.now + 1
        for tensors in lists:
            for t in tensors:
                version = t._version
                if version is None:
                    t._version = [now, line]
                else:
                    version[0], version[1] = now, line


def share_memory(view: Tensor, source: Tensor) -> None:
    """Let two tensors over the same memory share one version."""
    version = view._version = version_of(source)
    if len(version) > 64:  # drop references to views that are gone
        version[2:] = [r for r in version[2:] if r() is not None]
    version.append(weakref.ref(view))


def views_of(tensor: Tensor) -> list[Tensor]:
    """The tensors alive that were made as views or aliases of this memory."""
    return [v for v in (r() for r in version_of(tensor)[2:]) if v is not None]


class _TensorText(NamedTuple):
    """The text of a tensor with some history, for other values of it."""

    history: str | None

    def __call__(self, array) -> str:
        return _text(wrap(array), self.history)


def _format(t: Tensor) -> str:
    history = None
    if t.requires_grad:
        history = "requires_grad=True" if t.is_leaf else f"grad_fn=<{t._node.name}>"
    text = _text(t, history)
    if modes.special and modes.local.recording is not None:
        modes.local.recording.show(t, text, _TensorText(history))
    return text


def _text(t: Tensor, history: str | None) -> str:
    import numpy as np

    from .dtypes import bool_, int64

    array = backend_arrays.to_numpy(t.array)
    if is_bfloat16(array.dtype):
        array = array.astype(np.float32)
    body = np.array2string(array, separator=", ", prefix="tensor(", threshold=1000, precision=4)
    parts = [body]
    if not array.size and array.ndim != 1:
        parts.append(f"size={array.shape}")
    # what the digits do not tell
    if t.dtype != _default_dtype() and (not array.size or t.dtype not in (int64, bool_)):
        parts.append(f"dtype={t.dtype}")
    if t.is_cuda:
        parts.append(f"device='{t.device}'")
    if history is not None:
        parts.append(history)
    return f"tensor({', '.join(parts)})"
