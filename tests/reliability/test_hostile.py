"""Files made to harm are refused, or read rightly.

No code of theirs runs, nothing else is written, memory and time stay bounded: see hostile.py for what is watched.
"""

import os
import subprocess
from pathlib import Path

import hostile
import pytest
from hostile_case import CANARY, READ, Case, put


def test_every_case_keeps_the_promise(tmp_path: Path) -> None:
    outcomes = hostile.sweep(tmp_path, count=len(hostile.CASES), seed=0)
    assert not [outcome for outcome in outcomes if outcome.startswith("BROKEN")], outcomes
    assert sum(outcomes.values()) == len(hostile.CASES) >= 500
    assert outcomes["refused"] >= 400 and outcomes["read correctly"] >= 100
    assert len({case.name for case in hostile.CASES}) == len(hostile.CASES)


def writes_elsewhere(folder: Path) -> None:
    (folder.parent / "another").write_text("owned")


def changes_another(folder: Path) -> None:
    (folder.parent / "outside" / "secret").write_text("owned")


def much_memory(folder: Path) -> None:
    bytearray(2 * hostile.MEMORY)


def imports(folder: Path) -> None:
    __import__(CANARY)


def runs(folder: Path) -> None:
    subprocess.run(["true"], check=True)


def dies(folder: Path) -> None:
    os.abort()


def fails(folder: Path) -> None:
    raise KeyError("x")


def reads(folder: Path) -> None:
    assert (folder / "a").read_text() == "a"


@pytest.mark.parametrize(
    ("use", "seen"),
    [
        (writes_elsewhere, "BROKEN: write"),
        (changes_another, "BROKEN: something outside the folder was written"),
        (much_memory, "BROKEN: MemoryError"),
        (imports, "BROKEN: code of the file ran"),
        (runs, "BROKEN: subprocess.Popen"),
        (dies, "BROKEN: ended the process, signal 6"),
        (fails, "BROKEN: KeyError"),
        (reads, "read correctly"),
    ],
)
def test_the_watch_sees_what_it_is_for(use: object, seen: str, tmp_path: Path) -> None:
    case = Case("a file", lambda folder: put(folder / "a", "a"), use, READ)  # type: ignore[arg-type]
    after = Case("the next", lambda folder: put(folder / "a", "a"), reads, READ)
    first, second = hostile.outcomes_of([case, after], tmp_path)
    assert first.startswith(seen) and second == READ


def test_a_case_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "SECONDS", 1)
    endless = Case("a file", lambda folder: None, lambda folder: sum(iter(int, 1)), READ)
    assert hostile.outcomes_of([endless], tmp_path) == ["BROKEN: took too long"]
