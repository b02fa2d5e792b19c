"""What every verb of the command line has: `--json`, exit codes, and errors a person can read."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NoReturn

import click

from luban.errors import LubanError

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


def _fail(code: int, shown: str, as_json: bool, message: str) -> NoReturn:
    """Say on stderr what went wrong, on stdout as JSON if asked for, and end."""
    click.echo(shown if code == 75 else f"error: {shown}", err=True)
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


def tell_trained(folder: str, result: Mapping[str, Any], prompt: str) -> None:
    """Say on stderr what a finished run came to, where it lies, and what can be done with it."""
    if not result:  # only the first of several processes has a result
        return
    from luban.console import duration, short

    primary = result["primary"]
    value = "not finite" if primary["value"] is None else f"{primary['value']:.4f}"
    click.echo(
        f"{primary['name']} {value} on held-out data after {result['steps']:,} steps, "
        f"{short(result['tokens'])} tokens, {duration(result['seconds'])}",
        err=True,
    )
    command = "luban" if shutil.which("luban") else sys.argv[0]
    command = "python -m luban" if command.endswith("__main__.py") else command
    click.echo(f"\n  report    {folder}/report.html\n  model     {folder}/model", err=True)
    click.echo(f"  try it    {command} predict {folder} {shlex.quote(prompt)}", err=True)
    click.echo(f"  measure   {command} evaluate {folder} --data FILE\n", err=True)
