"""From a data section to a folder of tokens: the whole way, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from luban.data.bad_rows import BadRows
from luban.data.cleaning import snippet
from luban.data.data_report import ReportBuilder
from luban.data.fingerprint import FINGERPRINT, Fingerprint, fingerprint_of, is_prepared, source_files
from luban.data.personal import mask_personal
from luban.data.shards import ShardWriter, TokenShards
from luban.data.sifting import Sifter
from luban.data.spill import Spill
from luban.data.split import piece_of, tail_cut
from luban.data.tokenizer import Tokenizer, train_tokenizer
from luban.data.tokenizer_file import TOKENIZER_JSON
from luban.durable import DISK, FileSystem, new_folder, read_json, storage_errors, verify_folder, write_json
from luban.errors import CheckpointError, DataError
from luban.text_recipe import TextData

__all__ = ["Prepared", "fingerprint_of", "is_prepared", "prepare"]

REPORT = "report.json"
QUARANTINE = "quarantine.jsonl"
SPLITS = ("train", "validation")
_SPILL = "documents.spill"

Stop = Callable[[], None]
Progress = Callable[[str, float], None]


class Prepared:
    """Prepared data, opened: checked against its manifest once, then memory-mapped.

    Arguments:
        folder: what `prepare` wrote.

    Raises:
        CheckpointError: a file is absent, cut or altered, or the files do not fit each other.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser()
        listed = verify_folder(self.folder)["files"]
        self.report: dict[str, Any] = read_json(self.folder / REPORT)
        self.fingerprint: dict[str, Any] = read_json(self.folder / FINGERPRINT)
        Fingerprint.from_dict(self.fingerprint, self.folder / FINGERPRINT)
        if not isinstance(self.report, dict):
            raise CheckpointError(f"{self.folder / REPORT} must hold a JSON object", received=self.report)
        self.tokenizer = Tokenizer.load(self.folder)
        self.train = TokenShards(self.folder, "train")
        self.validation = TokenShards(self.folder, "validation")
        for shards in (self.train, self.validation):
            if unlisted := {REPORT, FINGERPRINT, TOKENIZER_JSON, *shards.files} - listed.keys():
                raise CheckpointError(f"the manifest of {self.folder} does not vouch for {min(unlisted)}")
            ours, theirs = (
                (self.tokenizer.vocab_size, self.tokenizer.end_id),
                (shards.vocab_size, shards.end_id),
            )
            if ours != theirs:
                raise CheckpointError(
                    f"{self.folder}: {shards.split} was written for {theirs[0]} tokens that end with {theirs[1]}, "
                    f"the tokenizer has {ours[0]} and ends with {ours[1]}",
                    fix="prepare the data again",
                )

    @property
    def train_tokens(self) -> int:
        """Tokens of the training side: an epoch."""
        return len(self.train)

    def sizes(self) -> dict[str, dict[str, int]]:
        """Return documents, tokens and characters of each side."""
        return {
            split: {"documents": len(s.documents), "tokens": len(s), "characters": s.characters}
            for split, s in (("train", self.train), ("validation", self.validation))
        }


def prepare(
    recipe: TextData,
    folder: Path,
    *,
    stop: Stop = lambda: None,
    progress: Progress = lambda stage, fraction: None,  # noqa: ARG005
    fs: FileSystem = DISK,
) -> Prepared:
    """Read, clean, split and tokenize what a recipe names, into `folder`.

    Memory stays bounded whatever the size: per document kept about 500 bytes, its text on the disk. The same
    files and settings give the same bytes, whatever the number of workers. A source that is a prepared
    folder is opened as it is.

    Arguments:
        recipe: the data section.
        folder: appears whole or not at all; one that stands there is replaced.
        stop: called often; what it raises ends the work and leaves nothing behind.
        progress: told the stage (`hashing`, `reading`, `tokenizer`, `tokens`) and the share of it that is
            done.
        fs: the durable file operations.

    Raises:
        InputError: a source, a column or a tokenizer is absent.
        DataError: a bad row under the policy `error`, no text, or too little to split.
        StorageError: the disk is full or fails.
    """
    if isinstance(recipe.source, str) and is_prepared(recipe.source):
        return Prepared(recipe.source)
    progress("hashing", 0.0)
    fingerprint = fingerprint_of(recipe, stop)
    with new_folder(
        folder, fs, extra={"kind": "prepared data", "fingerprint": fingerprint.sha256}
    ) as temporary:
        _Preparation(recipe, temporary, fingerprint, stop, progress, fs).run()
    return Prepared(folder)


class _Preparation:
    """The stages of one preparation, in a folder that is not yet in its place."""

    def __init__(
        self,
        recipe: TextData,
        folder: Path,
        fingerprint: Fingerprint,
        stop: Stop,
        progress: Progress,
        fs: FileSystem,
    ) -> None:
        self._recipe, self._folder, self._fingerprint = recipe, folder, fingerprint
        self._stop, self._progress, self._fs = stop, progress, fs

    def run(self) -> None:
        """Sift, split, train the tokenizer, write tokens, report."""
        recipe = self._recipe
        report = ReportBuilder(recipe.clean)
        with storage_errors(self._folder), self._fs.open_write(self._folder / QUARANTINE) as quarantine:
            bad = BadRows(recipe.on_bad_row, self._keep(quarantine))
            spill = Spill(self._folder / _SPILL, self._fs)
            sifter = Sifter(recipe, source_files(recipe), spill, bad, report, self._stop, self._of("reading"))
            sifter.run()
        spill.close()
        sides = _Sides(recipe, sifter, spill)
        tokenizer = self._tokenizer(spill, sides)
        totals, unknown, shown = self._write_tokens(spill, sides, tokenizer)
        spill.remove()
        split = {**sides.described(), **totals, "overlap": sides.overlap(shown)}
        tokens = totals["train"]["tokens"] - totals["train"]["documents"]
        about_tokenizer = {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "bytes_per_token": round(totals["train"]["bytes"] / max(1, tokens), 4),
            "unknown": unknown,
        }
        write_json(
            self._folder / REPORT, report.as_dict(self._fingerprint, bad, split, about_tokenizer), self._fs
        )
        write_json(self._folder / FINGERPRINT, self._fingerprint.as_dict(), self._fs)

    def _of(self, stage: str) -> Callable[[float], None]:
        return lambda fraction: self._progress(stage, fraction)

    def _keep(self, quarantine: BinaryIO) -> Callable[[dict[str, Any]], None]:
        """Return what writes a bad row to the quarantine, without personal data where that is to be
        masked."""
        masked = self._recipe.clean is not None and self._recipe.clean.mask_personal

        def keep(row: dict[str, Any]) -> None:
            if masked and row["raw"] is not None:
                row = {**row, "raw": mask_personal(row["raw"])[0]}
            line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8")
            with storage_errors(self._folder / QUARANTINE, needed=len(line)):
                self._fs.write(quarantine, line)

        return keep

    def _tokenizer(self, spill: Spill, sides: _Sides) -> Tokenizer:
        """Train the tokenizer on the training side, or read the one the recipe names; put it into the
        folder."""
        recipe = self._recipe
        if recipe.tokenizer in ("bpe", "char"):
            texts = _Texts(
                part.text
                for number, batch in spill.batches(self._stop, self._of("tokenizer"))
                for part in sides.cut(number, batch)
                if part.side == "train"
            )
            with texts:
                tokenizer = train_tokenizer(
                    recipe.tokenizer, texts, vocab_size=recipe.vocab_size, byte_fallback=recipe.byte_fallback
                )
        else:
            tokenizer = Tokenizer.load(Path(recipe.tokenizer).expanduser())
        tokenizer.save(self._folder, self._fs)
        return tokenizer

    def _write_tokens(
        self, spill: Spill, sides: _Sides, tokenizer: Tokenizer
    ) -> tuple[dict[str, dict[str, int]], int, dict[int, str]]:
        """Encode every document; return totals per side, unknown tokens, and the texts that the overlap
        shows."""
        writers = {
            split: ShardWriter(
                self._folder, split, vocab_size=tokenizer.vocab_size, end_id=tokenizer.end_id, fs=self._fs
            )
            for split in SPLITS
        }
        unknown, shown = 0, {}
        for number, batch in spill.batches(self._stop, self._of("tokens")):
            parts = list(sides.cut(number, batch))
            for (side, document, text, end), ids in zip(
                parts, tokenizer.encode_batch([part.text for part in parts]), strict=True
            ):
                array = np.asarray(ids, dtype=np.int32)
                if tokenizer.unknown_id is not None:
                    unknown += int((array == tokenizer.unknown_id).sum())
                if document in sides.to_show:
                    shown[document] = snippet(text)
                size = len(text.encode("utf-8"))
                writers[side].add(array, bytes=size, characters=len(text), end=end)
        return {split: writer.close() for split, writer in writers.items()}, unknown, shown


class _Texts:
    """Texts on their way into the tokenizers library, which gives what they raise another name; this gives
    it back."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self._raised: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            return next(self._texts)
        except StopIteration:
            raise
        except BaseException as error:
            self._raised = error
            raise

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._raised is not None:
            raise self._raised


class _Part(NamedTuple):
    """A document, or what one side has of it; `end` says that what follows on that side does not go on from it."""

    side: str
    document: int
    text: str
    end: bool


class _Sides:
    """Which side every document, or every character of a stream, is on."""

    def __init__(self, recipe: TextData, sifter: Sifter, spill: Spill) -> None:
        self._recipe, self._sifter = recipe, sifter
        self.as_stream = sifter.as_stream
        self._characters = spill.characters
        self._piece = self._piece_of(spill.characters) if self.as_stream else range(0)
        if self.as_stream:
            starts = np.array(sifter.starts, np.int64)
            self._held_out = (starts >= self._piece.start) & (starts < self._piece.stop)
        elif recipe.validation is not None:
            self._held_out = np.array(sifter.groups, bool)
            if self._held_out.all() or not self._held_out.any():
                empty = "data.source" if self._held_out.all() else "data.validation"
                raise DataError(f"no text is left of {empty}", fix="look at that source and at data.clean")
        else:
            self._held_out = sifter.split.sides()
        self._counts, self._pairs = sifter.overlap(self._held_out)
        self.to_show = {number for pair in self._pairs for number in pair}

    def _piece_of(self, characters: int) -> range:
        """Return the characters of a stream that are held out."""
        recipe = self._recipe
        if recipe.folds is not None:
            return piece_of(characters, recipe.folds, recipe.fold or 0)
        return range(tail_cut(characters, recipe.validation_fraction), characters)

    def cut(self, number: int, batch: list[str]) -> Iterator[_Part]:
        """Yield the parts of documents from `number` on; of a stream, those where the held-out piece begins and ends
        are cut."""
        for document, text in enumerate(batch, number):
            if not self.as_stream:
                yield _Part(SPLITS[int(self._held_out[document])], document, text, end=True)
                continue
            start, piece = self._sifter.starts[document], self._piece
            for side, first, last in (
                ("train", 0, piece.start),
                ("validation", piece.start, piece.stop),
                ("train", piece.stop, self._characters),
            ):
                if part := text[max(0, first - start) : max(0, last - start)]:
                    yield _Part(side, document, part, end=start + len(text) >= last)

    def described(self) -> dict[str, Any]:
        """Return how the split was made, for the report."""
        recipe = self._recipe
        if self.as_stream and recipe.folds is not None:
            return {"rule": "tail", "folds": recipe.folds, "fold": recipe.fold or 0}
        if self.as_stream:
            return {"rule": "tail", "validation_fraction": recipe.validation_fraction}
        if recipe.validation is not None:
            return {"rule": "files"}
        return self._sifter.split.described()

    def overlap(self, shown: dict[int, str]) -> dict[str, Any]:
        """Return the overlap for the report, with the texts of its examples."""
        examples = [
            {
                "validation": {**self._sifter.place(held_out), "text": shown.get(held_out, "")},
                "train": {**self._sifter.place(trained), "text": shown.get(trained, "")},
            }
            for held_out, trained in self._pairs
        ]
        return {**self._counts, "examples": examples}
