"""Kernels for the host-memory device: both ways to compile end in the CUDA-on-CPU shim.

CuPy compiles its own kernels with ``cupy.cuda.compiler._compile_module_with_cache``, gpugrad its
kernels with ``gpugrad.codegen.cuda_module.compile_with_log``. Both get the path of a shared object
as the "machine code", which ``cuModuleLoadData`` of kernels.cpp opens.
"""

from __future__ import annotations

import re


def image(path) -> bytes:
    return f"CUDACPU:{path}".encode() + b"\0"


def install() -> None:
    """Replace the two functions. CuPy's is replaced when CuPy is imported, which is now."""
    import cupy
    from cupy.cuda import compiler

    from gpugrad.codegen import cuda_module
    from tests.cuda.shim.compiler import identity

    compiler._compile_module_with_cache = compile_for_cupy
    cupy._core.set_reduction_accelerators([])
    cupy._core.set_routine_accelerators([])
    cuda_module.compile_with_log = compile_for_gpugrad
    cuda_module.architecture = lambda device: "host"
    cuda_module.compiler_version = identity


def compile_for_gpugrad(text: str, arch: str, options=()) -> tuple[bytes, str]:
    """What ``cuda_module.compile_with_log`` returns: the image and the compiler's messages."""
    from gpugrad.errors import KernelError
    from tests.cuda import shim

    try:
        return image(shim.build(text)[0]), ""
    except shim.ShimError as error:
        raise KernelError(f"a kernel does not compile for the CPU:\n{error}") from error


def compile_for_cupy(source, options=(), *, name_expressions=None, **_):
    """What CuPy's function returns: a loaded module. Instances of templates get names."""
    from cupy.cuda.function import Module

    from tests.cuda import shim

    # CuPy names the folders of its own headers; those of NVIDIA are the shim's business.
    options = tuple(o for o in options if re.match(r"-[DUI]", o) and "/nvidia/" not in o)
    path, names = shim.build_cupy(source, options, tuple(name_expressions or ()))
    module = Module()
    module.load(image(path))
    if names:
        module._set_mapping(names)
    return module
