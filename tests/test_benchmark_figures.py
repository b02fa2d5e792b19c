"""The arithmetic and the machinery of the comparisons in benchmarks/, without running any other tool."""

from __future__ import annotations

import importlib
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from luban import tasks
from luban.data.tokenizer import train_tokenizer
from luban.models.decoder import DecoderConfig
from luban.models.flops import parameters, step_flops
from luban.models.gpt2 import GPT2Config
from luban.recipe_reader import read_recipe
from luban.tasks.language_model import build

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Import a module of benchmarks/ by its name, and forget it and all it imported afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(BENCHMARKS)):
            del sys.modules[name]


def test_a_rate_is_that_of_the_median_step_after_the_warm_up(load) -> None:
    step_rate = load("figures").step_rate
    steps = [2.0, 1.0, 3.0, 2.5, 1.5]

    def ends(warm_up: float, held_up: float) -> list[float]:
        return [0.0, warm_up, *(warm_up + sum(steps[: i + 1]) + held_up * (i >= 2) for i in range(5))]

    # Whatever warming up took, compiling included, and whatever held up one step, the rate is that of the median one.
    for warm_up, held_up in ((1.0, 0.0), (9000.0, 0.0), (1.0, 500.0)):
        assert step_rate(ends(warm_up, held_up), warmup=2, tokens=30) == pytest.approx(30 / 2.0)
    for ends, warmup in (([1.0, 2.0], 2), ([1.0, 2.0], 0), ([], 1)):
        with pytest.raises(ValueError, match="leave nothing to time"):
            step_rate(ends, warmup, 30)


def test_a_spread_is_median_least_and_most(load) -> None:
    spread = load("figures").spread
    values = [random.Random(0).random() for _ in range(9)]
    found = spread(values)
    assert (found.low, found.median, found.high) == (min(values), sorted(values)[4], max(values))
    assert spread([1.0, 2.0]).median == 1.5


@pytest.mark.parametrize("size", ["10.7M", "0.8M"])
def test_operations_are_those_luban_counts_and_the_same_for_both_families(load, size: str) -> None:
    measured, token_flops = load("measured"), load("figures").token_flops
    shape, length = measured.SIZES[size], measured.LENGTH
    counted = token_flops(shape.layers, shape.width, 65, length)
    gpt2 = GPT2Config(
        vocab_size=65,
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        mlp_width=4 * shape.width,
        max_length=length,
    )
    assert counted * measured.TOKENS == step_flops(gpt2, measured.BATCH, length)
    qwen3 = DecoderConfig(
        vocab_size=65,
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        kv_heads=shape.heads,
        mlp_width=shape.mlp_width,
        qk_norm=True,
    )
    assert counted * measured.TOKENS == pytest.approx(step_flops(qwen3, measured.BATCH, length), rel=0.01)
    named = float(size.removesuffix("M")) * 1e6
    assert parameters(qwen3) == pytest.approx(named, rel=0.02)
    assert parameters(gpt2) == pytest.approx(named, rel=0.05)


def test_a_share_of_the_peak_is_of_the_dtype_computed_in(load) -> None:
    speed, figures, measured = load("speed"), load("figures"), load("measured")
    shape = measured.SIZES["10.7M"]
    flops = figures.token_flops(shape.layers, shape.width, 65, measured.LENGTH)

    def row(name: str, rate: float, dtype: str) -> dict:
        said = {"dtype": dtype, "parameters": 1, "settings": {}, "peak_bytes": 1_000_000}
        return {"candidate": name, "size": "10.7M", "tokens_per_second": rate, **said}

    peaks = [
        {"float32": 100.0 * flops, "bfloat16": 400.0 * flops, "name": "x", "threads": 1, "torch": "2"}
    ] * 2
    slower = [{**peaks[0], "float32": 50.0 * flops}, peaks[0]]
    rounds = [
        {"probes": peaks, "rows": [row("trainer-gpt2", 50.0, "float32"), row("luban-adamw", 300.0, "bfloat16")]},
        {"probes": slower, "rows": [row("trainer-gpt2", 60.0, "float32"), row("luban-adamw", 100.0, "bfloat16")]},
        {"probes": peaks, "rows": [row("trainer-gpt2", 70.0, "float32"), {**row("luban-adamw", 0, ""), "failed": "x"}]},
    ]  # fmt: skip
    summary = speed.summarise(rounds, 65)
    rows = summary["sizes"]["10.7M"]
    assert rows["trainer-gpt2"]["tokens_per_second"] == {"median": 60.0, "low": 50.0, "high": 70.0}
    assert rows["trainer-gpt2"]["share_of_peak"] == pytest.approx(0.6)
    assert rows["luban-adamw"]["share_of_peak"] == pytest.approx(200 / 400)
    assert rows["luban-adamw"]["rounds"] == 2, "a run that failed counts for nothing"
    assert "0.8M" not in summary["sizes"]
    shown = speed.page({"summary": summary, "rounds": rounds})
    assert "| 200 (100 to 300) | 3.33 | 50 % | 1 |" in shown


def test_a_section_is_replaced_and_nothing_else(load, tmp_path: Path) -> None:
    put_section, page = load("figures").put_section, tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n<!-- b -->\n<!-- /b -->\n")
    put_section(page, "a", "new")
    put_section(page, "a", "newer")
    assert page.read_text() == "before\n<!-- a -->\nnewer\n<!-- /a -->\nafter\n<!-- b -->\n<!-- /b -->\n"
    with pytest.raises(ValueError, match="no section c"):
        put_section(page, "c", "x")


MEMORY = """
import sys
from pathlib import Path
from children import run_child

code = "import subprocess, sys; held = b'x' * {}; subprocess.run([sys.executable, '-c', '{}'])"
for held, of_its_child in ((0, "pass"), (200_000_000, "pass"), (0, "held = 200_000_000 * bytes([1])")):
    child = run_child([sys.executable, "-c", code.format(held, of_its_child)], Path(sys.argv[1]))
    print(child.peak_bytes, child.neighbours)
"""


def test_a_childs_memory_is_its_own(tmp_path: Path) -> None:
    # In a process of its own: a child inherits the peak of the one that starts it, and that of the tests is high.
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "log")]
    done = subprocess.run(command, cwd=BENCHMARKS, check=True, stdout=subprocess.PIPE, text=True)
    peaks, neighbours = zip(*(map(float, line.split()) for line in done.stdout.splitlines()), strict=True)
    small, own, of_its_child = peaks
    assert small < 100e6 < 200e6 < min(own, of_its_child) < max(own, of_its_child) < 300e6
    assert all(0.0 <= share <= 1.0 for share in neighbours)


def test_a_child_that_fails_or_hangs_is_told_with_its_last_words(load, tmp_path: Path) -> None:
    children = load("children")
    with pytest.raises(children.ChildError, match="exit code 3: last words"):
        children.run_child(
            [sys.executable, "-c", "print('last words'); raise SystemExit(3)"], tmp_path / "log"
        )
    with pytest.raises(children.ChildError, match="took longer"):
        children.run_child([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", limit=0.2)


def test_a_mixed_corpus_has_the_copies_it_says(load, tmp_path: Path) -> None:
    mixed = load("mixed_text")
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghij", k=5)) for _ in range(800)]
    text = "\n".join(" ".join(draw.choices(words, k=60)) + "." for _ in range(200))
    kinds: dict[str, list[str]] = {"own": [], "near": [], "exact": []}
    for document, kind in mixed.corpus([text], 200_000):
        kinds[kind].append(document)
    assert len(kinds["own"]) // mixed.NEAR == pytest.approx(len(kinds["near"]), abs=1)
    assert set(kinds["exact"]) <= set(kinds["own"])

    def runs(document: str) -> set[tuple[str, ...]]:
        found = re.findall(r"\w+", document)
        return {tuple(found[at : at + 4]) for at in range(len(found) - 3)}

    own = list(map(runs, kinds["own"]))
    for document in kinds["near"]:
        theirs = runs(document)
        alike = [len(theirs & one) / len(theirs | one) for one in own]
        assert sum(similarity >= 0.85 for similarity in alike) >= 1
    counts = mixed.write_corpus([text], 50_000, tmp_path / "corpus.jsonl")
    assert counts["documents"] == len((tmp_path / "corpus.jsonl").read_text().splitlines())
    assert counts["bytes"] >= 50_000


def test_the_models_trained_on_a_gpu_are_as_large_as_they_are_called(load) -> None:
    gpu = load("gpu")
    sizes = {}
    for name, shape in gpu.SHAPES.items():
        recipe = read_recipe(shape.recipe(Path("data"), compiled=True), (), tasks.schema_of)
        with torch.device("meta"):
            model = build(recipe.model, vocab_size=shape.vocabulary, length=shape.length)
        sizes[name] = parameters(model.config)
        assert shape.batch % shape.micro_batch == 0, "a micro-batch of another size is compiled anew"
        assert model.config.head_dim in (64, 128), "what fused attention is fastest at"
        assert (recipe.train.dtype, recipe.train.compile) == ("bfloat16", "on")
    assert sizes == {"gpt2-124m": 124_475_904, "qwen3-1b": pytest.approx(1.03e9, rel=0.01)}


def test_a_made_up_text_has_the_vocabulary_it_is_made_for(load) -> None:
    gpu = load("gpu")
    shape = gpu.SHAPES["gpt2-124m"]
    text = gpu.made_up(60_000, shape.vocabulary - gpu.SPECIAL)
    tokenizer = train_tokenizer("char", iter([text]), vocab_size=shape.vocabulary, byte_fallback=False)
    assert tokenizer.vocab_size == shape.vocabulary
    assert len(tokenizer.encode(text)) == len(text) == 60_000
    with pytest.raises(ValueError, match="kinds of characters"):
        gpu.made_up(100, 101)


def rows_of_a_gpu(name: str, *rates: float) -> list[dict]:
    said = {
        "token_flops": 10.0,
        "parameters": 10**9,
        "step_tokens": 512,
        "dtype": "bfloat16",
        "device": "cuda",
    }
    return [
        {"candidate": name, "tokens_per_second": rate, "allocated_bytes": 4_000_000_000, "seconds": 50.0, **said}
        for rate in rates
    ]  # fmt: skip


PROBED = {"name": "x", "torch": "2", "attention": {"gpt2-124m": "flash_attention"}}


def test_a_gpus_share_is_of_the_fastest_products_and_a_failed_run_counts_for_nothing(load) -> None:
    gpu = load("gpu")
    rows = rows_of_a_gpu("gpt2-124m-compiled", 30.0, 10.0, 20.0)
    rounds = [
        {"probes": [{**PROBED, "bfloat16": 300.0}, {**PROBED, "bfloat16": 400.0}], "rows": rows},
        {"probes": [{**PROBED, "bfloat16": 100.0}], "rows": [{"candidate": "qwen3-1b-eager", "failed": "x"}]},
    ]
    summary = gpu.summarise(rounds, gpu.SHAPES)
    assert summary["candidates"].keys() == {"gpt2-124m-compiled"}
    assert summary["candidates"]["gpt2-124m-compiled"]["share_of_peak"] == pytest.approx(20 * 10 / 400)
    shown = gpu.page({"summary": summary, "rounds": rounds})
    assert "| GPT-2, compiled | 1,000.0 M | 512 | 20 (10 to 30) | 2e-10 | 50.0 % | 50 % | 4.0 |" in shown
    assert "gpt2-124m: flash_attention" in shown


def test_runs_on_a_gpu_begin_with_what_lacks_rounds_and_end_with_the_time(load, monkeypatch) -> None:
    gpu, now, begun = load("gpu"), [0.0], []

    def run(candidate, shape, data, scratch, limit) -> dict:
        begun.append(candidate.name)
        now[0] += 50.0
        return rows_of_a_gpu(candidate.name, 1.0)[0]

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "ask", lambda **_: {**PROBED, "bfloat16": 1.0})
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now[0])
    options = SimpleNamespace(only=[], tiny=False)
    rounds = [
        {"probes": [], "rows": rows_of_a_gpu("gpt2-124m-compiled", 1.0)},
        {"probes": [], "rows": []},
    ]

    def go_on(until: float) -> int:
        return len(list(gpu.make_round(options, gpu.SHAPES, rounds, Path("data"), Path("scratch"), until)))

    # The 1 B model is reckoned at 150 s until it has run; the third run ends the time, and a probe the round.
    assert go_on(170.0) == 3 + 1
    assert begun == ["qwen3-1b-compiled", "gpt2-124m-eager", "gpt2-124m-compiled"]
    rounds.append({"probes": [], "rows": []})
    assert go_on(199.0) == 0, "nothing was run, so there is nothing to save"
    assert rounds[-1] == {"probes": [], "rows": []}


def test_without_a_gpu_nothing_is_measured() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run([sys.executable, str(BENCHMARKS / "gpu.py")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "torch finds none here; --tiny" in done.stderr
