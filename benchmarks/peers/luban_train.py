"""`luban train`, the verb itself; settings `adamw`, `muon` or `gpt2-adamw`, with `-kernels` or `-compile` behind it.

What is timed are the steps of timings.jsonl: each from the end of the step before it to its own, with its
batch, its optimizer and its line in the log, without evaluations. Memory is that of the whole verb, its
rehearsal and its evaluation of held-out text included.
"""

from __future__ import annotations

import json
import subprocess
import sys

from measured import BATCH, LENGTH, TOKENS, asked


def main() -> None:
    options = asked()
    shape = options.shape
    parts = options.setting.split("-")
    gpt2 = "gpt2" in parts
    run = options.scratch / "run"
    settings = {
        "data.source": options.text.resolve(), "data.validation_fraction": 0.02, "data.length": LENGTH,
        "data.short_steps": 0,
        "model.layout": "gpt2" if gpt2 else "qwen3", "model.layers": shape.layers, "model.width": shape.width,
        "model.heads": shape.heads, "model.mlp_width": 4 * shape.width if gpt2 else shape.mlp_width,
        "train.minutes": "null", "train.steps": options.total, "train.batch": BATCH, "train.learning_rate": 1e-3,
        "train.optimizer": "muon" if "muon" in parts else "adamw", "train.evaluate_every": "100h",
        "train.checkpoint_every": "100h",
    }  # fmt: skip
    if "compile" in parts:
        settings["train.compile"] = "on"
    settings["train.kernels"] = "on" if "kernels" in parts else "off"
    overrides = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "luban", "train", "shakespeare-char", *overrides, "--out", str(run)]
    subprocess.run(command, check=True)
    for line in (run / "timings.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "train":
            before = options.measured.ends[-1] if options.measured.ends else 0.0
            options.measured.ends.append(before + TOKENS / record["tokens_per_second"])
    for line in (run / "metrics.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] == "train":
            options.measured.losses.append(record["loss"])
    plan = json.loads((run / "plan.json").read_text("utf-8"))
    options.measured.write(
        dtype=plan["dtype"],
        parameters=plan["parameters"],
        settings={name: plan[name] for name in ("kernels", "compile", "dtype", "threads")},
    )


if __name__ == "__main__":
    main()
