"""Damaged files of every kind are read or refused with luban's own error: no crash, no hang, nothing else.

Seconds of fuzzing: the environment variable LUBAN_FUZZ_SECONDS, 25 without it. What once failed is tried first.
"""

import os
from collections.abc import Callable
from pathlib import Path

import fuzz
import pytest

from luban.errors import InputError

FAILED_ONCE = sorted(fuzz.CORPUS.glob("*--*")) if fuzz.CORPUS.is_dir() else []


@pytest.mark.parametrize("path", FAILED_ONCE, ids=lambda path: path.name)
def test_what_failed_once_does_not_fail_again(path: Path, tmp_path: Path) -> None:
    assert fuzz.replay(path, tmp_path) in ("read", "refused")


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    seconds = int(os.environ.get("LUBAN_FUZZ_SECONDS", "25"))
    outcomes = fuzz.sweep(tmp_path, count=seconds, seed=int(os.environ.get("LUBAN_FUZZ_SEED", "0")))
    assert set(outcomes) <= {"read", "refused"}, outcomes
    assert outcomes["read"] >= 30 and outcomes["refused"] >= 30


def test_a_case_is_the_same_for_the_same_number() -> None:
    for target in fuzz.TARGETS:
        first, again, other = (fuzz.case(target, number, seed=1) for number in (5, 5, 6))
        assert first == again != other
    assert len({target.name for target in fuzz.TARGETS}) == len(fuzz.TARGETS)


def aborts(file: Path) -> None:
    os.abort()


def hangs(file: Path) -> None:
    sum(iter(int, 1))


def fails(file: Path) -> None:
    raise KeyError("x")


def refuses(file: Path) -> None:
    raise InputError("no")


@pytest.mark.parametrize(
    ("use", "why"),
    [(aborts, "ended by signal 6"), (hangs, "took over 1 s"), (fails, "KeyError: 'x'"), (refuses, None)],
)
def test_failures_are_seen_kept_and_tried_again(
    use: Callable[[Path], None], why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = fuzz.Target("toy", use, member="a", seeds=lambda: [b"whole"])
    monkeypatch.setattr(fuzz, "CORPUS", tmp_path / "corpus")
    monkeypatch.setattr(fuzz, "TARGETS", [target])
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    outcomes = fuzz.fuzz(target, tmp_path, seed=0, seconds=0.0, at_least=2)
    if why is None:
        assert outcomes == {"refused": 2} and not fuzz.CORPUS.exists()
        return
    assert sum(outcomes.values()) == 2 and all(key.startswith(f"BROKEN: toy: {why}") for key in outcomes)
    kept = next(fuzz.CORPUS.iterdir())
    assert fuzz.replay(kept, tmp_path) == f"BROKEN: {why}"
