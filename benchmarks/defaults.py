"""What the defaults of training are worth: each changed alone, the same tokens, several seeds, whole held-out loss.

    python benchmarks/defaults.py --text input.txt [--seeds 3] [--tokens 512000] [--dtype float32] [--only NAME ...]

The base is `luban train shakespeare-char` on tinyshakespeare's characters (0.8 M parameters), and a change is one that
a person can type. Differences are paired: both runs of a pair have the same seed. Runs take one thread each, so that
several can go on at once: what counts is loss at equal tokens, not time, and how tokens/s differ stands in speed.json.
Runs that are in results/defaults.json already are kept, so it can be measured in several sittings.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from figures import put_section, table

from luban.machine import device_name

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "defaults.json"
BASE = "whole windows"
CHANGES: dict[str, tuple[str, ...]] = {
    BASE: (),
    "half windows for a third of the tokens, as it comes": ("data.short_steps=null",),
    "momentum 0.95, the default elsewhere": ("train.momentum=0.95",),
    "momentum without Nesterov": ("train.nesterov=false",),
    "AdamW for all, rate 2e-3": ("train.optimizer=adamw", "train.learning_rate=2e-3"),
    "AdamW for all, rate 4e-3": ("train.optimizer=adamw", "train.learning_rate=4e-3"),
    "half the rate": ("train.learning_rate=4e-3",),
    "twice the rate": ("train.learning_rate=1.6e-2",),
    "no weight decay": ("train.weight_decay=0",),
    "AdamW's part with betas of 0.9 and 0.99": ("train.betas=[0.9,0.99]",),
    "no warm-up": ("train.warmup=0",),
    "warm-up of a tenth": ("train.warmup=0.1",),
    "decay over the last half, the default elsewhere": ("train.decay=0.5",),
    "cosine": ("train.schedule=cosine",),
    "down to a tenth of the rate": ("train.final_rate=0.1",),
    "no clipping": ("train.clip=null",),
    "4 windows a step": ("train.batch=4",),
    "16 windows a step": ("train.batch=16",),
    "16 windows of 128 tokens": ("train.batch=16", "data.length=128"),
    "without QK-norm (Llama's layout)": ("model.layout=llama",),
    "GPT-2's layout": ("model.layout=gpt2", "model.mlp_width=512"),
    "an output matrix of its own": ("model.tied=false",),
    "dropout of 0.1": ("model.dropout=0.1",),
}


def loss(text: Path, options: argparse.Namespace, changes: Sequence[str], seed: int) -> float:
    """Train once; returns the loss over all of the held-out tenth, in nats per character."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable, "-m", "luban", "train", "shakespeare-char", f"data.source={text}", "train.minutes=null",
            "data.short_steps=0", f"train.tokens={options.tokens}", f"train.dtype={options.dtype}", "train.compile=off",
            "train.evaluate_every=100h", "train.checkpoint_every=100h", f"train.seed={seed}", *changes,
            "--out", f"{scratch}/run", "--json",
        ]  # fmt: skip
        found = subprocess.run(["env", "OMP_NUM_THREADS=1", *command], capture_output=True, text=True)
        if found.returncode:
            raise RuntimeError(f"{' '.join(changes)}: {found.stderr.strip()[-500:]}")
        return float(json.loads(found.stdout.splitlines()[-1])["primary"]["value"])


def page(found: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    base, lines = found["losses"][BASE], []
    for name, losses in found["losses"].items():
        own = [losses[seed] for seed in sorted(losses)]
        told = f"{statistics.fmean(own):.3f} ({min(own):.3f} to {max(own):.3f})"
        gaps = [losses[seed] - base[seed] for seed in losses if seed in base]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None
        gap = "" if name == BASE else f"{statistics.fmean(gaps):+.3f}"
        gap += "" if name == BASE or error is None else f" ± {error:.3f}"
        lines.append([name, " ".join(f"`{change}`" for change in CHANGES[name]), told, gap, str(len(own))])
    head = ["`shakespeare-char`", "changed", "nats per character", "against the base", "seeds"]
    return (
        table(head, lines)
        + f"\n\n{found['tokens']:,} tokens each; ± is the standard error of the paired difference."
    )


def main() -> None:
    """Measure what is not measured yet, and write results and table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=512_000)
    parser.add_argument(
        "--dtype", default="bfloat16", help="float32 where the processor has no bfloat16 instructions"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, of one thread each")
    parser.add_argument("--only", nargs="+", choices=CHANGES, metavar="NAME", default=list(CHANGES))
    options = parser.parse_args()
    text = options.text.resolve()
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    if found.get("tokens") != options.tokens:
        found = {"tokens": options.tokens, "losses": {}}
    found["processor"] = device_name()
    losses = found["losses"]
    missing = [
        (name, seed)
        for seed in range(options.seeds)
        for name in dict.fromkeys((BASE, *options.only))
        if str(seed) not in losses.get(name, {})
    ]

    def measured(case: tuple[str, int]) -> tuple[str, int, float]:
        return *case, loss(text, options, CHANGES[case[0]], case[1])

    with ThreadPoolExecutor(options.jobs) as runs:
        for name, seed, value in runs.map(measured, missing):
            losses.setdefault(name, {})[str(seed)] = round(value, 5)
            print(f"  {value:.4f}  seed {seed}  {name}", flush=True)
            found["losses"] = losses = {change: losses[change] for change in CHANGES if change in losses}
            RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print("\n" + page(found))
    put_section(HERE / "README.md", "defaults", page(found))


if __name__ == "__main__":
    main()
