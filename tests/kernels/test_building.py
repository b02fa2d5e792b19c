"""The library is compiled once, checked, and kept where nobody else can write; what fails is told in a few words."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from luban.kernels import Library, NoKernelsError, building, find
from luban.kernels.checking import wrong


@pytest.fixture(autouse=True)
def anew() -> None:
    find.cache_clear()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were run."""
    found: list[list[str]] = []
    own = subprocess.run

    def counted(command, **named):
        found.append(command)
        return own(command, **named)

    monkeypatch.setattr(building.subprocess, "run", counted)
    return found


def works(library: Library) -> bool:
    return library.gated_forward(torch.ones(1, 32)).shape == (1, 16)


@pytest.mark.usefixtures("library")
def test_it_is_compiled_once_and_kept(tmp_path: Path, runs: list[list[str]]) -> None:
    folder = tmp_path / "deep" / "cache"
    assert works(find(folder)) and len(runs) == 1
    kept = list(folder.iterdir())
    assert [path.suffix for path in kept] == [".so"]
    find.cache_clear()
    assert works(find(folder)) and len(runs) == 1
    whole = kept[0].read_bytes()
    for number, damaged in enumerate((b"", whole[:-1], whole[:20000] + b"?" + whole[20001:])):
        kept[0].unlink()  # not written over: it is loaded
        kept[0].write_bytes(damaged)
        find.cache_clear()
        assert works(find(folder)) and len(runs) == 2 + number
        assert kept[0].read_bytes() == whole or kept[0].stat().st_size == len(whole)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("others", [0o020, 0o002])
def test_a_folder_that_others_may_write_to_is_not_trusted(
    tmp_path: Path, others: int, runs: list[list[str]]
) -> None:
    tmp_path.chmod(0o700 | others)
    assert works(find(tmp_path)) and works(find(tmp_path))
    assert list(tmp_path.iterdir()) == [] and len(runs) == 1


@pytest.mark.usefixtures("library")
def test_the_users_cache_is_where_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    find()
    assert [path.suffix for path in (tmp_path / "luban").iterdir()] == [".so"]
    assert (tmp_path / "luban").stat().st_mode & 0o077 == 0


def compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a script in the place of gcc."""
    folder.mkdir()
    (folder / "gcc").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are made for Linux")
@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            "echo 'fused.c:1: error: no such thing' >&2; exit 1",
            "gcc failed: fused.c:1: error: no such thing",
        ),
        ("exit 0", "what gcc made does not load: "),
        ("exit 3", "gcc failed: "),
    ],
)
def test_a_compiler_that_fails_is_told_of(
    script: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path / "bin", monkeypatch, script)
    with pytest.raises(NoKernelsError) as error:
        find(tmp_path / "cache")
    assert str(error.value).startswith(told)
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_compiler_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building.shutil, "which", lambda _: None)
    with pytest.raises(NoKernelsError, match="there is no gcc"):
        find(tmp_path)
    monkeypatch.setattr(building.sys, "platform", "darwin")
    find.cache_clear()
    with pytest.raises(NoKernelsError, match="they are made for Linux"):
        find(tmp_path)


BROKEN: dict[str, Callable[[Library, pytest.MonkeyPatch], None]] = {
    "the gate in float32": lambda library, patch: spoil(library, patch, "gated_forward"),
    "the norm in float32": lambda library, patch: spoil(library, patch, "norm_backward"),
    "the heads in float32": lambda library, patch: spoil(library, patch, "heads_backward"),
    "the softmax in float32": lambda library, patch: patch.setattr(
        library, "softmax_forward", lambda *_: None
    ),
}


def spoil(library: Library, patch: pytest.MonkeyPatch, name: str) -> None:
    """Let a function err by a thousandth, in the first tensor it returns."""
    own = getattr(library, name)

    def erring(*given, **named):
        found = own(*given, **named)
        return found * 1.001 if isinstance(found, Tensor) else (found[0] * 1.001, *found[1:])

    patch.setattr(library, name, erring)


@pytest.mark.parametrize("told", BROKEN)
def test_what_computes_something_else_is_found(
    told: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wrong(library) is None
    BROKEN[told](library, monkeypatch)
    assert wrong(library) == told


@pytest.mark.usefixtures("library")
def test_what_computes_something_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "wrong", lambda _: "the gate in float32")
    with pytest.raises(NoKernelsError, match="what gcc made computes the gate in float32 wrong"):
        find(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_check_draws_nothing_from_the_runs_generator(library: Library) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    wrong(library)
    assert torch.equal(before, torch.get_rng_state())
