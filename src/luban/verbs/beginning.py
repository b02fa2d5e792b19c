"""How a run begins, and begins again: its data opened, its model built, its machine measured, its plan decided."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luban import tasks
from luban.console import Show, short, switches
from luban.data.bad_rows import told_by_kind
from luban.data.fingerprint import is_prepared
from luban.data.row_sets import PreparedRows
from luban.durable import write_json
from luban.machine import MachineReport, set_threads
from luban.recipe import Recipe
from luban.run import Run
from luban.signals import StopRequest
from luban.tasks.base import Data, Learner, Task
from luban.training.parallel import Plan
from luban.verbs.decisions import (
    data_bytes_of,
    decide,
    measure_machine,
    plan_of,
    settle,
    tell_chosen,
    tell_expected,
    with_values,
)
from luban.verbs.load import model_folder_of
from luban.verbs.training_data import open_data


@dataclass(frozen=True)
class Begun:
    """A run that is ready for its next step.

    Attributes:
        recipe: with every key settled. task: with its model on its device. plan: as plan.json has it.
        preparation_seconds: what preparing or opening the data took.
    """

    recipe: Recipe
    task: Learner
    data: Data
    machine: MachineReport
    plan: Mapping[str, Any]
    preparation_seconds: float = 0.0


def begin(run: Run, recipe: Recipe, ranks: Plan, *, resuming: bool, stop: StopRequest, show: Show) -> Begun:
    """Prepare or open the data, settle what the recipe leaves open, build the model, decide what is decided once.

    The first process decides and writes plan.json, then recipe.json with the chosen values in it; the others read
    them. A run that goes on reads them too.

    Raises:
        InputError: the data cannot be used, or is not what it was.
        Stopped: a signal came.
    """
    kind = tasks.find(recipe.task)
    start = _start_model(run, recipe, kind, resuming=resuming)
    if ranks.rank > 0:
        ranks.wait()
        data = open_data(run, recipe, kind, resuming=True, stop=stop.check, show=show)
        ranks.wait()
        plan = run.read_plan()
        task = _build(kind, _as_chosen(recipe, plan), data, start)
        return Begun(_as_chosen(recipe, plan), task, data, measure_machine(task, plan["dtype"]), plan)
    started = time.monotonic()
    data = open_data(run, recipe, kind, resuming=resuming, stop=stop.check, show=show)
    prepared = time.monotonic() - started
    ranks.wait()
    set_threads()
    if run.plan.is_file():
        begun = _again(run, recipe, kind, data, start, show)
    else:
        begun = _decided(run, recipe, kind, data, start, ranks=ranks.ranks, stop=stop, show=show)
    stop.check()
    if begun.recipe != recipe:
        write_json(run.recipe, begun.recipe.model_dump(mode="json"), run.fs)
    ranks.wait()
    return dataclasses.replace(begun, preparation_seconds=prepared)


def _again(run: Run, recipe: Recipe, kind: type[Task], data: Data, start: Any, show: Show) -> Begun:
    """Do as was decided when the run began."""
    plan = run.read_plan()
    recipe = _as_chosen(recipe, plan)
    task = _build(kind, recipe, data, start)
    show.unit = task.usage().unit
    machine = dataclasses.replace(measure_machine(task, plan["dtype"]), why="as when the run began")
    show.line(machine.first_line())
    write_json(run.machine, machine.as_json(), run.fs)
    _tell_model(show, plan)
    if machine.threads != plan["threads"]:
        show.line(
            f"threads differ from when the run began ({plan['threads']}): results may differ in the last bits"
        )
    return Begun(recipe, task, data, machine, plan)


def _decided(
    run: Run,
    recipe: Recipe,
    kind: type[Task],
    data: Data,
    start: Any,
    *,
    ranks: int,
    stop: StopRequest,
    show: Show,
) -> Begun:
    """Settle the recipe, rehearse, decide, and write plan.json."""
    _tell_rows(show, data)
    recipe, chosen = settle(recipe, kind, data, start)
    task = _build(kind, recipe, data, start)
    machine = measure_machine(task, recipe.train.dtype)
    show.unit = task.usage().unit
    stop.check()
    show.line(machine.first_line())
    write_json(run.machine, machine.as_json(), run.fs)
    show.stage("rehearsing", 0.0)
    decisions = decide(
        task,
        recipe.train,
        machine,
        run.folder,
        ranks=ranks,
        data_bytes=data_bytes_of(data, run.data),
        stop=stop,
        fs=run.fs,
    )
    show.clear()
    plan = plan_of(decisions, task, data, run.data, chosen, ranks)
    told = task.started()
    plan["started"] = None if told is None else {"from": str(recipe.model.start), "told": told}  # type: ignore[attr-defined]
    write_json(run.plan, plan, run.fs)
    tell_chosen(show, plan["chosen"])
    if plan["started"]:
        show.line(started_from(plan))
    _tell_model(show, plan)
    tell_expected(show, plan["predicted"])
    return Begun(recipe, task, data, machine, plan)


def with_what_is_given(recipe: Recipe) -> Recipe:
    """Return a recipe with what the folders it names decide.

    A model to start from decides its tokenizer, and where need be its shape; prepared data how it was made.
    """
    kind = tasks.find(recipe.task)
    if start := getattr(getattr(recipe, "model", None), "start", None):
        recipe = kind.adopted(recipe, model_folder_of(Path(start)))
    place = getattr(getattr(recipe, "data", None), "place", None)
    if isinstance(place, str) and is_prepared(place):
        recipe = kind.as_prepared(recipe, Path(place).expanduser())
    return recipe


def _build(kind: type[Task], recipe: Recipe, data: Data, start: Any) -> Learner:
    set_threads()
    task = kind.learner(recipe, data, start=start)
    task.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return task


def _as_chosen(recipe: Recipe, plan: Mapping[str, Any]) -> Recipe:
    """Return the recipe with what was chosen when the run began."""
    return with_values(recipe, {key: choice["value"] for key, choice in plan.get("chosen", {}).items()})


def _start_model(run: Run, recipe: Recipe, kind: type[Task], *, resuming: bool) -> Any:
    start = getattr(getattr(recipe, "model", None), "start", None)
    if not start:
        return None
    if resuming and run.plan.is_file() and any(run.checkpoints.glob("step-*")):
        # The weights come from a checkpoint; the folder the run started from may be gone or have changed.
        return kind.start_again(run.read_plan()["model"])
    return kind.start(model_folder_of(Path(start)))


def started_from(plan: Mapping[str, Any]) -> str:
    """Return what a run took from the model it started from, as one line."""
    return f"started from {plan['started']['from']}: {plan['started']['told']}"


def _tell_rows(show: Show, data: Data) -> None:
    """Say what was left out of rows, and what is to be known of them before a figure is believed."""
    if isinstance(data, PreparedRows):
        for line in told_by_kind(data.report.get("bad_rows", {})):
            show.line(line)
        for note in data.report.get("notes", []):
            show.line(f"{note['kind'].replace('_', ' ')}: {note['detail']}")


def _tell_model(show: Show, plan: Mapping[str, Any]) -> None:
    show.line(f"model: {short(plan['parameters'])} parameters; {switches(plan)}")
