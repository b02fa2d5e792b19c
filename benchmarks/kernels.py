"""Forward and backward of a decoder by torch's operations, compiled by torch, and by luban's kernels, step by step.

Usage:
    python benchmarks/kernels.py [--steps 31] [--sizes 0.8M 10.7M] [--dtypes float32 bfloat16] [--out RESULTS]

One model, one batch, one process; the three take turns at every step, so that what a neighbour takes is taken from all.
The optimizer is left out: it is the same for all. Compiling is not in the steps; what it and the kernels' own compiling
take the first time stands beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from figures import put_section, table

from luban.kernels import Library, find
from luban.machine import device_name, keep_memory, measure_matmul, set_threads
from luban.models.decoder import Decoder
from luban.models.loss import cross_entropy_sum
from luban.tasks.language_model import build
from luban.text_recipe import DecoderModel
from luban.training.compiling import Compiling
from luban.training.precision import dtype_named, forward_in

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "kernels.json"
SHAPES = {"0.8M": (128, 4, 4, 344, 8), "10.7M": (384, 6, 6, 1024, 16)}
"""Width, blocks, heads, width inside the MLP, windows of 256."""
WAYS = {"torch": "torch's operations", "compiled": "compiled by torch", "kernels": "luban's kernels"}
WARM_UP = 3


def stepper(model: Decoder, batch: int, dtype: str, library: Library | None) -> Callable[[], None]:
    """Return what does one forward and backward pass over random tokens."""
    ids, targets = torch.randint(65, (2, batch, 256), generator=torch.Generator().manual_seed(0))
    forward = forward_in(dtype_named(dtype), torch.device("cpu"), library)

    def step() -> None:
        with forward():
            loss, _ = cross_entropy_sum(
                model.hidden(ids), model.output_weight, targets, count=targets.numel()
            )
        (loss / targets.numel()).backward()
        model.zero_grad(set_to_none=True)

    return step


def measure(size: str, dtype: str, steps: int) -> dict[str, Any]:
    """Return the milliseconds of each step in each way, and the seconds that compiling took."""
    width, layers, heads, inner, batch = SHAPES[size]
    torch.manual_seed(0)
    recipe = DecoderModel(layout="qwen3", layers=layers, width=width, heads=heads, mlp_width=inner)
    model = build(recipe, vocab_size=65, length=256)
    assert isinstance(model, Decoder)
    other = copy.deepcopy(model)
    compiled = stepper(other, batch, dtype, None)
    started = time.perf_counter()
    Compiling(other, wanted=True, tell=print).prepare(compiled)
    compiling = time.perf_counter() - started
    ways = {
        "torch": stepper(model, batch, dtype, None),
        "compiled": compiled,
        "kernels": stepper(model, batch, dtype, find()),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(WARM_UP + steps):
        for name, step in ways.items():
            started = time.perf_counter()
            step()
            if number >= WARM_UP:
                taken[name].append(round(1e3 * (time.perf_counter() - started), 2))
    return {"size": size, "dtype": dtype, "milliseconds": taken, "compiling_seconds": round(compiling, 1)}


def making_seconds() -> float:
    """Return what it takes to compile and check the kernels where there are none yet."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        find(Path(folder))
        return round(time.perf_counter() - started, 2)


def page(found: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = []
    for row in found["rows"]:
        base = statistics.median(row["milliseconds"]["torch"])
        for name, label in WAYS.items():
            taken = row["milliseconds"][name]
            low, _, high = statistics.quantiles(taken, n=4)
            once = {
                "compiled": f"{row['compiling_seconds']:.0f} s",
                "kernels": f"{found['making_seconds']:.1f} s",
            }
            lines.append([
                f"{row['size']}, {row['dtype']}", label, f"{statistics.median(taken):,.0f} ({low:,.0f} to {high:,.0f})",
                f"{base / statistics.median(taken):.2f}", once.get(name, ""),
            ])  # fmt: skip
    head = ["", "by", "ms of a step, median (quartiles)", "times as fast", "made in"]
    rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in found["rates"].items())
    about = f"{found['processor']}, {found['threads']} threads; products at {rates} before the first step"
    return table(head, lines) + f"\n\n{about}; {found['steps']} steps each."


def main() -> None:
    """Measure every size in every type."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=31)
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["bfloat16", "float32"]
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    keep_memory()
    threads = set_threads()
    found: dict[str, Any] = {
        "processor": device_name(), "threads": threads, "steps": options.steps, "making_seconds": making_seconds(),
        "rates": {name: measure_matmul(dtype_named(name), 768) for name in options.dtypes}, "rows": [],
    }  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        for size in options.sizes:
            for dtype in options.dtypes:
                found["rows"].append(measure(size, dtype, options.steps))
    options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(page(found))
    if options.out.resolve().parent == RESULTS.parent:
        put_section(HERE / "README.md", "kernels", page(found))


if __name__ == "__main__":
    main()
