"""Who else is on the processors, and how threads wait because of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from luban import cores
from luban.cores import Usage, busy_cores, settle_waiting, usage

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who used the processors")
HERTZ = os.sysconf("SC_CLK_TCK")


def account(folder: Path, ticks: int) -> Path:
    """The kernel's account: every processor was busy for so many ticks in each of five ways, and idle else."""
    words = f"{ticks} {ticks} {ticks} 900 900 {ticks} {ticks} 900 0 0"
    lines = [f"cpu {words}", *(f"cpu{number} {words}" for number in range(1024)), "intr 5 5", "ctxt 7"]
    path = folder / "stat"
    path.write_text("\n".join(lines) + "\n")
    return path


@LINUX
def test_only_the_processors_that_may_be_used_are_added_up(tmp_path: Path) -> None:
    found = usage(account(tmp_path, 30))
    assert found.all == pytest.approx(5 * 30 * len(os.sched_getaffinity(0)) / HERTZ)
    assert found.own > 0


def test_without_an_account_nobody_else_is_busy(tmp_path: Path) -> None:
    before, after = usage(tmp_path / "none"), usage(tmp_path / "none")
    assert busy_cores(before, after) == 0.0


@LINUX
@pytest.mark.parametrize(
    ("others", "threads", "processors", "policy"),
    [
        (0.0, 2, 2, {"GOMP_SPINCOUNT": "10000"}),
        (0.2, 2, 2, {"GOMP_SPINCOUNT": "10000"}),
        (1.0, 2, 2, {"OMP_WAIT_POLICY": "PASSIVE"}),
        (3.0, 4, 8, {"GOMP_SPINCOUNT": "10000"}),  # four more processors, one of them still free
        (4.5, 4, 8, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_threads_sleep_where_others_want_their_processors(
    others: float,
    threads: int,
    processors: int,
    policy: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(cores, "usable_cores", lambda: threads)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    monkeypatch.setattr(cores, "usage", lambda: Usage(at=1.5, all=10.0 + 0.5 * others, own=0.7))
    environment: dict[str, str] = {}
    settle_waiting(Usage(at=1.0, all=9.5, own=0.2), environment)
    assert environment == policy


@LINUX
@pytest.mark.parametrize("given", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_has_set_stays(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    environment = dict(given)
    settle_waiting(usage(), environment)
    assert environment == given


@LINUX
def test_a_verb_settles_it_before_torch_comes() -> None:
    script = (
        "import os, sys\n"
        "from luban.cli_answers import importing\n"
        "with importing():\n"
        "    assert 'torch' not in sys.modules\n"
        "    print(os.environ.get('GOMP_SPINCOUNT') or os.environ.get('OMP_WAIT_POLICY'))\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in cores._GIVEN}
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in ("10000", "PASSIVE")
