"""SwiGLU's gate: torch's own values and gradients to the last bit, with fewer tensors kept."""

import pytest
import torch
import torch.nn.functional as F

from luban.models.gated import gated


def two(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    first, second = (8 * torch.randn(3, 5, 7, dtype=torch.float64) for _ in range(2))
    return first.to(dtype).requires_grad_(), second.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_values_and_gradients_are_those_of_torch_to_the_last_bit(dtype: torch.dtype) -> None:
    gradient = torch.randn(3, 5, 7, dtype=torch.float64).to(dtype)
    own, theirs = two(dtype), two(dtype)
    ours, plain = gated(*own), F.silu(theirs[0]) * theirs[1]
    assert torch.equal(ours, plain)
    ours.backward(gradient)
    plain.backward(gradient)
    for a, b in zip(own, theirs, strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad)


def test_the_gradient_is_that_of_differences() -> None:
    gate, up = two(torch.float64)
    assert torch.autograd.gradcheck(gated, (gate[:1], up[:1]))


def test_nothing_is_kept_but_the_arguments() -> None:
    kept: list[int] = []
    gate, up = two(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.data_ptr()), t)[1], lambda t: t):
        gated(gate, up)
    assert sorted(kept) == sorted([gate.data_ptr(), up.data_ptr()])
