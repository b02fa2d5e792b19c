"""The run folder: its lock, its logs, and who may begin in it."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faulty_disk import FaultyDisk, with_every_death, with_every_fault
from luban.errors import InputError, StorageError
from luban.run import Log, Run, run_of

HOLDER = """
import sys
from pathlib import Path
from luban.run import Run

with Run(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def lines_of(path: Path) -> list[object]:
    """Every line of a log; a line that is not whole fails the test."""
    content = path.read_bytes()
    assert not content or content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


def test_a_held_run_refuses_names_its_holder_and_is_free_once_the_holder_is_killed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    command = [sys.executable, "-c", HOLDER, str(run.folder)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for _ in range(2):
            with pytest.raises(InputError, match=f"in use by process {holder.pid} on ") as caught, run.lock():
                pass
            assert caught.value.exit_code == 2
            assert run.locked_by_other()
        (run.folder / ".plan.json.0123abcd.tmp").write_text("torn")
        run.checkpoints.mkdir()
        (run.checkpoints / ".step-00000001.0123abcd.tmp").mkdir()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert not run.locked_by_other()
    with run.lock():
        assert (run.folder / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        assert not list(run.folder.glob(".*.tmp"))
        assert not list(run.checkpoints.iterdir())
    with run.lock():
        pass


def test_looking_changes_nothing_and_never_costs_anybody_the_lock(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.locked_by_other()
    assert not list(tmp_path.iterdir())
    with run.lock():
        content = (tmp_path / ".lock").read_bytes()
        assert run.locked_by_other()
        assert (tmp_path / ".lock").read_bytes() == content
    # A look holds a shared lock for an instant; one that is slow must not refuse who wants to work.
    with (tmp_path / ".lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        timer = threading.Timer(0.03, lambda: fcntl.flock(looking, fcntl.LOCK_UN))
        timer.start()
        with run.lock():
            pass
        timer.join()


def test_a_file_in_the_place_of_the_run_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="file is in the place") as caught, Run(folder).lock():
            pass
        assert caught.value.received == str(folder)


def test_a_run_begins_once_and_only_in_an_empty_folder(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(InputError, match="no run"):
        run.read_recipe()
    with run.lock():
        run.begin({"task": "language-model"})
        assert run.read_recipe() == {"task": "language-model"}
        run.plan.write_text("{}")
        with pytest.raises(InputError, match="already holds a run") as caught:
            run.begin({"task": "other"})
    assert f"--resume {run.folder}" in str(caught.value)
    assert run.read_recipe() == {"task": "language-model"}
    found = run_of(run.folder)
    assert found is not None
    assert found.folder == run.folder
    assert run_of(tmp_path) is None

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="not empty") as caught:
        Run(tmp_path / "full").begin({})
    assert "thesis.txt" in str(caught.value)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_a_run_that_never_came_to_its_first_step_is_begun_anew(tmp_path: Path) -> None:
    """A wrong path in the first command must not burn the folder for the second."""
    run = Run(tmp_path / "run")
    with run.lock():
        run.begin({"task": "wrong"})
        run.event("failed", "no such file")
        run.data.mkdir()
        (run.data / "manifest.json").write_text('{"kind": "prepared data"}')
        run.begin({"task": "language-model"})
        assert run.read_recipe() == {"task": "language-model"}
        assert not run.data.exists()


RECORDS = st.lists(
    st.dictionaries(st.text(), st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)),
    max_size=6,
)


@given(records=RECORDS, kept=st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_a_log_reads_back_as_written_and_cuts_back_to_any_noted_size(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]], kept: int
) -> None:
    log = Log(tmp_path_factory.mktemp("log") / "metrics.jsonl")
    sizes = [log.size()]
    for record in records:
        log.append(record)
        sizes.append(log.sync())
    assert sizes[-1] == log.size()
    if records:
        assert lines_of(log.path) == records
    kept = min(kept, len(records))
    log.cut(sizes[kept])
    assert log.size() == sizes[kept]
    log.append({"again": 1})
    assert lines_of(log.path) == [*records[:kept], {"again": 1}]


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("kind", ["EIO", "ENOSPC", "short write"])
def test_no_line_is_torn_whatever_operation_fails(tmp_path: Path, kind: str, forever: bool) -> None:
    numbers = count()
    written: list[int] = []
    path = tmp_path / "none"

    def work(disk: FaultyDisk) -> None:
        nonlocal path
        path = tmp_path / f"{next(numbers)}.jsonl"
        written.clear()
        log = Log(path, disk)
        for number in range(3):
            log.append({"n": number})
            written.append(number)

    for _ in with_every_fault(work, kind, forever):
        if not forever and path.exists():
            assert lines_of(path) == [{"n": number} for number in written]
        again = Log(path)
        again.append({"n": "again"})
        assert lines_of(path) == [{"n": number} for number in written] + [{"n": "again"}]


def test_no_line_is_torn_wherever_the_process_dies(tmp_path: Path) -> None:
    path = tmp_path / "0.jsonl"

    def work(disk: FaultyDisk) -> None:
        log = Log(path, disk)
        for number in range(3):
            log.append({"n": number})

    deaths = 0
    for deaths, _ in enumerate(with_every_death(work), 1):
        Log(path).append({"n": "again"})
        lines = lines_of(path)
        assert lines == [{"n": number} for number in range(len(lines) - 1)] + [{"n": "again"}]
        path = tmp_path / f"{deaths}.jsonl"
    assert deaths > 5


@pytest.mark.parametrize("torn", [b'{"n": 1', b"x" * 200_000])
@pytest.mark.parametrize("whole", [b"", b'{"n": 0}\n'])
def test_a_torn_last_line_of_a_crashed_machine_goes_with_the_next_append(
    tmp_path: Path, whole: bytes, torn: bytes
) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(whole + torn)
    Log(path).append({"n": 2})
    assert path.read_bytes() == whole + b'{"n": 2}\n'


def test_a_log_refuses_what_is_not_json_and_names_a_full_disk(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        log.append({"loss": float("inf")})
    assert log.size() == 0
    with pytest.raises(StorageError, match=r"metrics\.jsonl.*bytes free"):
        Log(log.path, FaultyDisk(1, "ENOSPC")).append({"loss": 1.0})


def test_the_logs_of_a_run_cut_back_to_a_checkpoint_and_events_stay(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.event("started", "first", ranks=1)
    run.metrics.append({"step": 1})
    sizes = run.sync_logs()
    for log in (run.metrics, run.timings, run.samples):
        log.append({"step": 2})
    run.cut_logs(sizes)
    assert lines_of(run.metrics.path) == [{"step": 1}]
    assert run.timings.size() == run.samples.size() == 0
    run.cut_logs({})
    assert run.metrics.size() == 0
    (event,) = lines_of(run.events.path)
    assert isinstance(event, dict)
    assert {**event, "time": ""} == {"time": "", "event": "started", "message": "first", "ranks": 1}
    assert event["time"].endswith("+00:00")
