"""The first pass: rows are read, cleaned, compared with those before them, and what stays is spilled."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luban.data.bad_rows import BadRows
from luban.data.cleaning import CleanedBatch
from luban.data.data_report import ReportBuilder
from luban.data.duplicates import DuplicateIndex, Match
from luban.data.reading import read_rows
from luban.data.rows import Row
from luban.data.sources import SourceFile
from luban.data.spill import BATCH_CHARACTERS, BATCH_DOCUMENTS, Spill
from luban.data.split import DocumentFolds, DocumentSplit
from luban.data.workers import clean_in_order, cores
from luban.errors import DataError
from luban.text_recipe import TextData

SIMILAR = 0.85
"""Two documents of the two sides count as nearly the same from here on, where the recipe names no
threshold."""

_MANY_BYTES = 16_000_000
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class _Origin:
    """A row on its way, and which source it came from: 0 to train on, 1 held out."""

    row: Row
    group: int


class Sifter:
    """Reads, cleans and compares; afterwards the spill holds the documents and this object knows about each.

    Arguments:
        recipe: the data section.
        files: to train on, and held out.
        spill: where kept documents go. With a tail split, what stands there is one stream when put together.
        bad, report: where findings go.
        stop: called often; may raise to stop.
        progress: told the share of bytes read.
    """

    def __init__(
        self,
        recipe: TextData,
        files: tuple[Sequence[SourceFile], Sequence[SourceFile]],
        spill: Spill,
        bad: BadRows,
        report: ReportBuilder,
        stop: Callable[[], None],
        progress: Callable[[float], None],
    ) -> None:
        self._recipe, self._files, self._spill = recipe, files, spill
        self._bad, self._report, self._stop, self._progress = bad, report, stop, progress
        self._exact = recipe.clean is not None and recipe.clean.exact_duplicates
        self._near = recipe.clean.near_duplicates if recipe.clean is not None else None
        self.index = DuplicateIndex(self._near if self._near is not None else SIMILAR)
        self.split = (
            DocumentSplit(recipe.validation_fraction, recipe.seed)
            if recipe.folds is None
            else DocumentFolds(recipe.folds, recipe.fold or 0, recipe.seed)
        )
        self.as_stream = recipe.split == "tail" and not files[1]
        self.groups = array("B")
        self.starts = array("Q")
        self.pairs = _Pairs()
        self._names: list[str] = []
        self._places = array("Q")
        self._last = ""
        self._sizes = [file.path.stat().st_size for group in files for file in group]
        self._seen = 0

    def run(self) -> None:
        """Read everything once.

        Raises:
            DataError: a bad row under the policy `error`, or nothing is left.
        """
        workers = self._recipe.workers or (cores() if sum(self._sizes) >= _MANY_BYTES else 1)
        for origins, batch in clean_in_order(self._recipe.clean, self._batches(), workers):
            self._stop()
            self._take(origins, batch)
        self._progress(1.0)
        if not len(self.index):
            removed, bad = self._report.removals(), self._bad.as_dict()["total"]
            raise DataError(
                "no text is left",
                received=f"bad rows: {bad}; documents removed: {removed}",
                where=self._recipe.source,
                fix="look at data.text, data.clean and the source",
            )

    def place(self, number: int) -> dict[str, Any]:
        """Return file and line of a kept document."""
        return {"file": self._names[self._places[2 * number]], "line": self._places[2 * number + 1]}

    def _batches(self) -> Iterator[tuple[list[_Origin], list[str]]]:
        """Group rows into batches; where a batch ends depends on the rows only."""
        origins: list[_Origin] = []
        size = 0
        for group, files in enumerate(self._files):
            rows = read_rows(
                files,
                column=self._recipe.text,
                document=self._recipe.document,
                max_row_bytes=self._recipe.max_row_bytes,
                bad=self._bad,
                seen=self._count_seen,
            )
            for row in rows:
                origins.append(_Origin(row, group))
                size += len(row.text)
                if size >= BATCH_CHARACTERS or len(origins) >= BATCH_DOCUMENTS:
                    yield self._batch(origins)
                    origins, size = [], 0
        if origins:
            yield self._batch(origins)

    def _batch(self, origins: list[_Origin]) -> tuple[list[_Origin], list[str]]:
        self._stop()
        self._report.rows([origin.row for origin in origins])
        return origins, [origin.row.text for origin in origins]

    def _count_seen(self, size: int) -> None:
        self._seen += size
        if size:
            self._stop()
            self._progress(min(1.0, self._seen / max(1, sum(self._sizes))))

    def _take(self, origins: list[_Origin], batch: CleanedBatch) -> None:
        """Compare a cleaned batch with what was kept before, and keep what is new."""
        self._report.cleaned([origin.row for origin in origins], batch)
        present = [
            (origin, text) for origin, text in zip(origins, batch.texts, strict=True) if text is not None
        ]

        def keep(position: int, matches: list[Match]) -> bool:
            origin, text = present[position]
            if self._is_duplicate(origin, text, matches):
                return False
            number = len(self.groups)
            self.pairs.add(number, matches)
            self.starts.append(self._spill.characters)
            self._spill.add(self._joined(origin.row, text) if self.as_stream else text)
            self.groups.append(origin.group)
            self.split.add(batch.digests[position].tobytes())
            self._note_place(origin.row)
            self._report.kept(batch.letters[position])
            return True

        self.index.add(batch.digests, batch.signatures, keep)

    def _is_duplicate(self, origin: _Origin, text: str, matches: list[Match]) -> bool:
        """Count a document that repeats one of its own source; one of the other source is overlap, and
        stays."""
        own = [match for match in matches if self.groups[match.number] == origin.group]
        exact = next((match for match in own if match.exact), None)
        if self._exact and exact is not None:
            place = self.place(exact.number)
            self._report.removed(
                "exact_duplicates", origin.row, text, f"same as {place['file']}:{place['line']}"
            )
            return True
        if self._near is not None and own:
            best = max(own, key=lambda match: match.similarity)
            place = self.place(best.number)
            reason = f"like {place['file']}:{place['line']} (similarity {best.similarity:.2f})"
            self._report.removed("near_duplicates", origin.row, text, reason)
            return True
        return False

    def _joined(self, row: Row, text: str) -> str:
        """Put a line feed before a document of the stream that starts a new one; passages just go on."""
        if self._last and not self._last.endswith("\n") and not row.continues:
            text = "\n" + text
        self._last = text
        return text

    def _note_place(self, row: Row) -> None:
        if not self._names or self._names[-1] != row.file:
            self._names.append(row.file)
        self._places.extend((len(self._names) - 1, row.line))

    def overlap(self, held_out: NDArray[np.bool_]) -> tuple[dict[str, Any], list[tuple[int, int]]]:
        """Return how many held-out documents stand in the training side too, and pairs (held out, trained)
        to show.

        Arguments:
            held_out: for each kept document, (documents,).
        """
        pairs = self.pairs.across(held_out)
        exact = {int(v) for v, _, same in pairs if same}
        near = {int(v) for v, _, _ in pairs} - exact
        return {"exact": len(exact), "near": len(near)}, [(v, t) for v, t, _ in pairs[:_EXAMPLES]]


class _Pairs:
    """Pairs of kept documents that are alike: (later, earlier, exact), compactly."""

    def __init__(self) -> None:
        self._flat = array("Q")

    def add(self, number: int, matches: Sequence[Match]) -> None:
        for match in matches:
            self._flat.extend((number, match.number, match.exact))

    def across(self, held_out: NDArray[np.bool_]) -> list[tuple[int, int, bool]]:
        """Return the pairs with one document on each side, as (held out, trained, exact)."""
        if not self._flat:
            return []
        pairs = np.frombuffer(self._flat, np.uint64).astype(np.int64).reshape(-1, 3)
        pairs = pairs[held_out[pairs[:, 0]] != held_out[pairs[:, 1]]]
        later_out = held_out[pairs[:, 0]]
        out = np.where(later_out, pairs[:, 0], pairs[:, 1])
        trained = np.where(later_out, pairs[:, 1], pairs[:, 0])
        return [(int(v), int(t), bool(e)) for v, t, e in zip(out, trained, pairs[:, 2], strict=True)]
