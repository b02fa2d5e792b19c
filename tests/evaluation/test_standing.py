"""How a run stands: each way to end is told apart, and what cannot be read ends nothing."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luban.durable import new_folder
from luban.errors import InputError
from luban.evaluation.records import last_of_each
from luban.evaluation.standing import (
    Safe,
    Standing,
    as_json,
    find_runs,
    folder_bytes,
    is_run,
    next_command,
    reached,
    standing_of,
)
from luban.recipe import BUDGETS

MakeRun = Callable[..., Path]
NOT_FINITE = "the loss of step 61 is not finite; the step was not applied"


def add_event(run: Path, event: str, message: str = "", **more: Any) -> None:
    with (run / "events.jsonl").open("a", encoding="utf-8") as file:
        time = "2025-03-01T10:00:00+00:00"
        file.write(json.dumps({"time": time, "event": event, "message": message, **more}) + "\n")


def add_checkpoint(run: Path, step: int) -> Path:
    target = run / "checkpoints" / f"step-{step:08d}"
    with new_folder(target, extra={"format": 1, "step": step}) as folder:
        (folder / "model.safetensors").write_bytes(bytes(range(256)) * 9)
    return target


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[[Path], subprocess.Popen[bytes]]]:
    """Let another process hold a run."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom luban.run import Run\n"
        "with Run(Path(sys.argv[1])).lock():\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    started = []

    def hold(run: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", script, str(run)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("end", "state"),
    [("finished", "finished"), ("stopped", "stopped"), ("failed", "failed"), ("running", "died")],
)
def test_each_end_has_its_state(new_run: MakeRun, end: str, state: str) -> None:
    run = new_run(end=end)
    standing = standing_of(run)
    assert standing.state == state
    assert bool(standing.why) == (state != "finished")
    add_event(run, "resumed")
    assert standing_of(run).state == ("finished" if state == "finished" else "died")


def test_a_run_that_is_held_is_live_and_looking_leaves_it_so(
    new_run: MakeRun, holder: Callable[[Path], subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    run = new_run(end="failed")
    process = holder(run)
    for _ in range(3):
        standing = standing_of(run, verify=True)
        assert (standing.state, standing.why) == ("live", "")
        assert standing.holder is not None and standing.holder.startswith(f"process {process.pid} on ")
    copied = tmp_path / "copy"
    shutil.copytree(run, copied)
    assert standing_of(copied).state == "failed"  # nobody holds the copy
    process.kill()
    process.communicate()
    assert standing_of(run).state == "failed"


def test_the_newest_whole_checkpoint_is_safe_and_damaged_ones_are_named(new_run: MakeRun) -> None:
    run = new_run(end="failed")
    assert standing_of(run, verify=True).safe is None
    for step in (20, 40, 60, 100_000_000):
        add_checkpoint(run, step)
    assert [standing_of(run, verify=v).safe is not None for v in (True, False)] == [True, True]
    newest = run / "checkpoints" / "step-100000000" / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[7] ^= 1
    newest.write_bytes(content)
    (run / "checkpoints" / "step-00000060" / "manifest.json").unlink()
    (run / "checkpoints" / ".step-00000080.0123abcd.tmp").mkdir()
    (run / "checkpoints" / "damaged-step-00000090").mkdir()
    standing = standing_of(run, verify=True)
    assert standing.safe is not None and (standing.safe.step, standing.safe.verified) == (40, True)
    assert standing.passed_over == (100_000_000, 60)
    for step in (20, 40):
        (run / "checkpoints" / f"step-{step:08d}" / "model.safetensors").write_bytes(b"")
    standing = standing_of(run, verify=True)
    assert (standing.state, standing.safe) == ("broken", None)
    assert "no checkpoint is whole" in standing.why
    assert next_command(standing) is None


@pytest.mark.parametrize(
    ("file", "damage", "why"),
    [
        ("recipe.json", None, "recipe.json is missing"),
        ("recipe.json", b"{", "recipe.json is damaged"),
        ("recipe.json", b"[]", "recipe.json is damaged"),
        ("plan.json", b"\xff", "plan.json is damaged"),
        ("result.json", b'{"status": ', "result.json is damaged"),
    ],
)
def test_what_a_run_cannot_go_on_without_makes_it_broken(
    new_run: MakeRun, file: str, damage: bytes | None, why: str
) -> None:
    run = new_run(end="stopped")
    assert standing_of(run).state == "stopped"
    (run / file).unlink(missing_ok=True)
    if damage is not None:
        (run / file).write_bytes(damage)
    standing = standing_of(run)
    assert (standing.state, standing.why) == ("broken", why)
    assert standing.fix
    assert is_run(run)


def test_a_run_that_would_fail_again_starts_anew_with_something_changed(new_run: MakeRun) -> None:
    run = new_run(end="running")
    add_event(run, "failed", NOT_FINITE, error="NonFiniteError", fix="lower train.learning_rate")
    standing = standing_of(run)
    assert (standing.state, standing.why, standing.repeats) == ("failed", NOT_FINITE, True)
    assert standing.fix == "lower train.learning_rate"
    command = next_command(standing, "runs/a b")
    assert command == "luban train 'runs/a b/recipe.json' train.learning_rate=0.0015 --out 'runs/a b-2'"
    add_event(run, "resumed")
    add_event(run, "failed", "cannot write x: No space left on device (0 bytes free)", error="StorageError")
    assert next_command(standing_of(run), "runs/a b") == "luban resume 'runs/a b'"


@pytest.mark.parametrize(
    ("message", "more", "repeats"),
    [
        ("the gradient of step 3 is not finite; the step was not applied", {}, True),
        ("the weight layers.0.mlp.up of step 3 is not finite; the step was not applied", {}, True),
        ("weights or optimizer state are not finite after step 9; no checkpoint was written", {}, True),
        ("said in other words", {"error": "NonFiniteError"}, True),
        ("the data changed since the run began: a.txt", {"error": "InputError"}, False),
        ("cannot write x: No space left on device", {}, False),
    ],
)
def test_only_what_is_part_of_the_run_fails_again(
    new_run: MakeRun, message: str, more: dict[str, Any], repeats: bool
) -> None:
    run = new_run(end="running")
    add_event(run, "failed", message, **more)
    assert standing_of(run).repeats == repeats


def test_how_far_it_came_is_the_end_of_the_logs(new_run: MakeRun) -> None:
    finished, stopped = standing_of(new_run()), standing_of(new_run(end="stopped"))
    came = reached(finished)
    assert (came.step, came.share, came.primary) == (
        60,
        1.0,
        {"name": "bits_per_byte", "value": 1.4012, "step": None},
    )
    (finished.folder / "result.json").unlink()
    came = reached(stopped)
    assert (came.step, came.tokens) == (60, 60 * 4096)
    assert came.primary["step"] == 60 and came.primary["value"] > 0
    assert came.share == pytest.approx(came.seconds / 180, rel=1e-6)  # a budget of three minutes


@pytest.mark.parametrize(
    ("budget", "share"),
    [
        ({"epochs": 4}, 60 * 4096 / 290_000 / 4),
        ({"epochs": 0.5}, 1.0),
        ({"tokens": 60 * 4096 * 5}, 0.2),
        ({"steps": 80}, 0.75),
        ({"steps": 0}, None),
        ({"epochs": None}, None),
    ],
)
def test_the_share_done_is_that_of_the_budget_the_recipe_names(
    new_run: MakeRun,
    holder: Callable[[Path], subprocess.Popen[bytes]],
    budget: dict[str, float | None],
    share: float | None,
) -> None:
    run = new_run(end="running")
    (run / "recipe.json").write_text(json.dumps({"task": "sequence-labelling", "train": budget}), "utf-8")
    holder(run)
    standing = standing_of(run)
    assert standing.state == "live"
    assert reached(standing).share == pytest.approx(share)


def test_every_budget_has_its_share(new_run: MakeRun) -> None:
    run = new_run(end="stopped")
    for budget in BUDGETS:
        (run / "recipe.json").write_text(json.dumps({"train": {budget: 10**9}}), "utf-8")
        assert reached(standing_of(run)).share is not None, budget


@pytest.mark.parametrize("size", [10, 3_000, 60_000])
def test_the_last_record_of_each_kind_is_found_in_a_log_of_any_length(tmp_path: Path, size: int) -> None:
    rows = [{"kind": "evaluation", "step": 1}] + [
        {"kind": "train", "step": n, "pad": "x" * 20} for n in range(size)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"kind": "train", "step": 10000')
    found = last_of_each(tmp_path, "metrics.jsonl", frozenset(("train", "evaluation")))
    assert {kind: row["step"] for kind, row in found.items()} == {"train": size - 1, "evaluation": 1}


JUNK = st.one_of(
    st.none(), st.integers(), st.floats(), st.text(max_size=9), st.just(["a"]), st.just({"a": 1})
)
KEYS = [
    "task",
    "train",
    "steps",
    "minutes",
    "primary",
    "name",
    "value",
    "event",
    "message",
    "fix",
    "time",
    "kind",
    "step",
]
OBJECT = st.dictionaries(st.sampled_from(KEYS), st.one_of(JUNK, st.dictionaries(st.sampled_from(KEYS), JUNK)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(["recipe", "plan", "result", "evaluation"]), OBJECT),
    st.lists(OBJECT, max_size=4),
)
def test_any_json_has_a_standing(tmp_path: Path, files: dict[str, Any], rows: list[Any]) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    for name, value in files.items():
        (run / f"{name}.json").write_text(json.dumps(value), "utf-8")
    for name in ("events", "metrics", "timings"):
        (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    told = as_json(standing_of(run, verify=True), now=0.0)
    assert told["state"] in ("finished", "stopped", "failed", "died", "broken", "empty")
    json.dumps(told)


def test_runs_are_found_below_folders_and_not_within_runs(new_run: MakeRun, tmp_path: Path) -> None:
    run = new_run()
    deep = tmp_path / "a" / "b" / "copy"
    shutil.copytree(run, deep)
    shutil.copytree(run, run / "model" / "inner")
    (tmp_path / "link").symlink_to(run)
    (tmp_path / ".hidden").mkdir()
    shutil.copytree(run, tmp_path / ".hidden" / "run")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "events.jsonl").write_text("{}\n")
    assert sorted(find_runs([tmp_path])) == sorted([run, deep])
    assert find_runs([run, tmp_path / "link", run / "../run"]) == [run]
    for absent in (tmp_path / "absent", run / "recipe.json"):
        with pytest.raises(InputError, match="no such folder"):
            find_runs([absent])


def test_a_lock_that_cannot_be_read_or_is_no_file_is_nobodys(new_run: MakeRun) -> None:
    run = new_run(end="stopped")
    os.mkfifo(run / ".lock")
    assert standing_of(run).state == "stopped"
    (run / ".lock").unlink()
    (run / ".lock").mkdir()
    assert standing_of(run).state == "stopped"


def test_a_lock_of_ones_own_is_no_life_of_another(new_run: MakeRun) -> None:
    run = new_run(end="failed")
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert standing_of(run).state == "live"
        from luban.run import this_process

        lock.write(this_process())
        lock.flush()
        assert standing_of(run).state == "failed"  # what a report says that the run writes itself


def test_the_size_counts_every_file_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b").write_bytes(b"x" * 23)
    assert folder_bytes(tmp_path) == 123


def test_a_command_for_every_state() -> None:
    safe = Safe(3, 0.0, verified=True)
    commands = {
        state: next_command(Standing(Path("r"), state, safe=safe))
        for state in ("live", "finished", "stopped", "failed", "died", "broken")
    }
    go_on = "luban resume r"
    assert commands == {
        "live": None,
        "finished": "luban predict r 'Once upon a time'",
        "stopped": go_on,
        "failed": go_on,
        "died": go_on,
        "broken": None,
    }
