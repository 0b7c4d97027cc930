"""Transforms: values against NumPy and torch, one image against a batch, randomness, errors."""

from __future__ import annotations

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.vision import _geometry
from gpugrad.vision.transforms import Compose, Lambda, Normalize, RandomAffine, RandomCrop, ToTensor


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def digits(rng):
    return rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)


def test_to_tensor_of_grey_and_colour(rng):
    grey = rng.integers(0, 256, (4, 6), dtype=np.uint8)
    tensor = ToTensor()(grey)
    assert (tuple(tensor.shape), tensor.dtype) == ((1, 4, 6), gg.float32)
    np.testing.assert_array_equal(tensor.numpy()[0], grey.astype(np.float32) / np.float32(255))
    colour = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        ToTensor()(colour).numpy(), colour.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    )


def test_to_tensor_keeps_other_dtypes():
    tensor = ToTensor()(np.array([[300]], dtype=np.int64))
    assert (tensor.dtype, tensor.tolist()) == (gg.int64, [[[300]]])


def test_to_tensor_copies(digits):
    image = digits[0].astype(np.float32)
    ToTensor()(image).zero_()
    assert image.any()


def test_to_tensor_refuses():
    with pytest.raises(TypeError, match="list"):
        ToTensor()([[1]])
    with pytest.raises(TypeError, match="pic should be ndarray. Got Tensor"):
        ToTensor()(gg.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="2/3 dimensional"):
        ToTensor()(np.zeros(3))


def test_normalize():
    x = gg.rand(3, 4, 5)
    out = Normalize((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))(x)
    mean, std = np.float32([0.1, 0.2, 0.3])[:, None, None], np.float32([1, 2, 4])[:, None, None]
    np.testing.assert_array_equal(out.numpy(), (x.numpy() - mean) / std)


def test_normalize_in_place_or_not():
    x = gg.ones(1, 2, 2)
    Normalize((0.5,), (0.5,))(x)
    assert x.sum().item() == 4
    Normalize((1.0,), (0.5,), inplace=True)(x)
    assert x.sum().item() == 0


def test_normalize_refuses():
    with pytest.raises(ValueError, match="zero"):
        Normalize((0.5,), (0.0,))
    with pytest.raises(TypeError, match="put ToTensor"):
        Normalize((0.5,), (0.5,))(np.zeros((2, 2), np.uint8))
    with pytest.raises(TypeError, match="uint8"):
        Normalize((0.5,), (0.5,))(gg.zeros(1, 2, 2, dtype=gg.uint8))
    with pytest.raises(
        ValueError, match="2 means and 2 standard deviations, but the image has 3 channels"
    ):
        Normalize((0.5, 0.5), (0.5, 0.5))(gg.zeros(3, 2, 2))


def test_compose_and_lambda(digits):
    chain = Compose([Lambda(lambda image: image // 2), ToTensor()])
    assert not chain.batchable
    np.testing.assert_allclose(chain(digits[0]).numpy()[0], (digits[0] // 2) / 255, rtol=1e-6)
    assert Compose([ToTensor(), Normalize((0.5,), (0.5,))]).batchable
    assert "Normalize" in repr(Compose([Normalize((0.5,), (0.5,))]))
    with pytest.raises(TypeError, match="callable"):
        Lambda(3)


# ---- affine ----


def torch_affine(images, matrices, mode):
    """The same warp by torch's grid_sample (align_corners=False, zeros outside)."""
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")
    height, width = images.shape[2:]
    theta = torch.from_numpy(matrices.astype(np.float64).copy())
    # grid_sample measures positions in halves of the image, warp in pixels.
    theta[:, 0, 1] *= height / width
    theta[:, 1, 0] *= width / height
    theta[:, 0, 2] *= 2 / width
    theta[:, 1, 2] *= 2 / height
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    values = torch.from_numpy(images.astype(np.float64))
    return torch.nn.functional.grid_sample(values, grid, mode=mode, align_corners=False).numpy()


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
def test_warp_equals_torch(rng, mode, channels):
    images = rng.random((6, channels, 13, 18)).astype(np.float32)
    matrices = _geometry.inverse_affine(
        rng.uniform(-40, 40, 6),
        rng.uniform(-4, 4, (6, 2)),
        rng.uniform(0.7, 1.4, 6),
        rng.uniform(-15, 15, (6, 2)),
    )
    ours, theirs = _geometry.warp(images, matrices, mode), torch_affine(images, matrices, mode)
    if mode == "bilinear":
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    else:  # float32 positions half-way between pixels may fall to either side
        assert (np.abs(ours - theirs) > 1e-6).mean() < 0.005


def test_affine_by_hand():
    image = np.zeros((1, 1, 5, 5), np.uint8)
    image[0, 0, 1, 3] = 9  # x = 3, y = 1: right of and above the centre

    def moved(angle=0.0, translate=(0.0, 0.0), scale=1.0):
        matrix = _geometry.inverse_affine(
            np.array([angle]), np.array([translate]), np.array([scale]), np.zeros((1, 2))
        )
        return [
            tuple(int(i) for i in place)
            for place in np.argwhere(_geometry.warp(image, matrix)[0, 0])
        ]

    assert moved() == [(1, 3)]
    assert moved(translate=(1.0, -1.0)) == [(0, 4)]
    assert moved(angle=90.0) == [(3, 3)]  # clockwise: top right goes to bottom right
    assert moved(angle=180.0) == [(3, 1)]
    assert moved(translate=(3.0, 0.0)) == []
    assert moved(scale=2.0) == [(0, 4)]  # twice as far from the centre


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_fill_and_dtype(mode):
    matrix = _geometry.inverse_affine(
        np.zeros(1), np.array([[2.0, 0.0]]), np.ones(1), np.zeros((1, 2))
    )
    out = _geometry.warp(np.full((1, 1, 2, 4), 10, np.uint8), matrix, mode, fill=7)
    assert out.dtype == np.uint8
    assert out.tolist() == [[[[7, 7, 10, 10]] * 2]]


def test_random_affine_stays_in_its_ranges(digits):
    dots = np.zeros((400, 21, 21), np.float32)
    dots[:, 10, 10] = 1  # the centre moves by the translation alone
    gg.manual_seed(0)
    moved = RandomAffine(30, translate=(0.1, 0.2), scale=(0.9, 1.0)).batch(dots)
    places = np.argwhere(moved)
    shift_y, shift_x = (places[:, 1] - 10), (places[:, 2] - 10)
    assert sorted(set(shift_x.tolist())) == [-2, -1, 0, 1, 2]
    assert sorted(set(shift_y.tolist())) == [-4, -3, -2, -1, 0, 1, 2, 3, 4]


def test_random_affine_without_ranges_is_the_identity(digits):
    np.testing.assert_array_equal(RandomAffine(0).batch(digits), digits)
    np.testing.assert_array_equal(RandomAffine(0, interpolation="bilinear").batch(digits), digits)


RANDOM = [
    RandomAffine(20, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=5),
    RandomAffine(20, shear=(-5, 5, -3, 3), interpolation="bilinear"),
    RandomCrop(28, padding=3),
]


@pytest.mark.parametrize("transform", RANDOM, ids=repr)
def test_random_transforms_are_seeded_and_differ_per_image(transform, digits):
    same = np.repeat(digits[:1], 4, axis=0)
    gg.manual_seed(3)
    first = transform.batch(same)
    gg.manual_seed(3)
    np.testing.assert_array_equal(transform.batch(same), first)
    assert any((first[0] != image).any() for image in first[1:])
    assert (first.shape, first.dtype) == (same.shape, np.uint8)


@pytest.mark.parametrize("transform", RANDOM, ids=repr)
def test_one_image_is_a_batch_of_one_in_any_layout(transform, digits):
    outputs = []
    for image in (digits[0], digits[0][:, :, None], gg.from_numpy(digits[0][None])):
        gg.manual_seed(4)
        outputs.append(transform(image))
    grey, colour, tensor = outputs
    assert isinstance(tensor, gg.Tensor)
    np.testing.assert_array_equal(grey, colour[:, :, 0])
    np.testing.assert_array_equal(grey, tensor.numpy()[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degrees": -1}, "degrees"),
        ({"degrees": (1, 2, 3)}, "degrees"),
        ({"degrees": 0, "translate": (0.1, 2)}, "translation"),
        ({"degrees": 0, "scale": (0, 1)}, "scale"),
        ({"degrees": 0, "shear": (1, 2, 3)}, "shear"),
        ({"degrees": 0, "interpolation": "cubic"}, "cubic"),
    ],
)
def test_random_affine_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        RandomAffine(**options)


# ---- crop ----


def test_crop_windows_come_from_the_padded_image():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4) + 1
    gg.manual_seed(0)
    crops = RandomCrop(4, padding=1).batch(np.repeat(image[None], 300, axis=0))
    padded = np.pad(image, 1)
    windows = [padded[y : y + 4, x : x + 4].tobytes() for y in range(3) for x in range(3)]
    seen = [crop.tobytes() for crop in crops]
    assert set(seen) == set(windows)
    # Each of nine places: binomial(300, 1/9), mean 33, standard deviation 5.4; within five of
    # these.
    assert all(6 <= seen.count(window) <= 61 for window in windows)


def test_crop_sizes_and_padding(rng):
    image = rng.random((3, 10, 12)).astype(np.float32)
    assert tuple(RandomCrop((6, 8))(gg.from_numpy(image)).shape) == (3, 6, 8)
    assert tuple(RandomCrop((14, 12), padding=(0, 2))(gg.from_numpy(image)).shape) == (3, 14, 12)
    assert tuple(RandomCrop(20, pad_if_needed=True)(gg.from_numpy(image)).shape) == (3, 20, 20)
    filled = RandomCrop((2, 2), padding=(2, 2, 0, 0), fill=5)(np.zeros((0, 0), np.uint8))
    assert filled.tolist() == [[5, 5], [5, 5]]
    edges = RandomCrop((4, 4), padding=1, padding_mode="edge")(np.full((2, 2), 3, np.uint8))
    assert edges.tolist() == [[3] * 4] * 4


def test_crop_refuses():
    with pytest.raises(
        ValueError, match=r"crop size \(5, 5\) is larger than input image size \(4, 4\)"
    ):
        RandomCrop(5)(np.zeros((4, 4), np.uint8))
    for options in (
        {"size": 0},
        {"size": (1, 2, 3)},
        {"size": 2, "padding": -1},
        {"size": 2, "padding": (1, 2, 3)},
    ):
        with pytest.raises(ValueError, match="size|padding"):
            RandomCrop(**options)
    with pytest.raises(ValueError, match="mirror"):
        RandomCrop(2, padding_mode="mirror")


@pytest.mark.parametrize("transform", [RandomAffine(5), RandomCrop(2)], ids=repr)
def test_wrong_ranks_are_refused(transform):
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        transform(gg.zeros(4, 4))
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        transform(np.zeros(4))
