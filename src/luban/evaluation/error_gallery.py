"""Rows the model got most wrong, as a person reads them: text, picture, cells, tags, translation, attention."""

from __future__ import annotations

import base64
import binascii
import itertools
import struct
from collections.abc import Callable
from typing import Any

from luban.evaluation import formats
from luban.evaluation.charts import amount_bar
from luban.evaluation.heat import attention, looked_at
from luban.evaluation.records import JsonObject, mapping, objects, real, words
from luban.metrics.tag_schemes import split_tag

MAX_ERRORS = 24
MAX_PARTS = 6
MAX_ANSWERS = 5
MAX_TEXT = 600
MAX_CELLS = 16
MAX_TOKENS = 60
BEFORE = 15
"""Tokens shown before the first wrong one of a long sequence."""
COLOURS = 8
PICTURE_SIDE = 160
MAX_PICTURE_BYTES = 400_000
MAX_PICTURE_SIDE = 4096
OF_ONE_ANSWER = frozenset({"pooling", "rollout"})
METHODS = OF_ONE_ANSWER | {"last_layer", "memory"}
"""How attention's weights came about, as the catalogue names it; those of one answer for a whole text apart."""
_PNG = b"\x89PNG\r\n\x1a\n"


def gallery(evaluation: JsonObject) -> list[dict[str, Any]]:
    """Return the errors that the template shows; what cannot be shown of one is left out."""
    # What a regression answers are numbers, not probabilities.
    weighed = not mapping(evaluation.get("regression"))
    colours: dict[str, str] = {}
    shown = []
    for error in objects(evaluation.get("errors"))[:MAX_ERRORS]:
        parts = [part for raw in objects(error.get("parts"))[:MAX_PARTS] if (part := _part(raw, colours))]
        if not parts:
            continue
        expected = words(error.get("expected"), 200)
        shown.append(
            {
                "parts": parts,
                "tagged": any(part["kind"] == "tokens" for part in parts),
                "wide": any(part["kind"] in ("tokens", "pair", "attention") for part in parts),
                "method": next((part["method"] for part in parts if part.get("method")), ""),
                "expected": expected,
                "answers": _answers(error.get("answers"), expected, weighed),
                "where": words(error.get("where"), 200),
            }
        )
    return shown


def _answers(value: object, expected: str, weighed: bool) -> list[dict[str, Any]]:
    found = []
    for pair in value[:MAX_ANSWERS] if isinstance(value, list) else []:
        if not (isinstance(pair, list) and len(pair) == 2):
            continue
        label, figure = words(pair[0], 120), real(pair[1])
        share = figure if weighed and figure is not None and 0.0 <= figure <= 1.0 else None
        colour = "c-validation" if label != expected else "c-right"
        found.append(
            {
                "label": label,
                "right": label == expected,
                "value": formats.number(figure) if share is None else formats.percent(share),
                "bar": None if share is None else amount_bar(share, colour),
            }
        )
    return found


def _part(raw: JsonObject, colours: dict[str, str]) -> dict[str, Any] | None:
    kind = words(raw.get("kind"), 20)
    if kind == "tokens":
        return _tokens(raw, colours)
    reader = _READERS.get(kind)
    return None if reader is None else reader(raw)


def _text(raw: JsonObject) -> dict[str, Any] | None:
    text = words(raw.get("text"), MAX_TEXT)
    return {"kind": "text", "text": text} if text else None


def _picture(raw: JsonObject) -> dict[str, Any] | None:
    """Return a PNG with the size to show it at; None for what is none, or too large for a page.

    A small picture is enlarged by a whole number, so that its pixels stay squares.
    """
    coded = raw.get("png")
    if not isinstance(coded, str) or len(coded) > MAX_PICTURE_BYTES * 4 // 3 + 4:
        return None
    try:
        data = base64.b64decode(coded, validate=True)
    except (binascii.Error, ValueError):
        return None
    if not data.startswith(_PNG) or data[12:16] != b"IHDR" or len(data) < 33:
        return None
    width, height = struct.unpack(">II", data[16:24])
    if not (0 < width <= MAX_PICTURE_SIDE and 0 < height <= MAX_PICTURE_SIDE):
        return None
    times = max(1, PICTURE_SIDE // max(width, height))
    shrink = min(1.0, 2 * PICTURE_SIDE / max(width, height))
    return {
        "kind": "picture",
        "png": base64.b64encode(data).decode("ascii"),
        "width": max(1, round(width * times * shrink)),
        "height": max(1, round(height * times * shrink)),
        "enlarged": times > 1,
        "attended": raw.get("attended") is True,
    }


def _cells(raw: JsonObject) -> dict[str, Any] | None:
    cells = mapping(raw.get("cells"))
    shown = [(words(name, 80), _cell(value)) for name, value in itertools.islice(cells.items(), MAX_CELLS)]
    if not shown:
        return None
    more = formats.whole(len(cells) - len(shown)) if len(cells) > len(shown) else None
    return {"kind": "cells", "cells": shown, "more": more}


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return words(value, 120) or formats.DASH


def _tokens(raw: JsonObject, colours: dict[str, str]) -> dict[str, Any] | None:
    """Return a stretch of tokens around the first whose tag is wrong."""
    tokens, expected, answer = (_words_of(raw.get(name)) for name in ("tokens", "expected", "answer"))
    if not tokens or not len(tokens) == len(expected) == len(answer):
        return None
    wrong = [number for number, pair in enumerate(zip(expected, answer, strict=True)) if pair[0] != pair[1]]
    start = max(0, min(wrong[0] - BEFORE, len(tokens) - MAX_TOKENS)) if wrong else 0
    shown = [
        {
            "token": tokens[at],
            "expected": _tag(expected[at], colours),
            "answer": _tag(answer[at], colours),
            "wrong": expected[at] != answer[at],
        }
        for at in range(start, min(start + MAX_TOKENS, len(tokens)))
    ]
    return {"kind": "tokens", "tokens": shown, "before": start > 0, "after": start + MAX_TOKENS < len(tokens)}


def _words_of(value: object) -> list[str]:
    return [words(item, 60) for item in value] if isinstance(value, list) else []


def _tag(tag: str, colours: dict[str, str]) -> dict[str, str]:
    """Return a tag with the colour of its type: the same for `B-PER` and `I-PER`, `none` for `O`."""
    part, kind = split_tag(tag)
    kind = kind or part
    if kind in ("O", ""):
        return {"tag": tag, "colour": "none"}
    return {"tag": tag, "colour": colours.setdefault(kind, f"c-run-{len(colours) % COLOURS}")}


def _pair(raw: JsonObject) -> dict[str, Any] | None:
    texts = {side: words(raw.get(side), MAX_TEXT) for side in ("source", "reference", "answer")}
    if not any(texts.values()):
        return None
    if "answer" in raw:  # nothing is an answer too, and a wrong one
        texts["answer"] = texts["answer"] or formats.DASH
    return {"kind": "pair", **texts}


def _attention(raw: JsonObject) -> dict[str, Any] | None:
    method = words(raw.get("method"), 20)
    said = method if method in METHODS else ""
    if method in OF_ONE_ANSWER and (text := looked_at(raw)):
        return {"kind": "looked_at", "method": said, **text}
    table = attention(raw)
    return (
        None if table is None else {"kind": "attention", "method": said, "table": table, "cut": table["cut"]}
    )


_READERS: dict[str, Callable[[JsonObject], dict[str, Any] | None]] = {
    "text": _text,
    "picture": _picture,
    "cells": _cells,
    "pair": _pair,
    "attention": _attention,
}
