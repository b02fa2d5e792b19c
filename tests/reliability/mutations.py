"""Ways to damage a file: bytes at random, words of the format in wrong places, and JSON that stays JSON."""

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

WORDS = [
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n", b"{", b"}", b"[", b"]", b'"', b"'", b",", b":", b"\\u0000",
    b"\\ud800", b"null", b"true", b"NaN", b"Infinity", b"-0", b"1e999", b"1" + b"0" * 400, b"-1", b"0.1",
    b"18446744073709551615", b"../../outside", b"/etc/passwd", b"__class__", b'{"a":' * 50, b"[" * 50,
]  # fmt: skip
YAML_WORDS = [
    b"!!python/object/apply:os.system ['true']", b"!!binary aGk=", b"&a [*a]", b"*a", b"<<: ", b"? ", b"- ", b"|\n",
    b">\n", b"%YAML 9.9\n", b"---\n", b"...\n", b"\t", b"#", b"0x", b"1_000", b"1:59:59", b".inf", b"~", b"on",
    b"2024-01-01", b"@", b"`",
]  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1.5, -0.0, 1e308, math.nan, math.inf, "", "a", "\0", "\ud800",
    "../x", "a" * 5000, [], {}, [[]], {"": {}}, [None] * 40, {"__class__": "os.system"}, "9" * 400,
]  # fmt: skip


def mutated(seeds: Sequence[bytes], draw: random.Random, words: Sequence[bytes]) -> bytes:
    """Take one of the seeds and damage it once or a few times."""
    data = draw.choice(seeds)
    if draw.random() < 0.5 and (structured := _structured(data, draw)) is not None:
        data = structured
        if draw.random() < 0.8:
            return data
    for _ in range(draw.choice([1, 1, 1, 2, 4, 16])):
        data = draw.choice(_WAYS)(data, draw, words, seeds)
    return data


Way = Callable[[bytes, random.Random, Sequence[bytes], Sequence[bytes]], bytes]


def _flip(data: bytes, draw: random.Random, words: Sequence[bytes], seeds: Sequence[bytes]) -> bytes:
    if not data:
        return b"\x80"
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def _overwrite(data: bytes, draw: random.Random, words: Sequence[bytes], seeds: Sequence[bytes]) -> bytes:
    at, size = draw.randrange(len(data) + 1), draw.choice([1, 2, 4, 8])
    return (
        data[:at]
        + draw.choice([b"\0", b"\xff", b"\x7f", b"\x80", draw.randbytes(1)]) * size
        + data[at + size :]
    )


def _cut(data: bytes, draw: random.Random, words: Sequence[bytes], seeds: Sequence[bytes]) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _without(data: bytes, draw: random.Random, words: Sequence[bytes], seeds: Sequence[bytes]) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + data[start + draw.randrange(64) :]


def _repeat(data: bytes, draw: random.Random, words: Sequence[bytes], seeds: Sequence[bytes]) -> bytes:
    start = draw.randrange(len(data) + 1)
    part = data[start : start + draw.randrange(64)]
    return data[:start] + part * draw.choice([2, 3, 200]) + data[start + len(part) :]


def _insert(data: bytes, draw: random.Random, words: Sequence[bytes], seeds: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(words) + data[at + draw.choice([0, 0, 1, 4]) :]


def _splice(data: bytes, draw: random.Random, words: Sequence[bytes], seeds: Sequence[bytes]) -> bytes:
    other = draw.choice(seeds)
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


_WAYS: list[Way] = [_flip, _overwrite, _cut, _without, _repeat, _insert, _insert, _splice]


def _structured(data: bytes, draw: random.Random) -> bytes | None:
    """Damage the values of a JSON document, or of a line of a JSON Lines file; None where it is neither."""
    lines = data.split(b"\n")
    whole = _parsed(data)
    if whole is not None:
        return json.dumps(_changed(whole, draw)).encode("utf-8")
    at = draw.randrange(len(lines))
    line = _parsed(lines[at])
    if line is None:
        return None
    lines[at] = json.dumps(_changed(line, draw)).encode("utf-8")
    return b"\n".join(lines)


def _parsed(data: bytes) -> Any:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _changed(value: Any, draw: random.Random) -> Any:
    """Change one place of a JSON value, each level being as likely as the next."""
    inside = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    if not inside or draw.random() < 0.2:
        return draw.choice(ODD)
    key = draw.choice(inside)
    match draw.randrange(6):
        case 0 if isinstance(value, dict):
            return {name: inner for name, inner in value.items() if name != key}
        case 0:
            return value[:key] + value[key + 1 :]
        case 1 if isinstance(value, dict):
            return {**value, draw.choice(["", "a", key + "x", "__class__", "\ud800"]): value[key]}
        case 1:
            return value + value
        case 2:
            other = draw.choice(inside)
            value[key], value[other] = value[other], value[key]
        case _:
            value[key] = _changed(value[key], draw)
    return value
