"""What every verb of the command line has: `--json`, exit codes, and errors a person can read."""

from __future__ import annotations

import gc
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, NoReturn

import click

from luban.errors import LubanError
from luban.wrapping import wrapped

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
Command = Callable[..., Any]


def verb(command: Command) -> Command:
    """Give a verb `--json`, exit codes and errors a person can read.

    0 done, 2 the input is wrong, 75 stopped by a signal and resumable, 1 anything else, with its traceback.
    """

    @wraps(command)
    def run(*args: Any, as_json: bool, **options: Any) -> None:
        try:
            command(*args, as_json=as_json, **options)
        except LubanError as error:
            _fail(error.exit_code, str(error), as_json, error.message)
        except KeyboardInterrupt:
            _fail(75, "stopped", as_json, "stopped")
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            # Whoever read our output left; that is no error of ours. Python must not complain at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            # As Python shows an error nobody caught; importing `traceback` would make `--help` slower.
            sys.excepthook(type(error), error, error.__traceback__)
            message = f"{type(error).__name__}: {error}"
            _fail(1, message, as_json, message)

    return JSON(run)


@contextmanager
def importing() -> Iterator[None]:
    """Import what a verb needs without looking for garbage meanwhile, nor ever again among what was imported.

    torch and what is around it leave 300,000 objects that stay. Looking through them, on every so many new ones, takes
    a tenth of a second each time, and a third of a second of a start. How torch's threads will wait for one another is
    settled before it comes.
    """
    from luban.cores import settle_waiting, usage

    gc.disable()
    try:
        before = usage()
        # What every such verb imports, and takes long enough to see who else is busy.
        import luban.recipe  # noqa: F401

        settle_waiting(before)
        yield
    finally:
        gc.freeze()
        gc.enable()


def _fail(code: int, shown: str, as_json: bool, message: str) -> NoReturn:
    """Say on stderr what went wrong, on stdout as JSON if asked for, and end."""
    said = shown if code == 75 else f"error: {shown}"
    click.echo(wrapped(said, shutil.get_terminal_size().columns) if sys.stderr.isatty() else said, err=True)
    if as_json:
        print_json(
            {
                "status": "stopped" if code == 75 else "error",
                "exit_code": code,
                "error": message,
                "details": shown,
            }
        )
    sys.exit(code)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one line of JSON; a figure that is not a number becomes null, for JSON has no NaN."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    line = json.dumps(finite, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        line = json.dumps(finite)
    click.echo(line)


def told(answer: Mapping[str, Any]) -> str:
    """Return an answer as a person reads it: text on from the prompt, or each of its values.

    Example:
        >>> told({"row": 0, "label": "good", "probabilities": {"good": 0.9, "bad": 0.1}})
        'good   good 0.900, bad 0.100'
        >>> told({"tags": ["O", "B-LOC"], "entities": [{"label": "LOC", "first": 1, "end": 2}]})
        'O B-LOC   LOC[1:2]'
        >>> told({"row": 0, "labels": [], "probabilities": {"good": 0.1}})
        '-   good 0.100'
    """
    if "prompt" in answer:
        return f"{answer['prompt']}{answer['text']}\n"
    parts = []
    for name, value in answer.items():
        if name == "row":
            continue
        if isinstance(value, Mapping):
            value = ", ".join(
                f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()
            )
        elif isinstance(value, list):
            value = " ".join(_item(item) for item in value) or "-"
        parts.append(f"{value:.6g}" if isinstance(value, float) else str(value))
    return "   ".join(parts)


def _item(item: object) -> str:
    """Return one of several values: an entity as its label and the places of its tokens."""
    if isinstance(item, Mapping) and {"label", "first", "end"} <= item.keys():
        return f"{item['label']}[{item['first']}:{item['end']}]"
    return f"{item:.3f}" if isinstance(item, float) else str(item)


def told_evaluation(evaluation: Any) -> Iterator[str]:
    """Yield an evaluation as lines: each figure with its interval, on how much, and what was left out and why."""
    from luban.data.bad_rows import told_by_kind

    width = max((len(name) for name in evaluation.figures), default=0)
    for name, value in evaluation.figures.items():
        low, high = evaluation.intervals.get(name, (value, value))
        around = f"   [{low:.4f}, {high:.4f}]" if high > low else ""
        yield f"{name.replace('_', ' '):{max(20, width)}} {value:10.4f}{around}"
    counts = (
        f"{n:,} {unit.replace('_', ' ')}" for unit, n in evaluation.counts.items() if n or unit == "rows"
    )
    yield "on " + ", ".join(counts)
    yield from told_by_kind(evaluation.sections.get("bad_rows", {}))


def tell_trained(folder: str, result: Mapping[str, Any], prompt: str | None) -> None:
    """Say on stderr what a finished run came to, where it lies, and what can be done with it."""
    if not result:  # only the first of several processes has a result
        return
    from luban.console import duration, short
    from luban.evaluation.records import said_by_task

    primary = result["primary"]
    value = "not finite" if primary["value"] is None else f"{primary['value']:.4f}"
    click.echo(
        f"{primary['name']} {value} on held-out data after {result['steps']:,} steps, "
        f"{short(result['tokens'])} {said_by_task(result).unit}, "
        f"{duration(result['seconds'])}",
        err=True,
    )
    command = "luban" if shutil.which("luban") else sys.argv[0]
    command = "python -m luban" if command.endswith("__main__.py") else command
    click.echo(f"\n  report    {folder}/report.html\n  model     {folder}/model", err=True)
    row = shlex.quote(prompt) if prompt is not None else "--input FILE"
    click.echo(f"  try it    {command} predict {folder} {row}", err=True)
    click.echo(f"  measure   {command} evaluate {folder} --data FILE\n", err=True)
