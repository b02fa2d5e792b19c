"""nanochat's own scripts/base_train.py from a clone, with the flags of its runs/runcpu.sh; settings `shipped`, `bf16`.

It always compiles, and always uses Muon beside AdamW; shipped on a CPU is float32. Its head is not tied and
it has value embeddings: a little more to learn, the same matrices in its blocks. It reads documents from
parquet files and characters through a tiktoken encoding: both are made here, one document for each speech.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tiktoken
import torch
from measured import BATCH, LENGTH, TOKENS, asked

SPECIAL = ("bos", "user_start", "user_end", "assistant_start", "assistant_end", "python_start", "python_end",
           "output_start", "output_end")  # fmt: skip


def lay_out(text: str, base: Path) -> None:
    """Write what base_train reads: two files of documents, of which the last is held out, and a tokenizer."""
    documents = [speech for speech in text.split("\n\n") if speech]
    folder = base / "base_data_climbmix"
    folder.mkdir(parents=True)
    cut = len(documents) * 9 // 10
    for number, part in enumerate((documents[:cut], documents[cut:])):
        table = pa.table({"text": part})
        pq.write_table(table, folder / f"shard_{number:05d}.parquet", row_group_size=1000)
    kinds = sorted(set(text))
    encoding = tiktoken.Encoding(
        name="characters",
        pat_str=r"[\s\S]",
        mergeable_ranks={kind.encode(): number for number, kind in enumerate(kinds)},
        special_tokens={f"<|{name}|>": len(kinds) + number for number, name in enumerate(SPECIAL)},
    )
    (base / "tokenizer").mkdir()
    with (base / "tokenizer" / "tokenizer.pkl").open("wb") as file:
        # The only form in which nanochat reads a tokenizer; nothing here reads it back.
        pickle.dump(encoding, file)
    sizes = torch.tensor([1] * len(kinds) + [0] * len(SPECIAL), dtype=torch.int32)
    torch.save(sizes, base / "tokenizer" / "token_bytes.pt")


def main() -> None:
    options = asked()
    shape = options.shape
    base = options.scratch / "nanochat"
    lay_out(options.text.read_text("utf-8"), base)
    flags = {
        "device-type": "cpu", "depth": shape.layers, "aspect-ratio": shape.width // shape.layers,
        "head-dim": shape.width // shape.heads, "window-pattern": "L", "max-seq-len": LENGTH,
        "device-batch-size": BATCH, "total-batch-size": TOKENS, "eval-every": -1, "core-metric-every": -1,
        "sample-every": -1, "num-iterations": options.total, "run": "dummy",
    }  # fmt: skip
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base)}
    if options.setting == "bf16":
        environment["NANOCHAT_DTYPE"] = "bfloat16"
    command = [sys.executable, "-u", "-m", "scripts.base_train", *(f"--{k}={v}" for k, v in flags.items())]
    process = subprocess.Popen(command, cwd=options.clone, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    parameters, dtype = 0, ""
    for line in process.stdout:
        print(line, end="", flush=True)
        if match := re.match(r"step \d+/\d+ .*loss: ([\d.]+)", line):
            options.measured.step_ended(float(match[1]))
        if match := re.match(r"total +: ([\d,]+)", line):
            parameters = int(match[1].replace(",", ""))
        if match := re.match(r"COMPUTE_DTYPE: torch.(\w+)", line):
            dtype = match[1]
    assert process.wait() == 0, "base_train failed"
    options.measured.write(dtype=dtype, parameters=parameters, settings={"dtype": dtype, "compile": True})


if __name__ == "__main__":
    main()
