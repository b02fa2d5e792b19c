"""Hostile recipes, run folders and checkpoints."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_case import READ, Case, Payload, copy, edit, nested, put, safetensors

from luban import tasks
from luban.evaluation.report import write_report
from luban.recipe_reader import read_recipe
from luban.training.checkpoints import Checkpoints
from luban.verbs.train import train

GOOD = "data:\n  source: a.txt\ntrain:\n  steps: 1\n"


def read(folder: Path) -> object:
    return read_recipe(folder / "recipe.yaml", (), tasks.schema_of)


def recipe(text: str | bytes) -> Callable[[Path], object]:
    return lambda folder: put(folder / "recipe.yaml", text)


def override(text: str) -> Callable[[Path], object]:
    return lambda folder: read_recipe(
        {"data": {"source": "a.txt"}, "train": {"steps": 1}}, (text,), tasks.schema_of
    )


def nothing(folder: Path) -> None:
    """An override needs no file."""


RECIPES: dict[str, str | bytes] = {
    "an object of Python": GOOD + "about: !!python/object/apply:os.system ['touch owned']\n",
    "a module of Python": GOOD + "about: !!python/module:luban_canary\n",
    "a name of Python": GOOD + "about: !!python/name:luban_canary.Model\n",
    "a new object of Python": GOOD + "about: !!python/object/new:luban_canary.Model {}\n",
    "a tuple of Python": GOOD + "about: !!python/tuple [1]\n",
    "a tag of its own": GOOD + "about: !luban_canary {}\n",
    "a tag of binary data": GOOD + "about: !!binary gASVAA==\n",
    "a tag of a set": GOOD + "about: !!set {a}\n",
    "a thousand million laughs": "a: &a [x,x]\n"
    + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(20)),
    "an alias of itself": "a: &a [*a]\n",
    "a merge key": "a: &a {b: 1}\nc:\n  <<: *a\n",
    "nested lists": "a: " + nested(20_000),
    "nested mappings": "{a: " * 10_000,
    "nested by indentation": "".join(" " * n + "a:\n" for n in range(300)),
    "nested by dashes": "- " * 20_000,
    "nested questions": "? " * 20_000,
    "a key twice": GOOD + "train:\n  steps: 2\n",
    "a key that is a list": GOOD + "[a, b]: 1\n",
    "a key that is a mapping": GOOD + "{a: b}: 1\n",
    "a key that is null": GOOD + "~: 1\n",
    "a number of 5000 digits": GOOD + "seed: " + "9" * 5000 + "\n",
    "a number of 40,000 digits by base 60": GOOD + "seed: 1" + ":59" * 13_000 + "\n",
    "a number of base 2": GOOD.replace("steps: 1", "steps: 0b" + "1" * 40_000),
    "more than 50,000 bytes": GOOD + "# " + "a" * 50_000,
    "two documents": GOOD + "---\n" + GOOD,
    "no bytes": "",
    "a list": "- a\n",
    "a text": "luban_canary",
    "NUL": GOOD + "a: \0\n",
    "not UTF-8": b"a: \xff\n",
    "UTF-16": GOOD.encode("utf-16"),
    "a control character": GOOD + "a: \x1b[2J\n",
    "a pickle": pickle.dumps(Payload()),
    "a directive": "%YAML 9.9\n---\n" + GOOD,
    "a date where a number stands": GOOD.replace("steps: 1", "steps: 2024-01-01"),
    "infinity where a number stands": GOOD.replace("steps: 1", "minutes: .inf"),
    "NaN where a number stands": GOOD.replace("steps: 1", "minutes: .nan"),
    "steps below zero": GOOD.replace("steps: 1", "steps: -1"),
    "steps of 10**400": GOOD.replace("steps: 1", "steps: 1" + "0" * 400),
    "minutes of 10**400": GOOD.replace("steps: 1", "minutes: 1" + "0" * 400),
    "a task that is a path": "task: ../../outside/secret\n" + GOOD,
    "a task that is a module": "task: luban_canary\n" + GOOD,
    "a task that is a list": "task: [a]\n" + GOOD,
    "__class__": GOOD + "__class__: luban_canary\n",
    "a dunder below": GOOD.replace("steps: 1", "steps: 1\n  __init__: {}"),
    "a loader of code": GOOD + "auto_map: {AutoModel: luban_canary.Model}\n",
}
OVERRIDES = {
    "an object of Python": "train.steps=!!python/object/apply:os.system ['touch owned']",
    "aliases": "train.steps=[&a [1,1], *a, *a]",
    "nested lists": "train.betas=" + nested(5000),
    "a number of 5000 digits": "train.steps=" + "9" * 5000,
    "infinity": "train.minutes=.inf",
    "NaN": "train.learning_rate=.nan",
    "a dunder": "train.__class__=1",
    "an empty key": "train..steps=1",
    "a thousand levels": "a." * 1000 + "b=1",
    "no key": "=1",
    "a key with NUL": "train.\0=1",
    "half a surrogate pair": "train.steps=\ud800",
}

RUN_FILES = ("recipe", "machine", "plan", "evaluation", "result")
LOGS = ("metrics.jsonl", "timings.jsonl", "samples.jsonl", "events.jsonl")
STRANGE: dict[str, bytes] = {
    "nested lists": nested(200_000).encode(),
    "a pickle": pickle.dumps(Payload()),
    "a list": b"[1]",
    "not UTF-8": b'{"a": "\xff"}\n',
    "numbers of 5000 digits": b'{"step": ' + b"9" * 5000 + b"}\n",
    "wrong kinds": b'{"step": [], "kind": {}, "metrics": 7, "train": 1, "primary": 2, "data": {"a": 1}}\n',
    "markup": b'{"name": "<script>alert(1)</script>", "step": 1, "prompt": "</script>", "text": "<img src=x>"}\n',
}


def part(path: str, content: bytes) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        run = copy("finished", folder)
        if (run / path).suffix == ".jsonl":
            content_of_log = (run / path).read_bytes() + content + b"\n"
            put(run / path, content_of_log)
        else:
            put(run / path, content)

    return make


def report(folder: Path) -> None:
    """Write the report: whatever the files say, it comes, and no markup of theirs comes through."""
    page = write_report(folder / "finished").read_text("utf-8")
    assert "<script>alert(1)" not in page and "<img src=x>" not in page


def long_line(folder: Path) -> None:
    path = copy("finished", folder) / "metrics.jsonl"
    with path.open("ab") as file:
        file.write(b'{"kind": "train", "step": 13, "loss": "' + b"a" * (20 << 20))


def sparse(name: str, size: int) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        with (copy("finished", folder) / name).open("ab") as file:
            file.truncate(size)

    return make


STEP = "checkpoints/step-00000007"


def checkpoint(folder: Path) -> None:
    """Load the checkpoint of step 7."""
    found = Checkpoints(folder / "stopped" / "checkpoints", keep=2, warn=lambda _: None).load(7)
    assert found.model and found.optimizer and found.state


def resume(folder: Path) -> None:
    """Go on with the run."""
    train(resume=folder / "stopped")


def of_step(name: str, content: bytes | Any) -> Callable[[Path], object]:
    return lambda folder: put(copy("stopped", folder) / STEP / name, content)


def alone(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Take the older checkpoint away, so that there is nothing to fall back on."""

    def of_both(folder: Path) -> None:
        make(folder)
        shutil.rmtree(folder / "stopped" / "checkpoints" / "step-00000005")

    return of_both


def state(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: edit(copy("stopped", folder) / STEP / "state.json", **changes)


def progress(**changes: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = copy("stopped", folder) / STEP / "state.json"
        now = json.loads(path.read_text("utf-8"))["progress"]
        edit(path, progress={**now, **changes})

    return make


def of_run(name: str, content: bytes | Any) -> Callable[[Path], object]:
    return lambda folder: put(copy("stopped", folder) / name, content)


def in_json(name: str, **changes: Any) -> Callable[[Path], object]:
    return lambda folder: edit(copy("stopped", folder) / name, **changes)


def manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = copy("stopped", folder) / STEP / "manifest.json"
        path.write_text(json.dumps(change(json.loads(path.read_text("utf-8")))))

    return make


def link(name: str, to: str) -> Callable[[Path], object]:
    """A member of the run that is a link out of it; `secret` lies beside the run and must stay as it is."""

    def make(folder: Path) -> None:
        path = copy("stopped", folder) / name
        place = folder.parent / "outside" / to
        if path.is_dir():
            path.rename(place)
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(place)

    return make


CHECKPOINT_FILES: dict[str, dict[str, bytes]] = {
    "state.json": {
        "a list": b"[]",
        "nested lists": nested(200_000).encode(),
        "a pickle": pickle.dumps(Payload()),
    },
    "model.safetensors": {
        "a pickle": pickle.dumps(Payload()),
        "no bytes": b"",
        "holes": safetensors({}, b"x"),
    },
    "optimizer.safetensors": {
        "a pickle": pickle.dumps(Payload()),
        "no bytes": b"",
        "holes": safetensors({}, b"x"),
    },
}
MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "lists nothing": lambda value: {**value, "files": {}},
    "leads out": lambda value: {
        **value,
        "files": {**value["files"], "../../../outside/secret": {"bytes": 1}},
    },
    "of another step": lambda value: {**value, "step": 9},
    "of a later format": lambda value: {**value, "format": 99},
    "a list": lambda value: [value],
    "without files": lambda value: {"format": 1, "step": 7},
}
STATES: dict[str, Callable[[Path], object]] = {
    "no progress": state(progress=...),
    "progress as a list": state(progress=[]),
    "unknown keys of progress": progress(luban_canary=1),
    "a step as text": progress(step="7"),
    "a step below zero": progress(step=-1),
    "another step than the folder's": progress(step=3),
    "tokens as a list": progress(tokens=[1]),
    "seconds as text": progress(seconds="1"),
    "sizes of logs as text": progress(logs={"metrics": "all"}),
    "sizes of logs below zero": progress(logs={"metrics": -5}),
    "logs as a list": progress(logs=[1]),
    "no optimizer": state(optimizer=...),
    "an optimizer of text": state(optimizer="luban_canary"),
    "no compile": state(compile=...),
    "a compile of text": state(compile="luban_canary"),
    "weights of another model": of_step("model.safetensors", safetensors({})),
    "an optimizer of another model": of_step("optimizer.safetensors", safetensors({})),
}
RUNS: dict[str, Callable[[Path], object]] = {
    "recipe.json is a list": of_run("recipe.json", []),
    "recipe.json is a pickle": of_run("recipe.json", pickle.dumps(Payload())),
    "recipe.json names a task that is a module": in_json("recipe.json", task="luban_canary"),
    "recipe.json is nested": of_run("recipe.json", nested(200_000).encode()),
    "plan.json is a list": of_run("plan.json", []),
    "plan.json is a pickle": of_run("plan.json", pickle.dumps(Payload())),
    "plan.json names a dtype that is none": in_json("plan.json", dtype="luban_canary"),
    "plan.json has no threads": in_json("plan.json", threads=...),
    "plan.json has a fingerprint that is none": in_json("data/fingerprint.json", sha256="00", files=[]),
    "data has a fingerprint of text": in_json("data/fingerprint.json", files="luban_canary"),
}
LINKS = {
    "metrics.jsonl": "secret",
    "events.jsonl": "secret",
    "timings.jsonl": "absent",
    ".lock": "secret",
    "checkpoints": "checkpoints",
    "data": "data",
    "recipe.json": "secret",
    "plan.json": "absent",
}

CASES: list[Case] = [
    *(Case(f"recipe: {name}", recipe(text), read) for name, text in RECIPES.items()),
    *(
        Case(f"override: {name}", nothing, override(text), names=text[:6])
        for name, text in OVERRIDES.items()
    ),
    *(
        Case(f"report of {name}: {what}", part(name, content), report, READ)
        for name in (*(f"{name}.json" for name in RUN_FILES), "data/report.json", *LOGS)
        for what, content in STRANGE.items()
    ),
    Case("report of metrics.jsonl: a line of 20 MB", long_line, report, READ),
    Case("report of result.json: a terabyte of zeros", sparse("result.json", 1 << 40), report, READ),
    Case("report of a run whose data lies at a device", part("plan.json", b'{"data": "/dev/zero"}'), report, READ),
    *(
        Case(f"checkpoint {name}: {what}", of_step(name, content), checkpoint)
        for name, contents in CHECKPOINT_FILES.items()
        for what, content in contents.items()
    ),
    *(Case(f"checkpoint manifest: {name}", manifest(change), checkpoint) for name, change in MANIFESTS.items()),
    *(Case(f"checkpoint resumed: {name}", alone(make), resume) for name, make in STATES.items()),
    *(Case(f"run resumed: {name}", make, resume) for name, make in RUNS.items()),
    *(Case(f"run resumed: {name} is a link that leads out", link(name, to), resume) for name, to in LINKS.items()),
]  # fmt: skip
