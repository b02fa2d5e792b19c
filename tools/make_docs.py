"""Writes docs/recipes.md from the code: the recipe's fields, the shipped recipes, the verbs' options.

It also writes the table of docs/reliability.md from benchmarks/results/reliability.json, and those of
docs/performance.md from growth.json and overhead.json beside it. Run it (`make docs`) after a change of
luban/recipe.py, luban/cli.py, a shipped recipe or those results. A test compares the pages with what this script would
write.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic.fields import FieldInfo

from luban import tasks
from luban.cli import luban
from luban.recipe import Interval, Section
from luban.recipe_reader import shipped
from luban.text_recipe import LanguageModelRecipe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "recipes.md"
RELIABILITY = ROOT / "docs" / "reliability.md"
COUNTS = ROOT / "benchmarks" / "results" / "reliability.json"
BEFORE_COUNTS, AFTER_COUNTS = "from benchmarks/results/reliability.json -->\n", "<!-- end of counts -->"
PERFORMANCE = ROOT / "docs" / "performance.md"
GROWTH, OVERHEAD = (ROOT / "benchmarks" / "results" / f"{name}.json" for name in ("growth", "overhead"))
BEFORE_FIGURES, AFTER_FIGURES = "<!-- figures: {} -->\n", "<!-- end of figures -->"
AXES = {
    "length": "As many tokens in every step: only attention grows, with the pairs of tokens that see each other.",
    "width": "The work grows with the square of the width, and Muon's iteration with its cube.",
    "batch": "The work grows with the batch; the update of the weights does not, so a small batch pays for it alone.",
    "vocabulary": "The output matrix and its update grow with the vocabulary. The third line on the right is what the "
    "logits of\nall tokens alone would take in float32, were they there at once.",
}
TASKS = ROOT / "docs" / "tasks"
BEFORE_KEYS, AFTER_KEYS = "<!-- Written by tools/make_docs.py -->\n", "<!-- end of keys -->"
TASK_SECTIONS = ("data", "data.augment", "model", "objective", "evaluate")
SECTIONS = (
    ("The whole", LanguageModelRecipe, ""),
    ("data", LanguageModelRecipe, "data"),
    ("data.clean", LanguageModelRecipe, "data.clean"),
    ("model", LanguageModelRecipe, "model"),
    ("model.rope_scaling", LanguageModelRecipe, "model.rope_scaling"),
    ("objective", LanguageModelRecipe, "objective"),
    ("train", LanguageModelRecipe, "train"),
    ("train.groups", LanguageModelRecipe, "train.groups"),
    ("evaluate", LanguageModelRecipe, "evaluate"),
    ("about", LanguageModelRecipe, "about"),
)
_WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "value"}

INTRODUCTION = """\
# Recipes and verbs

<!-- Written by tools/make_docs.py; `make docs` writes it again. -->

A recipe is one YAML file that says what to do. Its keys are the same in YAML, on the command line
(`train.minutes=10`) and in Python (`luban.train("text", "train.minutes=10")`). What a recipe leaves out
takes the default below.

```yaml
task: language-model
data:
  source: notes/
  vocab_size: 4096
model:
  layers: 6
  width: 256
  heads: 4
train:
  minutes: 10
```

- Exactly one budget is given: `train.minutes`, `train.epochs`, `train.tokens` or `train.steps`. A budget on
  the command line takes the place of the recipe's own.
- On the command line a value is read as YAML: `data.source='[a.txt, b.txt]'`, `train.clip=null`,
  `train.learning_rate=1e-3`.
- An unknown key or a wrong value ends with exit code 2 and says where it stands, what was received, what is
  allowed and the nearest known key.
- A recipe is data: aliases and tags of YAML are refused, and reading one runs no code.
- The resolved recipe, with the defaults written out, is `recipe.json` of the run folder.
"""


def page() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, *_shipped(), "## Keys\n"]
    for title, schema, path in SECTIONS:
        parts.append(_section(title, _follow(schema, path)))
    parts.append("## Verbs\n")
    for name in luban.list_commands(click.Context(luban)):
        command = luban.commands[name]
        inner = command.commands.items() if isinstance(command, click.Group) else [("", command)]
        parts += [_verb(f"{name} {sub}".strip(), each) for sub, each in inner]
    return "\n".join(parts)


def reliability_page() -> str:
    """Return docs/reliability.md with the counts of the last sweeps in its table."""
    before, _, rest = RELIABILITY.read_text("utf-8").partition(BEFORE_COUNTS)
    _, _, after = rest.partition(AFTER_COUNTS)
    rows = [_sweep(sweep) for sweep in json.loads(COUNTS.read_text("utf-8"))["sweeps"]]
    head = ("tried", "times", "outcomes", "promises broken", "seconds", "command")
    return before + BEFORE_COUNTS + _table(head, rows) + AFTER_COUNTS + after


def performance_page() -> str:
    """Return docs/performance.md with the figures of the last measurement in its tables."""
    page = PERFORMANCE.read_text("utf-8")
    growth = json.loads(GROWTH.read_text("utf-8")) if GROWTH.is_file() else {"axes": {}}
    parts = {
        "growth": "\n".join(_growth_section(name, axis) for name, axis in growth["axes"].items()),
        "overhead": _overhead_table(json.loads(OVERHEAD.read_text("utf-8"))),
    }
    for name, text in parts.items():
        mark = BEFORE_FIGURES.format(name)
        before, _, rest = page.partition(mark)
        page = before + mark + text + AFTER_FIGURES + rest.partition(AFTER_FIGURES)[2]
    return page


def _growth_section(name: str, axis: Mapping[str, Any]) -> str:
    picture = f"![Seconds and peak memory of a step against {name}](images/growth-{name}.svg)"
    return f"## {name.capitalize()}\n\n{picture}\n\n{AXES[name]}\n\n{_growth_table(name, axis)}"


def _growth_table(name: str, axis: Mapping[str, Any]) -> str:
    machine, points = axis["machine"], axis["points"]
    rates = ", ".join(f"{word} {rate / 1e9:.0f} GFLOP/s" for word, rate in machine["peak_flops"].items())
    note = f"{machine['name']}, {machine['threads']} threads; products: {rates}; "
    note += f"memory: {machine['bandwidth'] / 1e9:.0f} GB/s; load of the machine {machine['load']:.1f}\n\n"
    rows = []
    for point in points:
        cells = [f"{point[name]:,}", point["dtype"]]
        for key, unit in (("seconds", 1e3), ("bytes", 2.0**-20)):
            measured, bound = point[key], point["bound"][key]
            cells += [f"{measured * unit:,.0f}", f"{bound * unit:,.0f}", f"{measured / bound:.1f}"]
        rows.append(tuple(cells))
    return note + _table((name, "dtype", "ms", "bound", "ratio", "MiB", "bound", "ratio"), rows)


def _overhead_table(result: Mapping[str, Any]) -> str:
    shapes = result["shapes"]
    note = f"{result['machine']}, {result['threads']} threads, {result['dtype']}; medians of "
    note += " and ".join(f"{shape['steps']} steps" for shape in shapes.values()) + "\n\n"
    parts = list(dict.fromkeys(part for shape in shapes.values() for part in shape["seconds"]))
    rows = [("the whole step", *(_cell(s["step_seconds"], s) for s in shapes.values()))]
    rows += [(part, *(_cell(s["seconds"].get(part, 0.0), s) for s in shapes.values())) for part in parts]
    besides = "**besides forward, backward, optimizer**"
    rows.append((besides, *(f"**{_cell(s['overhead_seconds'], s)}**" for s in shapes.values())))
    names = [f"{s['parameters'] / 1e6:.1f} M ({name.split(', ')[1]})" for name, s in shapes.items()]
    return note + _table(("part", *names), rows)


def _cell(seconds: float, shape: Mapping[str, Any]) -> str:
    return f"{1e3 * seconds:,.2f} ms, {seconds / shape['step_seconds']:.2%}"


def task_pages() -> dict[Path, str]:
    """Return the page of each task with the keys of its recipe in it."""
    pages = {}
    for path in sorted(TASKS.glob("*.md")):
        recipe = tasks.find(path.stem).recipe
        before, _, rest = path.read_text("utf-8").partition(BEFORE_KEYS)
        _, _, after = rest.partition(AFTER_KEYS)
        sections = [_section(name, _follow(recipe, name)) for name in TASK_SECTIONS if _has(recipe, name)]
        pages[path] = before + BEFORE_KEYS + "\n".join(sections) + AFTER_KEYS + after
    return pages


def _has(schema: type[Section], path: str) -> bool:
    """Say whether a dotted path leads to a section."""
    for name in path.split("."):
        if name not in schema.model_fields:
            return False
        options = _options(schema.model_fields[name].annotation)
        schema = next((option for option in options if _is_section(option)), Section)
    return schema is not Section


def _sweep(sweep: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a row of the table of counts."""
    outcomes: Mapping[str, int] = sweep["outcomes"]
    broken = sum(number for name, number in outcomes.items() if name.startswith("BROKEN"))
    kept = [f"{number:,} {name}" for name, number in outcomes.items() if not name.startswith("BROKEN")]
    seconds, command = f"{sweep['seconds']:.0f}", f"`{sweep['command']}`"
    return sweep["tried"], f"{sweep['count']:,}", "; ".join(kept), f"{broken:,}", seconds, command


def _shipped() -> Iterator[str]:
    yield "## Shipped recipes\n"
    rows = [(f"`{name}`", about.makes, about.data, about.time) for name, about in shipped().items()]
    yield _table(("name", "makes", "from", "in"), rows)


def _follow(schema: type[Section], path: str) -> type[Section]:
    """Return the section at a dotted path."""
    for name in filter(None, path.split(".")):
        options = _options(schema.model_fields[name].annotation)
        inside = [part for option in options for part in (option, *typing.get_args(option))]
        schema = next(part for part in inside if _is_section(part))
    return schema


def _meanings(schema: type[Section]) -> dict[str, str]:
    """Return the text that stands under each field; pydantic could keep it, at a cost to every start of a verb."""
    found: dict[str, str] = {}
    for part in reversed(schema.__mro__[: schema.__mro__.index(Section)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in itertools.pairwise(definition.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[name] = words
    return found


def _section(title: str, schema: type[Section]) -> str:
    meanings = _meanings(schema)
    rows = [
        (f"`{name}`", _type(field), _default(field), _one_line(meanings.get(name, "")))
        for name, field in schema.model_fields.items()
    ]
    about = _one_line((inspect.getdoc(schema) or "").partition("\n\n")[0])
    heading = title if " " in title else f"`{title}`"
    return f"### {heading}\n\n{about}\n\n" + _table(("key", "type", "default", "meaning"), rows)


def _type(field: FieldInfo) -> str:
    """Say in words what a field takes, with its bounds."""
    bounds = _bounds(field.metadata)
    words = [_words(option, bounds) for option in _options(field.annotation)]
    return " or ".join(words)


def _words(option: Any, bounds: str) -> str:
    if typing.get_origin(option) is typing.Annotated:
        inner, *metadata = typing.get_args(option)
        return _words(inner, _bounds(metadata) or bounds)
    origin, inside = typing.get_origin(option), typing.get_args(option)
    if option is type(None):
        return "null"
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin is list:
        return f"list of {_words(inside[0], '')}"
    if origin is tuple:
        return f"list of {len(inside)}: {_words(inside[0], '')}"
    if origin is dict:
        return f"object of {_words(inside[1], '')}"
    if option is Interval:
        return "steps or a time"
    if _is_section(option):
        return "section"
    return _WORDS[option] + bounds


def _options(annotation: Any) -> tuple[Any, ...]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _is_section(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, Section)


def _bounds(metadata: Any) -> str:
    """Write the bounds among a field's metadata, which pydantic keeps as objects with ge, gt, le, lt."""
    found: dict[str, Any] = {}
    for item in metadata:
        for entry in getattr(item, "metadata", [item]):
            found |= {n: getattr(entry, n) for n in ("ge", "gt", "le", "lt") if hasattr(entry, n)}
    found = {name: value for name, value in found.items() if value is not None}
    if "ge" in found and "le" in found:
        return f" from {found['ge']:g} to {found['le']:g}"
    signs = {"gt": "above", "ge": "from", "lt": "below", "le": "up to"}
    words = [f"{sign} {found[name]:g}" for name, sign in signs.items() if name in found]
    return f" {', '.join(words)}" if words else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return "its own defaults"
    return f"`{json.dumps(str(value) if isinstance(value, Interval) else value, ensure_ascii=False)}`"


def _verb(name: str, command: click.Command) -> str:
    """Describe a verb: what it does, its arguments, its options."""
    text = inspect.cleandoc(command.help or "")
    parts = []
    for paragraph in text.split("\n\n"):
        as_it_stands = paragraph.removeprefix("\b\n")
        first, _, rest = as_it_stands.partition("\n")
        if first in ("Example:", "Examples:"):
            parts.append(f"```sh\n{inspect.cleandoc(rest)}\n```")
        elif as_it_stands != paragraph:
            parts.append(f"```\n{as_it_stands}\n```")
        else:
            parts.append(_one_line(paragraph))
    arguments = [_metavar(p) for p in command.params if isinstance(p, click.Argument)]
    usage = " ".join(["luban", name, "[OPTIONS]", *arguments])
    options = [
        (f"`{' '.join([*p.opts, *_value_of(p)])}`", _option_default(p), _help(p))
        for p in command.params
        if isinstance(p, click.Option)
    ]
    return (
        f"### `{usage}`\n\n" + "\n\n".join(parts) + "\n\n" + _table(("option", "default", "meaning"), options)
    )


def _metavar(argument: click.Argument) -> str:
    metavar = argument.metavar or str(argument.name).upper()
    return metavar if argument.required or metavar.startswith("[") else f"[{metavar}]"


def _value_of(option: click.Option) -> list[str]:
    if option.is_flag:
        return []
    if isinstance(option.type, click.Choice):
        return ["|".join(option.type.choices)]
    return [option.metavar or option.type.name.split(" ")[0].upper()]


def _option_default(option: click.Option) -> str:
    value = option.default if option.show_default else None
    return f"`{value}`" if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _help(option: click.Option) -> str:
    text = _one_line(option.help or "")
    kind = option.type
    if isinstance(kind, click.IntRange | click.FloatRange):
        bounds: Mapping[str, Any] = {
            "gt" if kind.min_open else "ge": kind.min,
            "lt" if kind.max_open else "le": kind.max,
        }
        span = _bounds([types.SimpleNamespace(**bounds)]).strip()
        text = f"{text} A number {span}." if span else text
    return text.strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    escaped = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    RELIABILITY.write_text(reliability_page(), encoding="utf-8")
    PERFORMANCE.write_text(performance_page(), encoding="utf-8")
    for path, text in task_pages().items():
        path.write_text(text, encoding="utf-8")
