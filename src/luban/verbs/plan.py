"""`luban plan`: what a recipe will do, how long, with how much memory and disk, before it is run.

A plan is the beginning of a run in a folder that is removed again: the data is prepared, the model built, a few
real steps, an evaluation and a checkpoint are made. What a plan prints is what `luban train` would write into
plan.json.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luban import tasks
from luban.console import Show
from luban.durable import free_bytes, storage_errors
from luban.machine import memory_available
from luban.recipe_reader import read_recipe
from luban.run import Run
from luban.signals import StopRequest
from luban.training.parallel import Alone
from luban.verbs.beginning import Begun, begin, with_what_is_given
from luban.verbs.decisions import with_values
from luban.verbs.folds import folds_of

VIEWS = 3


def plan(
    recipe: str | Path | Mapping[str, Any],
    *overrides: str,
    out: str | Path | None = None,
    show: Show | None = None,
) -> dict[str, Any]:
    """Find out what a recipe will do and cost.

    Arguments:
        recipe: a shipped recipe's name, a YAML file, or a mapping.
        overrides: `section.key=value`.
        out: where the run would go; its disk is the one that is tried. `runs/` when left out.

    Returns:
        `recipe` with every key settled, `machine`, `data`, `plan` (as plan.json), `available` memory and disk, and
        `views`: what the model will see. Of a run over folds it is the plan of the first, and `folds` says how many.

    Raises:
        LubanError: what the run itself would meet at its beginning.
    """
    settings = with_what_is_given(read_recipe(recipe, overrides, tasks.schema_of))
    folds = folds_of(settings)
    if folds is not None:
        settings = with_values(settings, {"data.fold": 0})
    target = Path(out) if out is not None else Path("runs")
    disk = next(p for p in (target.absolute(), *target.absolute().parents) if p.is_dir())
    show, stop = show or Show(quiet=True), StopRequest()
    with storage_errors(disk):
        scratch = tempfile.TemporaryDirectory(prefix=".luban-plan-", dir=disk)
    with storage_errors(disk), stop.listening(), scratch as folder:
        begun = begin(Run(Path(folder)), settings, Alone(), resuming=False, stop=stop, show=show)
        return {**_described(begun, disk), **({} if folds is None else {"folds": folds})}


def _described(begun: Begun, disk: Path) -> dict[str, Any]:
    return {
        "recipe": begun.recipe.model_dump(mode="json"),
        "machine": begun.machine.as_json(),
        "data": {
            **begun.data.sizes(),
            "preparation_seconds": round(begun.preparation_seconds, 2),
            "epochs": round(begun.plan["predicted"]["tokens"] / max(1, begun.data.train_tokens), 2),
        },
        "plan": dict(begun.plan),
        "available": {"memory_bytes": memory_available(), "disk_bytes": free_bytes(disk), "disk": str(disk)},
        "views": list(begun.task.views(VIEWS)),
    }
