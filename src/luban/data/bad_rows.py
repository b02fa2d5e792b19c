"""What is wrong with the rows of a source: counted by kind, listed with file and line, met by policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

from luban.errors import DataError

Policy = Literal["error", "skip", "quarantine"]
BadKind = Literal[
    "invalid_utf8",
    "nul",
    "broken_json",
    "not_an_object",
    "missing_column",
    "not_text",
    "too_long",
    "empty_file",
    "empty_row",
    "wrong_columns",
    "corrupt_file",
    "missing_value",
    "unknown_label",
    "not_a_number",
    "bad_value",
    "bad_picture",
    "outside",
    "no_file",
    "unequal_lengths",
    "repeated_id",
]
MendedKind = Literal[
    "bom",
    "crlf",
    "blank_line",
    "long_line",
    "no_header",
    "separator",
    "plain_quote",
    "comment",
    "width",
    "passed_over",
]

EXAMPLES = 10
RAW_CHARACTERS = 500

_FIXES: dict[BadKind, str] = {
    "invalid_utf8": "save the file as UTF-8, for example: iconv -f GB18030 -t UTF-8 OLD > NEW",
    "nul": "a NUL byte means a binary file or UTF-16; save it as UTF-8 text",
    "broken_json": "write one whole JSON object on each line",
    "not_an_object": 'write each row as an object, for example {"text": "..."}',
    "missing_column": "give every row the columns that the recipe names",
    "not_text": "write the value as a string",
    "too_long": "cut the row, or raise data.max_row_bytes",
    "empty_file": "remove the file from the source",
    "empty_row": "remove the row or fill it",
    "wrong_columns": "give every row as many columns as the header; quote a text that holds the separator",
    "corrupt_file": "get the file anew; it is cut or altered",
    "missing_value": "give the row the value, or remove the row",
    "unknown_label": "correct the label, or give rows of that label to train on too",
    "not_a_number": "write a number, with a point before decimals",
    "bad_value": "write the value as text or as a number",
    "bad_picture": "save the picture anew, for example as PNG",
    "outside": "put the file itself into the folder; paths and links are not followed out of it",
    "no_file": "correct the path, which counts from the folder that names it, or put the file there",
    "unequal_lengths": "give every token one tag",
    "repeated_id": "keep one row of each id",
}


class _Count:
    def __init__(self) -> None:
        self.count = 0
        self.examples: list[dict[str, Any]] = []


class Place(NamedTuple):
    """Where a row stands: the file's name in the report, its path on this machine, and the line or row (from
    1)."""

    file: str
    path: str
    line: int


class BadRows:
    """Counts bad rows, keeps the first examples of each kind, and follows `data.on_bad_row`.

    Arguments:
        policy: `error` raises at the first bad row; `skip` leaves it out; `quarantine` also hands it to
            `keep`.
        keep: receives `{"file", "line", "kind", "detail", "raw"}` of each bad row under `quarantine`.

    Example:
        >>> bad = BadRows("skip")
        >>> bad.add("broken_json", Place("a.jsonl", "/tmp/a.jsonl", 7), "no closing brace", '{"text": ')
        >>> bad.as_dict()["kinds"]["broken_json"]["examples"]
        [{'file': 'a.jsonl', 'line': 7, 'detail': 'no closing brace'}]
    """

    def __init__(self, policy: Policy, keep: Callable[[dict[str, Any]], None] | None = None) -> None:
        self._policy, self._keep = policy, keep
        self._kinds: dict[BadKind | MendedKind, _Count] = {}

    def add(self, kind: BadKind, place: Place, detail: str, raw: str | bytes | None = None) -> None:
        """Count a row that cannot be used.

        Raises:
            DataError: under the policy `error`, with file and line, what was received and how to mend it.
        """
        shown = None if raw is None else _shown(raw)
        if self._policy == "error":
            raise DataError(
                f"a bad row ({kind}): {detail}",
                received=shown,
                where=f"{place.path}:{place.line}",
                fix=f"{_FIXES[kind]}; or leave such rows out with data.on_bad_row=quarantine",
            )
        self._note(kind, place, detail)
        if self._policy == "quarantine" and self._keep is not None:
            self._keep({"file": place.file, "line": place.line, "kind": kind, "detail": detail, "raw": shown})

    def mended(self, kind: MendedKind, place: Place, detail: str) -> None:
        """Count something harmless that was put right: it is listed, and no policy stops at it."""
        self._note(kind, place, detail)

    def _note(self, kind: BadKind | MendedKind, place: Place, detail: str) -> None:
        entry = self._kinds.setdefault(kind, _Count())
        entry.count += 1
        if len(entry.examples) < EXAMPLES:
            entry.examples.append({"file": place.file, "line": place.line, "detail": detail})

    def count(self, kind: BadKind) -> int:
        """Return how many rows of a kind there were."""
        return self._kinds[kind].count if kind in self._kinds else 0

    def told(self) -> dict[str, str]:
        """Return of each kind that was left out how many rows there were, and what was wrong with the first.

        Example:
            >>> bad = BadRows("skip")
            >>> bad.add("nul", Place("a.csv", "/tmp/a.csv", 7), "a NUL byte")
            >>> bad.told()
            {'nul': '1, first a.csv:7: a NUL byte'}
        """
        kinds = {kind: entry for kind, entry in self._kinds.items() if kind in get_args(BadKind)}
        return {
            kind: f"{entry.count:,}, first {{file}}:{{line}}: {{detail}}".format(**entry.examples[0])
            for kind, entry in sorted(kinds.items())
        }

    def fix(self) -> str | None:
        """Return how to mend the kind of bad row that is most frequent; None without any."""
        kinds = {kind: self._kinds[kind].count for kind in _FIXES if kind in self._kinds}
        return _FIXES[max(kinds, key=kinds.__getitem__)] if kinds else None

    def as_dict(self) -> dict[str, Any]:
        """Return the `bad_rows` part of the data report; `total` counts the rows left out, not those
        mended."""
        left_out = [k for k in self._kinds if k in get_args(BadKind)]
        return {
            "total": sum(self._kinds[kind].count for kind in left_out),
            "kinds": {
                kind: {"count": entry.count, "examples": entry.examples, "left_out": kind in left_out}
                for kind, entry in sorted(self._kinds.items())
            },
        }


def told_by_kind(bad: Mapping[str, Any]) -> Iterator[str]:
    """Yield of a `bad_rows` part a line for each kind of rows that were left out, with the first of them.

    Example:
        >>> bad = BadRows("skip")
        >>> bad.add("empty_row", Place("a.csv", "/tmp/a.csv", 7), "the text is empty")
        >>> list(told_by_kind(bad.as_dict()))
        ['left out: 1 empty row, the first a.csv:7: the text is empty']
    """
    for kind, entry in bad.get("kinds", {}).items():
        if entry.get("left_out", True):
            first = "{file}:{line}: {detail}".format(**entry["examples"][0])
            yield f"left out: {entry['count']:,} {kind.replace('_', ' ')}, the first {first}"


def _shown(raw: str | bytes) -> str:
    """Clip `raw` and write what is no UTF-8 as escapes, so that any row can stand in a JSON file."""
    if isinstance(raw, bytes):
        return raw[:RAW_CHARACTERS].decode("utf-8", "backslashreplace")
    return raw[:RAW_CHARACTERS].encode("utf-8", "backslashreplace").decode("utf-8")
