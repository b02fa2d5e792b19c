"""Run folders of the tasks on rows, made up by hand: the same bytes every time."""

import base64
import json
import math
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Evaluation = dict[str, Any]

CLOTHES = [
    "T-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]


def _tokens(text: str) -> list[str]:
    return text.split()


def png(width: int, height: int, seed: int) -> str:
    """Return a grey PNG of a blot, as base64."""
    down, across = np.mgrid[:height, :width]
    shade = np.hypot(down - height / 2, (across - width / 2) * (1 + seed % 3)) / height * 2
    pixels = (255 * np.clip(1 - shade, 0, 1)).astype(np.uint8)
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def metrics(**values: float) -> dict[str, Any]:
    return {
        name: {"value": v, "low": v - 0.02 * abs(v), "high": v + 0.018 * abs(v)} for name, v in values.items()
    }


def roc_points(sharpness: float) -> list[list[float]]:
    return [[x / 50, (x / 50) ** (1 / sharpness)] for x in range(51)]


def classification(labels: list[str], seed: int = 5, *, curves: int | None = None) -> Evaluation:
    """A classifier that confuses neighbours now and then."""
    rng = random.Random(seed)
    size = len(labels)
    confusion = [
        [
            rng.randrange(80, 120) if a == b else rng.randrange(0, 14 if abs(a - b) < 3 else 2)
            for b in range(size)
        ]
        for a in range(size)
    ]
    per_class = []
    for at, label in enumerate(labels):
        recall = confusion[at][at] / sum(confusion[at])
        precision = confusion[at][at] / sum(row[at] for row in confusion)
        f1 = 2 * precision * recall / (precision + recall)
        told = {"label": label, "precision": precision, "recall": recall, "f1": f1}
        per_class.append({**told, "support": sum(confusion[at])})
    drawn = labels[1:2] if size == 2 else labels[: curves or 10]
    bins = [
        {
            "low": n / 15,
            "high": (n + 1) / 15,
            "confidence": (n + 0.5) / 15 if n > 3 else None,
            "accuracy": max(0.0, (n + 0.5) / 15 - 0.09) if n > 3 else None,
            "count": n**3 if n > 3 else 0,
        }
        for n in range(15)
    ]
    sharp = [2 + 9 * rng.random() for _ in drawn]
    return {
        "labels": labels,
        "confusion": confusion,
        "per_class": per_class,
        "roc": [
            {"label": label, "points": roc_points(s), "auc": s / (s + 1)}
            for label, s in zip(drawn, sharp, strict=True)
        ],
        "precision_recall": [
            {
                "label": label,
                "points": [[x / 40, 1 - 0.6 * (x / 40) ** s] for x in range(41)],
                "average_precision": 1 - 0.6 / (s + 1),
            }
            for label, s in zip(drawn, sharp, strict=True)
        ],
        "reliability": {"bins": bins, "ece": 0.0873},
        "temperature": 1.42,
    }


def images() -> Evaluation:
    confused = [("shirt", "T-shirt", 0.93), ("coat", "pullover", 0.91), ("sneaker", "ankle boot", 0.88)]
    return {
        "metrics": metrics(accuracy=0.8713, macro_f1=0.8695, log_loss=0.3521, roc_auc=0.985, ece=0.0873),
        "primary": {"name": "accuracy", "value": 0.8713, "direction": "max"},
        "counts": {"rows": 10_000},
        "classification": classification(CLOTHES),
        "baselines": [
            {"name": "majority", "metrics": {"accuracy": 0.1, "macro_f1": 0.0182}},
            {"name": "logistic regression on pixels", "metrics": {"accuracy": 0.8402, "macro_f1": 0.8391}},
        ],
        "errors": [
            {
                "parts": [{"kind": "picture", "png": png(28, 28, at)}],
                "expected": expected,
                "answers": [[said, sure], [expected, 0.97 - sure], ["bag", 0.03]],
                "where": f"t10k-images-idx3-ubyte:{at * 371 + 12}",
            }
            for at, (expected, said, sure) in enumerate(confused * 2)
        ],
    }


def texts() -> Evaluation:
    review = "A film that wants to be clever and is merely long. " * 9
    return {
        "metrics": metrics(accuracy=0.8891, macro_f1=0.8890, roc_auc=0.954, log_loss=0.2893),
        "primary": {"name": "accuracy", "value": 0.8891, "direction": "max"},
        "counts": {"rows": 2_500},
        "classification": classification(["negative", "positive"]),
        "notes": [
            {"kind": "overlap", "detail": "12 of 2,500 held-out rows stand in training too: figures flatter"},
            {"kind": "new_kind", "detail": "<b>anything</b>"},
        ],
        "slices": [
            {
                "column": "language",
                "value": "en",
                "rows": 2100,
                "metrics": metrics(accuracy=0.8921, macro_f1=0.89),
            },
            {
                "column": "language",
                "value": "中文",
                "rows": 380,
                "metrics": metrics(accuracy=0.812, macro_f1=0.80),
            },
            {
                "column": "length",
                "value": "short",
                "rows": 20,
                "metrics": metrics(accuracy=0.95, macro_f1=0.94),
            },
        ],
        "baselines": [{"name": "naive Bayes on words", "metrics": {"accuracy": 0.8821, "macro_f1": 0.88}}],
        "errors": [
            {
                "parts": [
                    {"kind": "text", "text": review if at % 2 else "这部电影不算差，但也不值得再看一遍。"}
                ],
                "expected": "negative",
                "answers": [["positive", 0.99 - at / 50], ["negative", 0.01 + at / 50]],
                "where": f"reviews/test.csv:{at * 91 + 7}",
            }
            for at in range(5)
        ],
    }


def tables() -> Evaluation:
    rng = random.Random(3)
    truth = sorted(math.exp(rng.gauss(12, 0.5)) / 1e3 for _ in range(400))
    row = {
        "rooms": 5.2,
        "median_income": 3.1,
        "coast": True,
        "town": "Wörgl",
        "built": None,
        "note": "x" * 300,
    }
    return {
        "metrics": metrics(rmse=31.2, mae=22.4, r2=0.842),
        "primary": {"name": "rmse", "value": 31.2, "direction": "min"},
        "counts": {"rows": 4_128},
        "regression": {
            "points": [[t, t * math.exp(rng.gauss(0, 0.13))] for t in truth],
            "residuals": {
                "edges": [-100 + 10 * n for n in range(21)],
                "counts": [round(900 * math.exp(-((n - 9.5) ** 2) / 9)) for n in range(20)],
            },
        },
        "baselines": [
            {"name": "mean", "metrics": {"rmse": 78.9, "r2": 0.0}},
            {"name": "gradient boosting", "metrics": {"rmse": 27.0, "mae": 19.9}},
        ],
        "folds": [
            {"fold": n + 1, "metrics": {"rmse": 30 + n * 0.7, "mae": 22 + n * 0.3, "r2": 0.84 - n / 200}}
            for n in range(5)
        ],
        "notes": [{"kind": "leak", "detail": "price_in_dollars tells price of 100 % of the rows"}],
        "errors": [
            {
                "parts": [{"kind": "cells", "cells": row}],
                "expected": "412.0",
                "answers": [["", 207.3]],
                "where": "houses.csv:811",
            },
            {
                "parts": [{"kind": "cells", "cells": {f"column {n}": n for n in range(40)}}],
                "expected": "88",
                "answers": [["", 199.04]],
                "where": "houses.csv:14",
            },
        ],
    }


def translations() -> Evaluation:
    source, answer = _tokens("Das Haus am See ist alt ."), _tokens("The house by the lake is old .")
    weights = [[math.exp(-((r * 6 / 7 - c) ** 2)) for c in range(len(source))] for r in range(len(answer))]
    pair = {
        "kind": "pair",
        "source": "Er hat den Zug verpasst.",
        "reference": "He missed the train.",
        "answer": "He has the train the past.",
    }
    return {
        "metrics": metrics(bleu=27.31, chrf=53.2),
        "primary": {"name": "bleu", "value": 27.31, "direction": "max"},
        "counts": {"rows": 1_000},
        "translation": {"signature": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.5.1"},
        "baselines": [{"name": "copy of the source", "metrics": {"bleu": 3.1, "chrf": 18.0}}],
        "errors": [
            {
                "parts": [pair, {"kind": "attention", "rows": answer, "columns": source, "weights": weights}],
                "expected": "",
                "answers": [],
                "where": "test.de:17",
            },
            {
                "parts": [
                    {
                        **pair,
                        "source": "我昨天在图书馆读了一本书。",
                        "reference": "I read a book in the library yesterday.",
                        "answer": "Yesterday I in the library a book.",
                    }
                ],
                "where": "test.de:412",
            },
        ],
    }


def entities() -> Evaluation:
    words = _tokens(
        "The delegation of Baden met Angela Merkel and the mayor of New York in Bad Homburg on Friday ."
    )
    right = _tokens("O O O B-ORG O B-PER I-PER O O O O B-LOC I-LOC O B-LOC I-LOC O O O")
    said = _tokens("O O O B-LOC O B-PER I-PER O O O O B-LOC I-LOC O B-PER I-PER O O O")
    types = [
        ("PER", 0.94, 0.92, 1617),
        ("LOC", 0.91, 0.93, 1668),
        ("ORG", 0.83, 0.86, 1661),
        ("MISC", 0.72, 0.69, 702),
    ]
    chinese = [
        {
            "kind": "tokens",
            "tokens": list("江南制造局在上海成立"),
            "expected": ["B-ORG", *["I-ORG"] * 4, "O", "B-LOC", "I-LOC", "O", "O"],
            "answer": ["B-LOC", "I-LOC", "O", "O", "O", "O", "B-LOC", "I-LOC", "O", "O"],
        }
    ]
    return {
        "metrics": metrics(
            entity_f1=0.8812, entity_precision=0.879, entity_recall=0.8834, token_accuracy=0.972
        ),
        "primary": {"name": "entity_f1", "value": 0.8812, "direction": "max"},
        "counts": {"rows": 3_453},
        "entities": {
            "per_type": [
                {"label": n, "precision": p, "recall": r, "f1": 2 * p * r / (p + r), "support": s}
                for n, p, r, s in types
            ]
        },
        "errors": [
            {
                "parts": [{"kind": "tokens", "tokens": words, "expected": right, "answer": said}],
                "expected": "",
                "answers": [],
                "where": "eng.testb:2210",
            },
            {"parts": chinese, "where": "msra.txt:88"},
            {
                "parts": [
                    {
                        "kind": "tokens",
                        "tokens": [f"word{n}" for n in range(200)],
                        "expected": ["O"] * 200,
                        "answer": ["O"] * 150 + ["B-PER"] * 50,
                    }
                ],
                "where": "long.txt:1",
            },
        ],
    }


KINDS: dict[str, tuple[str, Callable[[], Evaluation]]] = {
    "image-classification": ("pictures/", images),
    "text-classification": ("reviews.csv", texts),
    "table": ("houses.csv", tables),
    "translation": ("corpus.de-en.tsv", translations),
    "sequence-labelling": ("eng.train", entities),
}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def make_row_run(folder: Path, task: str, steps: int = 400, *, end: str = "finished") -> Path:
    """Fill `folder` as a run of a task on rows."""
    source, made = KINDS[task]
    evaluation = {**made(), "worst": [], "best": []}
    primary = evaluation["primary"]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "recipe.json", {"task": task, "data": {"train": source}, "train": {"epochs": 4}})
    machine = {"device": "cpu", "cores": 2, "threads": 2, "dtype": "float32", "peak_flops": 9e10}
    write_json(folder / "machine.json", machine)
    write_json(folder / "plan.json", {"parameters": 94_210, "step_flops": 64 * 3.1e6})
    write_json(
        folder / "data" / "report.json",
        {
            "files": [{"name": source, "bytes": 30_000_000, "sha256": "ab" * 32, "rows": 70_000}],
            "rows": 70_000,
            "bytes": 30_000_000,
            "bad_rows": {
                "total": 2,
                "kinds": {
                    "unknown_label": {
                        "count": 2,
                        "examples": [
                            {"file": source, "line": 3, "detail": "no training row has the label 'x'"}
                        ],
                    }
                },
            },
            "split": {
                "rule": "rows",
                "seed": 0,
                "train": {"rows": 54_000},
                "validation": {"rows": 6_000},
                "test": {"rows": 10_000},
                "overlap": {"exact": 0, "near": 0, "examples": []},
            },
            "columns": {"text": "review", "label": "stars"},
            "notes": evaluation.get("notes", [])[:1],
        },
    )
    rng = random.Random(1)
    logged, timings = [], []
    for step in range(1, steps + 1):
        done = step / steps
        common = {"step": step, "tokens": step * 64}
        loss = 0.3 + 2 * math.exp(-6 * done) + 0.05 * rng.random()
        logged.append(
            {
                "kind": "train",
                **common,
                "loss": loss,
                "learning_rate": 1e-3 * (1 - done),
                "gradient_norm": 1 + rng.random(),
            }
        )
        timings.append(
            {
                "kind": "train",
                "step": step,
                "seconds": step / 20,
                "tokens_per_second": 1280 + rng.randrange(90),
                "peak_share": 0.2,
            }
        )
        if step % (steps // 8) == 0:
            reached = primary["value"] * (
                1 - 0.3 * math.exp(-5 * done) * (1 if primary["direction"] == "max" else -1)
            )
            more = (
                {"log_loss": loss + 0.05, "macro_f1": reached - 0.01}
                if "classification" in evaluation
                else {}
            )
            logged.append({"kind": "evaluation", **common, primary["name"]: reached, **more})
    for name, rows in (("metrics", logged), ("timings", timings)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = [{"time": "2026-03-01T09:12:04+00:00", "event": "started", "message": ""}]
    if end == "finished":
        events.append({"time": "2026-03-01T09:15:21+00:00", "event": "finished", "message": ""})
        write_json(folder / "evaluation.json", evaluation)
        values = {name: metric["value"] for name, metric in evaluation["metrics"].items()}
        result = {
            "status": "finished",
            "task": task,
            "primary": primary,
            "metrics": values,
            "seconds": steps / 20,
        }
        write_json(
            folder / "result.json",
            {**result, "steps": steps, "tokens": steps * 64, "flops": steps * 64 * 3.1e6},
        )
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder
