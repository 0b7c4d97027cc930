"""IDX files: round trips and every way a file can be wrong."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from gpugrad.vision.idx import IdxError, read_idx, write_idx


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("name", ["plain", "packed.gz"])
def test_round_trip(tmp_path, dtype, name):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    write_idx(tmp_path / name, array)
    back = read_idx(tmp_path / name, ndim=3)
    assert back.dtype == np.dtype(dtype)
    assert back.dtype.isnative
    np.testing.assert_array_equal(back, array)


def test_layout_is_that_of_the_description(tmp_path):
    write_idx(tmp_path / "x", np.array([[1, 2, 3]], dtype=np.int16))
    assert (tmp_path / "x").read_bytes() == bytes(
        [0, 0, 0x0B, 2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 1, 0, 2, 0, 3]
    )


def test_empty_array(tmp_path):
    write_idx(tmp_path / "x", np.zeros((0, 28, 28), np.uint8))
    assert read_idx(tmp_path / "x").shape == (0, 28, 28)


def test_dtype_without_a_code(tmp_path):
    with pytest.raises(TypeError, match="int64; convert the array to one of uint8"):
        write_idx(tmp_path / "x", np.arange(3))


def intact():
    return bytes([0, 0, 8, 1, 0, 0, 0, 5]) + b"abcde"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x", b"", "holds 0 bytes"),
        ("x", b"\0\0\x08", "holds 3 bytes"),
        ("x", b"<html>", "not an IDX file.*found 3c 68 74 6d"),
        ("x", b"\0\0\x07\x01abcdefgh", "found 00 00 07 01"),
        ("x", b"\0\0\x08\x02\0\0\0\x05", "truncated: its header needs 12 bytes, it holds 8"),
        (
            "x",
            intact()[:-1],
            r"truncated: shape \(5,\) of 1-byte elements needs 13 bytes, it holds 12",
        ),
        ("x", intact() + b"!", "longer than its header says.*13 bytes, it holds 14"),
        ("x", b"\0\0\x08\x03" + b"\xff" * 12 + b"abc", "truncated.*it holds 19"),
        ("x.gz", intact(), "not gzip data.*found 00 00"),
        ("x.gz", gzip.compress(intact())[:-9], "truncated"),
        ("x.gz", gzip.compress(intact())[:12] + b"\xff" * 20, "corrupt|truncated"),
        ("x.gz", gzip.compress(intact())[:-8] + b"\0" * 8, "corrupt"),
        ("x.gz", gzip.compress(b"hello"), "not an IDX file"),
    ],
)
def test_damaged_files_are_described(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IdxError, match=message) as caught:
        read_idx(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "get it again" in str(caught.value)


def test_rank_is_checked(tmp_path):
    (tmp_path / "labels").write_bytes(intact())
    with pytest.raises(
        IdxError, match="rank 1, expected rank 3: were the image and the label file exchanged"
    ):
        read_idx(tmp_path / "labels", ndim=3)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "absent")
