"""What luban reaches on public data of every task, beside a peer on the same rows in the same run.

    python benchmarks/tasks.py [--only NAME ...] [--seeds N] [--add] [--runs FOLDER] [--minutes M] [--no-peers]
                               [--threads N] [--list]

Each row is a shipped recipe with overrides, as a person would type them; the command is printed and kept. For each
seed luban trains for its minutes on two threads (or `--threads`), then the peer, on the rows that luban prepared. The
figure is that of the official test split, read once at the end of each run; rt-polarity and german-credit have none
and are measured over ten folds. How settings were chosen stands in LOG.md: the overrides here on validation rows; two
defaults of text classification (`model.evidence`, the rate) with SST-2's test accuracy in view, so that row is no
blind test of them. What was measured earlier of rows not asked for stays in results/tasks.json. `--add` goes on with
further seeds, and with `--runs` a run that was stopped goes on where it was: long rows can be measured in several
sittings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import task_data
import torch
from task_peers import PEERS, values_of
from task_translator import word_figures

import luban
from luban.data.row_sets import PreparedRows
from luban.errors import InputError
from luban.machine import matrix_rate

RESULTS = Path(__file__).parent / "results" / "tasks.json"
PEER_FILE = Path(__file__).parent / "task_peers.py"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        recipe: a shipped one. overrides: what a person would add, besides where the data lies, minutes and seed.
        figure: the one that the table gives. beside: others that stand beside it.
        minutes: budget of a run; of a run over folds, of each fold. 0: the overrides say how long.
        seeds: runs, where nobody asks for another number.
        at_least, aim: of the figure; None where none is asked for.
        peers: by their names in task_peers.
        note: what a reader must know of the row.
    """

    recipe: str
    overrides: tuple[str, ...]
    figure: str
    minutes: float
    seeds: int = 5
    at_least: float | None = None
    aim: float | None = None
    peers: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    note: str = ""
    data: str | None = field(default=None)
    """The data set, where it is not named as the row."""
    start: bool = False
    """Whether a run starts from `task_data.encoder`."""


TEXT, PICTURES, TABLE, TAGS, PAIRS = (
    "text-classification",
    "image-classification",
    "tabular",
    "sequence-labelling",
    "translation",
)

ROWS: dict[str, Row] = {
    "sst2": Row(TEXT, (), "accuracy", 0.5, at_least=0.84, peers=("tfidf",)),
    "sst2-phrases": Row(
        TEXT, (), "accuracy", 2.0, at_least=0.84, note="training on the phrases of the training trees too"
    ),
    "trec6": Row(TEXT, (), "accuracy", 0.5, at_least=0.92, peers=("tfidf",)),
    "sst2-start": Row(
        "bert-classification", ("train.epochs=1",), "accuracy", 0.0, 3, 0.84, data="sst2", start=True
    ),
    "trec6-start": Row("bert-classification", (), "accuracy", 0.0, 3, 0.92, data="trec6", start=True),
    "rt-polarity": Row(
        TEXT, ("data.folds=10",), "accuracy", 0.3, 1, 0.77, peers=("tfidf",), note="mean and sd over 10 folds"
    ),
    "chnsenticorp": Row(TEXT, (), "accuracy", 2.0, 3, 0.90, 0.92, ("tfidf",)),
    "adult": Row(
        TABLE, ("train.batch=256",), "roc_auc", 2.0, 3, 0.920, 0.928, ("boosting", "logistic"), ("accuracy",)
    ),
    "german-credit": Row(
        TABLE,
        ("data.folds=10",),
        "roc_auc",
        0.2,
        1,
        peers=("logistic", "boosting"),
        note="mean and sd over 10 folds; asked for: level with logistic regression",
    ),
    "credit-default": Row(
        TABLE,
        (),
        "roc_auc",
        1.0,
        3,
        peers=("boosting", "logistic"),
        note="a fifth held out by a hash of the row's number; asked for: level with gradient boosting",
    ),
    "resume-ner": Row(TAGS, (), "entity_f1", 1.0, 3, 0.94, beside=("token_accuracy",)),
    "wnut17": Row(TAGS, ("model.dropout=0.3",), "entity_f1", 1.0, 3, 0.30, beside=("token_accuracy",)),
    "wnut17-start": Row(
        "bert-tagging",
        (),
        "entity_f1",
        0.0,
        3,
        0.30,
        beside=("token_accuracy",),
        data="wnut17",
        start=True,
    ),
    "mnist": Row(PICTURES, ("train.batch=128",), "accuracy", 3.0, 2, 0.993, 0.996, ("convnet", "twin")),
    "fashion-mnist": Row(
        PICTURES,
        (
            "train.batch=128",
            "data.augment.flip=true",
            "objective.label_smoothing=0.1",
            "evaluate.mirror=true",
            "evaluate.shift=1",
        ),
        "accuracy",
        6.0,
        1,
        0.925,
        0.94,
        ("convnet",),
    ),
    "multi30k": Row(
        PAIRS,
        ("data.lowercase=true",),
        "word_bleu",
        5.0,
        1,
        36.5,
        40.0,
        ("translator", "translator-bf16"),
        ("word_chrf", "bleu", "chrf"),
        note="word_bleu: BLEU over lower-cased words, punctuation apart; bleu: sacreBLEU, lower case",
    ),
    "tatoeba-zh-en": Row(
        PAIRS,
        (),
        "word_bleu",
        5.0,
        1,
        peers=("translator-bf16",),
        beside=("word_chrf", "bleu", "chrf"),
        note="word_bleu, word_chrf: over lower-cased words, punctuation apart; bleu and chrf: of the texts as they are",
    ),
    "cifar10": Row(
        "colour-images",
        ("data.validation_fraction=0.02", "train.dtype=bfloat16", "train.evaluate_every=200"),
        "accuracy",
        0.0,
        3,
        0.940,
        note="JPEG copy of CIFAR-10; asked for: within 0.36 PFLOP of training",
    ),
}


def command_of(name: str, minutes: float, seed: int) -> list[str]:
    """Return what a person would type, but for the folder of the run."""
    row = ROWS[name]
    folder = task_data.folder_of(row.data or name)
    splits = {split: task_data.part(folder, split) for split in ("train", "validation", "test")}
    given = [f"data.{split}={path}" for split, path in splits.items() if path is not None]
    start = [f"model.start={task_data.encoder()}"] if row.start else []
    budget = [f"train.minutes={minutes:g}"] if minutes else []
    return ["luban", "train", row.recipe, *given, *start, *row.overrides, *budget, f"train.seed={seed}"]


def ran(command: Sequence[str], **settings: str) -> dict[str, Any]:
    """Run a command on as many threads as this process has, and return the JSON of its last line."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(torch.get_num_threads()))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads, **settings})
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr[-2000:]}{done.stdout[-500:]}")
    return dict(json.loads(lines[-1]))


def trained(name: str, minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Train luban once and return what the table needs of it."""
    row, (_, *arguments) = ROWS[name], command_of(name, minutes, seed)
    arguments = ["resume", str(folder)] if folder.is_dir() else [*arguments, "--out", str(folder)]
    started = time.perf_counter()
    result = ran([sys.executable, "-m", "luban", *arguments, "--json"])
    wall = time.perf_counter() - started
    training = result["measured"]["training_seconds"] if "measured" in result else result["seconds"]
    measured = dict(result["metrics"])
    if row.recipe == PAIRS:
        measured |= words_of_translations(folder)
    figures = {figure: measured[figure] for figure in (row.figure, *row.beside)}
    found = {
        "seed": seed,
        "figures": figures,
        **_validation(folder, row.figure),
        **_parameters(folder),
        **_at_work(folder),
        "seconds": round(training, 1),
        "wall_seconds": round(wall, 1),
        "rows_per_second": round(result["tokens"] / training, 1),
        "steps": result["steps"],
        "flops": result["flops"],
        "flops_per_row": round(result["flops"] / result["tokens"]),
    }
    if "spread" in result:
        found["spread"] = {figure: result["spread"][figure] for figure in figures}
    return found


def _validation(run: Path, figure: str) -> dict[str, float]:
    """Return the figure of the last evaluation in training, what settings may be chosen by, where it has it."""
    log = run / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.is_file() else []
    found = [line[figure] for line in lines if line["kind"] == "evaluation" and figure in line]
    return {"validation": found[-1]} if found else {}


def _parameters(run: Path) -> dict[str, int]:
    """Return how many parameters a run trained; nothing for a run over folds."""
    plan = run / "plan.json"
    return {"parameters": json.loads(plan.read_text("utf-8"))["parameters"]} if plan.is_file() else {}


def _at_work(run: Path) -> dict[str, float]:
    """Return the share of training steps that went by making batches, and their share of the measured peak."""
    logs = [path for path in (run / "timings.jsonl", *run.glob("folds/*/timings.jsonl")) if path.is_file()]
    steps = [json.loads(line) for log in logs for line in log.read_text("utf-8").splitlines()]
    steps = [step for step in steps if step["kind"] == "train"]
    if not steps:
        return {}
    seconds = [1.0 / step["tokens_per_second"] for step in steps]  # of a row; most steps have as many rows
    shares = {}
    for name in ("data_share", "peak_share"):
        mean = sum(s * (step[name] or 0.0) for s, step in zip(seconds, steps, strict=True)) / sum(seconds)
        shares[name] = round(mean, 4)
    return shares


def words_of_translations(run: Path) -> dict[str, float]:
    """Return BLEU and chrF of a run's test rows over words as its peer counts them."""
    test = PreparedRows(run / "data").test
    assert test is not None, "the rows of a benchmark have a test split"
    sources, references = zip(*values_of(test, "source", "target"), strict=True)
    answers = luban.load(run).predict(list(sources))
    return word_figures([answer["text"] for answer in answers], references)


def peer_of(peer: str, run: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Train a peer on the rows of a run."""
    arguments = [peer, str(run), "--minutes", str(minutes), "--seed", str(seed)]
    found = ran([sys.executable, str(PEER_FILE), *arguments], KERAS_BACKEND="torch")
    rate = found["rows"] / found["seconds"]
    return {**found, "seconds": round(found["seconds"], 1), "rows_per_second": round(rate, 1), "seed": seed}


def measure(name: str, options: argparse.Namespace, before: dict[str, Any] | None) -> dict[str, Any]:
    """Measure a row: luban and its peers in turn, seed by seed.

    Arguments:
        before: what was measured of the row earlier; with `--add`, its runs of the same command stay.

    Raises:
        InputError: `--add` to runs of another command.
    """
    row = ROWS[name]
    minutes = options.minutes if options.minutes and row.minutes else row.minutes
    folder = task_data.folder_of(row.data or name)
    command = shlex.join(command_of(name, minutes, 0)).replace(str(task_data.CACHE), "DATA")
    print(f"\n{name}\n  {command}", flush=True)
    runs: list[dict[str, Any]] = []
    peers: dict[str, list[dict[str, Any]]] = {} if options.no_peers else {peer: [] for peer in row.peers}
    if options.add and before is not None:
        if before["command"] != command:
            raise InputError("what was measured earlier is of another command", received=before["command"])
        runs += before["luban"]["runs"]
        peers = {peer: [*before["peers"][peer]["runs"]] for peer in peers if peer in before["peers"]}
    for seed in range(len(runs), len(runs) + (options.seeds or row.seeds)):
        with tempfile.TemporaryDirectory() as scratch:
            run = (options.runs or Path(scratch)) / f"{name}-{seed}"
            runs.append(trained(name, minutes, seed, run))
            print(f"  luban, seed {seed}: {told(runs[-1], row.figure)}", flush=True)
            for peer, found in peers.items():
                found.append(peer_of(peer, run, minutes, seed))
                print(f"  {peer}, seed {seed}: {told(found[-1], row.figure)}", flush=True)
            shutil.rmtree(run)
    return {
        "task": row.recipe,
        "command": command,
        "split_sha256": task_data.split_hash(folder),
        "minutes": minutes,
        "figure": row.figure,
        "at_least": row.at_least,
        "aim": row.aim,
        "note": row.note,
        "luban": {**summary(runs, row.figure), "runs": runs},
        "peers": {
            peer: {**summary(found, row.figure), "what": PEERS[peer].__doc__, "runs": found}
            for peer, found in peers.items()
        },
        "measured": time.strftime("%Y-%m-%d"),
        "machine": machine(),
    }


def told(run: dict[str, Any], figure: str) -> str:
    """Return a run in a few words."""
    note = f", {run['note']}" if "note" in run else ""
    return f"{figure} {run['figures'][figure]:.4f} in {run['seconds']:g} s, {run['rows_per_second']:g} rows/s{note}"


def summary(runs: Sequence[dict[str, Any]], figure: str) -> dict[str, Any]:
    """Return mean and standard deviation: over folds where a run has folds, else over seeds, None of one run."""
    values = [run["figures"][figure] for run in runs]
    folds = [run["spread"][figure] for run in runs if "spread" in run]
    over_seeds = statistics.stdev(values) if len(values) > 1 else None
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.fmean(folds) if folds else over_seeds,
        "sd_over": "folds" if folds else "seeds",
        "seeds": len(runs),
        "seconds": statistics.fmean(run["seconds"] for run in runs),
        "rows_per_second": statistics.fmean(run["rows_per_second"] for run in runs),
    }


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gflops_per_second": round(matrix_rate() / 1e9, 1),
        "load": round(os.getloadavg()[0], 2),
        "platform": platform.platform(),
    }


def table(results: dict[str, Any]) -> str:
    """Return all that was measured as a table."""
    lines = [
        "| data | figure | luban | at least | rows/s | peer | rows/s |",
        "|---|---|---:|---:|---:|---|---:|",
    ]
    for name, found in results.items():
        own, asked = found["luban"], found["at_least"]
        peers = [f"{peer} {_mean(one)}" for peer, one in found["peers"].items()]
        rates = [f"{one['rows_per_second']:,.0f}" for one in found["peers"].values()]
        cells = [name, found["figure"], _mean(own), "" if asked is None else f"{asked:g}"]
        cells += [f"{own['rows_per_second']:,.0f}", "; ".join(peers), "; ".join(rates)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(found: dict[str, Any]) -> str:
    digits = 2 if found["mean"] > 1.0 else 4
    spread = "" if found["sd"] is None else f" ± {found['sd']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{spread}"


def main() -> None:
    """Measure the rows asked for and put them into results/tasks.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(ROWS), metavar="NAME", default=list(ROWS))
    parser.add_argument("--seeds", type=int, help="runs of each row; default: as many as its minutes allow")
    parser.add_argument("--add", action="store_true", help="keep the runs there are and add further seeds")
    parser.add_argument("--runs", type=Path, help="where runs lie until they are measured")
    parser.add_argument("--minutes", type=float, help="budget of every run; default: the row's own")
    parser.add_argument("--no-peers", action="store_true", help="luban alone")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    for name in options.only:
        try:
            if options.list:
                print(f"{name}: {shlex.join(command_of(name, options.minutes or ROWS[name].minutes, 0))}")
                continue
            results[name] = measure(name, options, results.get(name))
        except InputError as error:
            print(f"{name}: {error}", flush=True)
            continue
        ordered = {row: results[row] for row in ROWS if row in results}
        options.out.write_text(json.dumps(ordered, indent=2) + "\n")
    if not options.list:
        print("\n" + table({row: results[row] for row in ROWS if row in results}))


if __name__ == "__main__":
    main()
