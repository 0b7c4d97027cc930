"""MNIST: the embedded digits, folders of IDX files, downloads, bad files."""

from __future__ import annotations

import gzip
import hashlib
import io
import urllib.error

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.utils.data import DataLoader, default_collate
from gpugrad.vision import transforms
from gpugrad.vision.datasets import MNIST, DownloadError, FashionMNIST
from gpugrad.vision.idx import IdxError, write_idx


def write_set(folder, count=6, suffix=".gz", seed=0):
    """Four small IDX files in ``folder``; returns the training images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for part in ("t10k", "train"):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)
    return images, labels


@pytest.mark.parametrize(("train", "count"), [(True, 8000), (False, 2000)])
def test_embedded_digits(train, count):
    digits = MNIST(train=train)
    assert len(digits) == count
    assert (digits.data.dtype, tuple(digits.data.shape)) == (gg.uint8, (count, 28, 28))
    assert (digits.targets.dtype, tuple(digits.targets.shape)) == (gg.int64, (count,))
    # Real digits: every class at 8-13 %, ink on about a fifth of the pixels, empty corners.
    shares = np.bincount(digits.targets.numpy(), minlength=10) / count
    assert shares.min() > 0.08
    assert shares.max() < 0.13
    pixels = digits.data.numpy()
    assert 0.15 < (pixels > 0).mean() < 0.25
    assert pixels[:, :2, :2].max() == 0


def test_embedded_parts_do_not_overlap():
    train, test = (MNIST(train=part).data.numpy().reshape(-1, 784) for part in (True, False))
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in test}


def test_items_are_arrays_and_ints():
    digits = MNIST(train=False)
    image, label = digits[3]
    assert isinstance(image, np.ndarray)
    assert (image.shape, image.dtype) == ((28, 28), np.uint8)
    assert isinstance(label, int)


def test_transforms_are_applied():
    digits = MNIST(
        train=False, transform=transforms.ToTensor(), target_transform=lambda label: label + 100
    )
    image, label = digits[3]
    assert tuple(image.shape) == (1, 28, 28)
    assert image.max().item() == digits.data.numpy()[3].max() / np.float32(255)
    assert label == digits.targets.numpy()[3] + 100


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("inside", ["", "MNIST/raw"])
def test_folders(tmp_path, suffix, inside):
    images, labels = write_set(tmp_path / inside, suffix=suffix)
    digits = MNIST(tmp_path, train=True)
    np.testing.assert_array_equal(digits.data.numpy(), images)
    np.testing.assert_array_equal(digits.targets.numpy(), labels)
    assert "6 images, train" in repr(digits)


@pytest.mark.parametrize(
    "transform",
    [
        None,
        transforms.ToTensor(),
        transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1,), (0.3,))]),
    ],
    ids=["none", "tensor", "composed"],
)
def test_gather_equals_collating_the_items(transform):
    digits = MNIST(train=False, transform=transform)
    gathered = digits.gather(np.array([5, 0, 7]))
    collated = default_collate([digits[i] for i in (5, 0, 7)])
    for ours, item in zip(gathered, collated, strict=True):
        assert ours.dtype == item.dtype
        np.testing.assert_array_equal(ours.numpy(), item.numpy())


def test_gather_declines_what_it_cannot_batch():
    indices = np.array([0])
    assert MNIST(train=False, transform=lambda image: image).gather(indices) is None
    assert MNIST(train=False, target_transform=str).gather(indices) is None
    mixed = transforms.Compose([transforms.Lambda(lambda image: image), transforms.ToTensor()])
    assert MNIST(train=False, transform=mixed).gather(indices) is None


def test_loader_gives_the_same_batches_either_way():
    def batches(transform):
        loader = DataLoader(MNIST(train=False, transform=transform), batch_size=700)
        return [(x.numpy(), y.numpy()) for x, y in loader]

    batched = batches(transforms.ToTensor())
    single = batches(lambda image: transforms.ToTensor()(image))
    for ours, theirs in zip(batched, single, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"train-images-idx3-ubyte.*download=True.*embedded"
    ):
        MNIST(tmp_path)
    with pytest.raises(FileNotFoundError, match="t10k-images"):
        FashionMNIST(tmp_path, train=False)
    with pytest.raises(ValueError, match="not embedded.*root='data'"):
        FashionMNIST()
    with pytest.raises(ValueError, match="needs a folder"):
        MNIST(download=True)


def test_images_and_labels_must_belong_together(tmp_path):
    write_set(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(5, np.uint8))
    with pytest.raises(IdxError, match="6 images but .* 5 labels"):
        MNIST(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.full(6, 10, np.uint8))
    with pytest.raises(IdxError, match="label 10, expected 0..9"):
        MNIST(tmp_path)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros((6, 28, 28), np.float32))
    with pytest.raises(IdxError, match="float32 elements, expected uint8"):
        MNIST(tmp_path)


def test_truncated_file_is_named(tmp_path):
    write_set(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(IdxError, match=r"train-images-idx3-ubyte.gz is truncated"):
        MNIST(tmp_path)


# ---- downloads, with the network replaced ----


class Mirror:
    """Stands in for urlopen: answers from a dict of URL to bytes or exception, and counts."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def __call__(self, url, timeout):
        self.asked.append(url)
        answer = self.answers.get(url, urllib.error.URLError("no route to host"))
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)


@pytest.fixture
def small_set(tmp_path, monkeypatch):
    """The four archives of a tiny set, which the class takes for the published ones."""
    write_set(tmp_path / "source")
    archives = {file.name: file.read_bytes() for file in (tmp_path / "source").iterdir()}
    sums = {name: hashlib.md5(content).hexdigest() for name, content in archives.items()}
    monkeypatch.setattr(MNIST, "checksums", sums)
    monkeypatch.setattr(MNIST, "mirrors", ("http://one/", "http://two/"))
    return archives


def connect(monkeypatch, answers):
    mirror = Mirror(answers)
    monkeypatch.setattr("urllib.request.urlopen", mirror)
    return mirror


def test_download_and_reuse(tmp_path, monkeypatch, small_set):
    mirror = connect(
        monkeypatch, {f"http://one/{name}": content for name, content in small_set.items()}
    )
    assert len(MNIST(tmp_path, download=True)) == 6
    assert len(mirror.asked) == 4
    assert sorted(file.name for file in (tmp_path / "MNIST" / "raw").iterdir()) == sorted(small_set)
    assert len(MNIST(tmp_path, train=False, download=True)) == 6
    assert len(mirror.asked) == 4


def test_download_falls_back_to_the_next_mirror(tmp_path, monkeypatch, small_set):
    answers = {f"http://two/{name}": content for name, content in small_set.items()}
    answers |= {f"http://one/{name}": b"<html>not found</html>" for name in small_set}
    mirror = connect(monkeypatch, answers)
    assert len(MNIST(tmp_path, download=True)) == 6
    assert len(mirror.asked) == 8


def test_download_replaces_a_damaged_file(tmp_path, monkeypatch, small_set):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"old"))
    connect(monkeypatch, {f"http://one/{name}": content for name, content in small_set.items()})
    assert len(MNIST(tmp_path, download=True)) == 6


def test_failed_download_tells_every_answer_and_leaves_nothing(tmp_path, monkeypatch, small_set):
    name = next(iter(small_set))
    connect(monkeypatch, {f"http://one/{file}": b"wrong" for file in small_set})
    with pytest.raises(DownloadError) as caught:
        MNIST(tmp_path, download=True)
    message = str(caught.value)
    assert "http://one/" in message
    assert f"5 bytes with MD5 {hashlib.md5(b'wrong').hexdigest()}, expected" in message
    assert "http://two/" in message
    assert "no route to host" in message
    assert "copy the file by hand" in message
    assert name.split("-")[0] in message
    raw = tmp_path / "MNIST" / "raw"
    assert not raw.exists() or not list(raw.iterdir())


def test_published_checksums():
    assert MNIST.checksums["train-images-idx3-ubyte.gz"] == "f68b3c2dcbeaaa9fbdd348bbdeb7873b"
    assert MNIST.checksums["t10k-labels-idx1-ubyte.gz"] == "ec29112dd5afa0611ce80d1b7f02629c"
    assert (
        FashionMNIST.checksums["train-labels-idx1-ubyte.gz"] == "25c81989df183df01b3e8a0aad5dffbe"
    )
    assert set(MNIST.checksums) == set(FashionMNIST.checksums)


def test_fashion_reads_its_own_folder(tmp_path):
    images, _ = write_set(tmp_path / "FashionMNIST" / "raw")
    clothes = FashionMNIST(tmp_path)
    np.testing.assert_array_equal(clothes.data.numpy(), images)
    assert len(clothes.classes) == 10
