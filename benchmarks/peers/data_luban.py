"""luban's own preparation, stage by stage; settings `tokenizer`, `tokens`, `duplicates`, `duplicates-1`, `whole`."""

from __future__ import annotations

import argparse

import numpy as np
from stages import BATCH, LENGTH, SIMILAR, VOCABULARY, asked, read_texts

from luban.data.bad_rows import BadRows
from luban.data.data_report import ReportBuilder
from luban.data.fingerprint import source_files
from luban.data.prepare import prepare
from luban.data.shards import ShardWriter, TokenShards
from luban.data.sifting import Sifter
from luban.data.spill import BATCH_DOCUMENTS, Spill
from luban.data.tokenizer import Tokenizer, train_tokenizer
from luban.data.windows import Windows
from luban.durable import DISK
from luban.text_recipe import CleanRecipe, TextData


def tokenizer(options: argparse.Namespace) -> None:
    texts = read_texts(options.corpus)
    with options.stages.time("tokenizer"):
        trained = train_tokenizer("bpe", iter(texts), vocab_size=VOCABULARY, byte_fallback=True)
    options.stages.found["vocabulary"] = trained.vocab_size


def tokens(options: argparse.Namespace) -> None:
    """Encode, pack into shards on the disk, and read one epoch of windows as a training would."""
    texts, own, stages = read_texts(options.corpus), Tokenizer.load(options.tokenizer), options.stages
    writer = ShardWriter(options.scratch, "train", vocab_size=own.vocab_size, end_id=own.end_id)
    for at in range(0, len(texts), BATCH_DOCUMENTS):
        batch = texts[at : at + BATCH_DOCUMENTS]
        with stages.time("encode"):
            arrays = [np.asarray(ids, dtype=np.int32) for ids in own.encode_batch(batch)]
        with stages.time("pack"):
            for text, array in zip(batch, arrays, strict=True):
                writer.add(array, bytes=len(text.encode("utf-8")), characters=len(text))
    with stages.time("pack"):
        stages.found["tokens"] = writer.close()["tokens"]
    with stages.time("batches"):
        windows = Windows(TokenShards(options.scratch, "train"), length=LENGTH, seed=0)
        for first in range(0, windows.per_epoch, BATCH):
            windows.batch(first, min(BATCH, windows.per_epoch - first))


def duplicates(options: argparse.Namespace) -> None:
    """Read, clean and compare, as the first pass of `luban prepare` does."""
    clean = CleanRecipe(near_duplicates=SIMILAR)
    workers = 1 if options.setting.endswith("-1") else 0
    recipe = TextData(source=str(options.corpus), clean=clean, workers=workers)
    spill = Spill(options.scratch / "spill", DISK)
    report = ReportBuilder(clean)
    with options.stages.time("duplicates"):
        bad = BadRows(recipe.on_bad_row, lambda _: None)
        Sifter(recipe, source_files(recipe), spill, bad, report, lambda: None, lambda _: None).run()
        spill.close()
    options.stages.found["removed"] = report.removals()


def whole(options: argparse.Namespace) -> None:
    recipe = TextData(
        source=str(options.corpus), vocab_size=VOCABULARY, clean=CleanRecipe(near_duplicates=SIMILAR)
    )
    with options.stages.time("whole"):
        prepared = prepare(recipe, options.scratch / "prepared")
    options.stages.found["tokens"] = len(prepared.train) + len(prepared.validation)
    options.stages.found["documents"] = sum(side["documents"] for side in prepared.sizes().values())


def main() -> None:
    options = asked()
    {"tokenizer": tokenizer, "tokens": tokens, "duplicates": duplicates, "whole": whole}[
        options.setting.partition("-")[0]
    ](options)
    options.stages.write()


if __name__ == "__main__":
    main()
