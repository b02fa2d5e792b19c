"""`luban runs`: what stands in the table and on the screen of one run fits a terminal and is true."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from luban import cli
from luban.errors import InputError
from luban.evaluation.standing import Standing
from luban.verbs.runs import cells, overview, runs, screen, table


def call(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["luban", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code if isinstance(ended.value.code, int) else 0


def made(folder: Path, begun: str, *events: dict[str, Any], steps: int = 0) -> Path:
    """A run folder with just enough in it to be told apart."""
    folder.mkdir(parents=True)
    recipe = {"task": "language-model", "train": {"steps": 40}, "evaluate": {"primary": "loss"}}
    (folder / "recipe.json").write_text(json.dumps(recipe), "utf-8")
    rows = [{"time": begun, "event": "started", "message": ""}, *events]
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    log = [{"kind": "train", "step": n + 1, "tokens": 100 * (n + 1), "loss": 2.0} for n in range(steps)]
    log += [{"kind": "evaluation", "step": steps, "tokens": 100 * steps, "loss": 2.5}] if steps else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log), "utf-8")
    return folder


@pytest.fixture
def several(tmp_path: Path) -> Path:
    place = tmp_path / "runs"
    made(place / "b-second", "2025-03-02T10:00:00+00:00", steps=10)
    why = "cannot write a/very/long/path/to/a/checkpoint/that/does/not/fit: No space left on device (12 bytes free)"
    failed = {
        "time": "2025-03-01T11:00:00+00:00",
        "event": "failed",
        "message": why,
        "fix": "free some space",
    }
    made(
        place / "a-third",
        "2025-03-03T10:00:00+00:00",
        {**failed, "time": "2025-03-03T11:00:00+00:00"},
        steps=20,
    )
    made(place / ("唐诗三百首" * 9), "2025-03-01T10:00:00+00:00", failed)
    made(place / "bad\x1b[31m\nname", "2025-02-01T10:00:00+00:00")
    return place


def test_the_table_is_sorted_by_time_and_fits_the_terminal(several: Path) -> None:
    found = runs([several])
    assert [standing.folder.name[:3] for standing in found] == ["bad", "唐诗三", "b-s", "a-t"]
    for width in (80, 100):
        lines = overview(found, width=width, now=1_741_100_000.0)
        assert all(cells(line) <= width for line in lines), [line for line in lines if cells(line) > width]
        assert all(line.isprintable() for line in lines)
    text = "\n".join(overview(found, width=None, now=1_741_100_000.0))
    assert "b-second" in text and "唐诗三百首" * 9 in text
    assert "2.5000*" in text and "* of the last evaluation while training" in text
    assert "No space left on device (12 bytes free)" in text
    row = next(line.split() for line in text.splitlines() if "a-third" in line)
    assert row[1:5] == ["failed", "20", "50%", "2.5000*"]


def test_one_run_on_one_screen_says_what_happened_what_is_safe_and_what_goes_on(several: Path) -> None:
    (failed,) = runs([several / "a-third"])
    lines = screen(failed, width=80, now=1_741_100_000.0)
    assert len(lines) < 24
    text = " ".join(" ".join(lines).split())
    commands = [line for line in lines if line.strip().startswith("go on with")]
    assert commands == [f"  go on with      luban resume {several / 'a-third'}"]
    for part in (
        "failed at step 20 (50% of its budget)",
        "No space left",
        "free some space",
        "no checkpoint yet",
    ):
        assert part in text
    assert all(cells(line) <= 80 for line in lines if line not in commands and str(several) not in line)


def test_json_is_one_object_and_nothing_is_written(
    several: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in several.rglob("*")}
    assert call("runs", str(several), "--json", monkeypatch=monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert [run["state"] for run in told["runs"]] == ["died", "failed", "died", "failed"]
    assert told["runs"][3]["next"] == f"luban resume {several / 'a-third'}"
    assert {path: path.stat().st_mtime_ns for path in several.rglob("*")} == before


def test_no_runs_is_no_error_and_a_wrong_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert runs() == []
    assert call("runs", monkeypatch=monkeypatch) == 0
    assert "no runs in runs/" in capsys.readouterr().out
    with pytest.raises(InputError, match="no such folder"):
        runs(["nowhere"])
    assert call("runs", "nowhere", monkeypatch=monkeypatch) == 2


def test_a_run_of_another_version_is_read_as_far_as_it_goes(finished: Path, tmp_path: Path) -> None:
    """A key that a later version removed, or an older one did not have, is no reason to refuse a run."""
    run = tmp_path / "old"
    shutil.copytree(finished, run)
    recipe = json.loads((run / "recipe.json").read_text("utf-8"))
    recipe["train"]["a_key_of_another_time"] = 3
    del recipe["model"]
    (run / "recipe.json").write_text(json.dumps(recipe), "utf-8")
    for name in ("evaluation-documents.safetensors", "machine.json"):
        (run / name).unlink()
    (standing,) = runs([run])
    assert (standing.state, standing.why) == ("finished", "")


def test_a_figure_that_is_no_number_is_said() -> None:
    primary = {"primary": {"name": "loss", "value": None}}
    broke = Standing(Path("r"), "finished", result=primary, evaluation=primary)
    assert any("not finite" in line for line in overview([broke], width=80))


def test_columns_stand_under_each_other_whatever_the_script() -> None:
    lines = table([["run", "n"], ["唐诗", "12"], ["a", "3"]], None, right={1})
    assert [cells(line) for line in lines] == [8, 8, 8]
