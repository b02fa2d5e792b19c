"""The data of a run: prepared once into the run folder, or read from a prepared one; never silently changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luban.console import Show
from luban.data.fingerprint import Fingerprint, describe_difference, is_prepared
from luban.durable import remove_leftovers
from luban.errors import InputError
from luban.recipe import Recipe
from luban.run import Run
from luban.tasks.base import Data, Task


def open_data(
    run: Run,
    recipe: Recipe,
    kind: type[Task],
    *,
    resuming: bool,
    stop: Callable[[], None],
    show: Show,
) -> Data:
    """Return the run's prepared data.

    Arguments:
        resuming: the run was begun before; then its data must still be what it was.

    Raises:
        InputError: when the source or the steps changed since the run began; both are named.
    """
    data: Data
    settings: Any = recipe.data  # type: ignore[attr-defined]
    if isinstance(settings.place, str) and is_prepared(settings.place):
        data = kind.open(Path(settings.place).expanduser())
        _check_same_folder(run, data)
        return data
    if is_prepared(run.data):
        data = kind.open(run.data)
        if resuming:
            _check_unchanged(data, kind, recipe, show)
        return data
    if run.folder.is_dir():
        remove_leftovers(run.folder, run.fs)
    data = kind.prepare(recipe, run.data, stop=stop, progress=show.stage)
    show.clear()
    return data


def _check_same_folder(run: Run, data: Data) -> None:
    """A folder that several runs share must still hold what it held when this run began."""
    began = run.read_plan().get("fingerprint") if run.plan.is_file() else None
    if began is not None and began != data.fingerprint["sha256"]:
        raise InputError(
            f"the prepared data in {data.folder} changed since the run began: "
            f"its fingerprint was {began[:16]}, now it is {data.fingerprint['sha256'][:16]}",
            fix="put the folder back as it was, or start a new run with it",
        )


def _check_unchanged(data: Data, kind: type[Task], recipe: Recipe, show: Show) -> None:
    try:
        now = kind.fingerprint(recipe)
    except InputError as error:
        show.line(
            f"the source of the data is not there to compare with ({error.message}); going on with the data in the run"
        )
        return
    then = Fingerprint.from_dict(data.fingerprint)
    # What an earlier luban prepared stays as it is: the run goes on with it, whatever would be made of it now.
    now = dataclasses.replace(now, steps=then.steps)
    if now.sha256 != then.sha256:
        raise InputError(
            f"the data changed since the run began: {describe_difference(then, now)}",
            fix="put the data back as it was, or start a new run with it",
        )
