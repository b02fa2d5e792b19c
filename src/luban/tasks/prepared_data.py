"""What data that was prepared before decides of a recipe: how it was split, cut and encoded cannot be said anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luban.data.fingerprint import FINGERPRINT, Fingerprint
from luban.durable import read_json
from luban.errors import InputError, RecipeError

if TYPE_CHECKING:
    from luban.tasks.rows import RowTask

_TRAINED = ("bpe", "word", "char")


def encoding_settings(kind: type[RowTask], recipe: Any) -> dict[str, Any]:
    """Return what the bytes of a recipe's encoded rows depend on beside its `data` section, for their fingerprint.

    A key of another section stands there only where it is not the default, as of rows prepared before it was noted.
    """
    noted = {place: _value(recipe, place) for place in kind.encoding_keys}
    usual = {place: _usual(recipe, place) for place in kind.encoding_keys}
    return {"task": kind.name, **{place: value for place, value in noted.items() if value != usual[place]}}


def with_their_settings(kind: type[RowTask], recipe: Any, folder: Path) -> Any:
    """Return a recipe with the settings that the prepared rows in `folder` were made with.

    Raises:
        InputError: they are of another task. RecipeError: see `held_to`.
    """
    settings = Fingerprint.from_dict(read_json(folder / FINGERPRINT), folder / FINGERPRINT).settings
    if settings.get("task") != kind.name:
        raise InputError(
            f"the prepared data is not of the task {kind.name}",
            received=settings.get("task", "language-model"),
            where=folder,
            fix=f"prepare it with a recipe of {kind.name}",
        )
    made = {
        f"data.{key}": value
        for key, value in {"id": None, **settings}.items()  # no `id` is noted where there is none
        if key in type(recipe.data).model_fields and key not in kind.while_training
    }
    made |= {place: settings.get(place, _usual(recipe, place)) for place in kind.encoding_keys}
    return held_to(recipe, made, folder)


def held_to(recipe: Any, made: Mapping[str, Any], folder: Path) -> Any:
    """Return a recipe with the values, at `section.key` places, that the data in `folder` was prepared with.

    Raises:
        RecipeError: the recipe itself names another value, or asks for folds of what was split once.
    """
    _check_folds(recipe, made, folder)
    changed = {place: value for place, value in made.items() if value != _value(recipe, place)}
    for place, value in changed.items():
        section, key = place.split(".")
        if key in getattr(recipe, section).model_fields_set and not _both_given(place, value, recipe):
            raise RecipeError(
                f"the data was prepared with another {place}",
                received=f"{place}={_value(recipe, place)}",
                where=folder,
                fix=f"it has {place}={_said(value)}: say so or leave it out, or prepare it anew",
            )
    return _with(recipe, changed)


def _check_folds(recipe: Any, made: Mapping[str, Any], folder: Path) -> None:
    """Refuse to train folds on data that was split once."""
    asked, fold = recipe.data.folds or made.get("data.folds"), recipe.data.fold
    if asked is not None and fold is None and made.get("data.fold") is None:
        raise RecipeError(
            "folds split the data anew each time, and prepared data is split already",
            received=f"data.folds={asked}",
            where=folder,
            fix="give the files themselves, not the folder they were prepared into",
        )


def _both_given(place: str, made: Any, recipe: Any) -> bool:
    """Whether both name a tokenizer by its place, which tells nothing of whether they are the same."""
    values = (made, _value(recipe, place))
    return place == "data.tokenizer" and not any(value is None or value in _TRAINED for value in values)


def _with(recipe: Any, values: Mapping[str, Any]) -> Any:
    """Return the recipe with values at `section.key` places, checked; what it names itself stays known as named."""
    found = recipe
    for name in {place.split(".")[0] for place in values}:
        section = getattr(found, name)
        own = {place.split(".")[1]: value for place, value in values.items() if place.startswith(f"{name}.")}
        checked = type(section).model_validate({**section.model_dump(mode="json"), **own})
        update = {key: getattr(checked, key) for key in own}
        found = found.model_copy(update={name: section.model_copy(update=update)})
    return found


def _value(recipe: Any, place: str) -> Any:
    section, key = place.split(".")
    return getattr(recipe, section).model_dump(mode="json")[key]


def _usual(recipe: Any, place: str) -> Any:
    section, key = place.split(".")
    return type(getattr(recipe, section)).model_fields[key].get_default(call_default_factory=True)


def _said(value: Any) -> str:
    return "null" if value is None else str(value)
