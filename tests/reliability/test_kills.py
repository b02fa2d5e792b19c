"""A run that is killed and goes on is the run that was not."""

from pathlib import Path

import kills
import pytest
import toy

from luban.run import Run
from luban.training.optimizers import Optimizer


def test_two_hundred_kills_change_nothing(tmp_path: Path) -> None:
    outcomes = kills.sweep(tmp_path, count=210, seed=0)
    assert [key for key in outcomes if key.startswith("BROKEN")] == []
    assert outcomes.total() == 210
    assert len(outcomes) == len(kills.SHARES)


def test_processes_killed_from_outside_change_nothing(tmp_path: Path) -> None:
    assert kills.processes(tmp_path, count=5, seed=0) == {"processes: same bytes": 5}


@pytest.mark.parametrize(
    ("forgetful", "method", "unlike"),
    [(Run, "cut_logs", "metrics.jsonl"), (Optimizer, "load_state", "model.safetensors")],
)
def test_what_a_resume_forgets_would_be_noticed(
    forgetful: type, method: str, unlike: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = toy.settings()
    toy.go_on(tmp_path / "whole", recipe)
    monkeypatch.setattr(forgetful, method, lambda *_: None)
    killed, broken = kills.journey(
        tmp_path / "run",
        lambda faults: toy.go_on(tmp_path / "run", recipe, faults=faults),
        [kills.AtPoint("before-optimizer", 10)],
        tmp_path / "whole",
    )
    assert killed == 1
    assert broken is not None and unlike in broken
