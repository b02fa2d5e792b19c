"""The machine: device, dtype, threads, memory, and how fast it really is.

Rates are measured, not looked up: a table of peak FLOP/s knows neither the container's quota nor the
neighbours, and whether bfloat16 is faster depends on the processor and on the width of the model.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import itertools
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from luban import __version__
from luban.cores import CGROUP, number_of, text_of, told_threads, usable_cores
from luban.errors import InputError

_REPEATS = 7
_SECONDS_EACH, _SECONDS_AT_LEAST = 0.05, 0.02
_PROBE_FLOPS = {"cpu": 1e8, "cuda": 2e11}
_PROBE_WIDTH = 1024
_SMALL = (128, 128, 128)
_HOPELESS = 1 / 3
_PEAK_SIZE = {"cpu": 768, "cuda": 8192}
BFLOAT16_GAIN = 1.25
BFLOAT16_WIDTH = 64
_COPY_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}
_UNLIMITED = 1 << 60
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_KEEP_MEMORY = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: (1 << 31) - 1}
"""Options of glibc's malloc. Its threshold for blocks of pages of their own goes up to 32 MB, so there are none at all:
an activation of a convolutional network may be larger."""
_EXTRAS = {
    "data": ("pyarrow", "zstandard"),
    "datasets": ("datasets",),
    "images": ("PIL",),
    "tables": ("sklearn",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow",),
}


@dataclasses.dataclass(frozen=True)
class MachineReport:
    """What a run ran on; `as_json` is machine.json of the run folder.

    Attributes:
        device: "cpu" or "cuda". name: of the processor or the GPU.
        cores: physical cores this process may use. threads: what torch computes with.
        memory_bytes: memory this process may have, of the machine or of its container.
        dtype: "float32" or "bfloat16". why: the reason for it, in words.
        peak_flops: measured rate of matrix products at that dtype, FLOP/s.
        bandwidth: measured rate of memory, bytes read plus bytes written per second.
        torch, python, platform, luban: versions.
    """

    device: str
    name: str
    cores: int
    threads: int
    memory_bytes: int
    dtype: str
    why: str
    peak_flops: float
    bandwidth: float
    torch: str
    python: str
    platform: str
    luban: str

    def as_json(self) -> dict[str, Any]:
        """Return the report as machine.json holds it."""
        return dataclasses.asdict(self)

    def first_line(self) -> str:
        """Return one line for the terminal."""
        threads = f", {told_threads(self.threads)}" if self.device == "cpu" else ""
        rate = f"{_rate(self.peak_flops)} measured"
        return f"{self.device}: {self.name}{threads}, {self.dtype} ({self.why}), {rate}"


def probe(width: int, tokens: int, wanted: str = "auto", device: str = "auto") -> MachineReport:
    """Measure the machine for a model of that width and steps of that many tokens; takes under half a second.

    Arguments:
        width: the model's hidden width. tokens: tokens in one micro-batch.
        wanted: "auto", "float32" or "bfloat16". device: "auto", "cpu" or "cuda".

    Raises:
        InputError: for a device that is not there.
    """
    device = choose_device(device)
    dtype, why = choose_dtype(width, tokens, wanted, device)
    return MachineReport(
        device=device,
        name=device_name(device),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        memory_bytes=memory_bytes(),
        dtype=_word(dtype),
        why=why,
        peak_flops=measure_matmul(dtype, _PEAK_SIZE[device], device),
        bandwidth=measure_bandwidth(device),
        torch=str(torch.__version__),
        python=platform.python_version(),
        platform=platform.platform(),
        luban=__version__,
    )


def choose_device(wanted: str = "auto") -> str:
    """Return "cuda" where torch can use a GPU, else "cpu"; or what is wanted, if it is there."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted not in ("cpu", "cuda"):
        raise InputError("no such device", received=wanted, fix="write auto, cpu or cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "torch finds no GPU here", received=wanted, fix="write auto or cpu, or install torch for CUDA"
        )
    return wanted


def choose_dtype(
    width: int, tokens: int, wanted: str = "auto", device: str = "cpu"
) -> tuple[torch.dtype, str]:
    """Return the dtype to compute in, and why: bfloat16 only where it is measured 1.25 times as fast.

    What is measured is the largest product of a layer, (tokens, width) by (width, 4 width), with fewer tokens
    and a width of at most 1024 where it would take long. A processor without bfloat16 instructions emulates
    them, far slower; and at small widths conversions eat the gain. Below a width of 64 nothing is measured: a
    product then takes as long as calling it, and chance would decide.
    """
    if wanted == "float32":
        return torch.float32, "as the recipe says"
    if wanted == "bfloat16":
        return torch.bfloat16, "as the recipe says"
    if wanted != "auto":
        raise InputError("no such dtype", received=wanted, fix="write auto, float32 or bfloat16")
    if width < BFLOAT16_WIDTH:
        return torch.float32, f"a width of {width} is too small for bfloat16 to pay"
    gain = _gain_at_first(device)
    if not emulates_bfloat16(device):
        inner = min(width, _PROBE_WIDTH)
        rows = max(16, min(tokens, int(_PROBE_FLOPS[device] / (8 * inner * inner))))
        shape = (rows, inner, 4 * inner)
        rates = {torch.bfloat16: 0.0, torch.float32: 0.0}
        for dtype in (*rates, *rates):  # by turns: what disturbs one must not decide
            rates[dtype] = max(rates[dtype], _flops(dtype, shape, device))
        gain = rates[torch.bfloat16] / rates[torch.float32]
    why = f"bfloat16 runs at {gain:.2g}x of float32 here"
    return (torch.bfloat16 if gain >= BFLOAT16_GAIN else torch.float32), why


def measure_matmul(dtype: torch.dtype, size: int, device: str = "cpu") -> float:
    """Return FLOP/s of square matrix products of that size; the fastest of a few."""
    return _flops(dtype, (size, size, size), device)


def matrix_rate(device: str = "auto") -> float:
    """Return FLOP/s of matrix products at the dtype that is faster here."""
    return max(matrix_rates(device))


def matrix_rates(device: str = "auto") -> tuple[float, float]:
    """Return FLOP/s of matrix products in float32 and in bfloat16; of emulated bfloat16 those of float32."""
    device = choose_device(device)
    wide = measure_matmul(torch.float32, _PEAK_SIZE[device], device)
    return wide, wide if emulates_bfloat16(device) else measure_matmul(
        torch.bfloat16, _PEAK_SIZE[device], device
    )


def emulates_bfloat16(device: str) -> bool:
    """Return whether bfloat16 is so slow at a small product that larger ones need not be tried.

    Measured once; a processor without instructions for it takes seconds for one large product.
    """
    return _gain_at_first(device) < _HOPELESS


@lru_cache
def _gain_at_first(device: str) -> float:
    """Return the rate of bfloat16 to that of float32, at a small product."""
    return _flops(torch.bfloat16, _SMALL, device) / _flops(torch.float32, _SMALL, device)


def measure_bandwidth(device: str = "cpu") -> float:
    """Return bytes per second of a copy larger than the caches, bytes read and bytes written both counted."""
    source = torch.ones(_COPY_BYTES[device] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES[device] / _fastest_seconds(lambda: target.copy_(source), device)


def _flops(dtype: torch.dtype, shape: tuple[int, int, int], device: str) -> float:
    rows, inner, columns = shape
    left = torch.full((rows, inner), 0.5, dtype=dtype, device=device)
    right = torch.full((inner, columns), 0.5, dtype=dtype, device=device)
    out = torch.empty((rows, columns), dtype=dtype, device=device)
    if device != "cpu":
        # A GPU's clock follows the power it draws, and products of equal numbers draw less than any in training.
        left.normal_()
        right.normal_()
    return 2 * rows * inner * columns / _fastest_seconds(lambda: torch.mm(left, right, out=out), device)


def _fastest_seconds(work: Callable[[], object], device: str) -> float:
    """Return the shortest duration of `work`, of seven calls and more after a first that does not count.

    The shortest, because neighbours on the machine can only make a call longer. Short calls go on for a while: seven of
    them may all fall into a moment in which another process has the core.
    """
    seconds: list[float] = []
    started = time.perf_counter()
    with torch.no_grad():
        for repeat in itertools.count():
            before = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            took = time.perf_counter() - before
            if repeat:
                seconds.append(took)
            else:
                # It may have loaded a GPU's code, for longer than all others take.
                started = time.perf_counter()
            passed = time.perf_counter() - started
            if seconds and passed > (_SECONDS_EACH if repeat < _REPEATS else _SECONDS_AT_LEAST):
                break
    return max(min(seconds), 1e-9)


def set_threads() -> int:
    """Let torch compute with the physical cores this process may use, and return how many.

    OMP_NUM_THREADS, where the user or torchrun has set it, is kept; several processes of one machine share
    its cores.
    """
    if not os.environ.get("OMP_NUM_THREADS"):
        share = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        torch.set_num_threads(max(1, usable_cores() // share))
    return torch.get_num_threads()


def keep_memory() -> bool:
    """Let the C library keep what tensors free, for the next step asks for the same again; return whether it will.

    As glibc comes, it hands blocks of megabytes back to the system, and every step then begins by taking and
    clearing its memory page by page: up to a third of the step (benchmarks/LOG.md). With another C library nothing
    is done. Meant for training, whose process ends with it.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - there in glibc alone
        set_option = library.mallopt
    except (AttributeError, OSError):
        return False
    return all(set_option(option, value) for option, value in _KEEP_MEMORY.items())


def memory_bytes(cgroup: Path = CGROUP) -> int:
    """Return the memory this process may have: the machine's, or its container's where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _memory_limit(cgroup)
    return total if limit is None else min(total, limit)


def memory_available(cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Return the memory that can be taken now, within the container's limit."""
    available = memory_bytes(cgroup)
    for line in text_of(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            available = min(available, 1024 * int(line.split()[1]))
    limit = _memory_limit(cgroup)
    used = number_of(cgroup / "memory.current") or number_of(cgroup / "memory" / "memory.usage_in_bytes")
    return available if limit is None or used is None else max(0, min(available, limit - used))


def _memory_limit(cgroup: Path) -> int | None:
    limit = number_of(cgroup / "memory.max") or number_of(cgroup / "memory" / "memory.limit_in_bytes")
    return limit if limit is not None and limit < _UNLIMITED else None


def device_name(device: str = "cpu", cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's or the GPU's name."""
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    for line in text_of(cpuinfo).splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware") and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine() or "processor"


def peak_rss_bytes() -> int:
    """Return the most bytes ever held by this process, its largest child or the GPU, whichever is most."""
    unit = 1 if sys.platform == "darwin" else 1024
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    held = max(resource.getrusage(who).ru_maxrss * unit for who in whose)
    return max(held, torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else held


def extras() -> dict[str, bool]:
    """Return which optional parts are installed, by the name that `pip install 'luban[NAME]'` takes."""
    return {
        extra: all(importlib.util.find_spec(module) is not None for module in modules)
        for extra, modules in _EXTRAS.items()
    }


def missing_modules(extra: str) -> list[str]:
    """Return the modules of an extra that are not installed."""
    return [module for module in _EXTRAS[extra] if importlib.util.find_spec(module) is None]


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rate(flops: float) -> str:
    return f"{flops / 1e12:.3g} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:.3g} GFLOP/s"
