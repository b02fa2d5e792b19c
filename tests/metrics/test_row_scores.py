"""What each row counted, on disk: the same back, whatever the row, and never half a file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from luban.errors import CheckpointError
from luban.metrics.row_scores import RowScores, digests_of

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
rows_of_any_kind = st.lists(st.dictionaries(st.text(max_size=5), values, max_size=3), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(rows=rows_of_any_kind, seed=st.integers(0, 99))
def test_what_is_written_is_read(tmp_path: Path, rows: list[dict[str, object]], seed: int) -> None:
    figures = np.random.default_rng(seed).random(len(rows))
    RowScores(digests_of(rows), {"accuracy": figures}, {"bleu": np.arange(9.0)}).write(
        tmp_path / "rows.safetensors"
    )
    found = RowScores.read(tmp_path / "rows.safetensors")
    assert found is not None
    assert list(found.scores) == ["accuracy"] and list(found.resampled) == ["bleu"]
    np.testing.assert_array_equal(found.resampled["bleu"], np.arange(9.0))
    np.testing.assert_array_equal(found.scores["accuracy"], figures)
    np.testing.assert_array_equal(found.digest, digests_of(rows))


def test_a_digest_tells_rows_apart_and_no_order_of_columns() -> None:
    rows = [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3}, {"a": "1", "b": 2}, {"a": "\ud800"}]
    digests = digests_of(rows).tolist()
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def test_no_file_is_none_and_another_file_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.safetensors"
    assert RowScores.read(path) is None
    scores = {"accuracy": np.zeros(3)}
    good = np.arange(3)
    for arrays, message in (
        (scores, "no digests"),
        ({"digest": good.astype(np.int32), **scores}, "no digests"),
        ({"digest": good[:2], **scores}, "do not fit"),
        ({"digest": good, "accuracy": np.zeros(3, np.float32)}, "do not fit"),
        ({"digest": good, **scores, "resampled/bleu": np.zeros((2, 2))}, "do not fit"),
    ):
        save_file(arrays, path)
        with pytest.raises(CheckpointError, match=message):
            RowScores.read(path)
    RowScores(good, scores).write(path)
    whole = path.read_bytes()
    for torn in (b"", b"{}", whole[: len(whole) // 2], b"\xff" * 64):
        path.write_bytes(torn)
        with pytest.raises(CheckpointError, match="cannot read"):
            RowScores.read(path)
