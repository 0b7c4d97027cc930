"""Finding CuPy, and saying what is wrong where CUDA cannot be used."""

from __future__ import annotations

import sys

from ..errors import DeviceError

# The first release with versioned DLPack, NumPy 2 promotion and bfloat16 through ml_dtypes.
OLDEST = (14, 0)
# Every name CuPy is distributed under; they overwrite each other's files.
DISTRIBUTIONS = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "cupy-rocm-7-0")

_INSTALL = 'pip install "gpugrad[cuda13]" or pip install "gpugrad[cuda12]"'
_CPU = 'or run on device="cpu"'


def load():
    """The cupy module. Raises DeviceError with the remedy if it is missing, broken, too old or
    installed twice."""
    _refuse_two()
    module = sys.modules.get("cupy")
    if module is None:
        try:
            import cupy as module
        except ModuleNotFoundError as error:
            if error.name != "cupy":  # something that CuPy needs
                raise _broken(error) from error
            raise DeviceError(
                "CUDA was asked for, but CuPy is not installed. Install it for your driver's CUDA "
                f"version: {_INSTALL}; {_CPU}."
            ) from error
        except Exception as error:
            raise _broken(error) from error
    _refuse_old(module)
    return module


def _broken(error: Exception) -> DeviceError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DeviceError(
        f"CUDA was asked for, but CuPy cannot be imported: {first}. Reinstall it for your "
        f"driver's CUDA version: {_INSTALL}; {_CPU}."
    )


def installed() -> list[str]:
    """Names of the distributions of CuPy that are installed here."""
    from importlib import metadata  # 10 ms

    found = []
    for name in DISTRIBUTIONS:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def _refuse_two() -> None:
    found = installed()
    if len(found) > 1:
        raise DeviceError(
            f"{' and '.join(found)} are installed together; they overwrite each other's files. "
            f"Remove all of them (pip uninstall {' '.join(found)}) and install one: {_INSTALL}."
        )


def _refuse_old(module) -> None:
    version = getattr(module, "__version__", "")
    numbers = version.split(".")[:2]
    if all(n.isdecimal() for n in numbers) and tuple(map(int, numbers)) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise DeviceError(
            f"CuPy {version} is too old: gpugrad needs {oldest} or newer. Upgrade it: {_INSTALL}."
        )


def no_device(module, wanted) -> DeviceError:
    """The error for a CUDA device that was asked for where CuPy finds none."""
    return DeviceError(f"device {wanted} was asked for, but {_why(module)}; {_CPU}.")


def _why(module) -> str:
    """Why CuPy finds no device, and what to do."""
    runtime = module.cuda.runtime
    try:
        driver, built = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    except Exception as error:  # a runtime library that is missing or broken
        return f"CuPy {module.__version__} cannot load CUDA ({_first_line(error)})"
    if driver == 0:
        return (
            f"no NVIDIA driver was found (CuPy {module.__version__} is installed): install the "
            "driver, or check that nvidia-smi works"
        )
    if driver // 1000 < built // 1000:
        extra = f"gpugrad[cuda{driver // 1000}]"
        found = " ".join(installed()) or "cupy"
        return (
            f"the NVIDIA driver supports CUDA {_version(driver)} and CuPy {module.__version__} is "
            f"built for CUDA {_version(built)}: update the driver, or pip uninstall {found} and "
            f'pip install "{extra}"'
        )
    try:
        runtime.getDeviceCount()
    except Exception as error:
        reason = f": {_first_line(error)}"
    else:
        reason = ""
    return (
        f"the NVIDIA driver shows no device{reason}. Check that nvidia-smi lists one and that "
        "CUDA_VISIBLE_DEVICES does not hide it"
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
