"""CUDA where there is none, or where something is wrong with it: questions are answered, and what
needs a device says what to do. CuPy is simulated, so that this runs everywhere."""

import builtins
import sys
import types
from importlib import metadata

import pytest

import gpugrad as gg
from gpugrad import cuda
from gpugrad.backend import cuda_setup
from gpugrad.backend import cupy as backend


class FakeRuntime:
    """What gpugrad asks of ``cupy.cuda.runtime``."""

    def __init__(self, driver, built, devices):
        self.driver, self.built, self.devices = driver, built, devices

    def driverGetVersion(self):
        return self.driver

    def runtimeGetVersion(self):
        return self.built

    def getDeviceCount(self):
        if isinstance(self.devices, Exception):
            raise self.devices
        return self.devices


def fake_cupy(version="14.2.0", driver=0, built=13020, devices=0):
    module = types.ModuleType("cupy")
    module.__version__ = version
    module.ndarray = type("ndarray", (), {})
    module.cuda = types.SimpleNamespace(
        runtime=FakeRuntime(driver, built, devices), get_current_stream=None
    )
    return module


@pytest.fixture
def machine(monkeypatch):
    """``machine(...)`` makes gpugrad look for CUDA anew, with this in the place of CuPy."""
    before = {name: getattr(backend, name) for name in ("_module", "_ndarray", "_get_device")}
    devices = list(backend._devices)

    def prepare(module=None, error=None, distributions=()):
        backend.forget()

        def version(name):
            if name in distributions:
                return "14.2.0"
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "version", version)
        if module is not None:
            monkeypatch.setitem(sys.modules, "cupy", module)
            return
        monkeypatch.delitem(sys.modules, "cupy", raising=False)
        imported = builtins.__import__

        def refuse(name, *args, **kwargs):
            relative = len(args) > 3 and args[3]
            if name == "cupy" and not relative:
                raise error or ModuleNotFoundError("No module named 'cupy'", name="cupy")
            return imported(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", refuse)

    yield prepare
    for name, value in before.items():
        setattr(backend, name, value)
    backend._devices[:] = devices


USES = {
    "zeros": lambda: gg.zeros(2, device="cuda"),
    "tensor": lambda: gg.tensor([1.0], device="cuda:0"),
    "to": lambda: gg.ones(2).to("cuda"),
    "cuda": lambda: gg.ones(2).cuda(),
    "module": lambda: gg.nn.Linear(2, 2).cuda(),
    "context": lambda: _in_context(),
    "pin_memory": lambda: gg.ones(2).pin_memory(),
    "current_device": cuda.current_device,
    "set_device": lambda: cuda.set_device(0),
    "device": lambda: cuda.device(0),
    "synchronize": cuda.synchronize,
    "get_device_name": cuda.get_device_name,
    "get_device_properties": cuda.get_device_properties,
    "get_device_capability": cuda.get_device_capability,
    "Stream": lambda: cuda.Stream(),
    "current_stream": lambda: cuda.current_stream(),
    "default_stream": lambda: cuda.default_stream(),
    "Event.record": lambda: cuda.Event().record(),
    "CUDAGraph": lambda: cuda.CUDAGraph(),
    "graph_pool_handle": lambda: cuda.graph_pool_handle(),
    "capture": lambda: cuda.capture(lambda: None),
    "mem_get_info": lambda: cuda.mem_get_info(),
    "set_memory_limit": lambda: cuda.set_memory_limit(1 << 30),
    "fraction": lambda: cuda.set_per_process_memory_fraction(0.5),
}


def _in_context():
    with gg.device("cuda"):
        return gg.zeros(2)


@pytest.mark.parametrize("name", USES)
def test_without_cupy_every_use_says_what_to_install(machine, name):
    machine()
    with pytest.raises(gg.DeviceError, match=r'not installed.*gpugrad\[cuda13\].*device="cpu"'):
        USES[name]()


@pytest.mark.parametrize("name", USES)
def test_without_a_driver_every_use_says_so(machine, name):
    machine(fake_cupy())
    with pytest.raises(gg.DeviceError, match=r"cuda.* was asked for, but no NVIDIA driver"):
        USES[name]()


@pytest.mark.parametrize("prepare", [lambda m: m(), lambda m: m(fake_cupy())])
def test_questions_are_answered_without_cuda(machine, prepare):
    prepare(machine)
    assert cuda.is_available() is False
    assert cuda.device_count() == 0
    assert not cuda.is_bf16_supported()
    assert not cuda.is_current_stream_capturing()
    assert cuda.memory_allocated() == cuda.max_memory_allocated() == 0
    assert cuda.memory_reserved() == cuda.max_memory_reserved() == 0
    assert cuda.memory_stats() == {}
    assert cuda.memory_summary() == "no CUDA device"
    cuda.empty_cache()
    cuda.reset_peak_memory_stats()
    cuda.manual_seed(0)
    cuda.manual_seed_all(0)
    assert not gg.ones(2).is_pinned()
    assert gg.device("auto") == gg.device("cpu")
    with cuda.stream(None), cuda.nvtx.range("nothing"):
        cuda.nvtx.mark("nothing")
    with cuda.device(None), cuda.device(-1), cuda.device_of(gg.ones(1)):
        pass
    event = cuda.Event()
    assert event.query()
    event.synchronize()
    assert (gg.ones(2) + 1).tolist() == [2.0, 2.0]


def test_cupy_for_a_newer_cuda_than_the_driver(machine):
    error = RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    machine(fake_cupy(driver=12040, devices=error), distributions=["cupy-cuda13x"])
    with pytest.raises(gg.DeviceError) as caught:
        gg.zeros(1, device="cuda")
    text = str(caught.value)
    assert "the NVIDIA driver supports CUDA 12.4" in text
    assert "built for CUDA 13.2" in text
    assert 'pip uninstall cupy-cuda13x and pip install "gpugrad[cuda12]"' in text
    assert "update the driver" in text


def test_a_driver_without_a_device(machine):
    error = RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected\nmore")
    machine(fake_cupy(driver=13010, devices=error))
    with pytest.raises(gg.DeviceError, match=r"no CUDA-capable device is detected. Check that"):
        gg.zeros(1, device="cuda")
    machine(fake_cupy(driver=13010, devices=0))
    with pytest.raises(gg.DeviceError, match="CUDA_VISIBLE_DEVICES"):
        gg.zeros(1, device="cuda")


def test_a_runtime_that_cannot_be_loaded(machine):
    module = fake_cupy()

    def missing():
        raise RuntimeError("libcudart.so.13: cannot open shared object file")

    module.cuda.runtime.runtimeGetVersion = missing
    machine(module)
    with pytest.raises(gg.DeviceError, match=r"cannot load CUDA \(libcudart"):
        gg.zeros(1, device="cuda")


def test_two_packages_of_cupy(machine):
    machine(fake_cupy(), distributions=["cupy-cuda12x", "cupy-cuda13x"])
    assert not cuda.is_available()
    with pytest.raises(gg.DeviceError) as caught:
        gg.zeros(1, device="cuda")
    text = str(caught.value)
    assert "cupy-cuda12x and cupy-cuda13x are installed together" in text
    assert "pip uninstall cupy-cuda12x cupy-cuda13x" in text


@pytest.mark.parametrize("version", ["13.6.0", "9.0.0", "13.0.0rc1"])
def test_an_old_cupy(machine, version):
    machine(fake_cupy(version=version))
    assert not cuda.is_available()
    with pytest.raises(gg.DeviceError, match=rf"CuPy {version} is too old.*14.0"):
        gg.zeros(1, device="cuda")


def test_a_new_cupy_is_not_refused(machine):
    for version in ("14.0.0", "15.0.0a1", "100.1", "unknown"):
        machine(fake_cupy(version=version))
        with pytest.raises(gg.DeviceError, match="no NVIDIA driver"):
            gg.zeros(1, device="cuda")


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libnvrtc.so.13: cannot open shared object file\nlong story"),
        ModuleNotFoundError("No module named 'numpy._core'", name="numpy._core"),
        RuntimeError("broken"),
    ],
)
def test_a_broken_cupy(machine, error):
    machine(error=error)
    assert not cuda.is_available()
    with pytest.raises(gg.DeviceError, match=r"cannot be imported: .*Reinstall it") as caught:
        gg.zeros(1, device="cuda")
    assert "long story" not in str(caught.value)


def test_a_device_that_is_not_there(machine):
    module = fake_cupy(driver=13020, devices=1)
    module.cuda.runtime.getDevice = lambda: 0
    machine(module)
    with pytest.raises(gg.DeviceError, match="cuda:3 was asked for, but there is only cuda:0"):
        backend.require(gg.device("cuda:3"))
    assert backend.require(gg.device("cuda")) == gg.device("cuda:0")


def test_what_is_no_cuda_device(machine):
    machine()
    with pytest.raises(ValueError, match="Expected a cuda device, but got: cpu"):
        cuda.set_device("cpu")


def test_distributions_that_are_installed_here():
    assert len(cuda_setup.installed()) <= 1


def test_names():
    for name in cuda.__all__:
        assert hasattr(cuda, name), name
        assert name in dir(cuda)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cuda.nothing
    assert cuda.OutOfMemoryError is gg.OutOfMemoryError
