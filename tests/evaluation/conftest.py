"""A run folder as a real run leaves it, made up: the same bytes every time."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ENGLISH = [
    "the th a e tho s and an t he thes or wit, I me the lo the the an wher.",
    "That I the king of my lord, and so he was the most of me,\nAnd with the world to thee.",
    "What says my lord? the prince is gone to night,\nAnd we must follow where his banners are.",
    "Good my lord, I never knew a man\nSo patient in his grief: the crown\nWas lighter than his hand.",
]
CHINESE = [
    "的山不人风一月",
    "山中月色一江秋，不见人来水自流。",
    "春风不度关山月，夜夜清光照客愁。",
    "江上孤帆随雁远，楼头明月向人圆。",
]


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _append(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _logs(folder: Path, steps: int) -> None:
    rng = random.Random(7)
    metrics: list[dict[str, Any]] = []
    timings: list[dict[str, Any]] = []
    samples = []
    seconds = 0.0
    for step in range(1, steps + 1):
        done = step / steps
        floor = 3.05 + 5.25 * math.exp(-done * 9) + 0.5 * (1 - done)
        rate = 3e-3 * min(1.0, step / (0.02 * steps)) * min(1.0, (1 - done) / 0.5 + 1e-3)
        speed = 41_000 * (1 + 0.03 * rng.gauss(0, 1)) * (0.7 if step < 8 or step % 173 == 0 else 1.0)
        seconds += 4096 / speed
        norm = 0.6 + 2.5 * math.exp(-done * 20) + abs(rng.gauss(0, 0.12)) + (4 if step == steps // 3 else 0)
        common = {"step": step, "tokens": step * 4096}
        loss = floor + rng.gauss(0, 0.09)
        metrics.append(
            {
                "kind": "train",
                **common,
                "epoch": step * 4096 / 290_000,
                "loss": loss,
                "learning_rate": rate,
                "gradient_norm": norm,
            }
        )
        flops = speed * 6 * 3.2e6
        timings.append(
            {
                "kind": "train",
                "step": step,
                "seconds": seconds,
                "tokens_per_second": speed,
                "flops_per_second": flops,
                "peak_share": flops / 1.9e12,
            }
        )
        if step % (steps // 12) == 0:
            held = floor + 0.18 + 0.01 * rng.gauss(0, 1)
            metrics.append(
                {
                    "kind": "evaluation",
                    **common,
                    "loss": held,
                    "bits_per_byte": held / 2.31,
                    "perplexity": math.exp(held),
                }
            )
            timings.append({"kind": "evaluation", "step": step, "seconds": seconds, "took": 1.31})
            timings.append({"kind": "checkpoint", "step": step, "seconds": seconds, "took": 0.09})
        if step % (steps // 4) == 0:
            at = step // (steps // 4) - 1
            samples.append({"step": step, "prompt": "My lord,", "text": " " + ENGLISH[at]})
            samples.append({"step": step, "prompt": "明月", "text": "明月" + CHINESE[at]})
    _append(folder / "metrics.jsonl", metrics)
    _append(folder / "timings.jsonl", timings)
    _append(folder / "samples.jsonl", samples)


def _data_report() -> dict[str, Any]:
    change = {
        "file": "plays.txt",
        "line": 18_402,
        "before": "Enter\u00a0Hamlet,\x07 reading",
        "after": "Enter Hamlet, reading",
    }
    return {
        "files": [
            {
                "name": "plays.txt",
                "bytes": 1_115_394,
                "sha256": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                "rows": 7222,
            },
            {
                "name": "唐诗三百首.jsonl.gz",
                "bytes": 214_002,
                "sha256": "b1946ac92492d2347c6235b4d2611184b1946ac92492d2347c6235b4d2611184",
                "rows": 320,
            },
        ],
        "rows": 7542,
        "characters": 1_189_204,
        "bytes": 1_329_396,
        "bad_rows": {
            "total": 3,
            "kinds": {
                "broken_json": {
                    "count": 2,
                    "left_out": True,
                    "examples": [
                        {
                            "file": "唐诗三百首.jsonl.gz",
                            "line": 77,
                            "detail": "Unterminated string at column 14",
                        }
                    ],
                },
                "invalid_utf8": {
                    "count": 1,
                    "left_out": True,
                    "examples": [{"file": "plays.txt", "line": 901, "detail": "byte 0xff at column 3"}],
                },
                "crlf": {
                    "count": 41,
                    "left_out": False,
                    "examples": [{"file": "plays.txt", "line": 12, "detail": "\\r\\n"}],
                },
            },
        },
        "cleaning": [
            {"step": "unicode", "effect": "changed", "count": 214, "examples": [change]},
            {"step": "control_characters", "effect": "changed", "count": 9, "examples": [change]},
            {"step": "min_characters", "effect": "removed", "count": 0, "examples": []},
            {
                "step": "exact_duplicates",
                "effect": "removed",
                "count": 31,
                "examples": [
                    {"file": "plays.txt", "line": 77, "before": "Exeunt.", "after": "same as plays.txt:45"}
                ],
            },
            {
                "step": "near_duplicates",
                "effect": "removed",
                "count": 5,
                "examples": [
                    {
                        "file": "plays.txt",
                        "line": 6120,
                        "before": "Sound trumpets! let our bloody colours wave!",
                        "after": "like plays.txt:3110 (similarity 0.91)",
                    }
                ],
            },
        ],
        "languages": {"en": 0.861, "zh": 0.131, "other": 0.008},
        "split": {
            "train": {"documents": 7129, "characters": 1_129_744, "bytes": 1_262_926, "tokens": 379_112},
            "validation": {"documents": 377, "characters": 59_460, "bytes": 66_470, "tokens": 19_986},
            "overlap": {
                "exact": 0,
                "near": 2,
                "examples": [
                    {
                        "validation": {
                            "file": "plays.txt",
                            "line": 31,
                            "text": "Flourish. Exeunt all but Hamlet.",
                        },
                        "train": {
                            "file": "plays.txt",
                            "line": 904,
                            "text": "Flourish. Exeunt all, but Hamlet.",
                        },
                    }
                ],
            },
        },
        "tokenizer": {"kind": "bpe", "vocab_size": 4096, "bytes_per_token": 3.331, "unknown": 0},
    }


def _verdict(folder: Path, steps: int) -> None:
    figures = {
        "bits_per_byte": (1.4012, 1.3811, 1.4219),
        "loss": (3.2361, 3.1896, 3.2839),
        "perplexity": (25.434, 24.279, 26.679),
    }
    _write(
        folder / "evaluation.json",
        {
            "primary": {"name": "bits_per_byte", "value": 1.4012, "direction": "min"},
            "metrics": {
                name: {"value": v, "low": low, "high": high} for name, (v, low, high) in figures.items()
            },
            "counts": {"documents": 377, "tokens": 19_986, "bytes": 66_470, "characters": 59_460},
            "worst": [
                {"text": "Caelo tonantem credidimus Iovem", "bits_per_byte": 4.812},
                {"text": "故人西辭黃鶴樓，煙花三月下揚州。", "bits_per_byte": 3.906},
            ],
            "best": [
                {"text": "My lord, I will.\nGood night, my lord.", "bits_per_byte": 0.731},
                {"text": "Enter the King and Queen.", "bits_per_byte": 0.802},
            ],
        },
    )
    _write(
        folder / "result.json",
        {
            "status": "finished",
            "task": "language-model",
            "primary": {"name": "bits_per_byte", "value": 1.4012, "direction": "min"},
            "metrics": {name: value[0] for name, value in figures.items()},
            "seconds": 178.2,
            "steps": steps,
            "tokens": steps * 4096,
            "flops": steps * 4096 * 6 * 3.2e6,
            "peak_rss_bytes": 1_204_000_000,
            "model": "model",
        },
    )


def make_run(folder: Path, steps: int = 1800, *, end: str = "finished") -> Path:
    """Fill `folder` as a run that ended as `end` says ("running": it has no end)."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {
        "task": "language-model",
        "data": {"source": "plays.txt", "tokenizer": "bpe", "vocab_size": 4096, "length": 256},
        "model": {"layout": "qwen3", "layers": 6, "width": 192, "heads": 6, "tied": True},
        "train": {"minutes": 3, "batch": 16, "optimizer": "muon", "learning_rate": 0.003, "schedule": "wsd"},
        "evaluate": {"primary": "bits_per_byte", "prompts": ["My lord,", "明月"]},
    }
    _write(folder / "recipe.json", recipe)
    _write(
        folder / "machine.json",
        {
            "device": "cpu",
            "name": "Intel(R) Core(TM) i5-1035G1 CPU @ 1.00GHz",
            "cores": 2,
            "threads": 2,
            "memory_bytes": 8_254_000_000,
            "dtype": "bfloat16",
            "why": "bfloat16 runs at 4.6x of float32 here",
            "peak_flops": 1.9e12,
            "bandwidth": 17.3e9,
            "torch": "2.13.0",
            "python": "3.11.9",
            "platform": "Linux x86_64",
        },
    )
    plan = {
        "steps": steps,
        "compile": True,
        "compile_why": "asked for",
        "dtype": "bfloat16",
        "parameters": 3_214_848,
        "step_flops": 4096 * 6 * 3.2e6,
        "data": "data",
    }
    _write(folder / "plan.json", plan)
    _write(folder / "data" / "report.json", _data_report())
    _logs(folder, steps)
    events = [{"time": "2025-03-01T09:12:04+00:00", "event": "started", "message": ""}]
    if end != "running":
        message = {"failed": "the loss became NaN at step 1801", "stopped": "SIGTERM"}.get(end, "")
        events.append({"time": "2025-03-01T09:15:21+00:00", "event": end, "message": message})
    _append(folder / "events.jsonl", events)
    if end == "finished":
        _verdict(folder, steps)
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests read it and do not change it."""
    return make_run(tmp_path_factory.mktemp("runs") / "shakespeare")


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Path]:
    """Make a run folder of one's own."""
    return lambda **options: make_run(tmp_path / "run", **{"steps": 60, **options})
