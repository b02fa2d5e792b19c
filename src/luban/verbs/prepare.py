"""`luban prepare`: only the data part of a recipe, into a folder that several runs can share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luban import tasks
from luban.console import Show
from luban.data.fingerprint import is_prepared
from luban.errors import InputError
from luban.recipe_reader import read_recipe
from luban.signals import StopRequest
from luban.verbs.beginning import with_what_is_given


def prepare(
    recipe: str | Path | dict[str, Any], *overrides: str, out: str | Path, show: Show | None = None
) -> dict[str, Any]:
    """Prepare a recipe's data into `out`; a recipe then reads it with `data.source=OUT`.

    Returns:
        the data report.

    Raises:
        InputError: when the folder exists already, or the data cannot be used.
    """
    settings = with_what_is_given(read_recipe(recipe, overrides, tasks.schema_of))
    source = getattr(getattr(settings, "data", None), "place", None)
    if isinstance(source, str) and is_prepared(source):
        raise InputError("the source is prepared already", received=source, fix="train on it as it is")
    folder, show, stop = Path(out), show or Show(quiet=True), StopRequest()
    if folder.exists():
        raise InputError(
            "the folder for prepared data exists already", received=str(folder), fix="choose a new one"
        )
    with stop.listening():
        prepared = tasks.find(settings.task).prepare(settings, folder, stop=stop.check, progress=show.stage)
    show.clear()
    report: dict[str, Any] = prepared.report
    return report
