"""save and load: what can be stored comes back, what cannot is named, other files are refused."""

from __future__ import annotations

import math
import os
import pickle
import sys
from collections import OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpugrad as gg
from gpugrad import io

pytest.importorskip("safetensors", reason="pip install gpugrad[train]")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


def round_trip(obj, path):
    io.save(obj, path)
    return io.load(path)


def same(a, b):
    """Equal in type, structure and bits; nan equals nan."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, gg.Tensor):
        return (
            a.device == b.device
            and a.requires_grad == b.requires_grad
            and same(a.detach().numpy(), b.detach().numpy())
        )
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b) if a == a else b != b
    return bool(a == b)


def test_a_state_of_everything(path):
    state = {
        "model": OrderedDict([("conv.weight", gg.rand(2, 3)), ("conv.bias", gg.zeros(3))]),
        "optimizer": {
            "state": {0: {"step": 3, "exp_avg": gg.ones(2)}, 1: {}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}],
        },
        "numbers": [0.1, 1e-320, -0.0, math.nan, math.inf, -math.inf, 2**200, -7],
        "constants": [None, True, False, ""],
        "text": 'quotes " \\ and \n and \u2713 and \U0001f600',
        (1, "two", None): "keys",
        1.5: "float key",
        True: "bool key",
        None: "none key",
        "nested": ([], {}, (), ((1,),), [[{"deep": gg.tensor(1.0)}]]),
        "array": np.arange(6).reshape(2, 3),
        "scalar": np.float32(0.1),
        "": {"": gg.zeros(1)},
        "__metadata__": gg.ones(1),
    }
    assert same(round_trip(state, path), state)


@pytest.mark.parametrize(
    "dtype",
    [
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
        "complex64",
        "complex128",
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_dtypes_and_shapes(path, dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    assert same(round_trip(array, path), array)
    scalar = array.dtype.type(1)
    assert same(round_trip(scalar, path), scalar)


def test_layouts(path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = [
        base.T,
        base[::2, ::-1],
        np.asfortranarray(base),
        base.astype(">f4"),
        np.broadcast_to(base[0], (3, 6)),
    ]
    for before, after in zip(arrays, round_trip(arrays, path), strict=True):
        np.testing.assert_array_equal(after, before)
        assert after.dtype == np.float32


def test_loaded_arrays_can_be_written(path):
    loaded = round_trip({"t": gg.zeros(2), "a": np.zeros(2)}, path)
    loaded["t"].add_(1)
    loaded["a"] += 1
    assert loaded["t"].tolist() == [1, 1]


def test_gradient_flags_and_parameters(path):
    parameter, leaf = gg.nn.Parameter(gg.ones(2)), gg.zeros(2, requires_grad=True)
    frozen = gg.nn.Parameter(gg.ones(2), requires_grad=False)
    loaded = round_trip([parameter, leaf, leaf * 2, frozen], path)
    assert [type(t) is gg.nn.Parameter for t in loaded] == [True, False, False, True]
    assert [t.requires_grad for t in loaded] == [True, True, True, False]
    assert all(t.is_leaf for t in loaded)


def test_shared_memory_is_stored_once_and_stays_shared(path):
    weight = gg.ones(1000)
    loaded = round_trip({"a": weight, "b": weight.detach(), "c": weight.clone()}, path)
    assert path.stat().st_size < 2.5 * 4000
    loaded["a"].zero_()
    assert loaded["b"].sum().item() == 0
    assert loaded["c"].sum().item() == 1000


def test_different_views_of_one_memory_are_different_entries(path):
    base = gg.arange(6.0)
    loaded = round_trip([base[:3], base[3:], base.reshape(2, 3), base.reshape(3, 2).T], path)
    assert [t.tolist() for t in loaded] == [
        [0, 1, 2],
        [3, 4, 5],
        [[0, 1, 2], [3, 4, 5]],
        [[0, 2, 4], [1, 3, 5]],
    ]


keys = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
leaves = (
    keys | st.floats() | st.sampled_from([np.int8(3), np.arange(3), np.zeros((0, 2), np.float16)])
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(OrderedDict)
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(tree=trees)
def test_any_nested_data_round_trips(tree, tmp_path_factory):
    assert same(round_trip(tree, tmp_path_factory.getbasetemp() / "tree.safetensors"), tree)


def test_other_tools_can_read_a_state_dict(path):
    from safetensors.numpy import load_file

    io.save({"fc.weight": gg.ones(2, 3), "fc.bias": gg.zeros(2)}, path)
    arrays = load_file(path)
    assert set(arrays) == {"fc.weight", "fc.bias"}
    assert arrays["fc.weight"].shape == (2, 3)


def test_safetensors_of_other_tools_are_read_as_tensors(path):
    from safetensors.numpy import save_file

    save_file(
        {"w": np.ones(3, np.float32), "b": np.zeros((), np.int64)}, path, metadata={"format": "pt"}
    )
    loaded = io.load(path)
    assert isinstance(loaded["w"], gg.Tensor)
    assert same(loaded["w"].numpy(), np.ones(3, np.float32))


# ---- what cannot be stored ----

Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("obj", "place", "type_name"),
    [
        ({"a": [1, {2, 3}]}, "a.1", "builtins.set"),
        (object(), "the top", "builtins.object"),
        ({"f": len}, "f", "builtin_function"),
        ({"p": Pair(1, 2)}, "p", "Pair"),
        ({"d": defaultdict(list)}, "d", "defaultdict"),
        ({"b": b"bytes"}, "b", "bytes"),
        ({"c": 1j}, "c", "complex"),
        ({"k": {b"key": 1}}, "k", "bytes"),
        ({"o": np.array([object()])}, "o", "object"),
        ({"s": np.array(["text"])}, "s", "<U4"),
    ],
)
def test_other_types_are_refused_with_their_place(path, obj, place, type_name):
    with pytest.raises(TypeError) as caught:
        io.save(obj, path)
    assert f"at {place}" in str(caught.value)
    assert type_name in str(caught.value)
    assert list(path.parent.iterdir()) == []


def test_modules_are_pointed_to_their_state(path):
    with pytest.raises(TypeError, match=r"Linear at model: .*state_dict\(\)"):
        io.save({"model": gg.nn.Linear(1, 1)}, path)


def test_cycles_are_refused(path):
    cycle = {"list": []}
    cycle["list"].append(cycle)
    with pytest.raises(ValueError, match=r"the dict at list.0 contains itself"):
        io.save(cycle, path)
    shared = [1]
    assert round_trip([shared, shared], path) == [[1], [1]]


# ---- writing completely or not at all ----


def test_a_failed_save_leaves_the_old_file(path, monkeypatch):
    io.save({"epoch": 1}, path)

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        io.save({"epoch": 2}, path)
    monkeypatch.undo()
    assert io.load(path) == {"epoch": 1}
    assert list(path.parent.iterdir()) == [path]


def test_a_path_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    io.save([1], "here")
    assert io.load("here") == [1]


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        io.save([1], tmp_path / "absent" / "file")


# ---- devices ----


def test_map_location(path):
    io.save({"t": gg.ones(2)}, path)
    assert io.load(path, map_location="cpu")["t"].device == gg.device("cpu")
    assert io.load(path, map_location=gg.device("cpu"))["t"].device == gg.device("cpu")


@pytest.mark.skipif(gg.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_tensor_from_a_gpu_needs_map_location_here(path):
    from safetensors.numpy import save_file

    structure = '{"dict":[["w",{"tensor":"w","device":"cuda:0"}]]}'
    save_file(
        {"w": np.ones(2, np.float32)},
        path,
        metadata={"format": "gpugrad/1", "structure": structure},
    )
    with pytest.raises(io.CheckpointError, match=r"'w' belongs on cuda:0.*map_location='cpu'"):
        io.load(path)
    assert io.load(path, map_location="cpu")["w"].tolist() == [1, 1]


@pytest.mark.gpu
def test_tensors_return_to_their_gpu(path):
    loaded = round_trip(gg.ones(2).cuda(), path)
    assert loaded.device.type == "cuda"
    assert loaded.tolist() == [1, 1]


# ---- bad files ----


class Harmful:
    """A pickle of this creates a file when loaded."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_is_refused_and_not_run(path, tmp_path, protocol):
    evidence = tmp_path / "evidence"
    path.write_bytes(pickle.dumps(Harmful(str(evidence)), protocol=protocol))
    with pytest.raises(io.ForeignCheckpointError, match=str(path)) as caught:
        io.load(path)
    assert protocol < 2 or "pickle" in str(caught.value)
    assert not evidence.exists()


def test_a_torch_checkpoint_is_refused_with_the_way_to_convert_it(path):
    torch = pytest.importorskip("torch", reason="torch is the oracle; pip install gpugrad[oracle]")
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(io.ForeignCheckpointError, match=r"torch\.save.*\n.*save_file"):
        io.load(path)


def test_other_formats_are_named(path):
    np.save(path.with_suffix(".npy"), np.ones(3))
    with pytest.raises(io.ForeignCheckpointError, match="numpy.load"):
        io.load(path.with_suffix(".npy"))
    np.savez(path.with_suffix(".npz"), a=np.ones(3))
    with pytest.raises(io.ForeignCheckpointError, match="zip archive"):
        io.load(path.with_suffix(".npz"))


@pytest.mark.parametrize(
    "content",
    [
        b"hello, this is some text in a file",
        bytes(range(256)),
        b"\0" * 64,
        b"\xff" * 64,
        (20).to_bytes(8, "little") + b"{this is not json!! }" + b"data",
        (2).to_bytes(8, "little") + b"[]" + b"\0" * 20,
        (9).to_bytes(8, "little") + b'{"a": 12}',
        (28).to_bytes(8, "little") + b'{"a": {"data_offsets": "x"}}',
    ],
)
def test_random_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(io.ForeignCheckpointError, match="not a checkpoint of gpugrad"):
        io.load(path)


def test_every_truncation_is_recognised(path):
    io.save({"weights": gg.ones(8), "step": 3}, path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(
            io.TruncatedCheckpointError, match=rf"it holds {length} bytes|it holds {length}\b"
        ):
            io.load(path)


def test_missing_file(path):
    with pytest.raises(FileNotFoundError):
        io.load(path)


@pytest.mark.parametrize(
    "structure",
    [
        "",
        "[1]",
        '{"unknown": []}',
        '{"tensor": "absent"}',
        '{"dict": [[1]]}',
        '{"dict": 7}',
        '{"float": "1e5"}',
        '{"dict": [[{"list": []}, 1]]}',
        "{}",
        '{"ndarray": "w", "dtype": "object", "shape": [2]}',
        '{"ndarray": "w", "dtype": "nonsense", "shape": [2]}',
    ],
)
def test_damaged_structures_are_refused(path, structure):
    from safetensors.numpy import save_file

    save_file(
        {"w": np.ones(16, np.uint8)}, path, metadata={"format": "gpugrad/1", "structure": structure}
    )
    with pytest.raises(io.CheckpointStructureError, match="damaged structure"):
        io.load(path)


def test_files_of_later_versions_say_so(path):
    from safetensors.numpy import save_file

    save_file({"w": np.ones(1)}, path, metadata={"format": "gpugrad/9", "structure": "1"})
    with pytest.raises(io.CheckpointStructureError, match="gpugrad/9.*upgrade"):
        io.load(path)


def test_without_the_library_the_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "gpugrad\[train\]"'):
        io.save([1], path)
    path.write_bytes(b"")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "gpugrad\[train\]"'):
        io.load(path)
