"""Rows on disk come back as they were, padded where they are ragged; what was altered is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.data.row_store import RowSet, RowWriter
from luban.errors import CheckpointError


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.lists(st.integers(-5, 5), max_size=20), min_size=1, max_size=30), data=st.data())
def test_what_is_written_is_read(
    rows: list[list[int]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows") / "train"
    writer = RowWriter(folder, frozenset({"ids"}))
    for number, row in enumerate(rows):
        arrays = {"ids": np.array(row, np.int32), "pair": np.array([number, len(row)], np.float32)}
        writer.add(arrays, {"values": {"n": number}, "file": "a", "line": number + 1})
    assert writer.close()["rows"] == len(rows)
    found = RowSet(folder)
    numbers = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1)), np.int64)
    columns, lengths = found.gather(numbers)
    assert columns["ids"].shape[1] % 8 == 0
    for place, number in enumerate(numbers.tolist()):
        size = lengths["ids"][place]
        assert columns["ids"][place, :size].tolist() == rows[number]
        assert not columns["ids"][place, size:].any()
        assert columns["pair"][place].tolist() == [number, len(rows[number])]
        assert found.row(number)["values"] == {"n": number}
    assert [row["line"] for row in found.rows()] == list(range(1, len(rows) + 1))
    assert found.lengths("ids").tolist() == list(map(len, rows))


@pytest.mark.parametrize("name", ["ids.bin", "ids.offsets", "rows.offsets"])
def test_a_file_that_was_cut_is_refused(name: str, tmp_path: Path) -> None:
    writer = RowWriter(tmp_path / "train", frozenset({"ids"}))
    writer.add({"ids": np.arange(5, dtype=np.int32)}, {"values": {}, "file": "a", "line": 1})
    writer.close()
    path = tmp_path / "train" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        RowSet(tmp_path / "train")


def test_an_empty_split_has_no_rows(tmp_path: Path) -> None:
    RowWriter(tmp_path / "test", frozenset()).close()
    assert len(RowSet(tmp_path / "test")) == 0
