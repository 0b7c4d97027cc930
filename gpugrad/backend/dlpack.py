"""DLPack of bfloat16, which NumPy neither exports nor takes: the bits travel as 16-bit integers.

An exported structure says of which type its elements are in one byte. For bfloat16 that byte alone
is changed: to bfloat16 in what NumPy exports for the bits, to unsigned in what another library
exports before NumPy sees it. The structure was made for this one exchange and has no other reader.

Layout: dlpack.h of DLPack 1.0; the byte is ``dl_tensor.dtype.code``.
"""

from __future__ import annotations

import ctypes

from ..dtypes import as_dtype
from .numpy import xp as np

_UNSIGNED, _BFLOAT = 1, 4  # DLDataTypeCode
# Where the type code lies in a managed tensor, by the name of its capsule: behind data (8 bytes),
# device (8) and ndim (4), and in the versioned one behind version, context, deleter and flags.
_CODE_AT = {b"dltensor": 20, b"dltensor_versioned": 52}

_name = ctypes.pythonapi.PyCapsule_GetName
_name.restype, _name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _type_code(capsule):
    """The byte with the type of the elements, and the one with their bits."""
    name = _name(capsule)
    return (ctypes.c_uint8 * 2).from_address(_pointer(capsule, name) + _CODE_AT[name])


def export(array, **options):
    """The capsule of a bfloat16 NumPy array."""
    capsule = array.view(np.uint16).__dlpack__(**options)
    _type_code(capsule)[0] = _BFLOAT
    return capsule


class _Bits:
    """Another library's bfloat16 memory as unsigned integers, for ``numpy.from_dlpack``."""

    def __init__(self, source):
        self._source = source

    def __dlpack_device__(self):
        return self._source.__dlpack_device__()

    def __dlpack__(self, **options):
        capsule = self._source.__dlpack__(**options)
        code = _type_code(capsule)
        if tuple(code) != (_BFLOAT, 16):
            raise RuntimeError("the elements are no bfloat16")
        code[0] = _UNSIGNED
        return capsule


def take(source):
    """A NumPy array over another library's bfloat16 memory; RuntimeError for other dtypes."""
    return np.from_dlpack(_Bits(source)).view(as_dtype("bfloat16"))
