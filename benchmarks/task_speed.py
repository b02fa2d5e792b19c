"""Rows per second of training, task by task, beside Keras: the same network, rows and batch on both sides.

    python benchmarks/task_speed.py --peers .venv-peers/bin/python [--only CASE ...] [--rounds 3]

luban is `luban train` with the settings that make its network one that Keras has: no evidence beside a text's
network, no CRF and no characters for tags, the plain perceptron for tables, no changes of pictures. Each side
trains in a process of its own, in turn; the median step after the warm-up counts, from the end of one to the
end of the next. What luban makes of its own defaults, which do more, stands in tasks.json. Translation's peer is
timed there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import task_data
import torch
from children import ChildError, heed_termination, run_child, undisturbed
from figures import Spread, put_section, spread, step_rate, table

from luban.data.row_sets import PreparedRows
from luban.machine import choose_dtype, device_name

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "task_speed.json"
PLAIN = (
    "train.minutes=null",
    "train.optimizer=adamw",
    "train.evaluate_every=100h",
    "train.checkpoint_every=100h",
)
PERCENTILE = 95


@dataclass(frozen=True)
class Case:
    """A network on a data set.

    Attributes:
        data: the data set, by its name in task_data. recipe: of luban. overrides: what makes the networks equal.
        batch: rows of a step. warmup, steps: how many are not timed, and how many are.
        arrays: what Keras is given of the rows that luban prepared.
    """

    data: str
    recipe: str
    overrides: tuple[str, ...]
    batch: int
    warmup: int
    steps: int
    arrays: Callable[[PreparedRows], dict[str, Any]]


def _padded(data: PreparedRows, name: str, length: int, fill: int) -> np.ndarray:
    """Return a ragged column of the training rows as one array: cut at `length`, filled up behind."""
    columns, lengths = data.train.gather(np.arange(len(data.train)))
    found = np.full((len(data.train), length), fill, np.int32)
    width = min(length, columns[name].shape[1])
    inside = np.arange(width) < lengths[name][:, None]
    found[:, :width] = np.where(inside, columns[name][:, :width], fill)
    return found


def _usual_length(data: PreparedRows, name: str) -> int:
    return int(np.percentile(data.train.lengths(name), PERCENTILE))


def _texts(data: PreparedRows) -> dict[str, Any]:
    length = max(5, _usual_length(data, "ids"))
    return {
        "ids": _padded(data, "ids", length, 0),
        "label": np.asarray(data.train.column("label"), np.int32),
        "vocab_size": data.fitted.tokenizers[""].vocab_size,
        "classes": len(data.fitted.state["labels"]),
    }


def _tags(data: PreparedRows) -> dict[str, Any]:
    length = _usual_length(data, "words")
    ids, label = _padded(data, "words", length, 0), _padded(data, "tags", length, -1)
    return {"ids": ids, "label": label, "vocab_size": int(ids.max()) + 1, "classes": int(label.max()) + 1}


def _tables(data: PreparedRows) -> dict[str, Any]:
    numbers = np.nan_to_num(np.asarray(data.train.column("numbers"), np.float32))
    codes = np.maximum(np.asarray(data.train.column("categories"), np.int32), 0)
    return {
        "numbers": numbers,
        "categories": codes,
        "sizes": codes.max(0) + 1,
        "label": np.asarray(data.train.column("label"), np.int32),
        "classes": len(data.fitted.state["labels"]),
    }


def _pictures(data: PreparedRows) -> dict[str, Any]:
    label = np.asarray(data.train.column("label"), np.int32)
    return {"image": np.asarray(data.train.column("image")), "label": label, "classes": int(label.max()) + 1}


CASES = {
    "texts": Case("sst2", "text-classification", ("model.evidence=false",), 64, 20, 150, _texts),
    "tags": Case(
        "resume-ner", "sequence-labelling",
        ("model.crf=false", "model.characters=0", "model.pairs=0", "model.unknown=0"), 32, 20, 60, _tags,
    ),
    "tables": Case("adult", "tabular", ("model.network=mlp",), 256, 20, 200, _tables),
    "pictures": Case("mnist", "image-classification", ("data.augment.shift=0",), 128, 10, 60, _pictures),
}  # fmt: skip


def luban(case: Case, run: Path, log: Path) -> dict[str, Any]:
    """Train with `luban train`; returns the ends of its steps and what it says of itself."""
    folder = task_data.folder_of(case.data)
    settings = [
        *PLAIN,
        *case.overrides,
        f"train.batch={case.batch}",
        f"train.steps={case.warmup + case.steps}",
    ]
    command = [
        sys.executable,
        "-m",
        "luban",
        "train",
        case.recipe,
        f"data.train={task_data.part(folder, 'train')}",
    ]
    child = run_child([*command, *settings, "--out", str(run)], log)
    lines = [json.loads(line) for line in (run / "timings.jsonl").read_text("utf-8").splitlines()]
    ends = [0.0]
    for line in lines:
        if line["kind"] == "train":
            ends.append(ends[-1] + case.batch / line["tokens_per_second"])
    plan = json.loads((run / "plan.json").read_text("utf-8"))
    return {
        "rate": step_rate(ends[1:], case.warmup, case.batch),
        "parameters": plan["parameters"],
        "dtype": plan["dtype"],
        "neighbours": child.neighbours,
    }


def keras(name: str, setting: str, arrays: Path, scratch: Path, python: Path) -> dict[str, Any]:
    """Train with Keras on luban's arrays."""
    case, out = CASES[name], scratch / "keras.json"
    command = [str(python), str(HERE / "peers" / "keras_tasks.py"), name, str(arrays), "--setting", setting]
    command += ["--batch", str(case.batch), "--steps", str(case.warmup + case.steps), "--out", str(out)]
    child = run_child(command, scratch / "log.txt")
    found = json.loads(out.read_text("utf-8"))
    return {
        "rate": step_rate(found["ends"], case.warmup, case.batch),
        "parameters": found["parameters"],
        "dtype": found["policy"],
        "neighbours": child.neighbours,
    }


def measured(name: str, setting: str, scratch: Path, python: Path) -> tuple[dict[str, Any], float]:
    """Run one side of a case once; returns its figures and what neighbours took."""
    case, arrays = CASES[name], scratch / f"{name}.npz"
    try:
        if setting == "luban":
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                found = luban(case, Path(folder) / "run", scratch / "log.txt")
                if not arrays.is_file():
                    np.savez(arrays, **case.arrays(PreparedRows(Path(folder) / "run" / "data")))
        else:
            found = keras(name, setting, arrays, scratch, python)
    except ChildError as error:
        return {"case": name, "setting": setting, "failed": str(error)}, 0.0
    return {"case": name, "setting": setting, **found}, found["neighbours"]


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return of each case and setting the spread of its rounds."""
    found: dict[str, Any] = {}
    for row in rows:
        if "failed" not in row:
            found.setdefault(row["case"], {}).setdefault(row["setting"], []).append(row)
    return {
        case: {
            setting: {
                "rows_per_second": dataclasses.asdict(spread([one["rate"] for one in ones])),
                "rounds": len(ones),
                **{key: ones[-1][key] for key in ("parameters", "dtype")},
            }
            for setting, ones in settings.items()
        }
        for case, settings in found.items()
    }


def page(result: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = []
    for name, settings in result["summary"].items():
        own = settings["luban"]["rows_per_second"]["median"]
        for setting, row in settings.items():
            rate = Spread(**row["rows_per_second"])
            lines.append([
                f"{name} ({CASES[name].data}, {CASES[name].batch} a step)",
                "`luban train`" if setting == "luban" else f"Keras, {setting}",
                f"{row['parameters']:,}", row["dtype"],
                f"{rate.median:,.0f} ({rate.low:,.0f} to {rate.high:,.0f})", f"{own / rate.median:.2f}",
            ])  # fmt: skip
    head = ["case", "tool", "parameters", "computes in", "rows/s", "luban's rate to this"]
    rounds = max((row["rounds"] for one in result["summary"].values() for row in one.values()), default=0)
    text = f"{rounds} rounds on {result['processor']}; the median, least and most of whole steps."
    return table(head, lines) + "\n\n" + text


def main() -> None:
    """Measure the cases asked for, and write results and table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, required=True, help="Python of the peers' environment")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="in results/: fills the section of that name in README.md"
    )
    options = parser.parse_args()
    heed_termination()
    settings = ["luban", "torch-shipped", "jax-shipped"]
    if choose_dtype(256, 1024)[0] is torch.bfloat16:
        settings.append("jax-bf16")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(options.rounds):
            for name in options.only:
                for setting in settings:
                    row = undisturbed(partial(measured, name, setting, Path(scratch), options.peers))
                    rows.append(row)
                    said = row.get("failed") or f"{row['rate']:,.0f} rows/s"
                    print(f"  {name:10} {setting:14} {said}", flush=True)
                    result = {"processor": device_name(), "summary": summarise(rows), "rows": rows}
                    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print("\n" + page(result))
    if options.out.resolve().parent == RESULTS.parent:
        put_section(HERE / "README.md", options.out.stem, page(result))


if __name__ == "__main__":
    main()
