"""The script for a machine with a GPU, which can be run only rarely: every part of it runs here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.cuda import gpu_session, recordings
from tests.cuda.gpu_session import Session, parse
from tests.cuda.shim import Launch, Pointer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the session runs on Linux")


@pytest.fixture
def session(tmp_path):
    return Session(parse(["--results", str(tmp_path / "results"), "--minutes", "2"]))


def python(*code: str) -> list[str]:
    return [sys.executable, "-c", "; ".join(code)]


# ---- running programs ----------------------------------------------------------------------------


def test_outcomes_of_programs(session):
    good = session.run(python("print('hello')"), 60)
    assert (good["outcome"], good["status"], good["output"]) == ("passed", 0, "hello\n")
    assert session.run(python("raise SystemExit(3)"), 60)["status"] == 3
    broken = session.run(python("print('before')", "1 / 0"), 60)
    assert broken["outcome"] == "failed"
    assert "before" in broken["tail"] and "ZeroDivisionError" in broken["tail"]


def test_a_program_without_end_is_ended_with_its_children(session):
    start = time.monotonic()
    child = "import time; time.sleep(60)"
    command = python("import subprocess, sys", f"subprocess.run([sys.executable, '-c', {child!r}])")
    assert session.run(command, 6)["outcome"] == "timeout"
    assert time.monotonic() - start < 30


def test_no_time_left(session):
    session.end = time.monotonic()
    assert session.run(python("pass"), 60)["outcome"] == "not run"


def test_results_are_kept_after_every_part(session):
    session.keep("environment", {"outcome": "passed", "device": "NVIDIA H100 80GB", "output": "x"})
    session.keep("copy", {"outcome": "timeout"})
    assert session.file.name.startswith("nvidia-h100-80gb-20")
    kept = json.loads(session.file.read_text())
    assert kept["copy"] == {"outcome": "timeout"}
    assert "output" not in kept["environment"]


def test_a_mistake_in_a_part_does_not_stop_the_others(monkeypatch, tmp_path):
    def part(session, name, limit):
        if name == "copy":
            raise RuntimeError("a mistake")
        return {"outcome": "passed"}

    monkeypatch.setattr(gpu_session, "run_part", part)
    monkeypatch.setattr(Session, "own", lambda *_: {"outcome": "passed", "device": "none"})
    assert gpu_session.main(["--results", str(tmp_path), "--parts", "copy", "host"]) == 1
    (file,) = tmp_path.glob("none-*.json")
    parts = json.loads(file.read_text())
    assert parts["copy"] == {"outcome": "failed", "reason": "RuntimeError: a mistake"}
    assert parts["host"] == {"outcome": "passed"}


def test_counts_of_pytest():
    said = "....\nFAILED tests/a.py::b - x\n1 failed, 20 passed, 3 skipped, 2 errors in 3.21s\n"
    assert gpu_session.counts(said) == {"failed": 1, "passed": 20, "skipped": 3, "error": 2}
    assert gpu_session.counts("") == {}


def test_files_with_gpu_tests():
    files = gpu_session.gpu_test_files()
    assert "tests/cuda/test_operations.py" in files
    assert "tests/test_registry.py" not in files


# ---- wheels --------------------------------------------------------------------------------------


def make_wheel(folder: Path, name: str) -> None:
    """An installable package of one module."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "VALUE = 5\n")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


@pytest.mark.parametrize("pip", [True, False])
def test_wheels_carried_along(session, monkeypatch, tmp_path, pip):
    name = "carried_along_for_a_test"
    make_wheel(tmp_path / "wheels", name)
    monkeypatch.setattr(gpu_session, "WHEELS", ("json", name))
    if not pip:
        run = session.run
        refuse = {"outcome": "failed", "tail": "No module named pip", "status": 1}
        monkeypatch.setattr(session, "run", lambda c, s: refuse if "pip" in c else run(c, s))
    target = str(tmp_path / "target")
    report = gpu_session.install_wheels(session, str(tmp_path / "wheels"), target)
    assert report["outcome"] == "passed"
    assert report["wanted"] == [name]
    assert ("unpacked" in report) != pip
    assert session.run(python(f"import {name}", f"print({name}.VALUE)"), 60)["output"] == "5\n"


def test_a_wheel_that_is_missing(session, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_session, "WHEELS", ("not_there_at_all",))
    report = gpu_session.install_wheels(session, str(tmp_path), str(tmp_path / "target"))
    assert report["outcome"] == "failed"
    assert "not_there_at_all" in report["reason"]


# ---- comparing -----------------------------------------------------------------------------------


def test_distances():
    def of(a, b, type_):
        return gpu_session.distance(a.view(np.uint8), b.view(np.uint8), type_)

    a = np.array([1, -200, 3, np.nan], np.float32)
    b = a + np.array([0, 0.2, 0, 0], np.float32)
    assert of(a, a.copy(), "f4") == 0
    assert of(a, b, "f4") == pytest.approx(1e-3, rel=1e-3)
    assert of(a, np.array([1, -200, 3, 4], np.float32), "f4") == np.inf
    i = np.arange(4, dtype=np.int32)
    assert of(i, i.copy(), "i4") == 0
    assert of(i, i + np.array([0, 1, 0, 0], np.int32), "i4") == 1 / 16
    upper = (a.view(np.uint32) >> 16).astype(np.uint16)
    assert of(upper, upper.copy(), "w2") == 0
    np.testing.assert_allclose(
        gpu_session.numbers(upper.view(np.uint8), "w2")[:3], [1, -200, 3], rtol=1e-2
    )


ADD = """extern "C" __global__ void add(const float* a, double s, float** out, long long n) {
  const int i = threadIdx.x;
  if (i < n) (*out)[i] = a[i] + s;
}"""


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A file with one launch, whose output is reached through a pointer in memory."""
    a = np.arange(5, dtype=np.float32)
    table = np.zeros(1, np.uint64)
    out = np.full(5, np.nan, np.float32)
    bits = np.uint8
    launch = Launch(
        text=ADD,
        function="add",
        grid=(1, 1, 1),
        block=(32, 1, 1),
        buffers=[x.view(bits) for x in (a, table, out)],
        arguments=[
            Pointer(0), np.float64(2).tobytes(), Pointer(1), np.int64(5).tobytes(),
        ],
        phases=[0, 0, 4],
        pointers=[recordings.Inside(Pointer(1), Pointer(2))],
        after=[a.view(bits), table.view(bits), (a + 2).view(bits)],
        types=["f4", "", "f4"],
    )  # fmt: skip
    file = tmp_path / "recordings.xz"
    recordings.write_packed([launch], file)
    monkeypatch.setattr(recordings, "PACKED", file)
    return launch


def test_packed_launches_are_what_they_were(packed):
    (read,) = recordings.read_packed(recordings.PACKED)
    assert read._replace(buffers=[], after=[]) == packed._replace(buffers=[], after=[])
    for ours, theirs in zip((*read.buffers, *read.after), (*packed.buffers, *packed.after)):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.gpu
def test_recordings_are_compared(packed, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_session, "ROOT", tmp_path)
    report = gpu_session.recordings(parse([]))
    assert report["outcome"] == "passed", report
    assert report["launches"] == 1
    wrong = packed._replace(after=[*packed.after[:2], packed.after[2] ^ 1])
    recordings.write_packed([wrong], recordings.PACKED)
    report = gpu_session.recordings(parse([]))
    assert report["outcome"] == "failed"
    assert "add: f4 differs by" in report["problems"][0]


# ---- all of it -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.gpu
def test_a_session(tmp_path, host_device):
    """Every part on the host-memory device; a stand-in takes compute-sanitizer's place."""
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text('#!/bin/sh\necho "========= COMPUTE-SANITIZER $2"\nshift 6\nexec "$@"\n')
    sanitizer.chmod(0o755)
    options = ["--minutes", "9", "--scale", "0.002", "--without-torch", "--results", str(tmp_path)]
    options += ["--sanitizer", str(sanitizer), "--tests", "tests/cuda/test_random.py"]
    subprocess.run(
        [sys.executable, "-m", "tests.cuda.gpu_session", *options],
        env=os.environ | {"GPUGRAD_EXERCISE": "elementwise softmax sums optimizer"},
        cwd=gpu_session.ROOT,
        check=False,
    )
    (file,) = tmp_path.glob("*.json")
    parts = json.loads(file.read_text())
    outcomes = {name: report["outcome"] for name, report in parts.items()}
    assert set(outcomes) == {"environment", *gpu_session.LIMITS}
    if not recordings.PACKED.exists():
        assert outcomes.pop("recordings") == "not run"
    assert set(outcomes.values()) == {"passed"}, outcomes
    assert parts["tests"]["counts"]["passed"] > 5
    assert parts["copy"]["gpugrad"]["result"]["16 MiB"]["bytes_per_second"] > 0
    assert not [n for n, r in parts["steps"]["gpugrad"]["result"].items() if "error" in r]
    eager, static = (parts[p]["gpugrad"]["result"] for p in ("steps", "static"))
    for name, row in static.items():
        assert "CUDA graph" in row["explain"], row
        np.testing.assert_allclose(row["losses"], eager[name]["losses"], rtol=1e-4)
