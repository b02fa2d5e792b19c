"""Whether the chosen size is the right one: it and its neighbours on the ladder, for 1, 3 and 10 minutes, on two texts.

    python benchmarks/budget.py [--minutes 1 3 10] [--texts en zh] [--reach 1] [--processes 2] [--speed FLOP/s]

`luban train quickstart-en train.minutes=M` leaves shape, length, batch and rate to luban. Here the same choice is
made for every rung of the ladder from `--reach` below the chosen one to as many above it, each with the batch and
rate that luban would give it, and each is trained on as many tokens as it can be in M minutes on this machine by
the fitted law of speed: so that a busy neighbour on the machine changes nothing but the duration of this script.
Held-out nats per character decide. A run that stands in results/scaling.jsonl (same text, shape and rate, tokens
within 3 %) is not made again, unless `--again` says so; new ones are added there. `--processes` trains that many at
once, one thread each; `--speed` takes the matrix rate of the machine as given instead of measuring it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from luban import tasks
from luban.data.prepare import Prepared
from luban.machine import matrix_rates, memory_available, set_threads
from luban.recipe import TrainRecipe
from luban.recipe_reader import read_recipe
from luban.tasks.base import Machine
from luban.tasks.text_budget import LADDER, Offer, Text, best, offers, text_of
from luban.text_recipe import LanguageModelRecipe
from luban.training.kernels import kernels_expected

RUNS = Path(__file__).parent / "results" / "scaling.jsonl"
RESULTS = Path(__file__).parent / "results" / "budget.json"
SHARE = 0.92
"""Of a budget of minutes, what is left to the steps after evaluations and checkpoints."""


def neighbours(recipe: LanguageModelRecipe, text: Text, machine: Machine, reach: int) -> list[Offer]:
    """Return the offers of the rungs around the chosen one, the chosen one in their middle."""
    found = offers(recipe, text, machine)
    chosen = found.index(best(found))
    return found[max(0, chosen - reach) : chosen + reach + 1]


def known(text: str, offer: Offer) -> float | None:
    """Return the loss that such a run ended with earlier, in nats per token."""
    rows = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.is_file() else []
    asked = (
        text,
        *dataclasses.astuple(offer.shape)[:2],
        offer.shape.length,
        offer.shape.batch,
        offer.learning_rate,
    )
    for row in rows:
        found = tuple(row[k] for k in ("text", "layers", "width", "length", "batch", "learning_rate"))
        if found == asked and abs(row["tokens"] / offer.tokens - 1) < 0.03:
            return float(row["loss"])
    return None


def loss_of(text: str, folder: Path, known_text: Text, offer: Offer, options: argparse.Namespace) -> float:
    """Return the held-out loss of an offer in nats per token, trained in a process of its own."""
    if not options.again and (loss := known(text, offer)) is not None:
        return loss
    result = trained(text, folder, offer, options.seed)
    row = {
        "text": text, "text_tokens": known_text.tokens, "vocab_size": known_text.vocab_size,
        "ngram": round(known_text.ngram, 4), "tokens_per_character": round(known_text.tokens_per_character, 5),
        "document_tokens": round(known_text.document_tokens, 1), "layers": offer.shape.layers,
        "width": offer.shape.width, "length": offer.shape.length, "batch": offer.shape.batch,
        "learning_rate": offer.learning_rate, "tokens": result["tokens"], "seed": options.seed,
        "loss": round(result["metrics"]["loss"], 5),
    }  # fmt: skip
    with RUNS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return float(result["metrics"]["loss"])


def trained(text: str, folder: Path, offer: Offer, seed: int) -> dict[str, Any]:
    """Train one offer and return its result."""
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [
                sys.executable, "-m", "luban", "train", f"quickstart-{text}", f"data.source={folder}",
                f"model.layers={offer.shape.layers}", f"model.width={offer.shape.width}",
                f"model.heads={offer.shape.heads}", f"data.length={offer.shape.length}", "data.short_steps=0",
                f"train.batch={offer.shape.batch}", f"train.learning_rate={offer.learning_rate}",
                f"train.tokens={offer.tokens}", f"train.seed={seed}", "train.evaluate_every=1000000",
                "train.checkpoint_every=10h", "evaluate.sample_tokens=0", "evaluate.bootstrap=0",
                "--out", f"{scratch}/run", "--json",
            ],
            capture_output=True, text=True, check=True,
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        )  # fmt: skip
        return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(
    text: str, minutes: float, machine: Machine, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Train the chosen size and its neighbours; return what each reached."""
    recipe = read_recipe(f"quickstart-{text}", (f"train.minutes={minutes * SHARE}",), tasks.schema_of)
    assert isinstance(recipe, LanguageModelRecipe)
    known_text = text_of(Prepared(folder))
    around = neighbours(recipe, known_text, machine, options.reach)
    chosen = best(around)
    with ThreadPoolExecutor(options.processes) as pool:
        reached = list(pool.map(lambda offer: loss_of(text, folder, known_text, offer, options), around))
    per_character = known_text.tokens_per_character
    rows = [
        {
            "layers": offer.shape.layers, "width": offer.shape.width, "length": offer.shape.length,
            "batch": offer.shape.batch, "learning_rate": offer.learning_rate, "tokens": offer.tokens,
            "expected": round(offer.loss * per_character, 4), "reached": round(loss * per_character, 4),
            "chosen": offer is chosen,
        }
        for offer, loss in zip(around, reached, strict=True)
    ]  # fmt: skip
    mine = next(row for row in rows if row["chosen"])
    least = min(row["reached"] for row in rows)
    return {
        "text": text,
        "minutes": minutes,
        "rows": rows,
        "above_best": round(mine["reached"] - least, 4),
        "expected_over_reached": round(mine["expected"] / mine["reached"], 4),
    }


def tell(row: dict[str, Any]) -> None:
    print(f"\n{row['text']}, {row['minutes']:g} min")
    for r in row["rows"]:
        mark = "  <- chosen" if r["chosen"] else ""
        print(
            f"  {r['layers']:2} x {r['width']:<5} batch {r['batch']:2} x {r['length']:<4} rate {r['learning_rate']:.2g}"
            f"  {r['tokens'] / 1e6:6.2f}M tokens  expected {r['expected']:.4f}  reached {r['reached']:.4f}{mark}"
        )
    print(
        f"  chosen is {row['above_best']:.4f} above the best; expected / reached {row['expected_over_reached']:.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 3, 10])
    parser.add_argument("--texts", nargs="+", default=["en", "zh"])
    parser.add_argument("--reach", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--speed", type=float)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    set_threads()
    rates = (options.speed, options.speed) if options.speed else matrix_rates()
    machine = Machine(max(rates), memory_available(), kernels_expected(TrainRecipe(steps=1)), rates[0])
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for text in options.texts:
            folder = Path(scratch) / text
            subprocess.run(
                [sys.executable, "-m", "luban", "prepare", f"quickstart-{text}", "--out", str(folder)],
                check=True, capture_output=True,
            )  # fmt: skip
            for minutes in options.minutes:
                found.append(compare(text, minutes, machine, folder, options))
                tell(found[-1])
                options.out.write_text(
                    json.dumps(
                        {"peak_flops": machine.peak_flops, "ladder": LADDER, "comparisons": found}, indent=2
                    )
                    + "\n"
                )


if __name__ == "__main__":
    main()
