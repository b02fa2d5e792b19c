"""Two small convolutional networks for small pictures: LeNet, and one of today for the same money.

What is notable:
- `LeNet`: convolution, ReLU and pooling, twice; then an MLP
- `SmallConvNet`: pictures are halved before the channels grow, since on CPU what costs is layers that are wide
  and large; batch norm after every convolution; the maximum over places instead of an MLP, so that pictures may
  have any size; under 100,000 parameters
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.config_checks import check_shares, check_sizes
from luban.models.head import Head

_POOLED = 2  # convolutions of SmallConvNet that are pooled
_SMALLEST = 12  # side below which nothing is left after LeNet's second pooling


@dataclass(frozen=True)
class LeNetConfig:
    """LeNet's shape.

    Arguments:
        height, width: of the pictures, which all have one size, in pixels; at least 12.
        widths: channels of the two convolutions. hidden: units of the two hidden layers.
        dropout: share of what the last layer reads that is zeroed while training.

    Raises:
        InputError: when the numbers do not fit each other.
    """

    classes: int
    channels: int = 1
    height: int = 28
    width: int = 28
    widths: tuple[int, int] = (6, 16)
    hidden: tuple[int, int] = (120, 84)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("widths", "hidden"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON gives lists
            if len(getattr(self, name)) != 2:
                raise InputError(f"{name} must be two numbers", received=getattr(self, name))
            if min(getattr(self, name)) < 1:
                raise InputError(f"{name} must be at least 1", received=getattr(self, name))
        check_sizes(self, "classes", "channels")
        check_shares(self, "dropout")
        if min(self.height, self.width) < _SMALLEST:
            fix = f"enlarge the pictures to {_SMALLEST} x {_SMALLEST} pixels"
            raise InputError(
                "the pictures are too small for LeNet", received=(self.height, self.width), fix=fix
            )


class LeNet(nn.Module):
    """Two rounds of convolution, ReLU and 2 x 2 max pooling; then two hidden layers and the logits.

    Differs from LeCun et al., "Gradient-Based Learning Applied to Document Recognition" (1998), as is usual
    since: ReLU for tanh, max for mean pooling, full connections, a linear last layer.

    Initial weights: normal of variance 2 / inputs (He et al. 2015, https://arxiv.org/abs/1502.01852), of
    variance 1 / inputs in the last layer; biases zero.

    Example:
        >>> import torch
        >>> model = LeNet(LeNetConfig(classes=10))
        >>> model(torch.zeros(2, 1, 28, 28)).shape, sum(p.numel() for p in model.parameters())
        (torch.Size([2, 10]), 61706)
    """

    def __init__(self, config: LeNetConfig) -> None:
        super().__init__()
        self.config = config
        first, second = config.widths
        places = ((config.height // 2 - 4) // 2) * ((config.width // 2 - 4) // 2)
        self.conv1 = nn.Conv2d(config.channels, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.hidden1 = nn.Linear(second * places, config.hidden[0])
        self.hidden2 = nn.Linear(config.hidden[0], config.hidden[1])
        self.classifier = Head(config.hidden[1], config.classes, dropout=config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights anew."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        nn.init.kaiming_normal_(self.classifier.weight, nonlinearity="linear")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, classes), of pictures (batch, channels, height, width)."""
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)  # (batch, widths[0], height / 2, width / 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (batch, widths[1], about height / 4, ...)
        x = F.relu(self.hidden1(x.flatten(1)))
        x = F.relu(self.hidden2(x))
        out: Tensor = self.classifier(x)
        return out


@dataclass(frozen=True)
class SmallConvNetConfig:
    """The small network's shape.

    Arguments:
        widths: channels of the four convolutions.
        dropout: share of what the last layer reads that is zeroed while training.

    Raises:
        InputError: when the numbers do not fit each other.
    """

    classes: int
    channels: int = 1
    widths: tuple[int, int, int, int] = (32, 64, 64, 64)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON gives a list
        if len(self.widths) != 4:
            raise InputError("widths must be four numbers", received=self.widths)
        if min(self.widths) < 1:
            raise InputError("widths must be at least 1", received=self.widths)
        check_sizes(self, "classes", "channels")
        check_shares(self, "dropout")


class SmallConvNet(nn.Module):
    """Four convolutions of 3 x 3 with batch norm and ReLU, the first two pooled; the maximum over places, logits.

    A picture of 28 x 28 costs 14.9 MFLOP forward, a picture of any size may come. Batch norm: Ioffe and Szegedy
    2015, https://arxiv.org/abs/1502.03167; pooling stands before it, where there is a quarter to norm.

    Initial weights: convolutions normal of variance 2 / inputs (He et al. 2015), norms one and zero, the
    classifier normal of variance 1 / inputs with biases zero.

    Example:
        >>> import torch
        >>> model = SmallConvNet(SmallConvNetConfig(classes=10))
        >>> model(torch.zeros(2, 1, 28, 28)).shape, sum(p.numel() for p in model.parameters())
        (torch.Size([2, 10]), 93546)
    """

    def __init__(self, config: SmallConvNetConfig) -> None:
        super().__init__()
        self.config = config
        ins = (config.channels, *config.widths[:-1])
        pairs = zip(ins, config.widths, strict=True)
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in config.widths)
        self.classifier = Head(config.widths[-1], config.classes, dropout=config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights anew."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        nn.init.kaiming_normal_(self.classifier.weight, nonlinearity="linear")
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, classes), of pictures (batch, channels, height, width), at least 4 pixels a side."""
        x = images
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = convolution(x)
            if number < _POOLED:
                x = F.max_pool2d(x, 2)
            x = F.relu(norm(x))  # (batch, widths[number], ...)
        out: Tensor = self.classifier(x.amax((2, 3)))
        return out
