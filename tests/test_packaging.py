"""Wheel and sdist hold the package, the kernels and the digits; built without a network."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77", reason="pip install gpugrad[dev]")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from a copy of the sources."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    copy_sources(source)
    code = (
        "import sys\n"
        "from setuptools import build_meta\n"
        "target = sys.argv[1]\n"  # the backend puts its own arguments into sys.argv
        "build_meta.build_wheel(target)\n"
        "build_meta.build_sdist(target)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        cwd=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return target


def copy_sources(target: Path) -> None:
    """The build writes beside the sources; the checkout must stay clean."""
    import shutil

    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "results")
    for name in ("gpugrad", "kernels", "tests", "benchmarks", "examples", "docs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignore)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, target)


def sources(folder: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def wheel_names(built: Path) -> set[str]:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_wheel_holds_every_file_of_the_package_and_nothing_else(built: Path) -> None:
    kernels = {f"gpugrad/{name}" for name in sources("kernels")}
    assert wheel_names(built) == sources("gpugrad") | kernels


def test_wheel_ships_the_digits_and_the_type_marker(built: Path) -> None:
    names = wheel_names(built)
    assert "gpugrad/py.typed" in names
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        assert f"gpugrad/vision/data/mnist/{part}-ubyte.gz" in names


def test_wheel_metadata(built: Path) -> None:
    import gpugrad

    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"gpugrad-{gpugrad.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/entry_points.txt"))
        assert "gpugrad = gpugrad.cli:main" in archive.read(name).decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    without_extra = [line for line in required if "extra ==" not in line]
    assert without_extra == ["Requires-Dist: numpy>=2.1"]
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.11" in metadata


def test_wheel_runs_where_only_numpy_is(built: Path, tmp_path: Path) -> None:
    """Unpacked elsewhere it finds its kernels and digits, and computes a gradient."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import gpugrad as gg, gpugrad.kernels\n"
        "from importlib.resources import files\n"
        "from gpugrad.vision.datasets import MNIST\n"
        "assert files('gpugrad.kernels').joinpath('README.md').is_file()\n"
        "assert len(MNIST(train=False)) == 2000\n"
        "x = gg.tensor([3.0], requires_grad=True)\n"
        "(x * x).sum().backward()\n"
        "assert x.grad.tolist() == [6.0]\n"
        "print(gg.__file__)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(str(tmp_path))


def test_sdist_is_enough_to_test_and_build(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = sources("gpugrad") | sources("kernels") | sources("tests") | sources("examples")
    wanted |= {"pyproject.toml", "setup.py", "Makefile", "README.md", "LICENSE", "CHANGELOG.md"}
    assert wanted <= names, sorted(wanted - names)
