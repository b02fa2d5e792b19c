"""The library is compiled once, checked, and kept where nobody else can write; what fails is told in a few words."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from luban.errors import StorageError
from luban.kernels import Library, NoKernelsError, building, find
from luban.kernels.checking import wrong


@pytest.fixture(autouse=True)
def anew() -> None:
    building._found.cache_clear()


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
    assert works(find(folder)) and len(runs) == 2
    kept = list(folder.iterdir())
    assert [path.suffix for path in kept] == [".so"]
    building._found.cache_clear()
    assert works(find(folder)) and len(runs) == 2
    whole = kept[0].read_bytes()
    for number, damaged in enumerate((b"", whole[:-1], whole[:20000] + b"?" + whole[20001:])):
        kept[0].unlink()  # not written over: it is loaded
        kept[0].write_bytes(damaged)
        building._found.cache_clear()
        assert works(find(folder)) and len(runs) == 4 + 2 * number
        held = kept[0].read_bytes()
        assert hashlib.sha256(held[:-32]).digest() == held[-32:], "a whole one lies there again"


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("others", [0o020, 0o002])
def test_a_folder_that_others_may_write_to_is_not_trusted(
    tmp_path: Path, others: int, runs: list[list[str]]
) -> None:
    tmp_path.chmod(0o700 | others)
    assert works(find(tmp_path)) and works(find(tmp_path))
    assert list(tmp_path.iterdir()) == [] and len(runs) == 2


@pytest.mark.usefixtures("library")
def test_the_users_cache_is_where_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    find()
    assert [path.suffix for path in (tmp_path / "luban").iterdir()] == [".so"]
    assert (tmp_path / "luban").stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("library")
def test_a_library_that_is_not_this_users_or_a_link_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[list[str]]
) -> None:
    find(tmp_path / "own")
    (kept,) = (tmp_path / "own").iterdir()
    kept.chmod(0o666)
    building._found.cache_clear()
    assert works(find(tmp_path / "own")) and len(runs) == 4
    kept.rename(tmp_path / "elsewhere.so")
    kept.symlink_to(tmp_path / "elsewhere.so")
    building._found.cache_clear()
    assert works(find(tmp_path / "own")) and len(runs) == 6
    (tmp_path / "link").symlink_to(tmp_path / "own")
    assert works(find(tmp_path / "link")) and len(runs) == 8, "a link could be led elsewhere meanwhile"


@pytest.mark.usefixtures("library")
def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(building, "write_bytes", full)
    assert works(find(tmp_path)) and list(tmp_path.iterdir()) == []
    monkeypatch.setattr(building, "_writable", lambda _: tmp_path / "gone")
    building._found.cache_clear()
    with pytest.raises(NoKernelsError, match="they could not be compiled: No such file or directory"):
        find(tmp_path)


def test_a_compiler_that_fails_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(tmp_path / "bin", monkeypatch, f"echo asked >> {tmp_path / 'asked'}; exit 1")
    for _ in range(3):
        with pytest.raises(NoKernelsError):
            find(tmp_path / "cache")
    assert (tmp_path / "asked").read_text() == "asked\n"


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
        ("exit 3", "gcc failed: exit code 3"),
        (
            "echo 'In file:' >&2; echo 'a.c:1: fatal error: x' >&2; echo ended. >&2; exit 1",
            "gcc failed: a.c:1: fatal",
        ),
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
    building._found.cache_clear()
    with pytest.raises(NoKernelsError, match="they are made for Linux"):
        find(tmp_path)


@pytest.mark.parametrize("without", ["amx-bf16", "avx512bf16"])
def test_a_processor_with_fewer_instructions_has_what_it_can(
    without: str, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made for one without a matrix unit, or without products of bfloat16, is right, and says what it lacks."""
    known = ["gcc", f"-mno-{without}", "-mno-amx-bf16", "-E", "-x", "c", os.devnull]
    if subprocess.run(known, capture_output=True).returncode:
        pytest.skip("this GCC, or this processor, knows no such instructions")
    monkeypatch.setattr(building, "FLAGS", (*building.FLAGS, f"-mno-{without}", "-mno-amx-bf16"))
    fewer = find(tmp_path)
    assert wrong(fewer) is None and works(fewer)
    assert not fewer.multiplies(torch.bfloat16, by_unit=True)
    assert fewer.multiplies(torch.bfloat16) == (without == "amx-bf16" and library.multiplies(torch.bfloat16))


def test_a_system_that_does_not_lend_the_matrix_unit(library: Library) -> None:
    class Refusing:
        """The library, in a process that may not use it."""

        def __getattr__(self, name: str) -> object:
            return (lambda: 1) if name == "tiles_allowed" else getattr(library._loaded, name)

    refused = Library(Refusing())  # type: ignore[arg-type]
    assert not refused.multiplies(torch.bfloat16) and not refused.takes_muon(64, 64)
    assert wrong(refused) is None and works(refused)
    assert refused.whole == (not library.multiplies(torch.bfloat16))


@pytest.mark.usefixtures("library")
def test_what_could_not_be_checked_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Part(Library):
        def __init__(self, *given: object) -> None:
            super().__init__(*given)
            self.whole = False

    monkeypatch.setattr(building, "Library", Part)
    assert works(find(tmp_path)) and list(tmp_path.iterdir()) == []


BROKEN: dict[str, Callable[[Library, pytest.MonkeyPatch], None]] = {
    "the gate in float32": lambda library, patch: spoil(library, patch, "gated_forward"),
    "the norm in float32": lambda library, patch: spoil(library, patch, "norm_backward"),
    "the heads in float32": lambda library, patch: spoil(library, patch, "heads_backward"),
    "the softmax in float32": lambda library, patch: patch.setattr(
        library, "softmax_forward", lambda *_: None
    ),
    "the loss in float32": lambda library, patch: spoil(library, patch, "cross_entropy"),
    "the length of a gradient in float32": lambda library, patch: spoil(library, patch, "norm"),
    "attention in bfloat16": lambda library, patch: spoil(library, patch, "attention_backward"),
    "the gradient of a matrix in bfloat16": lambda library, patch: spoil(library, patch, "matrix_backward"),
    "Muon in bfloat16": lambda library, patch: patch.setattr(library, "muon", lambda *_, **__: None),
}
PRODUCTS = ("attention in bfloat16", "the gradient of a matrix in bfloat16", "Muon in bfloat16")


def spoil(library: Library, patch: pytest.MonkeyPatch, name: str) -> None:
    """Let a function err by more than rounding does, in the first tensor it returns."""
    own, by = getattr(library, name), 1.01 if name in ("attention_backward", "matrix_backward") else 1.001

    def erring(*given, **named):
        found = own(*given, **named)
        return found * by if isinstance(found, Tensor | float) else (found[0] * by, *found[1:])

    patch.setattr(library, name, erring)


@pytest.mark.parametrize("told", BROKEN)
def test_what_computes_something_else_is_found(
    told: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wrong(library) is None
    if told in PRODUCTS and not library.multiplies(torch.bfloat16, by_unit="matrix" in told):
        pytest.skip("this processor has no such products")
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
