"""The command line itself: dispatch, help, version, exit codes."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

import gpugrad as gg
from gpugrad import cli
from gpugrad.utils.command import CommandError


def python_m(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "gpugrad", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_lists_the_commands():
    done = python_m("--help")
    assert done.returncode == 0
    for name, command in cli.COMMANDS.items():
        assert name in done.stdout
        assert command.help.split()[0] in done.stdout


def test_info_as_a_module():
    done = python_m("info")
    assert (done.returncode, done.stderr) == (0, "")
    assert "BLAS" in done.stdout


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"gpugrad {gg.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["fly"], ["info", "--fast"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: gpugrad" in capsys.readouterr().err


@pytest.fixture
def hello(monkeypatch):
    """A subcommand of one row: what it raises or returns is set by the test."""
    module = types.ModuleType("hello_command")
    module.add_arguments = lambda parser: parser.add_argument("--name")
    monkeypatch.setitem(sys.modules, "hello_command", module)
    monkeypatch.setitem(cli.COMMANDS, "hello", cli.Command("say hello", "hello_command"))
    return module


def test_a_new_command_is_one_row(hello, capsys):
    hello.main = lambda options: print(f"hello {options.name}") or 5
    assert cli.main(["hello", "--name", "you"]) == 5
    assert capsys.readouterr().out == "hello you\n"


def test_errors_and_interrupts_become_exit_codes(hello, capsys):
    def fail(options):
        raise CommandError("no such thing")

    hello.main = fail
    assert cli.main(["hello"]) == 2
    assert capsys.readouterr().err == "gpugrad hello: no such thing\n"

    def interrupted(options):
        raise KeyboardInterrupt

    hello.main = interrupted
    assert cli.main(["hello"]) == 130


def test_only_the_module_in_use_is_imported():
    code = (
        "import sys; from gpugrad.cli import main; main(['info']);print('gpugrad.train' in "
        "sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_bench_has_the_options_of_the_suite():
    ours, theirs = python_m("bench", "--help"), subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ours.returncode == theirs.returncode == 0
    assert ours.stdout.split("options:")[1] == theirs.stdout.split("options:")[1]


def test_bench_refuses_what_the_suite_refuses():
    done = python_m("bench", "--rows", "w99")
    assert done.returncode == 1
    assert "no such row: w99" in done.stderr or "not installed" in done.stderr


def test_bench_without_the_repository_says_how_to_get_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gg, "__file__", str(tmp_path / "gpugrad" / "__init__.py"))
    assert cli.main(["bench", "--rows", "w1"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("gpugrad bench: the benchmarks are in the repository")
    assert str(tmp_path) in message
    assert "make bench" in message


def test_a_command_s_name_may_be_the_value_of_an_option(hello, monkeypatch):
    seen = []
    hello.main = lambda options: seen.append(options.name) or 0
    assert cli.main(["hello", "--name", "bench"]) == 0
    assert seen == ["bench"]
