"""Who may import whom, what an import loads, how large the core is: read off the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gpugrad"

# Lower may not import higher. Modules of one line may import each other.
LAYERS = (
    {"dtypes", "errors", "config"},
    {"backend"},
    {"codegen"},
    {"ops"},
    {"tensor", "autograd", "autocasting", "eager", "creation", "random", "foreach", "custom"}
    | {"tree", "backends", "compiler", "lifted", "batching"},
    {"functional", "functions", "func", "tape", "static", "testing", "numpy_protocol", "linalg"}
    | {"fft", "lists", "amp", "cuda", "mapping", "control_flow"},
    {"nn", "optim", "utils", "io", "vision", "train"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# These build on the public API only.
PUBLIC_ONLY = ("nn", "optim", "train", "utils", "vision")

# Where arrays are made, and where data come from files.
MAY_IMPORT_NUMPY = ("backend", "codegen", "io", "vision", "train", "utils/data", "dtypes", "random")

OPTIONAL = (
    "cupy", "cupyx", "graphviz", "llvmlite", "matplotlib", "ml_dtypes", "rich", "safetensors",
    "scipy", "torch",
)  # fmt: skip

CORE_MEGABYTES = 5


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    module: str  # absolute: "gpugrad.ops.core"
    names: tuple[str, ...]  # what `from module import` takes; empty for `import module`
    at_import: bool  # executed when the file is imported
    typing_only: bool  # inside `if TYPE_CHECKING`

    def __str__(self) -> str:
        what = f"from {self.module} import {', '.join(self.names)}" if self.names else self.module
        return f"{self.file.relative_to(ROOT)}:{self.line}: {what}"

    @property
    def targets(self) -> list[str]:
        """The modules meant: `from gpugrad import nn` means gpugrad.nn."""
        if self.names and self.module == "gpugrad":
            return [f"gpugrad.{name}" for name in self.names]
        return [self.module]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports_of(file: Path) -> Iterator[Import]:
    tree = ast.parse(file.read_text(), str(file))
    package = ".".join(file.relative_to(ROOT).with_suffix("").parts[:-1])

    def walk(node: ast.AST, at_import: bool, typing_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = at_import and not isinstance(
                child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
            )
            typing = typing_only or is_type_checking(child)
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(file, child.lineno, alias.name, (), inside, typing)
            elif isinstance(child, ast.ImportFrom):
                module = child.module or ""
                if child.level:
                    base = package.split(".")[: len(package.split(".")) - child.level + 1]
                    module = ".".join([*base, module] if module else base)
                names = tuple(alias.name for alias in child.names)
                yield Import(file, child.lineno, module, names, inside, typing)
            else:
                yield from walk(child, inside, typing)

    return walk(tree, True, False)


def files(*folders: str) -> list[Path]:
    if not folders:
        return sorted(PACKAGE.rglob("*.py"))
    found: list[Path] = []
    for folder in folders:
        path = PACKAGE / folder
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return [file for file in found if file.exists()]


def part_of(module: str) -> str | None:
    """gpugrad.ops.core -> ops; None for the package itself and for other packages."""
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "gpugrad" and len(pieces) > 1 else None


def owner(file: Path) -> str:
    """The part a file belongs to: gpugrad/ops/core.py -> ops."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def python(*arguments: str) -> str:
    """Output of a fresh interpreter that imports this checkout."""
    ran = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_every_part_has_a_layer() -> None:
    parts = {owner(file) for file in files()} - {"__init__", "__main__"}
    assert parts <= set(LEVEL), f"say in LAYERS where {sorted(parts - set(LEVEL))} belong"


def test_imports_go_one_way() -> None:
    """Also inside functions: a late import hides a cycle, it does not remove it."""
    wrong = []
    for file in files():
        part = owner(file)
        if part in ("__init__", "__main__"):
            continue
        for found in imports_of(file):
            if found.typing_only:
                continue
            for target in found.targets:
                other = part_of(target)
                if other in LEVEL and LEVEL[other] > LEVEL[part]:
                    wrong.append(f"{found}  ({part} lies below {other})")
    assert not wrong, "\n".join(wrong)


def test_only_backends_and_data_import_arrays() -> None:
    allowed = tuple(str(PACKAGE / name) for name in MAY_IMPORT_NUMPY)
    wrong = [
        str(found)
        for file in files()
        if not str(file).startswith(allowed)
        for found in imports_of(file)
        if found.at_import and not found.typing_only
        if found.module.split(".")[0] in ("numpy", "cupy", "cupyx")
    ]
    assert not wrong, "\n".join(wrong)


def test_optional_packages_are_imported_when_used() -> None:
    """Only gpugrad/backend/cupy.py, itself imported on first use, may name one at the top."""
    wrong = [
        str(found)
        for file in files()
        if file != PACKAGE / "backend" / "cupy.py"
        for found in imports_of(file)
        if found.at_import and not found.typing_only
        if found.module.split(".")[0] in OPTIONAL
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("part", PUBLIC_ONLY)
def test_upper_parts_use_public_names_only(part: str) -> None:
    """No module below the public API, no underscore name of another part."""
    public_modules = {*PUBLIC_ONLY, "io", "functional", "func", "tape", "errors"}
    wrong = []
    for file in files(part):
        for found in imports_of(file):
            if found.module.split(".")[0] != "gpugrad":
                continue
            for target in found.targets:
                other = part_of(target) or ""
                lower = other in LEVEL and other not in public_modules
                private = other != part and any(
                    piece.startswith("_") and not piece.endswith("__")
                    for piece in (*target.split("."), *found.names)
                )
                if (found.module != "gpugrad" and lower) or private:
                    wrong.append(str(found))
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and node.attr.startswith("_")
                and not node.attr.endswith("__")
                and isinstance(node.value, ast.Name)
                and node.value.id in ("gg", "gpugrad")
            ):
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def test_ops_do_not_know_tensors() -> None:
    wrong = []
    for file in files("ops"):
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(node, "id", None) or getattr(node, "attr", None)
            if name == "Tensor":
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_no_op_is_named_in_the_backend() -> None:
    """A backend is arrays, devices and memory; `apply` and the rows are above it."""
    wrong = [
        str(found)
        for file in files("backend")
        for found in imports_of(file)
        if part_of(found.module) in ("ops", "codegen")
    ]
    assert not wrong, "\n".join(wrong)


def test_import_loads_numpy_and_nothing_optional() -> None:
    code = f"import gpugrad, sys; print(*(m for m in {OPTIONAL!r} if m in sys.modules))"
    assert python("-W", "error", "-c", code).split() == []


def test_import_adds_little_to_that_of_numpy() -> None:
    """Each of these costs milliseconds; what needs one imports it inside a function."""
    heavy = (
        "argparse", "asyncio", "cProfile", "csv", "dataclasses", "email", "gzip", "http", "json",
        "multiprocessing", "pathlib", "pdb", "shutil", "socket", "ssl", "statistics", "subprocess",
        "tarfile", "tempfile", "unittest", "urllib", "xml", "zipfile",
    )  # fmt: skip
    code = (
        "import numpy, sys; before = set(sys.modules); import gpugrad; "
        f"print(*(m for m in {heavy!r} if m in set(sys.modules) - before))"
    )
    assert python("-c", code).split() == []


def test_every_module_imports() -> None:
    """Also those that nothing imports: a file left behind would break unseen."""
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in files()
        if file.name != "__main__.py" and file != PACKAGE / "backend" / "cupy.py"
    ]
    python(
        "-W", "error", "-c", f"import importlib\nfor m in {modules!r}: importlib.import_module(m)"
    )


def test_core_is_small() -> None:
    """What `pip install gpugrad` adds beside NumPy, without the byte code."""
    shipped = [
        file
        for folder in (PACKAGE, ROOT / "kernels")
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    megabytes = sum(file.stat().st_size for file in shipped) / 1e6
    assert megabytes < CORE_MEGABYTES, f"{megabytes:.1f} MB"
