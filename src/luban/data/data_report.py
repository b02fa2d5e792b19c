"""Gathers the data report: what was read, left out, changed, how it was split. It has no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from luban.data.bad_rows import BadRows
from luban.data.cleaning import EXAMPLES, LANGUAGES, CleanedBatch, StepCount, snippet, steps_of
from luban.data.fingerprint import Fingerprint
from luban.data.rows import Row
from luban.text_recipe import CleanRecipe


class ReportBuilder:
    """Takes what each stage finds and gives `report.json`, in the form of docs/design.md.

    Arguments:
        recipe: the cleaning steps; each that is switched on is listed, also where it did nothing.
    """

    def __init__(self, recipe: CleanRecipe | None) -> None:
        self._rows_of: dict[str, int] = {}
        self._characters = 0
        self._bytes = 0
        self._steps = {name: StepCount(effect) for name, effect in steps_of(recipe).items()}
        self._examples: dict[str, list[dict[str, Any]]] = {name: [] for name in self._steps}
        self._letters = np.zeros(len(LANGUAGES), np.int64)

    def rows(self, rows: Sequence[Row]) -> None:
        """Count rows as they were read."""
        for row in rows:
            self._rows_of[row.file] = self._rows_of.get(row.file, 0) + 1
            self._characters += len(row.text)
            self._bytes += len(row.text) if row.text.isascii() else len(row.text.encode("utf-8"))

    def cleaned(self, rows: Sequence[Row], batch: CleanedBatch) -> None:
        """Count what the steps did to a batch; `rows` are those that went into it."""
        for name, step in batch.steps.items():
            self._steps[name].count += step.count
            for position, before, after in step.examples:
                self._example(name, rows[position], before, after)

    def removed(self, step: str, row: Row, text: str, reason: str) -> None:
        """Count one document that was removed as a duplicate."""
        self._steps[step].count += 1
        self._example(step, row, snippet(text), reason)

    def kept(self, letters: Sequence[int]) -> None:
        """Count the letters of one kept document by script (en, zh, other)."""
        self._letters += np.asarray(letters)

    def _example(self, name: str, row: Row, before: str, after: str) -> None:
        if len(self._examples[name]) < EXAMPLES:
            self._examples[name].append(
                {"file": row.file, "line": row.line, "before": before, "after": after}
            )

    def removals(self) -> str:
        """Say in words which steps removed how many documents."""
        found = [
            f"{s.count} by {name}" for name, s in self._steps.items() if s.effect == "removed" and s.count
        ]
        return ", ".join(found) or "none"

    def as_dict(
        self, fingerprint: Fingerprint, bad: BadRows, split: dict[str, Any], tokenizer: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the report."""
        letters = max(1, int(self._letters.sum()))
        files = [
            {
                "name": f.name,
                "bytes": f.bytes,
                "sha256": f.sha256,
                "rows": self._rows_of.get(f.name, 0),
                "role": f.role,
            }
            for f in fingerprint.files
            if f.role != "tokenizer"
        ]
        return {
            "files": files,
            "rows": sum(self._rows_of.values()),
            "characters": self._characters,
            "bytes": self._bytes,
            "bad_rows": bad.as_dict(),
            "cleaning": [
                {"step": name, "effect": step.effect, "count": step.count, "examples": self._examples[name]}
                for name, step in self._steps.items()
            ],
            "languages": {
                name: round(int(count) / letters, 6)
                for name, count in zip(LANGUAGES, self._letters, strict=True)
            },
            "split": split,
            "tokenizer": tokenizer,
        }
