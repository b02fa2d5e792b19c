"""Adding a task touches one file: nothing outside it asks for a task by its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

import luban
from luban import tasks
from luban.conformance import a_bad_row_is_answered_by_name
from luban.tasks.row_model import RowModel
from luban.tasks.text_classification import TextClassification

SOURCE = Path(luban.__file__).parent
OLDER_RUNS = "evaluation/records.py"
"""Where runs of earlier versions are read, which do not say what they count."""


def compared(path: Path) -> Iterator[object]:
    """Yield the constants that a module compares with."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Compare | ast.MatchValue):
            yield from (inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant))


def test_the_engine_asks_for_no_task_by_name() -> None:
    names = {*tasks.names()}
    asking = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if path.parent != SOURCE / "tasks" and names & {*compared(path)}
    }
    assert asking == {OLDER_RUNS}


def test_how_a_task_answers_soon_is_its_own_to_say(tmp_path: Path) -> None:
    asked: list[Mapping[str, Any]] = []

    class Slow(TextClassification):
        quick_answers: ClassVar[Mapping[str, Any]] = {"patience": 0}

        @classmethod
        def load(cls, folder: Path) -> RowModel:
            model = super().load(folder)
            predict = model.predict

            def noted(rows: Any, **settings: Any) -> Any:
                asked.append(settings)
                return predict(rows)

            model.predict = noted  # type: ignore[method-assign]
            return model

    a_bad_row_is_answered_by_name(Slow, tmp_path)
    assert asked == [{"patience": 0}]


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_says_how_it_answers_soon(name: str) -> None:
    assert isinstance(tasks.find(name).quick_answers, Mapping)
