"""Every CUDA kernel of the project compiles for every architecture: without warnings, without
spilled registers, within a limit of registers. Needs NVRTC (a wheel), no GPU.

Results are kept in the cache of builds. ``build/nvrtc.md`` gets a table of registers and memory.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda import corpus, nvrtc
from tests.cuda.nvrtc import Compiled, Job, compile_one

pytest.importorskip("cupy", reason="NVRTC comes with CuPy: pip install gpugrad[ladder]")

ARCHITECTURES = ("sm_70", "sm_75", "sm_80", "sm_90", "sm_100")
# Two blocks of 256 threads, the usual size, fit into the 65536 registers of a multiprocessor.
REGISTERS = 128
REPORT = Path(__file__).parents[2] / "build" / "nvrtc.md"


@pytest.fixture(scope="module")
def compiled() -> dict[Job, Compiled]:
    """All kernels on all architectures, compiled at once; the table is written."""
    kernels = {
        Job(entry.text, arch): str(entry)
        for arch in ARCHITECTURES
        if arch not in nvrtc.OF_CUDA_12 or nvrtc.cuda_12_version()
        for entry in corpus.entries()
    }
    results = dict(zip(kernels, nvrtc.compile_all(list(kernels))))
    rows = [
        (kernels[job], job.arch, usage)
        for job, result in results.items()
        for usage in result.usage.values()
    ]
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(nvrtc.table(rows))
    return results


def problems(
    entry: corpus.Entry, result: Compiled, allowed: corpus.Allowance | None = None
) -> list[str]:
    """What is wrong with a kernel on an architecture, given what it may do."""
    if result.error:
        return [f"{entry}\n{result.error}"]
    found = [f"{entry}\n{warning}" for warning in result.warnings]
    usage = result.usage.get(entry.function)
    if usage is None:
        return [*found, f"{entry}: the source has no kernel {entry.function}"]
    allowed = allowed or entry.allowance or corpus.Allowance("")
    registers = allowed.registers or REGISTERS
    if usage.registers > registers:
        found.append(f"{entry}: {usage.registers} registers, allowed are {registers}")
    if usage.spill_bytes > allowed.spill_bytes:
        found.append(f"{entry}: {usage.spill_bytes} bytes of spilled registers")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("module", corpus.modules())
def test_kernels_of(module, arch, compiled):
    if arch in nvrtc.OF_CUDA_12 and not nvrtc.cuda_12_version():
        pytest.skip("the compiler of CUDA 12 is needed: pip install nvidia-cuda-nvrtc-cu12")
    entries = corpus.of_module(module)
    if not entries:
        pytest.skip("no kernels")
    wrong = [p for e in entries for p in problems(e, compiled[Job(e.text, arch)])]
    assert not wrong, f"{len(wrong)} problems on {arch}:\n" + "\n\n".join(wrong[:10])


@pytest.mark.slow
@pytest.mark.parametrize("pattern", corpus.ALLOWED)
def test_exceptions_have_reasons_and_are_needed(pattern, compiled):
    allowed = corpus.ALLOWED[pattern]
    assert len(allowed.reason) > 20
    jobs = [
        (Job(e.text, arch), e.function)
        for e in corpus.entries()
        if e.allowance is allowed
        for arch in ARCHITECTURES
    ]
    usage = [compiled[j].usage[f] for j, f in jobs if j in compiled and not compiled[j].error]
    assert any(u.registers > REGISTERS or u.spill_bytes for u in usage)


# ---- what must be refused ------------------------------------------------------------------------


def entry(text: str) -> corpus.Entry:
    return corpus.Entry("tests", "broken", text, "k")


def refused(text: str, arch: str = "sm_90") -> str:
    (problem,) = problems(entry(text), compile_one(Job(text, arch)))
    return problem


GOOD = """extern "C" __global__ void k(float* a, long long n) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < n) a[i] = 2 * a[i];
}"""


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_good_kernel(arch):
    if arch in nvrtc.OF_CUDA_12 and not nvrtc.cuda_12_version():
        pytest.skip("the compiler of CUDA 12 is needed: pip install nvidia-cuda-nvrtc-cu12")
    result = compile_one(Job(GOOD, arch))
    assert not problems(entry(GOOD), result), result
    assert 2 < result.usage["k"].registers < 32
    assert nvrtc.compile_all([Job(GOOD, arch)]) == [result]  # from the disk


def test_syntax_error():
    message = refused(GOOD.replace("2 * a[i];", "2 * a[i]"))
    assert "expected a" in message
    assert "generated.cu(4)" in message


def test_a_message_shows_the_line():
    message = refused(GOOD.replace("2 * a[i]", "2 * b[i]"))
    assert 'identifier "b" is undefined' in message
    assert "if (i < n) a[i] = 2 * b[i];" in message


def test_a_feature_the_architecture_lacks():
    text = GOOD.replace("2 * a[i]", "__reduce_add_sync(~0u, 1)")
    assert not problems(entry(text), compile_one(Job(text, "sm_80")))
    assert "__reduce_add_sync" in refused(text, "sm_75")


def test_a_warning():
    message = refused(GOOD.replace("if (i", "int unused;\n  if (i"))
    assert '"unused" was declared but never referenced' in message
    assert "int unused;" in message


SPILLING = """extern "C" __global__ void __launch_bounds__(1024) k(float* a, long long n) {
  float v[96];
#pragma unroll
  for (int i = 0; i < 96; ++i) v[i] = a[i * n + threadIdx.x];
#pragma unroll
  for (int i = 0; i < 96; ++i) a[((i * 37) % 96) * n + threadIdx.x] = v[i] * v[95 - i];
}"""


def test_spilled_registers():
    assert "spilled registers" in refused(SPILLING)


def test_too_many_registers():
    text = SPILLING.replace("1024", "256")
    message = refused(text)
    assert "registers, allowed are 128" in message
    allowed = corpus.Allowance("96 values per thread", 255)
    assert not problems(entry(text), compile_one(Job(text, "sm_90")), allowed)


def test_a_kernel_that_is_not_there():
    assert (
        "no kernel other"
        in problems(entry(GOOD)._replace(function="other"), compile_one(Job(GOOD, "sm_90")))[0]
    )
