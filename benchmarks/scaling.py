"""The two laws behind `luban plan` and a budget that is enough: their runs, and the fit.

    python benchmarks/scaling.py fit                      fit both laws to results/scaling.jsonl and results/steps.json
    python benchmarks/scaling.py steps                    measure steps of many shapes here (a quiet machine, 5 minutes)
    python benchmarks/scaling.py runs --minutes 1 3       train the ladder on the texts that come with luban

A line of scaling.jsonl is one run: a text (its training tokens, vocabulary, n-gram loss, tokens per character), a
shape, a rate, a number of tokens, and the held-out loss it ended with. `runs` adds lines and skips what is there.
`fit` prints the constants of luban/tasks/text_budget.py, the error of the fit, and the error on each text when the
law is fitted to the others.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luban import tasks, train
from luban.data.prepare import Prepared
from luban.kernels import find
from luban.machine import device_name, matrix_rates, measure_matmul, memory_available, set_threads
from luban.models.fused import using
from luban.recipe import TrainRecipe
from luban.recipe_reader import read_recipe
from luban.tasks import text_budget
from luban.tasks.base import Machine
from luban.tasks.text_budget import LADDER, Shape, Text, heads_of, offers, step_seconds, text_of
from luban.training.kernels import kernels_expected
from luban.training.optimizers import build_optimizer
from luban.verbs.prepare import prepare

RESULTS = Path(__file__).parent / "results"
RUNS, STEPS = RESULTS / "scaling.jsonl", RESULTS / "steps.json"
PRIOR, PULL = (0.3, 0.3, 0.2, 0.3, 0.35, 8.0, 4e-5), 1e-4
"""Powers between those of Hoffmann et al. and what small models show; repeats worth about half of
what Muennighoff et al. found for large ones."""
NAMES = ("floor", "size", "size power", "data", "data power", "worth", "by heart")


def law(constants: Sequence[float], row: dict[str, Any]) -> float:
    """Return nats per token; the same form as text_budget.expected_loss."""
    return text_budget.loss_law(constants, text_in(row), row["layers"], row["width"], row["tokens"])


def text_in(row: dict[str, Any]) -> Text:
    return Text(
        row["text_tokens"],
        row["vocab_size"],
        row["ngram"],
        row["tokens_per_character"],
        row["document_tokens"],
    )


def minimise(loss: Callable[[np.ndarray], float], start: np.ndarray, rounds: int = 4000) -> np.ndarray:
    """Nelder and Mead's simplex (1965), restarted: seven constants and some tens of runs need no more."""
    best = start
    for _ in range(6):
        points = [
            best,
            *(best + np.eye(len(best))[i] * 0.15 * max(0.3, abs(best[i])) for i in range(len(best))),
        ]
        values = [loss(p) for p in points]
        for _ in range(rounds // 6):
            order = np.argsort(values)
            points, values = [points[i] for i in order], [values[i] for i in order]
            centre = np.mean(points[:-1], axis=0)
            moved = centre + (centre - points[-1])
            value = loss(moved)
            if value < values[0]:
                far = centre + 2 * (centre - points[-1])
                points[-1], values[-1] = min(((moved, value), (far, loss(far))), key=lambda pair: pair[1])
            elif value < values[-2]:
                points[-1], values[-1] = moved, value
            else:
                near = centre + 0.5 * (points[-1] - centre)
                close = loss(near)
                if close < values[-1]:
                    points[-1], values[-1] = near, close
                else:
                    points = [points[0], *(points[0] + 0.5 * (p - points[0]) for p in points[1:])]
                    values = [values[0], *(loss(p) for p in points[1:])]
        best = points[int(np.argmin(values))]
    return best


def fit(rows: list[dict[str, Any]]) -> np.ndarray:
    """Fit the relative error, squared below a hundredth and linear above (pseudo-Huber), for texts differ.

    Constants are positive, so their logarithms are searched. A weak pull towards `PRIOR` decides what the runs leave
    open.
    """
    prior = np.log(np.array(PRIOR))

    def error(logs: np.ndarray) -> float:
        off = [law(np.exp(np.clip(logs, -20, 20)), row) / row["loss"] - 1 for row in rows]
        return float(np.mean(np.sqrt(np.square(off) + 1e-4)) + PULL * np.sum(np.square(logs - prior)))

    return np.exp(minimise(error, prior))


def errors(constants: np.ndarray, rows: list[dict[str, Any]]) -> list[float]:
    return [abs(law(constants, row) / row["loss"] - 1) for row in rows]


def best_rates(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep, of runs that differ by rate, step or seed alone, the best: the law is of well-tuned runs."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["text"], row["layers"], row["width"], round(row["tokens"] / 60_000)

    ordered = sorted(rows, key=lambda row: (key(row), row["loss"]))
    return [next(group) for _, group in itertools.groupby(ordered, key=key)]


def show_fit() -> None:
    rows = best_rates([json.loads(line) for line in RUNS.read_text().splitlines()])
    constants = fit(rows)
    own = errors(constants, rows)
    print(f"{len(rows)} runs")
    print("LAW = (" + ", ".join(f"{value:.4g}" for value in constants) + ")  # " + ", ".join(NAMES))
    print(f"error {statistics.mean(own):.2%} (mean), {max(own):.2%} (largest)")
    for row, error in zip(rows, own, strict=True):
        print(
            f"  {row['text']:9}{row['layers']:2} x {row['width']:<4}{row['tokens'] / 1e6:7.2f}M tokens "
            f"{row['tokens'] / row['text_tokens']:5.1f} times  reached {row['loss']:.3f}  "
            f"law {law(constants, row):.3f} ({error:.1%})"
        )
    for text in sorted({row["text"] for row in rows}):
        others = [row for row in rows if row["text"] != text]
        away = errors(fit(others), [row for row in rows if row["text"] == text])
        print(f"  {text} from the others: {statistics.mean(away):.2%} (mean), {max(away):.2%} (largest)")
    steps = json.loads(STEPS.read_text())
    off = [
        abs(step_seconds(_shape(row), row["vocab_size"], row["peak_flops"]) / row["seconds"] - 1)
        for row in steps
    ]
    # Beside torch's operations in the same minute: a machine's rate wanders more than the two differ from the law.
    left = [
        abs(_share_left(row) / (row["kernels_seconds"] / row["seconds"]) - 1)
        for row in steps
        if "kernels_seconds" in row
    ]
    print(
        f"steps: {len(steps)}, the law of speed is off by {statistics.mean(off):.1%} (mean), {max(off):.1%} (largest)"
    )
    if left:
        print(
            f"with kernels beside without: {len(left)}, off by {statistics.mean(left):.1%} (mean), "
            f"{max(left):.1%} (largest)"
        )


def _share_left(row: dict[str, Any]) -> float:
    """Return what share of a step's time the law says is left with kernels."""
    own, rate = _shape(row), row["peak_flops"]
    with_kernels = step_seconds(own, row["vocab_size"], rate, kernels=True)
    return with_kernels / step_seconds(own, row["vocab_size"], rate)


def _shape(row: dict[str, Any]) -> Shape:
    return Shape(row["layers"], row["width"], heads_of(row["width"]), row["length"], row["batch"])


def measure_steps() -> None:
    """Time the ladder's shapes in float32, with kernels and without, the least of eight; keep others' rows."""
    set_threads()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for text in ("en", "zh"):
            folder = Path(scratch) / text
            prepare(f"quickstart-{text}", out=folder)
            data = Prepared(folder)
            for (layers, width), (batch, length) in itertools.product(
                LADDER[1:9], ((8, 128), (16, 128), (8, 256))
            ):
                shape = Shape(layers, width, heads_of(width), length, batch)
                row = {
                    "layers": layers, "width": width, "batch": batch, "length": length,
                    "vocab_size": data.train.vocab_size, "peak_flops": measure_matmul(torch.float32, 768),
                    **_least_steps(text, folder, data, shape), "processor": device_name(),
                }  # fmt: skip
                found.append(row)
                print(row, flush=True)
    others = [row for row in json.loads(STEPS.read_text()) if row.get("processor") != device_name()]
    STEPS.write_text(json.dumps([*others, *found], indent=1) + "\n")


def _least_steps(text: str, folder: Path, data: Prepared, shape: Shape) -> dict[str, float]:
    recipe = read_recipe(
        f"quickstart-{text}", (f"data.source={folder}", *_named(shape, 5e-3)), tasks.schema_of
    )
    task = tasks.find(recipe.task)(recipe, data)
    optimizer = build_optimizer(task.model, recipe.train)
    seconds: dict[str, list[float]] = {"seconds": [], "kernels_seconds": []}
    for step in range(8):
        for name, library in (("seconds", None), ("kernels_seconds", find())):
            started = time.perf_counter()
            for batch in task.batches(step, 0, 1):
                with using(library):
                    loss = task.loss(batch)
                (loss / batch.count).backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds[name].append(time.perf_counter() - started)
    return {name: min(taken) for name, taken in seconds.items()}


def _named(shape: Shape, rate: float) -> list[str]:
    return [
        f"model.layers={shape.layers}", f"model.width={shape.width}", f"model.heads={shape.heads}",
        f"data.length={shape.length}", "data.short_steps=0", f"train.batch={shape.batch}",
        f"train.learning_rate={rate}",
    ]  # fmt: skip


def run_ladder(minutes: Sequence[float], rungs: int) -> None:
    """Train every rung of the lower ladder for what it can be trained on in so many minutes."""
    set_threads()
    rates = matrix_rates()
    machine = Machine(max(rates), memory_available(), kernels_expected(TrainRecipe(steps=1)), rates[0])
    there = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.is_file() else []
    with tempfile.TemporaryDirectory() as scratch:
        for text, budget in itertools.product(("en", "zh"), minutes):
            folder = Path(scratch) / text
            if not folder.is_dir():
                prepare(f"quickstart-{text}", out=folder)
            known = text_of(Prepared(folder))
            recipe: Any = read_recipe(f"quickstart-{text}", (f"train.minutes={budget}",), tasks.schema_of)
            for offer in offers(recipe, known, machine)[:rungs]:
                same = [
                    row for row in there
                    if row["text"] == text and (row["layers"], row["width"]) == (offer.shape.layers, offer.shape.width)
                    and abs(row["tokens"] / offer.tokens - 1) < 0.05
                ]  # fmt: skip
                if not same:
                    _train(text, folder, known, offer, Path(scratch))


def _train(text: str, folder: Path, known: Text, offer: text_budget.Offer, scratch: Path) -> None:
    shape = offer.shape
    outcome = train(
        f"quickstart-{text}", f"data.source={folder}", *_named(shape, offer.learning_rate),
        f"train.tokens={offer.tokens}", "train.evaluate_every=1000000", "train.checkpoint_every=10h",
        "evaluate.sample_tokens=0", "evaluate.bootstrap=0",
        out=scratch / f"{text}-{shape.layers}-{shape.width}-{offer.tokens}",
    )  # fmt: skip
    row = {
        "text": text, "text_tokens": known.tokens, "vocab_size": known.vocab_size, "ngram": round(known.ngram, 4),
        "tokens_per_character": round(known.tokens_per_character, 5),
        "document_tokens": round(known.document_tokens, 1), "layers": shape.layers, "width": shape.width,
        "length": shape.length, "batch": shape.batch, "learning_rate": offer.learning_rate,
        "tokens": outcome.result["tokens"], "seed": 0, "loss": round(outcome.result["metrics"]["loss"], 5),
    }  # fmt: skip
    print(row, flush=True)
    with RUNS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("fit", "steps", "runs"))
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 3])
    parser.add_argument("--rungs", type=int, default=6)
    options = parser.parse_args()
    if options.what == "fit":
        show_fit()
    elif options.what == "steps":
        measure_steps()
    else:
        run_ladder(options.minutes, options.rungs)


if __name__ == "__main__":
    main()
