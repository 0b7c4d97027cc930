"""Moving values between host and device: nothing waits that need not, nothing is copied twice, and
nothing is copied that can be shared."""

import copy
import pickle

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, nn
from gpugrad.backend import cuda_transfer
from gpugrad.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.gpu


# ---- making tensors ------------------------------------------------------------------------------

MADE = {
    "zeros": lambda: gg.zeros(3, 4, device="cuda"),
    "ones": lambda: gg.ones(3, device="cuda"),
    "full": lambda: gg.full((3, 2), 2.5, device="cuda"),
    "arange": lambda: gg.arange(1, 9, 2, device="cuda"),
    "arange of floats": lambda: gg.arange(0.0, 1.0, 0.25, device="cuda"),
    "eye": lambda: gg.eye(4, device="cuda"),
    "linspace": lambda: gg.linspace(0, 1, 5, device="cuda"),
    "empty": lambda: gg.empty(0, 3, device="cuda"),
    "number": lambda: gg.tensor(3.5, device="cuda"),
    "integer": lambda: gg.tensor(7, device="cuda"),
    "boolean": lambda: gg.tensor(True, device="cuda"),
    "zeros_like": lambda: gg.zeros_like(_example()),
    "full_like": lambda: gg.full_like(_example(), 3),
    "new_ones": lambda: _example().new_ones(2),
    "number to device": lambda: gg.tensor(2.0).to("cuda"),
}


def _example():
    return gg.ones(2, 3, device="cuda")


@pytest.mark.parametrize("name", MADE)
def test_making_tensors_neither_waits_nor_copies(name, host_device, no_hidden_traffic):
    first = MADE[name]()
    with no_hidden_traffic("sync", "h2d", "d2h"):
        made = MADE[name]()
    assert made.device == gg.device("cuda:0")
    with gg.device("cpu"):
        assert made.dtype == first.dtype
    np.testing.assert_array_equal(made.cpu().numpy(), first.cpu().numpy())


@pytest.mark.parametrize("name", ["zeros", "ones", "full", "arange", "eye", "linspace", "number"])
def test_values_equal_those_made_on_the_cpu(name):
    made = MADE[name]()
    with gg.device("cpu"):
        expected = {
            "zeros": gg.zeros(3, 4), "ones": gg.ones(3), "full": gg.full((3, 2), 2.5),
            "arange": gg.arange(1, 9, 2), "eye": gg.eye(4), "linspace": gg.linspace(0, 1, 5),
            "number": gg.tensor(3.5),
        }[name]  # fmt: skip
    assert made.dtype == expected.dtype
    np.testing.assert_array_equal(made.cpu().numpy(), expected.numpy())


# ---- to the device -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [gg.float16, gg.float32, gg.float64, gg.int64, gg.bool, gg.uint8])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (33,), (3, 0, 2), (4, 5), (2, 3, 4)])
def test_there_and_back(dtype, shape, rng):
    x = gg.from_numpy(np.asarray(rng.normal(size=shape) * 3).astype(dtype))
    for there in (x.cuda(), x.to("cuda:0"), x.to("cuda", non_blocking=True)):
        assert there.device == gg.device("cuda:0")
        assert (there.dtype, there.shape) == (x.dtype, x.shape)
        for back in (there.cpu(), there.to("cpu", non_blocking=True)):
            cuda.synchronize()
            np.testing.assert_array_equal(back.numpy(), x.numpy())


def test_a_copy_to_the_device_waits_for_nothing(host_device, no_hidden_traffic):
    x = gg.tensor(np.arange(1000.0))
    x.cuda()
    with no_hidden_traffic("sync", "d2h", "malloc"), host_device.counting() as n:
        y = x.cuda()
    assert (n.h2d, n.h2d_bytes) == (1, 8000)
    assert y.sum().item() == 499500.0


@pytest.mark.usefixtures("deferred")
@pytest.mark.parametrize("pinned", [False, True])
def test_the_source_of_a_blocking_copy_may_be_overwritten_at_once(pinned):
    x = gg.full((1000,), 3.0)
    x = x.pin_memory() if pinned else x
    there = x.to("cuda")
    x.fill_(9.0)
    cuda.synchronize()
    assert there.tolist() == [3.0] * 1000


@pytest.mark.usefixtures("deferred")
def test_pinned_memory_is_read_in_place_without_blocking():
    x = gg.full((1000,), 3.0).pin_memory()
    there = x.to("cuda", non_blocking=True)
    x.fill_(9.0)  # too early, which shows that the copy has not been made yet
    cuda.synchronize()
    assert there.tolist() == [9.0] * 1000


@pytest.mark.usefixtures("deferred")
def test_pinned_memory_lives_until_its_copy_is_done():
    x = gg.full((1000,), 3.0).pin_memory()
    there = x.to("cuda", non_blocking=True)
    del x
    other = gg.full((1000,), 5.0).pin_memory()  # would get the same memory
    cuda.synchronize()
    assert there.tolist() == [3.0] * 1000
    assert other.tolist() == [5.0] * 1000
    cuda_transfer.release_done()
    assert not cuda_transfer._in_flight


@pytest.mark.usefixtures("deferred")
def test_a_copy_to_the_cpu_without_blocking():
    x = gg.zeros(1000, device="cuda")
    cuda.synchronize()
    x.fill_(4.0)
    back = x.to("cpu", non_blocking=True)
    assert back.is_pinned()
    done = cuda.current_stream().record_event()
    assert not done.query()
    done.synchronize()
    assert back.tolist() == [4.0] * 1000


def test_copy_to_the_cpu_in_place_has_its_values():
    x, y = gg.full((5,), 2.0, device="cuda"), gg.zeros(5)
    y.copy_(x, non_blocking=True)
    assert y.tolist() == [2.0] * 5


def test_layouts(rng):
    base = rng.normal(size=(6, 8))
    for array in (base.T, base[::2], base[:, 1:5], np.asfortranarray(base), base[::-1]):
        there = gg.from_numpy(array).cuda()
        np.testing.assert_array_equal(there.cpu().numpy(), array)
        np.testing.assert_array_equal(there.to("cpu", non_blocking=False).numpy(), array)
    view = gg.tensor(base, device="cuda")[:, 1:5]
    np.testing.assert_array_equal(view.cpu().numpy(), base[:, 1:5])
    back = view.t().to("cpu", non_blocking=True)
    cuda.synchronize()
    np.testing.assert_array_equal(back.numpy(), base[:, 1:5].T)


def test_large_arrays_are_not_staged(monkeypatch, rng):
    monkeypatch.setattr(cuda_transfer, "STAGED", 100)
    x = rng.normal(size=(100, 3))
    np.testing.assert_array_equal(gg.tensor(x).cuda().cpu().numpy(), x)
    np.testing.assert_array_equal(gg.tensor(x).t().cuda().cpu().numpy(), x.T)
    pinned = gg.tensor(x).pin_memory()
    np.testing.assert_array_equal(pinned.cuda().cpu().numpy(), x)


def test_bytes_in_the_other_order():
    x = np.arange(5.0, dtype=">f8")
    assert gg.from_numpy(x).cuda().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_dtypes_that_no_gpu_has():
    if np.longdouble == np.float64:
        pytest.skip("this machine has none")
    with pytest.raises(gg.DeviceError, match=r"longdouble|float128"):
        gg.from_numpy(np.ones(2, np.longdouble)).cuda()


# ---- .to and friends -----------------------------------------------------------------------------


def test_to_takes_what_torchs_takes():
    x = gg.ones(3)
    there = x.to(0)
    assert there.device == gg.device("cuda:0")
    assert there.to("cuda") is there
    assert there.to("cuda:0") is there
    assert there.cuda() is there
    assert there.to("cuda", True) is there
    assert there.to("cuda", gg.float64, True).dtype == gg.float64
    assert there.to("cuda", gg.float32, False, True) is not there
    assert there.to(x).device == gg.device("cpu")
    assert x.to(there).device == there.device
    assert x.to(device="cuda", dtype=gg.float16).dtype == gg.float16


def test_gradients_flow_through_moves():
    x = gg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = x.cuda() * gg.tensor([2.0, 3.0, 4.0], device="cuda")
    (y.cpu() * 10.0).sum().backward()
    assert x.grad.device == gg.device("cpu")
    assert x.grad.tolist() == [20.0, 30.0, 40.0]
    (g,) = gg.autograd.grad((x.cuda() ** 3).sum(), x, create_graph=True)
    (h,) = gg.autograd.grad(g.sum(), x)
    assert h.tolist() == [6.0, 12.0, 18.0]


def test_pinning():
    x = gg.tensor([1.0, 2.0])
    assert not x.is_pinned()
    pinned = x.pin_memory()
    assert pinned.is_pinned()
    assert pinned.pin_memory() is pinned
    assert pinned.tolist() == [1.0, 2.0]
    assert (pinned + 1).tolist() == [2.0, 3.0]
    there = x.cuda()
    assert not there.is_pinned()
    with pytest.raises(RuntimeError, match="only CPU tensors"):
        there.pin_memory()
    assert gg.tensor(5).pin_memory().item() == 5
    assert gg.empty(0, 3).pin_memory().shape == (0, 3)


def test_a_loader_pins_its_batches():
    data = TensorDataset(gg.arange(10.0).reshape(5, 2), gg.arange(5))
    for workers in (0, 2):
        for x, y in DataLoader(data, batch_size=2, pin_memory=True, num_workers=workers):
            assert x.is_pinned() and y.is_pinned()
            assert x.to("cuda", non_blocking=True).device.type == "cuda"


# ---- sharing memory ------------------------------------------------------------------------------


def test_arrays_of_cupy_are_wrapped_without_a_copy():
    import cupy

    a = cupy.arange(6.0).reshape(2, 3)
    for x in (gg.as_tensor(a), gg.asarray(a), gg.Tensor(a), gg.from_dlpack(a)):
        assert x.data_ptr() == a.data.ptr
        assert x.device == gg.device("cuda:0")
    x = gg.as_tensor(a)
    assert x.array is a
    x[0, 0] = 7.0
    assert float(a[0, 0]) == 7.0
    own = gg.tensor(a)
    assert own.data_ptr() != a.data.ptr
    assert own.tolist() == a.tolist()


def test_tensors_are_taken_by_cupy_without_a_copy():
    import cupy

    x = gg.arange(6.0, device="cuda")
    assert cupy.asarray(x).data.ptr == x.data_ptr()
    assert cupy.from_dlpack(x).data.ptr == x.data_ptr()
    assert x.__dlpack_device__() == (2, 0)
    interface = x.__cuda_array_interface__
    assert interface["data"][0] == x.data_ptr()
    assert interface["shape"] == (6,)
    with pytest.raises(BufferError, match="require gradient"):
        x.requires_grad_().__dlpack__()


def test_other_libraries_arrays_by_the_cuda_array_interface():
    x = gg.arange(6.0, device="cuda")

    class Foreign:
        __cuda_array_interface__ = x.__cuda_array_interface__

    assert gg.as_tensor(Foreign()).data_ptr() == x.data_ptr()
    made = gg.tensor(Foreign())
    assert made.data_ptr() != x.data_ptr()
    assert made.tolist() == x.tolist()


def test_numpy_of_a_cuda_tensor_is_torchs_error():
    x = gg.ones(2, device="cuda")
    with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy"):
        x.numpy()
    with pytest.raises(TypeError, match="cuda:0"):
        np.asarray(x)
    assert x.numpy(force=True).tolist() == [1.0, 1.0]


# ---- modules, optimizers, files ------------------------------------------------------------------


def losses(model, optimizer, steps, device):
    x = gg.tensor(np.linspace(-1, 1, 12).reshape(4, 3), device=device)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


OPTIMIZERS = {
    "sgd": lambda p: gg.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: gg.optim.Adam(p, lr=0.05),
    "adamw": lambda p: gg.optim.AdamW(p, lr=0.05),
    "rmsprop": lambda p: gg.optim.RMSprop(p, lr=0.05, momentum=0.5),
    "adagrad": lambda p: gg.optim.Adagrad(p, lr=0.05),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_follows_its_parameters(name):
    def run(moves):
        gg.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        parameters = list(model.parameters())
        optimizer = OPTIMIZERS[name](model.parameters())
        found = []
        for device in moves:
            model.to(device)
            assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
            assert all(p.device.type == device for p in parameters)
            found += losses(model, optimizer, 3, device)
        return found

    expected = run(["cpu"] * 4)
    np.testing.assert_allclose(run(["cpu", "cuda", "cpu", "cuda"]), expected, rtol=1e-9)


def test_gradients_and_buffers_move_with_the_module():
    model = nn.BatchNorm1d(3)
    model(gg.ones(4, 3) * gg.tensor([1.0, 2.0, 3.0])).sum().backward()
    weight = model.weight
    assert model.cuda() is model
    assert model.weight is weight
    assert weight.is_leaf and weight.requires_grad
    assert {t.device.type for t in (weight, weight.grad, model.running_mean)} == {"cuda"}
    model.cpu()
    assert {t.device.type for t in (weight, weight.grad, model.running_mean)} == {"cpu"}


def test_state_is_loaded_onto_the_device_of_the_parameters():
    here, there = nn.Linear(3, 2), nn.Linear(3, 2).cuda()
    there.load_state_dict(here.state_dict())
    assert there.weight.is_cuda
    assert there.weight.tolist() == here.weight.tolist()
    here.load_state_dict(there.state_dict())
    assert not here.weight.is_cuda
    optimizer = gg.optim.Adam(there.parameters())
    there(gg.ones(1, 3, device="cuda")).sum().backward()
    optimizer.step()
    again = gg.optim.Adam(here.parameters())
    again.load_state_dict(optimizer.state_dict())
    assert {s["exp_avg"].device.type for s in again.state.values()} == {"cpu"}


def test_pickles_copies_and_files(tmp_path):
    x = gg.arange(4.0, device="cuda").requires_grad_()
    for y in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x)):
        assert y.device == x.device
        assert y.requires_grad
        assert y.tolist() == x.tolist()
        assert y.data_ptr() != x.data_ptr()
    path = tmp_path / "x.safetensors"
    gg.save({"x": x.detach()}, path)
    assert gg.load(path)["x"].device == x.device
    assert gg.load(path, map_location="cpu")["x"].device == gg.device("cpu")
