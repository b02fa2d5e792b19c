"""The machine report: what containers allow, which dtype is chosen and why, rates that obey arithmetic."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from luban import machine
from luban.errors import InputError

FIELDS = (
    *("device", "name", "cores", "threads", "memory_bytes", "dtype", "why"),
    *("peak_flops", "bandwidth", "torch", "python", "platform", "luban"),
)


@pytest.fixture(scope="module")
def report() -> machine.MachineReport:
    return machine.probe(width=64, tokens=256, device="cpu")


def test_the_report_has_the_fields_of_machine_json(report: machine.MachineReport) -> None:
    assert tuple(report.as_json()) == FIELDS
    assert json.loads(json.dumps(report.as_json(), allow_nan=False)) == report.as_json()


def test_the_rates_are_those_of_a_real_machine(report: machine.MachineReport) -> None:
    assert 1e8 < report.peak_flops < 1e15
    assert 1e8 < report.bandwidth < 1e13
    assert report.memory_bytes >= machine.memory_available() > 0


def test_the_first_line_says_device_threads_dtype_and_rate(report: machine.MachineReport) -> None:
    line = report.first_line()
    assert "\n" not in line
    assert line.startswith(f"cpu: {report.name}, {report.threads} thread")
    assert f"{report.dtype} ({report.why})" in line
    assert line.endswith("FLOP/s measured")


@pytest.mark.parametrize(("gain", "chosen"), [(0.3, "float32"), (1.2, "float32"), (1.3, "bfloat16")])
def test_bfloat16_is_chosen_only_where_it_is_measured_to_pay(
    gain: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def rate(dtype: torch.dtype, shape: tuple[int, int, int], device: str) -> float:
        shapes.append(shape)
        return 1e11 * (gain if dtype == torch.bfloat16 else 1.0)

    monkeypatch.setattr(machine, "_flops", rate)
    monkeypatch.setattr(machine, "_gain_at_first", lambda device: 1.0)
    dtype, why = machine.choose_dtype(width=128, tokens=100)
    assert dtype == getattr(torch, chosen)
    assert f"{gain}x of float32" in why
    assert shapes == [(100, 128, 512)] * 4


def test_of_narrow_products_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_flops", lambda *_: pytest.fail("measured"))
    dtype, why = machine.choose_dtype(width=32, tokens=1 << 20)
    assert dtype == torch.float32
    assert "width of 32" in why


def test_where_bfloat16_is_emulated_no_large_product_of_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def rate(dtype: torch.dtype, shape: tuple[int, int, int], device: str) -> float:
        tried.append((dtype, max(shape)))
        return 1e9 if dtype == torch.bfloat16 else 1e11

    monkeypatch.setattr(machine, "_flops", rate)
    machine._gain_at_first.cache_clear()
    dtype, why = machine.choose_dtype(width=1024, tokens=10_000)
    assert dtype == torch.float32
    assert "0.01x of float32" in why
    assert machine.matrix_rate("cpu") == 1e11
    machine._gain_at_first.cache_clear()
    assert all(size <= 128 for dtype, size in tried if dtype == torch.bfloat16)


def test_one_disturbed_measurement_does_not_decide_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    for disturbed in range(4):
        calls: list[torch.dtype] = []

        def rate(
            dtype: torch.dtype, *_: object, calls: list[torch.dtype] = calls, at: int = disturbed
        ) -> float:
            calls.append(dtype)
            return (3e11 if dtype == torch.bfloat16 else 1e11) / (20 if len(calls) - 1 == at else 1)

        monkeypatch.setattr(machine, "_flops", rate)
        monkeypatch.setattr(machine, "_gain_at_first", lambda device: 1.0)
        assert machine.choose_dtype(width=128, tokens=100)[0] == torch.bfloat16


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_a_wanted_dtype_is_taken(wanted: str) -> None:
    assert machine.choose_dtype(64, 64, wanted)[0] == getattr(torch, wanted)


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="no such dtype"):
        machine.choose_dtype(64, 64, "float8")
    with pytest.raises(InputError, match="no such device"):
        machine.choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no GPU"):
            machine.choose_device("cuda")


def test_larger_work_takes_longer() -> None:
    def ratio() -> float:
        small = 2 * 64**3 / machine.measure_matmul(torch.float32, 64)
        return 2 * 512**3 / machine.measure_matmul(torch.float32, 512) / small

    assert any(
        ratio() > 5 for _ in range(5)
    )  # neighbours may stop a process for as long as the small one takes


def test_a_first_call_that_takes_long_leaves_time_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it loads code, and the clock comes up during the calls after it."""
    now, took = [0.0], iter([0.5, *(0.004 - 0.0001 * call for call in range(30))])

    def work() -> None:
        now[0] += next(took)

    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    assert machine._fastest_seconds(work, "cpu") < 0.0035


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 4),
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
    ],
)
def test_cores_are_physical_and_within_the_container_quota(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    _write(tmp_path, files)
    assert machine.usable_cores(tmp_path, tmp_path) == cores


@pytest.mark.parametrize(
    ("files", "total", "available"),
    [
        ({"memory.max": "1000000", "memory.current": "400000"}, 1_000_000, 600_000),
        ({"memory/memory.limit_in_bytes": "900000", "memory/memory.usage_in_bytes": "1000000"}, 900_000, 0),
    ],
)
def test_memory_is_the_containers(files: dict[str, str], total: int, available: int, tmp_path: Path) -> None:
    _write(tmp_path, files)
    assert machine.memory_bytes(tmp_path) == total
    assert machine.memory_available(tmp_path, tmp_path / "meminfo") == available


@pytest.mark.parametrize(
    "files", [{"memory.max": "max"}, {"memory/memory.limit_in_bytes": "9223372036854771712"}, {}]
)
def test_memory_without_a_limit_is_the_machines(files: dict[str, str], tmp_path: Path) -> None:
    _write(tmp_path, files)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.memory_bytes(tmp_path) == physical
    assert machine.memory_available(tmp_path, tmp_path / "meminfo") == 2048 * 1024


def test_the_processor_has_its_name(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some  Processor 9\n")
    assert machine.device_name("cpu", cpuinfo) == "Some Processor 9"
    assert machine.device_name("cpu", tmp_path / "absent")


def test_threads_keep_the_users_choice_and_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(machine, "usable_cores", lambda: 6)
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        assert machine.set_threads() == before
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        assert machine.set_threads() == 3
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
        assert machine.set_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_peak_memory_counts_what_was_held_and_let_go() -> None:
    code = (
        "from luban.machine import peak_rss_bytes\n"
        "before = peak_rss_bytes()\nheld = bytearray(b'x') * 400_000_000\ndel held\n"
        "print(before, peak_rss_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 500_000_000 < after < before + 450_000_000


def test_extras_are_those_of_the_package_that_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        machine.importlib.util, "find_spec", lambda name: None if name == "zstandard" else name
    )
    others = ("datasets", "images", "tables", "onnx", "tensorboard", "mlflow")
    assert machine.extras() == {"data": False, **dict.fromkeys(others, True)}


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_freed_memory_is_kept_for_the_next_step() -> None:
    """In a process of its own: the setting stays for good. Faults are counted, not seconds."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc's allocator is told to keep memory")
    code = """
import resource, sys, torch
from luban.machine import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
def step():
    held = [torch.ones(1 << size) for size in (21, 21, 21, 24)]  # 8 MB, and 64 MB
    return sum(x[0] for x in held)
step(); step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", code, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("keep", "as it comes")
    }
    assert faults["keep"] < faults["as it comes"] / 10
