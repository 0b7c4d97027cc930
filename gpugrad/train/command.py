"""``gpugrad train``: one run from options to curves, interruptible and resumable at any batch."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gpugrad as gg
from gpugrad.errors import CheckpointError
from gpugrad.io import CheckpointStructureError, load, load_checkpoint, save_checkpoint
from gpugrad.train.curves import draw_curves
from gpugrad.train.display import make_display
from gpugrad.train.loop import Callback, EpochResult, Progress, StopTraining, fit
from gpugrad.train.models import MLP, LeNet
from gpugrad.utils.blas import blas_info, set_blas_threads
from gpugrad.utils.command import CommandError
from gpugrad.utils.data import DataLoader, Subset
from gpugrad.vision import transforms
from gpugrad.vision.datasets import MNIST, DownloadError, FashionMNIST
from gpugrad.vision.idx import IdxError

__all__ = ["Run", "Settings", "add_arguments", "main"]

_MODELS = {"lenet": LeNet, "mlp": MLP}
_CHECKPOINT = "checkpoint.safetensors"
_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a run. A resumed run has those it was started with.

    The defaults were chosen on the embedded digits by comparing optimizers, rates, lengths and
    augmentations over three seeds
    each: SGD with Nesterov momentum under a one-cycle schedule, small random rotations, shifts and
    scalings.
    """

    model: str = "lenet"
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.05
    seed: int = 0
    data: str = "mnist"
    augment: bool = True
    subset: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``gpugrad train``; None tells those left out from those given."""
    default = Settings()
    add = parser.add_argument
    add("--model", choices=sorted(_MODELS), help=f"what to train (default {default.model})")
    add("--device", help="cpu, cuda or cuda:N (default: cuda if there is one, else cpu)")
    add("--epochs", type=_positive_int, help=f"passes over the data (default {default.epochs})")
    add("--batch-size", type=_positive_int, help=f"images per step (default {default.batch_size})")
    add(
        "--lr",
        type=_positive_float,
        help=f"highest learning rate of the one-cycle schedule (default {default.lr})",
    )
    add("--seed", type=_seed, help=f"of weights, order and augmentation (default {default.seed})")
    add(
        "--data",
        help="mnist: the 10,000 digits of the package (default); mnist-full, fashion: downloaded "
        "to ./data; or a folder of IDX files",
    )
    add(
        "--no-augment",
        dest="augment",
        action="store_const",
        const=False,
        help="train on the images as they are",
    )
    add(
        "--subset",
        type=_positive_int,
        metavar="N",
        help="use only the first N images of each part, to try things",
    )
    add(
        "--threads",
        type=_positive_int,
        default=1,
        # LeNet's products are small: on an idle machine with two cores a second BLAS thread gains
        # 10-20 %; on a busy one its spinning makes an epoch take 10-30 s instead of 2.
        help="CPU threads for each operation; more than 1 pays on idle machines (default 1)",
    )
    add("--out", type=Path, help="folder for checkpoint and curves (default runs/MODEL)")
    add("--resume", action="store_true", help="continue the run in --out exactly where it stopped")
    add(
        "--stop-after",
        type=_positive_int,
        metavar="EPOCHS",
        help="save and stop after this many epochs of the schedule",
    )


def main(options: argparse.Namespace) -> int:
    """Run ``gpugrad train`` and return the exit code."""
    _require_safetensors()
    out = options.out or Path("runs") / (options.model or Settings.model)
    checkpoint = out / _CHECKPOINT
    try:
        settings = _resumed_settings(options, checkpoint) if options.resume else _settings(options)
        device = _device(options.device)
        run = Run(settings, device)
        if options.resume:
            run.restore(checkpoint)
        out.mkdir(parents=True, exist_ok=True)
    except (
        IdxError,
        DownloadError,
        CheckpointError,
        FileNotFoundError,
        NotADirectoryError,
        PermissionError,
    ) as error:
        raise CommandError(str(error)) from error
    with _threads(options.threads):
        return _train(run, checkpoint, options)


class Run:
    """Model, data, optimizer and schedule of some settings, with their progress."""

    def __init__(self, settings: Settings, device: gg.device) -> None:
        self.settings = settings
        self.device = device
        gg.manual_seed(settings.seed)
        train_data, test_data = _datasets(settings)
        classes = len(train_data.classes)
        self.loader = DataLoader(
            _first(train_data, settings.subset),
            batch_size=settings.batch_size,
            shuffle=True,
            # One thread prepares the next batches while this one trains.
            num_workers=1,
            generator=gg.Generator().manual_seed(settings.seed),
        )
        self.test_loader = DataLoader(_first(test_data, settings.subset), batch_size=500)
        self.model = _MODELS[settings.model](num_classes=classes).to(device)
        self.optimizer = gg.optim.SGD(
            self.model.parameters(), lr=settings.lr, momentum=0.9, nesterov=True
        )
        self.scheduler = gg.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            settings.lr,
            total_steps=settings.epochs * len(self.loader),
            pct_start=0.25,
            cycle_momentum=False,
        )
        self.progress = Progress()

    @property
    def _parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "loader": self.loader,
        }

    def save(self, path: Path) -> None:
        save_checkpoint(
            path, **self._parts, progress=self.progress.state_dict(), settings=asdict(self.settings)
        )

    def restore(self, path: Path) -> None:
        content = load_checkpoint(path, **self._parts, map_location="cpu")
        self.progress.load_state_dict(content["progress"])

    def fit(self, epochs: int, callbacks: list[Callback]) -> None:
        fit(
            self.model,
            self.loader,
            optimizer=self.optimizer,
            epochs=epochs,
            scheduler=self.scheduler,
            test_loader=self.test_loader,
            device=self.device,
            callbacks=callbacks,
            progress=self.progress,
        )

    def describe(self) -> list[str]:
        parameters = sum(p.numel() for p in self.model.parameters())
        settings = self.settings
        return [
            f"{type(self.model).__name__}, {parameters:,} parameters, on {self.device}",
            f"{len(self.loader.dataset):,} images to train, {len(self.test_loader.dataset):,} to "
            f"test ({settings.data})",
            f"{settings.epochs} epochs, batch size {settings.batch_size}, learning rate up to "
            f"{settings.lr:g}, "
            f"seed {settings.seed}" + (", augmented" if settings.augment else ""),
        ]


def _train(run: Run, checkpoint: Path, options: argparse.Namespace) -> int:
    """Train with display, checkpoints and interruption, then report."""
    settings, progress = run.settings, run.progress
    last_epoch = min(settings.epochs, options.stop_after or settings.epochs)
    for line in run.describe():
        print(line)
    if options.resume:
        batch = f", batch {progress.batch}" if progress.batch else ""
        print(f"continuing {checkpoint} after epoch {progress.epoch}{batch}")
    guard = _Guard(run, checkpoint)
    with _interrupts_to(guard), make_display(settings.epochs, len(run.loader)) as display:
        run.fit(last_epoch, [display, guard])
    resume = f"gpugrad train --resume --out {checkpoint.parent}"
    if guard.failure:
        print(guard.failure, file=sys.stderr)
        return 1
    if guard.interrupted and progress.epoch < settings.epochs:
        run.save(checkpoint)
        print(
            f"interrupted in epoch {progress.epoch + 1} of {settings.epochs} after batch "
            f"{progress.batch} of {len(run.loader)}; saved {checkpoint}\n"
            f"continue with: {resume}",
            file=sys.stderr,
        )
        return _INTERRUPTED
    _report(run, checkpoint)
    if progress.epoch < settings.epochs:
        print(f"stopped after epoch {progress.epoch} of {settings.epochs}; continue with: {resume}")
    return 0


class _Guard(Callback):
    """Saves after every epoch; ends the run on an interrupt or when the loss is not a number."""

    def __init__(self, run: Run, checkpoint: Path) -> None:
        self.run = run
        self.checkpoint = checkpoint
        self.interrupted = False
        self.failure = ""

    def on_batch_end(self, progress: Progress) -> None:
        if self.interrupted:
            raise StopTraining

    def on_epoch_end(self, progress: Progress, result: EpochResult) -> None:
        if not math.isfinite(result.train_loss):
            self.failure = (
                f"the loss became {result.train_loss} in epoch {result.epoch}: try a lower --lr "
                f"than {self.run.settings.lr:g}; {self.checkpoint} was not overwritten"
            )
            raise StopTraining
        self.run.save(self.checkpoint)
        if self.interrupted and progress.epoch < self.run.settings.epochs:
            raise StopTraining


@contextmanager
def _interrupts_to(guard: _Guard) -> Iterator[None]:
    """Let Ctrl-C finish the batch, so that what is saved is whole; a second one ends at once."""

    def on_interrupt(signum: int, frame: Any) -> None:
        if guard.interrupted:
            raise KeyboardInterrupt
        guard.interrupted = True

    try:
        before = signal.signal(signal.SIGINT, on_interrupt)
    except ValueError:  # not in the main thread: whoever runs this handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Use so many threads for elementwise work and in the BLAS."""
    before, blas_before = gg.get_num_threads(), blas_info().threads
    gg.set_num_threads(count)
    try:
        yield
    finally:
        gg.set_num_threads(before)
        if blas_before is not None:
            set_blas_threads(blas_before)


def _report(run: Run, checkpoint: Path) -> None:
    history = run.progress.history
    if not history:
        return
    last = history[-1]
    best = max(history, key=lambda result: result.test_accuracy or 0.0)
    images = sum(result.samples_per_second * result.seconds for result in history)
    seconds = run.progress.training_seconds
    print(
        f"test accuracy {100 * (last.test_accuracy or 0.0):.2f} % after epoch {last.epoch} (best "
        f"{100 * (best.test_accuracy or 0.0):.2f} % after epoch {best.epoch}), test loss "
        f"{last.test_loss:.4f}"
    )
    print(f"trained {seconds:.1f} s, {images / max(seconds, 1e-9):,.0f} images/s")
    print(f"checkpoint {checkpoint}")
    curves = checkpoint.parent / "curves.png"
    try:
        draw_curves(history, curves, title=f"{type(run.model).__name__} on {run.settings.data}")
        print(f"curves     {curves}")
    except ModuleNotFoundError as error:
        print(f"no curves: {error}", file=sys.stderr)


# ---- from options to settings and data ----


def _settings(options: argparse.Namespace) -> Settings:
    given = {name: getattr(options, name) for name in asdict(Settings())}
    return Settings(**{name: value for name, value in given.items() if value is not None})


def _resumed_settings(options: argparse.Namespace, checkpoint: Path) -> Settings:
    """The settings the run was started with; options that contradict them are refused."""
    if not checkpoint.is_file():
        raise CommandError(
            f"nothing to resume: {checkpoint} does not exist; leave out --resume to start a run"
        )
    content = load(checkpoint, map_location="cpu")
    saved = content.get("settings") if isinstance(content, dict) else None
    if not isinstance(saved, dict) or set(saved) != set(asdict(Settings())):
        raise CheckpointStructureError(f"{checkpoint} was not written by 'gpugrad train'")
    for name, value in saved.items():
        given = getattr(options, name)
        if given is not None and given != value:
            flag = "--no-augment" if name == "augment" else "--" + name.replace("_", "-")
            raise CommandError(
                f"{flag} differs from the run being resumed, which has {name} = {value!r}: leave "
                "it out, or start another run with another --out"
            )
    return Settings(**saved)


def _datasets(settings: Settings) -> tuple[MNIST, MNIST]:
    """Training and test data with their transforms."""
    if settings.data == "mnist":
        train, test = MNIST(train=True), MNIST(train=False)
    elif settings.data in ("mnist-full", "fashion"):
        kind = MNIST if settings.data == "mnist-full" else FashionMNIST
        train, test = kind("data", train=True, download=True), kind("data", train=False)
    elif Path(settings.data).is_dir():
        train, test = MNIST(settings.data, train=True), MNIST(settings.data, train=False)
    else:
        raise CommandError(
            f"--data {settings.data}: not a folder, nor one of mnist, mnist-full, fashion"
        )
    for part in (train, test):
        if len(part) == 0 or tuple(part.data.shape[1:]) != (28, 28):
            raise CommandError(
                f"--data {settings.data}: the models take 28 x 28 images, found {len(part)} of "
                f"{tuple(part.data.shape[1:])}"
            )
    pixels = train.data.array / 255
    prepare = [
        transforms.ToTensor(),
        transforms.Normalize((float(pixels.mean()),), (float(pixels.std()),)),
    ]
    augment = (
        [transforms.RandomAffine(10, translate=(0.08, 0.08), scale=(0.9, 1.1))]
        if settings.augment
        else []
    )
    train.transform = transforms.Compose([*augment, *prepare])
    test.transform = transforms.Compose(prepare)
    return train, test


def _first(dataset: MNIST, count: int | None) -> Any:
    return dataset if count is None or count >= len(dataset) else Subset(dataset, range(count))


def _device(name: str | None) -> gg.device:
    if name is None:
        return gg.device("cuda" if gg.cuda.is_available() else "cpu")
    try:
        device = gg.device(name)
    except (RuntimeError, ValueError) as error:
        raise CommandError(f"--device {name}: {error}") from error
    if device.type == "cuda" and not gg.cuda.is_available():
        raise CommandError(
            f"--device {name}: there is no usable CUDA device here; 'gpugrad info' says what is "
            "missing. Use --device cpu."
        )
    return device


def _require_safetensors() -> None:
    try:
        import safetensors  # noqa: F401
    except ModuleNotFoundError as error:
        raise CommandError('checkpoints need safetensors: pip install "gpugrad[train]"') from error


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 0 to 2**63 - 1, got {text!r}"
        )
    return int(text)
