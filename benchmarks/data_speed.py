"""Preparing text: luban's tokenizer training, encoding, packing and near duplicates beside datasets and datasketch.

    python benchmarks/data_speed.py --peers .venv-peers/bin/python --texts a.txt b.txt.gz ... \
        [--megabytes 20] [--rounds 3]

The corpus is made of the texts given (mixed_text.py), the same for both sides. Every stage runs in a process
of its own, interleaved over the rounds; imports are not timed. The peers do what transformers' run_clm
example does: `tokenizers` trains byte-level BPE, one `datasets.map` encodes, another concatenates and cuts, a
DataLoader hands out batches; before it, MinHash signatures of 128 hash functions over runs of four words and
an index of datasketch with the same threshold. luban's stages do more: exact duplicates and control
characters go, every document is looked up in a report.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from children import ChildError, heed_termination, run_child, undisturbed
from figures import Spread, put_section, spread, table
from mixed_text import read_text, write_corpus

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "data_speed.json"


@dataclass(frozen=True)
class Candidate:
    """One side at some stages: which script of peers/ runs, with which setting, and which stages it times."""

    name: str
    script: str
    setting: str
    stages: tuple[str, ...]
    ours: bool


def _pair(setting: str, *stages: str) -> list[Candidate]:
    return [
        Candidate(f"luban {setting}", "data_luban.py", setting, stages, ours=True),
        Candidate(f"datasets {setting}", "data_datasets.py", setting, stages, ours=False),
    ]


CANDIDATES = [
    *_pair("tokenizer", "tokenizer"),
    *_pair("tokens", "encode", "pack", "batches"),
    Candidate("luban duplicates-1", "data_luban.py", "duplicates-1", ("duplicates",), ours=True),
    Candidate("luban duplicates", "data_luban.py", "duplicates", ("duplicates",), ours=True),
    Candidate("datasets duplicates", "data_datasets.py", "duplicates", ("duplicates",), ours=False),
    Candidate("datasets duplicates-2", "data_datasets.py", "duplicates-2", ("duplicates",), ours=False),
    *_pair("whole", "whole"),
]
LABELS = {
    ("tokenizer", "tokenizer"): "train byte-level BPE of 4,096",
    ("tokens", "encode"): "encode",
    ("tokens", "pack"): "pack to disk",
    ("tokens", "batches"): "one epoch of batches",
    ("duplicates-1", "duplicates"): "read, clean, near duplicates; one process",
    ("duplicates", "duplicates"): "read, near duplicates",
    ("duplicates-2", "duplicates"): "read, near duplicates; two processes",
    ("whole", "whole"): "all of it",
}


def run(
    candidate: Candidate, options: argparse.Namespace, corpus: Path, tokenizer: Path
) -> tuple[dict[str, Any], float]:
    """Run one candidate once; return what came of it, and what neighbours took of the machine meanwhile."""
    with tempfile.TemporaryDirectory() as scratch:
        own, out = Path(scratch) / "own", Path(scratch) / "result.json"
        own.mkdir()
        command = [
            sys.executable if candidate.ours else str(options.peers), str(HERE / "peers" / candidate.script),
            "--corpus", str(corpus), "--setting", candidate.setting, "--tokenizer", str(tokenizer),
            "--scratch", str(own), "--out", str(out),
        ]  # fmt: skip
        environment = {"HF_HOME": str(own / "hf")}
        try:
            child = run_child(command, Path(scratch) / "log.txt", environment=environment, together=True)
        except ChildError as error:
            return {"candidate": candidate.name, "failed": str(error)}, 0.0
        memory = max(child.peak_bytes, child.together_bytes)
        row = {"candidate": candidate.name, "memory": memory, **json.loads(out.read_text("utf-8"))}
        return row, child.neighbours


def summarise(rows: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """Return MB/s of each stage and the memory of each candidate: median, least and most."""
    summary: dict[str, Any] = {}
    for candidate in CANDIDATES:
        own = [row for row in rows if row["candidate"] == candidate.name and "failed" not in row]
        if own:
            summary[candidate.name] = {
                "megabytes_per_second": {
                    stage: dataclasses.asdict(spread([size / 1e6 / row["seconds"][stage] for row in own]))
                    for stage in candidate.stages
                },
                "memory": dataclasses.asdict(spread([row["memory"] for row in own])),
                "found": own[-1]["found"],
                "rounds": len(own),
            }
    return summary


def page(result: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = []
    for candidate in CANDIDATES:
        row = result["summary"].get(candidate.name)
        for stage in candidate.stages if row else ():
            rate = Spread(**row["megabytes_per_second"][stage])
            lines.append([
                LABELS[candidate.setting, stage], candidate.name.split()[0],
                f"{rate.median:.1f} ({rate.low:.1f} to {rate.high:.1f})", f"{row['memory']['median'] / 1e6:,.0f}",
            ])  # fmt: skip
    lines.sort(key=lambda line: list(LABELS.values()).index(line[0]))
    made = result["corpus"]
    after = (
        f"{made['bytes'] / 1e6:.0f} MB in {made['documents']:,} documents made of {', '.join(made['texts'])} "
        f"(`mixed_text.py`), of which {made['near']:,} are nearly copies and {made['exact']:,} copies of others. "
        f"{result['cores']} cores, {result['rounds']} rounds; median, least and most. "
        "MB is the most memory that all its processes held together."
    )
    return table(["stage", "by", "MB/s", "MB"], lines) + "\n\n" + after


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, required=True, help="Python of the peers' environment")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="UTF-8, may be gzipped")
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=sorted(c.name for c in CANDIDATES), default=[])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    heed_termination()
    chosen = [c for c in CANDIDATES if not options.only or c.name in options.only]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        corpus, tokenizer = Path(scratch) / "corpus.jsonl", Path(scratch) / "tokenizer"
        made = write_corpus([read_text(path) for path in options.texts], int(1e6 * options.megabytes), corpus)
        print(made, flush=True)
        train = (
            "import sys; from pathlib import Path; from stages import *; from luban.data.tokenizer import *; "
            "train_tokenizer('bpe', iter(read_texts(Path(sys.argv[1]))), vocab_size=VOCABULARY, "
            "byte_fallback=True).save(Path(sys.argv[2]))"
        )
        tokenizer.mkdir()
        subprocess.run(
            [sys.executable, "-c", train, str(corpus), str(tokenizer)], check=True, cwd=HERE / "peers"
        )
        for number in range(options.rounds):
            for candidate in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
                row = undisturbed(partial(run, candidate, options, corpus, tokenizer))
                print(
                    f"  {candidate.name:22} {row.get('failed') or row['seconds']} {row.get('found')}",
                    flush=True,
                )
                rows.append(row)
    result = {
        "corpus": {**made, "texts": [path.name for path in options.texts]}, "rounds": options.rounds,
        "cores": len(os.sched_getaffinity(0)), "summary": summarise(rows, made["bytes"]), "rows": rows,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print("\n" + page(result))
    if options.out == RESULTS:
        put_section(HERE / "README.md", "data", page(result))


if __name__ == "__main__":
    main()
