"""The verbs on the command line. Nothing heavy is imported before a verb runs: `--help` answers at once."""

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

from luban import __version__
from luban.errors import LubanError

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
Command = Callable[..., Any]


def _verb(command: Command) -> Command:
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
        _print_json(
            {
                "status": "stopped" if code == 75 else "error",
                "exit_code": code,
                "error": message,
                "details": shown,
            }
        )
    sys.exit(code)


def _print_json(value: Mapping[str, Any]) -> None:
    """Print one line of JSON; a figure that is not a number becomes null, for JSON has no NaN."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    line = json.dumps(finite, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        line = json.dumps(finite)
    click.echo(line)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="luban")
def luban() -> None:
    """Build real language models on the machine you have.

    \b
    First steps:
      luban quickstart                          a model in three minutes, on text that comes along
      luban quickstart --text FILE_OR_FOLDER    the same on your text
      luban recipes                             what luban can train out of the box
    """


@luban.command(short_help="Train a model from a recipe, or go on with a run.")
@click.argument("recipe", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--out", metavar="DIR", help="The run's folder: new, or empty.  [default: a new one under runs/]"
)
@click.option("--resume", metavar="DIR", help="Go on with the run in DIR.")
@_verb
def train(
    recipe: str | None, overrides: tuple[str, ...], out: str | None, resume: str | None, as_json: bool
) -> None:
    """Train a model: RECIPE is a name that `luban recipes` lists, or a YAML file.

    \b
    Examples:
      luban train shakespeare-char data.source=input.txt --out runs/first
      luban train text data.source=notes/ train.minutes=10 model.width=384
      luban train --resume runs/first
    """
    from luban.console import Show
    from luban.signals import StopRequest
    from luban.verbs.train import Tools
    from luban.verbs.train import train as run

    outcome = run(recipe, *overrides, out=out, resume=resume, tools=Tools(Show(), StopRequest()))
    if outcome.result:
        _tell_trained(str(outcome.folder), outcome.result, outcome.prompt)
        if as_json:
            _print_json({**outcome.result, "run": str(outcome.folder)})


def _tell_trained(folder: str, result: Mapping[str, Any], prompt: str) -> None:
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


@luban.command(short_help="Measure a model on text.")
@click.argument("folder", metavar="MODEL_OR_RUN")
@click.option(
    "--data",
    metavar="FILE",
    multiple=True,
    help="Text to measure on; may be given several times.  [default: the run's held-out text]",
)
@click.option("--text", default="text", show_default=True, help="The column of the text in tables.")
@click.option(
    "--document",
    type=click.Choice(["auto", "file", "passage", "line"]),
    help="What a document of plain text is.",
)
@click.option("--length", type=click.IntRange(min=2), help="Context in tokens.")
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="How far the context moves; smaller gives tokens more context.",
)
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Resamples of the intervals.",
)
@_verb
def evaluate(folder: str, data: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Measure a model on text: loss, perplexity, bits per byte, each with a 95 % interval."""
    from luban.console import Show
    from luban.verbs.evaluate import evaluate as run

    evaluation = run(folder, list(data) or None, show=Show(), **options)
    for name, value in evaluation.figures.items():
        low, high = evaluation.intervals[name]
        click.echo(f"{name.replace('_', ' '):20} {value:10.4f}   [{low:.4f}, {high:.4f}]", err=as_json)
    counts = evaluation.counts
    click.echo(
        f"on {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['bytes']:,} bytes",
        err=as_json,
    )
    if as_json:
        _print_json({"status": "done", **evaluation.as_json()})


@luban.command(short_help="Continue prompts.")
@click.argument("folder", metavar="MODEL_OR_RUN")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option(
    "--input",
    "source",
    metavar="FILE",
    help="Prompts, one per line, or .jsonl with prompt or text; - is standard input.",
)
@click.option("--max-tokens", type=click.IntRange(min=1), default=200, show_default=True)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0.0),
    default=0.8,
    show_default=True,
    help="0 takes the likeliest token.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Draw from the k likeliest tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(min=0.0, max=1.0, min_open=True),
    help="Draw from the likeliest tokens that make up p.",
)
@click.option(
    "--min-p",
    type=click.FloatRange(min=0.0, max=1.0),
    help="Drop tokens less likely than p times the likeliest.",
)
@click.option(
    "--repetition-penalty", type=click.FloatRange(min=0.0, min_open=True), default=1.0, show_default=True
)
@click.option("--stop", multiple=True, help="End where this text comes; may be given several times.")
@click.option("--seed", type=int, default=0, show_default=True)
@_verb
def predict(folder: str, prompts: tuple[str, ...], source: str | None, as_json: bool, **options: Any) -> None:
    """Continue prompts, from arguments, a file or standard input. With --json, one line per prompt."""
    given: Any = sys.stdin if source == "-" or (source is None and not prompts) else source
    if given is sys.stdin and sys.stdin.isatty() and source is None:
        raise click.UsageError("give a prompt, or --input FILE")
    settings = {**options, "stop": list(options["stop"])}
    if len(prompts) == 1 and given is None and not as_json:
        _stream(folder, prompts[0], settings)
        return
    from luban.verbs.predict import predict as run

    any_answer = False
    for answer in run(folder, prompts, source=given, **settings):
        any_answer = True
        if as_json:
            _print_json(answer)
        elif "error" in answer:
            click.echo(f"row {answer['row']}: {answer['error']}", err=True)
        else:
            click.echo(answer["prompt"] + answer["text"] + "\n")
    if not any_answer:
        from luban.errors import InputError

        raise InputError("there is no prompt", fix='luban predict MODEL "a prompt", or --input FILE')


def _stream(folder: str, prompt: str, settings: Mapping[str, Any]) -> None:
    """Print one answer as it is made."""
    from luban.verbs.load import load

    click.echo(prompt, nl=False)
    for piece in load(folder).stream(prompt, **settings):
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


@luban.command(short_help="Clean, tokenise and pack data for later runs.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", metavar="DIR", required=True, help="The folder to make.")
@_verb
def prepare(recipe: str, overrides: tuple[str, ...], out: str, as_json: bool) -> None:
    """Clean, tokenise and pack a recipe's data into DIR; runs share it with data.source=DIR."""
    from luban.console import Show, short
    from luban.verbs.prepare import prepare as run

    report = run(recipe, *overrides, out=out, show=Show())
    split = report["split"]
    for name in ("train", "validation"):
        part = split[name]
        click.echo(f"{name:12}{short(part['documents'])} documents, {short(part['tokens'])} tokens", err=True)
    bad = report["bad_rows"]["total"]
    click.echo(f"{'bad rows':12}{bad}{'; see ' + out + '/report.json' if bad else ''}", err=True)
    if as_json:
        _print_json({"status": "done", "folder": out, "split": split, "bad_rows": report["bad_rows"]})


@luban.command(short_help="List what luban can train out of the box.")
@_verb
def recipes(as_json: bool) -> None:
    """List the recipes that come with luban: what each makes, on what data, in what time."""
    from luban.recipe_reader import shipped

    found = shipped()
    if as_json:
        _print_json({"recipes": {name: about.model_dump() for name, about in found.items()}})
        return
    for name, about in found.items():
        click.echo(click.style(name, bold=True))
        click.echo(f"  makes  {about.makes}\n  from   {about.data}\n  in     {about.time}\n")


@luban.command(short_help="Make a model from raw text in minutes.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.0, min_open=True),
    default=3.0,
    show_default=True,
    help="How long to train.",
)
@click.option("--text", metavar="FILE_OR_FOLDER", help="Your own text instead of the one that comes along.")
@click.option(
    "--language",
    type=click.Choice(["en", "zh"]),
    default="en",
    show_default=True,
    help="The text that comes along; zh takes single characters as tokens.",
)
@click.option("--out", metavar="DIR", help="The run's folder.  [default: a new one under runs/]")
@_verb
def quickstart(minutes: float, text: str | None, language: str, out: str | None, as_json: bool) -> None:
    """Make a language model from raw text in minutes: clean, tokenise, train, evaluate, write."""
    from luban.console import Show
    from luban.verbs.quickstart import quickstart as run

    outcome = run(minutes=minutes, text=text, language=language, out=out, show=Show())
    for sample in outcome.samples:
        click.echo(
            f"\n--- {sample['prompt'].strip()!r} continued:\n{sample['prompt']}{sample['text']}", err=True
        )
    click.echo("", err=True)
    _tell_trained(str(outcome.folder), outcome.result, outcome.prompt)
    if as_json:
        _print_json({**outcome.result, "run": str(outcome.folder)})


@luban.command(short_help="Write a run's report again.")
@click.argument("run", metavar="RUN")
@_verb
def report(run: str, as_json: bool) -> None:
    """Write the run's report.html again, for instance while it trains."""
    from pathlib import Path

    from luban.errors import InputError
    from luban.evaluation.report import write_report
    from luban.run import run_of

    if run_of(Path(run)) is None:
        raise InputError("there is no run", received=run)
    path = write_report(Path(run))
    click.echo(str(path), err=as_json)
    if as_json:
        _print_json({"status": "done", "report": str(path)})


def main() -> None:
    """Run the command line; usage errors end with 2, and with `--json` they too end in a line of JSON."""
    options = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    try:
        code = luban(prog_name="luban", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
        if "--json" in options:
            _print_json({"status": "error", "exit_code": code, "error": error.format_message()})
    except click.Abort:
        code = 75
    sys.exit(code)
