"""Training on one GPU in bfloat16: tokens/s, share of the measured matrix rate and memory, compiled and eager.

    python benchmarks/gpu.py [--rounds 3] [--minutes 13] [--only NAME ...] [--add] [--scratch DIR]
    python benchmarks/gpu.py --tiny

Two models: GPT-2 of 124 M parameters (12 layers of width 768, 12 heads, length 1,024) and a decoder of Qwen3's layout
with 1.03 B (24 layers of width 1,792, 14 heads of 128, MLP of 4,864, length 2,048), both over 50,304 tokens. Each run
is `luban train` in a process of its own, with luban's defaults (Muon) but for shape, batch and dtype, on a made-up text
of as many kinds of characters. What is timed are whole optimizer steps, from the end of one to the end of the next, and
the median counts: batches, forward, backward, clipping, optimizer and logs; warm-up steps, rehearsal, compiling,
evaluation and checkpoints are not. Operations are those of plan.json: 6 N and attention, whose causal half is not taken
off; Muon's count nothing. The rate is the fastest of square bfloat16 products of three sizes, measured before and after
every round. Memory is what tensors held at the most in the whole command, the eager rehearsal included.

A round is four runs, the compiled ones first, and should take seven minutes (reckoned, not measured), most of it
rehearsals and checkpoints of 9 GB: `--scratch` may name a folder in memory. No run begins for which `--minutes` leave
too little, results are written after every run, and `--add` goes on with them, those that lack rounds first.
`--tiny` does the same with tiny shapes, on a CPU too, in a minute or two, most of it compiling; it writes nothing
unless `--out` says where.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from children import ChildError, heed_termination, run_child
from figures import Spread, put_section, spread, step_rate, table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gpu.json"
CHARACTERS = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0x20000, 0x2A6E0))
"""Han and Hangul: enough characters for a vocabulary of one token each."""
SPECIAL = 2
"""Tokens of a vocabulary of characters that are none."""
PRODUCTS = {"cuda": (4096, 8192, 16_384), "cpu": (128,)}
REPEATS = 3
NO_GPU = "benchmarks/gpu.py measures a GPU, and torch finds none here; --tiny runs the same with tiny shapes on a CPU"


@dataclass(frozen=True)
class Shape:
    """A model, and how it is trained.

    Attributes:
        vocabulary: tokens; a multiple of 128, as products want it.
        batch: windows of `length` tokens in a step. micro_batch: computed at once.
        warmup, steps: of a run; only the latter are timed.
        seconds: what a whole run should take, until one has been measured.
        aim: share of the matrix rate that is aimed at.
        text: characters of the text.
    """

    label: str
    layout: str
    layers: int
    width: int
    heads: int
    mlp_width: int
    length: int
    batch: int
    micro_batch: int
    seconds: float
    aim: float
    vocabulary: int = 50_304
    warmup: int = 3
    steps: int = 10
    text: int = 2_000_000

    def recipe(self, source: Path, *, compiled: bool) -> dict[str, Any]:
        """Return the recipe of one run."""
        return {
            "task": "language-model",
            "data": {
                "source": str(source), "clean": None, "document": "file", "max_row_bytes": 1_000_000_000,
                "split": "tail", "validation_fraction": 0.02, "tokenizer": "char", "byte_fallback": False,
                "vocab_size": self.vocabulary, "length": self.length,
            },
            "model": {
                "layout": self.layout, "layers": self.layers, "width": self.width, "heads": self.heads,
                "mlp_width": self.mlp_width,
            },
            "train": {
                "steps": self.warmup + self.steps, "batch": self.batch, "micro_batch": self.micro_batch,
                "learning_rate": 3e-4, "dtype": "bfloat16", "compile": "on" if compiled else "off",
                "evaluate_every": "100h", "checkpoint_every": "100h",
            },
            "evaluate": {"sample_tokens": 0, "bootstrap": 0},
        }  # fmt: skip


SHAPES = {
    "gpt2-124m": Shape(
        "GPT-2", "gpt2", layers=12, width=768, heads=12, mlp_width=3072, length=1024, batch=256, micro_batch=32,
        seconds=70.0, aim=0.50,
    ),
    "qwen3-1b": Shape(
        "Qwen3's layout", "qwen3", layers=24, width=1792, heads=14, mlp_width=4864, length=2048, batch=64,
        micro_batch=8, seconds=150.0, aim=0.55, warmup=2, steps=8,
    ),
}  # fmt: skip
SMALL = {
    "layers": 2, "width": 64, "heads": 2, "mlp_width": 192, "length": 64, "batch": 8, "micro_batch": 4,
    "vocabulary": 640, "warmup": 2, "steps": 4, "text": 40_000, "seconds": 20.0,
}  # fmt: skip
TINY = {name: dataclasses.replace(shape, **SMALL) for name, shape in SHAPES.items()}


@dataclass(frozen=True)
class Candidate:
    """A shape, compiled or not."""

    shape: str
    compiled: bool

    @property
    def name(self) -> str:
        """What results call it."""
        return f"{self.shape}-compiled" if self.compiled else f"{self.shape}-eager"


CANDIDATES = tuple(Candidate(shape, compiled) for compiled in (True, False) for shape in SHAPES)
BY_NAME = {candidate.name: candidate for candidate in CANDIDATES}


def made_up(characters: int, kinds: int) -> str:
    """Return a text of so many characters of so many kinds, each of them at its beginning, the first ones frequent.

    Example:
        >>> text = made_up(1000, kinds=100)
        >>> len(text), len(set(text[:100])), len(set(text))
        (1000, 100, 100)
    """
    alphabet = [chr(code) for code in itertools.chain(*(range(*block) for block in CHARACTERS))][:kinds]
    if len(alphabet) < kinds or characters < kinds:
        raise ValueError(f"no {kinds} kinds of characters in a text of {characters}")
    draws = random.Random(0)
    drawn = (alphabet[int(kinds ** draws.random()) - 1] for _ in range(characters - kinds))
    return "".join(itertools.chain(alphabet, drawn))


def probe(shapes: Mapping[str, Shape], *, tiny: bool) -> dict[str, Any]:
    """Return the device, how fast it multiplies and copies now, and what it mixes the values of attention with."""
    import torch

    from luban.machine import choose_device, device_name, measure_bandwidth, measure_matmul

    device = choose_device()
    found = {"device": device, "name": device_name(device), "torch": torch.__version__}
    if device == "cpu" and not tiny:
        return found
    sizes = PRODUCTS["cpu" if tiny else device]
    rates = {n: max(measure_matmul(torch.bfloat16, n, device) for _ in range(REPEATS)) for n in sizes}
    kernels = {name: attention_kernel(shape, device) for name, shape in shapes.items()}
    return {
        **found, "cuda": torch.version.cuda, "bfloat16": max(rates.values()), "sizes": rates,
        "bandwidth": measure_bandwidth(device), "attention": kernels,
    }  # fmt: skip


def attention_kernel(shape: Shape, device: str) -> str:
    """Return which of torch's kernels attends in a step of a shape; "products" are luban's own, on a CPU."""
    import torch
    from torch.nn.attention import SDPBackend

    from luban.models.attention import by_products

    one = (shape.micro_batch, shape.heads, shape.length, shape.width // shape.heads)
    queries = torch.zeros(one, dtype=torch.bfloat16, device=device, requires_grad=True)
    if by_products(queries):
        return "products"
    chosen = torch._fused_sdp_choice(queries, queries, queries, None, 0.0, True)
    return SDPBackend(chosen).name.lower()


def child(out: Path, arguments: Sequence[str]) -> None:
    """Be the command `luban`, and write down what the GPU held at the most."""
    from luban import cli

    sys.argv = ["luban", *arguments]
    try:
        cli.main()
    finally:
        import torch

        held = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
        out.write_text(json.dumps(dict(zip(("allocated", "reserved"), held, strict=True))))


def prepare(shape: Shape, folder: Path) -> Path:
    """Prepare the made-up text; return the folder that runs of every shape of this vocabulary read."""
    text, recipe, data = folder / "text.txt", folder / "data.yaml", folder / "data"
    text.write_text(made_up(shape.text, shape.vocabulary - SPECIAL), "utf-8")
    recipe.write_text(json.dumps(shape.recipe(text, compiled=False)), "utf-8")
    command = [sys.executable, "-m", "luban", "prepare", str(recipe), "--out", str(data)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return data


def run(candidate: Candidate, shape: Shape, data: Path, scratch: Path, limit: float) -> dict[str, Any]:
    """Run a candidate once; return its rate, memory and what it computed, or why it failed."""
    row: dict[str, Any] = {"candidate": candidate.name}
    with tempfile.TemporaryDirectory(dir=scratch) as own:
        folder, recipe, held = Path(own) / "run", Path(own) / "recipe.yaml", Path(own) / "held.json"
        recipe.write_text(json.dumps(shape.recipe(data, compiled=candidate.compiled)), "utf-8")
        command = [sys.executable, __file__, "--child", str(held), "train", str(recipe), "--out", str(folder)]
        # What a candidate compiled in one round is still there in the next: compiling is not what is timed.
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor")}
        try:
            ended = run_child(command, Path(own) / "log.txt", environment=environment, limit=limit)
        except ChildError as error:
            return {**row, "failed": str(error)}
        memory = json.loads(held.read_text("utf-8"))
        plan, machine = (
            json.loads((folder / name).read_text("utf-8")) for name in ("plan.json", "machine.json")
        )
        timings, metrics, events = (
            [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]
            for name in ("timings", "metrics", "events")
        )
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    if candidate.compiled and (off := [said for said in warnings if said.startswith("compile is off")]):
        return {**row, "failed": off[0]}
    tokens = plan["step_tokens"]
    took = [tokens / step["tokens_per_second"] for step in timings if step["kind"] == "train"]
    losses = [step["loss"] for step in metrics if step["kind"] == "train"]
    assert len(took) == shape.warmup + shape.steps, f"{candidate.name} made {len(took)} steps"
    return {
        **row, "tokens_per_second": round(step_rate(list(itertools.accumulate(took)), shape.warmup, tokens), 1),
        "token_flops": plan["step_flops"] / tokens, "step_seconds": [round(seconds, 5) for seconds in took],
        "step_tokens": tokens, "micro_batch": shape.micro_batch, "parameters": plan["parameters"],
        "device": machine["device"], "dtype": plan["dtype"], "allocated_bytes": memory["allocated"],
        "reserved_bytes": memory["reserved"], "host_bytes": ended.peak_bytes, "losses": [losses[0], losses[-1]],
        "warnings": warnings, "seconds": round(ended.seconds, 1),
    }  # fmt: skip


def needed(candidate: Candidate, shape: Shape, rounds: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds that a run of a candidate should take: the most that one took, or what was reckoned."""
    taken = [row["seconds"] for row in rows_of(candidate, rounds)]
    return max(taken, default=shape.seconds)


def rows_of(candidate: Candidate, rounds: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of a candidate that did not fail."""
    rows = [row for one in rounds for row in one["rows"]]
    return [row for row in rows if row["candidate"] == candidate.name and "failed" not in row]


def make_round(
    options: argparse.Namespace,
    shapes: Mapping[str, Shape],
    rounds: list[dict[str, Any]],
    data: Path,
    scratch: Path,
    until: float,
) -> Iterator[None]:
    """Run every candidate once, those that have the fewest rounds first, as far as the time goes.

    The last of `rounds`, with the probe it begins with, grows; after each candidate it can be saved.
    """
    chosen = [candidate for candidate in CANDIDATES if not options.only or candidate.name in options.only]
    chosen.sort(key=lambda candidate: len(rows_of(candidate, rounds)))
    one = rounds[-1]
    for candidate in chosen:
        shape, left = shapes[candidate.shape], until - time.monotonic()
        if left < needed(candidate, shape, rounds):
            print(f"  {candidate.name:20} left out: {max(0.0, left):.0f} s are too few", flush=True)
            continue
        row = run(candidate, shape, data, scratch, left)
        said = row.get("failed") or f"{row['tokens_per_second']:,.0f} tokens/s in {row['seconds']:.0f} s"
        print(f"  {candidate.name:20} {said}", flush=True)
        one["rows"].append(row)
        yield
    if one["rows"]:
        one["probes"].append(ask(tiny=options.tiny))
        yield


def ask(*, tiny: bool) -> dict[str, Any]:
    """Probe the device in a process of its own, which then holds none of its memory."""
    command = [sys.executable, __file__, "--probe", *(["--tiny"] if tiny else [])]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def summarise(rounds: Sequence[Mapping[str, Any]], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the measured matrix rate, and of every candidate median, least and most and its share of that rate."""
    peak = max(probed["bfloat16"] for one in rounds for probed in one["probes"])
    summary: dict[str, Any] = {}
    for candidate in CANDIDATES:
        if not (rows := rows_of(candidate, rounds)):
            continue
        rate, last = spread([row["tokens_per_second"] for row in rows]), rows[-1]
        summary[candidate.name] = {
            "tokens_per_second": dataclasses.asdict(rate),
            "flops_per_second": rate.median * last["token_flops"],
            "share_of_peak": rate.median * last["token_flops"] / peak,
            "aim": shapes[candidate.shape].aim,
            "allocated_bytes": max(row["allocated_bytes"] for row in rows),
            "rounds": len(rows),
            **{key: last[key] for key in ("parameters", "step_tokens", "dtype", "device")},
        }
    return {"peak": peak, "candidates": summary}


def page(result: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = []
    for name, row in result["summary"]["candidates"].items():
        candidate, rate = BY_NAME[name], Spread(**row["tokens_per_second"])
        lines.append([
            f"{SHAPES[candidate.shape].label}, {'compiled' if candidate.compiled else 'eager'}",
            f"{row['parameters'] / 1e6:,.1f} M", f"{row['step_tokens']:,}",
            f"{rate.median:,.0f} ({rate.low:,.0f} to {rate.high:,.0f})", f"{row['flops_per_second'] / 1e12:.3g}",
            f"{100 * row['share_of_peak']:.1f} %", f"{100 * row['aim']:.0f} %", f"{row['allocated_bytes'] / 1e9:.1f}",
        ])  # fmt: skip
    probed = result["rounds"][0]["probes"][0]
    kernels = ", ".join(f"{shape}: {kernel}" for shape, kernel in probed["attention"].items())
    each = sorted({row["rounds"] for row in result["summary"]["candidates"].values()} or {0})
    head = (
        "`luban train`", "parameters", "tokens a step", "tokens/s", "TFLOP/s", "share of the matrix rate", "aim", "GB",
    )  # fmt: skip
    return (
        f"{table(head, lines)}\n\n{' to '.join(map(str, dict.fromkeys((each[0], each[-1]))))} rounds each on "
        f"{probed['name']}, torch {probed['torch']}; bfloat16 products measured at "
        f"{result['summary']['peak'] / 1e12:,.3g} TFLOP/s. Median of the rounds, least and most. Attention: {kernels}."
    )


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, help="3, or 1 with --tiny")
    parser.add_argument(
        "--minutes", type=float, default=13.0, help="no run begins that would not end within these"
    )
    parser.add_argument("--only", nargs="+", choices=sorted(BY_NAME), default=[])
    parser.add_argument("--add", action="store_true", help="add to the rounds that are there")
    parser.add_argument("--scratch", type=Path, help="where runs are written and removed; 32 GB are needed")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on a CPU too")
    parser.add_argument("--out", type=Path, help="results/gpu.json, which fills the section of README.md")
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.tiny else 3)
    options.out = options.out or (None if options.tiny else RESULTS)
    return options


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3:])
        return
    options = asked()
    shapes = TINY if options.tiny else SHAPES
    if options.probe:
        print(json.dumps(probe(shapes, tiny=options.tiny)))
        return
    until = time.monotonic() + 60.0 * options.minutes
    heed_termination()
    probed = ask(tiny=options.tiny)
    if probed["device"] == "cpu" and not options.tiny:
        print(NO_GPU, file=sys.stderr)
        sys.exit(2)
    there = options.add and options.out is not None and options.out.is_file()
    rounds: list[dict[str, Any]] = json.loads(options.out.read_text("utf-8"))["rounds"] if there else []
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        data = prepare(next(iter(shapes.values())), Path(scratch))
        for _ in range(options.rounds):
            rounds.append({"probes": [probed], "rows": []})
            print(f"round {len(rounds)}", flush=True)
            for _ in make_round(options, shapes, rounds, data, Path(scratch), until):
                result = {
                    "shapes": {name: dataclasses.asdict(shape) for name, shape in shapes.items()},
                    "summary": summarise(rounds, shapes), "rounds": rounds,
                }  # fmt: skip
                if options.out is not None:
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
            if not rounds[-1]["rows"]:
                break
            probed = rounds[-1]["probes"][-1]
    if not result:
        print("no run was made: --minutes are too few", file=sys.stderr)
        sys.exit(1)
    print("\n" + page(result))
    if options.out is not None and options.out.resolve() == RESULTS:
        put_section(HERE / "README.md", "gpu", page(result))


if __name__ == "__main__":
    main()
