"""`luban doctor`: it says what is there, what each lack costs, and fails only for what is needed."""

import fcntl
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from luban import cli, machine
from luban.verbs import doctor as module
from luban.verbs.doctor import BROKEN, FINE, LACKING, Finding, broken, doctor, filesystem, lines


def call(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["luban", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code if isinstance(ended.value.code, int) else 0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure nothing: the rates have tests of their own."""
    report = machine.MachineReport(
        "cpu", "P", 2, 2, 8 << 30, "float32", "why", 9e10, 1e10, "t", "p", "l", "v"
    )
    monkeypatch.setattr(machine, "probe", lambda *_, **__: report)
    monkeypatch.setattr(machine, "set_threads", lambda: machine.usable_cores())


def test_it_finds_this_machine_fit_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("doctor", "--json", monkeypatch=monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["status"], told["broken"]) == ("done", [])
    names = {finding["name"] for finding in told["findings"]}
    assert names >= {
        "torch",
        "cores",
        "memory",
        "matrix products",
        "number type",
        "GPU",
        "writing",
        "locks",
        "mlflow",
    }
    assert not list(tmp_path.iterdir())
    assert all(finding["note"] for finding in told["findings"] if finding["state"] != FINE)


@pytest.mark.usefixtures("quick")
def test_each_missing_extra_says_what_it_costs_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = machine.importlib.util.find_spec
    absent = {"pyarrow", "tensorboard", "mlflow", "datasets", "PIL", "sklearn", "onnx"}
    monkeypatch.setattr(
        machine.importlib.util, "find_spec", lambda name: None if name in absent else plain(name)
    )
    found = {finding.name: finding for finding in module._extras()}
    assert found.keys() == machine.extras().keys() == module.COSTS.keys()
    for name, finding in found.items():
        assert finding.state == LACKING
        assert finding.note.endswith(f"pip install 'luban[{name}]'")
    assert found["data"].value == "pyarrow missing"
    assert "train.loggers=tensorboard is refused" in found["tensorboard"].note
    assert not broken(list(found.values()))


@pytest.mark.usefixtures("quick")
def test_a_folder_that_cannot_be_written_is_needed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", refuse)
    assert broken(doctor()) == ["writing"]
    assert call("doctor", "--json", monkeypatch=monkeypatch) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["status"], told["exit_code"], told["broken"]) == ("error", 1, ["writing"])
    assert call("doctor", monkeypatch=monkeypatch) == 1
    assert "needed and not there: writing" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_locks_that_do_not_hold_and_packages_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name == "tokenizers":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(importlib.metadata, "version", without)
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    found = doctor(tmp_path)
    assert broken(found) == ["packages", "locks"]
    compiler = next(finding for finding in found if finding.name == "C++ compiler")
    assert compiler.state == LACKING and "train.compile stays off" in compiler.note


def test_a_check_that_fails_is_told_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(machine, "usable_cores", fails)
    found = doctor(tmp_path)
    assert broken(found) == ["machine"]
    assert any("no such instruction" in finding.note for finding in found)
    assert any(finding.name == "locks" for finding in found)


def test_the_file_system_is_that_of_the_longest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    inner = tmp_path / "data"
    inner.mkdir()
    mounts.write_text(
        f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / {tmp_path.resolve()} rw shared:1 - xfs /dev/sdb rw\n"
        f"3 1 0:6 / {inner.resolve()} rw - tmpfs tmpfs rw\nodd\n"
    )
    assert filesystem(inner, mounts) == "tmpfs"
    assert filesystem(tmp_path, mounts) == "xfs"
    assert filesystem(Path("/"), mounts) == "ext4"
    assert filesystem(tmp_path, tmp_path / "absent") == "unknown"


def test_the_text_fits_the_terminal_and_marks_what_is_lacking() -> None:
    findings = [
        Finding("machine", "cores", "two " * 40),
        Finding("extras", "mlflow", "missing", LACKING, "refused " * 20),
        Finding("disk", "locks", "do not hold", BROKEN, "mend"),
    ]
    shown = lines(findings, 80)
    assert all(len(line) <= 80 for line in shown)
    assert any(line.startswith("- mlflow") for line in shown) and any(
        line.startswith("! locks") for line in shown
    )
    assert shown[-1].startswith("! needed and not there: locks")
