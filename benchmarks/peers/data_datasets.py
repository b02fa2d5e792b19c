"""datasets and tokenizers as transformers' run_clm example uses them, and a MinHash of datasketch before it.

Settings: `tokenizer`, `tokens`, `duplicates` (one process), `duplicates-2` (signatures in two processes),
`whole`.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasketch import MinHash, MinHashLSH
from stages import BATCH, LENGTH, SIMILAR, VOCABULARY, asked
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END, SHINGLE, PERMUTATIONS, SCHEME = "<|end|>", 4, 128, MinHash().scheme
_WORDS = re.compile(r"[一-鿿]|[^\W一-鿿]+")


def load(corpus: Path, scratch: Path) -> Dataset:
    return load_dataset("json", data_files=str(corpus), split="train", cache_dir=str(scratch / "cache"))


def train_tokenizer(rows: Dataset) -> PreTrainedTokenizerFast:
    """Train byte-level BPE as the tokenizers documentation does."""

    def texts() -> Iterator[list[str]]:
        for at in range(0, len(rows), 1000):
            yield rows[at : at + 1000]["text"]

    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    rust.train_from_iterator(texts(), trainer, length=len(rows))
    return PreTrainedTokenizerFast(tokenizer_object=rust, eos_token=END)


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Tokenize, and end every document with its token."""

    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        found = tokenizer(batch["text"], return_attention_mask=False, return_token_type_ids=False)
        return {"input_ids": [[*ids, tokenizer.eos_token_id] for ids in found["input_ids"]]}

    return rows.map(tokenize, batched=True, remove_columns=rows.column_names)


def pack(rows: Dataset) -> Dataset:
    """Concatenate and cut, as `group_texts` of run_clm does; the rest of each thousand documents is dropped."""

    def group_texts(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = list(chain(*examples["input_ids"]))
        total = len(joined) // LENGTH * LENGTH
        parts = [joined[at : at + LENGTH] for at in range(0, total, LENGTH)]
        return {"input_ids": parts, "labels": [list(part) for part in parts]}

    return rows.map(group_texts, batched=True)


def signature(batch: dict[str, list[str]]) -> dict[str, Any]:
    """MinHash of runs of four words, of Chinese four characters; lower case, punctuation left out."""
    values = []
    for text in batch["text"]:
        words = _WORDS.findall(text.lower())
        runs = {" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))}
        minhash = MinHash(num_perm=PERMUTATIONS, scheme=SCHEME)
        minhash.update_batch([run.encode("utf-8") for run in runs])
        values.append(minhash.hashvalues)
    return {"signature": values}


def without_duplicates(rows: Dataset, processes: int) -> Dataset:
    """Keep of documents that are alike the first, by MinHash and locality-sensitive hashing."""
    signed = rows.map(signature, batched=True, num_proc=processes if processes > 1 else None)
    index = MinHashLSH(threshold=SIMILAR, num_perm=PERMUTATIONS)
    kept = []
    for number, values in enumerate(signed.with_format("numpy", columns=["signature"])):
        minhash = MinHash(num_perm=PERMUTATIONS, hashvalues=values["signature"], scheme=SCHEME)
        if not index.query(minhash):
            index.insert(number, minhash)
            kept.append(number)
    return rows.select(kept)


def tokenizer(options: argparse.Namespace) -> None:
    rows = load(options.corpus, options.scratch)
    with options.stages.time("tokenizer"):
        options.stages.found["vocabulary"] = len(train_tokenizer(rows))


def tokens(options: argparse.Namespace) -> None:
    """Encode and pack with two maps, and read one epoch of batches as the Trainer's loader would."""
    from torch.utils.data import DataLoader

    stages, rows = options.stages, load(options.corpus, options.scratch)
    own = PreTrainedTokenizerFast(tokenizer_file=str(options.tokenizer / "tokenizer.json"), eos_token=END)
    with stages.time("encode"):
        encoded = encode(rows, own)
    with stages.time("pack"):
        packed = pack(encoded)
    stages.found["tokens"] = len(packed) * LENGTH
    with stages.time("batches"):
        loader = DataLoader(packed.with_format("torch"), batch_size=BATCH, shuffle=True)
        seen = sum(batch["input_ids"].numel() for batch in loader)
    assert seen == len(packed) * LENGTH


def duplicates(options: argparse.Namespace) -> None:
    processes = 2 if options.setting.endswith("-2") else 1
    with options.stages.time("duplicates"):
        rows = load(options.corpus, options.scratch)
        kept = without_duplicates(rows, processes)
    options.stages.found["removed"] = len(rows) - len(kept)


def whole(options: argparse.Namespace) -> None:
    with options.stages.time("whole"):
        rows = without_duplicates(load(options.corpus, options.scratch), os.cpu_count() or 1)
        packed = pack(encode(rows, train_tokenizer(rows)))
    options.stages.found.update(tokens=len(packed) * LENGTH, documents=len(rows))


def main() -> None:
    options = asked()
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    {"tokenizer": tokenizer, "tokens": tokens, "duplicates": duplicates, "whole": whole}[
        options.setting.partition("-")[0]
    ](options)
    options.stages.write()


if __name__ == "__main__":
    main()
