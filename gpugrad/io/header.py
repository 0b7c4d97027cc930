"""Telling from the first bytes whether a file is a sound safetensors file, and if not, what it is.

The safetensors library checks files too, but its errors do not name the file, the sizes or a
remedy. Layout of the format: eight bytes with the length of the header (little-endian), the header
in JSON, then the data that the header's offsets index.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpugrad.io.errors import ForeignCheckpointError, TruncatedCheckpointError

__all__ = ["read_header"]

# The safetensors library refuses longer headers, too.
_LONGEST_HEADER = 100_000_000

_CONVERT_TORCH = (
    "Where torch is installed, convert it once with\n"
    "    import torch; from safetensors.torch import save_file\n"
    "    save_file(torch.load(PATH, weights_only=True), 'weights.safetensors')   # for a plain "
    "state_dict\n"
    "and load weights.safetensors with gpugrad.load."
)
_FOREIGN_FORMATS = (
    (
        b"PK\x03\x04",
        "a zip archive, as torch.save and numpy.savez write. gpugrad does not unpickle. "
        f"{_CONVERT_TORCH}",
    ),
    (
        b"\x93NUMPY",
        "an array file of numpy.save. Read it with gpugrad.from_numpy(numpy.load(PATH)).",
    ),
    (
        b"\x89HDF",
        "an HDF5 file, as Keras writes. Read it with h5py and pass the arrays to "
        "gpugrad.from_numpy.",
    ),
    (b"\x1f\x8b", "gzip data. Decompress it first."),
)


def read_header(path: Path) -> dict[str, Any]:
    """Return the JSON header of a safetensors file after checking it against the size of the file.

    Raises:
        ForeignCheckpointError: the file is something else; the message says what, where it can be
            told.
        TruncatedCheckpointError: the file is shorter than its header announces.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
        _refuse_known_formats(path, start)
        length = int.from_bytes(start[:8], "little")
        if size <= 8 or (start[8:9] == b"{" and 8 + length > size):
            raise TruncatedCheckpointError(
                f"{path} is truncated: it holds {size} bytes, too few for its header"
                + (f" of {length} bytes" if size >= 8 else "")
                + _RESTORE
            )
        if length > _LONGEST_HEADER or start[8:9] != b"{":
            raise ForeignCheckpointError(
                f"{path} is not a checkpoint of gpugrad: expected a safetensors file (a header "
                f"length, then '{{'), found bytes {start.hex(' ')}. Check the path; gpugrad.load "
                "reads what gpugrad.save wrote."
            )
        file.seek(8)
        text = file.read(length)
    try:
        header = json.loads(text)
        end = max(
            (entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"),
            default=0,
        )
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ForeignCheckpointError(
            f"{path} is not a checkpoint of gpugrad: its header of {length} bytes is not that of a "
            f"safetensors file ({error})"
        ) from None
    expected = 8 + length + end
    if size < expected:
        raise TruncatedCheckpointError(
            f"{path} is truncated: its header announces {expected} bytes, it holds {size}"
            + _RESTORE
        )
    return header


_RESTORE = (
    ". The copy or the disk failed after it was written: take it from its source again, or use an "
    "earlier checkpoint."
)


def _refuse_known_formats(path: Path, start: bytes) -> None:
    for magic, description in _FOREIGN_FORMATS:
        if start.startswith(magic):
            raise ForeignCheckpointError(
                f"{path} is not a checkpoint of gpugrad: it is "
                f"{description.replace('PATH', repr(str(path)))}"
            )
    # A pickle of protocol 2 or later: PROTO, the protocol, then an opcode. As a header length it
    # would be over 100 MB only with a set eighth byte, so the second byte decides.
    if len(start) >= 3 and start[0] == 0x80 and 2 <= start[1] <= 5 and start[8:9] != b"{":
        raise ForeignCheckpointError(
            f"{path} is not a checkpoint of gpugrad: it is a Python pickle, which can run any code "
            f"when loaded, so it was not opened. {_CONVERT_TORCH.replace('PATH', repr(str(path)))}"
        )
