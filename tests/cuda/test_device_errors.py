"""Errors that kernels find become Python exceptions at the next wait, and work goes on."""

import gc
import inspect

import pytest

import gpugrad as gg
import gpugrad.nn.functional as F
from gpugrad.backend import device_errors

pytestmark = pytest.mark.gpu

cupy = pytest.importorskip("cupy", reason="needs CuPy: pip install gpugrad[cuda13]")


@pytest.fixture(autouse=True)
def no_errors_left():
    device_errors.clear()
    yield
    assert not device_errors.pending()


def cuda(values):
    return gg.tensor(values, device="cuda")


WAITS = {
    "item": lambda y: y.sum().item(),
    "cpu": lambda y: y.cpu(),
    "tolist": lambda y: y.tolist(),
    "numpy": lambda y: y.numpy(force=True),
    "print": repr,
    "float": lambda y: float(y[0, 0]),
    "bool": lambda y: bool(y[0, 0] > 0),
    "in": lambda y: 3.0 in y,
    "equal": lambda y: gg.equal(y, y),
    "allclose": lambda y: gg.allclose(y, y),
    "synchronize": lambda y: gg.cuda.synchronize(),
    "stream": lambda y: gg.cuda.current_stream().synchronize(),
    "event": lambda y: gg.cuda.current_stream().record_event().synchronize(),
}


@pytest.mark.parametrize("wait", WAITS)
def test_every_wait_raises_once_and_work_goes_on(wait):
    table = gg.arange(12.0, device="cuda").reshape(4, 3)
    picked = table[cuda([1, 7, 2])]
    with pytest.raises(IndexError, match=r"index 7 is out of bounds .* size 4") as raised:
        WAITS[wait](picked)
    assert __file__ in str(raised.value)
    WAITS[wait](picked)
    assert picked.tolist() == [[3, 4, 5], [0, 0, 0], [6, 7, 8]]


def test_the_message_names_operation_value_bound_and_line():
    table = gg.zeros(5, 2, device="cuda")
    line = inspect.currentframe().f_lineno + 1
    rows = F.embedding(cuda([0, -3]), table)
    message = rf"index -3 out of range in embedding: the table has 5 rows .*{__file__}:{line}\)"
    with pytest.raises(IndexError, match=message):
        rows.sum().item()


OPERATIONS = {
    "getitem": (lambda x, i: x[i], 4, IndexError),
    "negative getitem": (lambda x, i: x[i], -5, IndexError),
    "second axis": (lambda x, i: x[:, i], 3, IndexError),
    "two indices": (lambda x, i: x[i, gg.zeros_like(i)], 4, IndexError),
    "embedding": (lambda x, i: F.embedding(i, x), 4, IndexError),
    "index_select": (lambda x, i: gg.index_select(x, 1, i), -1, IndexError),
    "index_add": (lambda x, i: gg.index_add(x, 0, i, x[:2]), 9, RuntimeError),
    "gather": (lambda x, i: gg.gather(x, 0, i.reshape(2, 1)), -1, RuntimeError),
    "scatter_add": (lambda x, i: gg.scatter_add(x, 0, i.reshape(2, 1), x), 4, RuntimeError),
    "scatter": (lambda x, i: gg.scatter(x, 1, i.reshape(2, 1), 1.0), 3, RuntimeError),
    "setitem": (lambda x, i: x.clone().__setitem__(i, x[:2]), 4, IndexError),
    "one_hot": (lambda x, i: F.one_hot(i, 4), 4, RuntimeError),
    "nll_loss": (lambda x, i: F.nll_loss(x[:2], i), 3, IndexError),
    "cross_entropy": (lambda x, i: F.cross_entropy(x[:2], i), 3, IndexError),
}


@pytest.mark.parametrize("dtype", [gg.int32, gg.int64])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_checks_its_indices(name, dtype):
    operation, bad, error = OPERATIONS[name]
    x = gg.arange(12.0, device="cuda").reshape(4, 3)
    operation(x, cuda([0, 1]).to(dtype))
    gg.cuda.synchronize()
    operation(x, cuda([0, bad]).to(dtype))
    with pytest.raises(error, match=str(bad)) as raised:
        gg.cuda.synchronize()
    assert __file__ in str(raised.value)
    gg.cuda.synchronize()


def test_the_first_error_is_the_one_that_is_raised():
    x = gg.zeros(3, device="cuda")
    x[cuda([5])], x[cuda([6])]
    with pytest.raises(IndexError, match="index 5"):
        gg.cuda.synchronize()


def test_gradients_at_bad_indices_are_dropped():
    table = gg.zeros(3, 2, device="cuda", requires_grad=True)
    table[cuda([0, 3, -1, -4])].sum().backward()
    with pytest.raises(IndexError):
        gg.cuda.synchronize()
    assert table.grad.tolist() == [[1, 1], [0, 0], [1, 1]]


def test_nothing_is_raised_before_somebody_waits(deferred):
    y = gg.zeros(3, device="cuda")[cuda([5])] + 1
    device_errors.check()
    with pytest.raises(IndexError, match="index 5"):
        y.item()


def test_a_replayed_graph_reports_with_the_line_that_was_captured():
    table, index = gg.zeros(3, 2, device="cuda"), cuda([0, 1])
    g, _ = gg.cuda.capture(lambda: table[index] + 1)
    line = inspect.currentframe().f_lineno - 1
    g.replay()
    gg.cuda.synchronize()
    index.copy_(cuda([0, 4]))
    g.replay()
    with pytest.raises(IndexError, match=rf"index 4 .*{__file__}:{line}\)"):
        gg.cuda.synchronize()
    index.copy_(cuda([2, 2]))
    g.replay()
    gg.cuda.synchronize()


def test_devices_have_records_of_their_own():
    if gg.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    gg.zeros(3, device="cuda:1")[gg.tensor([7], device="cuda:1")]
    cupy.cuda.Device(1).synchronize()
    assert device_errors.pending(1) and not device_errors.pending(0)
    with pytest.raises(IndexError, match="found by cuda:1"):
        gg.cuda.synchronize("cuda:1")


def test_a_line_has_one_site_and_sites_are_bounded(monkeypatch):
    numbers = {device_errors.site("{value}") for _ in range(3)}
    assert len(numbers) == 1
    monkeypatch.setattr(device_errors, "_SITES", len(device_errors._sites) + 2)
    lines = [eval(f"{' ' * k}device_errors.site('{k}')".strip()) for k in range(9)]
    assert max(lines) <= device_errors._SITES


def test_a_check_needs_no_device(no_hidden_traffic):
    gg.zeros(2, device="cuda")[cuda([0])].item()
    gc.collect()
    with no_hidden_traffic():
        device_errors.check()
        device_errors.record()


def test_the_record_is_what_the_kernels_write():
    fields = device_errors._RECORD.fields
    assert [fields[n][1] for n in ("site", "value", "bound")] == [0, 8, 16]
