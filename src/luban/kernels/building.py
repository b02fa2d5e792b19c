"""The kernels' library: found where it was kept, or compiled by the machine's own GCC in a second or two, and kept.

The threads of the library must be those of torch: two runtimes of OpenMP in one process, each with threads that wait
for work, take the cores from one another. So it is linked to the very file that torch brings.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from functools import lru_cache
from importlib import resources
from pathlib import Path

import torch

from luban.cores import text_of
from luban.durable import DISK, write_bytes
from luban.errors import StorageError
from luban.kernels.checking import wrong
from luban.kernels.library import Library

SOURCES = ("fused.c", "body.h")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
_SECONDS = 120.0
_CPUINFO = Path("/proc/cpuinfo")


class NoKernelsError(Exception):
    """There are no kernels here; the message says why in a few words."""


@lru_cache
def find(folder: Path | None = None) -> Library:
    """Return the library, compiled now where it was not yet.

    Arguments:
        folder: where it is kept; None: `luban` in the user's cache folder (XDG_CACHE_HOME, or ~/.cache). One that
            others may write to is not used.

    Raises:
        NoKernelsError: on another system than Linux, without GCC, or when the compiler or what it made failed.
    """
    if sys.platform != "linux":
        raise NoKernelsError(f"they are made for Linux, this is {platform.system()}")
    runtime = next(iter(sorted(Path(torch.__file__).with_name("lib").glob("libgomp*.so*"))), None)
    if runtime is None:
        raise NoKernelsError("torch was built without GNU OpenMP")
    wanted = folder or _cache()
    kept = None if wanted is None else _own_folder(wanted)
    name = f"kernels-{_identity(runtime)}.so"
    if kept is not None and _is_whole(kept / name):
        with contextlib.suppress(OSError):
            return Library(ctypes.CDLL(str(kept / name)))
    compiler = shutil.which("gcc")
    if compiler is None:
        raise NoKernelsError("there is no gcc")
    with tempfile.TemporaryDirectory(prefix=".kernels.", dir=kept) as scratch:
        made = Path(scratch) / name
        _compile(compiler, runtime, made)
        try:
            library = Library(ctypes.CDLL(str(made)))
        except OSError as error:
            raise NoKernelsError(f"what gcc made does not load: {error}") from error
        if found := wrong(library):
            raise NoKernelsError(f"what gcc made computes {found} wrong")
        if kept is not None:
            with contextlib.suppress(OSError, StorageError):
                write_bytes(kept / name, _sealed(made.read_bytes()), DISK)
    return library


def _sealed(library: bytes) -> bytes:
    """Return a library with its digest behind it, where a loader does not look."""
    return library + hashlib.sha256(library).digest()


def _is_whole(path: Path) -> bool:
    """Whether a kept library is what was written: to load a damaged one may end the process."""
    try:
        held = path.read_bytes()
    except OSError:
        return False
    size = hashlib.sha256().digest_size
    return _sealed(held[:-size]) == held


def _cache() -> Path | None:
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(given) if given and Path(given).is_absolute() else Path.home() / ".cache") / "luban"
    except RuntimeError:  # nobody knows where this user's home is
        return None


def _own_folder(folder: Path) -> Path | None:
    """Return the folder, made where it was not; None where others could put a library of theirs into it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return None
    foreign = found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return None if foreign else folder


def _identity(runtime: Path) -> str:
    """Return what the library depends on, as a digest: another processor or torch has its own."""
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update(_source(source))
    lines = text_of(_CPUINFO).splitlines()
    about = sorted(
        {line for line in lines if line.startswith(("model", "flags", "cpu family", "Features", "CPU part"))}
    )
    digest.update("\n".join([*FLAGS, platform.machine(), str(runtime), *about]).encode())
    return digest.hexdigest()[:16]


def _source(name: str) -> bytes:
    return resources.files("luban.kernels").joinpath(name).read_bytes()


def _compile(compiler: str, runtime: Path, to: Path) -> None:
    for source in SOURCES:
        (to.parent / source).write_bytes(_source(source))
    linked = [f"-L{runtime.parent}", f"-l:{runtime.name}", "-lm"]
    command = [compiler, *FLAGS, SOURCES[0], "-o", str(to), *linked]
    try:
        subprocess.run(command, cwd=to.parent, capture_output=True, check=True, timeout=_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        raise NoKernelsError(
            f"gcc failed: {said.decode(errors='replace').strip().splitlines()[-1][:200]}"
        ) from error
