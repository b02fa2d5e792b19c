"""Attention by products: equal to torch's in float64, for every mask; memory that grows with the length only."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from luban.models import attention_products
from luban.models.attention import attend, mix
from luban.models.attention_products import attention_by_products


def drawn(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, count: int = 3, keys: int | None = None
) -> list[Tensor]:
    """Queries, keys and values (batch, heads, length, head_dim), with gradients."""
    generator = torch.Generator().manual_seed(seed)
    batch, heads, length, head_dim = shape
    sizes = [length, keys or length, keys or length][:count]
    made = [torch.randn(batch, heads, n, head_dim, generator=generator, dtype=torch.float64) for n in sizes]
    return [x.to(dtype).requires_grad_() for x in made]


def with_gradients(result: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return [result, *torch.autograd.grad(result, leaves, weights.to(result.dtype))]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that every case has several of each kind."""
    monkeypatch.setattr(attention_products, "QUERIES", 4)
    monkeypatch.setattr(attention_products, "CACHE_BYTES", 600)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kept", [0, 1 << 30])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 11, 4), (1, 1, 1, 2), (3, 2, 4, 6), (1, 5, 9, 1)])
def test_it_equals_torchs(
    shape: tuple[int, int, int, int], causal: bool, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_products, "KEPT_BYTES", kept)
    leaves = drawn(*shape)
    ours = with_gradients(attention_by_products(*leaves, None, causal=causal), leaves)
    theirs = with_gradients(scaled_dot_product_attention(*leaves, is_causal=causal), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("small_blocks")
@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 10),
    st.integers(1, 10),
    st.integers(0, 99),
    st.data(),
)
def test_it_equals_torchs_under_any_mask(
    batch: int, heads: int, length: int, keys: int, seed: int, data: st.DataObject
) -> None:
    of_batch, of_heads, of_length = (data.draw(st.sampled_from([1, n])) for n in (batch, heads, length))
    mask = (
        torch.rand(of_batch, of_heads, of_length, keys, generator=torch.Generator().manual_seed(seed)) < 0.6
    )
    mask[..., 0] = True  # what a query without keys gets is for the next test
    leaves = drawn(batch, heads, length, 3, seed=seed, keys=keys)
    ours = with_gradients(attention_by_products(*leaves, mask, causal=False), leaves)
    theirs = with_gradients(scaled_dot_product_attention(*leaves, attn_mask=mask), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_a_query_that_sees_nothing_gets_zero_and_gives_no_gradient() -> None:
    leaves = drawn(1, 2, 3, 4)
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    found, *slopes = with_gradients(attention_by_products(*leaves, mask, causal=False), leaves)
    assert found[:, :, 1].eq(0).all()
    assert slopes[0][:, :, 1].eq(0).all()
    assert all(x.isfinite().all() for x in slopes)


def test_it_can_be_checked_by_differences() -> None:
    leaves = drawn(1, 2, 5, 3)
    assert torch.autograd.gradcheck(lambda *x: attention_by_products(*x, None, causal=True), leaves)


@pytest.mark.parametrize("length", [100, 300])
def test_in_bfloat16_it_is_as_close_to_the_truth_as_rounding_allows(length: int) -> None:
    exact = drawn(2, 3, length, 32)
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    truth = with_gradients(attention_by_products(*exact, None, causal=True), exact)
    ours = with_gradients(attention_by_products(*rounded, None, causal=True), rounded)
    theirs = with_gradients(scaled_dot_product_attention(*rounded, is_causal=True), rounded)
    for true, one, other in zip(truth, ours, theirs, strict=True):
        assert one.dtype == torch.bfloat16
        off, torchs = ((x.double() - true).norm() / true.norm() for x in (one, other))
        assert off < max(2 * torchs, 0.01)


def test_heads_that_share_keys_and_inference_agree_with_training() -> None:
    queries, keys, values = drawn(2, 4, 7, 4)
    shared = [keys[:, :2].detach().requires_grad_(), values[:, :2].detach().requires_grad_()]
    trained = with_gradients(attend(queries, *shared, None), [queries, *shared])
    whole = scaled_dot_product_attention(queries, *shared, is_causal=True, enable_gqa=True)
    for one, other in zip(trained, with_gradients(whole, [queries, *shared]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(attend(queries, *shared, None), trained[0], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(
            mix(queries, keys, values), mix(queries, keys, values, torch.ones(7, 7).bool())
        )


def test_compiled_and_eager_code_agree() -> None:
    leaves = drawn(2, 2, 9, 4, dtype=torch.float32)

    def both(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attention_by_products(queries * 2.0, keys, values, None, causal=True)

    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    for one, other in zip(
        with_gradients(compiled(*leaves), leaves), with_gradients(both(*leaves), leaves), strict=True
    ):
        torch.testing.assert_close(one, other)


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for x in found if isinstance(found, list | tuple) else [found]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return found


def test_no_square_of_the_length_is_ever_held() -> None:
    length, heads = 2048, 4
    leaves = drawn(1, heads, length, 8, dtype=torch.float32)
    with Largest() as seen, torch.no_grad():
        mixed, *kept = attention_products._forward(*leaves, None, True)
        attention_products._backward(mixed, *leaves, None, True, kept)
    assert not kept
    assert seen.elements <= max(attention_products.CACHE_BYTES // 4, math.prod(leaves[0].shape))
    assert seen.elements < heads * length * length / 16
