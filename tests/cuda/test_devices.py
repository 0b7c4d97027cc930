"""Which device things are on, and several of them."""

import threading

import numpy as np
import pytest

import gpugrad as gg
from gpugrad import cuda, nn
from gpugrad.ops import REGISTRY
from tests.cuda.test_operations import cast, compare, everything
from tests.test_registry import HAVE_SAMPLES, Draw, samples

pytestmark = pytest.mark.gpu


@pytest.fixture
def other():
    """A second device, that is not the current one."""
    if cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    assert cuda.current_device() == 0
    yield gg.device("cuda:1")
    assert cuda.current_device() == 0


def test_questions():
    assert cuda.is_available()
    assert cuda.device_count() >= 1
    assert cuda.current_device() == 0
    properties = cuda.get_device_properties(0)
    assert cuda.get_device_name("cuda:0") == properties.name
    assert cuda.get_device_capability() == (properties.major, properties.minor)
    assert properties.total_memory == cuda.mem_get_info()[1]
    assert properties.multi_processor_count > 0
    assert cuda.is_bf16_supported()


def test_numbers_of_devices_that_are_not_there():
    count = cuda.device_count()
    for use in (
        lambda: gg.zeros(2, device=f"cuda:{count}"),
        lambda: gg.ones(2).to(f"cuda:{count}"),
        lambda: gg.ones(2).cuda(count),
        lambda: cuda.set_device(count),
        lambda: cuda.device(count),
        lambda: cuda.synchronize(count),
        lambda: cuda.Stream(count),
    ):
        with pytest.raises(gg.DeviceError, match=f"cuda:{count} was asked for, but there"):
            use()


def test_mixing_cpu_and_cuda_names_the_operation_shapes_and_devices():
    here, there = gg.ones(2, 3), gg.ones(2, 3, device="cuda")
    cases = {
        "add": lambda: here + there,
        "mul": lambda: there * here,
        "matmul": lambda: here @ there.t(),
        "where": lambda: gg.where(there > 0, here, there),
        "cat": lambda: gg.cat([here, there]),
        "linear": lambda: nn.functional.linear(here, there),
        "conv2d": lambda: nn.functional.conv2d(here[None, None], there[None, None]),
        "layer_norm": lambda: nn.functional.layer_norm(here, (3,), there[0], there[0]),
    }
    for name, use in cases.items():
        with pytest.raises(gg.DeviceError) as caught:
            use()
        text = str(caught.value)
        assert "on cpu" in text and "on cuda:0" in text, f"{name}: {text}"
        assert ".to(device)" in text
        assert "3" in text  # shapes


def test_a_number_on_the_cpu_goes_with_any_tensor():
    there = gg.ones(3, device="cuda")
    number = gg.tensor(2.0, requires_grad=True)
    y = there * number + gg.tensor(1.0)
    assert y.device == there.device
    y.sum().backward()
    assert number.grad.device == gg.device("cpu")
    assert number.grad.item() == 3.0
    assert (gg.tensor(1.0) + gg.tensor(2.0, device="cuda")).device == there.device


def test_creation_in_contexts():
    with gg.device("cuda"):
        assert gg.zeros(2).device == gg.device("cuda:0")
        assert gg.tensor([1.0]).device == gg.device("cuda:0")
        assert gg.arange(3).device == gg.device("cuda:0")
        assert gg.zeros(2, device="cpu").device == gg.device("cpu")
    gg.set_default_device("cuda")
    try:
        assert gg.ones(1).device == gg.device("cuda:0")
        assert nn.Linear(2, 2).weight.device == gg.device("cuda:0")
        a = np.ones(2)
        assert gg.tensor(a).device == gg.as_tensor(a).device == gg.device("cuda:0")
        assert gg.from_numpy(a).device == gg.tensor(gg.from_numpy(a)).device == gg.device("cpu")
    finally:
        gg.set_default_device(None)


def test_the_current_device(other):
    with cuda.device(1) as context:
        assert context.idx == 1
        assert cuda.current_device() == 1
        assert gg.zeros(2, device="cuda").device == other
        assert gg.ones(2).cuda().device == other
        with cuda.device("cuda:0"):
            assert gg.zeros(2, device="cuda").device == gg.device("cuda:0")
        with cuda.device(-1), cuda.device(None):
            assert cuda.current_device() == 1
    with gg.device("cuda:1"):
        assert gg.zeros(2).device == other
        assert cuda.current_device() == 0
    x = gg.zeros(2, device=other)
    with cuda.device_of(x):
        assert cuda.current_device() == 1
    with cuda.device_of(gg.zeros(2)):
        assert cuda.current_device() == 0
    cuda.set_device(1)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(cuda.current_device()))
    thread.start()
    thread.join()
    cuda.set_device(0)
    cuda.set_device(-1)
    assert seen == [0]  # a thread begins with the first device


def test_cuda_without_a_number_is_the_current_device(other):
    x = gg.ones(2, device=other)
    assert x.to("cuda").device == gg.device("cuda:0")
    assert x.cuda().device == gg.device("cuda:0")
    assert x.to("cuda:1") is x


def test_copies_between_devices(other, rng, no_hidden_traffic):
    values = rng.normal(size=(4, 5))
    x = gg.tensor(values, device="cuda:0", requires_grad=True)
    with no_hidden_traffic("sync", "h2d", "d2h"):
        y = x.t().to(other)
    assert y.device == other
    np.testing.assert_array_equal(y.detach().cpu().numpy(), values.T)
    (y * y).sum().backward()
    assert x.grad.device == gg.device("cuda:0")
    np.testing.assert_allclose(x.grad.cpu().numpy(), 2 * values)
    z = gg.zeros(5, 4, dtype=gg.float64, device="cuda:0")
    z.copy_(y.detach())
    np.testing.assert_array_equal(z.cpu().numpy(), values.T)
    z[0] = y.detach()[1]
    np.testing.assert_array_equal(z[0].cpu().numpy(), values.T[1])
    assert gg.zeros(0, 3, device="cuda:0").to(other).shape == (0, 3)


@pytest.mark.usefixtures("deferred")
def test_a_copy_between_devices_waits_for_both(other):
    x = gg.zeros(1000, device="cuda:0")
    cuda.synchronize(0)
    x.fill_(3.0)
    y = x.to(other)
    x.fill_(5.0)
    cuda.synchronize(1)
    assert y.cpu().tolist() == [3.0] * 1000


def test_mixing_devices_is_an_error(other):
    x, y = gg.ones(2, 3, device="cuda:0"), gg.ones(2, 3, device=other)
    for use in (
        lambda: x + y,
        lambda: x @ y.t(),
        lambda: gg.cat([x, y]),
        lambda: x * gg.tensor(2.0, device=other),
        lambda: nn.functional.linear(x, y),
    ):
        with pytest.raises(gg.DeviceError, match=r"\(2, 3\) on cuda:0.* on cuda:1"):
            use()


def test_a_module_on_the_other_device_trains_as_on_the_cpu(other):
    def run(device):
        gg.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.LayerNorm(7), nn.Linear(7, 3)).double()
        model.to(device)
        optimizer = gg.optim.AdamW(model.parameters(), lr=0.05)
        x = gg.tensor(np.linspace(-1, 1, 20).reshape(4, 5), device=device)
        target = gg.tensor([0, 2, 1, 2], device=device)
        found = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), target)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            found.append(loss.item())
            assert all(p.grad.device == p.device == gg.device(device) for p in model.parameters())
        return found

    np.testing.assert_allclose(run("cuda:1"), run("cpu"), rtol=1e-9)


def test_one_model_on_two_devices(other):
    def run(first, second):
        gg.manual_seed(0)
        a, b = nn.Linear(5, 7).double().to(first), nn.Linear(7, 2).double().to(second)
        optimizer = gg.optim.SGD([*a.parameters(), *b.parameters()], lr=0.1, momentum=0.9)
        x = gg.tensor(np.linspace(-1, 1, 20).reshape(4, 5), device=first)
        found = []
        for _ in range(3):
            optimizer.zero_grad()
            h = gg.tanh(a(x))
            loss = (b((h + h).to(second)) ** 2).mean()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    np.testing.assert_allclose(run("cuda:0", "cuda:1"), run("cpu", "cpu"), rtol=1e-9)


def test_double_backward_on_the_other_device(other):
    x = gg.tensor([1.0, 2.0], device=other, requires_grad=True)
    (g,) = gg.autograd.grad((x**3).sum(), x, create_graph=True)
    (h,) = gg.autograd.grad(g.sum(), x)
    assert h.device == other
    assert h.tolist() == [6.0, 12.0]


def test_streams_and_events_of_the_other_device(other):
    s = cuda.Stream(other)
    with s:
        assert cuda.current_device() == 1
        x = gg.ones(10, device="cuda")
        event = s.record_event()
    assert event.device == other
    with pytest.raises(RuntimeError, match="does not match"):
        event.record(cuda.default_stream(0))
    event.wait(cuda.default_stream(0))
    s.synchronize()
    assert x.sum().item() == 10.0
    assert cuda.current_stream(1) == cuda.default_stream(1)


def test_memory_of_the_other_device(other):
    before = cuda.memory_allocated(0), cuda.memory_allocated(1)
    x = gg.zeros(1 << 18, device=other)
    assert cuda.memory_allocated(0) == before[0]
    assert cuda.memory_allocated(1) == before[1] + x.nbytes
    cuda.set_memory_limit(cuda.memory_allocated(1) + (1 << 20), other)
    with pytest.raises(gg.OutOfMemoryError, match="GPU 1"):
        gg.zeros(1 << 22, device=other)
    cuda.set_memory_limit(None, other)
    gg.zeros(1 << 22, device="cuda:0")


@pytest.mark.parametrize("name", sorted(set(HAVE_SAMPLES) - {"to_device"}))
def test_every_operation_runs_where_its_arguments_are(name, other):
    """With another device as the current one: forward, reverse, double backward, forward mode."""
    op = REGISTRY[name]
    for args, params in samples(op, Draw(sum(map(ord, name)))):
        args = [cast(a, "float32") for a in args]
        found, expected = (everything(op, args, params, d) for d in ("cuda:1", "cpu"))
        compare(name, found, expected, "float32")


def test_forward_mode_keeps_its_tangents_where_there_are_several_devices(host_device):
    """Duals are tensors, too, and must go on to interpret operations themselves."""
    gg.ones(1, device="cuda")  # from now on, operations see to the current device
    x = gg.randn(3, 4)
    _, tangent = gg.func.jvp(gg.tril, (x,), (gg.ones_like(x),))
    assert gg.equal(tangent, gg.tril(gg.ones(3, 4)))
