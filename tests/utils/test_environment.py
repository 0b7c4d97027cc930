"""``gpugrad info``: what it reports and warns about."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import pytest

from gpugrad.utils import environment
from gpugrad.utils.blas import BlasInfo


def run_info(capsys):
    assert environment.main(argparse.Namespace()) == 0
    return capsys.readouterr().out


def test_report_has_versions_and_blas():
    report = environment.collect()
    versions = {row.name: row.value for row in report.sections["versions"]}
    assert versions["numpy"] == np.__version__
    assert versions["python"] == sys.version.split()[0]
    assert [row.name for row in report.sections["BLAS"]] == ["library", "kernel", "threads"]


def test_optional_packages_are_not_imported(run_in_fresh_python):
    code = (
        "import sys; from gpugrad.utils.environment import collect; collect();print([m for m in "
        "('torch', 'matplotlib', 'llvmlite', 'rich') if m in sys.modules])"
    )
    assert run_in_fresh_python(code).stdout.strip() == "[]"


@pytest.mark.parametrize("rich_is_there", [True, False])
def test_output_has_every_section(capsys, monkeypatch, rich_is_there):
    if rich_is_there:
        pytest.importorskip("rich", reason="pip install gpugrad[train]")
    else:
        monkeypatch.setitem(sys.modules, "rich", None)
        monkeypatch.setitem(sys.modules, "rich.console", None)
    text = run_info(capsys)
    for title in (
        "versions",
        "devices",
        "BLAS",
        "environment variables",
        "missing",
        "numpy",
        "kernel",
    ):
        assert title in text


def test_missing_packages_come_with_the_command(monkeypatch, capsys):
    monkeypatch.setattr(environment, "_installed", lambda package: None)
    monkeypatch.setattr(environment, "_cuda_driver", lambda: 13010)
    text = run_info(capsys)
    assert 'pip install "gpugrad[train]"' in text
    assert 'pip install "gpugrad[jit]"' in text
    assert 'pip install "gpugrad[cuda13]"' in text


@pytest.mark.parametrize(
    ("driver", "extra"), [(None, "cuda12"), (12040, "cuda12"), (13000, "cuda13")]
)
def test_the_cuda_extra_follows_the_driver(monkeypatch, driver, extra):
    monkeypatch.setattr(environment, "_cuda_driver", lambda: driver)
    assert environment._cuda_extra() == extra


def test_native_kernels_are_reported(monkeypatch):
    def row():
        rows = environment.collect().sections["devices"]
        return next(r for r in rows if r.name == "native kernels")

    monkeypatch.setenv("GPUGRAD_JIT", "1")
    monkeypatch.setattr(environment, "_installed", lambda package: ("llvmlite", "1"))
    assert row().value == "in use"
    monkeypatch.setenv("GPUGRAD_JIT", "0")
    assert row().value == "switched off"
    monkeypatch.setattr(environment, "_installed", lambda package: None)
    assert row()[1:] == ("not available", 'pip install "gpugrad[jit]"')


def test_forced_blas_kernel_is_warned_about(monkeypatch, capsys):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    text = run_info(capsys)
    assert "OPENBLAS_CORETYPE" in text
    assert "unset OPENBLAS_CORETYPE" in text.replace("\n", " ")


def test_unfitting_kernel_and_threads_are_warned_about(monkeypatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.setattr(environment, "_cpuinfo", lambda name: "fpu avx2 avx512f")
    monkeypatch.setattr(environment, "_usable_cores", lambda: 2)
    slow = list(environment._blas_warnings(BlasInfo("openblas", "1", "Haswell", 8)))
    assert len(slow) == 2
    assert "Haswell" in slow[0]
    assert "OPENBLAS_NUM_THREADS=2" in slow[1]
    assert list(environment._blas_warnings(BlasInfo("openblas", "1", "SkylakeX", 2))) == []
    assert list(environment._blas_warnings(BlasInfo("accelerate", "1"))) == []


def test_values_with_brackets_are_printed_as_they_are(monkeypatch, capsys):
    monkeypatch.setenv("GPUGRAD_TEST_VALUE", "[bold]x[/]")
    assert "[bold]x[/]" in run_info(capsys)
