"""The one way a recipe is read, from a shipped name, a YAML file or a mapping, with `key=value` overrides on
top.

Reading executes nothing: YAML goes through the safe loader, keys are checked against the schema, and an error
says the key, the line it stands on, what was received, what is allowed and the nearest known key.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from luban.errors import RecipeError, nearest
from luban.recipe import About, Recipe

SchemaOf = Callable[[str], type[Recipe]]
_SHIPPED = resources.files("luban") / "recipes"
_MAX_BYTES = 1_000_000


def shipped() -> dict[str, About]:
    """Return the recipes that come with luban: name -> what it makes, on what data, in what time."""
    names = sorted(
        item.name.removesuffix(".yaml") for item in _SHIPPED.iterdir() if item.name.endswith(".yaml")
    )
    return {name: About(**_shipped_mapping(name).get("about", {})) for name in names}


def _shipped_mapping(name: str) -> dict[str, Any]:
    mapping: dict[str, Any] = yaml.safe_load((_SHIPPED / f"{name}.yaml").read_text("utf-8"))
    return mapping


def read_recipe(
    recipe: str | Path | Mapping[str, Any], overrides: Sequence[str], schema_of: SchemaOf
) -> Recipe:
    """Read and check a recipe.

    Arguments:
        recipe: the name of a shipped recipe, the path of a YAML file, or a mapping.
        overrides: `section.key=value` strings; the value is read as YAML, so `[a, b]`, `null` and `1e-3`
            work.
        schema_of: gives the schema for a task's name and raises `RecipeError` for an unknown task.

    Raises:
        RecipeError: with the key, file and line, what was received and what is allowed.
    """
    mapping, lines, origin = _load(recipe)
    for override in overrides:
        key, value = _parse_override(override)
        _put(mapping, key, value, override)
        lines[".".join(key)] = f"override {override!r}"
    task = mapping.get("task", "language-model")
    if not isinstance(task, str):
        raise RecipeError("task must be a name", received=task, where=_where(lines, ("task",), origin))
    schema = schema_of(task)
    try:
        return schema.model_validate(mapping)
    except ValidationError as error:
        raise _explain(error, schema, lines, origin) from None


def _load(recipe: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], str]:
    """Return the mapping, where each key stands, and the name of the whole."""
    if isinstance(recipe, Mapping):
        return _deep_copy(recipe), {}, "the recipe given"
    name = str(recipe)
    known = [item.name.removesuffix(".yaml") for item in _SHIPPED.iterdir() if item.name.endswith(".yaml")]
    if name in known:
        text, origin = (_SHIPPED / f"{name}.yaml").read_text("utf-8"), f"{name}.yaml"
    else:
        path = Path(name)
        if not path.is_file():
            close = nearest(name, known)
            fix = f"did you mean {close}? " if close else ""
            raise RecipeError(
                "no recipe of that name, and no such file",
                received=name,
                fix=f"{fix}shipped recipes: {', '.join(sorted(known))}",
            )
        if path.stat().st_size > _MAX_BYTES:
            raise RecipeError(
                f"a recipe is at most {_MAX_BYTES:,} bytes", received=path.stat().st_size, where=path
            )
        try:
            text, origin = path.read_text("utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe: {error}", where=path) from None
    return (*_parse_yaml(text, origin), origin)


def _parse_yaml(text: str, origin: str) -> tuple[dict[str, Any], dict[str, str]]:
    lines: dict[str, str] = {}
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise RecipeError("a recipe has no YAML aliases (*name)", where=origin)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _record_lines(node, (), lines, origin)
        mapping = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"not a YAML file: {error}", where=origin, fix="see the shipped recipes for the form"
        ) from None
    if not isinstance(mapping, dict):
        raise RecipeError("a recipe is a mapping of sections", received=mapping, where=origin)
    return mapping, lines


def _record_lines(node: yaml.Node, path: tuple[str, ...], lines: dict[str, str], origin: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        name = str(key.value)
        where = f"{origin}:{key.start_mark.line + 1}"
        if name in seen:
            raise RecipeError("a key stands twice", received=name, where=where)
        seen.add(name)
        lines[".".join((*path, name))] = where
        _record_lines(value, (*path, name), lines, origin)


def _parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(
            "an override is written section.key=value", received=override, fix="for example train.minutes=10"
        )
    try:
        parsed = yaml.safe_load(value) if value.strip() else ""
    except (yaml.YAMLError, ValueError, RecursionError):
        parsed = value
    if isinstance(parsed, str):
        # YAML 1.1 reads 1e-3 as a string; Python's reading is what people mean.
        with_float = _as_float(parsed)
        parsed = value if with_float is None else with_float
    return tuple(key.strip().split(".")), parsed


def _as_float(text: str) -> float | None:
    try:
        return float(text) if text[:1].isdigit() or text[:1] in "+-." else None
    except ValueError:
        return None


def _put(mapping: dict[str, Any], key: tuple[str, ...], value: Any, override: str) -> None:
    inner = mapping
    for name in key[:-1]:
        below = inner.get(name)
        if below is None:
            below = inner[name] = {}
        if not isinstance(below, dict):
            raise RecipeError(f"{name} has no keys below it", received=override)
        inner = below
    inner[key[-1]] = value
    if (
        key[:-1] == ("train",)
        and key[-1] in (budgets := {"minutes", "tokens", "steps"})
        and value is not None
    ):
        # A budget given by hand takes the place of the recipe's own.
        for other in budgets - {key[-1]}:
            inner.pop(other, None)


def _deep_copy(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {str(k): _deep_copy(v) if isinstance(v, Mapping) else v for k, v in mapping.items()}


def _where(lines: Mapping[str, str], key: Sequence[str], origin: str) -> str:
    for size in range(len(key), 0, -1):
        if found := lines.get(".".join(key[:size])):
            return found
    return origin


def _explain(
    error: ValidationError, schema: type[BaseModel], lines: Mapping[str, str], origin: str
) -> RecipeError:
    first = error.errors(include_url=False)[0]
    key = tuple(
        str(part) for part in first["loc"] if isinstance(part, str) and not part.startswith("function-")
    )
    owner = _section(schema, key[:-1])
    where = _where(lines, key, origin)
    name = ".".join(key) or "the recipe"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        allowed = sorted(owner.model_fields) if owner else []
        close = nearest(key[-1], allowed)
        fix = (f"did you mean {close}? " if close else "") + f"allowed here: {', '.join(allowed)}"
        return RecipeError(f"unknown key {name}{more}", received=first["input"], where=where, fix=fix)
    if first["type"] == "missing":
        return RecipeError(
            f"{name} is missing{more}", where=where, fix=f"write it in the recipe, or add {name}=VALUE"
        )
    message = first["msg"].removeprefix("Value error, ")
    fix = message[:1].lower() + message[1:]
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        choices = [c.strip("'") for c in str(first["ctx"]["expected"]).replace(" or ", ", ").split(", ")]
        if close := nearest(first["input"], choices):
            fix = f"did you mean {close}? {fix}"
    received = first["input"] if not isinstance(first["input"], dict | BaseModel) else None
    return RecipeError(f"{name} cannot be that{more}", received=received, where=where, fix=fix)


def _section(schema: type[BaseModel], path: Iterable[str]) -> type[BaseModel] | None:
    """Follow `path` through nested sections; None where it leaves them."""
    current: type[BaseModel] | None = schema
    for name in path:
        field = current.model_fields.get(name) if current else None
        if field is None:
            return None
        options = [field.annotation, *typing.get_args(field.annotation)]
        current = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return current
