"""The best windows of a text against a convolution, a ReLU and a maximum, forward and backward."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from luban.models.best_windows import best_windows


def drawn(batch: int, length: int, width: int, filters: int, window: int, seed: int = 0) -> list[Tensor]:
    """Return tokens, mask, weight and bias in float64; the first text fills all places."""
    draws = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (batch,), generator=draws)
    lengths[0] = length
    mask = torch.arange(length) < lengths[:, None]
    x = torch.randn(batch, length, width, generator=draws, dtype=torch.float64) * mask[..., None]
    weight = torch.randn(filters, width, window, generator=draws, dtype=torch.float64)
    bias = torch.randn(filters, generator=draws, dtype=torch.float64)
    return [x.requires_grad_(), mask, weight.requires_grad_(), bias.requires_grad_()]


def by_convolution(x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The definition: all windows, those without a token at zero, and the largest of each filter."""
    window = weight.shape[2]
    fits = F.relu(F.conv1d(x.transpose(1, 2), weight, bias, padding=window - 1))
    holds = torch.stack([mask[:, max(0, i - window + 1) : i + 1].any(1) for i in range(fits.shape[2])], dim=1)
    holds[:, : window - 1] = True  # the first windows reach the text's first place, should it be empty too
    return (fits * holds[:, None]).amax(2)


@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 9),
    width=st.integers(1, 5),
    filters=st.integers(1, 6),
    window=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_is_a_convolution_and_a_maximum_forward_and_backward(
    batch: int, length: int, width: int, filters: int, window: int, seed: int
) -> None:
    x, mask, weight, bias = drawn(batch, length, width, filters, window, seed)
    ours, theirs = best_windows(x, mask, weight, bias), by_convolution(x, mask, weight, bias)
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(best_windows(x, mask, weight, bias), theirs)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed), dtype=ours.dtype)
    mine = torch.autograd.grad(ours, (x, weight, bias), upstream)
    for found, wanted in zip(mine, torch.autograd.grad(theirs, (x, weight, bias), upstream), strict=True):
        torch.testing.assert_close(found, wanted)


def test_its_gradient_is_that_of_finite_differences() -> None:
    x, mask, weight, bias = drawn(3, 6, 4, 5, 3)
    assert torch.autograd.gradcheck(
        lambda *parts: best_windows(parts[0], mask, *parts[1:]), (x, weight, bias)
    )


def test_a_text_without_a_token_fits_each_filter_by_its_bias() -> None:
    x, mask, weight, bias = drawn(2, 4, 3, 5, 2)
    nothing = torch.zeros_like(mask)
    torch.testing.assert_close(best_windows(x * 0, nothing, weight, bias), bias.relu().expand(2, -1))


def test_of_windows_that_fit_equally_well_the_first_has_the_gradient() -> None:
    x = torch.ones(1, 4, 1, requires_grad=True)
    mask, weight = torch.ones(1, 4, dtype=torch.bool), torch.ones(1, 1, 2)
    for plain in (False, True):  # and so where the convolution itself is computed, as when compiled
        x.grad = None
        with mock.patch.object(torch.compiler, "is_compiling", lambda: plain):  # noqa: B023
            best_windows(x, mask, weight, torch.zeros(1)).sum().backward()
        assert x.grad is not None
        assert x.grad.flatten().tolist() == [1.0, 1.0, 0.0, 0.0]


def test_rows_need_not_lie_densely_and_there_may_be_none() -> None:
    x, mask, weight, bias = drawn(3, 4, 5, 2, 1)
    turned = x.detach().transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(
        best_windows(turned, mask, weight, bias), by_convolution(x, mask, weight, bias)
    )
    none = best_windows(x[:0], mask[:0], weight, bias)
    none.sum().backward()
    assert none.shape == (0, 2) and weight.grad is not None and not weight.grad.any()


def test_what_is_frozen_has_no_gradient() -> None:
    x, mask, weight, bias = drawn(2, 5, 3, 4, 3)
    best_windows(x.detach(), mask, weight, bias).sum().backward()
    assert x.grad is None and weight.grad is not None
    weight.grad = None
    best_windows(x, mask, weight.detach(), bias).sum().backward()
    assert x.grad is not None and weight.grad is None


def test_long_texts_are_sorted_as_short_ones_are() -> None:
    x, mask, weight, bias = drawn(2, 300, 2, 3, 3)  # more places than a byte counts
    theirs = by_convolution(x, mask, weight, bias)
    mine = torch.autograd.grad(best_windows(x, mask, weight, bias).sum(), x)
    torch.testing.assert_close(mine, torch.autograd.grad(theirs.sum(), x))


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="bfloat16 products on a CPU are oneDNN's"
)
def test_autocast_multiplies_in_bfloat16_and_answers_in_float32() -> None:
    x, mask, weight, bias = (
        part.detach().float() if part.dtype == torch.float64 else part for part in drawn(3, 6, 4, 5, 3)
    )
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = best_windows(x, mask, weight, bias)
    assert found.dtype == torch.float32
    exact = best_windows(x, mask, weight, bias)
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=2e-2, atol=2e-2)
    found.sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
