"""The same run twice is the same run: byte for byte where that is promised, within a stated tolerance elsewhere.

To the byte: a recipe and seed done twice; data cleaned by one process or two; the order of the text, a pure function
of seed, epoch and position, however many ranks share a step. Within a tolerance, for sums are rounded in another
order: one process or two ranks, one thread or two, a run stopped on two ranks that goes on with one.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import toy

from luban.data.prepare import Prepared, prepare
from luban.data.windows import Windows
from luban.durable import sha256
from luban.errors import Stopped
from luban.signals import StopRequest
from luban.tensors import read_safetensors
from luban.text_recipe import TextData
from luban.training.faults import Faults

LOSS, WEIGHTS = 1e-5, 1e-4
"""What ranks and threads may differ by: a loss by this share, a weight by this. Measured: 2e-7 and 4e-6."""
SHARES = {"same seed": 0.1, "order": 0.77, "workers": 0.05, "ranks": 0.07, "threads": 0.01}
GOLDEN = Path(__file__).with_name("golden_losses.json")
GOLDEN_TOLERANCE = 1e-4
"""Processors and builds of torch round differently, and twenty steps carry that on."""


def losses(run: Path) -> list[float]:
    """The loss of every step and every evaluation."""
    return [record["loss"] for record in toy.lines(run / "metrics.jsonl")]


def apart(run: Path, other: Path) -> str | None:
    """What of two runs differs by more than rounding, or None."""
    mine, theirs = losses(run), losses(other)
    if len(mine) != len(theirs) or not np.allclose(mine, theirs, rtol=LOSS, atol=0):
        return f"losses {mine} and {theirs}"
    last = f"checkpoints/step-{max(toy.kept(run)):08d}/model.safetensors"
    weights = read_safetensors(other / last)
    for name, tensor in read_safetensors(run / last).items():
        if not torch.allclose(tensor, weights[name], rtol=0, atol=WEIGHTS):
            return f"{name} by {float((tensor - weights[name]).abs().max())}"
    return None


def on_ranks(ranks: int, work: Callable[[], object]) -> list[int]:
    """Do `work` in so many forked processes that train together, as torchrun would; their exit codes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
            code = 1
            try:
                work()
                code = 0
            except Stopped as stopped:
                code = stopped.exit_code
            except BaseException as error:
                print(f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr)
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _same_seed(folder: Path, draw: random.Random) -> Iterator[str | None]:
    """The short run with settings that are drawn, twice, and with another seed; then the verb, twice."""
    for number in itertools.count():
        changes = {
            "optimizer": draw.choice(("sgd", "rmsprop", "adam", "adamw", "muon")),
            "schedule": draw.choice(("constant", "linear", "cosine", "wsd")),
            "micro_batch": draw.choice((1, 2, 5, None)),
            "learning_rate": draw.choice((0.001, 0.003)),
            "seed": draw.randrange(2**32),
        }
        one, two, other = (folder / f"{name}-{number}" for name in ("one", "two", "other"))
        for run in (one, two):
            toy.go_on(run, toy.settings(**changes))
        toy.go_on(other, toy.settings(**{**changes, "seed": changes["seed"] + 1}))
        if losses(other) == losses(one):
            yield f"another seed changes nothing: {changes}"
        yield (broken := toy.difference(two, one)) and f"{broken} with {changes}"
        file = toy.recipe_file(folder, seed=draw.randrange(2**32))
        one, two = (folder / f"{name}-verb-{number}" for name in ("one", "two"))
        for run in (one, two):
            toy.train(file, run)
        yield toy.difference(two, one)


def _prepared(folder: Path, workers: int = 1) -> Prepared:
    source = toy.recipe_file(folder).with_name("rows.jsonl")
    data = TextData(source=str(source), tokenizer="char", length=16, workers=workers)
    return prepare(data, folder / f"data-{workers}")


def _order(folder: Path, draw: random.Random) -> Iterator[str | None]:
    """Windows asked for one by one, in any order, by any number of ranks, are those asked for at once."""
    data = _prepared(folder)
    while True:
        seed, length, attention = (
            draw.randrange(2**63),
            draw.randint(1, 40),
            draw.choice(("stream", "document")),
        )
        made = [Windows(data.train, length=length, seed=seed, attention=attention) for _ in range(2)]
        first, size, ranks = draw.randrange(3 * made[0].per_epoch), draw.randint(1, 12), draw.randint(1, 5)
        whole = made[0].batch(first, size)
        cuts = [size * rank // ranks for rank in range(ranks + 1)]
        shares = list(itertools.pairwise(cuts))
        draw.shuffle(shares)
        parts = {share: made[1].batch(first + share[0], share[1] - share[0]) for share in shares}
        inputs = np.concatenate([parts[share].inputs for share in sorted(parts)])
        targets = np.concatenate([parts[share].targets for share in sorted(parts)])
        same = np.array_equal(inputs, whole.inputs) and np.array_equal(targets, whole.targets)
        yield None if same else f"seed {seed} length {length} first {first} size {size} ranks {ranks}"


def _workers(folder: Path, draw: random.Random) -> Iterator[str | None]:
    """One, two and three cleaning processes leave the same folder."""
    one = _prepared(folder).folder
    names = sorted(path.name for path in one.iterdir())
    for workers in (2, 3):
        other = _prepared(folder, workers).folder
        unlike = [n for n in names if sha256(one / n) != sha256(other / n)]
        if sorted(path.name for path in other.iterdir()) != names:
            unlike.append("names")
        yield f"{unlike} with {workers} workers" if unlike else None


def _ranks(folder: Path, draw: random.Random) -> Iterator[str | None]:
    """The verb on one process; on two ranks; stopped on two and gone on with one, and the other way round.

    Without dropout, whose draws differ by rank.
    """
    file = toy.recipe_file(folder)
    recipe = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps({**recipe, "model": {**recipe["model"], "dropout": 0.0}}), "utf-8")
    toy.train(file, folder / "alone")
    for number in itertools.count():
        together = folder / f"together-{number}"
        codes = on_ranks(2, partial(toy.train, file, together))
        yield f"exit codes {codes}" if any(codes) else apart(together, folder / "alone")
        for name, before, after in (("fewer", 2, 1), ("more", 1, 2)):
            run, step = folder / f"{name}-{number}", draw.randint(1, 8)
            codes = on_ranks(before, partial(stop_at, file, run, step))
            codes += on_ranks(after, partial(toy.train, file, run))
            expected = [75] * before + [0] * after
            yield f"exit codes {codes}, step {step}" if codes != expected else apart(run, folder / "alone")


def stop_at(file: Path, run: Path, step: int) -> None:
    """Train until a step; there somebody asks rank 0 to stop."""
    stop = StopRequest()
    toy.train(file, run, faults=Faults({("step", step, 0): lambda: stop.ask("a test")}), stop=stop)


def _threads(folder: Path, draw: random.Random) -> Iterator[str | None]:
    """A model wide enough that torch divides its work, on one thread and on two."""
    recipe = toy.settings(steps=6, checkpoint_every="6", batch=20, micro_batch=None)

    def on(threads: int, run: Path) -> None:
        torch.set_num_threads(threads)
        toy.go_on(run, recipe, width=512)

    for number in itertools.count():
        runs = [folder / f"{number}-threads-{threads}" for threads in (1, 2)]
        codes = [toy.in_child(partial(on, threads, run)) for threads, run in zip((1, 2), runs, strict=True)]
        yield f"exit codes {codes}" if any(codes) else apart(*runs)


_TRIALS: dict[str, Callable[[Path, random.Random], Iterator[str | None]]] = {
    "same seed": _same_seed,
    "order": _order,
    "workers": _workers,
    "ranks": _ranks,
    "threads": _threads,
}
GOOD = {
    "same seed": "same seed: same bytes",
    "order": "order of the text: the same",
    "workers": "workers: same bytes",
    "ranks": "ranks: within the tolerance",
    "threads": "threads: within the tolerance",
}


def sweep(folder: Path, *, count: int, seed: int) -> Counter[str]:
    """Compare about `count` pairs of runs, or of orders; outcomes by kind."""
    outcomes = Counter[str]()
    quotas = {kind: max(1, round(count * share)) for kind, share in SHARES.items()}
    quotas["workers"] = min(quotas["workers"], 2)
    quotas["order"] = count - sum(quota for kind, quota in quotas.items() if kind != "order")
    for kind, trials in _TRIALS.items():
        here = folder / kind.replace(" ", "-")
        here.mkdir(parents=True)
        for number, broken in zip(
            range(quotas[kind]), trials(here, random.Random(f"{seed} {kind}")), strict=False
        ):
            outcomes[f"BROKEN: {kind} seed {seed} number {number}: {broken}" if broken else GOOD[kind]] += 1
    return outcomes


def golden(folder: Path) -> Mapping[str, Sequence[float]]:
    """The losses of fixed runs, to compare with those that are kept beside this file."""
    for optimizer in toy.OPTIMIZERS:
        toy.go_on(folder / optimizer, toy.settings(optimizer))
    toy.train(toy.recipe_file(folder), folder / "verb")
    return {name: losses(folder / name) for name in (*toy.OPTIMIZERS, "verb")}
