"""Image transforms with torchvision's names, for one image or a whole batch at a time.

An image is an ndarray ``(H, W)`` or ``(H, W, C)``, or a tensor ``(C, H, W)``. Each transform is
called with one image; ``transform.batch(images)`` takes a batch of them (one more leading
dimension) and does the work in a few array operations, which is what
:class:`~gpugrad.utils.data.DataLoader` uses for MNIST.

Random transforms draw from :func:`gpugrad.utils.data.sample_generator`: the loader's own generator
for the batch, or the global generator (``gpugrad.manual_seed``) outside a loader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gpugrad as gg
from gpugrad.utils.data import sample_generator
from gpugrad.vision import _geometry

__all__ = ["Compose", "Lambda", "Normalize", "RandomAffine", "RandomCrop", "ToTensor"]


class _BatchTransform:
    """Base of transforms that are written for batches; one image is a batch of one."""

    batchable = True

    def __call__(self, image: Any) -> Any:
        if not isinstance(image, np.ndarray | gg.Tensor):
            raise TypeError(
                f"{type(self).__name__} takes an ndarray (H, W) or (H, W, C), or a tensor (C, H, "
                f"W), not {type(image).__name__}; convert it with numpy.asarray"
            )
        return self.batch(image[None])[0]

    def batch(self, images: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not define batch(images)")


class Compose:
    """Apply transforms one after the other.

    Example:
        >>> import numpy as np
        >>> from gpugrad.vision import transforms
        >>> normalize = transforms.Normalize((0.5,), (0.5,))
        >>> prepare = transforms.Compose([transforms.ToTensor(), normalize])
        >>> tuple(prepare(np.zeros((28, 28), np.uint8)).shape)
        (1, 28, 28)
    """

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms: list[Any] = list(transforms)

    @property
    def batchable(self) -> bool:
        """Whether every member works on batches."""
        return all(
            hasattr(transform, "batch") and getattr(transform, "batchable", True)
            for transform in self.transforms
        )

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image

    def batch(self, images: Any) -> Any:
        """Apply every member to the whole batch; all of them must have ``batch``."""
        for transform in self.transforms:
            images = transform.batch(images)
        return images

    def __repr__(self) -> str:
        inner = "".join(f"\n    {transform!r}" for transform in self.transforms)
        return f"Compose({inner}\n)"


class Lambda:
    """Apply any function to each image; batches go through it one image at a time.

    Example:
        >>> from gpugrad.vision import transforms
        >>> transforms.Lambda(lambda image: image + 1)(2)
        3
    """

    def __init__(self, lambd: Callable[[Any], Any]) -> None:
        if not callable(lambd):
            raise TypeError(f"Argument lambd should be callable, got {type(lambd).__name__}")
        self.lambd = lambd

    def __call__(self, image: Any) -> Any:
        return self.lambd(image)

    def __repr__(self) -> str:
        return f"Lambda({getattr(self.lambd, '__name__', self.lambd)})"


class ToTensor(_BatchTransform):
    """Turn an ``(H, W[, C])`` array into a ``(C, H, W)`` tensor; uint8 becomes float32 in [0, 1].

    Arrays of other dtypes keep dtype and values. The tensor has its own memory. A tensor is
    refused: it already is one.

    Example:
        >>> import numpy as np
        >>> from gpugrad.vision.transforms import ToTensor
        >>> ToTensor()(np.array([[0, 255]], dtype=np.uint8))
        tensor([[[0., 1.]]])
    """

    def batch(self, images: np.ndarray) -> gg.Tensor:
        """``(N, H, W[, C])`` array to ``(N, C, H, W)`` tensor."""
        if not isinstance(images, np.ndarray):
            raise TypeError(f"pic should be ndarray. Got {type(images).__name__}")
        if images.ndim not in (3, 4):
            raise ValueError(
                f"pic should be 2/3 dimensional, (H, W) or (H, W, C). Got {images.ndim - 1} "
                f"dimensions, shape {images.shape[1:]}"
            )
        images = images[:, None] if images.ndim == 3 else np.moveaxis(images, 3, 1)
        if images.dtype == np.uint8:
            return gg.from_numpy(np.divide(images, np.float32(255), dtype=np.float32))
        return gg.from_numpy(images.copy(order="C"))

    def __repr__(self) -> str:
        return "ToTensor()"


class Normalize(_BatchTransform):
    """Subtract the mean and divide by the standard deviation of each channel of a float tensor.

    Args:
        mean: one value per channel (or one for all).
        std: likewise, not zero.
        inplace: overwrite the tensor given.

    Raises:
        TypeError: not a tensor, or not of floating dtype.
        ValueError: a zero in ``std``, or another number of channels.

    Example:
        >>> import gpugrad as gg
        >>> from gpugrad.vision.transforms import Normalize
        >>> Normalize((0.5,), (0.25,))(gg.ones(1, 1, 2))
        tensor([[[2., 2.]]])
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> None:
        self.mean = mean
        self.std = std
        self.inplace = inplace
        if np.any(np.asarray(std) == 0):
            raise ValueError(f"std evaluated to zero, leading to division by zero: std={std}")

    def batch(self, images: gg.Tensor) -> gg.Tensor:
        """``(N, C, H, W)`` float tensor to the same."""
        if not isinstance(images, gg.Tensor):
            raise TypeError(
                f"img should be Tensor Image. Got {type(images).__name__}; put ToTensor() before "
                "Normalize"
            )
        if images.array.dtype.kind != "f":
            raise TypeError(
                f"Input tensor should be a float tensor. Got {images.dtype}; put ToTensor() before "
                "Normalize"
            )
        mean, std = (
            gg.as_tensor(
                np.reshape(value, (-1, 1, 1)).astype(images.array.dtype), device=images.device
            )
            for value in (self.mean, self.std)
        )
        channels = images.shape[-3]
        if mean.numel() not in (1, channels) or std.numel() not in (1, channels):
            raise ValueError(
                f"Normalize has {mean.numel()} means and {std.numel()} standard deviations, but "
                f"the image has {channels} channels (shape {tuple(images.shape[1:])})"
            )
        images = images if self.inplace else images.clone()
        return images.sub_(mean).div_(std)

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"


class RandomAffine(_BatchTransform):
    """Rotate, shift, scale and shear each image by random amounts, keeping its size and centre.

    Args:
        degrees: rotation is uniform in ``(-degrees, degrees)``, or in the given pair.
        translate: ``(a, b)``: shift uniform in ``+-a * width`` and ``+-b * height``, rounded to
            whole pixels.
        scale: factor uniform in the given pair.
        shear: along x uniform in ``(-shear, shear)`` degrees; or a pair for x; or four numbers for
            x and y.
        interpolation: ``"nearest"`` or ``"bilinear"``.
        fill: value of pixels from outside the image.

    Raises:
        ValueError: a range that is negative or empty, an unknown interpolation.

    Example:
        >>> import gpugrad as gg
        >>> from gpugrad.vision.transforms import RandomAffine
        >>> tuple(RandomAffine(10, translate=(0.1, 0.1))(gg.rand(1, 28, 28)).shape)
        (1, 28, 28)
    """

    def __init__(
        self,
        degrees: float | Sequence[float],
        translate: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        shear: float | Sequence[float] | None = None,
        interpolation: str = "nearest",
        fill: float = 0,
    ) -> None:
        self.degrees = _symmetric_range("degrees", degrees, (2,))
        if translate is not None and (
            len(translate) != 2 or not all(0 <= t <= 1 for t in translate)
        ):
            raise ValueError(
                f"translation values should be two numbers between 0 and 1, got {translate}"
            )
        if scale is not None and (len(scale) != 2 or not 0 < scale[0] <= scale[1]):
            raise ValueError(f"scale values should be two positive numbers in order, got {scale}")
        if interpolation not in ("nearest", "bilinear"):
            raise ValueError(
                f"interpolation should be 'nearest' or 'bilinear', got {interpolation!r}"
            )
        self.translate = translate
        self.scale = scale
        self.shear = None if shear is None else _symmetric_range("shear", shear, (2, 4))
        self.interpolation = interpolation
        self.fill = fill

    def batch(self, images: Any) -> Any:
        """Transform ``(N, H, W[, C])`` arrays or ``(N, C, H, W)`` tensors, each by its own draw."""
        return _on_planes(self, images, self._warp)

    def _warp(self, planes: np.ndarray) -> np.ndarray:
        count, _, height, width = planes.shape
        # Six uniform numbers per image, always: adding an option does not change what the others
        # draw.
        draws = gg.rand(count, 6, dtype=gg.float64, generator=sample_generator()).numpy()
        angle = _between(self.degrees, draws[:, 0])
        reach = np.array(self.translate if self.translate is not None else (0.0, 0.0)) * (
            width,
            height,
        )
        translate = np.rint((2 * draws[:, 1:3] - 1) * reach)
        scale = _between(self.scale if self.scale is not None else (1.0, 1.0), draws[:, 3])
        shear = np.zeros((count, 2))
        if self.shear is not None:
            shear[:, 0] = _between(self.shear[:2], draws[:, 4])
        if self.shear is not None and len(self.shear) == 4:
            shear[:, 1] = _between(self.shear[2:], draws[:, 5])
        matrices = _geometry.inverse_affine(angle, translate, scale, shear)
        return _geometry.warp(planes, matrices, self.interpolation, self.fill)

    def __repr__(self) -> str:
        options = [f"degrees={list(self.degrees)}"]
        options += [
            f"{name}={value}"
            for name, value in (
                ("translate", self.translate),
                ("scale", self.scale),
                ("shear", self.shear),
            )
            if value is not None
        ]
        options += [f"interpolation={self.interpolation!r}", f"fill={self.fill}"]
        return f"RandomAffine({', '.join(options)})"


class RandomCrop(_BatchTransform):
    """Cut a window of the given size at a random place, after padding.

    ``RandomCrop(28, padding=2)`` on 28 x 28 digits shifts each by up to two pixels.

    Args:
        size: ``(height, width)`` or one number for a square.
        padding: pixels on every side; or ``(horizontal, vertical)``; or ``(left, top, right,
            bottom)``.
        pad_if_needed: pad further where the image is smaller than the window, instead of raising.
        fill: value of constant padding.
        padding_mode: ``"constant"``, ``"edge"``, ``"reflect"`` or ``"symmetric"``.

    Raises:
        ValueError: the image is smaller than the window, with both sizes.

    Example:
        >>> import gpugrad as gg
        >>> from gpugrad.vision.transforms import RandomCrop
        >>> tuple(RandomCrop(28, padding=2)(gg.rand(1, 28, 28)).shape)
        (1, 28, 28)
    """

    def __init__(
        self,
        size: int | Sequence[int],
        padding: int | Sequence[int] | None = None,
        pad_if_needed: bool = False,
        fill: float = 0,
        padding_mode: str = "constant",
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"size should be one positive int or (height, width), got {size}")
        if padding_mode not in ("constant", "edge", "reflect", "symmetric"):
            raise ValueError(
                f"padding_mode should be constant, edge, reflect or symmetric, got {padding_mode!r}"
            )
        self.padding = _four_sides(padding)
        self.pad_if_needed = pad_if_needed
        self.fill = fill
        self.padding_mode = padding_mode

    def batch(self, images: Any) -> Any:
        """Transform ``(N, H, W[, C])`` arrays or ``(N, C, H, W)`` tensors, each at its place."""
        return _on_planes(self, images, self._crop)

    def _crop(self, planes: np.ndarray) -> np.ndarray:
        height, width = self.size
        if any(self.padding):
            planes = _geometry.pad(planes, self.padding, self.fill, self.padding_mode)
        if self.pad_if_needed:
            extra_x, extra_y = max(width - planes.shape[3], 0), max(height - planes.shape[2], 0)
            if extra_x or extra_y:
                sides = (extra_x, extra_y, extra_x, extra_y)
                planes = _geometry.pad(planes, sides, self.fill, self.padding_mode)
        count, _, available_y, available_x = planes.shape
        if available_y < height or available_x < width:
            raise ValueError(
                f"Required crop size {(height, width)} is larger than input image size "
                f"{(available_y, available_x)}; pass padding= or pad_if_needed=True"
            )
        places = gg.rand(count, 2, dtype=gg.float64, generator=sample_generator()).numpy()
        freedom = (available_y - height + 1, available_x - width + 1)
        top, left = (places * freedom).astype(np.intp).T
        return _geometry.crop(planes, top, left, height, width)

    def __repr__(self) -> str:
        return f"RandomCrop(size={self.size}, padding={self.padding})"


def _on_planes(transform: Any, images: Any, operate: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Apply ``operate`` to images as ``(N, C, H, W)`` planes; give back the layout that came."""
    if isinstance(images, gg.Tensor):
        if images.ndim != 4:
            raise ValueError(
                f"{type(transform).__name__} takes tensors (C, H, W), got shape "
                f"{tuple(images.shape[1:])}"
            )
        # Augmentation happens on the host; a batch that lives on a GPU goes there and back.
        return gg.from_numpy(operate(images.detach().cpu().numpy())).to(images.device)
    if images.ndim == 3:
        return operate(images[:, None])[:, 0]
    if images.ndim == 4:
        return np.moveaxis(operate(np.moveaxis(images, 3, 1)), 1, 3)
    raise ValueError(
        f"{type(transform).__name__} takes arrays (H, W) or (H, W, C), got shape {images.shape[1:]}"
    )


def _between(limits: Sequence[float], draws: np.ndarray) -> np.ndarray:
    low, high = limits
    return low + (high - low) * draws


def _symmetric_range(
    name: str, value: float | Sequence[float], lengths: tuple[int, ...]
) -> tuple[float, ...]:
    if isinstance(value, int | float):
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"If {name} is a single number, it must be positive, got {value}")
        return (-value, value)
    if len(value) not in lengths:
        raise ValueError(
            f"{name} should be a number or a sequence of length {' or '.join(map(str, lengths))}, "
            f"got {value}"
        )
    return tuple(value)


def _four_sides(padding: int | Sequence[int] | None) -> tuple[int, int, int, int]:
    sides = (0,) if padding is None else (padding,) if isinstance(padding, int) else tuple(padding)
    if len(sides) not in (1, 2, 4) or min(sides) < 0:
        raise ValueError(f"padding should be one, two or four numbers, not negative, got {padding}")
    left, top, right, bottom = sides * (4 // len(sides))
    return left, top, right, bottom
