"""The examples of the documentation do what it says."""

import doctest
from pathlib import Path

import pytest

from gpugrad.codegen.machine import machine

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("name", ["static.md"])
def test_examples_of(name):
    if machine() is None:
        pytest.skip("the page shows native programs: pip install gpugrad[jit]")
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, tried = doctest.testfile(str(DOCS / name), module_relative=False, optionflags=flags)
    assert tried
    assert not failed
