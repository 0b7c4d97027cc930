r"""One session on a machine with an NVIDIA GPU: all that needs one, in less than ten minutes.

    python -m tests.cuda.gpu_session [--wheels FOLDER] [--minutes 9.5] [--parts ...]

Needs Python, NumPy, CuPy and a CUDA toolkit (compute-sanitizer is in it), and no network. What else
the tests import (pytest, hypothesis) is installed from wheels in a folder that was carried along:

    python -m pip download --dest FOLDER --python-version 3.12 --only-binary=:all: \
        pytest hypothesis ml_dtypes

Each part is a process of its own with a time limit, so that none stops the others:

    environment  device, driver, versions, commit
    recordings   launches recorded on a CPU, run here: the largest differences of each kernel
    tests        pytest -m gpu, files side by side
    copy, kernels, gemm, host, steps   benchmarks/cuda.py, with torch beside if it is installed
    static       steps that are compiled, with torch's and JAX's beside if they are installed
    memcheck, racecheck, initcheck, synccheck   compute-sanitizer on ``exercise`` and recordings

``benchmarks/results/<device>-<date>.json`` is written anew after every part. With
``GPUGRAD_TEST_DEVICE=host`` all of it runs on the host-memory device, to try the script.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
WHEELS = ("pytest", "hypothesis", "ml_dtypes")
Report = dict[str, Any]


# ---- parts that run here, each in a process of its own -------------------------------------------


def environment() -> Report:
    """The device, the driver and versions of everything."""
    import cupy
    from cupy.cuda import nvrtc, runtime

    properties = runtime.getDeviceProperties(0)
    name = properties["name"]
    found: Report = {
        "device": name.decode() if isinstance(name, bytes) else name,
        "compute_capability": cupy.cuda.Device(0).compute_capability,
        "memory_bytes": runtime.memGetInfo()[1],
        "multiprocessors": properties["multiProcessorCount"],
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
        "nvrtc": nvrtc.getVersion(),
    }
    return found | software()


def software() -> Report:
    versions = {}
    for package in ("numpy", "cupy-cuda13x", "cupy-cuda12x", "torch", "jax", *WHEELS):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "versions": versions,
        "commit": os.environ.get("GPUGRAD_COMMIT")
        or said("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"),
        "nvidia_smi": said(
            "nvidia-smi",
            "--query-gpu=name,driver_version,clocks.max.sm,clocks.max.memory,power.limit",
            "--format=csv",
        ),
    }


def said(*command: str) -> str | None:
    """What a program prints, or None if there is no such program or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


# Largest differences that are no mistake, relative to the largest value: other functions of the
# mathematical library, other contractions of products with sums.
TOLERANCES = {"f4": 2e-5, "f8": 1e-12, "h2": 4e-3, "w2": 3e-2}


def recordings(options: argparse.Namespace) -> Report:
    """Runs recorded launches and compares what they leave in memory; of all those share "1/4" is
    every fourth. Stops before the time is over."""
    from . import recordings as module

    if not module.PACKED.exists():
        return {"outcome": "not run", "reason": f"no {module.PACKED.relative_to(ROOT)}"}
    number, of = map(int, options.share.split("/"))
    launches = sorted(module.read_packed(), key=lambda launch: launch.nbytes)[: options.most]
    launches = launches[number - 1 :: of]
    end, run = time.monotonic() + options.seconds, 0
    worst: dict[str, Report] = {}
    problems = []
    for launch in launches:
        if time.monotonic() > end:
            break
        run += 1
        try:
            found = differences(launch)
        except Exception as error:
            problems.append(f"{launch.function}: {type(error).__name__}: {error}"[:500])
            if "cudaError" in str(error) or "CUDA_ERROR" in str(error):
                break  # the device is of no more use to this process
            continue
        for type_, difference in found:
            known = worst.setdefault(launch.function, {})
            known[type_] = max(known.get(type_, 0.0), difference)
            if difference > TOLERANCES.get(type_, 0.0):
                problems.append(f"{launch.function}: {type_} differs by {difference:.3g}")
    return {
        "outcome": "failed" if problems else "passed",
        "launches": run,
        "without_time": len(launches) - run,
        "problems": problems[:50],
        "largest_differences": worst,
    }


def differences(launch) -> list[tuple[str, float]]:
    """The type of each buffer, and how far the device's result is from the recorded one."""
    import numpy as np

    from .shim import launches

    results = launches.without_pointers(launch, run_on_device(launch))
    found = []
    for result, expected, type_ in zip(results, launches.expected(launch), launch.types):
        found.append((type_ or "bytes", distance(result, expected, type_)))
        assert np.shape(result) == np.shape(expected)
    return found


def distance(found, expected, type_: str) -> float:
    """Largest difference relative to the largest value; of other bytes the share that differs."""
    if type_ not in TOLERANCES or found.size % int(type_[1]):
        return float((found != expected).mean()) if found.size else 0.0
    return relative_difference(numbers(found, type_), numbers(expected, type_))


def relative_difference(found, expected) -> float:
    import numpy as np

    # what neither of them wrote is poison or NaN in both
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    if same.all():
        return 0.0
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=1e-30)
    with np.errstate(invalid="ignore"):
        distances = np.abs(found[~same] - expected[~same]) / scale
    return float(np.where(np.isnan(distances), np.inf, distances).max())


def numbers(values, type_: str):
    """Bytes as float64."""
    import numpy as np

    if type_ == "w2":  # bfloat16 is the upper half of a float32
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(float)
    dtype = {"f4": np.float32, "f8": np.float64, "h2": np.float16}[type_]
    return values.view(dtype).astype(float)


def run_on_device(launch) -> list:
    """The bytes of every buffer after the launch on the current device."""
    import cupy
    import numpy as np

    from gpugrad.codegen import cuda_module

    from .shim import launches

    pointers = []
    for buffer, phase in zip(launch.buffers, launch.phases):
        memory = cupy.cuda.alloc(buffer.nbytes + phase + 16)
        pointers.append(cupy.cuda.MemoryPointer(memory.mem, memory.ptr - memory.mem.ptr + phase))
    addresses = [p.ptr for p in pointers]
    before = [b.copy() for b in launch.buffers]
    launches.place_pointers(launch, before, addresses)
    for pointer, content in zip(pointers, before):
        pointer.copy_from_host(content.ctypes.data, content.nbytes)
    kernel = cuda_module.Launcher(launch.text, launch.function)
    arguments = [np.frombuffer(v, f"V{len(v)}") for v in launches.values(launch, addresses)]
    kernel(launch.grid, launch.block, arguments, launch.shared)
    cupy.cuda.get_current_stream().synchronize()
    results = [np.empty(b.nbytes, np.uint8) for b in launch.buffers]
    for pointer, result in zip(pointers, results):
        pointer.copy_to_host(result.ctypes.data, result.nbytes)
    return results


def exercise() -> Report:
    """Operations with small arrays and their gradients, each array an allocation of its own, for
    compute-sanitizer. Values are not looked at."""
    import cupy

    import gpugrad as gg

    functional = gg.nn.functional
    cupy.cuda.set_allocator(None)
    gg.manual_seed(0)

    def tensor(*shape):
        return gg.randn(*shape).to("cuda").requires_grad_()

    def integers(high, *shape):
        return gg.randint(0, high, shape).to("cuda")

    x, image, labels = tensor(5, 37), tensor(2, 3, 9, 9), integers(37, 5)
    heads = [tensor(2, 2, 17, 8) for _ in range(3)]
    cases: dict[str, Callable[[], Any]] = {
        "elementwise": lambda: gg.tanh(x) * x.exp() + x[:, :1],
        "strided": lambda: x.T[::2] * 2,
        "softmax": lambda: functional.softmax(x, 1) + functional.log_softmax(x, 0),
        "layer_norm": lambda: functional.layer_norm(x, (37,)),
        "batch_norm": lambda: functional.batch_norm(image, None, None, training=True),
        "cross_entropy": lambda: functional.cross_entropy(x, labels),
        "sums": lambda: x.sum() + x.mean(0).sum() + x.max(1).values.sum(),
        "matmul": lambda: x @ x.T,
        "convolution": lambda: functional.conv2d(image, tensor(4, 3, 3, 3), padding=1),
        "pooling": lambda: functional.max_pool2d(image, 2) + functional.avg_pool2d(image, 2),
        "attention": lambda: functional.scaled_dot_product_attention(*heads, is_causal=True),
        "embedding": lambda: functional.embedding(integers(11, 6), tensor(11, 8)),
        "index": lambda: x[integers(5, 9)],
        "dropout": lambda: functional.dropout(x, 0.3),
        "random": lambda: gg.rand(33, device="cuda") * x[0, 0],
        "optimizer": optimizer_step,
    }
    wanted = os.environ.get("GPUGRAD_EXERCISE", "").split() or list(cases)
    done, problems = [], []
    for name in wanted:
        try:
            result = cases[name]()
            if result is not None and result.requires_grad:
                result.sum().backward()
            gg.cuda.synchronize()
            done.append(name)
        except Exception as error:
            traceback.print_exc()
            problems.append(f"{name}: {type(error).__name__}: {error}"[:500])
    return {"outcome": "failed" if problems else "passed", "done": done, "problems": problems}


def optimizer_step() -> None:
    import gpugrad as gg

    model = gg.nn.Sequential(gg.nn.Linear(7, 5), gg.nn.GELU(), gg.nn.Linear(5, 3)).to("cuda")
    for kind in (gg.optim.SGD, gg.optim.Adam, gg.optim.AdamW):
        optimizer = kind(model.parameters(), lr=0.1)
        model(gg.randn(4, 7).to("cuda")).square().mean().backward()
        gg.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


# ---- parts made of other programs ----------------------------------------------------------------


class Session:
    """Where results go, and how much time is left."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.end = time.monotonic() + options.minutes * 60
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(self.python_path())}
        self.environment.pop("OPENBLAS_CORETYPE", None)
        self.parts: dict[str, Report] = {}
        self.file: Path | None = None

    def python_path(self) -> list[str]:
        return [p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p]

    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())

    def run(self, command: Sequence[str], limit: float) -> Report:
        """A program's outcome, with the end of what it printed; ``output`` is all of it."""
        limit = min(limit, self.left())
        if limit < 5:
            return {"outcome": "not run", "reason": "no time was left"}
        start = time.monotonic()
        with tempfile.TemporaryFile("w+", errors="replace") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=self.environment, cwd=ROOT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)  # its own group, made above
                process.wait()
                code = None
            out.seek(0)
            output = out.read()
        outcome = "passed" if code == 0 else "timeout" if code is None else "failed"
        return {
            "outcome": outcome,
            "status": code,
            "seconds": round(time.monotonic() - start, 1),
            "tail": output[-3000:],
            "output": output,
        }

    def keep(self, name: str, report: Report) -> None:
        """A part is done: everything so far is written."""
        report.pop("output", None)
        self.parts[name] = report
        print(f"{name}: {report.get('outcome')} {summary(report)}", flush=True)
        described = self.parts.get("environment", {})
        if self.file is None:
            device = re.sub(r"[^a-z0-9]+", "-", str(described.get("device", "unknown")).lower())
            moment = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d-%H%M")
            folder = Path(self.options.results)
            folder.mkdir(parents=True, exist_ok=True)
            self.file = folder / f"{device.strip('-')}-{moment}.json"
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.parts, indent=1) + "\n")
        os.replace(partial, self.file)

    # ---- parts

    def own(self, part: str, limit: float, *arguments: str) -> Report:
        """A part of this file."""
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder, "answer.json")
            module = [sys.executable, "-m", "tests.cuda.gpu_session"]
            report = self.run([*module, "--part", part, "--answer", str(answer), *arguments], limit)
            if answer.exists():
                found = json.loads(answer.read_text())
                return {**report, **found}
        return report

    def recordings(self, limit: float, processes: int = 4) -> Report:
        """In several processes: compiling takes most of the time, and an error that spoils a device
        for a process leaves the others."""

        def one(number: int) -> Report:
            share = ("--share", f"{number}/{processes}", "--seconds", str(limit * 0.8))
            report = self.own("recordings", limit, *share)
            report.pop("output", None)
            return report

        with ThreadPoolExecutor(processes) as pool:
            shares = list(pool.map(one, range(1, processes + 1)))
        outcomes = {s["outcome"] for s in shares}
        return {
            "outcome": next((o for o in ("timeout", "failed") if o in outcomes), outcomes.pop()),
            "launches": sum(s.get("launches", 0) for s in shares),
            "without_time": sum(s.get("without_time", 0) for s in shares),
            "problems": [p for s in shares for p in s.get("problems", [])],
            "shares": shares,
        }

    def benchmark(self, part: str, limit: float) -> Report:
        found: Report = {"outcome": "passed"}
        for library in self.libraries(part):
            command = [sys.executable, "-m", "tests.cuda.gpu_session", "--part", f"bench-{part}"]
            with tempfile.TemporaryDirectory() as folder:
                answer = Path(folder, "answer.json")
                more = ["--library", library, "--scale", str(self.options.scale)]
                report = self.run([*command, "--answer", str(answer), *more], limit)
                report.pop("output", None)
                if answer.exists():
                    report["result"] = json.loads(answer.read_text())
            if report["outcome"] != "passed":
                found["outcome"] = report["outcome"]
            found[library] = report
        return found

    def libraries(self, part: str) -> list[str]:
        versions = self.parts.get("environment", {}).get("versions", {})
        peers = {"copy": (), "static": ("torch", "jax")}.get(part, ("torch",))
        alone = self.options.without_torch
        return ["gpugrad", *[p for p in peers if p in versions and not alone]]

    def tests(self, limit: float) -> Report:
        """The tests of every file in a process of their own, as many at once as there are cores."""
        if self.run([sys.executable, "-c", "import pytest, hypothesis"], 60)["outcome"] != "passed":
            return {"outcome": "not run", "reason": "pytest or hypothesis is missing: --wheels"}
        files = sorted(self.options.tests or gpu_test_files())
        end = time.monotonic() + limit

        def one(file: str) -> Report:
            command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
            report = self.run([*command, "--tb=short", file], max(0.0, end - time.monotonic()))
            output = report.pop("output", "")
            report["counts"] = counts(output)
            report["failures"] = re.findall(r"^(?:FAILED|ERROR) (.*)$", output, re.MULTILINE)[:40]
            if report.get("status") == 5:  # no test of the file is for a GPU
                report["outcome"] = "passed"
            return report

        with ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 2) // 2))) as pool:
            found = dict(zip(files, pool.map(one, files)))
        total: dict[str, int] = {}
        for report in found.values():
            for key, value in report.get("counts", {}).items():
                total[key] = total.get(key, 0) + value
        good = all(r["outcome"] == "passed" for r in found.values())
        return {"outcome": "passed" if good else "failed", "counts": total, "files": found}

    def sanitizer(self, tool: str, limit: float) -> Report:
        """compute-sanitizer on small work; 9 is the status of a run in which it found something."""
        program = self.options.sanitizer or find_sanitizer()
        if program is None:
            return {"outcome": "not run", "reason": "no compute-sanitizer"}
        watched: Report = {"outcome": "passed"}
        for part in ("exercise", *(["recordings"] if tool != "initcheck" else [])):
            command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
            module = [sys.executable, "-m", "tests.cuda.gpu_session", "--part", part]
            report = self.run([*command, *module, "--most", "100"], limit / 2)
            output = report.pop("output", "")
            report["errors"] = re.findall(r"^=+ (.*(?:error|hazard|Invalid|Uninit).*)$", output,
                                          re.MULTILINE | re.IGNORECASE)[:40]  # fmt: skip
            if report["outcome"] != "passed":
                watched["outcome"] = report["outcome"]
            watched[part] = report
        return watched


def gpu_test_files() -> list[str]:
    """Files with tests marked for a GPU."""
    files = (ROOT / "tests").rglob("test_*.py")
    return [str(f.relative_to(ROOT)) for f in files if "mark.gpu" in f.read_text(encoding="utf-8")]


def counts(output: str) -> dict[str, int]:
    """What pytest's last line says."""
    last = "".join(output.strip().splitlines()[-1:])
    return {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}


def find_sanitizer() -> str | None:
    places = [os.environ.get("CUDA_PATH", ""), os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    known = [shutil.which("compute-sanitizer"), *(f"{p}/bin/compute-sanitizer" for p in places)]
    return next((k for k in known if k and os.access(k, os.X_OK)), None)


def summary(report: Report) -> str:
    parts = [f"{k}={report[k]}" for k in ("seconds", "counts", "launches", "reason") if k in report]
    return " ".join([*parts, *(report.get("problems") or [])[:3]])


def install_wheels(session: Session, folder: str, target: str) -> Report:
    """pytest and the like, without a network, into a folder that only this session sees. A package
    that can be imported already is left alone. Without pip the wheels are just unpacked."""
    wanted = [w for w in WHEELS if session.run([sys.executable, "-c", f"import {w}"], 60)["status"]]
    report: Report = {"outcome": "passed", "wanted": wanted}
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", folder]
    for name in wanted:
        done = session.run([*command, "--target", target, "--upgrade", name], 90)
        if done["outcome"] != "passed":
            report |= {name: done["tail"][-500:], "unpacked": unpack_wheels(folder, target)}
            break
    session.environment["PYTHONPATH"] = os.pathsep.join([*session.python_path(), target])
    for name in wanted:
        if session.run([sys.executable, "-c", f"import {name}"], 60)["status"]:
            report |= {"outcome": "failed", "reason": f"{name} is still missing"}
    return report


def unpack_wheels(folder: str, target: str) -> list[str]:
    """All wheels that fit this Python."""
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    fitting = re.compile(rf"-(py3|py2\.py3|{version}|cp3\d+-abi3)-")
    found = [f for f in sorted(Path(folder).glob("*.whl")) if fitting.search(f.name)]
    for file in found:
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(target)
    return [f.name for f in found]


# ---- the session ---------------------------------------------------------------------------------

# In the order of their worth; seconds at most. They need not fit together: what is left decides.
LIMITS = {
    "recordings": 90, "tests": 200, "copy": 30, "kernels": 50, "gemm": 50, "host": 40, "steps": 90,
    "static": 90, "memcheck": 60, "racecheck": 50, "synccheck": 50, "initcheck": 40,
}  # fmt: skip


def run_session(options: argparse.Namespace) -> int:
    session = Session(options)
    with tempfile.TemporaryDirectory() as target:
        session.keep("environment", session.own("environment", 90))
        if options.wheels:
            session.keep("wheels", install_wheels(session, options.wheels, target))
        for part in options.parts or LIMITS:
            try:
                report = run_part(session, part, LIMITS[part])
            except Exception as error:  # a mistake of this file must not cost the parts that follow
                traceback.print_exc()
                report = {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}
            session.keep(part, report)
    print(f"written: {session.file}")
    return int(any(r.get("outcome") in ("failed", "timeout") for r in session.parts.values()))


def run_part(session: Session, part: str, limit: float) -> Report:
    if part == "tests":
        return session.tests(limit)
    if part in TOOLS:
        return session.sanitizer(part, limit)
    if part == "recordings":
        return session.recordings(limit)
    return session.benchmark(part, limit)


def run_here(options: argparse.Namespace) -> int:
    """A part in this process; its answer goes to a file."""
    if os.environ.get("GPUGRAD_TEST_DEVICE") == "host":
        from . import host_device

        host_device.activate()
    if options.part.startswith("bench-"):
        from benchmarks import cuda as benchmarks

        benchmarks.progress = lambda found: answer(options, found)
        device = benchmarks.device_of(options.library)
        found: Report = benchmarks.PARTS[options.part[6:]](device, options.scale)
    elif options.part == "recordings":
        found = recordings(options)
    else:
        found = {"environment": environment, "exercise": exercise}[options.part]()
    answer(options, found)
    return int(found.get("outcome") == "failed")


def answer(options: argparse.Namespace, found: Report) -> None:
    """For the process that started this one; what is there counts even if this one is ended."""
    if options.answer:
        partial = Path(options.answer).with_suffix(".partial")
        partial.write_text(json.dumps(found))
        os.replace(partial, options.answer)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", metavar="FOLDER", help="wheels of what is not installed")
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything")
    parser.add_argument("--results", default=str(RESULTS), metavar="FOLDER")
    parser.add_argument("--parts", nargs="+", choices=LIMITS, help="only these")
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="only these test files")
    parser.add_argument("--scale", type=float, default=1.0, help="of the benchmarks' sizes")
    parser.add_argument("--sanitizer", metavar="PROGRAM", help="another compute-sanitizer")
    parser.add_argument("--without-torch", action="store_true")
    hidden = argparse.SUPPRESS
    parser.add_argument("--part", help=hidden)
    parser.add_argument("--answer", help=hidden)
    parser.add_argument("--most", type=int, help=hidden)
    parser.add_argument("--share", default="1/1", help=hidden)
    parser.add_argument("--seconds", type=float, default=1e9, help=hidden)
    parser.add_argument("--library", default="gpugrad", help=hidden)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    return run_here(options) if options.part else run_session(options)


if __name__ == "__main__":
    sys.exit(main())
