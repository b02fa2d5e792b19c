"""Durable writes: whole or not at all, whatever fails and whenever."""

import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faulty_disk import FaultyDisk, with_every_death, with_every_fault
from luban import durable
from luban.durable import FileSystem
from luban.errors import CheckpointError, StorageError

OLD, NEW = b"old " * 10, b"new content " * 1000
KINDS = ["EIO", "ENOSPC", "short write"]


@pytest.mark.parametrize("old", [OLD, None], ids=["over an old one", "new"])
@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_old_or_new_whatever_operation_fails(
    tmp_path: Path, kind: str, forever: bool, old: bytes | None
) -> None:
    folders = (tmp_path / str(n) for n in count())
    path = tmp_path

    def work(disk: FaultyDisk) -> None:
        nonlocal path
        path = next(folders) / "state.json"
        path.parent.mkdir()
        if old is not None:
            path.write_bytes(old)
        durable.write_bytes(path, NEW, disk)

    outcomes = []
    for succeeded in with_every_fault(work, kind, forever):
        outcomes.append(succeeded)
        held = path.read_bytes() if path.exists() else None
        assert held in ((NEW,) if succeeded else (old, NEW))
        durable.remove_leftovers(path.parent)
        assert [p.name for p in path.parent.iterdir()] == ([path.name] if held is not None else [])
    assert outcomes == [False] * 5 + [True]


def fill(folder: Path, content: bytes, disk: FileSystem) -> None:
    (folder / "inner").mkdir()
    durable.write_bytes(folder / "inner" / "weights", content, disk)
    (folder / "plain").write_bytes(content[::-1])


def folder_state(target: Path) -> bytes | None:
    """The content a whole folder stands for; a torn one fails the test."""
    if not target.exists():
        return None
    manifest = durable.verify_folder(target)
    assert set(manifest["files"]) == {"inner/weights", "plain"}
    content = (target / "inner" / "weights").read_bytes()
    assert (target / "plain").read_bytes() == content[::-1]
    return content


def new_folder_over(parent: Path, old: bytes | None, disk: FaultyDisk) -> Path:
    parent.mkdir()
    target = parent / "step-1"
    if old is not None:
        with durable.new_folder(target) as folder:
            fill(folder, old, durable.DISK)
    with durable.new_folder(target, disk) as folder:
        fill(folder, NEW, disk)
    return target


@pytest.mark.parametrize("old", [OLD, None], ids=["over an old one", "new"])
@pytest.mark.parametrize(("kind", "forever"), [("EIO", False), ("short write", False), ("ENOSPC", True)])
def test_a_folder_is_old_or_new_whatever_operation_fails(
    tmp_path: Path, kind: str, forever: bool, old: bytes | None
) -> None:
    parents = (tmp_path / str(n) for n in count())
    parent = tmp_path

    def work(disk: FaultyDisk) -> None:
        nonlocal parent
        parent = next(parents)
        new_folder_over(parent, old, disk)

    outcomes = []
    for succeeded in with_every_fault(work, kind, forever):
        outcomes.append(succeeded)
        target = parent / "step-1"
        if not forever:
            # One fault that passes leaves the old folder in its place, without any repair.
            assert folder_state(target) in ((NEW,) if succeeded else (old, NEW))
        durable.remove_leftovers(parent)
        assert folder_state(target) in ((NEW,) if succeeded else (old, NEW))
        assert [p.name for p in parent.iterdir()] == (["step-1"] if target.exists() else [])
    assert len(outcomes) > 15
    assert outcomes[-1]


@pytest.mark.parametrize("old", [OLD, None], ids=["over an old one", "new"])
def test_a_folder_is_old_or_new_wherever_the_process_dies(tmp_path: Path, old: bytes | None) -> None:
    parent, state = tmp_path / "0", None

    def work(disk: FaultyDisk) -> None:
        new_folder_over(parent, old, disk)

    for number, _ in enumerate(with_every_death(work), 1):
        durable.remove_leftovers(parent)
        state = folder_state(parent / "step-1")
        assert state in (old, NEW)
        assert [p.name for p in parent.iterdir()] == ([] if state is None else ["step-1"])
        parent = tmp_path / str(number)
    assert state == NEW


def test_a_file_is_on_the_device_before_its_name_is_and_the_folder_after(tmp_path: Path) -> None:
    disk = FaultyDisk()
    durable.write_text(tmp_path / "a.txt", "春", disk)
    assert [operation for operation, _ in disk.done] == [
        "open_write",
        "write",
        "sync",
        "replace",
        "sync_folder",
    ]
    assert (tmp_path / "a.txt").read_text("utf-8") == "春"


def test_all_of_a_folder_is_on_the_device_before_its_name_is(tmp_path: Path) -> None:
    disk = FaultyDisk()
    new_folder_over(tmp_path / "runs", None, disk)
    renamed = disk.done.index(("replace", "step-1"))
    synced = [name for operation, name in disk.done[:renamed] if operation == "sync"]
    assert {"weights", "plain"} <= set(synced)
    assert synced[-1].startswith(f".{durable.MANIFEST}.")
    assert ("sync_folder", "inner") in disk.done[:renamed]
    assert disk.done[renamed + 1 :] == [("sync_folder", "runs")]


def test_every_new_parent_is_on_the_device_too(tmp_path: Path) -> None:
    disk = FaultyDisk()
    durable.make_folders(tmp_path / "runs" / "first", disk)
    durable.make_folders(tmp_path / "runs" / "first", disk)
    assert disk.done == [
        ("make_folder", "runs"),
        ("sync_folder", tmp_path.name),
        ("make_folder", "first"),
        ("sync_folder", "runs"),
    ]
    (tmp_path / "file").write_text("")
    for blocked in ("file", "file/inner"):
        with pytest.raises(OSError):
            durable.make_folders(tmp_path / blocked)


def test_an_error_of_the_block_leaves_the_old_folder(tmp_path: Path) -> None:
    new_folder_over(tmp_path / "runs", OLD, FaultyDisk())
    with pytest.raises(KeyError), durable.new_folder(tmp_path / "runs" / "step-1") as folder:
        fill(folder, OLD, durable.DISK)
        raise KeyError
    assert folder_state(tmp_path / "runs" / "step-1") == NEW
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_with_the_path_and_the_free_bytes() -> None:
    path = Path("/dev/full")
    with pytest.raises(StorageError, match=r"/dev/full.*[\d,]+ bytes free, 9,000 needed") as caught:  # noqa: SIM117
        with durable.storage_errors(path, needed=9000), path.open("wb", buffering=0) as file:
            durable.DISK.write(file, b"x")
    assert "--resume" in str(caught.value)


def test_other_errors_of_the_device_name_the_path(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"state\.json: Input/output error"):
        durable.write_bytes(tmp_path / "state.json", b"x", FaultyDisk(2))
    with pytest.raises(StorageError, match=r"state\.json"):
        durable.write_bytes(tmp_path / "absent" / "state.json", b"x")


def test_json_has_no_nan_and_keeps_every_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"text": "春\ud800", "path": os.fsdecode(b"caf\xe9.txt"), "number": 1e-300}
    durable.write_json(path, value)
    assert durable.read_json(path) == value
    with pytest.raises(ValueError, match="JSON"):
        durable.write_json(path, {"loss": float("nan")})
    assert durable.read_json(path) == value


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": 1'])
def test_broken_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        durable.read_json(tmp_path / "state.json")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["inner/weights", "plain"])
@pytest.mark.parametrize(
    "damage", [cut, flip, link, folder_instead, Path.unlink, lambda path: path.write_bytes(b"")]
)
def test_damage_to_any_file_is_found_and_named(
    tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    target = new_folder_over(tmp_path / "runs", None, FaultyDisk())
    damage(target / name)
    with pytest.raises(CheckpointError, match=name):
        durable.verify_folder(target)


def test_any_change_of_the_manifest_itself_is_an_error_or_harmless(tmp_path: Path) -> None:
    """A manifest cut at any byte is refused; none makes the check raise something else."""
    target = new_folder_over(tmp_path / "runs", None, FaultyDisk())
    path = target / durable.MANIFEST
    whole = path.read_bytes()
    for size in range(len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            durable.verify_folder(target)


OUTSIDE = ["../plain", "/etc/passwd", "inner/../../runs/step-1/plain", "way-out/plain", "\0", "x" * 5000, ""]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_cannot_name_what_is_outside(tmp_path: Path, name: str) -> None:
    target = new_folder_over(tmp_path / "runs", None, FaultyDisk())
    (tmp_path / "runs" / "plain").write_bytes(b"secret")
    (target / "way-out").symlink_to(tmp_path / "runs")
    entry = {"bytes": 6, "sha256": durable.sha256(tmp_path / "runs" / "plain")}
    (target / durable.MANIFEST).write_text(json.dumps({"files": {name: entry}}))
    with pytest.raises(CheckpointError):
        durable.verify_folder(target)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(value=JSON | st.fixed_dictionaries({"files": JSON}))
@settings(max_examples=60, deadline=None)
def test_any_json_as_manifest_gives_a_manifest_or_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / durable.MANIFEST).write_text(json.dumps(value))
    try:
        manifest = durable.verify_folder(folder)
    except CheckpointError:
        return
    assert manifest["files"] == {}


def test_only_leftovers_are_removed_and_a_folder_set_aside_comes_back(tmp_path: Path) -> None:
    kept = [".hidden", ".gitignore.tmp", "a.00000000.tmp", ".lock", ".a.b.tmp"]
    for name in [*kept, ".a.json.0123abcd.tmp"]:
        (tmp_path / name).write_text("x")
    (tmp_path / "whole").mkdir()
    for name in (".whole.0123abcd.old", ".lost.0123abcd.old", ".new.0123abcd.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    removed = durable.remove_leftovers(tmp_path)
    assert [p.name for p in removed] == [".a.json.0123abcd.tmp", ".new.0123abcd.tmp", ".whole.0123abcd.old"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "lost", "whole"])
    assert (tmp_path / "lost" / "file").exists()
