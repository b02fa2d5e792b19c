"""`luban doctor`: what this machine and this installation can do, and what each lack costs."""

from __future__ import annotations

import fcntl
import importlib.metadata
import locale
import os
import platform
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import luban

FINE, LACKING, BROKEN = "fine", "lacking", "broken"
"""`lacking`: luban works without, at the cost that the note says. `broken`: needed, and not there."""

NEEDED = ("torch", "numpy", "safetensors", "tokenizers", "pydantic", "PyYAML", "rich", "click", "jinja2")
OLDEST_PYTHON, OLDEST_TORCH = (3, 11), (2, 11)
COSTS = {
    "data": ".parquet files and saved datasets (pyarrow) and .zst files (zstandard) are refused",
    "datasets": "nothing is lost: saved datasets are read without it; it is needed to make new ones",
    "images": "pictures in files (pillow) are refused; idx files are read without it",
    "tables": "no linear model and no gradient boosting stand beside a table's result (scikit-learn)",
    "onnx": "luban export is refused",
    "tensorboard": "train.loggers=tensorboard is refused; the report shows the same curves",
    "mlflow": "train.loggers=mlflow is refused; the report shows the same curves",
}
PROBE_WIDTH, PROBE_TOKENS = 256, 4096
WRITTEN = 16 << 20
SYNCS = 5
GIB = 1 << 30
MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `state` is fine, lacking or broken; `note` says what a lack costs and how to mend it."""

    section: str
    name: str
    value: str
    state: str = FINE
    note: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the form of `luban doctor --json`."""
        return asdict(self)


def doctor(folder: str | Path = ".") -> list[Finding]:
    """Look at the machine, the installation, and the folder that runs would be written to.

    Arguments:
        folder: where runs would lie; `runs/` below it, where that exists.
    """
    place = Path(folder)
    runs = place / "runs"
    checks: Sequence[Callable[[], Iterator[Finding]]] = (
        _installation,
        _machine,
        _extras,
        _terminal,
        lambda: _disk(runs if runs.is_dir() else place),
    )
    return [finding for check in checks for finding in _looked(check)]


def _looked(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Return what a check finds; one that fails is a finding, not the end of the others."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except Exception as error:  # whatever is wrong with the machine, the rest is still to be told
        name = getattr(check, "__name__", "check").strip("_<>")
        found.append(Finding("installation", name, "failed", BROKEN, f"{type(error).__name__}: {error}"))
    return found


def broken(findings: Sequence[Finding]) -> list[str]:
    """Return the names of what is needed and not there."""
    return [finding.name for finding in findings if finding.state == BROKEN]


def _installation() -> Iterator[Finding]:
    yield Finding("installation", "luban", f"{luban.__version__}, {Path(luban.__file__).parent}")
    old = sys.version_info[:2] < OLDEST_PYTHON
    oldest = ".".join(map(str, OLDEST_PYTHON))
    yield Finding(
        "installation",
        "Python",
        platform.python_version(),
        BROKEN if old else FINE,
        f"luban needs {oldest} or later" if old else "",
    )
    missing = [name for name in NEEDED if not _version(name)]
    versions = ", ".join(f"{name} {_version(name)}" for name in NEEDED if name not in ("torch", *missing))
    yield Finding("installation", "packages", versions)
    if missing:
        note = "needed: pip install --force-reinstall luban"
        yield Finding("installation", "packages", f"{', '.join(missing)} missing", BROKEN, note)
    yield from _torch()
    yield _kernels()
    compiler = shutil.which("g++") or shutil.which("clang++")
    cost = "train.compile stays off: it is for networks without kernels; install g++ or clang++"
    yield Finding(
        "installation",
        "C++ compiler",
        compiler or "none",
        FINE if compiler else LACKING,
        "" if compiler else cost,
    )


def _kernels() -> Finding:
    from luban.kernels import NoKernelsError, find

    try:
        find()
    except NoKernelsError as error:
        cost = "train.kernels stays off: forward and backward of a small language model take up to 2.3 times as long"
        cost += "; install gcc" if "gcc" in str(error) else ""
        return Finding("installation", "kernels", f"none: {error}", LACKING, cost)
    return Finding("installation", "kernels", "compiled for this processor")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        note = f"{type(error).__name__}: {error}; install torch for this machine: https://pytorch.org"
        yield Finding("installation", "torch", "cannot be imported", BROKEN, note)
        return
    numbers = tuple(
        int(part) for part in str(torch.__version__).split("+")[0].split(".")[:2] if part.isdigit()
    )
    old = numbers < OLDEST_TORCH
    parts = [
        str(torch.__version__),
        f"{torch.backends.cpu.get_cpu_capability()} kernels",
        *(["oneDNN"] if torch.backends.mkldnn.is_available() else []),  # type: ignore[no-untyped-call]
        *(["MKL"] if torch.backends.mkl.is_available() else []),  # type: ignore[no-untyped-call]
    ]
    oldest = ".".join(map(str, OLDEST_TORCH))
    note = f"luban needs {oldest} or later" if old else ""
    yield Finding("installation", "torch", ", ".join(parts), BROKEN if old else FINE, note)


def _machine() -> Iterator[Finding]:
    from luban import machine
    from luban.cores import cpu_quota, told_threads, usable_cores

    cores, quota = usable_cores(), cpu_quota()
    threads = machine.set_threads()
    limits = f", quota of {quota:g} processors" if quota is not None else ""
    asked = os.environ.get("OMP_NUM_THREADS")
    by = f" (OMP_NUM_THREADS={asked})" if asked else ""
    slow = threads < cores
    yield Finding("machine", "processor", machine.device_name("cpu"))
    yield Finding(
        "machine",
        "cores",
        f"{cores} usable of {os.cpu_count()} processors{limits}; torch computes with {told_threads(threads)}{by}",
        LACKING if slow else FINE,
        f"only {threads} of {cores} cores are used: unset OMP_NUM_THREADS" if slow else "",
    )
    total, available = machine.memory_bytes(), machine.memory_available()
    tight = available < GIB
    yield Finding(
        "machine",
        "memory",
        f"{total / GIB:.1f} GiB, {available / GIB:.1f} GiB free",
        LACKING if tight else FINE,
        "less than 1 GiB is free: only the smallest models fit" if tight else "",
    )
    report = machine.probe(PROBE_WIDTH, PROBE_TOKENS, device="cpu")
    rate = f"{report.peak_flops / 1e9:,.0f} GFLOP/s measured"
    yield Finding("machine", "matrix products", f"{rate} in {report.dtype}")
    yield Finding("machine", "memory rate", f"{report.bandwidth / 1e9:.1f} GB/s measured, reads and writes")
    yield Finding("machine", "number type", f"{report.dtype}: {report.why} (at width {PROBE_WIDTH})")
    gpu = machine.choose_device() == "cuda"
    yield Finding("machine", "GPU", machine.device_name("cuda") if gpu else "none; all runs on the processor")


def _extras() -> Iterator[Finding]:
    from luban.machine import extras, missing_modules

    for name, there in extras().items():
        value = "installed" if there else f"{' and '.join(missing_modules(name))} missing"
        note = "" if there else f"{COSTS[name]}: pip install 'luban[{name}]'"
        yield Finding("extras", name, value, FINE if there else LACKING, note)


def _terminal() -> Iterator[Finding]:
    stream = (sys.stdout.encoding or "unknown").lower()
    names = {"terminal": stream, "files": locale.getpreferredencoding(False).lower()}
    told = ", ".join(f"{name} {encoding}" for name, encoding in names.items())
    plain = stream.replace("-", "") != "utf8"
    cost = "characters beyond ASCII may not show; files are always UTF-8. Set LANG=C.UTF-8"
    yield Finding("terminal", "encoding", told, LACKING if plain else FINE, cost if plain else "")


def _disk(folder: Path) -> Iterator[Finding]:
    usage = shutil.disk_usage(folder)
    tight = usage.free < GIB
    yield Finding(
        "disk",
        "free space",
        f"{usage.free / GIB:.1f} GiB of {usage.total / GIB:.1f} GiB in {folder.absolute()}",
        LACKING if tight else FINE,
        "less than 1 GiB: a run may stop for want of space (it can go on)" if tight else "",
    )
    kind, scratch = filesystem(folder), Path(tempfile.gettempdir())
    same = "on the same disk" if folder.stat().st_dev == scratch.stat().st_dev else "on another disk"
    memory = filesystem(scratch) == "tmpfs"
    note = f"{scratch} is memory: luban evaluate keeps its tokens there" if memory else ""
    yield Finding("disk", "scratch", f"{scratch} {same}", LACKING if memory else FINE, note)
    in_memory = kind == "tmpfs"
    note = "a file system in memory: runs here are lost when the machine goes down" if in_memory else ""
    yield Finding("disk", "file system", kind, LACKING if in_memory else FINE, note)
    yield from _writing(folder)


def _writing(folder: Path) -> Iterator[Finding]:
    """Write, sync and lock in the folder, as a run does."""
    cannot = "runs cannot be written here: choose another folder with --out, or mend its permissions"
    try:
        with tempfile.TemporaryDirectory(prefix=".luban-doctor-", dir=folder) as inner:
            bulk, single = _write_speed(Path(inner))
            locks = _locks(Path(inner) / "lock")
    except OSError as error:
        yield Finding("disk", "writing", f"{error.strerror or error}", BROKEN, cannot)
        return
    value = (
        f"{WRITTEN / bulk / 1e6:,.0f} MB/s with fsync; {1000 * single:.1f} ms for one small write with fsync"
    )
    slow = single > 0.1
    note = "a slow disk: raise train.checkpoint_every" if slow else ""
    yield Finding("disk", "writing", value, LACKING if slow else FINE, note)
    note = "" if locks else "two processes could write one run: keep runs on a local disk, with --out"
    yield Finding("disk", "locks", "work" if locks else "do not hold", FINE if locks else BROKEN, note)


def _write_speed(folder: Path) -> tuple[float, float]:
    """Return the seconds of writing 16 MiB with one fsync, and the median of a small write with its own."""
    block = os.urandom(1 << 20)

    def timed(count: int, data: bytes, name: str) -> float:
        started = time.perf_counter()
        with (folder / name).open("wb", buffering=0) as file:
            for _ in range(count):
                file.write(data)
            os.fsync(file.fileno())
        return time.perf_counter() - started

    bulk = timed(WRITTEN >> 20, block, "bulk")
    small = sorted(timed(1, b"x" * 200, f"small-{number}") for number in range(SYNCS))
    return bulk, small[SYNCS // 2]


def _locks(path: Path) -> bool:
    """Whether a lock that one holds is refused to another."""
    with path.open("w") as holder, path.open("r") as other:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def filesystem(folder: Path, mounts: Path = MOUNTS) -> str:
    """Return the kind of file system a folder lies on, such as `ext4`; `unknown` where the system does not say."""
    try:
        lines = mounts.read_text("utf-8", "replace").splitlines()
        place = folder.resolve()
    except OSError:
        return "unknown"
    best = (-1, "unknown")
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) > 4 and after:
            mounted = Path(fields[4].replace("\\040", " "))
            if place.is_relative_to(mounted) and len(mounted.parts) >= best[0]:
                best = (len(mounted.parts), after.split()[0])
    return best[1]


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the form of `luban doctor --json`."""
    needed = broken(findings)
    return {
        "status": "error" if needed else "done",
        "exit_code": 1 if needed else 0,
        "broken": needed,
        "lacking": [finding.name for finding in findings if finding.state == LACKING],
        "findings": [finding.as_json() for finding in findings],
    }


def lines(findings: Sequence[Finding], width: int) -> list[str]:
    """Return the findings as lines of text, each lack with its cost below it, and a verdict at the end."""
    label = max(len(finding.name) for finding in findings) + 2
    told: list[str] = []
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            told += [*([""] if told else []), section]
        mark = {FINE: " ", LACKING: "-", BROKEN: "!"}[finding.state]
        told += _wrapped(f"{mark} {finding.name:{label}}", finding.value, width)
        if finding.note:
            told += _wrapped(" " * (label + 2), finding.note, width)
    needed, lacking = broken(findings), [f.name for f in findings if f.state == LACKING]
    verdict = (
        f"! needed and not there: {', '.join(needed)}" if needed else "everything that is needed is there"
    )
    less = f"; - could be better: {', '.join(lacking)}" if lacking else ""
    return [*told, "", *textwrap.wrap(verdict + less, max(40, width))]


def _wrapped(head: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        max(48, width),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head]
