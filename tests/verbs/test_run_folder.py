"""A run folder is moved, copied, read while it is written, and read where nothing can be written."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luban.console import Show
from luban.durable import sha256
from luban.errors import StorageError
from luban.evaluation.report import write_report
from luban.signals import StopRequest
from luban.training.faults import Faults
from luban.verbs.evaluate import evaluate
from luban.verbs.load import load
from luban.verbs.train import Tools, train

NOBODY = 65534
READ = """
import json, os, sys
from pathlib import Path
from luban.evaluation.report import write_report
from luban.verbs.compare import compare
from luban.verbs.runs import runs

def read(run, other, out):
    told = {"state": runs([run])[0].state, "held": runs([run])[0].holder}
    told["report"] = write_report(run, out=out / "report.html", verify=True).stat().st_size
    told["compared"] = [row.name for row in compare([other, run], html=out / "c.html").settings]
    if "model" in sys.argv:
        from luban.verbs.evaluate import evaluate
        from luban.verbs.load import load
        told["bits"] = evaluate(run, bootstrap=0).figures["bits_per_byte"]
        told["text"] = load(run).generate("the king", max_tokens=4, temperature=0)
    return told

run, other, out = (Path(name) for name in sys.argv[1:4])
if os.geteuid() == 0 and "nobody" in sys.argv:
    read(other, other, out)  # what is imported late may lie where that user cannot look
    for page in out.iterdir():
        page.unlink()
    os.setgroups([]); os.setgid(NOBODY); os.setuid(NOBODY)
print(json.dumps(read(run, other, out)))
""".replace("NOBODY", str(NOBODY))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can look into."""
    folder = Path(tempfile.mkdtemp(prefix="luban-test-"))
    folder.chmod(0o777)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


def read(run: Path, other: Path, out: Path, *more: str) -> dict[str, Any]:
    """Read a run in another process, as `nobody` where this one may become it."""
    command = [sys.executable, "-c", READ, str(run), str(other), str(out), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def state_of(folder: Path) -> dict[str, tuple[int, str]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, sha256(path)) for path in files}


def test_a_run_that_nothing_can_be_written_to_is_read_by_another_user(
    finished: Path, open_folder: Path
) -> None:
    run, out = open_folder / "run", open_folder / "out"
    shutil.copytree(finished, run)
    shutil.copytree(finished, open_folder / "other")
    out.mkdir()
    out.chmod(0o777)
    for path in [*run.rglob("*"), run]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = state_of(run)
    told = read(run, open_folder / "other", out, "nobody", "model")
    assert (told["state"], told["held"], told["compared"]) == ("finished", None, [])
    assert (
        told["bits"] == json.loads((run / "evaluation.json").read_text())["metrics"]["bits_per_byte"]["value"]
    )
    assert told["text"] == load(finished).generate("the king", max_tokens=4, temperature=0)
    assert told["report"] > 10_000
    assert state_of(run) == before
    if os.geteuid():
        with pytest.raises(StorageError, match=r"cannot write .*report\.html"):
            write_report(run)


def test_a_run_is_read_while_it_is_written(finished: Path, small: dict[str, Any], open_folder: Path) -> None:
    """Between two steps, with everything a sitting has open, another process reads all there is."""
    run, told = open_folder / "run", dict[str, Any]()

    def look() -> None:
        told.update(read(run, finished, open_folder))

    faults = Faults({("before-save", 8, 0): look})
    train(small, out=run, tools=Tools(Show(quiet=True), StopRequest(), faults=faults))
    assert told["state"] == "live"
    assert told["held"].startswith(f"process {os.getpid()} on ")
    assert told["compared"] == []
    same = ("model/model.safetensors", "metrics.jsonl", "samples.jsonl", "evaluation.json")
    assert all(sha256(run / name) == sha256(finished / name) for name in same)


def test_a_run_that_is_moved_or_copied_is_the_same_run(
    finished: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    first = tmp_path / "first"
    shutil.copytree(finished, first)
    copied = tmp_path / "deep" / "in" / "copy"
    subprocess.run(["cp", "-r", str(first), str(tmp_path / "plain")], check=True)
    shutil.copytree(first, copied)
    moved = first.rename(tmp_path / "moved to 别处")
    expected = evaluate(finished, bootstrap=0).figures
    for run in (moved, copied, tmp_path / "plain"):
        assert evaluate(run, bootstrap=0).figures == expected
        assert load(run).generate("the king", max_tokens=4, temperature=0)
        assert train(resume=run).result["steps"] == 12
        assert write_report(run).read_bytes() == write_report(run).read_bytes()
