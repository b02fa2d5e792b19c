"""Worker processes decode the same as this one, in order, without running ahead."""

from collections.abc import Iterator

import numpy as np
import pytest

from luban.data import picture_workers
from luban.data.picture_workers import decode_many
from luban.data.pictures import PictureError, encode_png

pytest.importorskip("PIL")

RNG = np.random.default_rng(0)


def pictures(count: int) -> list[bytes | np.ndarray]:
    """PNG files, pixels of 8 and 16 bits, and things that are no picture."""
    made: list[bytes | np.ndarray] = []
    for number in range(count):
        shape = tuple(RNG.integers(3, 20, 2))
        pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
        deep = RNG.integers(0, 65536, shape, dtype=np.uint16)
        made.append([encode_png(pixels), pixels, deep, b"no picture", b""][number % 5])
    return made


@pytest.mark.parametrize("size", [None, (5, 7)])
def test_workers_give_what_this_process_gives(
    size: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_workers, "MESSAGE_PICTURES", 7)
    given = pictures(101)
    alone = list(decode_many(given, size=size, channels=3, workers=1))
    together = list(decode_many(given, size=size, channels=3, workers=3))
    assert len(alone) == len(together) == 101
    for one, other in zip(alone, together, strict=True):
        if isinstance(one, PictureError):
            assert isinstance(other, PictureError) and (one.kind, one.detail) == (other.kind, other.detail)
        else:
            np.testing.assert_array_equal(one, other)
            assert isinstance(other, np.ndarray) and other.flags.writeable
    assert sum(isinstance(answer, PictureError) for answer in alone) == 40


def test_pictures_are_asked_for_as_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_workers, "MESSAGE_PICTURES", 4)
    asked = 0

    def endless() -> Iterator[bytes]:
        nonlocal asked
        while True:
            asked += 1
            yield encode_png(np.zeros((2, 2), np.uint8))

    answers = decode_many(endless(), size=None, channels=1, workers=2)
    for _ in range(30):
        next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert asked <= 30 + 3 * 4


def test_a_message_ends_where_its_bytes_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_workers, "MESSAGE_BYTES", 1000)
    messages = list(picture_workers._messages([bytes(400)] * 7 + [np.zeros(5000, np.uint8)]))
    assert [len(message) for message in messages] == [3, 3, 2]


def test_nothing_to_decode_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_workers, "_worker", None)
    assert list(decode_many([], size=None, channels=1, workers=4)) == []
