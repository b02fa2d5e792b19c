"""What can be learned. A task is found by its name: luban's own here, others by the entry points `luban.tasks`."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from luban.errors import RecipeError, nearest
from luban.recipe import Recipe

if TYPE_CHECKING:
    from luban.tasks.base import Task

_OWN = {
    "language-model": ("luban.tasks.language_model", "LanguageModel"),
    "text-classification": ("luban.tasks.text_classification", "TextClassification"),
    "image-classification": ("luban.tasks.image_classification", "ImageClassification"),
    "tabular": ("luban.tasks.tabular", "Tabular"),
    "translation": ("luban.tasks.translation", "Translation"),
    "sequence-labelling": ("luban.tasks.sequence_labelling", "SequenceLabelling"),
}
GROUP = "luban.tasks"


def names() -> list[str]:
    """Return the names of all tasks installed."""
    return sorted({*_OWN, *(point.name for point in entry_points(group=GROUP))})


def find(name: str) -> type[Task]:
    """Return the task of that name.

    Raises:
        RecipeError: with the nearest name and all there are.
    """
    if name in _OWN:
        module, attribute = _OWN[name]
        task: type[Task] = getattr(import_module(module), attribute)
        return task
    for point in entry_points(group=GROUP):
        if point.name == name:
            loaded: type[Task] = point.load()
            return loaded
    close = nearest(name, names())
    fix = (f"did you mean {close}? " if close else "") + f"tasks: {', '.join(names())}"
    raise RecipeError("no task of that name", received=name, where="task", fix=fix)


def schema_of(name: str) -> type[Recipe]:
    """Return what a recipe of that task may say."""
    return find(name).recipe
