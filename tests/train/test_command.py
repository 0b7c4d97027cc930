"""``gpugrad train``: runs, resumes bit for bit, interrupts, refuses."""

from __future__ import annotations

import signal
import sys

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cli, io
from gpugrad.train import command
from gpugrad.utils.blas import blas_info
from gpugrad.vision.idx import write_idx

pytest.importorskip("safetensors", reason="pip install gpugrad[train]")


def train(*arguments):
    return cli.main(["train", *map(str, arguments)])


@pytest.fixture
def quick(tmp_path):
    """Options of a run of a second."""
    return ["--model", "mlp", "--subset", 96, "--batch-size", 16, "--out", tmp_path / "run"]


def content(folder):
    """What decides how a run goes on: everything in the checkpoint but the times."""
    state = io.load(folder / "checkpoint.safetensors")
    for result in state["progress"]["history"]:
        result["seconds"] = result["samples_per_second"] = 0
    state["progress"]["seconds"] = 0
    return state


def assert_same(a, b, place="checkpoint"):
    assert type(a) is type(b), place
    if isinstance(a, dict):
        assert list(a) == list(b), place
        for key in a:
            assert_same(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for position, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{place}.{position}")
    elif isinstance(a, gg.Tensor | np.ndarray):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=place)
    else:
        assert a == b, place


def interrupt_after(monkeypatch, batches):
    """Send SIGINT to the process after so many batches, as Ctrl-C does."""
    original = command._Guard.on_batch_end
    count = 0

    def on_batch_end(self, progress):
        nonlocal count
        count += 1
        if count == batches:
            signal.raise_signal(signal.SIGINT)
        original(self, progress)

    monkeypatch.setattr(command._Guard, "on_batch_end", on_batch_end)


@pytest.mark.parametrize("model", ["lenet", "mlp"])
def test_a_run_writes_report_checkpoint_and_curves(tmp_path, capsys, model):
    pytest.importorskip("matplotlib", reason="pip install gpugrad[train]")
    out = tmp_path / "run"
    assert train("--model", model, "--epochs", 1, "--subset", 128, "--out", out) == 0
    shown = capsys.readouterr()
    for part in (
        "parameters",
        "epoch 1/1",
        "test accuracy",
        "images/s",
        "checkpoint.safetensors",
        "curves.png",
    ):
        assert part in shown.out
    assert shown.err == ""
    assert (out / "curves.png").stat().st_size > 10_000
    assert len(io.load(out / "checkpoint.safetensors")["progress"]["history"]) == 1


def test_four_epochs_equal_two_and_two(tmp_path, quick, capsys):
    assert train(*quick, "--epochs", 4) == 0
    whole = content(tmp_path / "run")
    half = [*quick[:-1], tmp_path / "half"]
    assert train(*half, "--epochs", 4, "--stop-after", 2) == 0
    assert f"gpugrad train --resume --out {tmp_path / 'half'}" in capsys.readouterr().out
    assert train("--resume", "--out", tmp_path / "half") == 0
    assert_same(content(tmp_path / "half"), whole)


@pytest.mark.parametrize("batches", [1, 9, 12])
def test_interrupted_anywhere_it_continues_exactly(tmp_path, quick, capsys, monkeypatch, batches):
    assert train(*quick, "--epochs", 3) == 0
    whole = content(tmp_path / "run")
    cut = [*quick[:-1], tmp_path / "cut"]
    with monkeypatch.context() as patch:
        interrupt_after(patch, batches)
        assert train(*cut, "--epochs", 3) == 130
    assert "continue with: gpugrad train --resume" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train("--resume", "--out", tmp_path / "cut") == 0
    assert_same(content(tmp_path / "cut"), whole)


def test_a_second_interrupt_ends_at_once(quick, tmp_path, capsys, monkeypatch):
    def on_batch_end(self, progress):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(command._Guard, "on_batch_end", on_batch_end)
    assert train(*quick) == 130
    assert "interrupted" in capsys.readouterr().err


def test_seeds_decide(tmp_path, quick):
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(*quick[:-1], tmp_path / name, "--epochs", 1, "--seed", seed) == 0
        runs.append(content(tmp_path / name)["progress"]["history"])
    assert runs[0] == runs[1] != runs[2]


def test_resuming_a_finished_run_reports_it_again(tmp_path, quick, capsys):
    assert train(*quick, "--epochs", 1) == 0
    before = content(tmp_path / "run")
    assert train("--resume", "--out", tmp_path / "run", "--epochs", 1, "--model", "mlp") == 0
    assert "test accuracy" in capsys.readouterr().out
    assert_same(content(tmp_path / "run"), before)


def test_a_folder_of_idx_files(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        write_idx(
            tmp_path / f"{part}-images-idx3-ubyte",
            rng.integers(0, 256, (40, 28, 28), dtype=np.uint8),
        )
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", rng.integers(0, 10, 40, dtype=np.uint8))
    assert (
        train(
            "--data",
            tmp_path,
            "--model",
            "mlp",
            "--epochs",
            1,
            "--no-augment",
            "--out",
            tmp_path / "run",
        )
        == 0
    )
    assert "40 images to train" in capsys.readouterr().out


def test_a_loss_that_is_no_number_ends_the_run(tmp_path, quick, capsys):
    with np.errstate(all="ignore"):
        assert train(*quick, "--lr", 1e30, "--epochs", 3) == 1
    assert "try a lower --lr" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "not a folder, nor one of mnist, mnist-full, fashion"),
        (["--device", "tpu"], "--device tpu"),
        (["--resume"], "nothing to resume"),
    ],
)
def test_wrong_values(tmp_path, capsys, arguments, message):
    assert train(*arguments, "--out", tmp_path / "run") == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(gg.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_gpu(tmp_path, capsys):
    assert train("--device", "cuda", "--out", tmp_path / "run") == 2
    message = capsys.readouterr().err
    assert "gpugrad info" in message
    assert "--device cpu" in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "0"],
        ["--epochs", "x"],
        ["--lr", "-1"],
        ["--lr", "nan"],
        ["--seed", "-1"],
        ["--model", "vgg"],
        ["--what"],
    ],
)
def test_usage_errors(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        train(*arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_resuming_with_other_options_is_refused(tmp_path, quick, capsys):
    assert train(*quick, "--epochs", 2, "--stop-after", 1) == 0
    for arguments in (
        ["--lr", 0.5],
        ["--seed", 3],
        ["--epochs", 3],
        ["--model", "lenet"],
        ["--no-augment"],
        ["--batch-size", 64],
    ):
        assert train("--resume", "--out", tmp_path / "run", *arguments) == 2
        assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["truncated", "pickle", "weights"])
def test_bad_checkpoints(tmp_path, quick, capsys, kind):
    assert train(*quick, "--epochs", 1) == 0
    path = tmp_path / "run" / "checkpoint.safetensors"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif kind == "pickle":
        path.write_bytes(b"\x80\x04N." + b"\0" * 20)
    else:
        io.save({"weight": gg.ones(2)}, path)
    assert train("--resume", "--out", path.parent) == 2
    expected = {
        "truncated": "truncated",
        "pickle": "pickle",
        "weights": "was not written by 'gpugrad train'",
    }
    assert expected[kind] in capsys.readouterr().err


def test_damaged_data(tmp_path, capsys):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0")
    assert train("--data", tmp_path, "--out", tmp_path / "run") == 2
    assert "train-images-idx3-ubyte is truncated" in capsys.readouterr().err


def test_threads_hold_for_the_run_only(quick, monkeypatch):
    during = []
    monkeypatch.setattr(command._Guard, "on_batch_end", lambda *_: during.append(threads()))

    def threads():
        return gg.get_num_threads(), blas_info().threads

    before = threads()
    assert train(*quick, "--epochs", 1, "--threads", 1) == 0
    assert set(during) <= {(1, 1), (1, None)}
    assert threads() == before


def test_without_safetensors(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert train("--out", tmp_path / "run") == 2
    assert 'pip install "gpugrad[train]"' in capsys.readouterr().err


def test_without_matplotlib_the_run_still_counts(quick, capsys, monkeypatch):
    for name in (
        "matplotlib",
        "matplotlib.backends",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
    ):
        monkeypatch.setitem(sys.modules, name, None)
    assert train(*quick, "--epochs", 1) == 0
    shown = capsys.readouterr()
    assert "test accuracy" in shown.out
    assert "no curves" in shown.err
