"""The one way a recipe is read: a shipped name, a YAML file or a mapping, and `key=value` overrides on top.

Reading executes nothing: YAML goes through the safe loader, keys are checked against the schema, and an error
says the key, the line it stands on, what was received, what is allowed and the nearest known key.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from luban.errors import RecipeError, nearest
from luban.recipe import BUDGETS, About, Recipe, Section

SchemaOf = Callable[[str], type[Recipe]]
_SHIPPED = resources.files("luban") / "recipes"
_MAX_BYTES, _MAX_DEPTH, _MAX_BITS = 50_000, 20, 63
_UNKNOWN = ("extra_forbidden", "invalid_key")
_OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the words of YAML 1.2: 1e-3 is a number, and only true and false are truth values.

    YAML 1.1 wants a dot in the number, and takes on, off, yes and no for truth values.
    """


_Loader.yaml_implicit_resolvers = {
    first: [(tag, words) for tag, words in known if tag != "tag:yaml.org,2002:bool"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+"),
    list("-+.0123456789"),
)


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
    recipe: str | Path | Mapping[str, Any],
    overrides: Sequence[str],
    schema_of: SchemaOf,
    origin: str = "the recipe given",
) -> Recipe:
    """Read and check a recipe.

    Arguments:
        recipe: the name of a shipped recipe, the path of a YAML file, or a mapping.
        overrides: `section.key=value` strings; the value is read as YAML: `[a, b]`, `null` and `1e-3` work.
            A budget among them takes the place of the recipe's own.
        origin: how errors call a recipe that is given as a mapping, for example by the file it was read from.
        schema_of: gives the schema for a task's name and raises `RecipeError` for an unknown task.

    Raises:
        RecipeError: with the key, file and line, what was received and what is allowed.
    """
    mapping, lines, origin = _load(recipe, origin)
    parsed = [(override, *_parse_override(override)) for override in overrides]
    budgets = {key[-1] for _, key, value in parsed if key[:-1] == ("train",) and value is not None} & set(
        BUDGETS
    )
    if budgets and isinstance(mapping.get("train"), dict):
        mapping["train"] = {k: v for k, v in mapping["train"].items() if k not in set(BUDGETS) - budgets}
    for override, key, value in parsed:
        _put(mapping, key, value, override)
        lines[".".join(key)] = f"override {override!r}"
    _check_numbers(mapping, lines, origin)
    task = mapping.get("task", "language-model")
    if not isinstance(task, str):
        raise RecipeError("task must be a name", received=task, where=_where(lines, ("task",), origin))
    try:
        schema = schema_of(task)
    except RecipeError as error:
        error.where = _where(lines, ("task",), origin)
        raise
    try:
        return schema.model_validate(mapping)
    except ValidationError as error:
        raise _explain(error, schema, lines, origin) from None


def _load(recipe: str | Path | Mapping[str, Any], given: str) -> tuple[dict[str, Any], dict[str, str], str]:
    """Return the mapping, where each key stands, and the name of the whole."""
    if isinstance(recipe, Mapping):
        return _deep_copy(recipe), {}, given
    name = str(recipe)
    known = [item.name.removesuffix(".yaml") for item in _SHIPPED.iterdir() if item.name.endswith(".yaml")]
    if name in known:
        text, origin = (_SHIPPED / f"{name}.yaml").read_text("utf-8"), f"{name}.yaml"
    else:
        path = Path(name)
        if not _is_file(path):
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


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _parse_yaml(text: str, origin: str) -> tuple[dict[str, Any], dict[str, str]]:
    lines: dict[str, str] = {}
    fix = "see the shipped recipes for the form"
    try:
        if found := _unwanted(text):
            line, why = found
            raise RecipeError(why, where=f"{origin}:{line}", fix="write the values out")
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _record_lines(node, (), lines, origin)
        mapping = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{origin}:{mark.line + 1}" if mark else origin
        problem = error.problem or error.context
        raise RecipeError(f"not YAML that a recipe may hold: {problem}", where=where, fix=fix) from None
    except (yaml.YAMLError, ValueError) as error:
        problem = str(error).partition("\n")[0]
        raise RecipeError(f"not YAML that a recipe may hold: {problem}", where=origin, fix=fix) from None
    if not isinstance(mapping, dict):
        raise RecipeError("a recipe is a mapping of sections", received=mapping, where=origin, fix=fix)
    return mapping, lines


def _unwanted(text: str) -> tuple[int, str] | None:
    """Return the line of the first thing no recipe has, and why, before anything is built from the text.

    A few bytes of aliases unfold to gigabytes, and deep nesting exhausts the stack.
    """
    depth = 0
    for token in yaml.scan(text, Loader=_Loader):
        if isinstance(token, yaml.AliasToken):
            return token.start_mark.line + 1, "a recipe has no YAML aliases (*name)"
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > _MAX_DEPTH:
            return token.start_mark.line + 1, f"a recipe has at most {_MAX_DEPTH} levels"
    return None


def _record_lines(node: yaml.Node, path: tuple[str, ...], lines: dict[str, str], origin: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        where = f"{origin}:{key.start_mark.line + 1}"
        if key.tag != "tag:yaml.org,2002:str":
            received = key.value if isinstance(key, yaml.ScalarNode) else None
            raise RecipeError("a key is a name", received=received, where=where)
        name = str(key.value)
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
    names = tuple(key.strip().split("."))
    if len(names) > _MAX_DEPTH:
        raise RecipeError(f"a recipe has at most {_MAX_DEPTH} levels", received=override)
    return names, _parse_value(value.strip())


def _parse_value(text: str) -> Any:
    """Read a value given by hand; what is no YAML is text, such as the globs `*.txt` and `[ab]*.txt`."""
    if not text:
        return ""
    try:
        value = text if _unwanted(text) else yaml.load(text, _Loader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, ValueError):
        return text
    quoted = text[0] in "'\""
    # Nothing in a recipe is a date: `2024-01-01` is a name. Unquoted text is taken as it stands, `#` and all.
    return value if value is None or isinstance(value, int | float | list | dict) or quoted else text


def _check_numbers(value: object, lines: Mapping[str, str], origin: str, key: tuple[str, ...] = ()) -> None:
    """Raise for a whole number of more than 64 bits: counted with, it would be an error far from here."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_numbers(inner, lines, origin, (*key, str(name)))
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_numbers(inner, lines, origin, key)
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
        received = f"a number of {value.bit_length()} bits"
        where = _where(lines, key, origin)
        raise RecipeError(f"{'.'.join(key)} is too large a number", received=received, where=where)


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


def _deep_copy(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {str(k): _deep_copy(v) if isinstance(v, Mapping) else v for k, v in mapping.items()}


def _where(lines: Mapping[str, str], key: Sequence[str], origin: str) -> str:
    for size in range(len(key), 0, -1):
        if found := lines.get(".".join(key[:size])):
            return found
    below = [found for name, found in lines.items() if key and name.startswith(f"{key[0]}.")]
    return below[-1] if below else origin


def _explain(
    error: ValidationError, schema: type[Section], lines: Mapping[str, str], origin: str
) -> RecipeError:
    # A mistyped key first: what is missing may be only that.
    errors = sorted(error.errors(include_url=False), key=lambda e: e["type"] not in _UNKNOWN)
    first = errors[0]
    key, owner = _place(schema, first["loc"])
    others = {_place(schema, e["loc"])[0] for e in errors} - {key}
    where = _where(lines, key, origin)
    name = ".".join(key) or "the recipe"
    more = f" (and {len(others)} more: {', '.join(sorted('.'.join(k) for k in others))})" if others else ""
    if first["type"] in _UNKNOWN:
        allowed = sorted(owner.model_fields)
        close = nearest(key[-1], allowed)
        fix = (f"did you mean {close}? " if close else "") + f"allowed here: {', '.join(allowed)}"
        return RecipeError(f"unknown key {name}{more}", received=first["input"], where=where, fix=fix)
    if first["type"] == "missing" and first["loc"][-1] == key[-1]:
        fix = f"write it in the recipe, or add {name}=VALUE"
        return RecipeError(f"{name} is missing{more}", where=where, fix=fix)
    received = first["input"] if not isinstance(first["input"], dict | Section) else None
    alike = [e for e in errors if _place(schema, e["loc"])[0] == key]
    fix = "; or ".join(dict.fromkeys(_advice(e, name) for e in alike))
    if first["type"] == "model_type" and (section := _section_in(owner.model_fields[key[-1]].annotation)):
        fix = f"a section is wanted, with keys of its own: {', '.join(sorted(section.model_fields))}"
    return RecipeError(f"{name} cannot be that{more}", received=received, where=where, fix=fix)


def _advice(error: ErrorDetails, name: str) -> str:
    """Say what is allowed, in the reader's words."""
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = error["input"]
    if error["type"] == "missing":
        return "more values are wanted"
    if error["type"] == "literal_error" and isinstance(given, str):
        choices = re.findall(r"'([^']*)'", str(error["ctx"]["expected"]))
        close = nearest(given, choices)
        return f"did you mean {close}? {message}" if close else message
    if error["type"] == "string_type" and isinstance(given, int | float):
        return f"{message}: quote it, on the command line {name}='\"{given}\"'"
    return message


def _place(schema: type[Section], loc: Sequence[int | str]) -> tuple[tuple[str, ...], type[Section]]:
    """Return the keys that lead to an error, and the section the last of them belongs to.

    Below a field that is no section pydantic names types and positions, which say nothing to a reader.
    """
    key: list[str] = []
    owner, inner = schema, schema
    for part in loc:
        if isinstance(part, int):
            continue  # a place in a list
        owner = inner
        key.append(str(part))
        field = owner.model_fields.get(str(part))
        section = _section_in(field.annotation) if field else None
        if section is None:
            break
        inner = section
    return tuple(key), owner


def _section_in(annotation: object) -> type[Section] | None:
    options = [annotation, *typing.get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)
