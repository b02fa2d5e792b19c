"""The losses of single documents: they come back exactly, and a damaged file is refused."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faulty_disk import with_every_death, with_every_fault
from luban.errors import CheckpointError
from luban.metrics.document_losses import DocumentLosses, document_losses
from luban.metrics.text_loss import MIN_DOCUMENTS, TextLoss

DOCUMENTS = st.lists(
    st.tuples(
        st.text(max_size=12), st.lists(st.integers(0, 60_000), min_size=1, max_size=9), st.floats(0, 900)
    ),
    min_size=1,
    max_size=MIN_DOCUMENTS + 5,
)


def losses(documents: list[tuple[str, list[int], float]]) -> DocumentLosses:
    measured = TextLoss()
    for number, (text, ids, nats) in enumerate(documents):
        measured.add(document=number, nats=nats, tokens=len(ids))
        measured.size(document=number, bytes=len(text.encode("utf-8", "surrogatepass")), characters=len(text))
    return document_losses(measured, ((text, ids) for text, ids, _ in documents))


def equal(a: DocumentLosses, b: DocumentLosses | None) -> bool:
    assert b is not None
    return all(np.array_equal(value, b.__dict__[name]) for name, value in a.__dict__.items())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DOCUMENTS)
def test_what_is_written_comes_back_and_equal_losses_give_equal_bytes(
    tmp_path: Path, documents: list[tuple[str, list[int], float]]
) -> None:
    found, path = losses(documents), tmp_path / "a.safetensors"
    found.write(path)
    assert equal(found, DocumentLosses.read(path))
    losses(documents).write(tmp_path / "b.safetensors")
    assert path.read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert len(found.window_nats) == (len(documents) if len(documents) < MIN_DOCUMENTS else 0)
    same_text = [np.array_equal(found.digest[[i]], found.digest[[0]]) for i in range(len(documents))]
    assert same_text == [text == documents[0][0] for text, _, _ in documents]


def test_another_tokenizer_has_the_same_texts_and_other_tokens() -> None:
    a, b = losses([("春眠", [1, 2], 3.0)]), losses([("春眠", [7], 2.0)])
    assert np.array_equal(a.digest, b.digest)
    assert a.token_digest != b.token_digest


def test_a_model_that_broke_keeps_its_not_numbers(tmp_path: Path) -> None:
    losses([("a", [1], math.nan), ("b", [2], math.inf)]).write(tmp_path / "x")
    found = DocumentLosses.read(tmp_path / "x")
    assert found is not None
    assert math.isnan(found.nats[0]) and math.isinf(found.nats[1])


def test_no_file_is_no_record_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evaluation-documents.safetensors"
    assert DocumentLosses.read(path) is None
    losses([("a", [1, 2], 1.0), ("b", [3], 2.0)]).write(path)
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    other = {name.replace("nats", "bits"): entry for name, entry in header.items()}
    shorter = {**header, "bytes": {**header["bytes"], "shape": [1, 2]}}
    for changed in (other, shorter):
        text = json.dumps(changed).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
        with pytest.raises(CheckpointError, match="evaluation-documents"):
            DocumentLosses.read(path)
    for cut in range(0, len(whole), 37):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="evaluation-documents"):
            DocumentLosses.read(path)


def test_the_file_is_whole_or_absent_whatever_fails(tmp_path: Path) -> None:
    found, tries = losses([("a", [1, 2], 1.0)]), 0
    path = tmp_path / "x"
    for _ in with_every_fault(lambda disk: found.write(path, disk), "ENOSPC", True):
        tries += 1
        assert not path.exists() or equal(found, DocumentLosses.read(path))
    for _ in with_every_death(lambda disk: found.write(path, disk)):
        tries += 1
        assert not path.exists() or equal(found, DocumentLosses.read(path))
    assert tries > 5
