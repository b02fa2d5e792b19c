"""What every task must hold, tried on the rows it makes up itself.

`CHECKS` are functions of a task and an empty folder; each raises AssertionError where the task does not keep a
promise. They run on luban's own tasks, and in the test that `luban new task` writes on yours:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_it_is_a_task(check, tmp_path):
        check(MyTask, tmp_path)

Each trains for some seconds at most.
"""

from __future__ import annotations

import json
import math
import random
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file

from luban import tasks
from luban.console import Show
from luban.data.pictures import encode_png
from luban.data.row_sets import PreparedRows
from luban.durable import read_json, sha256
from luban.errors import DataError, Stopped
from luban.run import Run
from luban.signals import StopRequest
from luban.tasks.base import Learner, Task
from luban.tasks.rows import RowTask
from luban.training.faults import Faults
from luban.verbs.evaluate import evaluate
from luban.verbs.export import export
from luban.verbs.load import load
from luban.verbs.rates import rates
from luban.verbs.train import Outcome, Tools, train

Check = Callable[[type[Task], Path], None]

ROWS = 48
STEPS = 8
TOLERANCE = 2e-4


def it_learns_eight_rows(task: type[Task], folder: Path) -> None:
    """A network that cannot learn eight rows by heart cannot learn."""
    rows = write_rows(folder / "rows", task.sample(8, random.Random(1)))
    recipe = _recipe(
        task,
        rows,
        {
            "steps": 150,
            "batch": 8,
            "learning_rate": 0.01,
            "evaluate_every": 150,
            "schedule": "constant",
        },
    )
    recipe["data"] |= {"validation": rows, "test_fraction": 0.0} if _on_rows(task) else {}
    run = Run(_train(task, recipe, folder / "run").folder)
    losses = [line["loss"] for line in _lines(run.metrics.path) if line["kind"] == "train"]
    assert losses[-1] < 0.25 * losses[0], f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f} only"


def the_gradient_is_the_same_for_every_split(task: type[Task], folder: Path) -> None:
    """However a step's rows are cut into micro-batches, and so however they are padded, the gradient is the same."""
    learner = _learner(task, folder)
    learner.model.eval()  # neither dropout nor statistics of the batch: those may differ by their nature
    rows = sum(batch.rows for batch in learner.batches(0, 0, 1))
    whole, *others = (_gradient(learner, size) for size in (rows, 1, 3))
    for other in others:
        for name, gradient in whole.items():
            scale = max(float(gradient.abs().max()), 1e-3)
            difference = float((gradient - other[name]).abs().max())
            assert difference <= TOLERANCE * scale, (
                f"the gradient of {name} differs by {difference:.2g} of {scale:.2g}"
            )


def batches_are_a_pure_function(task: type[Task], folder: Path) -> None:
    """The rows of a step depend on its number alone, and every rank has a share of the same ones."""
    first, second = _learner(task, folder / "a"), _learner(task, folder / "b")
    second.batches(5, 0, 1)
    for step in (0, 3):
        assert _bytes(first, step, 0, 1) == _bytes(second, step, 0, 1)
    one = sum(batch.rows for batch in first.batches(2, 0, 1))
    shares = [sum(batch.rows for batch in first.batches(2, rank, 3)) for rank in range(3)]
    assert sum(shares) == one, f"{shares} rows on three ranks, {one} on one"


def a_stopped_run_goes_on_to_the_same_bytes(task: type[Task], folder: Path) -> None:
    """Stopped at step 4 and resumed, a run ends with the weights of one that was not."""
    rows = write_rows(folder / "rows", task.sample(ROWS, random.Random(2)))
    # The dtype is measured anew for each run; where both are about as fast, two runs may differ in it.
    recipe = _recipe(task, rows, {"steps": STEPS, "evaluate_every": 4, "dtype": "float32"})
    straight = _train(task, recipe, folder / "straight").folder
    stop = StopRequest()

    at_four = Faults({("step", 4, 0): lambda: stop.ask("the check")})
    try:
        _train(task, recipe, folder / "stopped", Tools(Show(quiet=True), stop, at_four))
        raise AssertionError("the run was asked to stop and did not")
    except Stopped:
        _train(task, None, folder / "stopped")
    for name in ("model.safetensors", "optimizer.safetensors"):
        paths = [Run(run).checkpoints / f"step-{STEPS:08d}" / name for run in (straight, folder / "stopped")]
        assert sha256(paths[0]) == sha256(paths[1]), f"{name} differs after a stop"


def bad_rows_are_counted_and_named(task: type[Task], folder: Path) -> None:
    """A row that cannot be used is left out, counted, and named with file and line; or ends the run where asked to."""
    rows = Path(write_rows(folder / "rows", task.sample(ROWS, random.Random(3))))
    expected = _spoil_lines(rows) if rows.is_file() else _spoil_pictures(rows)
    recipe = _recipe(task, str(rows), {"steps": 1})
    with _named(task):
        data = task.prepare(_validated(task, recipe), folder / "data", stop=_never, progress=_quiet)
        bad = data.report["bad_rows"]
        examples = [e for kind in bad["kinds"].values() if kind["left_out"] for e in kind["examples"]]
        found = {(Path(e["file"]).name, e["line"]) for e in examples if e["detail"]}
        assert found == expected, f"bad rows are {sorted(expected)}; counted were {sorted(found)}"
        assert bad["total"] == len(expected), f"{bad['total']} bad rows were counted"
        kept = sum(size["rows"] for size in data.sizes().values()) if _on_rows(task) else ROWS
        assert kept == ROWS, f"{kept} of {ROWS} good rows are left"
        strict = {**recipe, "data": {**recipe["data"], "on_bad_row": "error"}}
        try:
            task.prepare(_validated(task, strict), folder / "strict", stop=_never, progress=_quiet)
            raise AssertionError("a bad row passed under on_bad_row: error")
        except DataError as error:
            assert error.where is not None, "the error does not say where the row stands"


def _spoil_lines(file: Path) -> set[tuple[str, int]]:
    """Write bad rows behind the first good one, and return file and line of each; what is harmless is written too."""
    first, *others = file.read_bytes().splitlines()
    columns = list(json.loads(first))
    bad = [
        b'{"broken": ',
        b"\xff\xfe",
        b"[1, 2]",
        b"{}",
        json.dumps(dict.fromkeys(columns)).encode(),
        json.dumps(dict.fromkeys(columns, "a \0 within")).encode(),
        json.dumps({columns[0]: "x" * 10_000_000}).encode(),
    ]
    # A mark at the beginning, Windows' ends of lines and an empty line change nothing.
    file.write_bytes(b"\r\n".join([b"\xef\xbb\xbf" + first, *bad, b"", *others, b""]))
    return {(file.name, 2 + number) for number in range(len(bad))}


def _spoil_pictures(place: Path) -> set[tuple[str, int]]:
    """Write bad pictures beside good ones, and return file and line of each."""
    good = sorted(place.glob("*/*"))[0]
    content, size = good.read_bytes(), (50_000).to_bytes(4, "big")
    header = b"IHDR" + size + size + content[24:29]
    bad = {
        "bomb.png": content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:],
        "cut.png": content[:40],
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "empty.png": b"",
        "text.jpg": b"this is a text",
    }
    for name, bytes_ in bad.items():
        (good.parent / name).write_bytes(bytes_)
    return {(name, 1) for name in bad}


def rows_that_were_trained_on_are_told_of(task: type[Task], folder: Path) -> None:
    """Held out rows that stand in training flatter the figures: they are counted, and the report says so."""
    if not _on_rows(task):
        return  # documents are dropped from training instead: tests/data/test_duplicates.py
    rows = task.sample(ROWS, random.Random(11))
    train_rows, held = write_rows(folder / "train", rows), write_rows(folder / "held", rows[:3])
    recipe = _recipe(task, train_rows, {"steps": 1})
    recipe["data"] |= {"validation": held, "test": held}
    data = task.prepare(_validated(task, recipe), folder / "data", stop=_never, progress=_quiet)
    assert data.report["split"]["overlap"]["exact"] == 6
    (note,) = [note["detail"] for note in data.report["notes"] if note["kind"] == "overlap"]
    assert note == "6 of 6 held-out rows stand in training too: figures flatter"


def figures_are_given_by_a_column(task: type[Task], folder: Path) -> None:
    """`evaluate.slices` gives the figures of the rows of each value, and moves no row to another side."""
    if not _on_rows(task):
        return  # text has no columns
    rows = task.sample(ROWS, random.Random(14))
    path = write_rows(folder / "rows", rows)
    recipe = _recipe(task, path, {"steps": 1})
    column = "path" if Path(path).is_dir() else next(iter(rows[0]))
    with _named(task):
        plain = task.prepare(_validated(task, recipe), folder / "plain", stop=_never, progress=_quiet)
        recipe["evaluate"] = {**recipe.get("evaluate", {}), "slices": [column]}
        outcome = _train(task, recipe, folder / "run")
    sizes: Any = PreparedRows(outcome.folder / "data").sizes()
    assert sizes == plain.sizes(), "rows moved"
    told = json.loads((outcome.folder / "evaluation.json").read_text("utf-8"))
    assert {one["column"] for one in told["slices"]} == {column}
    assert all(one["rows"] >= 1 and one["metrics"] for one in told["slices"])


def what_is_frozen_stays(task: type[Task], folder: Path) -> None:
    """A parameter that `train.freeze` names is the same after training, and the others are not."""
    names = [name for name, _ in _learner(task, folder / "seen").model.named_parameters()]
    frozen, rows = names[0], write_rows(folder / "rows", task.sample(ROWS, random.Random(12)))
    weights = []
    for steps in (1, STEPS):
        recipe = _recipe(task, rows, {"steps": steps, "freeze": [frozen]})
        run = Run(_train(task, recipe, folder / f"run-{steps}").folder)
        weights.append(load_file(run.checkpoints / f"step-{steps:08d}" / "model.safetensors"))
    moved = {name for name, tensor in weights[0].items() if not torch.equal(tensor, weights[1][name])}
    assert frozen not in moved, f"{frozen} was frozen and moved"
    assert moved & set(names[1:]), "nothing else moved"


def training_practice_is_heeded(task: type[Task], folder: Path) -> None:
    """L1, groups with rates of their own, clipping, plateau, patience and target; and a start from an earlier run."""
    rows = write_rows(folder / "rows", task.sample(ROWS, random.Random(15)))
    name = next(name for name, _ in _learner(task, folder / "seen").model.named_parameters())
    plain = {
        "steps": STEPS,
        "evaluate_every": 2,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "warmup": 0.0,
    }
    first = Run(_train(task, _recipe(task, rows, plain), folder / "plain").folder)
    untouched = _norms(first)
    # A rate too small to move anything: every evaluation but the first is no better.
    still = {"learning_rate": 1e-12, "schedule": "plateau", "plateau_patience": 1, "patience": 3, "steps": 99}
    settled = Run(_train(task, _recipe(task, rows, {**plain, **still, "l1": 0.1}), folder / "still").folder)
    lines = [line for line in _lines(settled.metrics.path) if line["kind"] == "train"]
    assert len(lines) == 8, f"of four evaluations three were no better, but {len(lines)} steps were made"
    assert lines[-1]["learning_rate"] < lines[0]["learning_rate"], "the rate did not come down on the plateau"
    assert _norms(settled)[0] > untouched[0], "the penalty of L1 does not show in the gradient"
    reached = {"target": 1e9 if read_json(first.result)["primary"]["direction"] == "min" else -1e9}
    group = {"groups": [{"match": name, "rate": 0.5}], "clip": 1e-3}
    again = {**_recipe(task, rows, {**plain, **reached, **group})}
    again["model"] = {**again.get("model", {}), "start": str(first.folder)}
    started = Run(_train(task, again, folder / "started").folder)
    done = [line for line in _lines(started.metrics.path) if line["kind"] == "train"]
    assert len(done) == 2, f"the target was reached at the first evaluation, and {len(done)} steps were made"
    if _on_rows(task):
        assert read_json(started.folder / "plan.json")["started"]["told"], (
            "it is not told what was taken over"
        )
    else:
        begun = next(line for line in _lines(first.metrics.path) if line["kind"] == "train")
        assert done[0]["loss"] < begun["loss"], "the run did not begin where the earlier one ended"


def folds_are_one_run(task: type[Task], folder: Path) -> None:
    """`data.folds` trains as many models as it says, and gives means and spread."""
    rows = write_rows(folder / "rows", task.sample(ROWS, random.Random(16)))
    recipe = _recipe(task, rows, {"steps": 2})
    recipe["data"] |= {"folds": 2}
    result = _train(task, recipe, folder / "run").result
    assert len(result["folds"]) == 2 and result["spread"].keys() == result["metrics"].keys()
    primary = result["primary"]["name"]
    values = [fold["metrics"][primary] for fold in result["folds"]]
    assert math.isclose(result["metrics"][primary], sum(values) / 2, rel_tol=1e-9, abs_tol=1e-12)


def _norms(run: Run) -> list[float]:
    return [line["gradient_norm"] for line in _lines(run.metrics.path) if line["kind"] == "train"]


def a_rate_is_found(task: type[Task], folder: Path) -> None:
    """`luban rates` tries rates from low to high on the task, and keeps nothing."""
    rows = write_rows(folder / "rows", task.sample(ROWS, random.Random(13)))
    with _named(task):
        found = rates(_recipe(task, rows, {"steps": STEPS}), out=folder / "runs" / "none", steps=12)
    tried = [row["rate"] for row in found["rows"]]
    assert 1 <= len(tried) <= 12 and tried == sorted(tried), tried
    assert not (folder / "runs" / "none").exists()


def a_saved_model_answers_as_the_trained_one(task: type[Task], folder: Path) -> None:
    """From raw rows: alone or together, in any order; and the run's figures are found again by `luban evaluate`."""
    rows = task.sample(ROWS, random.Random(4))
    outcome = _train(task, _recipe(task, write_rows(folder / "rows", rows), {"steps": STEPS}), folder / "run")
    with _named(task):
        model = load(outcome.folder)
        asked = [_asked(row) for row in task.sample(6, random.Random(5))]
        options = task.quick_answers
        together = model.predict(asked, **options)
        alone = [model.predict([row], **options)[0] for row in asked]
        turned = model.predict(asked[::-1], **options)[::-1]
        assert not any("error" in answer for answer in together), together
        assert _alike(together, alone), "an answer depends on the rows beside it"
        assert _alike(together, turned), "an answer depends on the order of the rows"
        again = evaluate(outcome.folder, bootstrap=0)
    for name, value in outcome.result["metrics"].items():
        if value is not None:
            assert math.isclose(again.figures[name], value, rel_tol=1e-4, abs_tol=1e-5), f"{name} was {value}"


def a_bad_row_is_answered_by_name(task: type[Task], folder: Path) -> None:
    """Of rows to be answered a bad one is named, and the rest is answered, in order."""
    outcome = _trained(task, folder)
    with _named(task):
        model = load(outcome.folder)
        good = [_asked(row) for row in task.sample(2, random.Random(6))]
        answers = model.predict([good[0], {"nothing": None}, good[1], 7], **task.quick_answers)
    assert ["error" in answer for answer in answers] == [False, True, False, True], answers
    assert answers[1]["row"] == 1 and answers[1]["error"]


def figures_of_shards_merge_to_those_of_the_whole(task: type[Task], folder: Path) -> None:
    """Measured in parts and put together, the figures are those of the whole."""
    if not _on_rows(task):
        return  # text is summed document by document: tests/metrics/test_text_loss.py
    rows = write_rows(folder / "rows", task.sample(ROWS, random.Random(7)))
    recipe = _validated(task, _recipe(task, rows, {"steps": 1}))
    data = task.prepare(recipe, folder / "data", stop=_never, progress=_quiet)
    learner: Any = task.learner(_settled(recipe), data)
    learner.model.eval()
    numbers = np.arange(len(data.train), dtype=np.int64)
    answers = learner.answers(data.train, numbers)
    whole = learner.task.scores(answers, data.train, numbers).figures()
    half = len(numbers) // 3
    merged: Any = learner.task.scores(answers[:half], data.train, numbers[:half])
    merged.merge(learner.task.scores(answers[half:], data.train, numbers[half:]))
    for name, value in merged.figures().items():
        assert math.isclose(value, whole[name], rel_tol=1e-9, abs_tol=1e-12), (
            f"{name}: {value} and {whole[name]}"
        )


def the_exported_graph_answers_as_the_model(task: type[Task], folder: Path) -> None:
    """From raw rows, through the exported files alone."""
    outcome = _trained(task, folder)
    with _named(task):
        made = export(outcome.folder, folder / "exported")
        assert made["parity"]["max_abs"] < 1e-3, made["parity"]
        asked = [_asked(row) for row in task.sample(5, random.Random(8))]
        options = task.quick_answers
        eager = load(outcome.folder).predict(asked, **options)
        graph = load(folder / "exported").predict(asked, **options)
        assert _alike(eager, graph), f"{eager} by the model, {graph} by the graph"


CHECKS: Sequence[Check] = (
    it_learns_eight_rows,
    the_gradient_is_the_same_for_every_split,
    batches_are_a_pure_function,
    a_stopped_run_goes_on_to_the_same_bytes,
    bad_rows_are_counted_and_named,
    rows_that_were_trained_on_are_told_of,
    figures_are_given_by_a_column,
    what_is_frozen_stays,
    training_practice_is_heeded,
    folds_are_one_run,
    a_rate_is_found,
    a_saved_model_answers_as_the_trained_one,
    a_bad_row_is_answered_by_name,
    figures_of_shards_merge_to_those_of_the_whole,
    the_exported_graph_answers_as_the_model,
)


def write_rows(place: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write rows as tasks read them and return the path: JSON lines, or a folder of pictures per label."""
    if not any(isinstance(value, np.ndarray) for row in rows for value in row.values()):
        path = place.with_suffix(".jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        return str(path)
    for number, row in enumerate(rows):
        folder = place / str(row["label"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04d}.png").write_bytes(encode_png(row["image"]))
    return str(place)


def _recipe(task: type[Task], rows: str, settings: dict[str, Any]) -> dict[str, Any]:
    recipe = task.example(rows)
    return {**recipe, "train": {"batch": 8, **recipe.get("train", {}), **settings}}


def _validated(task: type[Task], recipe: dict[str, Any]) -> Any:
    return task.recipe.model_validate(recipe)


def _settled(recipe: Any) -> Any:
    rate = recipe.train.learning_rate or 1e-3
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"learning_rate": rate})})


def _on_rows(task: Any) -> bool:
    return issubclass(task, RowTask)


def _named(task: type[Task]) -> Any:
    """Let verbs find the task by its name, whether or not it is installed."""
    find = tasks.find
    return mock.patch.object(tasks, "find", lambda name: task if name == task.name else find(name))


def _train(task: type[Task], recipe: dict[str, Any] | None, run: Path, tools: Tools | None = None) -> Outcome:
    with _named(task):
        if recipe is None:
            return train(resume=run, tools=tools)
        return train(recipe, out=run, tools=tools)


def _trained(task: type[Task], folder: Path) -> Outcome:
    rows = write_rows(folder / "rows", task.sample(ROWS, random.Random(9)))
    return _train(task, _recipe(task, rows, {"steps": STEPS}), folder / "run")


def _learner(task: type[Task], folder: Path) -> Learner:
    rows = write_rows(folder / "rows", task.sample(ROWS, random.Random(10)))
    recipe = _settled(_validated(task, _recipe(task, rows, {"steps": STEPS})))
    data = task.prepare(recipe, folder / "data", stop=_never, progress=_quiet)
    return task.learner(recipe, data)


def _gradient(learner: Learner, size: int) -> dict[str, torch.Tensor]:
    learner.model.zero_grad(set_to_none=True)
    batches = learner.batches(0, 0, 1, size)
    count = sum(batch.count for batch in batches)
    for batch in batches:
        (learner.loss(batch) / count).backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None}


def _bytes(learner: Learner, step: int, rank: int, ranks: int) -> list[bytes]:
    found = []
    batches: Sequence[Any] = learner.batches(step, rank, ranks)
    for batch in batches:
        tensors = batch.tensors.values() if hasattr(batch, "tensors") else (batch.inputs, batch.targets)
        found += [tensor.numpy().tobytes() for tensor in tensors]
    return found


def _asked(row: dict[str, Any]) -> Any:
    """Return a row without what is asked for."""
    return {name: value for name, value in row.items() if name not in ("label", "target", "tags")}


def _alike(these: Sequence[Any], those: Sequence[Any]) -> bool:
    """Whether answers are the same, numbers up to rounding."""
    return all(_near(a, b) for a, b in zip(these, those, strict=True))


def _near(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_near(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_near, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4)
    return bool(a == b)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _never() -> None:
    """Ask for no stop."""


def _quiet(stage: str, share: float) -> None:
    """Show nothing."""
    del stage, share
