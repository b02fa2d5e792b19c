"""One process at a time has a run; the kernel frees the lock however that one ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from interruptions import StageShow, finish, group_is_gone, in_child, recipe, start

from luban.errors import InputError
from luban.run import Log, Run
from luban.signals import StopRequest
from luban.verbs.train import Tools, train

HOST = socket.gethostname()


def waiting(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.02)
    raise TimeoutError


def test_a_second_process_is_refused_and_told_whose_the_run_is(tmp_path: Path) -> None:
    path, run = tmp_path / "recipe.yaml", Run(tmp_path / "run")
    settings = recipe(tmp_path)
    settings["train"]["steps"] = 100_000
    path.write_text(json.dumps(settings), "utf-8")
    command = [sys.executable, "-m", "luban", "train", str(path), "--out", str(run.folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        for _ in waiting(90):
            assert first.poll() is None
            if run.metrics.size():
                break
        events = run.events.path.read_bytes()
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
        assert second.returncode == 2
        assert f"in use by process {first.pid} on {HOST}" in second.stderr
        with pytest.raises(InputError, match=f"in use by process {first.pid} on {HOST}"):
            train(resume=run.folder)
        assert run.events.path.read_bytes().startswith(events)
        assert run.holder() == f"process {first.pid} on {HOST}"
    finally:
        first.kill()
        first.wait()
    with run.lock():
        assert run.read_recipe()["train"]["steps"] == 100_000
    # Lines of both would be torn or out of order; a torn last line is what a kill may leave.
    lines = run.metrics.path.read_bytes().split(b"\n")[:-1]
    steps = [row["step"] for row in map(json.loads, lines) if row["kind"] == "train"]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.parametrize(
    "text",
    ["process 4194300 on elsewhere\n", f"process {os.getpid()} on {HOST}\n", "\0" * 99],
    ids=["a dead process elsewhere", "a process number used again", "no text"],
)
def test_what_stands_in_the_lock_says_nothing_without_its_holder(tmp_path: Path, text: str) -> None:
    """The text of a dead process, of a process number that another has now, or none at all."""
    run = Run(tmp_path)
    (tmp_path / ".lock").write_text(text)
    assert run.holder() is None
    with run.lock():
        pass


def hold(run: Run, *, fork: bool) -> None:
    """Take the lock, start a process that lives on, say its number, and die."""
    with run.lock():
        if fork:
            inner = os.fork()
            if inner == 0:
                signal.pause()
        else:
            inner = subprocess.Popen(["sleep", "60"]).pid
        (run.folder / "inner").write_text(str(inner))
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("fork", [True, False], ids=["forked", "started"])
def test_a_process_that_the_holder_left_behind_does_not_hold_the_lock(tmp_path: Path, fork: bool) -> None:
    run = Run(tmp_path)
    child = start(lambda: hold(run, fork=fork))
    os.close(child.says)
    assert os.waitstatus_to_exitcode(os.waitpid(child.number, 0)[1]) == -signal.SIGKILL
    inner = int((tmp_path / "inner").read_text())
    os.kill(inner, 0)  # it lives
    try:
        with run.lock():
            pass
    finally:
        os.kill(inner, signal.SIGKILL)
        assert group_is_gone(child.number)


def test_a_forked_child_that_ends_leaves_the_lock_to_its_parent(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def unwind() -> None:
        assert run.holder() == f"process {os.getppid()} on {HOST}"

    with run.lock():
        code, said = in_child(unwind)
        assert code == 0, said
        assert run.holder() == f"process {os.getpid()} on {HOST}"
        code, said = in_child(lambda: run.lock().__enter__())
        assert code == 2 and f"process {os.getpid()}" in said
    assert run.holder() is None


def test_a_run_killed_while_workers_clean_leaves_neither_them_nor_its_lock(tmp_path: Path) -> None:
    settings, run = recipe(tmp_path, workers=2), Run(tmp_path / "run")

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    show = StageShow("reading", die)
    code, _ = finish(start(lambda: train(settings, out=run.folder, tools=Tools(show, StopRequest()))))
    assert code == -signal.SIGKILL
    with run.lock():
        assert not run.data.exists()


def test_looking_disturbs_neither_who_holds_nor_who_takes(tmp_path: Path) -> None:
    run, end, seen = Run(tmp_path), threading.Event(), list[str | None]()
    with run.lock():
        pass

    def look() -> None:
        while not end.is_set():
            seen.append(Run(tmp_path).holder())

    viewer = threading.Thread(target=look)
    viewer.start()
    try:
        for _ in range(200):
            with run.lock():
                pass
    finally:
        end.set()
        viewer.join()
    assert set(seen) <= {None, f"process {os.getpid()} on {HOST}"}


def test_a_reader_sees_whole_lines_of_a_log_that_grows(tmp_path: Path) -> None:
    path, lines = tmp_path / "metrics.jsonl", 2000

    def write() -> None:
        log = Log(path)
        for number in range(lines):
            log.append({"number": number, "text": "春" * (number % 50)})

    child, read = start(write), 0
    for _ in waiting(60):
        rows = path.read_bytes().split(b"\n") if path.exists() else [b""]
        assert rows[-1] == b""
        assert [json.loads(row)["number"] for row in rows[read:-1]] == list(range(read, len(rows) - 1))
        read = len(rows) - 1
        if read == lines:
            break
    assert finish(child) == (0, "")
