"""Characters of Shakespeare: nanoGPT's CPU quickstart beside `luban train shakespeare-char`, interleaved, seed by seed.

Usage:
    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/nanogpt.py --nanogpt nanoGPT --text input.txt [--seeds 3] [--out RESULTS]

nanoGPT runs as its README says for a CPU (4 layers, 128 wide, length 64, batch 12, 2,000 steps) and prints its loss on
random windows of the last tenth of the text. luban trains for the wall-clock time that nanoGPT's training took, for as
many tokens as nanoGPT saw, and for two minutes, and is measured on all of that tenth. Needs `requests` and `numpy` for
nanoGPT's own scripts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from children import commit_of
from figures import put_section, table

from luban.machine import device_name

FLAGS = {
    "device": "cpu", "compile": False, "eval_iters": 200, "log_interval": 100, "block_size": 64, "batch_size": 12,
    "n_layer": 4, "n_head": 4, "n_embd": 128, "max_iters": 2000, "lr_decay_iters": 2000, "dropout": 0.0,
    "eval_interval": 2000,
}  # fmt: skip
QUICKSTART = [f"--{name}={value}" for name, value in FLAGS.items()]
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "nanogpt.json"
BUDGETS = {
    "nanogpt": "nanoGPT, its CPU quickstart",
    "luban": "`luban train shakespeare-char`, the same time",
    "luban-tokens": "`luban train shakespeare-char`, the same tokens",
    "luban-longer": "`luban train shakespeare-char`, two minutes",
}


def nanogpt(folder: Path, seed: int) -> dict[str, float]:
    """Run nanoGPT's quickstart; returns the loss it prints, and the seconds of training without its evaluations."""
    script = (folder / "train.py").read_text()
    (folder / "train_seeded.py").write_text(
        script.replace("torch.manual_seed(1337", f"torch.manual_seed({1337 + seed}")
    )
    command = [sys.executable, "-u", "train_seeded.py", "config/train_shakespeare_char.py", *QUICKSTART]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = last = loss = 0.0
    for line in process.stdout:
        if line.startswith("iter 0:"):
            first = time.monotonic()
        if line.startswith("iter 1900:"):
            last = time.monotonic()
        if match := re.match(r"step 2000: .*val loss ([\d.]+)", line):
            loss = float(match[1])
    assert process.wait() == 0
    return {"loss": loss, "seconds": (last - first) * 2000 / 1900, "tokens": 12 * 64 * 2000}


def luban(text: Path, seed: int, budget: Sequence[str], out: Path) -> dict[str, float]:
    """Train with a budget of the recipe; returns the loss over all of the held-out tenth."""
    settings = [f"data.source={text}", *budget, f"train.seed={seed}"]
    command = [
        sys.executable,
        "-m",
        "luban",
        "train",
        "shakespeare-char",
        *settings,
        "--out",
        str(out),
        "--json",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    return {"loss": result["primary"]["value"], "seconds": result["seconds"], "tokens": result["tokens"]}


def page(results: Path) -> str:
    """Return the table of all machines as Markdown: every results/nanogpt*.json there is."""
    lines = []
    for path in sorted(results.glob("nanogpt*.json")):
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        for name, label in BUDGETS.items():
            if (own := found["summary"].get(name)) is None:
                continue
            low, high = own["spread"]
            loss = f"{own['loss']:.3f}" + (f" ({low:.3f} to {high:.3f})" if len(found["rows"]) > 1 else "")
            tokens = [row[name]["tokens"] for row in found["rows"]]
            seen = f"{statistics.median(tokens) / 1e6:.2f}"
            lines.append(
                [
                    f"[{path.stem}](results/{path.name})",
                    label,
                    loss,
                    f"{own['seconds']:.0f}",
                    seen,
                    str(len(found["rows"])),
                ]
            )
    return table(["run", "trained by", "nats per character", "seconds", "M tokens", "seeds"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=2.0, help="of luban's longer run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "nanoGPT"
        shutil.copytree(asked.nanogpt, clone, ignore=shutil.ignore_patterns(".git"))
        data = clone / "data" / "shakespeare_char"
        shutil.copy(asked.text, data / "input.txt")
        subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True)
        for seed in range(asked.seeds):
            theirs = nanogpt(clone, seed)
            budgets = {
                "luban": [f"train.minutes={theirs['seconds'] / 60}"],
                "luban-tokens": ["train.minutes=null", f"train.tokens={theirs['tokens']}"],
                "luban-longer": [f"train.minutes={asked.minutes}"],
            }
            ours = {
                name: luban(asked.text.resolve(), seed, budget, Path(scratch) / f"{name}-{seed}")
                for name, budget in budgets.items()
            }
            rows.append({"seed": seed, "nanogpt": theirs, **ours})
            print(json.dumps(rows[-1]), flush=True)
    summary = {
        name: {
            "loss": statistics.median(row[name]["loss"] for row in rows),
            "spread": [min(row[name]["loss"] for row in rows), max(row[name]["loss"] for row in rows)],
            "seconds": statistics.median(row[name]["seconds"] for row in rows),
            "tokens_per_second": statistics.median(
                row[name]["tokens"] / row[name]["seconds"] for row in rows
            ),
        }
        for name in BUDGETS
    }
    machine = {"processor": device_name(), "cores": os.cpu_count(), "commit": commit_of(asked.nanogpt)}
    asked.out.write_text(json.dumps({**machine, "summary": summary, "rows": rows}, indent=2) + "\n")
    if asked.out.resolve().parent == RESULTS.parent:
        put_section(HERE / "README.md", "nanogpt", page(RESULTS.parent))
    for name, figures in summary.items():
        rate = f"{figures['tokens_per_second']:,.0f} tokens/s"
        print(f"{name:12}  loss {figures['loss']:.4f}  {figures['seconds']:.0f} s  {rate}")


if __name__ == "__main__":
    main()
