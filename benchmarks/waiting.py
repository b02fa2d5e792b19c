"""How threads wait for one another, by how many other programs want the same cores.

Usage:
    python benchmarks/waiting.py [--rounds 3] [--seconds 8] [--busy 0 1 2] [--out RESULTS]

torch's threads meet at the end of every operation. Those of GNU OpenMP, which its Linux wheels bring, spin there for
some milliseconds unless told otherwise: a core that another program could have used, and a turn that the late thread
waits for. Timed are whole steps (forward, backward, Muon) of two models, each in a process of its own, interleaved,
beside so many processes that do nothing but count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from figures import put_section, table

from luban.machine import device_name

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "waiting.json"
POLICIES: dict[str, dict[str, str]] = {
    "as torch comes": {},
    "spin a little (GOMP_SPINCOUNT=10000)": {"GOMP_SPINCOUNT": "10000"},
    "sleep (OMP_WAIT_POLICY=PASSIVE)": {"OMP_WAIT_POLICY": "PASSIVE"},
}
SHAPES = {"0.8M": (128, 4, 8), "10.7M": (384, 6, 16)}
"""Width, blocks, windows of 256."""
BUSY = "while True: pass"
FEWEST = 2


def steps(size: str, seconds: float) -> list[float]:
    """Train on random tokens for so long, and return what each step took; the first one warms up."""
    import torch

    from luban.machine import set_threads
    from luban.models.loss import cross_entropy_sum
    from luban.recipe import TrainRecipe
    from luban.tasks.language_model import build
    from luban.text_recipe import DecoderModel
    from luban.training.optimizers import build_optimizer

    set_threads()
    width, layers, batch = SHAPES[size]
    model = build(DecoderModel(layers=layers, width=width, heads=width // 32), vocab_size=65, length=256)
    optimizer = build_optimizer(model, TrainRecipe(steps=1, learning_rate=1e-3), torch.float32)
    optimizer.set_rate(1.0)
    ids, targets = torch.randint(65, (2, batch, 256))
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(taken) <= FEWEST:
        started = time.perf_counter()
        loss, _ = cross_entropy_sum(model.hidden(ids), model.output_weight, targets, count=targets.numel())
        (loss / targets.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - started)
    return taken[1:]


def beside(busy: int, size: str, policy: dict[str, str], seconds: float) -> float:
    """Return the median step in seconds beside so many busy processes."""
    neighbours = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        command = [sys.executable, __file__, "--child", size, "--seconds", str(seconds)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        done = subprocess.run(command, env={**kept, **policy}, stdout=subprocess.PIPE, check=True)
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
    return statistics.median(json.loads(done.stdout))


def page(found: dict[str, Any]) -> str:
    """Return the table as Markdown: milliseconds of a step, median of the rounds, least and most."""
    busy = sorted({row["busy"] for row in found["rows"]})
    lines = []
    for size in SHAPES:
        for policy in POLICIES:
            cells = []
            for count in busy:
                own = [
                    1e3 * row["seconds"]
                    for row in found["rows"]
                    if (row["busy"], row["size"], row["policy"]) == (count, size, policy)
                ]
                told = f"{statistics.median(own):,.0f}" if own else ""
                cells.append(told + (f" ({min(own):,.0f} to {max(own):,.0f})" if len(own) > 1 else ""))
            lines.append([size, policy, *cells])
    head = ["parameters", "threads that wait", *(f"{count} busy" if count else "alone" for count in busy)]
    return (
        table(head, lines)
        + f"\n\n{found['processor']}, {found['threads']} threads. Milliseconds of a step, least and most."
    )


def main() -> None:
    """Measure every policy beside every number of busy processes, in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", choices=SHAPES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(steps(options.child, options.seconds)))
        return
    found: dict[str, Any] = {"processor": device_name(), "threads": os.cpu_count(), "rows": []}
    for _ in range(options.rounds):
        for busy in options.busy:
            for size in SHAPES:
                for policy, settings in POLICIES.items():
                    seconds = beside(busy, size, settings, options.seconds)
                    found["rows"].append({"busy": busy, "size": size, "policy": policy, "seconds": seconds})
                    print(f"{busy} busy  {size:6} {policy:40} {1e3 * seconds:8.0f} ms", flush=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print("\n" + page(found))
    put_section(HERE / "README.md", "waiting", page(found))


if __name__ == "__main__":
    main()
