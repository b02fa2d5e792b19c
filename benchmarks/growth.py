"""How the cost of an optimizer step grows with length, width, batch and vocabulary, and how far it is from its bound.

    python benchmarks/growth.py [--rounds 4] [--only length ...] [--out benchmarks/results/growth.json]
    python benchmarks/growth.py --draw

Each point is a process of its own, with luban's learner, gradient and optimizer, in the dtype and by the kernels luban
chooses here. The processes of an axis live side by side and take one step each in turn, so that a busy neighbour slows
all alike; the median of the rounds counts. Memory is the most the process held resident above what it held before the
model was built. The bounds are derived in docs/performance.md, whose pictures `--draw` writes again from the results.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import growth_charts
import numpy as np
import torch

from luban.cores import cpu_quota
from luban.data.shards import ShardWriter, TokenShards
from luban.machine import (
    choose_dtype,
    device_name,
    keep_memory,
    measure_bandwidth,
    measure_matmul,
    set_threads,
)
from luban.models.flops import step_flops
from luban.tasks.language_model import LanguageModel
from luban.text_recipe import LanguageModelRecipe
from luban.training.gradients import Gradients
from luban.training.kernels import choose_kernels
from luban.training.muon import DEFAULT
from luban.training.optimizers import build_optimizer, hidden_matrices
from luban.training.parallel import Alone
from luban.training.precision import forward_in

HERE = Path(__file__).parent
BASE = {"layers": 4, "width": 256, "length": 256, "batch": 16, "vocabulary": 4096}
TOKENS = BASE["length"] * BASE["batch"]
AXES = {
    "length": [{"length": n, "batch": TOKENS // n} for n in (128, 256, 512, 1024, 2048, 4096)],
    "width": [{"width": n} for n in (64, 128, 256, 512, 1024)],
    "batch": [{"batch": n} for n in (1, 2, 4, 8, 16, 32, 64)],
    "vocabulary": [{"vocabulary": n} for n in (256, 1024, 4096, 16_384, 65_536, 150_000)],
}
PEAK_SIZES = (768, 1536, 3072)
L3 = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


def text_of(folder: Path, vocabulary: int) -> Any:
    """Prepared text of drawn tokens, the n-th as frequent as 1/n: no corpus at hand has 150,000 words."""
    draws = np.random.default_rng(0)
    ids = 1 + np.floor((vocabulary - 1) ** draws.random(400_000)).astype(np.int64) % (vocabulary - 1)
    for split in ("train", "validation"):
        writer = ShardWriter(folder, split, vocab_size=vocabulary, end_id=0)
        writer.add(ids.tolist(), bytes=len(ids), characters=len(ids))
        writer.close()
    return SimpleNamespace(
        tokenizer=SimpleNamespace(vocab_size=vocabulary, end_id=0),
        train=TokenShards(folder, "train"),
        validation=TokenShards(folder, "validation"),
    )


def recipe_of(shape: dict[str, int]) -> LanguageModelRecipe:
    return LanguageModelRecipe.model_validate(
        {
            "task": "language-model",
            "data": {"source": "drawn", "length": shape["length"]},
            "model": {
                "layout": "qwen3",
                "layers": shape["layers"],
                "width": shape["width"],
                "heads": max(1, shape["width"] // 64),
            },
            "train": {"steps": 1000, "batch": shape["batch"], "learning_rate": 1e-3},
        }
    )


def resident(name: str) -> int:
    """Return bytes of /proc/self/status: VmRSS is what is held, VmHWM the most that was."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def child(shape: dict[str, int]) -> None:
    """Be one point: take a step for every line that comes, answer with its seconds, and last with the memory."""
    set_threads()
    keep_memory()  # as `luban train` does
    recipe = recipe_of(shape)
    with tempfile.TemporaryDirectory() as folder:
        data = text_of(Path(folder), shape["vocabulary"])
        dtype, _ = choose_dtype(shape["width"], shape["batch"] * shape["length"])
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again from here
        before = resident("VmRSS")
        learner = LanguageModel(recipe, data)
        kernels, _ = choose_kernels(recipe.train, learner.model)
        gradients = Gradients(
            learner,
            Alone(),
            seed=0,
            clip=recipe.train.clip,
            forward=forward_in(dtype, torch.device("cpu"), kernels),
            kernels=kernels,
        )
        optimizer = build_optimizer(learner.model, recipe.train, dtype, kernels)
        matrices = sum(p.numel() for p in hidden_matrices(learner.model))
        facts = {
            "dtype": str(dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in learner.model.parameters()),
            "matrices": matrices,
            "mlp_width": learner.model.config.mlp_width,
            "flops": step_flops(learner.model.config, shape["batch"], shape["length"]),
        }
        print(json.dumps(facts), flush=True)
        for step, line in enumerate(sys.stdin):
            if line.strip() == "end":
                break
            started = time.perf_counter()
            gradients.add(step, gradients.batches(step, None))
            optimizer.step(gradients.scale(gradients.combine()))
            optimizer.zero_grad()
            print(json.dumps(time.perf_counter() - started), flush=True)
        print(json.dumps(resident("VmHWM") - before), flush=True)


def measure(points: list[dict[str, int]], rounds: int) -> list[dict[str, Any]]:
    """Measure the points of an axis: a step of each in turn, the first of which does not count."""
    command = [sys.executable, __file__, "--child"]
    children: list[Any] = []
    facts = []
    for shape in points:  # one after another: each measures the machine to choose its dtype
        one = subprocess.Popen([*command, json.dumps(shape)], stdin=-1, stdout=-1, text=True)
        children.append(one)
        facts.append(json.loads(one.stdout.readline()))  # type: ignore[union-attr]

    def ask(one: Any, word: str) -> Any:
        one.stdin.write(f"{word}\n")
        one.stdin.flush()
        return json.loads(one.stdout.readline())

    seconds = [[ask(one, "step") for one in children] for _ in range(rounds + 1)][1:]
    memory = [ask(one, "end") for one in children]
    for one in children:
        one.wait()
    return [
        {
            **shape,
            **fact,
            "seconds": statistics.median(column),
            "least": min(column),
            "most": max(column),
            "bytes": held,
        }
        for shape, fact, column, held in zip(points, facts, zip(*seconds, strict=True), memory, strict=True)
    ]


def bounds(point: dict[str, Any], machine: dict[str, Any]) -> dict[str, float]:
    """Return what no step of this kind can stay under; docs/performance.md derives each term."""
    tokens, width, length = point["batch"] * point["length"], point["width"], point["length"]
    size = 2 if point["dtype"] == "bfloat16" else 4
    rate, bandwidth, cache = machine["peak_flops"][point["dtype"]], machine["bandwidth"], machine["cache"]
    attention = 3 * point["layers"] * 4 * length * width * tokens
    network = point["flops"] - attention * (length - 1) / (2 * length)
    kept = tokens * point["layers"] * (6 * width + 2 * point["mlp_width"]) * size
    matrices, others = point["matrices"], point["parameters"] - point["matrices"]
    every = matrices + others

    def moved(read: float, written: float) -> float:
        return (max(0.0, read - cache) + max(0.0, written - cache)) / bandwidth

    learning = max(network / rate, moved(8 * every + kept, 4 * every + kept))
    updating = max(
        muon_flops(point) / rate, moved(4 * every + 12 * matrices + 16 * others, 8 * matrices + 12 * others)
    )
    state = 4 * every + 4 * matrices + 8 * others
    return {"seconds": learning + updating, "bytes": state + max(kept, 4 * every)}


def muon_flops(point: dict[str, Any]) -> float:
    """Return the operations of Muon's iteration; luban.training.muon says where the counts come from.

    The kernel's of bfloat16 iterates on the matrix itself and computes of what is symmetric one half.
    """

    def one(rows: int, columns: int) -> float:
        short, ratio, steps = min(rows, columns), max(rows, columns) / min(rows, columns), len(DEFAULT)
        products = 2 * ratio + 4 * steps - 3 if ratio > 1.5 else steps * (2 * ratio + 1)
        by_halves = steps * (1.5 * ratio + 0.5)
        return (min(products, by_halves) if point["dtype"] == "bfloat16" else products) * 2 * short**3

    width = point["width"]
    return point["layers"] * (4 * one(width, width) + 3 * one(width, point["mlp_width"]))


def machine_now() -> dict[str, Any]:
    """Return the machine's rates: the fastest of several sizes, for a bound may not be too low."""
    set_threads()
    peaks = {
        name: max(measure_matmul(getattr(torch, name), size) for size in PEAK_SIZES)
        for name in ("float32", "bfloat16")
    }
    words = L3.read_text(encoding="ascii").strip() if L3.is_file() else "0K"
    return {
        "name": device_name(), "threads": torch.get_num_threads(), "quota": cpu_quota(), "peak_flops": peaks,
        "bandwidth": measure_bandwidth(), "cache": int(words.rstrip("K")) << 10, "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=list(AXES))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "growth.json")
    parser.add_argument("--draw", action="store_true", help="only draw the results that are there")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    kept = json.loads(options.out.read_text()) if options.out.is_file() else {"axes": {}}
    for name in [] if options.draw else options.only:
        points = measure([{**BASE, **own} for own in AXES[name]], options.rounds)
        axes = {**kept["axes"], name: {"machine": machine_now(), "points": points}}
        _bound(axes)
        show(name, points)
        kept = {"rounds": options.rounds, "base": BASE, "axes": {n: axes[n] for n in AXES if n in axes}}
        options.out.write_text(json.dumps(kept, indent=1) + "\n")
    for name, axis in kept["axes"].items():
        growth_charts.draw(name, axis["points"], HERE.parent / "docs" / "images" / f"growth-{name}.svg")


def _bound(axes: dict[str, Any]) -> None:
    """Give every point its bound by the fastest rates that this machine had beside any axis: a bound is not too low."""
    fastest: dict[str, dict[str, float]] = {}
    for axis in axes.values():
        own, rates = axis["machine"], fastest.setdefault(axis["machine"]["name"], {})
        for key, rate in [*own["peak_flops"].items(), ("bandwidth", own["bandwidth"])]:
            rates[key] = max(rate, rates.get(key, 0.0))
    for axis in axes.values():
        rates = fastest[axis["machine"]["name"]]
        axis["machine"]["peak_flops"] = {key: rates[key] for key in axis["machine"]["peak_flops"]}
        axis["machine"]["bandwidth"] = rates["bandwidth"]
        for point in axis["points"]:
            point["bound"] = bounds(point, axis["machine"])


def show(name: str, points: list[dict[str, Any]]) -> None:
    print(f"\n{name:>10}{'dtype':>10}{'ms':>9}{'bound':>9}{'ratio':>7}{'MB':>8}{'bound':>8}{'ratio':>7}")
    for point in points:
        bound = point["bound"]
        print(
            f"{point[name]:10,}{point['dtype']:>10}{1e3 * point['seconds']:9.1f}{1e3 * bound['seconds']:9.1f}"
            f"{point['seconds'] / bound['seconds']:7.2f}{point['bytes'] / 1e6:8.0f}{bound['bytes'] / 1e6:8.0f}"
            f"{point['bytes'] / bound['bytes']:7.2f}"
        )


if __name__ == "__main__":
    main()
