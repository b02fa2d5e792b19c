"""`luban runs`: the runs of a folder, one line each; or one run on one screen."""

from __future__ import annotations

import textwrap
import time
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luban.console import duration, short
from luban.durable import folder_bytes
from luban.evaluation.records import mapping, real
from luban.evaluation.standing import (
    Standing,
    as_json,
    find_runs,
    is_run,
    next_command,
    reached,
    standing_of,
)

DEFAULT = "runs"
_GAP = "  "
_SHORTEST_NAME = 12


def runs(folders: Sequence[str | Path] = ()) -> list[Standing]:
    """Return how every run in and below `folders` stands, the one begun last at the end.

    Arguments:
        folders: runs, or folders of runs; `runs/` when left out, where its absence means no runs.

    Raises:
        InputError: for a folder that is not there.
    """
    places = [Path(folder) for folder in folders] or [Path(DEFAULT)]
    if not folders and not places[0].is_dir():
        return []
    one = len(places) == 1 and is_run(places[0])
    found = [standing_of(run, verify=one) for run in find_runs(places)]
    return sorted(found, key=lambda standing: (standing.begun or 0.0, str(standing.folder)))


def overview(found: Sequence[Standing], *, width: int | None, now: float | None = None) -> list[str]:
    """Return a table of runs as lines of text.

    Arguments:
        width: columns of the terminal; None writes everything out.
        now: seconds since 1970.
    """
    told = [as_json(standing, time.time() if now is None else now) for standing in found]
    names = {row["primary"]["name"] for row in told if row["primary"]["name"]}
    figure = next(iter(names)) if len(names) == 1 else "primary figure"
    rows = [["run", "state", "step", "done", figure, "when", "size"]]
    rows += [_row(row, with_name=len(names) > 1) for row in told]
    lines = table(rows, width, right={2, 3, 4, 6})
    shown = lines[:1]
    for row, line in zip(told, lines[1:], strict=True):
        shown.append(line)
        if row["why"]:
            shown.append(_cut("    " + " ".join(row["why"].split()), width))
    if any(row["primary"]["step"] is not None and row["primary"]["value"] is not None for row in told):
        shown += ["", "* of the last evaluation while training"]
    return shown


def _row(row: Mapping[str, Any], *, with_name: bool) -> list[str]:
    primary = row["primary"]
    value = ""
    if primary["value"] is not None:
        value = f"{primary['value']:.4f}" + (" " if primary["step"] is None else "*")
        value = f"{primary['name']} {value}" if with_name else value
    elif row["state"] == "finished":
        value = "not finite "
    return [
        row["run"],
        row["state"],
        "" if row["step"] is None else f"{row['step']:,.0f}",
        "" if row["share"] is None else f"{row['share']:.0%}",
        value,
        "" if row["age_seconds"] is None else f"{about(row['age_seconds'])} ago",
        size(row["bytes"]),
    ]


def screen(standing: Standing, *, width: int = 80, now: float | None = None) -> list[str]:
    """Return one run as lines of text: what happened, what is safe, and the command that goes on."""
    now = time.time() if now is None else now
    came = reached(standing)
    at = "" if came.step is None else f" at step {came.step:,.0f}"
    share = "" if came.share is None or standing.state == "finished" else f" ({came.share:.0%} of its budget)"
    when = "" if standing.changed is None else f", {about(max(0.0, now - standing.changed))} ago"
    verb = {"live": "live", "died": "ended without a word"}.get(standing.state, standing.state)
    facts = [("held by", standing.holder or ""), *_about(standing, came.primary, came.seconds, came.tokens)]
    if standing.state not in ("live", "finished"):
        facts += [
            ("what happened", standing.why),
            ("how to mend it", standing.fix),
            ("what is safe", safety(standing, now)),
        ]
    if standing.repeats:
        again = "the same steps would end the same way; start anew with something changed"
        facts.append(("going on", again))
    if command := next_command(standing):
        facts.append(("try it" if standing.state == "finished" else "go on with", command))
    return [f"{standing.folder}: {verb}{at}{share}{when}", *_facts(facts, width)]


def _about(
    standing: Standing, primary: Mapping[str, Any], seconds: float | None, tokens: float | None
) -> list[tuple[str, str]]:
    value = ""
    if primary.get("value") is not None:
        measured = mapping(mapping(standing.evaluation.get("metrics")).get(str(primary["name"])))
        low, high = real(measured.get("low")), real(measured.get("high"))
        value = f"{primary['name']} {primary['value']:.4f}"
        if primary["step"] is not None:
            value += f" at step {primary['step']:,.0f}, while training"
        elif low is not None and high is not None and high > low:
            value += f"  [{low:.4f}, {high:.4f}]"
    trained = ", ".join(
        part
        for part in (
            "" if tokens is None else f"{short(tokens)} {standing.said.unit}",
            "" if seconds is None else f"{duration(seconds)} of training",
            f"{size(folder_bytes(standing.folder))} on disk",
        )
        if part
    )
    return [("figure", value), ("so far" if standing.state != "finished" else "took", trained)]


def safety(standing: Standing, now: float) -> str:
    """Say in words which checkpoint can be relied on.

    Example:
        >>> safety(Standing(Path("run"), "died"), 0.0)
        'no checkpoint yet: it would start from step 0, with the data as prepared'
    """
    safe, spoilt = standing.safe, ""
    if standing.passed_over:
        spoilt = f"; not whole and passed over: step {', '.join(map(str, standing.passed_over))}"
    if safe is None:
        if standing.passed_over:
            return f"nothing{spoilt}"
        return "no checkpoint yet: it would start from step 0, with the data as prepared"
    whole = "every byte verified" if safe.verified else "not verified now"
    age = about(max(0.0, now - safe.written))
    return f"the checkpoint of step {safe.step:,}, {whole}, written {age} ago{spoilt}"


def about(seconds: float) -> str:
    """Write a time span in one unit.

    Example:
        >>> about(8.2), about(115), about(7300), about(400_000)
        ('8 s', '2 min', '2 h', '5 days')
    """
    for limit, unit, name in ((99.5, 1.0, "s"), (99.5 * 60, 60.0, "min"), (47.5 * 3600, 3600.0, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86400:.0f} days"


def size(count: float) -> str:
    """Write a number of bytes.

    Example:
        >>> size(812), size(1536), size(5 * 2**30)
        ('812 B', '1.5 KiB', '5.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _facts(facts: Sequence[tuple[str, str]], width: int) -> list[str]:
    label = max(len(name) for name, _ in facts) + 2
    lines = []
    for name, text in facts:
        if not text:
            continue
        head = f"  {name:{label}}"
        if name in ("go on with", "try it"):  # a command is copied: it is never broken
            lines.append(head + text)
            continue
        lines += textwrap.wrap(
            " ".join(text.split()),
            max(40, width),
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def table(rows: Sequence[Sequence[str]], width: int | None, right: set[int]) -> list[str]:
    """Set rows of text in columns; where they are too wide for the terminal, the first column gives way."""
    clean = [[_plain(cell) for cell in row] for row in rows]
    widths = [max(cells(row[column]) for row in clean) for column in range(len(clean[0]))]
    if width is not None:
        others = sum(widths[1:]) + len(_GAP) * (len(widths) - 1)
        widths[0] = max(min(widths[0], width - others), _SHORTEST_NAME)
    lines = []
    for row in clean:
        fitted = [_cut(row[0], widths[0], keep_end=True), *row[1:]]
        padded = [
            " " * (widths[n] - cells(cell)) + cell if n in right else cell + " " * (widths[n] - cells(cell))
            for n, cell in enumerate(fitted)
        ]
        lines.append(_GAP.join(padded).rstrip())
    return lines


def cells(text: str) -> int:
    """Return how many columns of a terminal a text takes: Chinese characters take two.

    Example:
        >>> cells("run"), cells("唐诗"), cells("e\u0301")
        (3, 4, 1)
    """
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def _plain(text: str) -> str:
    """Return a text that cannot steer a terminal: a folder's name may hold anything."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return shown.encode("utf-8", "replace").decode("utf-8")


def _cut(text: str, width: int | None, *, keep_end: bool = False) -> str:
    """Shorten a text to so many columns, with an ellipsis where something is left out."""
    text = _plain(text)
    if width is None or cells(text) <= width:
        return text
    kept, room = "", width - 1
    for character in reversed(text) if keep_end else text:
        room -= cells(character)
        if room < 0:
            break
        kept = character + kept if keep_end else kept + character
    return "…" + kept if keep_end else kept + "…"
