"""fit and evaluate: figures against a loop by hand, callbacks, stopping and continuing."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpugrad as gg
from gpugrad.train import MLP, Callback, Progress, StopTraining, evaluate, fit
from gpugrad.utils.data import DataLoader, TensorDataset


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 6)).astype(np.float32)
    return TensorDataset(gg.from_numpy(x), gg.from_numpy((x[:, 0] > x[:, 1]).astype(np.int64)))


class Job:
    def __init__(self, data, seed=0):
        gg.manual_seed(seed)
        self.model = MLP(6, hidden=(8,), num_classes=2)
        self.optimizer = gg.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.loader = DataLoader(
            data, batch_size=8, shuffle=True, generator=gg.Generator().manual_seed(seed)
        )
        self.scheduler = gg.optim.lr_scheduler.OneCycleLR(
            self.optimizer, 0.2, total_steps=4 * len(self.loader)
        )
        self.test_loader = DataLoader(data, batch_size=25)

    def fit(self, epochs=4, **options):
        return fit(
            self.model,
            self.loader,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            test_loader=self.test_loader,
            epochs=epochs,
            **options,
        )

    def weights(self):
        return [p.detach().numpy().copy() for p in self.model.parameters()]


def figures(progress):
    """The history without the times."""
    return [
        (r.epoch, r.train_loss, r.train_accuracy, r.test_loss, r.test_accuracy, r.lr)
        for r in progress.history
    ]


def test_it_learns(data):
    progress = Job(data).fit()
    assert [r.epoch for r in progress.history] == [1, 2, 3, 4]
    assert progress.history[-1].train_loss < 0.6 * progress.history[0].train_loss
    assert progress.history[-1].test_accuracy > 0.85


def test_figures_equal_a_loop_by_hand(data):
    progress = Job(data).fit(epochs=1)
    job = Job(data)
    loss_sum, correct = 0.0, 0
    for x, y in job.loader:
        logits = job.model(x)
        loss = gg.nn.functional.cross_entropy(logits, y)
        job.optimizer.zero_grad()
        loss.backward()
        job.optimizer.step()
        job.scheduler.step()
        loss_sum += loss.item() * len(y)
        correct += int((logits.detach().numpy().argmax(1) == y.numpy()).sum())
    result = progress.history[0]
    assert result.train_loss == pytest.approx(loss_sum / 60, rel=1e-6)
    assert result.train_accuracy == correct / 60
    x, y = data.tensors
    logits = job.model(x).detach().numpy().astype(np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(60), y.numpy()]
    assert result.test_loss == pytest.approx(losses.mean(), rel=1e-5)
    assert result.test_accuracy == (logits.argmax(1) == y.numpy()).mean()
    assert result.lr == job.optimizer.param_groups[0]["lr"]


def test_evaluate_uses_evaluation_mode_and_restores_training(data):
    modes = []

    class Spy(gg.nn.Module):
        def forward(self, x):
            modes.append((self.training, gg.is_grad_enabled()))
            return x[:, :2]

    model = Spy()
    evaluate(model, DataLoader(data, batch_size=30))
    assert modes == [(False, False)] * 2
    assert model.training
    evaluate(model.eval(), DataLoader(data, batch_size=60))
    assert not model.training


class StopAt(Callback):
    def __init__(self, epoch, batch):
        self.place = (epoch, batch)

    def on_batch_end(self, progress):
        if (progress.epoch, progress.batch) == self.place:
            raise StopTraining


@pytest.mark.parametrize("place", [(0, 1), (1, 3), (2, 8), (3, 7)])
def test_stopping_and_continuing_is_exact(data, place):
    whole = Job(data)
    expected = figures(whole.fit())

    first = Job(data)
    stopped = first.fit(callbacks=[StopAt(*place)])
    assert (stopped.epoch, stopped.batch) == place

    second = Job(data, seed=9)
    progress = Progress()
    progress.load_state_dict(stopped.state_dict())
    for name in ("model", "optimizer", "scheduler", "loader"):
        getattr(second, name).load_state_dict(getattr(first, name).state_dict())
    assert figures(second.fit(progress=progress)) == expected
    for ours, theirs in zip(second.weights(), whole.weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_callbacks_see_the_run(data):
    events = []

    class Log(Callback):
        def on_epoch_start(self, progress):
            events.append(("start", progress.epoch, progress.batch))

        def on_batch_end(self, progress):
            events.append(progress.samples)
            assert math.isfinite(progress.loss)
            assert 0 <= progress.accuracy <= 1

        def on_epoch_end(self, progress, result):
            events.append(("end", progress.epoch, result.epoch))

    Job(data).fit(epochs=1, callbacks=[Log()])
    assert events == [("start", 0, 0), 8, 16, 24, 32, 40, 48, 56, 60, ("end", 1, 1)]


def test_a_finished_run_does_nothing_more(data):
    job = Job(data)
    progress = job.fit(epochs=2)
    before = job.weights()
    job.fit(epochs=2, progress=progress)
    assert len(progress.history) == 2
    for now, then in zip(job.weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_without_a_test_set(data):
    job = Job(data)
    progress = fit(job.model, job.loader, optimizer=job.optimizer, epochs=1)
    assert progress.history[0].test_accuracy is None
    assert progress.training_seconds > 0
