"""Random changes of training pictures, as pure functions: every draw is a number that is passed in.

`uniforms` gives the draws of a row by its position in the run and nothing else, so a batch may be cut anywhere and a
run that goes on sees the pictures it would have seen. All functions work on whole batches (rows, channels, height,
width) of uint8 from 0 to 255 or of floating-point numbers, and give back the type that came.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.errors import InputError

# splitmix64's constants, as signed numbers: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
# Generators", 2014
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)
_GREY = (0.299, 0.587, 0.114)  # what red, green and blue count for brightness: ITU-R BT.601
_ASPECT = math.log(4 / 3)  # crops are between 3:4 and 4:3
_TABLE = 1025


def uniforms(seed: int, positions: Tensor, count: int) -> Tensor:
    """Return `count` uniform numbers in [0, 1) for each row: a function of (seed, position) only.

    Each is the upper 24 bits of splitmix64, started from a mix of seed and position.

    Arguments:
        seed: any integer; 64 bits of it count. positions: (rows,) int64, where each row stands in the run.

    Shapes:
        returns (rows, count) float32.

    Example:
        >>> draws = uniforms(0, torch.arange(4), 2)
        >>> torch.equal(draws[2:], uniforms(0, torch.tensor([2, 3]), 2))
        True
    """
    seed = (seed + (1 << 63)) % (1 << 64) - (1 << 63)  # as a signed number of 64 bits
    start = _mix(torch.tensor(seed, device=positions.device) + _GAMMA)
    streams = _mix(start + positions.to(torch.int64) * _GAMMA)  # (rows,)
    steps = torch.arange(1, count + 1, device=positions.device) * _GAMMA
    words = _mix(streams[:, None] + steps)  # (rows, count)
    return _shifted(words, 40).to(torch.float32) * 2.0**-24


def _mix(words: Tensor) -> Tensor:
    """Return splitmix64's mixing of each word; products keep their lower 64 bits."""
    words = (words ^ _shifted(words, 30)) * _MIX1
    words = (words ^ _shifted(words, 27)) * _MIX2
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Shift to the right, zeros coming in: torch's own shift repeats the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror pictures left to right where `mirrored`, (rows,) bool, says so."""
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def by_turns(seed: int, rows: Tensor, epochs: Tensor) -> Tensor:
    """Say which pictures are mirrored: half of them in the first epoch, in the next the others, and so on by turns.

    So two epochs show each picture from both sides, where independent draws show one in two of them twice from the
    same: Jordan 2024, https://arxiv.org/abs/2404.00498

    Arguments:
        rows: (rows,) int64, which picture it is. epochs: (rows,) int64, in which it stands.

    Example:
        >>> rows, zero = torch.arange(4), torch.zeros(4, dtype=torch.int64)
        >>> torch.equal(by_turns(0, rows, zero), ~by_turns(0, rows, zero + 1))
        True
    """
    return (uniforms(seed, rows, 1)[:, 0] < 0.5) ^ (epochs % 2 == 1)


def shift(images: Tensor, draws: Tensor, pixels: int) -> Tensor:
    """Move each picture by up to `pixels` up or down, and left or right; what comes in is the picture, reflected.

    The same as padding by reflection and cutting out at random; He et al. 2015 (https://arxiv.org/abs/1512.03385)
    pad with zeros.

    Arguments:
        draws: (rows, 2), of the two directions. pixels: fewer than the picture has on either side.
    """
    _check_shift(images, pixels, pixels)
    return _moved(images, (draws * (2 * pixels + 1)).long() - pixels)


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Move all pictures by so many pixels; what comes in is the picture, reflected, as in `shift`.

    Example:
        >>> shifted(torch.arange(4.0).view(1, 1, 1, 4), 0, 1).tolist()
        [[[[1.0, 0.0, 1.0, 2.0]]]]
    """
    _check_shift(images, abs(down), abs(right))
    return _moved(images, torch.tensor([[-down, -right]], device=images.device).expand(len(images), 2))


def _check_shift(images: Tensor, down: int, right: int) -> None:
    height, width = images.shape[2:]
    if not (0 <= down < height and 0 <= right < width):
        fix = "choose fewer than the picture's height and width"
        raise InputError("a shift must leave something of the picture", received=(down, right), fix=fix)


def _moved(images: Tensor, moves: Tensor) -> Tensor:
    """Return pictures seen from so many pixels further down and right, moves: (rows, 2) int64."""
    height, width = images.shape[2:]
    rows = _reflected(moves[:, :1] + torch.arange(height, device=images.device), height)  # (rows, height)
    columns = _reflected(moves[:, 1:] + torch.arange(width, device=images.device), width)  # (rows, width)
    moved = images.gather(2, rows[:, None, :, None].expand(images.shape))
    return moved.gather(3, columns[:, None, None, :].expand(images.shape))


def _reflected(places: Tensor, size: int) -> Tensor:
    """Bring places into 0 .. size - 1, mirrored at the outermost pixels, which are not repeated."""
    places = places.abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)


def crop(images: Tensor, draws: Tensor, smallest: float) -> Tensor:
    """Cut out a part of each picture and enlarge it to the picture's size, bilinearly.

    The part's area is a share between `smallest` and 1 of the picture, its aspect between 3:4 and 4:3 (of the picture's
    own), but no longer than the picture; its place is uniform (Szegedy et al. 2015, https://arxiv.org/abs/1409.4842).

    Arguments:
        draws: (rows, 4): area, aspect, place from the top, place from the left.
    """
    if not 0.0 < smallest <= 1.0:
        raise InputError("the smallest share of a crop must be above 0 and at most 1", received=smallest)
    area = smallest + (1.0 - smallest) * draws[:, 0]
    aspect = torch.exp(_ASPECT * (2.0 * draws[:, 1] - 1.0))
    tall, wide = (
        (area / aspect).sqrt().clamp(max=1.0),
        (area * aspect).sqrt().clamp(max=1.0),
    )  # shares of the sides
    # In the sampler's coordinates a side goes from -1 to 1, so what a part leaves free is 1 - share on either side.
    down, right = (2.0 * draws[:, 2] - 1.0) * (1.0 - tall), (2.0 * draws[:, 3] - 1.0) * (1.0 - wide)
    zero = torch.zeros_like(wide)
    across, along = torch.stack([wide, zero, right], 1), torch.stack([zero, tall, down], 1)
    places = F.affine_grid(torch.stack([across, along], 1), list(images.shape), align_corners=False)
    cut = F.grid_sample(_floating(images), places, padding_mode="border", align_corners=False)
    return _typed(cut, images)


def cutout(images: Tensor, draws: Tensor, size: int, fill: float = 0.0) -> Tensor:
    """Paint a square of `size` pixels over each picture, its centre anywhere in it.

    DeVries and Taylor, "Cutout", https://arxiv.org/abs/1708.04552

    Arguments:
        draws: (rows, 2): from the top, from the left. fill: the value painted.
    """
    height, width = images.shape[2:]
    covered = []
    for side, length in ((0, height), (1, width)):
        first = (draws[:, side : side + 1] * length).long() - size // 2  # (rows, 1)
        places = torch.arange(length, device=images.device)
        covered.append((places >= first) & (places < first + size))  # (rows, length)
    square = covered[0][:, None, :, None] & covered[1][:, None, None, :]
    return images.masked_fill(square, fill)


def jitter(images: Tensor, draws: Tensor, brightness: float, contrast: float, colour: float) -> Tensor:
    """Change brightness, contrast and saturation, in this order, each by a factor in 1 - strength .. 1 + strength.

    Brightness blends with black, contrast with the picture's mean grey, saturation with its grey version; it leaves
    pictures alone that have not three channels. Values stay between 0 and 255 for uint8, 0 and 1 otherwise.

    Arguments:
        draws: (rows, 3), one for each factor.
    """
    high = 1.0 if images.is_floating_point() else 255.0
    strengths = torch.tensor([brightness, contrast, colour], device=images.device)
    factors = 1.0 + strengths * (2.0 * draws - 1.0)  # (rows, 3)
    bright, contrasted, coloured = factors[:, :, None, None, None].to(_floating(images).dtype).unbind(1)
    x = (_floating(images) * bright).clamp(0.0, high)
    mean = _grey(x).mean((1, 2, 3), keepdim=True)
    x = (mean + (x - mean) * contrasted).clamp(0.0, high)
    if x.shape[1] == 3:
        grey = _grey(x)
        x = (grey + (x - grey) * coloured).clamp(0.0, high)
    return _typed(x, images)


def _grey(images: Tensor) -> Tensor:
    """Return (rows, 1, height, width): how bright each place is."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    shares = torch.tensor(_GREY, dtype=images.dtype, device=images.device)
    return (images * shares[:, None, None]).sum(1, keepdim=True)


def mixup(images: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """Blend each picture with another: share * own + (1 - share) * partner's.

    The loss is blended alike: share * loss(own target) + (1 - share) * loss(the partner's target).

    Zhang et al., "mixup", https://arxiv.org/abs/1710.09412

    Arguments:
        partners: as images. shares: (rows,) in 0 .. 1; see `symmetric_beta`.
    """
    own = shares[:, None, None, None].to(_floating(images).dtype)
    x = _floating(images)
    return _typed(own * x + (1.0 - own) * _floating(partners), images)


def symmetric_beta(draws: Tensor, alpha: float) -> Tensor:
    """Turn uniform numbers into numbers of the distribution Beta(alpha, alpha), elementwise and rising.

    The distribution function F is integrated up to x = 1/2, for alpha below 1 over s = x**alpha, in which it is
    smooth; the other half is its mirror image.

    Example:
        >>> symmetric_beta(torch.tensor([0.0, 0.25, 0.5, 1.0]), 1.0).tolist()
        [0.0, 0.25, 0.5, 1.0]
    """
    if not alpha > 0.0:
        raise InputError("alpha must be above 0", received=alpha)
    power = min(alpha, 1.0)
    s = torch.linspace(0.0, 0.5**power, _TABLE, dtype=torch.float64, device=draws.device)
    x = s ** (1.0 / power)
    # x**(alpha - 1) * (1 - x)**(alpha - 1) dx, with x**(power - 1) dx = ds / power; factors are taken out below.
    area = torch.cumulative_trapezoid(x ** (alpha - power) * (1.0 - x) ** (alpha - 1.0), s)
    area = torch.cat([area.new_zeros(1), area]) * (0.5 / area[-1])  # F at each s, from 0 to 1/2
    lower = torch.minimum(draws, 1.0 - draws).double()
    right = torch.searchsorted(area, lower).clamp(1, _TABLE - 1)
    within = (lower - area[right - 1]) / (area[right] - area[right - 1])
    x = (s[right - 1] + within * (s[right] - s[right - 1])) ** (1.0 / power)
    return torch.where(draws > 0.5, 1.0 - x, x).to(draws.dtype)


def _floating(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.float()


def _typed(images: Tensor, like: Tensor) -> Tensor:
    """Return pictures in the type of `like`: whole numbers are rounded."""
    return images if like.is_floating_point() else images.round().clamp(0, 255).to(like.dtype)


@dataclass(frozen=True)
class Augmentation:
    """Which changes are made, in the order they stand here; what is zero or false is not.

    Arguments:
        crop: the smallest share of a picture that is cut out; 1 cuts nothing.
        shift: pixels up or down, left or right. flip: mirror half of the pictures, each by turns (`by_turns`).
        brightness, contrast, colour: how far each factor is from 1. cutout: side of the square, in pixels.

    Example:
        >>> augmentation = Augmentation(flip=True, shift=2)
        >>> pictures, rows = torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.arange(3)
        >>> augmentation(pictures, seed=0, positions=rows, rows=rows, epochs=rows * 0).dtype
        torch.uint8
    """

    crop: float = 1.0
    shift: int = 0
    flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0
    cutout: int = 0

    DRAWS = 11  # of a row; each change has its own, so that one more leaves the others as they are

    def __call__(
        self, images: Tensor, *, seed: int, positions: Tensor, rows: Tensor, epochs: Tensor
    ) -> Tensor:
        """Return the pictures changed; a row's changes are a function of seed, position, row and epoch only.

        Arguments:
            images: (rows, channels, height, width), uint8, or floating-point numbers from 0 to 1.
            positions, rows, epochs: (rows,) int64: where each stands in the run, which picture it is, in which epoch.
        """
        draws = uniforms(seed, positions, self.DRAWS)
        if self.crop < 1.0:
            images = crop(images, draws[:, 0:4], self.crop)
        if self.shift:
            images = shift(images, draws[:, 4:6], self.shift)
        if self.flip:
            images = flip(images, by_turns(seed + 2, rows, epochs))
        if self.brightness or self.contrast or self.colour:
            images = jitter(images, draws[:, 6:9], self.brightness, self.contrast, self.colour)
        if self.cutout:
            images = cutout(images, draws[:, 9:11], self.cutout)
        return images
