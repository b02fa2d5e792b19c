"""How long it takes from the command to the end of the first optimizer step: `luban train`, the Trainer, nanoGPT.

    python benchmarks/start_training.py --text input.txt --peers .venv-peers/bin/python [--nanogpt CLONE] [--rounds 5]

luban trains the recipe shakespeare-char on a text it has not seen: reading, tokenizer, packing, measuring the
machine and the rehearsal are in the time. The Trainer script builds a GPT-2 of the same size from the text in
memory; nanoGPT runs as its README says for a CPU, once with its prepare.py and once with data already
prepared. Nothing compiles. Each is ended after its first step. The commands take turns, and each
is done again where others took more than a twentieth of the machine; the first round warms the file cache and
does not count.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from children import busy_seconds, heed_termination, run_child, taken_by_others, undisturbed
from figures import Spread, put_section, spread, table

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "start_training.json"
GOAL_SECONDS = 4.0
LIMIT = 120.0
NANOGPT = {
    "device": "cpu", "compile": False, "eval_iters": 20, "log_interval": 1, "block_size": 64, "batch_size": 12,
    "n_layer": 4, "n_head": 4, "n_embd": 128, "max_iters": 2000, "lr_decay_iters": 2000, "dropout": 0.0,
}  # fmt: skip


def until(command: list[str], done: Callable[[Path], bool], folder: Path, log: Path) -> tuple[float, float]:
    """Return the seconds from starting a command until `done(log)`, and what neighbours took; then end it all."""
    began, busy = time.monotonic(), busy_seconds()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while not done(log):
                if process.poll() is not None or time.monotonic() - began > LIMIT:
                    raise RuntimeError(f"{command} made no step:\n{log.read_text()[-2000:]}")
                time.sleep(0.005)
            seconds = time.monotonic() - began
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = -signal.SIGKILL
    return seconds, taken_by_others(busy, usage, time.monotonic() - began)


def luban(text: Path, scratch: Path) -> tuple[float, float]:
    run = scratch / "run"
    command = [sys.executable, "-m", "luban", "train", "shakespeare-char", f"data.source={text}"]
    timings = run / "timings.jsonl"
    done = lambda _: timings.is_file() and timings.stat().st_size > 0  # noqa: E731
    return until([*command, "--out", str(run)], done, scratch, scratch / "log")


def trainer(text: Path, scratch: Path, python: Path) -> tuple[float, float]:
    script, out = HERE / "peers" / "transformers_trainer.py", scratch / "result.json"
    command = [
        str(python), str(script), "--text", str(text), "--size", "0.8M", "--setting", "gpt2-shipped", "--warmup", "0",
        "--steps", "1", "--scratch", str(scratch / "own"), "--out", str(out),
    ]  # fmt: skip
    began = time.monotonic()
    child = run_child(command, scratch / "log")
    first = float(json.loads(out.read_text())["ends"][0])
    return first - began, child.neighbours  # one clock for all processes of a machine


def nanogpt(text: Path, scratch: Path, clone: Path, python: Path) -> tuple[tuple[float, float], float]:
    """Return the seconds of prepare.py, and from starting train.py to its first step."""
    copy = scratch / "nanoGPT"
    shutil.copytree(clone, copy, ignore=shutil.ignore_patterns(".git"))
    data = copy / "data" / "shakespeare_char"
    shutil.copy(text, data / "input.txt")
    began = time.monotonic()
    subprocess.run([str(python), "prepare.py"], cwd=data, check=True, stdout=subprocess.DEVNULL)
    prepared = time.monotonic() - began
    flags = [f"--{name}={value}" for name, value in NANOGPT.items()]
    command = [str(python), "-u", "train.py", "config/train_shakespeare_char.py", *flags]
    trained, neighbours = until(command, lambda log: b"iter 0:" in log.read_bytes(), copy, scratch / "log")
    return (prepared, trained), neighbours


def parts(text: Path, scratch: Path) -> tuple[dict[str, float], float]:
    """Return what the parts of luban's start took."""
    command = [sys.executable, str(HERE / "start_parts.py"), "shakespeare-char", f"data.source={text}"]
    command += ["--out", str(scratch / "run")]
    child = run_child(command, scratch / "log", environment={"BEGAN": str(time.monotonic())})
    return json.loads((scratch / "log").read_text().splitlines()[-1])["parts"], child.neighbours


def page(result: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    lines = []
    for name, figures in result["seconds"].items():
        s = Spread(**figures)
        lines.append([name, f"{s.median:.2f} ({s.low:.2f} to {s.high:.2f})"])
    of_luban = [[name, f"{seconds:.2f}"] for name, seconds in result["parts"].items()]
    return (
        table(["from the command to the first step", "seconds"], lines)
        + "\n\n"
        + table(["`luban train`, part", "seconds"], of_luban)
        + f"\n\n{result['cores']} cores, {result['rounds']} rounds; median, least and most."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--peers", type=Path, required=True, help="Python of the peers' environment")
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    heed_termination()
    text, python = options.text.resolve(), options.peers.absolute()
    seconds: dict[str, list[float]] = {}
    broken_down: list[dict[str, float]] = []

    def note(name: str, took: float, counts: bool) -> None:
        print(f"  {name:44} {took:6.2f} s", flush=True)
        if counts:
            seconds.setdefault(name, []).append(took)

    def apart(measure: Callable[[Path], tuple[Any, float]]) -> Any:
        def once() -> tuple[Any, float]:
            with tempfile.TemporaryDirectory() as scratch:
                return measure(Path(scratch))

        return undisturbed(once)

    for number in range(options.rounds + 1):
        counts = number > 0
        note("`luban train shakespeare-char`", apart(lambda s: luban(text, s)), counts)
        note("a script with the Trainer", apart(lambda s: trainer(text, s, python)), counts)
        if options.nanogpt:
            prepared, trained = apart(lambda s: nanogpt(text, s, options.nanogpt, python))
            note("nanoGPT, train.py, data prepared before", trained, counts)
            note("nanoGPT, prepare.py and train.py", prepared + trained, counts)
        broken_down += [apart(lambda s: parts(text, s))] if counts else []
    result = {
        "cores": len(os.sched_getaffinity(0)), "rounds": options.rounds, "goal_seconds": GOAL_SECONDS,
        "seconds": {name: dataclasses.asdict(spread(own)) for name, own in seconds.items()},
        "parts": {name: statistics.median(own[name] for own in broken_down) for name in broken_down[0]},
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print("\n" + page(result))
    if options.out == RESULTS:
        put_section(HERE / "README.md", "start", page(result))


if __name__ == "__main__":
    main()
