"""`luban evaluate`: how well a model does on data, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luban import tasks
from luban.console import Show
from luban.data.fingerprint import is_prepared
from luban.errors import InputError
from luban.machine import set_threads
from luban.recipe import Recipe
from luban.recipe_reader import read_recipe
from luban.run import run_of
from luban.signals import StopRequest
from luban.tasks.base import Evaluation, Task
from luban.training.memory import memory_errors
from luban.verbs.load import load


def evaluate(
    folder: str | Path,
    data: str | Sequence[str] | None = None,
    *,
    show: Show | None = None,
    **options: Any,
) -> Evaluation:
    """Measure a run or a model folder.

    Arguments:
        folder: a run, or a model folder.
        data: files, folders or globs; the run's held-out data when left out.
        options: `bootstrap` (resamples of the intervals) and what the task has besides; of a language model `text`,
            `document`, `length` and `stride`, see `luban.tasks.text_evaluation.measure_text`.

    Returns:
        the task's figures, each with a 95 % interval.

    Raises:
        InputError: when model, data or an option cannot be used.
        Stopped: when a signal came.
        OutOfMemory: when the model or a batch does not fit.
    """
    path, show, stop = Path(folder), show or Show(quiet=True), StopRequest()
    spare = memory_errors("measuring a model", "give a smaller --length, or close other programs")
    # Nothing is kept of a measurement that is stopped, so the first signal ends it, wherever it is.
    with stop.listening(), stop.at_once(), spare:
        set_threads()
        model = load(path)
        kind = tasks.find(model.task)
        recipe = _run_recipe(path, kind)
        source = _held_out(path, kind) if data is None else [data] if isinstance(data, str) else list(data)
        try:
            evaluation = kind.measure(
                model, source, recipe=recipe, stop=stop.check, progress=show.stage, **options
            )
        except InputError as error:
            if error.where == "data.source":  # as the reader of a recipe's data calls it
                error.where = "data"
            raise
        show.clear()
        return evaluation


def _run_recipe(folder: Path, kind: type[Task]) -> Recipe | None:
    run = run_of(folder)
    if run is None:
        return None
    recipe = read_recipe(run.read_recipe(), (), tasks.schema_of, str(run.recipe))
    return recipe if isinstance(recipe, kind.recipe) else None


def _held_out(folder: Path, kind: type[Task]) -> Any:
    run = run_of(folder)
    if run is None:
        raise InputError(
            "a model folder has no held-out data of its own", received=str(folder), fix="add --data FILE"
        )
    elsewhere = run.read_plan().get("data") if run.plan.is_file() else None
    place = Path(elsewhere) if elsewhere else run.data
    if not is_prepared(place):
        raise InputError("the run has no prepared data", received=str(place), fix="add --data FILE")
    return kind.open(place)
