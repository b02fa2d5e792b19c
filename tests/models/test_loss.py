"""Chunked cross-entropy is torch's, in value and slope, in less memory."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from luban.kernels import Library
from luban.models import loss as loss_module
from luban.models.fused import using
from luban.models.loss import cross_entropy_sum, token_losses


def problem(
    tokens: int, width: int, vocab_size: int, ignored: float, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab_size, width, generator=generator, dtype=dtype).requires_grad_()
    bias = torch.randn(vocab_size, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(0, vocab_size, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < ignored] = -100
    return hidden, weight, bias, targets


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 9),
    vocab_size=st.integers(2, 30),
    chunk_tokens=st.integers(1, 50),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    with_bias=st.booleans(),
    plain=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_equals_torch(
    tokens: int,
    width: int,
    vocab_size: int,
    chunk_tokens: int,
    ignored: float,
    smoothing: float,
    with_bias: bool,
    plain: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    hidden, weight, bias, targets = problem(tokens, width, vocab_size, ignored, seed, dtype)
    used = (hidden, weight, bias) if with_bias else (hidden, weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "_PLAIN_BYTES", 1 << 40 if plain else 0)
        ours, count = cross_entropy_sum(
            hidden,
            weight,
            targets,
            chunk_tokens=chunk_tokens,
            bias=bias if with_bias else None,
            label_smoothing=smoothing,
        )
        slopes = torch.autograd.grad(ours * 0.37, used)
    logits = F.linear(hidden, weight, bias if with_bias else None)
    theirs = F.cross_entropy(logits, targets, reduction="sum", ignore_index=-100, label_smoothing=smoothing)
    tolerance = {"atol": 1e-9, "rtol": 1e-9} if dtype == torch.float64 else {"atol": 2e-4, "rtol": 1e-4}
    assert int(count) == int((targets != -100).sum())
    torch.testing.assert_close(ours, theirs, **tolerance)
    for actual, expected in zip(slopes, torch.autograd.grad(theirs * 0.37, used), strict=True):
        torch.testing.assert_close(actual, expected, **tolerance)
    losses = token_losses(
        hidden, weight, targets, chunk_tokens=chunk_tokens, bias=bias if with_bias else None
    )
    expected = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    torch.testing.assert_close(losses, expected.detach(), **tolerance)
    assert not losses.requires_grad


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation gives, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, tuple | list) else (result,)
        sizes = [x.untyped_storage().nbytes() // x.element_size() for x in outputs if isinstance(x, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


@pytest.mark.parametrize("ignored", [0.0, 0.5])
def test_never_holds_all_logits(ignored: float) -> None:
    tokens, width, vocab_size, chunk_tokens = 1024, 8, 4096, 64
    hidden, weight, _, targets = problem(tokens, width, vocab_size, ignored, 0, torch.float32)
    with Largest() as chunked:
        cross_entropy_sum(hidden, weight, targets, chunk_tokens=chunk_tokens)[0].backward()
        token_losses(hidden, weight, targets, chunk_tokens=chunk_tokens)
    with Largest() as full:
        F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum").backward()
    assert full.elements == tokens * vocab_size
    assert chunked.elements == chunk_tokens * vocab_size


def test_shapes_of_a_batch() -> None:
    hidden, weight, _, targets = problem(12, 4, 7, 0.2, 0, torch.float32)
    flat = cross_entropy_sum(hidden, weight, targets)
    batched = cross_entropy_sum(hidden.view(3, 4, 4), weight, targets.view(3, 4))
    torch.testing.assert_close(flat, batched)
    assert token_losses(hidden.view(3, 4, 4), weight, targets.view(3, 4)).shape == (3, 4)


def test_autocast_computes_in_bfloat16_and_keeps_gradients_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "_PLAIN_BYTES", 0)
    hidden, weight, _, targets = problem(64, 16, 50, 0.1, 0, torch.float32)
    exact, _ = cross_entropy_sum(hidden, weight, targets)
    slopes = torch.autograd.grad(exact, (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = cross_entropy_sum(hidden, weight, targets, chunk_tokens=10)
    assert rough.dtype == torch.float32
    assert rough != exact
    torch.testing.assert_close(rough, exact, rtol=1e-2, atol=0)
    for actual, expected in zip(torch.autograd.grad(rough, (hidden, weight)), slopes, strict=True):
        assert actual.dtype == torch.float32
        assert (actual - expected).norm() < 0.02 * expected.norm()


def test_only_what_needs_a_gradient_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "_PLAIN_BYTES", 0)
    hidden, weight, _, targets = problem(20, 4, 9, 0.0, 0, torch.float64)
    expected = torch.autograd.grad(cross_entropy_sum(hidden, weight, targets)[0], weight)[0]
    frozen, _ = cross_entropy_sum(hidden.detach(), weight, targets)
    assert torch.equal(torch.autograd.grad(frozen, weight)[0], expected)
    with torch.no_grad():
        quiet, _ = cross_entropy_sum(hidden, weight, targets)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, frozen.detach())


class Reads(TorchDispatchMode):
    """Counts how often a tensor's value is asked for: on a GPU each time waits for all work before it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("plain", [False, True])
def test_who_knows_how_many_targets_count_waits_for_none(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "_PLAIN_BYTES", 1 << 40 if plain else 0)
    hidden, weight, _, targets = problem(12, 4, 9, 0.0, 0, torch.float32)
    with Reads() as reads:
        known, _ = cross_entropy_sum(hidden, weight, targets, count=12)
        known.backward()
    assert reads.count == 0
    targets[3] = -100
    unknown, _ = cross_entropy_sum(hidden, weight, targets)
    known, _ = cross_entropy_sum(hidden, weight, targets, count=11)
    assert torch.equal(known, unknown)


def test_a_gpu_takes_larger_pieces_within_bounds() -> None:
    for vocab_size in (1_000, 50_304, 300_000_000):
        on_gpu, on_cpu = (
            loss_module._chunk_tokens(torch.empty(vocab_size, 0, device=device)) for device in ("meta", "cpu")
        )
        assert 1 <= on_cpu <= on_gpu
        assert on_gpu == 1 or on_gpu * vocab_size * 4 <= 512 << 20
    assert on_gpu == on_cpu == 1


def test_in_bfloat16_kernels_add_the_gradient_of_the_matrix(multiplying: Library) -> None:
    """Over several pieces, to the digits that bfloat16 slopes have."""
    hidden, weight, _, targets = problem(90, 32, 50, 0.2, 0, torch.float32)

    def gradient(library: Library | None) -> Tensor:
        with using(library), torch.autocast("cpu", torch.bfloat16):
            loss, count = cross_entropy_sum(hidden, weight, targets, chunk_tokens=40)
        (found,) = torch.autograd.grad(loss / count, weight)
        return found.double()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "_PLAIN_BYTES", 0)
        theirs, ours = gradient(None), gradient(multiplying)
    with torch.no_grad():
        exact = [x.double().requires_grad_() for x in (hidden, weight)]
    F.cross_entropy(exact[0] @ exact[1].t(), targets, ignore_index=-100).backward()
    assert exact[1].grad is not None
    assert (ours - exact[1].grad).norm() <= 1.05 * (theirs - exact[1].grad).norm()
    if multiplying.multiplies(torch.bfloat16, by_unit=True):
        assert not torch.equal(ours, theirs)  # sums are not rounded on their way


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_kernels_give_the_same_in_float32(library: Library, smoothing: float) -> None:
    def found(library: Library | None) -> list[Tensor]:
        hidden, weight, _, targets = problem(90, 24, 50, 0.2, 1, torch.float32)
        with using(library):
            loss, count = cross_entropy_sum(
                hidden, weight, targets, chunk_tokens=40, label_smoothing=smoothing
            )
        return [loss.detach(), *torch.autograd.grad(loss / count, (hidden, weight))]

    called: list[int] = []
    own = library.cross_entropy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "_PLAIN_BYTES", 0)
        patch.setattr(library, "cross_entropy", lambda *given: (called.append(1), own(*given))[1])
        for one, other in zip(found(None), found(library), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert len(called) == 2  # of two pieces
