"""Muon against its papers in float64, against torch's own, and the properties of an orthogonal update."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from luban.kernels import Library
from luban.training.muon import DEFAULT, JORDAN, POLAR_EXPRESS, Coefficients, Muon, orthogonalise

SHAPES = [(16, 16), (16, 20), (20, 16), (12, 40), (40, 12), (1, 7), (7, 1)]


def matrices(shape: tuple[int, int], seed: int = 0, count: int = 3, decay: float = 3.0) -> Tensor:
    """Matrices in float64 whose singular values fall from 1 to 10 ** -decay."""
    left, _, right = torch.linalg.svd(
        torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
        full_matrices=False,
    )
    rank = min(shape)
    return left * 10 ** (-decay * torch.arange(rank, dtype=torch.float64) / max(1, rank - 1)) @ right


def newton_schulz(matrix: Tensor, coefficients: Coefficients) -> Tensor:
    """The papers' algorithm for one matrix: divide by the Frobenius norm, iterate, on the wide side."""
    if matrix.shape[0] > matrix.shape[1]:
        return newton_schulz(matrix.T, coefficients).T
    x = matrix / matrix.norm()
    for a, b, c in coefficients:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def singular_map(matrix: Tensor, coefficients: Coefficients) -> Tensor:
    """The same on the singular values alone, divided by the tighter bound."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.pow(8).sum() ** (1 / 8)
    for a, b, c in coefficients:
        values = a * values + b * values**3 + c * values**5
    return left * values @ right


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("coefficients", [JORDAN, POLAR_EXPRESS, DEFAULT, JORDAN[:1], POLAR_EXPRESS[:2]])
def test_the_iteration_equals_the_papers(shape: tuple[int, int], coefficients: Coefficients) -> None:
    stack = matrices(shape)
    papers = torch.stack([newton_schulz(matrix, coefficients) for matrix in stack])
    tighter = torch.stack([singular_map(matrix, coefficients) for matrix in stack])
    torch.testing.assert_close(orthogonalise(stack, coefficients, frobenius=True), papers, atol=1e-9, rtol=0)
    torch.testing.assert_close(orthogonalise(stack, coefficients), tighter, atol=1e-9, rtol=0)
    single = orthogonalise(stack.float(), coefficients).double()
    torch.testing.assert_close(single, tighter, atol=4e-3, rtol=0)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(SHAPES), st.integers(0, 1000), st.floats(0.0, 9.0), st.floats(-8.0, 8.0), st.booleans()
)
def test_no_singular_value_leaves_its_bounds(
    shape: tuple[int, int], seed: int, decay: float, size: float, frobenius: bool
) -> None:
    stack = matrices(shape, seed, decay=decay).float() * 10**size
    for coefficients, most in ((JORDAN, 1.21), (POLAR_EXPRESS, 1.13), (DEFAULT, 1.13)):
        values = torch.linalg.svdvals(orthogonalise(stack, coefficients, frobenius=frobenius).double())
        assert values.max() < most
        assert values[:, 0].min() > 0.6


@given(st.integers(0, 100), st.floats(1e-5, 1e5))
@settings(deadline=None, max_examples=20)
def test_the_size_of_the_gradient_does_not_matter(seed: int, size: float) -> None:
    stack = matrices((12, 20), seed).float()
    torch.testing.assert_close(
        orthogonalise(stack * size, DEFAULT), orthogonalise(stack, DEFAULT), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("shape", [(8, 8), (8, 24)])
def test_a_zero_matrix_stays_zero_and_leaves_its_neighbours_alone(shape: tuple[int, int]) -> None:
    stack = matrices(shape).float()
    alone = orthogonalise(stack, DEFAULT)
    stack[1] = 0
    result = orthogonalise(stack, DEFAULT)
    assert result[1].eq(0).all()
    torch.testing.assert_close(result[[0, 2]], alone[[0, 2]])


@pytest.mark.parametrize("rank", [1, 3])
def test_a_matrix_of_low_rank_stays_of_low_rank(rank: int) -> None:
    for shape in ((24, 24), (24, 60)):
        left, right = (torch.randn(1, n, rank, generator=torch.Generator().manual_seed(n)) for n in shape)
        values = torch.linalg.svdvals(orthogonalise(left @ right.mT, DEFAULT)[0].double())
        assert values[:rank].min() > 0.6
        assert values[rank:].max() < 0.01


def best_quintic(low: float, high: float) -> tuple[float, float, float]:
    """The odd quintic nearest to 1 on [low, high] (Remez): equal errors at both ends and both turns."""
    turns = ((3 * low + high) / 4, (low + 3 * high) / 4)
    for _ in range(60):
        points = torch.tensor([low, *turns, high], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        system = torch.stack([points, points**3, points**5, signs], dim=1)
        a, b, c, _ = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        root = math.sqrt(9 * b * b - 20 * a * c)
        turns = (math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c)))
    return a, b, c


def polar_express(low: float, iterations: int, cushion: float = 0.0240732742) -> Coefficients:
    """Algorithm 1 of the paper: each quintic is the best one for what the ones before left over.

    Where the interval reaches below the cushion, the best quintic from the cushion on is taken and scaled so
    that its least and greatest value stand at equal distance from one.
    """
    high, result = 1.0, []
    for _ in range(iterations):
        a, b, c = best_quintic(max(low, cushion * high), high)
        least, most = (a * x + b * x**3 + c * x**5 for x in (low, high))
        scale = 2 / (least + most) if low < cushion * high else 1.0
        result.append((a * scale, b * scale, c * scale))
        low = least * scale
        high = 2 - low
    return result


@pytest.mark.parametrize(("coefficients", "low"), [(POLAR_EXPRESS, 1e-3), (DEFAULT, 1e-2)])
def test_the_coefficients_are_the_papers_best(coefficients: Coefficients, low: float) -> None:
    derived = polar_express(low, len(coefficients))
    for written, best in zip(coefficients, derived, strict=True):
        assert written == pytest.approx(best, rel=1e-6)


def reference_steps(
    start: Tensor, gradients: Sequence[Tensor], coefficients: Coefficients, nesterov: bool
) -> Tensor:
    """Jordan's reference with Liu's scale: momentum 0.9, rate 0.02, weight decay 0.1; one matrix, float64."""
    weight, momentum = start.double().clone(), torch.zeros_like(start, dtype=torch.float64)
    for gradient in gradients:
        momentum = 0.9 * momentum + 0.1 * gradient
        update = 0.1 * gradient + 0.9 * momentum if nesterov else momentum
        step = 0.2 * math.sqrt(max(start.shape)) * newton_schulz(update, coefficients)
        weight = weight * (1 - 0.02 * 0.1) - 0.02 * step
    return weight


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("coefficients", [JORDAN, POLAR_EXPRESS])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_steps_equal_the_reference_matrix_by_matrix(
    nesterov: bool, coefficients: Coefficients, dtype: torch.dtype, tolerance: float
) -> None:
    shapes = [(6, 6), (6, 15), (6, 6), (15, 6)]
    starts = [matrices(shape, seed, count=1)[0] for seed, shape in enumerate(shapes)]
    weights = [nn.Parameter(start.to(dtype, copy=True)) for start in starts]
    optimizer = Muon(
        weights,
        0.02,
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=0.1,
        coefficients=coefficients,
        frobenius=True,
    )
    gradients = [[matrices(w.shape, 100 + step, count=1, decay=1)[0] for step in range(4)] for w in weights]
    for step in range(4):
        for weight, own in zip(weights, gradients, strict=True):
            weight.grad = own[step].to(dtype)
        optimizer.step()
    for weight, start, own in zip(weights, starts, gradients, strict=True):
        expected = reference_steps(start, own, coefficients, nesterov)
        torch.testing.assert_close(weight.detach().double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_equal_torch_up_to_its_bfloat16(nesterov: bool) -> None:
    ours, theirs = (
        [nn.Parameter(matrices(shape, seed, count=1)[0].float()) for seed, shape in enumerate(SHAPES[:5])]
        for _ in range(2)
    )
    arguments = {"momentum": 0.95, "nesterov": nesterov, "weight_decay": 0.1}
    mine = Muon(ours, 0.01, coefficients=JORDAN, frobenius=True, **arguments)
    torchs = torch.optim.Muon(theirs, 0.01, adjust_lr_fn="match_rms_adamw", **arguments)
    for step in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = matrices(one.shape, 50 + step, count=1, decay=1)[0].float()
            other.grad = one.grad.clone()
        mine.step()
        torchs.step()
    for one, other in zip(ours, theirs, strict=True):
        moved = 3 * 0.01 * 0.2 * math.sqrt(max(one.shape))
        assert (one - other).abs().max() < 0.03 * moved


def test_the_update_has_the_size_of_adamws() -> None:
    for shape in ((32, 32), (32, 90), (90, 32)):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        Muon([weight], 1.0).step()
        assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.1)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    start = matrices((6, 9), count=3).float()
    weights = [nn.Parameter(matrix.clone()) for matrix in start]
    alone = [nn.Parameter(matrix.clone()) for matrix in start[::2]]
    optimizer, pair = Muon(weights, 0.1, weight_decay=0.1), Muon(alone, 0.1, weight_decay=0.1)
    for weight, other in zip(weights[::2], alone, strict=True):
        weight.grad = matrices((6, 9), 7, count=1)[0].float()
        other.grad = weight.grad.clone()
    optimizer.step()
    pair.step()
    assert torch.equal(weights[1], start[1])
    assert optimizer.state[weights[1]]["momentum_buffer"].eq(0).all()
    for weight, other in zip(weights[::2], alone, strict=True):
        torch.testing.assert_close(weight, other)
        torch.testing.assert_close(
            optimizer.state[weight]["momentum_buffer"], pair.state[other]["momentum_buffer"]
        )


def test_only_matrices_are_taken() -> None:
    with pytest.raises(ValueError, match=r"received a parameter of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], 0.1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.0, 2.5, 7.0])
def test_in_bfloat16_the_direction_is_the_same_and_no_singular_value_leaves_its_bounds(
    shape: tuple[int, int], decay: float
) -> None:
    stack = matrices(shape, decay=decay)
    exact = orthogonalise(stack, DEFAULT)
    rounded = orthogonalise(stack.bfloat16(), DEFAULT).double()
    assert (exact * rounded).sum() / (exact.norm() * rounded.norm()) > 0.99
    assert torch.linalg.svdvals(rounded).max() < 1.05


def test_products_in_bfloat16_leave_weights_and_momentum_in_float32() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(24, 16)) for _ in range(2)]
    optimizers = [Muon([weights[0]], 0.1), Muon([weights[1]], 0.1, dtype=torch.bfloat16)]
    with torch.no_grad():
        weights[1].copy_(weights[0])
    before = weights[0].detach().clone()
    for weight, optimizer in zip(weights, optimizers, strict=True):
        weight.grad = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
        optimizer.step()
        assert weight.dtype == optimizer.state[weight]["momentum_buffer"].dtype == torch.float32
    moved, other = (weight.detach() - before for weight in weights)
    assert (moved - other).norm() < 0.05 * moved.norm()


KERNEL_SHAPES = [(24, 16), (16, 24), (40, 40), (64, 31), (5, 96)]


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_by_kernels_are_as_near_the_exact_ones_as_torchs(
    nesterov: bool, multiplying: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # a matrix is one thread's work
    called = spied(multiplying, monkeypatch)
    starts = [matrices(shape, seed, count=1)[0].float() for seed, shape in enumerate(KERNEL_SHAPES)]
    settings = {"nesterov": nesterov, "weight_decay": 0.1}
    weights = [[nn.Parameter(start.clone()) for start in starts] for _ in range(3)]
    exact, torchs, ours = (
        Muon(own, 0.01, **settings, **how)
        for own, how in zip(
            weights,
            ({}, {"dtype": torch.bfloat16}, {"dtype": torch.bfloat16, "kernels": multiplying}),
            strict=True,
        )
    )
    for step in range(4):
        for number, shape in enumerate(KERNEL_SHAPES):
            gradient = matrices(shape, 100 + 9 * step + number, count=1, decay=2)[0].float()
            for own in weights:
                own[number].grad = gradient.clone()
        for optimizer in (exact, torchs, ours):
            optimizer.step(0.5**step)
    assert called == [len(KERNEL_SHAPES)] * 4
    for start, wide, narrow, mine in zip(starts, *weights, strict=True):
        moved = (wide - start).norm()
        assert (mine - wide).norm() <= 1.2 * (narrow - wide).norm() + 1e-3 * moved
        torch.testing.assert_close(
            ours.state[mine]["momentum_buffer"], torchs.state[narrow]["momentum_buffer"], rtol=1e-5, atol=1e-8
        )


def spied(library: Library, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many matrices each call was given."""
    called: list[int] = []
    own = library.muon
    monkeypatch.setattr(
        library, "muon", lambda matrices, **how: (called.append(len(matrices)), own(matrices, **how))
    )
    return called


def test_kernels_leave_a_parameter_without_gradient_alone(
    multiplying: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    called = spied(multiplying, monkeypatch)
    start = matrices((48, 32), count=4).float()
    weights = [nn.Parameter(matrix.clone()) for matrix in start]
    optimizer = Muon(weights, 0.1, weight_decay=0.1, dtype=torch.bfloat16, kernels=multiplying)
    optimizer.step()
    assert called == [] and all(torch.equal(w, old) for w, old in zip(weights, start, strict=True))
    for weight in weights[1:]:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert called == [3]
    assert torch.equal(weights[0], start[0]) and not optimizer.state[weights[0]]["momentum_buffer"].any()
    assert all(not torch.equal(weight, old) for weight, old in zip(weights[1:], start[1:], strict=True))
    assert torch.equal(optimizer.state[weights[1]]["momentum_buffer"], torch.full((48, 32), 1 - 0.95))


def test_fewer_matrices_than_threads_go_by_torch(
    multiplying: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    called = spied(multiplying, monkeypatch)
    weights = [nn.Parameter(torch.ones(16, 16)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.eye(16)
    Muon(weights, 0.1, dtype=torch.bfloat16, kernels=multiplying).step()
    assert called == [] and not torch.equal(weights[0].detach(), torch.ones(16, 16))
