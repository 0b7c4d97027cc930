"""The lines of programs that messages show."""

from __future__ import annotations

import sys

import pytest

from gpugrad.errors import at, user_line


def test_a_line_is_the_one_of_the_caller():
    line, number = user_line(), sys._getframe().f_lineno
    assert tuple(line) == (__file__, number)
    assert at(line) == f" at {__file__}:{number}"


def test_a_line_in_a_statement_over_several():
    lines = [
        user_line(),
        user_line(),
    ]
    first, second = (number for _, number in lines)
    assert second == first + 1


@pytest.mark.parametrize("line", [None, ("file.py", 7)])
def test_what_else_is_shown(line):
    assert at(line) == ("" if line is None else " at file.py:7")
