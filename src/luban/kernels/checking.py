"""Whether a library computes what it should: every function beside torch's own, once, after it was compiled.

A compiler that errs at its highest optimisation is rare, and what came of it would be a model that trains a little
worse. The references are torch's functions in float64, and their gradients by autograd.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.kernels.library import Library, Moving

_NEAR = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
"""Largest relative distance: bfloat16 rounds what is given and what is returned."""
_NEAR_OF = {"Muon": 3e-2}
"""Of what rounds again and again: the direction after three iterations in bfloat16."""
_EPS = 1e-6


def wrong(library: Library) -> str | None:
    """Return the name of the first function that computes something else, or None."""
    for name, check in _CHECKS.items():
        for dtype, near in _NEAR.items():
            if name in _NOT_ALWAYS and not _NOT_ALWAYS[name](library, dtype):
                continue
            draw = torch.Generator().manual_seed(0)
            for found, expected in check(library, _Draws(draw), dtype):
                distance = (found.double() - expected).norm() / expected.norm()
                if not distance <= _NEAR_OF.get(name, near):  # nor where it is not a number
                    return f"{name} in {dtype}".replace("torch.", "")
    return None


Pairs = list[tuple[Tensor, Tensor]]


class _Draws:
    """Random tensors, of a generator of their own: the draws of a run are not touched."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(dtype)


def _exact(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double().requires_grad_() for tensor in tensors]


def _rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, _EPS)


def _norm(library: Library, draw: _Draws, dtype: torch.dtype) -> Pairs:
    x, added, weight = draw(70, 48), draw(70, 48, dtype=dtype), draw(48)
    slopes, residual = draw(70, 48, dtype=dtype), draw(70, 48)
    total, out, scale = library.norm_forward(x, added, weight, _EPS, dtype)
    for_x, for_added, for_weight = library.norm_backward(slopes, total, scale, weight, residual, added=True)
    assert for_added is not None
    wide, plus, by = _exact(x, added, weight)
    expected = _rms_norm(wide + plus, by)
    ((expected * slopes.double()).sum() + ((wide + plus) * residual.double()).sum()).backward()  # type: ignore[no-untyped-call]
    grads = [t.grad for t in (wide, plus, by)]
    pairs = [
        (total, wide + plus),
        (out, expected),
        (for_x, grads[0]),
        (for_added, grads[1]),
        (for_weight, grads[2]),
    ]
    return [(a, b.detach()) for a, b in pairs if b is not None]


def _turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """(batch, length, heads, size) by (length, size)."""
    first, second = x.chunk(2, -1)
    return x * cosines[:, None] + torch.cat((-second, first), -1) * sines[:, None]


def _heads(library: Library, draw: _Draws, dtype: torch.dtype) -> Pairs:
    batch, length, heads, kv_heads, size = 2, 37, 4, 2, 32
    packed = draw(batch, length, (heads + 2 * kv_heads) * size, dtype=dtype)
    weights = (draw(size), draw(size))
    cosines, sines = (angles.repeat(1, 2) for angles in (draw(length, size // 2), draw(length, size // 2)))
    *out, scale = library.heads_forward(packed, weights, _EPS, cosines, sines, kv_heads)
    slopes = tuple(draw(*x.shape, dtype=dtype) for x in out)
    for_packed, for_weights = library.heads_backward(
        (slopes[0], slopes[1], slopes[2]), packed, weights, scale, cosines, sines
    )
    wide, first, second = _exact(packed, *weights)
    split = torch.split(wide.view(batch, length, -1, size), [heads, kv_heads, kv_heads], 2)
    queries = _turned(_rms_norm(split[0], first), cosines.double(), sines.double()) * size**-0.5
    keys = _turned(_rms_norm(split[1], second), cosines.double(), sines.double())
    expected = [x.transpose(1, 2) for x in (queries, keys, split[2])]
    torch.autograd.backward(expected, [slope.double() for slope in slopes])
    assert wide.grad is not None and first.grad is not None and second.grad is not None
    pairs = [*zip(out, expected, strict=True), (for_packed, wide.grad)]
    return [(a, b.detach()) for a, b in [*pairs, (for_weights, torch.stack((first.grad, second.grad)))]]


def _gated(library: Library, draw: _Draws, dtype: torch.dtype) -> Pairs:
    packed, slopes = draw(9, 2 * 40, dtype=dtype) * 4, draw(9, 40, dtype=dtype)
    (wide,) = _exact(packed)
    gate, up = wide.chunk(2, -1)
    expected = F.silu(gate) * up
    expected.backward(slopes.double())  # type: ignore[no-untyped-call]
    assert wide.grad is not None
    return [
        (library.gated_forward(packed), expected.detach()),
        (library.gated_backward(slopes, packed), wide.grad),
    ]


def _softmax(library: Library, draw: _Draws, dtype: torch.dtype) -> Pairs:
    scores, slopes, before = draw(3, 20, 37, dtype=dtype) * 4, draw(3, 20, 37, dtype=dtype), 17
    (wide,) = _exact(scores)
    later = torch.ones(20, 37, dtype=torch.bool).triu(before + 1)
    expected = torch.softmax(wide.masked_fill(later, -torch.inf), -1)
    expected.backward(slopes.double())  # type: ignore[no-untyped-call]
    assert wide.grad is not None
    found = scores.clone()
    library.softmax_forward(found, before)
    back = slopes.clone()
    library.softmax_backward(back, found, before)
    return [(found, expected.detach()), (back, wide.grad)]


def _loss(library: Library, draw: _Draws, dtype: torch.dtype) -> Pairs:
    scores, targets = draw(20, 37, dtype=dtype) * 4, torch.arange(20)
    (wide,) = _exact(scores)
    expected = F.cross_entropy(wide, targets, reduction="none", label_smoothing=0.1)
    expected.sum().backward()  # type: ignore[no-untyped-call]
    assert wide.grad is not None
    return [(library.cross_entropy(scores, targets, 0.1), expected.detach()), (scores, wide.grad)]


def _squares(library: Library, draw: _Draws, _: torch.dtype) -> Pairs:
    tensors = [draw(3), draw(40_000), draw(70, 70)]
    found = torch.tensor(library.norm(tensors))
    return [(found, torch.cat([tensor.double().flatten() for tensor in tensors]).norm())]


def _attention(library: Library, draw: _Draws, dtype: torch.dtype) -> Pairs:
    batch, heads, kv_heads, length, size = 2, 4, 2, 150, 64
    queries, keys, values = (
        draw(batch, count, length, size, dtype=dtype) for count in (heads, kv_heads, kv_heads)
    )
    queries *= size**-0.5 * 2
    mixed, logs = library.attention_forward(queries, keys, values)
    slopes = draw(*mixed.shape, dtype=dtype)
    found = library.attention_backward(slopes, mixed, queries, keys, values, logs)
    asked, *shared = _exact(queries, keys, values)
    key, value = (x.repeat_interleave(heads // kv_heads, 1) for x in shared)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    expected = (torch.softmax((asked @ key.mT).masked_fill(later, -torch.inf), -1) @ value).transpose(1, 2)
    expected.backward(slopes.double())  # type: ignore[no-untyped-call]
    grads = [x.grad for x in (asked, *shared) if x.grad is not None]
    return [(mixed, expected.detach()), *zip(found, grads, strict=True)]


def _matrix(library: Library, draw: _Draws, dtype: torch.dtype) -> Pairs:
    slopes, states = draw(1100, 80, dtype=dtype), draw(1100, 48, dtype=dtype)
    return [(library.matrix_backward(slopes, states), slopes.double().t() @ states.double())]


def _muon(library: Library, draw: _Draws, _: torch.dtype) -> Pairs:
    """Three iterations, of a wide matrix and a tall one; weights are float32, products bfloat16."""
    iterations, mix, keep, move = [(4.0, -6.0, 3.0), (3.0, -3.2, 1.2), (2.0, -1.5, 0.5)], 0.4, 0.99, 0.3
    pairs: Pairs = []
    for shape in ((40, 72), (72, 40)):
        weights, momentum, slopes = draw(*shape), draw(*shape), draw(*shape)
        before = weights.double()
        x, mean = slopes.double() * 0.5, momentum.double()
        mean = mean + (x - mean) * (1 - mix)
        x = x + (mean - x) * mix
        x = x / x.square().sum().sqrt()
        x = x / (x @ x.mT @ x @ x.mT).norm().sqrt().sqrt() / 1.02
        for a, b, c in iterations:
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
        library.muon(
            [Moving(weights, momentum, slopes, keep, move)],
            scale=0.5, mix=mix, nesterov=True, slack=1.02, least=1e-6, coefficients=iterations,
        )  # fmt: skip
        pairs += [((before * keep - weights.double()) / move, x), (momentum, mean)]
    return pairs


_NOT_ALWAYS: dict[str, Callable[[Library, torch.dtype], bool]] = {
    "attention": Library.multiplies,
    "the gradient of a matrix": lambda library, dtype: library.multiplies(dtype, by_unit=True),
    "Muon": Library.multiplies,
}
_CHECKS: dict[str, Callable[[Library, _Draws, torch.dtype], Pairs]] = {
    "the norm": _norm,
    "the heads": _heads,
    "the gate": _gated,
    "the softmax": _softmax,
    "the loss": _loss,
    "the length of a gradient": _squares,
    "attention": _attention,
    "the gradient of a matrix": _matrix,
    "Muon": _muon,
}
