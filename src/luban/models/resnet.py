"""ResNet of basic blocks: with a stem for small pictures, or as published for large ones.

Parameters carry the names of transformers' ResNetForImageClassification; with the large stem its checkpoints
load as they stand (`luban.models.image_layouts` reads the configuration).

He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.config_checks import check_choice, check_shares, check_sizes
from luban.models.head import Head

STEMS = ("small", "large")


@dataclass(frozen=True)
class ResNetConfig:
    """ResNet's shape; the default is ResNet-18.

    Arguments:
        stem: `small` is a convolution of 3 x 3 that keeps the size, for pictures of about 32 pixels; `large` one of
            7 x 7 with stride 2, then pooling, for pictures of about 224.
        stem_width: channels of the stem. widths: channels of the stages; each but the first halves the picture.
        depths: blocks of the stages.
        dropout: share of what the last layer reads that is zeroed while training.

    Raises:
        InputError: when the numbers do not fit each other.
    """

    classes: int
    channels: int = 3
    stem: str = "small"
    stem_width: int = 64
    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("widths", "depths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON gives lists
        if not self.widths or len(self.widths) != len(self.depths):
            fix = "give as many widths as depths, one of each for a stage"
            raise InputError("widths and depths differ", received=(self.widths, self.depths), fix=fix)
        if min(*self.widths, *self.depths) < 1:
            raise InputError("widths and depths must be at least 1", received=(self.widths, self.depths))
        check_sizes(self, "classes", "channels", "stem_width")
        check_shares(self, "dropout")
        check_choice(self, "stem", STEMS)


class Convolution(nn.Module):
    """A convolution that keeps the size or, with a stride, halves it; then batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.normalization = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) -> (batch, outputs, height / stride, width / stride)."""
        layer = self.convolution
        if layer.kernel_size == (1, 1) and layer.stride != (1, 1):
            # Strided first: of fewer than 16 channels that lie side by side, oneDNN's gradient for a strided filter of
            # one place is wrong, and writes where it must not. https://github.com/uxlfoundation/oneDNN/issues/6035
            down, right = layer.stride
            changed = F.conv2d(x[:, :, ::down, ::right], layer.weight)
        else:
            changed = layer(x)
        out: Tensor = self.normalization(changed)
        return out


class Block(nn.Module):
    """Two convolutions of 3 x 3 beside a shortcut, which is a convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else Convolution(inputs, outputs, 1, stride)
        self.layer = nn.ModuleList(
            [Convolution(inputs, outputs, 3, stride), Convolution(outputs, outputs, 3)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) -> (batch, outputs, height / stride, width / stride)."""
        changed = self.layer[1](F.relu(self.layer[0](x)))
        return F.relu(changed + self.shortcut(x))


class Stage(nn.Module):
    """Blocks of one width; the first one changes the shape."""

    def __init__(self, inputs: int, outputs: int, depth: int, stride: int) -> None:
        super().__init__()
        first = Block(inputs, outputs, stride)
        self.layers = nn.ModuleList([first, *(Block(outputs, outputs, 1) for _ in range(depth - 1))])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) -> (batch, outputs, height / stride, width / stride)."""
        for block in self.layers:
            x = block(x)
        return x


class Stack(nn.Module):
    """Stem and stages; the names of its parts complete those of transformers."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.large = config.stem == "large"
        kernel, stride = (7, 2) if self.large else (3, 1)
        stem = Convolution(config.channels, config.stem_width, kernel, stride)
        self.embedder = nn.ModuleDict({"embedder": stem})
        ins = (config.stem_width, *config.widths[:-1])
        stages = (
            Stage(inputs, outputs, depth, stride=1 if number == 0 else 2)
            for number, (inputs, outputs, depth) in enumerate(
                zip(ins, config.widths, config.depths, strict=True)
            )
        )
        self.encoder = nn.ModuleDict({"stages": nn.ModuleList(stages)})

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, widths[-1], ...)."""
        x = F.relu(self.embedder["embedder"](images))
        if self.large:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in self.encoder["stages"].children():
            x = stage(x)
        return x


class ResNet(nn.Module):
    """A residual network that classifies pictures.

    Initial weights: convolutions normal of variance 2 / (outputs * kernel places) (He et al. 2015); norms one, but
    zero for the last of each block, so that a block begins as its shortcut (Goyal et al. 2017,
    https://arxiv.org/abs/1706.02677); the classifier uniform within 1 / sqrt(inputs), as torch draws it.

    Example:
        >>> import torch
        >>> model = ResNet(ResNetConfig(classes=10, stem_width=8, widths=(8, 16), depths=(1, 1)))
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.resnet = Stack(config)
        head = Head(config.widths[-1], config.classes, dropout=config.dropout)
        self.classifier = nn.Sequential(nn.Flatten(), head)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights anew."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, Block):
                last = module.layer[1]
                assert isinstance(last, Convolution)
                nn.init.zeros_(last.normalization.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, classes), of pictures (batch, channels, height, width)."""
        x = self.resnet(images).mean((2, 3))  # (batch, widths[-1])
        out: Tensor = self.classifier(x)
        return out
