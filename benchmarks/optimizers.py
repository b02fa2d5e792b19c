"""How long an optimizer step takes, at the shapes of two decoders, and how orthogonal Muon's update is.

    python benchmarks/optimizers.py [--repeats 15] [--out benchmarks/results/optimizers.json]

The variants run in turn, one step each, so that a busy neighbour slows all alike. The file keeps the median
and the fastest of the repeats; the table shows the fastest, and its share of the family's slowest. Read
ratios: absolute times depend on who else uses the machine.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from luban.machine import device_name, set_threads
from luban.training.muon import DEFAULT, JORDAN, POLAR_EXPRESS, Coefficients, Muon, orthogonalise

MODELS = {"0.8M": (4, 128, 344, 65), "10.7M": (6, 384, 1024, 65)}
Step = Callable[[], object]


def decoder_shapes(
    layers: int, width: int, mlp: int, vocab: int
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """The shapes of the hidden matrices, and of all else."""
    layer = [(width, width)] * 4 + [(mlp, width)] * 2 + [(width, mlp)]
    return layer * layers, [(vocab, width), *[(width,)] * (2 * layers + 1)]


def parameters(shapes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return made


def one_by_one(weights: list[nn.Parameter], momenta: list[Tensor]) -> None:
    """Jordan's reference: every matrix for itself, on its wide side."""
    for weight, momentum in zip(weights, momenta, strict=True):
        momentum.lerp_(weight.grad, 0.05)
        update = weight.grad.lerp(momentum, 0.95)
        tall = update.shape[0] > update.shape[1]
        x = update.T if tall else update
        x = x / (x.norm() + 1e-7)
        for a, b, c in JORDAN:
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        size = 0.2 * max(weight.shape) ** 0.5
        weight.data.mul_(1 - 3e-4).add_(x.T if tall else x, alpha=-3e-3 * size)


def variants(shape: tuple[int, int, int, int]) -> dict[str, Step]:
    hidden, rest = decoder_shapes(*shape)
    steps: dict[str, Step] = {}
    families = {
        "sgd": (torch.optim.SGD, {"momentum": 0.9}),
        "rmsprop": (torch.optim.RMSprop, {}),
        "adamw": (torch.optim.AdamW, {}),
    }
    for name, (family, arguments) in families.items():
        for mode in ("single", "foreach", "fused"):
            if (name, mode) != ("rmsprop", "fused"):
                flags = {"foreach": mode == "foreach"} | (
                    {} if name == "rmsprop" else {"fused": mode == "fused"}
                )
                steps[f"{name} {mode}"] = family(
                    parameters(hidden + rest), lr=1e-3, **arguments, **flags
                ).step
    weights = parameters(hidden)
    momenta = [torch.zeros_like(weight) for weight in weights]
    with_no_grad = torch.no_grad()(one_by_one)
    steps["muon one by one, jordan x5"] = lambda: with_no_grad(weights, momenta)
    for name, coefficients, frobenius in muon_choices():
        steps[f"muon stacked, {name}"] = Muon(
            parameters(hidden), 3e-3, coefficients=coefficients, frobenius=frobenius
        ).step
    return steps


def muon_choices() -> list[tuple[str, Coefficients, bool]]:
    return [
        ("jordan x5", JORDAN, True),
        ("jordan x4", JORDAN[:4], True),
        ("jordan x3", JORDAN[:3], True),
        ("polar express x5", POLAR_EXPRESS, True),
        ("polar express x4", POLAR_EXPRESS[:4], True),
        ("polar express x3", POLAR_EXPRESS[:3], True),
        ("jordan x4, tight", JORDAN[:4], False),
        (f"default x{len(DEFAULT)}, tight", DEFAULT, False),
    ]


def measure(steps: dict[str, Step], repeats: int) -> dict[str, dict[str, float]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            before = time.perf_counter()
            step()
            if repeat:
                seconds[name].append(time.perf_counter() - before)
    return {name: {"median": statistics.median(own), "fastest": min(own)} for name, own in seconds.items()}


def spreads(rows: int = 128, columns: int = 344) -> dict[str, dict[str, list[float]]]:
    """Singular values s after the iteration, per spectrum: root mean square of (s - 1), least, greatest."""
    torch.manual_seed(0)
    left, flat, right = torch.linalg.svd(torch.randn(rows, columns, dtype=torch.float64), full_matrices=False)
    rank = torch.arange(1, rows + 1, dtype=torch.float64)
    spectra = {
        "gaussian": flat,
        "1/i": 1 / rank,
        "10^(-2i/m)": 10 ** (-2 * rank / rows),
        "10^(-3i/m)": 10 ** (-3 * rank / rows),
    }
    table: dict[str, dict[str, list[float]]] = {}
    for name, coefficients, frobenius in muon_choices():
        table[name] = {}
        for spectrum, values in spectra.items():
            result = orthogonalise((left * values @ right).unsqueeze(0), coefficients, frobenius=frobenius)
            after = torch.linalg.svdvals(result[0])
            figures = [(after - 1).square().mean().sqrt(), after.min(), after.max()]
            table[name][spectrum] = [round(float(figure), 3) for figure in figures]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "optimizers.json")
    options = parser.parse_args()
    threads = set_threads()
    result: dict[str, object] = {
        "machine": device_name(),
        "threads": threads,
        "torch": torch.__version__,
        "platform": platform.platform(),
    }
    for model, shape in MODELS.items():
        measured = measure(variants(shape), options.repeats)
        seconds = {name: own["fastest"] for name, own in measured.items()}
        print(f"\n{model}, {threads} threads{'':22}ms   of its family's slowest")
        for name, own in seconds.items():
            family = max(other for key, other in seconds.items() if key.split()[0] == name.split()[0])
            print(f"  {name:32}{1000 * own:9.2f}   {own / family:.2f}")
        result[model] = measured
    result["spread"] = spreads()
    print("\nsingular values after the iteration: error [least, greatest]")
    for name, row in result["spread"].items():
        print(
            f"  {name:22}",
            "  ".join(f"{s}: {e:.3f} [{low:.2f}, {high:.2f}]" for s, (e, low, high) in row.items()),
        )
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
