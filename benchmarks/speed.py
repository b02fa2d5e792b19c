"""Training a language model: luban's tokens/s, share of the machine's peak and memory beside other tools, interleaved.

    make bench-speed TEXT=input.txt NANOGPT=clone NANOCHAT=clone

or, once the environment of the peers stands,

    python benchmarks/speed.py --text input.txt --peers .venv-peers/bin/python --nanogpt CLONE --nanochat CLONE \
        [--rounds 3] [--sizes 10.7M 0.8M] [--only NAME ...] [--add]

Every candidate trains a decoder of 10.7 M parameters (6 layers of width 384, 6 heads; or 0.8 M: 4 of 128) on
the characters of one text, 16 windows of 256 a step, without dropout, in its own loop and in a process of its
own. What is timed are whole optimizer steps, from the end of one to the end of the next, and the median of
them counts: the batch, forward, backward, clipping, the optimizer and the loop's own logging; warm-up steps,
evaluations and compiling are not. The machine is measured before and after every round; a run during which
others took more than a twentieth of the machine is done again, twice at most. A clone that is not
given leaves its candidates out. With `--add` rounds are added to those in results/speed.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from children import ChildError, commit_of, heed_termination, run_child, undisturbed
from figures import Spread, put_section, spread, step_rate, table, token_flops

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
from measured import BATCH, LENGTH, SIZES, TOKENS  # noqa: E402

RESULTS = HERE / "results" / "speed.json"
STEPS = {"10.7M": (3, 8), "0.8M": (5, 40)}
"""Warm-up and timed steps."""
BASE = "trainer-gpt2"
TRAINER = "transformers_trainer.py"


@dataclass(frozen=True)
class Candidate:
    """A tool at some settings.

    Attributes:
        name: in the results. label: in tables.
        script: of peers/. setting: what the script is told.
        clone: the option that names the clone it runs from.
        ours: whether it is luban, and runs in luban's own environment.
    """

    name: str
    label: str
    script: str
    setting: str
    clone: str | None = None
    ours: bool = False


def _ours(name: str, label: str, setting: str) -> Candidate:
    return Candidate(name, label, "luban_train.py", setting, ours=True)


CANDIDATES = (
    _ours("luban-adamw-kernels", "`luban train`, AdamW, kernels", "adamw-kernels"),
    _ours("luban-adamw", "`luban train`, AdamW, torch's operations", "adamw"),
    _ours("luban-adamw-compile", "`luban train`, AdamW, compiled", "adamw-compile"),
    _ours("luban-muon-kernels", "`luban train`, Muon, kernels", "muon-kernels"),
    _ours("luban-muon", "`luban train`, Muon, torch's operations", "muon"),
    _ours("luban-muon-compile", "`luban train`, Muon, compiled", "muon-compile"),
    _ours("luban-gpt2-adamw", "`luban train`, GPT-2 layout, AdamW", "gpt2-adamw"),
    Candidate("trainer-gpt2", "Trainer, GPT-2, as shipped", TRAINER, "gpt2-shipped"),
    Candidate("trainer-gpt2-bf16", "Trainer, GPT-2, bf16", TRAINER, "gpt2-bf16"),
    Candidate("trainer-gpt2-compile", "Trainer, GPT-2, bf16, compiled", TRAINER, "gpt2-bf16-compile"),
    Candidate("trainer-gpt2-float32", "Trainer, GPT-2, float32, compiled", TRAINER, "gpt2-compile"),
    Candidate("trainer-qwen3", "Trainer, Qwen3, as shipped", TRAINER, "qwen3-shipped"),
    Candidate("trainer-qwen3-float32", "Trainer, Qwen3, float32, compiled", TRAINER, "qwen3-compile"),
    Candidate("trainer-qwen3-bf16", "Trainer, Qwen3, bf16", TRAINER, "qwen3-bf16"),
    Candidate("trainer-qwen3-compile", "Trainer, Qwen3, bf16, compiled", TRAINER, "qwen3-bf16-compile"),
    Candidate("litgpt", "litgpt, as shipped (bf16-mixed, compiled)", "litgpt_gpt.py", "shipped"),
    Candidate("litgpt-bf16-true", "litgpt, bf16-true, compiled", "litgpt_gpt.py", "bf16-true"),
    Candidate("litgpt-float32", "litgpt, float32, compiled", "litgpt_gpt.py", "32-true"),
    Candidate("keras-torch", "Keras on torch, as shipped", "keras_gpt.py", "torch-shipped"),
    Candidate("keras-torch-bf16", "Keras on torch, bf16, compiled", "keras_gpt.py", "torch-bf16-compile"),
    Candidate("keras-jax", "Keras on JAX, as shipped", "keras_gpt.py", "jax-shipped"),
    Candidate("keras-jax-bf16", "Keras on JAX, bf16", "keras_gpt.py", "jax-bf16"),
    Candidate("nanogpt", "nanoGPT, its CPU flags", "nanogpt_train.py", "shipped", "nanogpt"),
    Candidate("nanogpt-compile", "nanoGPT, compiled", "nanogpt_train.py", "compile", "nanogpt"),
    Candidate("nanogpt-edited", "nanoGPT, compiled, bf16 by one edited line", "nanogpt_train.py", "edited", "nanogpt"),
    Candidate("nanochat", "nanochat (Muon, compiled), as shipped", "nanochat_train.py", "shipped", "nanochat"),
    Candidate("nanochat-bf16", "nanochat (Muon, compiled), bf16", "nanochat_train.py", "bf16", "nanochat"),
)  # fmt: skip
BY_NAME = {candidate.name: candidate for candidate in CANDIDATES}


def probe() -> dict[str, Any]:
    """Return how fast the machine is now."""
    command = [sys.executable, str(HERE / "peers" / "machine_probe.py")]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def run(
    candidate: Candidate, size: str, options: argparse.Namespace, cache: Path
) -> tuple[dict[str, Any], float]:
    """Run a candidate once; return its rate, memory and what it said, or why it failed; and the neighbours."""
    warmup, steps = STEPS[size]
    row: dict[str, Any] = {"candidate": candidate.name, "size": size}
    with tempfile.TemporaryDirectory() as scratch:
        out, log = Path(scratch) / "result.json", Path(scratch) / "log.txt"
        own = Path(scratch) / "own"
        own.mkdir()
        command = [
            sys.executable if candidate.ours else str(options.peers),
            str(HERE / "peers" / candidate.script),
            *("--text", str(options.text.resolve()), "--size", size, "--setting", candidate.setting),
            *("--warmup", str(warmup), "--steps", str(steps), "--out", str(out), "--scratch", str(own)),
        ]
        if candidate.clone:
            command += ["--clone", str(getattr(options, candidate.clone).resolve())]
        # What a candidate compiled in one round is still there in the next: compiling is not what is timed.
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "WANDB_MODE": "disabled"}
        try:
            child = run_child(command, log, environment=environment)
        except ChildError as error:
            return {**row, "failed": str(error)}, 0.0
        result = json.loads(out.read_text("utf-8"))
    ends = result.pop("ends")
    assert len(ends) == warmup + steps, f"{candidate.name} made {len(ends)} steps"
    rate = step_rate(ends, warmup, TOKENS)
    row = {
        **row, "tokens_per_second": round(rate, 1), "peak_bytes": child.peak_bytes,
        "step_seconds": [round(b - a, 4) for a, b in itertools.pairwise(ends)], "seconds": round(child.seconds, 1),
        "neighbours": round(child.neighbours, 3),
        **result,
    }  # fmt: skip
    return row, child.neighbours


def make_round(options: argparse.Namespace, rounds: list[dict[str, Any]], cache: Path) -> Iterator[None]:
    """Run every candidate once at every size, beginning with another one in each round.

    The round is added to `rounds` and grows there; after each candidate it can be saved.
    """
    chosen = [c for c in CANDIDATES if not options.only or c.name in options.only]
    chosen = [c for c in chosen if not c.clone or getattr(options, c.clone)]
    turn = len(rounds) * 5 % max(1, len(chosen))
    one: dict[str, Any] = {"probes": [probe()], "rows": []}
    rounds.append(one)
    for size in options.sizes:
        for candidate in chosen[turn:] + chosen[:turn]:
            row = undisturbed(partial(run, candidate, size, options, cache))
            said = row.get("failed") or f"{row['tokens_per_second']:,.0f} tokens/s"
            print(f"  {size:6} {candidate.name:22} {said}", flush=True)
            one["rows"].append(row)
            yield
    one["probes"].append(probe())
    yield


def summarise(rounds: list[dict[str, Any]], kinds: int) -> dict[str, Any]:
    """Return for every size and candidate the median, least and most of its rounds, and its share of the peak.

    Arguments:
        kinds: characters of the alphabet; the head counts as so many columns.
    """
    probes = [p for one in rounds for p in one["probes"]]
    peaks = {dtype: max(p[dtype] for p in probes) for dtype in ("float32", "bfloat16")}
    summary: dict[str, Any] = {}
    for size, shape in SIZES.items():
        flops = token_flops(shape.layers, shape.width, kinds, LENGTH)
        for name in BY_NAME:
            rows = [
                r for one in rounds for r in one["rows"]
                if (r["candidate"], r["size"]) == (name, size) and "failed" not in r
            ]  # fmt: skip
            if not rows:
                continue
            rate = spread([row["tokens_per_second"] for row in rows])
            last = rows[-1]
            summary.setdefault(size, {})[name] = {
                "tokens_per_second": dataclasses.asdict(rate),
                "peak_bytes": dataclasses.asdict(spread([row["peak_bytes"] for row in rows])),
                "share_of_peak": rate.median * flops / peaks[last["dtype"]],
                "rounds": len(rows),
                **{key: last[key] for key in ("dtype", "parameters", "settings")},
            }
    return {"peaks": peaks, "sizes": summary}


def page(result: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    parts = []
    peaks = result["summary"]["peaks"]
    for size, rows in result["summary"]["sizes"].items():
        base = rows.get(BASE, {}).get("tokens_per_second", {}).get("median")
        memory = rows.get(BASE, {}).get("peak_bytes", {}).get("median")
        lines = []
        for name, row in rows.items():
            rate = Spread(**row["tokens_per_second"])
            lines.append([
                BY_NAME[name].label, row["dtype"],
                f"{rate.median:,.0f} ({rate.low:,.0f} to {rate.high:,.0f})",
                f"{rate.median / base:.2f}" if base else "",
                f"{100 * row['share_of_peak']:.0f} %", f"{row['peak_bytes']['median'] / 1e6:,.0f}",
                f"{row['peak_bytes']['median'] / memory:.2f}" if memory else "", str(row["rounds"]),
            ])  # fmt: skip
        head = [
            size,
            "computes in",
            "tokens/s",
            "against the Trainer",
            "share of peak",
            "peak MB",
            "against it",
            "rounds",
        ]
        parts.append(table(head, lines))
    machine = result["rounds"][0]["probes"][0]
    parts.append(
        f"{machine['name']}, {machine['threads']} threads, "
        f"torch {machine['torch']}; peak measured at "
        f"{peaks['float32'] / 1e9:,.0f} GFLOP/s in float32, {peaks['bfloat16'] / 1e9:,.0f} in bfloat16. "
        "Median of the rounds, least and most. Peak memory is that of the largest process."
    )
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--peers", type=Path, required=True, help="Python of the peers' environment")
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--nanochat", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--only", nargs="+", choices=sorted(BY_NAME), default=[])
    parser.add_argument("--add", action="store_true", help="add to the rounds that are there")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="in results/: fills the section of that name in README.md"
    )
    parser.add_argument("--cache", type=Path, help="where compiled code stays between calls")
    options = parser.parse_args()
    heed_termination()
    text = options.text.read_bytes()
    rounds = (
        json.loads(options.out.read_text("utf-8"))["rounds"] if options.add and options.out.is_file() else []
    )
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(options.rounds):
            print(f"round {len(rounds) + 1}", flush=True)
            for _ in make_round(options, rounds, options.cache or Path(scratch)):
                result = {
                    "text": {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()},
                    "length": LENGTH, "batch": BATCH, "steps": {k: list(v) for k, v in STEPS.items()},
                    "clones": {
                        name: commit_of(clone)
                        for name in ("nanogpt", "nanochat")
                        if (clone := getattr(options, name))
                    },
                    "summary": summarise(rounds, len(set(text.decode("utf-8")))), "rounds": rounds,
                }  # fmt: skip
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print("\n" + page(result))
    if options.out.resolve().parent == RESULTS.parent:
        put_section(HERE / "README.md", options.out.stem, page(result))


if __name__ == "__main__":
    main()
