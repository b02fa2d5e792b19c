"""Augmentation: draws are uniform and depend on seed and position only; each change against a plain way to do it."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from luban.errors import InputError
from luban.models.augment import (
    Augmentation,
    by_turns,
    crop,
    cutout,
    flip,
    jitter,
    mixup,
    shift,
    shifted,
    symmetric_beta,
    uniforms,
)


def splitmix64(state: int, count: int) -> list[int]:
    """The generator as its authors write it, in whole numbers."""
    words = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        words.append(z ^ (z >> 31))
    return words


def test_splitmix64_is_splitmix64() -> None:
    """Its published first outputs from the state 1234567."""
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(-(2**63), 2**63), st.integers(0, 2**40))
def test_the_draws_are_splitmix64_of_seed_and_position(seed: int, position: int) -> None:
    gamma = 0x9E3779B97F4A7C15
    start = splitmix64(seed, 1)[0]
    stream = splitmix64(start + (position - 1) * gamma, 1)[0]
    expected = [(word >> 40) / 2**24 for word in splitmix64(stream, 4)]
    assert uniforms(seed, torch.tensor([position]), 4)[0].tolist() == expected


def test_the_draws_are_uniform_and_independent() -> None:
    draws = uniforms(7, torch.arange(100_000), 6).numpy().astype(np.float64)
    assert draws.min() >= 0.0 and draws.max() < 1.0
    for column in draws.T:
        counts, _ = np.histogram(column, np.linspace(0, 1, 101))
        assert (
            (counts - 1000) ** 2 / 1000
        ).sum() < 150  # chi squared of 99 degrees: beyond 150 once in 1,000
    columns = np.concatenate([draws, draws[np.roll(np.arange(100_000), 1)]], axis=1)
    correlations = np.corrcoef(columns.T) - np.eye(12)
    assert np.abs(correlations).max() < 0.015  # 4.7 standard deviations
    other = uniforms(8, torch.arange(100_000), 6).numpy()
    assert abs(np.corrcoef(draws[:, 0], other[:, 0])[0, 1]) < 0.015


ALL = Augmentation(crop=0.5, shift=3, flip=True, brightness=0.4, contrast=0.4, colour=0.4, cutout=4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@given(cuts=st.lists(st.integers(0, 12), max_size=3), first=st.integers(0, 10**12))
def test_a_batch_may_be_cut_anywhere(dtype: torch.dtype, cuts: list[int], first: int) -> None:
    images = pictures(12, dtype)
    positions = torch.arange(12) + first
    rows, epochs = torch.arange(12).flip(0), positions // 12
    whole = ALL(images, seed=3, positions=positions, rows=rows, epochs=epochs)
    bounds = [0, *sorted(cuts), 12]
    parts = [
        ALL(images[a:b], seed=3, positions=positions[a:b], rows=rows[a:b], epochs=epochs[a:b])
        for a, b in pairwise(bounds)
        if a < b
    ]
    assert whole.dtype == dtype
    assert torch.equal(whole, torch.cat(parts))


def pictures(
    rows: int, dtype: torch.dtype, channels: int = 3, height: int = 9, width: int = 11
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(0, 256, (rows, channels, height, width), generator=generator)
    return whole.to(torch.uint8) if dtype == torch.uint8 else whole.to(dtype) / 255


def test_a_flip_mirrors_half_of_the_pictures_and_the_others_an_epoch_later() -> None:
    images, rows = pictures(400, torch.uint8), torch.arange(400)
    mirrored = by_turns(0, rows, torch.zeros_like(rows))
    flipped = flip(images, mirrored)
    assert torch.equal(flipped[mirrored], images[mirrored].flip(3))
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert 160 < mirrored.sum() < 240
    for epoch in range(1, 5):
        later = by_turns(0, rows.flip(0), torch.full_like(rows, epoch)).flip(0)  # wherever a picture comes
        assert torch.equal(later, mirrored if epoch % 2 == 0 else ~mirrored)
    assert not torch.equal(by_turns(1, rows, torch.zeros_like(rows)), mirrored)


def test_pictures_moved_by_so_many_pixels_are_padding_by_reflection_and_a_cut() -> None:
    images = pictures(3, torch.uint8)
    padded = F.pad(images.float(), (2,) * 4, mode="reflect").to(torch.uint8)
    assert torch.equal(shifted(images, 1, 2), padded[:, :, 1:10, 0:11])
    assert torch.equal(shifted(images, -2, -1), padded[:, :, 4:13, 3:14])
    for down, right in ((-9, 0), (0, 11)):  # the pictures are of 9 x 11 pixels
        with pytest.raises(InputError, match="leave something"):
            shifted(images, down, right)


@pytest.mark.parametrize("pixels", [0, 1, 4, 8])
def test_a_shift_is_padding_by_reflection_and_a_cut(pixels: int) -> None:
    images = pictures(60, torch.float32)
    draws = uniforms(1, torch.arange(60), 2)
    found = shift(images, draws, pixels)
    padded = F.pad(images, (pixels,) * 4, mode="reflect")
    seen = set()
    for row in range(60):
        down, right = (int(draw * (2 * pixels + 1)) for draw in draws[row])
        seen.add((down, right))
        assert torch.equal(found[row], padded[row, :, down : down + 9, right : right + 11])
    assert {place for pair in seen for place in pair} == set(range(2 * pixels + 1))


def test_a_shift_beyond_the_picture_is_refused() -> None:
    with pytest.raises(InputError, match="leave something"):
        shift(pictures(1, torch.uint8), torch.zeros(1, 2), 9)


def test_a_crop_is_the_part_it_says() -> None:
    """Of a picture whose pixels say where they are, the crop says which part it shows."""
    size, rows = 64, 200
    ramp = (torch.arange(size) + 0.5) / size
    image = torch.stack([ramp[:, None].expand(size, size), ramp.expand(size, size)])
    draws = uniforms(2, torch.arange(rows), 4)
    cut = crop(image.expand(rows, 2, size, size), draws, 0.4)
    inner = slice(1, -1)  # the outermost pixel may lie half a pixel within, where the border repeats
    tall = (cut[:, 0, -2, 5] - cut[:, 0, 1, 5]) * size / (size - 3)
    wide = (cut[:, 1, 5, -2] - cut[:, 1, 5, 1]) * size / (size - 3)
    area, aspect = tall * wide, wide / tall
    assert area.min() > 0.38 and area.max() <= 1.001
    assert aspect.min() > 0.74 and aspect.max() < 1.34
    whole = (tall < 0.99) & (wide < 0.99)
    torch.testing.assert_close(area[whole], (0.4 + 0.6 * draws[:, 0])[whole], atol=0.01, rtol=0)
    top = cut[:, 0, 1, 5] - 1.5 / size * tall
    torch.testing.assert_close(top, draws[:, 2] * (1 - tall), atol=0.01, rtol=0)
    left = cut[:, 1, 5, 1] - 1.5 / size * wide
    torch.testing.assert_close(left, draws[:, 3] * (1 - wide), atol=0.01, rtol=0)
    steps = cut[:, 0, inner, 5].diff(dim=1)
    assert (steps.max(1).values - steps.min(1).values).max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_crop_of_the_whole_is_the_picture(dtype: torch.dtype) -> None:
    images = pictures(5, dtype)
    draws = torch.tensor([[0.9, 0.5, 0.3, 0.7]]).expand(5, 4)
    torch.testing.assert_close(crop(images, draws, 1.0), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_a_cutout_is_a_square_around_its_centre(size: int) -> None:
    images = pictures(50, torch.uint8)
    draws = uniforms(3, torch.arange(50), 2)
    covered = cutout(images, draws, size, fill=7)
    for row in range(50):
        expected = images[row].clone()
        top, left = int(draws[row, 0] * 9) - size // 2, int(draws[row, 1] * 11) - size // 2
        expected[:, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 7
        assert torch.equal(covered[row], expected)


def test_jitter_is_what_pillow_does() -> None:
    image_module = pytest.importorskip("PIL.Image")
    from PIL import ImageEnhance

    images = pictures(6, torch.uint8)
    draws = uniforms(4, torch.arange(6), 3)
    changed = jitter(images, draws, 0.3, 0.5, 0.8)
    factors = 1.0 + torch.tensor([0.3, 0.5, 0.8]) * (2 * draws - 1)
    for row in range(6):
        theirs = image_module.fromarray(images[row].permute(1, 2, 0).numpy())
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhancer, factor in zip(enhancers, factors[row].tolist(), strict=True):
            theirs = enhancer(theirs).enhance(factor)
        difference = changed[row].permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs).astype(int)
        assert np.abs(difference).max() <= 4  # Pillow cuts fractions off, three times
        assert np.abs(difference).mean() < 1.6


def test_jitter_in_whole_and_in_floating_numbers_is_the_same() -> None:
    draws = uniforms(5, torch.arange(6), 3)
    whole = jitter(pictures(6, torch.uint8), draws, 0.3, 0.5, 0.8)
    floating = jitter(pictures(6, torch.float32), draws, 0.3, 0.5, 0.8)
    assert floating.min() >= 0.0 and floating.max() <= 1.0
    assert (whole.float() - floating * 255).abs().max() <= 0.5001


def test_jitter_leaves_the_colour_of_grey_pictures_alone() -> None:
    images, draws = pictures(4, torch.float32, channels=1), uniforms(0, torch.arange(4), 3)
    assert torch.equal(jitter(images, draws, 0.2, 0.2, 0.0), jitter(images, draws, 0.2, 0.2, 0.9))
    torch.testing.assert_close(jitter(images, draws, 0.0, 0.0, 0.9), images)


def test_mixup_blends_with_the_partner() -> None:
    images = pictures(3, torch.float32)
    mixed = mixup(images, images[[1, 2, 0]], torch.tensor([1.0, 0.25, 0.0]))
    torch.testing.assert_close(mixed[0], images[0])
    torch.testing.assert_close(mixed[1], 0.25 * images[1] + 0.75 * images[2])
    torch.testing.assert_close(mixed[2], images[0])
    whole = mixup(
        pictures(3, torch.uint8), pictures(3, torch.uint8)[[1, 2, 0]], torch.tensor([0.5, 0.5, 0.5])
    )
    assert whole.dtype == torch.uint8


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 2.0, 8.0])
def test_the_beta_distribution_is_that_of_scipy(alpha: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    draws = torch.linspace(0, 1, 4001, dtype=torch.float64)
    ours = symmetric_beta(draws, alpha)
    # In probabilities, since where the density is all but zero many numbers are as good.
    lower = ours[:2001].numpy()
    np.testing.assert_allclose(stats.beta.cdf(lower, alpha, alpha), draws[:2001].numpy(), atol=2e-6)
    torch.testing.assert_close(ours[2000:].flip(0), 1.0 - ours[:2001])
    assert (ours.diff() >= 0).all() and ours[0] == 0.0 and ours[-1] == 1.0
    assert math.isclose(float(ours.var()), 1 / (4 * (2 * alpha + 1)), rel_tol=1e-2)


def test_each_change_has_draws_of_its_own() -> None:
    """One change more leaves the others as they are."""
    images, places = pictures(20, torch.uint8), torch.arange(20)
    where = {"seed": 0, "positions": places, "rows": places, "epochs": places * 0}
    flipped = Augmentation(flip=True)(images, **where)
    both = Augmentation(flip=True, cutout=3)(images, **where)
    kept = both != 0
    assert torch.equal(both[kept], flipped[kept])
    assert torch.equal(Augmentation()(images, **where), images)
