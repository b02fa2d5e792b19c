"""The data report as the page shows it: bounded lists, names from the catalogue where it has them."""

from __future__ import annotations

import itertools
from typing import Any

from markupsafe import Markup

from luban import catalogue
from luban.catalogue import both
from luban.evaluation import formats, page
from luban.evaluation.charts import share_bar
from luban.evaluation.records import JsonObject, mapping, objects, real, words

MAX_FILES = 12
MAX_STEPS = 40
MAX_EXAMPLES = 3
MAX_COLUMNS = 12
_OF_TEXTS, _OF_ROWS = ("documents", "characters", "size", "tokens"), ("rows",)
_LANGUAGE_COLOURS = {"en": "c-english", "zh": "c-chinese"}


def named(prefix: str, name: object) -> Markup:
    """Return the catalogue's name of something, or the name in the file as code.

    Example:
        >>> named("status", "<new>")
        Markup('<code><bdi>&lt;new&gt;</bdi></code>')
    """
    short = words(name, 60)
    key = f"{prefix}.{short}"
    return page.translate(key) if catalogue.has(key) else Markup("<code>{}</code>").format(page.user(short))


def data_section(report: JsonObject) -> dict[str, Any] | None:
    """Return what the template shows of `data/report.json`; None without one."""
    if not report:
        return None
    files, texts = objects(report.get("files")), "characters" in report  # rows of a table have none
    return {
        "texts": texts,
        "rows": formats.count(real(report.get("rows"))),
        "characters": formats.count(real(report.get("characters"))),
        "bytes": formats.size(real(report.get("bytes"))),
        "file_count": formats.whole(len(files)),
        "files": [_file(file) for file in files[:MAX_FILES]],
        "more_files": formats.whole(len(files) - MAX_FILES) if len(files) > MAX_FILES else None,
        "languages": _languages(mapping(report.get("languages"))),
        "columns": _columns(mapping(report.get("columns"))),
        # Rows are not cleaned, and their report does not speak of it.
        "cleaning": [_cleaning(step) for step in objects(report.get("cleaning"))[:MAX_STEPS]]
        if "cleaning" in report or texts
        else None,
        "bad_rows": _bad_rows(mapping(report.get("bad_rows"))),
        "split": _split(mapping(report.get("split")), _OF_TEXTS if texts else _OF_ROWS),
        "overlap": _overlap(mapping(mapping(report.get("split")).get("overlap"))),
        "duplicates": _duplicates(mapping(report.get("duplicates"))),
        "tokenizer": _tokenizer(mapping(report.get("tokenizer"))),
    }


def _file(file: JsonObject) -> dict[str, Any]:
    return {
        "name": words(file.get("name"), 200),
        "size": formats.size(real(file.get("bytes"))),
        "rows": formats.whole(real(file.get("rows"))),
        "sha256": words(file.get("sha256"), 12).removesuffix("…"),
    }


def _languages(shares: JsonObject) -> dict[str, Any] | None:
    known = {name: real(value) or 0.0 for name, value in itertools.islice(shares.items(), 8)}
    if sum(known.values()) <= 0:
        return None
    coloured = [
        (name, share, _LANGUAGE_COLOURS.get(name, "c-other")) for name, share in known.items() if share > 0
    ]
    return {
        "bar": share_bar(
            [(share, colour) for _, share, colour in coloured], both("report.data.languages_chart")
        ),
        "legend": [
            (named("language", name), formats.percent(share), colour) for name, share, colour in coloured
        ],
    }


def _cleaning(step: JsonObject) -> dict[str, Any]:
    count = real(step.get("count")) or 0.0
    removed = step.get("effect") == "removed"
    effect = (
        "report.data.untouched" if not count else "report.data.removed" if removed else "report.data.changed"
    )
    return {
        "name": named("cleaning", step.get("step")),
        "effect": both(effect, count=formats.whole(count)),
        "touched": count > 0,
        "examples": [_before_and_after(e, removed) for e in objects(step.get("examples"))[:MAX_EXAMPLES]],
    }


def _before_and_after(example: JsonObject, removed: bool) -> dict[str, Any]:
    after = words(example.get("after"), 400)
    return {
        "where": _where(example),
        "before": words(example.get("before"), 400),
        "reason": after if removed else "",
        "after": None if removed or example.get("after") is None else after,
    }


def _where(example: JsonObject) -> Markup:
    file, line = page.user(words(example.get("file"), 200)), real(example.get("line"))
    return file if line is None else page.translate("report.data.where", file=file, line=formats.whole(line))


def _bad_rows(bad: JsonObject) -> dict[str, Any]:
    kinds = []
    for name, raw in itertools.islice(mapping(bad.get("kinds")).items(), 30):
        kind = mapping(raw)
        examples = [
            (_where(e), words(e.get("detail"), 200)) for e in objects(kind.get("examples"))[:MAX_EXAMPLES]
        ]
        left_out = kind.get("left_out") is not False
        count = formats.whole(real(kind.get("count")))
        kinds.append(
            {"name": named("bad_row", name), "count": count, "left_out": left_out, "examples": examples}
        )
    return {
        "total": formats.whole(real(bad.get("total"))),
        "any": bool(real(bad.get("total"))),
        "kinds": kinds,
    }


def _columns(roles: JsonObject) -> list[tuple[str, str]]:
    """Which column is what, as far as it is said in words."""
    told = []
    for role, column in itertools.islice(roles.items(), MAX_COLUMNS):
        names = [words(name, 80) for name in column] if isinstance(column, list) else [words(column, 80)]
        if shown := ", ".join(filter(None, names[:MAX_COLUMNS])):
            told.append((words(role, 60), shown))
    return told


def _split(split: JsonObject, counted: tuple[str, ...]) -> dict[str, Any] | None:
    """What lies on each side, in columns of `counted`: (name or number, whether it needs a wide page)."""
    parts = [(name, part) for name in ("train", "validation", "test") if (part := mapping(split.get(name)))]
    if not parts:
        return None
    rows = []
    for name, part in parts:
        figures = {column: formats.count(real(part.get(column))) for column in counted}
        figures |= {"size": formats.size(real(part.get("bytes")))} if "size" in counted else {}
        cells = [(figures[column], column == "size") for column in counted]
        rows.append({"name": both(f"report.data.{name}"), "cells": cells})
    return {"heads": [(both(f"report.data.{column}"), column == "size") for column in counted], "rows": rows}


def _overlap(overlap: JsonObject) -> dict[str, Any] | None:
    exact, near = real(overlap.get("exact")), real(overlap.get("near"))
    if exact is None and near is None:
        return None
    return {
        "any": bool(exact or near),
        "exact": formats.whole(exact or 0.0),
        "near": formats.whole(near or 0.0),
        "examples": _paired(overlap, ("validation", "train")),
    }


def _paired(found: JsonObject, sides: tuple[str, str]) -> list[list[tuple[Any, Any, str]]]:
    """Return examples of two rows each: which of the two, where it stands, what it says."""
    examples = [
        [
            (both(f"report.data.{side}"), _where(place), words(place.get("text"), 400))
            for side in sides
            if (place := mapping(example.get(side)))
        ]
        for example in objects(found.get("examples"))[:MAX_EXAMPLES]
    ]
    return [example for example in examples if example]


def _duplicates(found: JsonObject) -> dict[str, Any] | None:
    """Return how many training rows repeat an earlier one; None where the report does not say."""
    rows, others = real(found.get("rows")), real(found.get("other_target"))
    if rows is None:
        return None
    return {
        "any": bool(rows),
        "rows": formats.whole(rows),
        "others": formats.whole(others) if others else None,
        "examples": _paired(found, ("first", "again")),
    }


def _tokenizer(tokenizer: JsonObject) -> dict[str, Any] | None:
    if not tokenizer:
        return None
    return {
        "kind": named("tokenizer", tokenizer.get("kind")),
        "vocab_size": formats.whole(real(tokenizer.get("vocab_size"))),
        "bytes_per_token": formats.number(real(tokenizer.get("bytes_per_token")), 3),
        "unknown": formats.whole(unknown) if (unknown := real(tokenizer.get("unknown"))) else None,
    }
