"""The network of airbench: a convolutional net that learns CIFAR-10 to 94 % with 0.36 PFLOP of training.

What is notable:
- a first layer that is computed, not learned: 2 x 2 patches are whitened by statistics of training pictures
- convolutions that begin as the identity on as many channels as come in
- batch norm without a learned scale, GELU, logits scaled down

K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", https://arxiv.org/abs/2404.00498
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.config_checks import check_shares, check_sizes
from luban.models.head import Head

PATCH = 2
WHITENING_EPS = 5e-4  # added to eigenvalues; of pictures scaled to variance one


@dataclass(frozen=True)
class AirbenchConfig:
    """The network's shape.

    Arguments:
        widths: channels of the three groups; (64, 256, 256) is airbench94's.
        convolutions: in a group; from three on, all but the first stand beside a residual connection
            (airbench96 has three).
        logit_scale: what the logits are multiplied by.
        dropout: share of what the last layer reads that is zeroed while training.

    Raises:
        InputError: when the numbers do not fit each other.
    """

    classes: int
    channels: int = 3
    widths: tuple[int, int, int] = (64, 256, 256)
    convolutions: int = 2
    logit_scale: float = 1 / 9
    norm_momentum: float = 0.4
    norm_eps: float = 1e-12
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON gives a list
        if len(self.widths) != 3:
            raise InputError("widths must be three numbers", received=self.widths)
        if min(self.widths) < 1:
            raise InputError("widths must be at least 1", received=self.widths)
        check_sizes(self, "classes", "channels", "convolutions")
        check_shares(self, "dropout")

    @property
    def whitened(self) -> int:
        """Channels of the whitening layer: each direction of a patch, and its negative."""
        return 2 * self.channels * PATCH**2


class ShiftNorm(nn.BatchNorm2d):
    """Batch norm with a learned shift and no learned scale."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.register_parameter("weight", None)

    def reset_parameters(self) -> None:
        """Set the statistics to mean 0 and variance 1, the shift to zero."""
        self.reset_running_stats()
        nn.init.zeros_(self.bias)


class Group(nn.Module):
    """Convolutions of 3 x 3 with norm and GELU; the first one halves the picture."""

    def __init__(self, inputs: int, width: int, config: AirbenchConfig) -> None:
        super().__init__()
        ins = [inputs] + [width] * (config.convolutions - 1)
        self.convolutions = nn.ModuleList(nn.Conv2d(i, width, 3, padding=1, bias=False) for i in ins)
        norms = (ShiftNorm(width, config.norm_eps, config.norm_momentum) for _ in ins)
        self.norms = nn.ModuleList(norms)
        self.residual = config.convolutions >= 3

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) -> (batch, channels, height / 2, width / 2)."""
        x = F.max_pool2d(self.convolutions[0](x), 2)
        x = F.gelu(self.norms[0](x))
        start, last = x, len(self.convolutions) - 1
        for number in range(1, last + 1):
            x = self.norms[number](self.convolutions[number](x))
            if self.residual and number == last:
                x = x + start
            x = F.gelu(x)
        return x


class Airbench(nn.Module):
    """Whitening, three groups of convolutions, the maximum over places, logits.

    One CIFAR-10 picture takes 236 MFLOP forward with the default widths (a product and a sum count two).

    Initial weights: of each convolution, the first outputs repeat the inputs (Dirac), the others are uniform
    within 1 / sqrt(inputs * 9), as torch draws them; the classifier uniform within 1 / sqrt(width); shifts and
    the bias of the whitening zero. The whitening is the identity on patches until `whiten` is called.

    Example:
        >>> model = Airbench(AirbenchConfig(classes=10, widths=(8, 16, 16)))
        >>> images = torch.randn(20, 3, 32, 32)
        >>> model.whiten(images)
        >>> model(images).shape
        torch.Size([20, 10])
    """

    whitening: Tensor

    def __init__(self, config: AirbenchConfig) -> None:
        super().__init__()
        self.config = config
        identity = torch.eye(config.whitened // 2)
        directions = torch.cat([identity, -identity]).view(-1, config.channels, PATCH, PATCH)
        self.register_buffer("whitening", directions)
        self.whitening_bias = nn.Parameter(torch.zeros(config.whitened))
        ins = (config.whitened, *config.widths[:2])
        self.groups = nn.ModuleList(Group(i, o, config) for i, o in zip(ins, config.widths, strict=True))
        self.classifier = Head(config.widths[2], config.classes, bias=False, dropout=config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights anew; the whitening stays."""
        nn.init.zeros_(self.whitening_bias)
        self.classifier.reset_parameters()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
                inputs = min(module.in_channels, module.out_channels)
                with torch.no_grad():
                    nn.init.dirac_(module.weight[:inputs])
            elif isinstance(module, ShiftNorm):
                module.reset_parameters()

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Set the first layer so that what it gives for patches of `images` is uncorrelated, of variance one.

        Arguments:
            images: (rows, channels, height, width), scaled as those that the network will see, near mean 0 and
                variance 1; a few thousand are enough.

        Raises:
            InputError: when a picture is smaller than a patch, has other channels, or a value is not finite.
        """
        shape, channels = tuple(images.shape), self.config.channels
        if images.ndim != 4 or shape[1] != channels or min(shape[2:]) < PATCH or not shape[0]:
            raise InputError(f"pictures must be (rows, {channels}, height, width)", received=shape)
        patches = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # (rows, channels, height - 1, ..., 2, 2)
        vectors = patches.movedim(1, 3).reshape(-1, self.config.whitened // 2).double()
        covariance = vectors.T @ vectors / len(vectors)  # about zero, as in the paper's code
        if not covariance.isfinite().all():
            raise InputError("pictures must be finite numbers", fix="look at how they are scaled")
        eigenvalues, directions = torch.linalg.eigh(covariance)  # ascending; a direction is a column
        directions = (directions / (eigenvalues.clamp(min=0.0) + WHITENING_EPS).sqrt()).T.flip(0)
        # An eigenvector's sign is free: the largest part positive, so that it does not hang on the machine.
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        directions = directions * largest.sign()
        both = torch.cat([directions, -directions])
        self.whitening.copy_(both.view_as(self.whitening))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, classes), of pictures (batch, channels, height, width) of at least 9 pixels a side."""
        x = F.gelu(
            F.conv2d(images, self.whitening, self.whitening_bias)
        )  # (batch, whitened, height - 1, width - 1)
        for group in self.groups:
            x = group(x)
        x = x.amax((2, 3))  # (batch, widths[2])
        out: Tensor = self.classifier(x) * self.config.logit_scale
        return out
