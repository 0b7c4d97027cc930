"""MNIST and Fashion-MNIST.

Ten thousand real MNIST digits come with the package (``data/mnist/README.md`` says where they are
from), so examples and the first training run need no network. The full sets are downloaded on
request and verified before use.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.utils.data import Dataset
from gpugrad.vision.idx import IdxError, read_idx

__all__ = ["MNIST", "DownloadError", "FashionMNIST"]

_EMBEDDED = Path(__file__).parent / "data" / "mnist"
_IMAGES = {True: "train-images-idx3-ubyte", False: "t10k-images-idx3-ubyte"}
_LABELS = {True: "train-labels-idx1-ubyte", False: "t10k-labels-idx1-ubyte"}


class DownloadError(RuntimeError):
    """No mirror delivered the file with the right checksum; lists what each of them answered."""


class MNIST(Dataset[tuple[Any, Any]]):
    """Handwritten digits: 28 x 28 grey images (uint8) with labels 0..9 (int64).

    Args:
        root: folder that holds (or will hold) the four IDX files, gzipped or not, directly or in
            ``<root>/MNIST/raw`` as torchvision lays them out. None: the 10,000 digits that come
            with the package, 8,000 to train and 2,000 to test.
        train: the training part or the test part.
        transform: called with each image, an ``(H, W)`` uint8 ndarray (no PIL here); see
            :mod:`gpugrad.vision.transforms`.
        target_transform: called with each label, an int.
        download: fetch missing files into ``<root>/MNIST/raw``, verified by checksum. The files
            keep their ``.gz``.

    Attributes:
        data: uint8 tensor ``(N, 28, 28)``.
        targets: int64 tensor ``(N,)``.
        classes: names of the classes.

    Raises:
        ValueError: ``download=True`` without a root.
        FileNotFoundError: files missing from ``root`` and no download asked for.
        IdxError: a file that is truncated, corrupt or not IDX, or images and labels that do not
            belong together.
        DownloadError: the network or the mirrors failed.

    Example:
        >>> from gpugrad.vision.datasets import MNIST
        >>> digits = MNIST(train=False)
        >>> image, label = digits[0]
        >>> len(digits), image.shape, 0 <= label <= 9
        (2000, (28, 28), True)
    """

    mirrors = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )
    # The MD5 sums that torchvision publishes for the four archives.
    checksums = {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb7873b",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    }
    classes = [
        "0 - zero",
        "1 - one",
        "2 - two",
        "3 - three",
        "4 - four",
        "5 - five",
        "6 - six",
        "7 - seven",
        "8 - eight",
        "9 - nine",
    ]
    embedded: Path | None = _EMBEDDED

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        download: bool = False,
    ) -> None:
        self.root = None if root is None else Path(root)
        self.train = bool(train)
        self.transform = transform
        self.target_transform = target_transform
        if download:
            self._download()
        self.data, self.targets = self._load()

    def _load(self) -> tuple[gg.Tensor, gg.Tensor]:
        image_file = self._find(_IMAGES[self.train])
        images = read_idx(image_file, ndim=3)
        label_file = self._find(_LABELS[self.train])
        labels = read_idx(label_file, ndim=1)
        if len(images) != len(labels):
            raise IdxError(
                f"{image_file} holds {len(images)} images but {label_file} holds {len(labels)} "
                "labels: they are not of one set"
            )
        if images.dtype != np.uint8:
            raise IdxError(f"{image_file} holds {images.dtype} elements, expected uint8 pixels")
        if len(labels) and int(labels.max()) >= len(self.classes):
            raise IdxError(
                f"{label_file} holds the label {int(labels.max())}, expected "
                f"0..{len(self.classes) - 1}"
            )
        return gg.from_numpy(images), gg.from_numpy(labels.astype(np.int64))

    @property
    def raw_folder(self) -> Path:
        """Where downloads go: ``<root>/<class name>/raw``, as torchvision has it."""
        if self.root is None:
            raise ValueError(f"{type(self).__name__} without root= has no folder: pass root='data'")
        return self.root / type(self).__name__ / "raw"

    def _find(self, name: str) -> Path:
        if self.root is None:
            if self.embedded is None:
                raise ValueError(
                    f"{type(self).__name__} is not embedded in the package: pass root='data', "
                    "download=True"
                )
            return self.embedded / f"{name}.gz"
        folders = [self.root, self.raw_folder]
        for folder in folders:
            for candidate in (folder / name, folder / f"{name}.gz"):
                if candidate.is_file():
                    return candidate
        raise FileNotFoundError(
            f"Dataset not found: neither {name} nor {name}.gz is in "
            f"{' or '.join(map(str, folders))}. You can use download=True to download it"
            + (", or root=None for the embedded digits." if self.embedded else ".")
        )

    def _download(self) -> None:
        if self.root is None:
            raise ValueError(
                "download=True needs a folder to download to: pass root='data'"
                + (" (root=None means the digits embedded in the package)" if self.embedded else "")
            )
        for archive, checksum in self.checksums.items():
            target = self.raw_folder / archive
            if not target.is_file() or _md5(target.read_bytes()) != checksum:
                _fetch([mirror + archive for mirror in self.mirrors], target, checksum)

    def __len__(self) -> int:
        return int(self.data.shape[0])

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image: Any = self.data.array[index]
        label: Any = int(self.targets.array[index])
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        return image, label

    def gather(self, indices: np.ndarray) -> list[Any] | None:
        """Return the collated batch of ``indices``, or None if the transform cannot do batches."""
        if self.target_transform is not None:
            return None
        batched = getattr(self.transform, "batch", None)
        if self.transform is not None and batched is None:
            return None
        if batched is not None and not getattr(self.transform, "batchable", True):
            return None
        images: Any = self.data.array.take(indices, axis=0)
        images = batched(images) if batched is not None else images
        if isinstance(images, np.ndarray):
            images = gg.from_numpy(images)
        return [images, gg.from_numpy(self.targets.array.take(indices))]

    def __repr__(self) -> str:
        source = "embedded digits" if self.root is None else str(self.root)
        part = "train" if self.train else "test"
        images = f"{len(self)} images, {part}, from {source}"
        return f"{type(self).__name__}({images}, transform={self.transform!r})"


class FashionMNIST(MNIST):
    """Zalando's pictures of clothes in the format of MNIST, 60,000 to train and 10,000 to test.

    The arguments are those of :class:`MNIST`, except that nothing is embedded: ``root`` is needed.

    Example:
        >>> from gpugrad.vision.datasets import FashionMNIST
        >>> FashionMNIST.classes[9]
        'Ankle boot'
    """

    mirrors = (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    )
    checksums = {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    }
    classes = [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ]
    embedded = None


def _md5(content: bytes) -> str:
    # The published sums are MD5; it guards against damage, not against an adversary.
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _fetch(urls: list[str], target: Path, checksum: str) -> None:
    """Download ``target`` from the first of ``urls`` whose content has the checksum."""
    import urllib.request

    answers = []
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                content = response.read()
        except (
            OSError,
            ValueError,
        ) as error:  # URLError, timeouts and broken connections are OSErrors
            answers.append(f"{url}: {getattr(error, 'reason', None) or error}")
            continue
        found = _md5(content)
        if found == checksum:
            _write_atomically(target, content)
            return
        answers.append(f"{url}: {len(content)} bytes with MD5 {found}, expected {checksum}")
    raise DownloadError(
        f"could not download {target.name}:\n  " + "\n  ".join(answers) + "\n"
        f"Check the network or proxy, or copy the file by hand to {target}; MNIST(root=None) "
        f"needs no download."
    )


def _write_atomically(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
