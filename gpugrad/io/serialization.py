"""Nested Python data with tensors in one safetensors file.

The arrays are ordinary safetensors entries named after their place (``model.conv1.weight``), so
other tools can read a saved ``state_dict``. The nesting around them is JSON in the file's metadata:

    scalars     null, true, 7, "text", 0.5 as JSON has them; {"float": "nan"} for nan, inf, -inf
    containers  {"list": [...]}, {"tuple": [...]}, {"dict": [[key, value], ...]},
                {"ordered_dict": [[key, value], ...]}
    arrays      {"tensor": entry, "device": "cpu", ...}, {"ndarray": entry}, {"scalar": entry}
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.io.errors import CheckpointError, CheckpointStructureError
from gpugrad.io.header import read_header

__all__ = ["load", "save"]

_FORMAT = "gpugrad/1"
# Kinds of dtypes safetensors stores; complex numbers are stored as bytes beside their dtype.
_NATIVE_KINDS = frozenset("fiub")


def save(obj: Any, path: str | os.PathLike[str]) -> None:
    """Write nested data with tensors to one safetensors file, completely or not at all.

    ``obj`` may be a tensor, ``nn.Parameter``, ndarray, NumPy scalar, str, int, float (nan and inf
    too), bool, None, or a dict, OrderedDict, list or tuple of these, nested to any depth; keys of
    dicts may be any of the scalars or tuples of them. Tensors that share their memory are written
    once. Nothing is pickled.

    The file is written under a temporary name, flushed to disk and then renamed, so a crash leaves
    the old file whole.

    Raises:
        TypeError: an object of another type, with its place in ``obj``.
        ValueError: a container that contains itself.
        ModuleNotFoundError: safetensors is not installed.

    Example:
        >>> import os, tempfile
        >>> import gpugrad as gg
        >>> from gpugrad import io
        >>> path = os.path.join(tempfile.mkdtemp(), "state.safetensors")
        >>> io.save({"weights": gg.ones(2), "step": 7}, path)
        >>> io.load(path)
        {'weights': tensor([1., 1.]), 'step': 7}
    """
    save_file = _safetensors_numpy().save_file
    writer = _Writer()
    structure = writer.encode(obj, "")
    metadata = {
        "format": _FORMAT,
        "structure": json.dumps(structure, allow_nan=False, separators=(",", ":")),
    }
    path = Path(path)
    # Beside the target, so that the rename stays in one file system; not by mkstemp, whose files
    # nobody else may read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        temporary.touch()  # raises OSError where the folder is missing or not writable
        save_file(writer.arrays, temporary, metadata=metadata)
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str], map_location: Any = None) -> Any:
    """Read what :func:`save` wrote; tensors go back to the device they were saved from.

    A safetensors file of another program is read as a dict of tensors.

    Args:
        path: the file.
        map_location: device to put every tensor on, e.g. ``"cpu"``.

    Raises:
        FileNotFoundError: no such file.
        TruncatedCheckpointError: the file is shorter than its header announces.
        ForeignCheckpointError: a pickle, an archive of ``torch.save``, or another kind of file.
        CheckpointStructureError: a safetensors file whose structure is damaged.
        CheckpointError: a tensor saved from a device that is not here.
        ModuleNotFoundError: safetensors is not installed.
    """
    safetensors_numpy = _safetensors_numpy()
    from safetensors import SafetensorError

    path = Path(path)
    header = read_header(path)
    metadata = header.pop("__metadata__", {})
    if any(entry.get("dtype") == "BF16" for entry in header.values()):
        gg.bfloat16  # noqa: B018  NumPy knows the dtype once ml_dtypes is imported
    try:
        arrays = safetensors_numpy.load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointStructureError(
            f"{path} cannot be read as safetensors: {error}. It is damaged, or holds a dtype that "
            "NumPy lacks (such as float8: convert it to float32 first)."
        ) from error
    reader = _Reader(path, arrays, map_location)
    if "structure" not in metadata:
        return {name: reader.tensor({"tensor": name}) for name in arrays}
    if metadata.get("format") != _FORMAT:
        raise CheckpointStructureError(
            f"{path} has format {metadata.get('format')!r}, this version of gpugrad reads "
            f"{_FORMAT!r}: upgrade gpugrad"
        )
    try:
        return reader.decode(json.loads(metadata["structure"]))
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointStructureError(
            f"{path} has a damaged structure ({type(error).__name__}: {error}): take it from its "
            "source again, or use an earlier checkpoint"
        ) from error


class _Writer:
    """Turns nested data into JSON and collects its arrays under readable names."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._entry_of_memory: dict[Any, str] = {}
        self._open: set[int] = set()

    def encode(self, obj: Any, place: str) -> Any:
        kind = type(obj)
        if obj is None or kind in (bool, int, str):
            return obj
        if kind is float:
            return obj if math.isfinite(obj) else {"float": repr(obj)}
        if isinstance(obj, gg.Tensor):
            return self._encode_tensor(obj, place)
        if isinstance(obj, np.ndarray):
            return {"ndarray": self._entry(obj, place), **self._dtype_note(obj, place)}
        if isinstance(obj, np.generic):
            array = np.asarray(obj)
            return {"scalar": self._entry(array, place), **self._dtype_note(array, place)}
        if kind in (list, tuple, dict, OrderedDict):
            return self._encode_container(obj, place)
        raise TypeError(
            f"gpugrad.save cannot store {kind.__module__}.{kind.__qualname__} at "
            f"{place or 'the top'}: it stores tensors, arrays, numbers, strings, None, and dicts, "
            "lists and tuples of them. For a module or an optimizer save its state_dict(); turn "
            "other objects into these types."
        )

    def _encode_container(self, obj: Any, place: str) -> Any:
        if id(obj) in self._open:
            raise ValueError(f"gpugrad.save: the {type(obj).__name__} at {place} contains itself")
        self._open.add(id(obj))
        if isinstance(obj, dict):
            name = "ordered_dict" if type(obj) is OrderedDict else "dict"
            encoded: list[Any] = [
                [self._encode_key(key, place), self.encode(value, _join(place, key))]
                for key, value in obj.items()
            ]
        else:
            name = type(obj).__name__
            encoded = [
                self.encode(value, _join(place, position)) for position, value in enumerate(obj)
            ]
        self._open.discard(id(obj))
        return {name: encoded}

    def _encode_key(self, key: Any, place: str) -> Any:
        if type(key) is tuple:
            return {"tuple": [self._encode_key(member, place) for member in key]}
        if key is None or type(key) in (bool, int, str, float):
            return self.encode(key, place)
        raise TypeError(
            f"gpugrad.save cannot store a dict key of type {type(key).__name__} ({key!r}) at "
            f"{place or 'the top'}: use str, int, float, bool, None or tuples of them"
        )

    def _encode_tensor(self, tensor: gg.Tensor, place: str) -> dict[str, Any]:
        array = tensor.array
        note: dict[str, Any] = {"device": str(tensor.device)}
        if isinstance(tensor, gg.nn.Parameter):
            note["parameter"] = True
        if tensor.requires_grad:
            note["requires_grad"] = True
        on_host = array if isinstance(array, np.ndarray) else tensor.detach().cpu().numpy()
        return {
            "tensor": self._entry(on_host, place, _memory(array)),
            **note,
            **self._dtype_note(on_host, place),
        }

    def _dtype_note(self, array: np.ndarray, place: str) -> dict[str, Any]:
        if array.dtype.kind in _NATIVE_KINDS and array.dtype.itemsize <= 8:
            return {}
        if gg.dtypes.is_bfloat16(array.dtype):
            return {}
        if array.dtype.kind != "c":
            raise TypeError(
                f"gpugrad.save cannot store an array of dtype {array.dtype} at {place or 'the top'}"
            )
        return {"dtype": array.dtype.name, "shape": list(array.shape)}

    def _entry(self, array: np.ndarray, place: str, memory: Any = None) -> str:
        """Store ``array`` under a name made from its place; the same memory is stored once."""
        memory = memory if memory is not None else _memory(array)
        if array.size and memory in self._entry_of_memory:
            return self._entry_of_memory[memory]
        name, number = place or "value", 1
        while name in self.arrays or name == "__metadata__":
            number += 1
            name = f"{place or 'value'}~{number}"
        stored = np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=None)
        self.arrays[name] = (
            stored.reshape(-1).view(np.uint8) if stored.dtype.kind == "c" else stored
        )
        self._entry_of_memory[memory] = name
        return name


class _Reader:
    """Turns the JSON of :class:`_Writer` back into data."""

    def __init__(self, path: Path, arrays: dict[str, np.ndarray], map_location: Any) -> None:
        self.path = path
        self.arrays = arrays
        self.map_location = map_location
        self._tensors: dict[str, gg.Tensor] = {}

    def decode(self, node: Any) -> Any:
        if node is None or isinstance(node, bool | int | float | str):
            return node
        if not isinstance(node, dict) or not node:
            raise ValueError(f"unexpected {str(node)[:60]!r}")
        kind, content = next(iter(node.items()))
        if kind == "float" and content in ("nan", "inf", "-inf"):
            return float(content)
        if kind == "list":
            return [self.decode(value) for value in content]
        if kind == "tuple":
            return tuple(self.decode(value) for value in content)
        if kind in ("dict", "ordered_dict"):
            pairs = [(self.decode(key), self.decode(value)) for key, value in content]
            return OrderedDict(pairs) if kind == "ordered_dict" else dict(pairs)
        if kind == "tensor":
            return self.tensor(node)
        if kind == "ndarray":
            return self._array(node, content)
        if kind == "scalar":
            return self._array(node, content)[()]
        raise ValueError(f"unknown kind {kind!r}")

    def tensor(self, node: dict[str, Any]) -> gg.Tensor:
        entry = node["tensor"]
        if entry not in self._tensors:
            device = (
                self.map_location if self.map_location is not None else node.get("device", "cpu")
            )
            self._refuse_absent_cuda(entry, device)
            self._tensors[entry] = gg.from_numpy(self._array(node, entry)).to(device)
        tensor = self._tensors[entry]
        if node.get("parameter"):
            return gg.nn.Parameter(tensor, requires_grad=bool(node.get("requires_grad")))
        if node.get("requires_grad"):
            return tensor.detach().requires_grad_()
        return tensor

    def _array(self, node: dict[str, Any], entry: str) -> np.ndarray:
        if entry not in self.arrays:
            raise CheckpointStructureError(
                f"{self.path} has a damaged structure: it refers to an array {entry!r} that the "
                "file lacks"
            )
        array = self.arrays[entry]
        if "dtype" in node:
            array = array.view(np.dtype(node["dtype"])).reshape(node["shape"])
        return array

    def _refuse_absent_cuda(self, entry: str, device: Any) -> None:
        if str(device).startswith("cuda") and not gg.cuda.is_available():
            raise CheckpointError(
                f"{self.path}: the tensor {entry!r} belongs on {device}, but "
                "gpugrad.cuda.is_available() is False. Load it with map_location='cpu'."
            )


def _memory(array: Any) -> Any:
    """What identifies the memory an array shows: address and device, shape, strides, dtype."""
    on_host = isinstance(array, np.ndarray)
    address = (
        array.__array_interface__["data"][0] if on_host else (int(array.device), array.data.ptr)
    )
    return address, array.shape, array.strides, array.dtype.str


def _join(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _safetensors_numpy() -> ModuleType:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'saving and loading files needs safetensors: pip install "gpugrad[train]"',
            name="safetensors",
        ) from error
    return safetensors.numpy
