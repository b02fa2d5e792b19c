"""The kernels' library: found where it was kept, or compiled by the machine's GCC in two or three seconds, and kept.

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

SOURCES = ("fused.c", "vectors.h", "body.h", "tiles.h", "products.h", "muon.h")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fopenmp", "-fPIC", "-Wno-psabi")
_SECONDS = 120.0
_CPUINFO = Path("/proc/cpuinfo")


class NoKernelsError(Exception):
    """There are no kernels here; the message says why in a few words."""


def find(folder: Path | None = None) -> Library:
    """Return the library, compiled now where it was not yet; what came of it is remembered.

    Arguments:
        folder: where it is kept; None: `luban` in the user's cache folder (XDG_CACHE_HOME, or ~/.cache). One that
            others may write to is not used.

    Raises:
        NoKernelsError: on another system than Linux, without GCC, or when the compiler or what it made failed.
    """
    found = _found(folder)
    if isinstance(found, str):
        raise NoKernelsError(found)
    return found


@lru_cache
def _found(folder: Path | None) -> Library | str:
    """Return the library, or why there is none: a compiler that fails is not asked again."""
    if sys.platform != "linux":
        return f"they are made for Linux, and this is {platform.system()}"
    runtime = next(iter(sorted(Path(torch.__file__).with_name("lib").glob("libgomp*.so*"))), None)
    if runtime is None:
        return "this build of torch brings no GNU OpenMP"
    wanted = folder or _cache()
    kept = None if wanted is None else _own_folder(wanted)
    name = f"kernels-{_identity(runtime)}.so"
    if kept is not None and (library := _loaded(kept / name)):
        return library
    compiler = shutil.which("gcc")
    if compiler is None:
        return "there is no gcc"
    try:
        # Where it loads: a folder for temporary files may forbid that, and the cache may be full or read-only.
        with tempfile.TemporaryDirectory(
            prefix=".kernels.", dir=_writable(kept), ignore_cleanup_errors=True
        ) as scratch:
            return _made(compiler, runtime, Path(scratch) / name, kept)
    except OSError as error:
        return f"they could not be compiled: {error.strerror or error}"


def _made(compiler: str, runtime: Path, made: Path, kept: Path | None) -> Library | str:
    """Compile the library, check it, and keep it; return it, or why there is none."""
    if failed := _compile(compiler, runtime, made):
        return f"gcc failed: {failed}"
    try:
        library = Library(ctypes.CDLL(str(made)))
    except OSError as error:
        return f"what gcc made does not load: {error}"
    if found := wrong(library):
        return f"what gcc made computes {found} wrong"
    # What this process may not use it could not check: it is not kept for one that may.
    if kept is not None and library.whole:
        with contextlib.suppress(OSError, StorageError):
            write_bytes(kept / made.name, _sealed(made.read_bytes()), DISK)
    return library


def _sealed(library: bytes) -> bytes:
    """Return a library with its digest behind it, where a loader does not look."""
    return library + hashlib.sha256(library).digest()


def _loaded(path: Path) -> Library | None:
    """Load a kept library if it is this user's and whole: to load a damaged one may end the process."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with open(descriptor, "rb", closefd=False) as file:
            held = file.read()
        size = hashlib.sha256().digest_size
        if not _is_own(os.fstat(descriptor)) or _sealed(held[:-size]) != held:
            return None
        # By the descriptor: what is loaded is what was looked at.
        return Library(ctypes.CDLL(f"/proc/self/fd/{descriptor}"))
    except OSError:
        return None
    finally:
        os.close(descriptor)


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
        found = folder.lstat()
    except OSError:
        return None
    return folder if stat.S_ISDIR(found.st_mode) and _is_own(found) else None


def _is_own(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _writable(folder: Path | None) -> Path | None:
    return folder if folder is not None and os.access(folder, os.W_OK) else None


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


def _compile(compiler: str, runtime: Path, to: Path) -> str | None:
    """Return why it failed, in one line, or None."""
    for source in SOURCES:
        (to.parent / source).write_bytes(_source(source))
    # In two steps: linked with -fopenmp, it would want the system's OpenMP besides that of torch.
    compiling = [compiler, *FLAGS, "-c", SOURCES[0], "-o", "fused.o"]
    linking = [
        compiler,
        "-shared",
        "fused.o",
        f"-L{runtime.parent}",
        f"-l:{runtime.name}",
        "-lm",
        "-o",
        str(to),
    ]
    try:
        for command in (compiling, linking):
            subprocess.run(command, cwd=to.parent, capture_output=True, check=True, timeout=_SECONDS)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.decode(errors="replace").splitlines() if line.strip()]
        told = next(
            (line for line in lines if "error" in line),
            lines[-1] if lines else f"exit code {error.returncode}",
        )
        return told.strip()[:200]
    except subprocess.TimeoutExpired:
        return f"it had not ended after {_SECONDS:.0f} s"
    return None
