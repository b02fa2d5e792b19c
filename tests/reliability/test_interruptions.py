"""Signals: the run saves within one step, ends with 75, leaves no process behind, and goes on to the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from interruptions import COMBINATIONS, PHASES, Case, draw_case, in_child, recipe, sweep
from torch._inductor.graph import GraphLowering

from luban.console import Show
from luban.data.workers import clean_in_order
from luban.run import Run
from luban.signals import ASKING, StopRequest, blocked
from luban.training.faults import Faults
from luban.verbs.train import Tools, train

TRIED = 3 * len(PHASES)


def test_interrupted_in_any_phase_a_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    outcomes = sweep(tmp_path, count=TRIED, seed=1)
    assert not [outcome for outcome in outcomes if outcome.startswith("BROKEN")], outcomes
    assert outcomes.total() == TRIED >= 60


def test_the_cases_have_every_signal_in_every_phase() -> None:
    import random

    cases = [draw_case(number, random.Random(number)) for number in range(COMBINATIONS)]
    assert {(case.phase, case.numbers[0]) for case in cases} == {(p, n) for p in PHASES for n in ASKING}


def test_a_run_under_nohup_does_not_hear_the_terminal_close(tmp_path: Path) -> None:
    def hang_up() -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    def under_nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        settings = recipe(tmp_path)
        train(settings, out=tmp_path / "run", tools=tools(Faults({("step", 2, 0): hang_up})))

    code, said = in_child(under_nohup)
    assert code == 0, said
    assert Run(tmp_path / "run").result.is_file()


def tools(faults: Faults) -> Tools:
    return Tools(Show(quiet=True), StopRequest(), faults=faults)


def test_a_signal_reaches_a_compiler_at_work(tmp_path: Path) -> None:
    """torch.compile wraps what it meets in errors of its own, and compiles in processes of its own."""
    case, plain = Case("compile", (signal.SIGTERM,), 0, 0), GraphLowering.run
    settings = recipe(tmp_path)
    settings["train"]["compile"] = "on"
    struck = tmp_path / "struck"

    def lowering(self: GraphLowering, *arguments: Any) -> Any:
        struck.touch()
        case.strike()
        return plain(self, *arguments)

    def compiling() -> None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")  # what is cached is not compiled
        GraphLowering.run = lowering  # type: ignore[method-assign]
        train(settings, out=tmp_path / "run")

    code, said = in_child(compiling)
    assert struck.exists(), said
    assert code == 75, said
    assert "while compiling" in said or "SIGTERM" in said
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_a_signal_to_the_whole_group_leaves_the_cleaning_workers_to_the_run() -> None:
    """Ctrl-C reaches every process of the command; a worker that died of it would look like a defect."""

    def work() -> None:
        batches = [(number, [f"text {number}"]) for number in range(8)]
        with StopRequest().listening() as stop:
            cleaned = []
            for number, batch in clean_in_order(None, batches, 2):
                if not cleaned:
                    os.killpg(0, signal.SIGINT)
                    assert stop.reason == "SIGINT"
                cleaned.append((number, batch.texts))
        assert cleaned == batches

    code, said = in_child(work)
    assert code == 0, said


@pytest.mark.parametrize("number", ASKING)
def test_what_is_started_blocked_outlives_a_signal_to_its_group(number: signal.Signals) -> None:
    with blocked():
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", "print(input())"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    child.send_signal(number)
    out, _ = child.communicate("still here\n", timeout=30)
    assert out == "still here\n"
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_true_process_saves_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    settings = recipe(tmp_path)
    settings["train"]["steps"] = 100_000
    path.write_text(json.dumps(settings), "utf-8")
    command = [sys.executable, "-m", "luban", "train", str(path), "--json", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        for _ in waiting(90):
            assert process.poll() is None
            if any(
                (tmp_path / "run" / "checkpoints").glob("step-*")
            ):  # the newest two are kept, the first is soon gone
                break
        process.send_signal(signal.SIGUSR1)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75
    answer = json.loads(out.splitlines()[-1])
    assert answer["status"] == "stopped"
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert f"at step {steps[-1]['step']}; saved" in answer["error"]


def waiting(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.05)
    raise TimeoutError
