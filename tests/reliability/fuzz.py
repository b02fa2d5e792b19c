"""Parser fuzz: whole files of every kind luban reads, damaged at random, must be read or refused, at once.

Cases run in a forked process, each with a time limit that the kernel keeps; a case that ends the process, hangs, or
raises what is no error of luban's is a failure. It is written to `CORPUS`, and from then on tried first. A case is a
pure function of (seed, target, number).
"""

import faulthandler
import gzip
import hashlib
import io
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import hostile_data
import hostile_tokenizers
import pyarrow as pa
import torch
import zstandard
from hostile_case import newest_release, reseal
from mutations import WORDS, YAML_WORDS, mutated

from luban import tasks
from luban.data.bad_rows import BadRows
from luban.data.reading import read_rows
from luban.data.sources import find_files
from luban.durable import verify_folder
from luban.errors import LubanError
from luban.evaluation.report import write_report
from luban.model_folder import load_model
from luban.recipe_reader import read_recipe
from luban.run import Run
from luban.tensors import read_metadata, read_safetensors, write_safetensors
from luban.training.checkpoints import Checkpoints

CORPUS = Path(__file__).parents[1] / "fixtures" / "fuzz-corpus"
SECONDS = 10
"""Seconds of one case."""
MEMORY = 512 << 20
"""Bytes of address space that cases may add to what the process has."""
_COUNTS = struct.Struct("<4Q")  # number of the case, read, refused, whether the worker came to its end


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Arguments:
        name: what failing inputs are called by.
        use: reads `file`, and what belongs to it.
        part: the folder of a release that the file is a member of; empty for a file that stands alone.
        member: the file's name in it.
        seeds: whole files; of a member, the one that the release has.
        words: what else to put into them.
    """

    name: str
    use: Callable[[Path], object]
    part: str = ""
    member: str = ""
    seeds: Callable[[], list[bytes]] = list
    words: Sequence[bytes] = tuple(WORDS)

    def whole(self) -> list[bytes]:
        """The files that cases are made of."""
        return self.seeds() or [(newest_release() / self.part / self.member).read_bytes()]

    def try_one(self, folder: Path, data: bytes) -> str:
        """Use one input; return what came of it.

        Raises:
            Exception: a failure: whatever is no error of luban's.
        """
        place = folder / self.name
        if not place.exists():
            if self.part:
                shutil.copytree(newest_release() / self.part, place)
            else:
                place.mkdir()
        file = place / self.member
        file.unlink(missing_ok=True)
        file.write_bytes(data)
        if file.name != "manifest.json":
            reseal(file.parent)
        try:
            self.use(file)
        except LubanError as error:
            str(error)
            return "refused"
        return "read"


def rows(file: Path) -> None:
    """Read a data file as every format's reader does, passing over bad rows."""
    for _ in read_rows(find_files(str(file)), bad=BadRows("skip")):
        pass


def override(file: Path) -> None:
    """Take a file's text for an override."""
    text = file.read_bytes().decode("utf-8", "surrogateescape")
    read_recipe({"data": {"source": "a"}, "train": {"steps": 1}}, (text,), tasks.schema_of)


def checkpoint(file: Path) -> None:
    """Load the checkpoint that the file belongs to."""
    Checkpoints(file.parents[1], keep=2, warn=lambda _: None).load(7)


def shipped_recipes() -> list[bytes]:
    folder = Path(tasks.__file__).parents[1] / "recipes"
    return [path.read_bytes() for path in sorted(folder.glob("*.yaml"))]


def tensors() -> list[bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "a"
        write_safetensors(
            path, {"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, {"format": "pt"}
        )
        return [path.read_bytes()]


def arrow() -> list[bytes]:
    out = io.BytesIO()
    table = pa.table({"text": [json.loads(row)["text"] for row in hostile_data.GOOD]})
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return [out.getvalue()]


def plain_recipes() -> list[bytes]:
    return [
        b"train.minutes=10",
        b"model.width=384",
        b"data.source=[a, b]",
        b"train.betas=[0.9, 0.95]",
        b"data.clean=null",
    ]


def data(name: str, seeds: Callable[[], list[bytes]]) -> Target:
    return Target(name.replace(".", "-"), rows, member=f"a.{name}", seeds=seeds)


CSV = b'text,label\n"a ""quoted"" cell\nof two lines",1\nplain,2\r\n' + "春眠不觉晓,3\n".encode()
_MODEL, _DATA, _STEP = "finished/model", "finished/data", "checkpoints/step-00000007"

TARGETS = [
    Target("recipe", lambda file: read_recipe(file, (), tasks.schema_of), member="a.yaml", seeds=shipped_recipes,
           words=(*WORDS, *YAML_WORDS)),
    Target("override", override, member="a", seeds=plain_recipes, words=(*WORDS, *YAML_WORDS)),
    *(Target(f"model-{name}", lambda file: load_model(file.parent), _MODEL, name)
      for name in ("config.json", "luban.json", "tokenizer_config.json", "model.safetensors")),
    Target("safetensors", lambda file: (read_metadata(file), read_safetensors(file)), member="a", seeds=tensors),
    Target("tokenizer", lambda file: hostile_tokenizers.use(file.parent), _MODEL, "tokenizer.json"),
    *(Target(f"prepared-{name}", lambda file: hostile_data.open_prepared(file.parents[1]), "finished", f"data/{name}")
      for name in ("report.json", "fingerprint.json", "train.json", "train-documents.bin", "train-00000.bin",
                   "tokenizer.json")),
    Target("manifest", lambda file: verify_folder(file.parent), _MODEL, "manifest.json"),
    *(Target(f"checkpoint-{name}", checkpoint, "stopped", f"{_STEP}/{name}")
      for name in ("state.json", "manifest.json", "optimizer.safetensors")),
    *(Target(f"run-{name}", lambda file: write_report(file.parent), "finished", name)
      for name in ("metrics.jsonl", "samples.jsonl", "events.jsonl", "evaluation.json", "plan.json", "machine.json")),
    Target("run-recipe.json", lambda file: read_recipe(Run(file.parent).read_recipe(), (), tasks.schema_of),
           "stopped", "recipe.json"),
    Target("run-read-plan.json", lambda file: Run(file.parent).read_plan(), "stopped", "plan.json"),
    data("csv", lambda: [CSV]),
    data("tsv", lambda: [CSV.replace(b",", b"\t")]),
    data("jsonl", lambda: [hostile_data.lines()]),
    data("parquet", lambda: [hostile_data.table()]),
    data("arrow", arrow),
    data("txt", lambda: [hostile_data.lines(), "春眠不觉晓\r\n\r\nthe king".encode()]),
    data("jsonl.gz", lambda: [gzip.compress(hostile_data.lines(), mtime=0)]),
    data("jsonl.zst", lambda: [zstandard.compress(hostile_data.lines())]),
]  # fmt: skip


def case(target: Target, number: int, seed: int, whole: list[bytes] | None = None) -> bytes:
    """The input of a number: the same for the same arguments."""
    return mutated(whole or target.whole(), random.Random(f"{seed} {target.name} {number}"), target.words)


def sweep(folder: Path, *, count: int, seed: int, targets: Sequence[Target] = tuple(TARGETS)) -> Counter[str]:
    """Fuzz all targets for `count` seconds together; return outcome -> how often."""
    torch.set_num_threads(1)
    outcomes: Counter[str] = Counter()
    load_model(newest_release() / _MODEL)  # imports, once, what every worker would
    started = time.monotonic()
    for number, target in enumerate(targets):
        left = started + count - time.monotonic()
        outcomes += fuzz(target, folder, seed=seed, seconds=left / (len(targets) - number))
    return outcomes


def fuzz(target: Target, folder: Path, *, seed: int, seconds: float, at_least: int = 3) -> Counter[str]:
    """Fuzz one target; keep what failed in `CORPUS`."""
    outcomes: Counter[str] = Counter()
    ends, first = time.monotonic() + seconds, 0
    while first < at_least or time.monotonic() < ends:
        read, refused, last, why = _worker(
            target, folder, seed=seed, first=first, ends=ends, at_least=at_least
        )
        outcomes += Counter({"read": read, "refused": refused})
        first = last + 1
        if why is None:
            break
        kept = keep(target, case(target, last, seed))
        outcomes[f"BROKEN: {target.name}: {why} (seed {seed}, number {last}; kept as {kept.name})"] += 1
    return outcomes


def keep(target: Target, content: bytes) -> Path:
    """Write a failing input to the corpus, named by target and digest."""
    CORPUS.mkdir(parents=True, exist_ok=True)
    path = CORPUS / f"{target.name}--{hashlib.sha256(content).hexdigest()[:12]}"
    path.write_bytes(content)
    return path


def replay(path: Path, folder: Path) -> str:
    """Try an input of the corpus again, in a process of its own; return what came of it."""
    target = next(target for target in TARGETS if target.name == path.name.rpartition("--")[0])
    only = path.read_bytes()
    read, _, _, why = _worker(target, folder, seed=0, first=0, ends=0.0, at_least=1, only=only)
    return f"BROKEN: {why}" if why is not None else "read" if read else "refused"


def _worker(
    target: Target,
    folder: Path,
    *,
    seed: int,
    first: int,
    ends: float,
    at_least: int,
    only: bytes | None = None,
) -> tuple[int, int, int, str | None]:
    """Try cases from `first` on in a forked process.

    Returns how many were read and refused, the number of the last, and why the process ended early if it did.
    """
    shared = mmap.mmap(-1, 4096)
    child = os.fork()
    if child == 0:
        try:
            _limit()
            with tempfile.TemporaryDirectory(prefix="fuzz-", dir=folder) as scratch:
                _try_all(target, Path(scratch), shared, seed, first, ends, at_least, only)
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    number, read, refused, whole = _COUNTS.unpack_from(shared)
    if whole:
        return read, refused, number, None
    if os.WIFSIGNALED(status):
        by = os.WTERMSIG(status)
        return (
            read,
            refused,
            number,
            f"took over {SECONDS} s" if by == signal.SIGALRM else f"ended by signal {by}",
        )
    told = shared[_COUNTS.size :].rstrip(b"\0").decode("utf-8", "replace")
    return read, refused, number, told or "ended without a word"


def _limit() -> None:
    faulthandler.disable()
    sys.dont_write_bytecode = True
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _try_all(
    target: Target, scratch: Path, shared: mmap.mmap, seed: int, first: int, ends: float, at_least: int,
    only: bytes | None,
) -> None:  # fmt: skip
    whole, outcomes, number = target.whole(), Counter[str](), first
    while True:
        _COUNTS.pack_into(shared, 0, number, outcomes["read"], outcomes["refused"], 0)
        signal.alarm(SECONDS)
        try:
            outcomes[
                target.try_one(scratch, case(target, number, seed, whole) if only is None else only)
            ] += 1
        except BaseException as error:
            told = f"{type(error).__name__}: {str(error)[:200]}".encode("utf-8", "replace")
            shared[_COUNTS.size : _COUNTS.size + len(told)] = told
            return
        signal.alarm(0)
        if number + 1 >= at_least and time.monotonic() >= ends:
            _COUNTS.pack_into(shared, 0, number, outcomes["read"], outcomes["refused"], 1)
            return
        number += 1
