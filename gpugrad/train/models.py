"""The two models of the command line."""

from __future__ import annotations

import gpugrad as gg
from gpugrad import nn

__all__ = ["MLP", "LeNet"]


class LeNet(nn.Module):
    """LeNet-5 in its usual modern form: ``(N, 1, 28, 28)`` images to ``(N, 10)`` logits.

    Two rounds of 5 x 5 convolution, ReLU and 2 x 2 max pooling (1 -> 6 -> 16 channels, 28 -> 12 ->
    4 pixels), then three linear layers 256 -> 120 -> 84 -> classes. 44,426 parameters. After LeCun,
    Bottou, Bengio and Haffner 1998.

    Example:
        >>> import gpugrad as gg
        >>> from gpugrad.train import LeNet
        >>> tuple(LeNet()(gg.zeros(2, 1, 28, 28)).shape)
        (2, 10)
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        x = nn.functional.max_pool2d(nn.functional.relu(self.conv1(x)), 2)
        x = nn.functional.max_pool2d(nn.functional.relu(self.conv2(x)), 2)
        x = x.flatten(1)
        x = nn.functional.relu(self.fc1(x))
        x = nn.functional.relu(self.fc2(x))
        return self.fc3(x)


class MLP(nn.Module):
    """A multilayer perceptron with ReLU: ``(N, ...)``, flattened, to ``(N, num_classes)`` logits.

    Example:
        >>> import gpugrad as gg
        >>> from gpugrad.train import MLP
        >>> tuple(MLP(hidden=(128,))(gg.zeros(2, 1, 28, 28)).shape)
        (2, 10)
    """

    def __init__(
        self, in_features: int = 784, hidden: tuple[int, ...] = (256, 128), num_classes: int = 10
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        width = in_features
        for next_width in hidden:
            layers += [nn.Linear(width, next_width), nn.ReLU()]
            width = next_width
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, x: gg.Tensor) -> gg.Tensor:
        return self.layers(x)
