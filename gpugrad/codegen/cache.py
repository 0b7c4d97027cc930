"""Object code on disk: a process that finds its kernels there compiles nothing.

A file holds a digest and the code. The name is a hash of everything the code depends on, so that
what is there is never stale; the digest tells whether it is whole. Code depends on its text, or on
what the text is written for (``described``) and what writes it (``sources``). Imported when the
first kernel is made, and tempfile when one is kept: hashlib and tempfile take milliseconds each.
"""

from __future__ import annotations

import hashlib
import os
import sys
from functools import lru_cache
from pathlib import Path
from types import FunctionType

import numpy as np

from . import IMPORTED


def key_of(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()


def described(value) -> str:
    """A text that differs for arguments of which different kernels are written."""
    if value is None or value.__class__ in (str, int, bool, float):
        return repr(value)
    if isinstance(value, np.dtype):
        return value.str
    if isinstance(value, tuple):
        return f"{value.__class__.__name__}({', '.join(map(described, value))})"
    if isinstance(value, FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return value.description  # programs


@lru_cache(1)
def sources() -> str | None:
    """A digest of the sources that write native kernels; None where nobody knows: there are none
    here, or one is younger than this process, which may have imported an older one."""
    place, found = os.path.dirname(__file__), hashlib.sha256()
    try:
        names = [n for n in os.listdir(place) if n.endswith(".py") and not n.startswith("cu")]
        for name in sorted(names):
            with open(os.path.join(place, name), "rb") as stream:
                if os.fstat(stream.fileno()).st_mtime > IMPORTED:
                    return None
                found.update(stream.read())
    except OSError:
        return None
    return found.hexdigest() if os.path.basename(__file__) in names else None


def directory() -> Path | None:
    """``GPUGRAD_CACHE_DIR``, else the platform's place for caches. Empty: nothing is kept."""
    names = ("GPUGRAD_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA", "HOME", "USERPROFILE")
    return _directory(sys.platform, *map(os.environ.get, names))


@lru_cache(8)
def _directory(platform: str, chosen: str | None, *_: str | None) -> Path | None:
    """The same, for values of the environment that it depends on."""
    if chosen is not None:
        return Path(chosen) if chosen else None
    try:
        home = Path.home()
    except RuntimeError:  # no home directory
        return None
    if platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "gpugrad"


def _digest(key: str, code: bytes) -> bytes:
    return hashlib.sha256(key.encode() + code).digest()


def read(key: str) -> bytes | None:
    """The object code under a key, if it is there and whole."""
    place = directory()
    if place is None:
        return None
    try:
        with open(f"{place}{os.sep}{key}.o", "rb") as stream:  # 0.1 ms less than pathlib
            content = stream.read()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if digest == _digest(key, code) else None


def write(key: str, code: bytes) -> None:
    """Keep object code; readers see all of it or nothing. That it cannot be kept is no error."""
    place = directory()
    if place is None:
        return
    import tempfile

    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        file, name = tempfile.mkstemp(dir=place)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(_digest(key, code) + code)
            os.replace(name, place / f"{key}.o")
        except OSError:
            os.unlink(name)
    except OSError:
        pass
