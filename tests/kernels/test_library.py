"""Every kernel beside torch's functions in float64, whatever the shapes; the same bits by one thread or two."""

import hashlib
import math
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from luban.kernels import Library, Moving, find
from luban.models.rope import frequencies, rotate

NEAR = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
dtypes = st.sampled_from(list(NEAR))
seeds = st.integers(0, 1000)


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, expected: Tensor, near: float) -> None:
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() <= near * expected.norm() + 1e-9


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 150), st.integers(1, 9), st.booleans(), st.booleans(), dtypes)
def test_a_norm_after_a_sum(
    library: Library, seed: int, rows: int, lanes: int, adds: bool, follows: bool, dtype: torch.dtype
) -> None:
    """`follows`: whether the sum goes on to elsewhere, from where a gradient comes back."""
    width = 16 * lanes
    x, weight = drawn(seed, rows, width), drawn(seed + 1, width)
    added = drawn(seed + 2, rows, width, dtype=dtype) if adds else None
    slopes, residual = (
        drawn(seed + 3, rows, width, dtype=dtype),
        drawn(seed + 4, rows, width) if follows else None,
    )
    total, out, scale = library.norm_forward(x, added, weight, 1e-6, dtype)
    for_x, for_added, for_weight = library.norm_backward(slopes, total, scale, weight, residual, added=adds)

    wide, by = x.double().requires_grad_(), weight.double().requires_grad_()
    summed = wide if added is None else wide + added.double()
    expected = F.rms_norm(summed, (width,), by, 1e-6)
    reached = (expected * slopes.double()).sum()
    (reached if residual is None else reached + (summed * residual.double()).sum()).backward()
    assert wide.grad is not None and by.grad is not None
    for found, wanted in [(total, summed), (out, expected), (for_x, wide.grad), (for_weight, by.grad)]:
        close(found, wanted.detach(), NEAR[dtype])
    assert (for_added is None) == (not adds)
    if for_added is not None:
        assert for_added.dtype == dtype
        close(for_added, wide.grad, NEAR[dtype])


@settings(deadline=None, max_examples=40)
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 70),
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    st.booleans(),
    dtypes,
)
def test_heads_normed_turned_and_laid_out(
    library: Library,
    seed: int,
    batch: int,
    length: int,
    of: tuple[int, int],
    normed: bool,
    dtype: torch.dtype,
) -> None:
    heads, kv_heads = of
    size = 32 if seed % 2 else 64
    packed = drawn(seed, batch, length, (heads + 2 * kv_heads) * size, dtype=dtype)
    weights = (drawn(seed + 1, size), drawn(seed + 2, size)) if normed else None
    angles = torch.outer(torch.arange(length).float(), frequencies(size, 100.0)).repeat(1, 2)
    cosines, sines = angles.cos(), angles.sin()
    *out, scale = library.heads_forward(packed, weights, 1e-6, cosines, sines, kv_heads)
    slopes = [drawn(seed + 3 + n, *x.shape, dtype=dtype) for n, x in enumerate(out)]
    for_packed, for_weights = library.heads_backward(tuple(slopes), packed, weights, scale, cosines, sines)

    wide = packed.double().requires_grad_()
    by = [w.double().requires_grad_() for w in weights or ()]
    parts = list(torch.split(wide.view(batch, length, -1, size), [heads, kv_heads, kv_heads], 2))
    for n, weight in enumerate(by):
        parts[n] = F.rms_norm(parts[n], (size,), weight, 1e-6)
    turned = [rotate(x, cosines.double()[:, None], sines.double()[:, None]) for x in parts[:2]]
    expected = [x.transpose(1, 2) for x in (turned[0] * size**-0.5, turned[1], parts[2])]
    torch.autograd.backward(expected, [slope.double() for slope in slopes])
    assert wide.grad is not None
    for found, wanted in [*zip(out, expected, strict=True), (for_packed, wide.grad)]:
        close(found, wanted.detach(), NEAR[dtype])
    if by:
        grads = [weight.grad for weight in by if weight.grad is not None]
        close(for_weights, torch.stack(grads), NEAR[dtype])


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 40), st.integers(16, 90), dtypes)
def test_a_gate(library: Library, seed: int, rows: int, width: int, dtype: torch.dtype) -> None:
    packed = drawn(seed, rows, 2 * width, dtype=dtype) * 5
    slopes = drawn(seed + 1, rows, width, dtype=dtype)
    wide = packed.double().requires_grad_()
    gate, up = wide.chunk(2, -1)
    expected = F.silu(gate) * up
    expected.backward(slopes.double())
    assert wide.grad is not None
    close(library.gated_forward(packed), expected.detach(), NEAR[dtype])
    close(library.gated_backward(slopes, packed), wide.grad, NEAR[dtype])


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 4), st.integers(1, 40), st.integers(0, 60), dtypes)
def test_a_causal_softmax(
    library: Library, seed: int, blocks: int, queries: int, before: int, dtype: torch.dtype
) -> None:
    keys = before + queries
    scores = drawn(seed, blocks, queries, keys, dtype=dtype) * 6
    slopes = drawn(seed + 1, blocks, queries, keys, dtype=dtype)
    wide = scores.double().requires_grad_()
    later = torch.ones(queries, keys, dtype=torch.bool).triu(before + 1)
    expected = torch.softmax(wide.masked_fill(later, -torch.inf), -1)
    found = scores.clone()
    library.softmax_forward(found, before)
    close(found, expected.detach(), NEAR[dtype])
    assert not found[later.expand_as(found)].any()  # exactly nothing of what comes later
    back = slopes.clone()
    library.softmax_backward(back, found, before)
    expected.backward(slopes.double())
    assert wide.grad is not None
    error = back.double() - wide.grad  # what is left of slopes that cancel has fewer digits
    assert error.norm() <= NEAR[dtype] * (slopes.double() * expected.detach()).norm()


fixtures_stay = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fixtures_stay
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 150),
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    st.sampled_from([32, 64, 96]),
    st.sampled_from([0.1, 1.0, 6.0]),
)
def test_causal_attention(
    multiplying: Library, seed: int, batch: int, length: int, of: tuple[int, int], size: int, sharp: float
) -> None:
    """Heads that share keys or not, lengths of whole blocks or not, queries that see one key or all."""
    heads, kv_heads = of
    queries, keys, values = (
        drawn(seed + n, batch, count, length, size, dtype=torch.bfloat16)
        for n, count in enumerate((heads, kv_heads, kv_heads))
    )
    queries = queries * (sharp * size**-0.5)
    slopes = drawn(seed + 3, batch, length, heads, size, dtype=torch.bfloat16)
    out, logs = multiplying.attention_forward(queries, keys, values)
    found = multiplying.attention_backward(slopes, out, queries, keys, values, logs)

    wide = [x.double().requires_grad_() for x in (queries, keys, values)]
    key, value = (x.repeat_interleave(heads // kv_heads, 1) for x in wide[1:])
    scores = wide[0] @ key.mT
    scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
    expected = (torch.softmax(scores, -1) @ value).transpose(1, 2)
    expected.backward(slopes.double())
    close(out, expected.detach(), 1e-2)
    close(logs, scores.detach().logsumexp(-1), 1e-5)
    # Slopes of scores cancel, and the sum that is taken off them is of `out`, which is rounded: what is lost of a row
    # is a bfloat16's share of slopes times values, and reaches queries by the length of a key, keys by a query's.
    lost = 5e-3 * float(slopes.double().norm() * values.double().square().mean().sqrt())
    for one, other, by in zip(found, wide, (keys, queries, None), strict=True):
        assert other.grad is not None and one.shape == other.shape
        among = 0.0 if by is None else lost * float(by.double().square().sum(-1).mean().sqrt())
        assert (one.double() - other.grad).norm() <= 1e-2 * other.grad.norm() + among


def test_attention_that_is_not_a_number_stays_none(multiplying: Library) -> None:
    queries, keys, values = (drawn(n, 1, 2, 40, 32, dtype=torch.bfloat16) for n in range(3))
    keys[0, 1, 20, 3] = torch.nan
    out, _ = multiplying.attention_forward(queries, keys, values)
    assert out[0, 20:, 1].isnan().all()  # who sees it
    assert not out[0, :20, 1].isnan().any() and not out[0, :, 0].isnan().any()


@fixtures_stay
@given(seeds, st.sampled_from([0, 1, 31, 64, 512, 513, 1100]), st.integers(1, 100), st.integers(1, 100))
def test_the_gradient_of_a_matrix(
    multiplying: Library, seed: int, tokens: int, outputs: int, inputs: int
) -> None:
    if not multiplying.multiplies(torch.bfloat16, by_unit=True):
        pytest.skip("this processor has no matrix unit")
    slopes, states = (
        drawn(seed + n, tokens, width, dtype=torch.bfloat16) for n, width in enumerate((outputs, inputs))
    )
    expected = slopes.double().t() @ states.double()
    close(multiplying.matrix_backward(slopes, states), expected, 1e-5)
    total = drawn(seed + 2, outputs, inputs)
    before = total.double()
    assert multiplying.matrix_backward(slopes, states, total=total) is total
    close(total, before + expected, 1e-5)


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 20), st.integers(2, 90), st.sampled_from([0.0, 0.1, 0.9]), dtypes)
def test_a_cross_entropy(
    library: Library, seed: int, rows: int, words: int, smoothing: float, dtype: torch.dtype
) -> None:
    scores = drawn(seed, rows, words, dtype=dtype) * 8
    targets = torch.randint(words, (rows,), generator=torch.Generator().manual_seed(seed))
    wide = scores.double().requires_grad_()
    expected = F.cross_entropy(wide, targets, reduction="none", label_smoothing=smoothing)
    expected.sum().backward()
    assert wide.grad is not None
    losses = library.cross_entropy(scores, targets, smoothing)
    torch.testing.assert_close(losses.double(), expected.detach(), atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(scores.double(), wide.grad, atol=NEAR[dtype] / 2, rtol=NEAR[dtype])


@settings(deadline=None, max_examples=30)
@given(
    seeds,
    st.lists(st.sampled_from([0, 1, 15, 1024, 1040, 32767, 32768, 32769, 100_000]), min_size=1, max_size=9),
)
def test_the_length_of_a_gradient(library: Library, seed: int, sizes: list[int]) -> None:
    tensors = [drawn(seed + n, size) * 10.0**-n for n, size in enumerate(sizes)]
    expected = torch.cat([tensor.double() for tensor in tensors]).norm().item()
    assert library.norm(tensors) == pytest.approx(expected, rel=1e-6)
    tensors[-1][-1:] = torch.nan
    assert math.isnan(library.norm(tensors)) == (sizes[-1] > 0)


def test_a_loss_of_what_is_no_number_is_none(library: Library) -> None:
    for dtype in NEAR:
        scores = torch.zeros(2, 40, dtype=dtype)
        scores[0, 33] = torch.nan
        losses = library.cross_entropy(scores, torch.tensor([1, 39]), 0.0)
        assert (
            losses[0].isnan()
            and losses[1].isfinite()
            and scores[0].isnan().all()
            and not scores[1].isnan().any()
        )


def test_scores_far_apart_and_targets_that_are_no_words(library: Library) -> None:
    scores = torch.zeros(4, 20)
    scores[0, 3], scores[1, 7] = -torch.inf, 1e4
    losses = library.cross_entropy(scores, torch.tensor([0, 7, 20, -100]), 0.0)
    torch.testing.assert_close(losses[:2], torch.tensor([math.log(19), 0.0]))
    assert losses[2:].isnan().all() and scores[:2].isfinite().all() and not scores[2:].any()


def test_powers_of_numbers_as_large_as_they_come(library: Library) -> None:
    """A gate far out is shut or open, and not a number is not one: nothing is made finite that was not."""
    far = torch.tensor([[-1e30, -200.0, -88.0, -1.0, 0.0, 1.0, 88.0, 200.0, 1e30] + [0.0] * 7])
    found = library.gated_forward(torch.cat((far, torch.ones_like(far)), 1))
    torch.testing.assert_close(found, F.silu(far), atol=1e-6, rtol=1e-6)
    for dtype in NEAR:
        bad = torch.full((1, 32), torch.nan, dtype=dtype)
        assert library.gated_forward(bad).isnan().all()
        infinite = torch.full((1, 32), torch.inf, dtype=dtype)
        assert library.gated_forward(infinite).isinf().all()
        scores = torch.zeros(1, 1, 40, dtype=dtype)
        scores[0, 0, 33] = torch.nan
        library.softmax_forward(scores, 39)
        assert scores.isnan().all()


def test_bfloat16_rounds_as_torch_does(library: Library) -> None:
    """To the nearest, to even between two: of every float, the way torch stores it."""
    bits = torch.randint(-(2**31), 2**31 - 1, (64, 256), generator=torch.Generator().manual_seed(1)).int()
    numbers = bits.view(torch.float32)
    numbers = torch.where(numbers.isfinite() & (numbers.abs() > 1e-30) & (numbers.abs() < 1e15), numbers, 1.0)
    _, out, scale = library.norm_forward(numbers, None, torch.ones(256), 0.0, torch.bfloat16)
    expected = numbers * scale[:, None]
    same = out == expected.to(torch.bfloat16)
    assert same[
        expected.abs() > 1e-30
    ].all()  # numbers so small that bfloat16 has no more digits may go to zero


def calls(library: Library) -> dict[str, Callable[[], Sequence[Tensor | None]]]:
    bf16 = torch.bfloat16
    x, added, weight = drawn(0, 300, 64), drawn(1, 300, 64, dtype=bf16), drawn(2, 64)
    packed, angles = drawn(3, 3, 100, 256, dtype=bf16), drawn(4, 100, 32)
    norms = (drawn(5, 32), drawn(6, 32))
    *heads, scale = library.heads_forward(packed, norms, 1e-6, angles, angles, 2)
    total, _, by = library.norm_forward(x, added, weight, 1e-6, bf16)
    scores = drawn(7, 4, 100, 100, dtype=bf16)

    def softmax() -> list[Tensor]:
        found = scores.clone()
        library.softmax_forward(found, 0)
        return [found]

    return {
        "norm": lambda: library.norm_forward(x, added, weight, 1e-6, bf16),
        "norm's gradient": lambda: library.norm_backward(added, total, by, weight, x, added=True),
        "heads": lambda: library.heads_forward(packed, norms, 1e-6, angles, angles, 2),
        "heads' gradient": lambda: library.heads_backward(
            (heads[0], heads[1], heads[2]), packed, norms, scale, angles, angles
        ),
        "softmax": softmax,
        "norm of all": lambda: [
            torch.tensor([library.norm([x, weight, scores.float().flatten().repeat(9)])])
        ],
        "loss": lambda: [library.cross_entropy(scores[0].clone(), torch.arange(100), 0.1)],
        **(products(library) if library.multiplies(bf16) else {}),
    }


def products(library: Library) -> dict[str, Callable[[], Sequence[Tensor | None]]]:
    """Those of bfloat16, where the processor has them."""
    bf16 = torch.bfloat16
    queries, keys, values = (drawn(n, 2, heads, 150, 32, dtype=bf16) for n, heads in enumerate((6, 3, 3)))
    slopes = drawn(3, 2, 150, 6, 32, dtype=bf16)
    out, logs = library.attention_forward(queries, keys, values)

    def muon() -> list[Tensor]:
        moved = [drawn(n, *shape) for n, shape in enumerate([(40, 100), (64, 64), (100, 40), (17, 5)])]
        library.muon(
            [Moving(weights, weights.clone(), weights.clone(), 1.0, 0.1) for weights in moved],
            scale=1.0, mix=0.9, nesterov=True, slack=1.0, least=1e-6, coefficients=[(3.0, -3.2, 1.2)] * 4,
        )  # fmt: skip
        return moved

    found: dict[str, Callable[[], Sequence[Tensor | None]]] = {
        "attention": lambda: library.attention_forward(queries, keys, values),
        "attention's gradient": lambda: library.attention_backward(slopes, out, queries, keys, values, logs),
        "muon": muon,
    }
    if library.multiplies(bf16, by_unit=True):
        states, wide = drawn(4, 700, 72, dtype=bf16), drawn(5, 700, 200, dtype=bf16)
        found["a matrix's gradient"] = lambda: [library.matrix_backward(wide, states)]
    return found


def test_one_thread_and_three_give_the_same_bits(library: Library) -> None:
    """In processes of their own: a process that had several threads cannot be forked with them any more."""
    told = [
        subprocess.run(
            [sys.executable, __file__, threads], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for threads in ("1", "3")
    ]
    assert told[0] == ["threads 1", *told[1][1:]] and told[1][0] == "threads 3"
    assert len(told[0]) == 1 + len(calls(library))


def tell_digests() -> None:
    """Print how many threads compute, and a digest of what each kernel gives."""
    print("threads", torch.get_num_threads())
    for name, call in calls(find()).items():
        digest = hashlib.sha256()
        for tensor in call():
            digest.update(b"" if tensor is None else tensor.view(torch.uint8).numpy().tobytes())
        print(name, digest.hexdigest())


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    tell_digests()
