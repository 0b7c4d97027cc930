"""Reading and writing IDX files, the format of MNIST (optionally gzipped).

Layout: two zero bytes, one byte of element type, one byte of rank, one big-endian uint32 per
dimension, then the elements in row-major order, big-endian. Source: the description on the MNIST
page of LeCun, Cortes and Burges.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["IdxError", "read_idx", "write_idx"]

_ELEMENT_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype("u1"),
    0x09: np.dtype("i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_GZIP_MAGIC = b"\x1f\x8b"
_GET_AGAIN = "Delete the file and get it again (download=True, or copy it from an intact set)."


class IdxError(RuntimeError):
    """A file that should be IDX is truncated, corrupt or something else."""


def read_idx(path: str | os.PathLike[str], ndim: int | None = None) -> np.ndarray:
    """Read one IDX file, gzipped or not, into an array with native byte order.

    Args:
        path: the file.
        ndim: the rank to insist on (3 for images, 1 for labels).

    Raises:
        FileNotFoundError: no such file.
        IdxError: damaged gzip data, a wrong magic number, another rank, or too few or too many
            bytes.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from gpugrad.vision.idx import read_idx, write_idx
        >>> path = os.path.join(tempfile.mkdtemp(), "labels-idx1-ubyte.gz")
        >>> write_idx(path, np.array([3, 1], dtype=np.uint8))
        >>> read_idx(path, ndim=1)
        array([3, 1], dtype=uint8)
    """
    path = Path(path)
    content = _read_bytes(path)
    if len(content) < 4:
        raise IdxError(
            f"{path} is not an IDX file: it holds {len(content)} bytes, the header alone has 4. "
            f"{_GET_AGAIN}"
        )
    element, rank = _ELEMENT_TYPES.get(content[2]), content[3]
    if content[:2] != b"\0\0" or element is None:
        raise IdxError(
            f"{path} is not an IDX file: expected it to begin with 00 00, a type of "
            f"{', '.join(f'{code:02x}' for code in _ELEMENT_TYPES)} and a rank, found "
            f"{content[:4].hex(' ')}. {_GET_AGAIN}"
        )
    if ndim is not None and rank != ndim:
        raise IdxError(
            f"{path} holds an array of rank {rank}, expected rank {ndim}: were the image and the "
            "label file exchanged? Images are ...-idx3-ubyte, labels ...-idx1-ubyte."
        )
    start = 4 + 4 * rank
    if len(content) < start:
        raise IdxError(
            f"{path} is truncated: its header needs {start} bytes, it holds {len(content)}. "
            f"{_GET_AGAIN}"
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", rank, offset=4))
    expected = start + element.itemsize * int(np.prod(shape, dtype=object))
    if len(content) != expected:
        problem = "is truncated" if len(content) < expected else "is longer than its header says"
        raise IdxError(
            f"{path} {problem}: shape {shape} of {element.itemsize}-byte elements needs {expected} "
            f"bytes, it holds {len(content)}. {_GET_AGAIN}"
        )
    return (
        np.frombuffer(content, element, offset=start)
        .reshape(shape)
        .astype(element.newbyteorder("="))
    )


def _read_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    if content[:2] != _GZIP_MAGIC:
        if path.suffix == ".gz":
            raise IdxError(
                f"{path} is not gzip data: expected it to begin with 1f 8b, found "
                f"{content[:2].hex(' ') or 'nothing'}. {_GET_AGAIN}"
            )
        return content
    try:
        return gzip.decompress(content)
    except EOFError:
        raise IdxError(
            f"{path} is truncated: its {len(content)} bytes of gzip data end before the end "
            f"marker. {_GET_AGAIN}"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise IdxError(
            f"{path} is corrupt: its gzip data does not decompress ({error}). {_GET_AGAIN}"
        ) from None


def write_idx(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write an array as an IDX file, gzipped when the name ends in ``.gz``.

    Raises:
        TypeError: a dtype that IDX does not have (it has uint8, int8, int16, int32, float32,
            float64).
    """
    array = np.asarray(array)
    stored = array.dtype.newbyteorder(">")
    codes = [code for code, dtype in _ELEMENT_TYPES.items() if dtype == stored]
    if not codes:
        names = ", ".join(dtype.newbyteorder("=").name for dtype in _ELEMENT_TYPES.values())
        raise TypeError(f"IDX has no type for {array.dtype}; convert the array to one of {names}")
    header = bytes([0, 0, codes[0], array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.astype(stored).tobytes()
    if str(path).endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    Path(path).write_bytes(content)
