"""The verbs on the command line. Nothing heavy is imported before a verb runs: `--help` answers at once."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from typing import Any

import click

from luban import __version__, cli_plan, cli_runs, cli_tasks
from luban.cli_answers import importing, print_json, tell_trained, told, told_evaluation, verb
from luban.wrapping import wrapped

_UNITS = ("documents", "tokens", "rows")
_ORDER = "quickstart recipes plan train resume runs compare evaluate predict export report rates prepare new doctor"


class _Verbs(click.Group):
    """The verbs in the order in which they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(self.commands, key=_ORDER.split().index)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="luban")
def luban() -> None:
    """Build real models on the machine you have: text, pictures, tables, translation.

    \b
    First steps:
      luban quickstart              a model in three minutes from built-in text
      luban quickstart --text FILE  the same from your own text, file or folder
      luban recipes                 what luban can train out of the box
    """


@luban.command(short_help="Train a model from a recipe, or go on with a run.")
@click.argument("recipe", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--out", metavar="DIR", help="The run's folder: new, or empty.  [default: a new one under runs/]"
)
@click.option("--resume", metavar="DIR", help="Go on with the run in DIR.")
@verb
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
    with importing():
        from luban.console import Show
        from luban.signals import StopRequest
        from luban.verbs.train import Tools
        from luban.verbs.train import train as run

    outcome = run(recipe, *overrides, out=out, resume=resume, tools=Tools(Show(), StopRequest()))
    if outcome.result:
        tell_trained(str(outcome.folder), outcome.result, outcome.prompt)
        if as_json:
            print_json({**outcome.result, "run": str(outcome.folder)})


@luban.command(short_help="Measure a model on data.")
@click.argument("folder", metavar="MODEL_OR_RUN")
@click.option(
    "--data",
    metavar="FILE",
    multiple=True,
    help="Data to measure on; may be given several times.  [default: the run's held-out data]",
)
@click.option("--text", help="Of a language model: the column of the text in tables.  [default: text]")
@click.option(
    "--document",
    type=click.Choice(["auto", "file", "passage", "line"]),
    help="Of a language model: what a document of plain text is.",
)
@click.option("--length", type=click.IntRange(min=2), help="Of a language model: context in tokens.")
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Of a language model: how far the context moves; smaller gives tokens more context.",
)
@click.option(
    "--bootstrap",
    type=click.IntRange(min=0),
    help="Resamples of the intervals.  [default: what the run's recipe says, else 1000]",
)
@verb
def evaluate(folder: str, data: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Measure a model on data: the figures of its task, each with a 95 % interval.

    \b
    Examples:
      luban evaluate runs/notes
      luban evaluate runs/notes --data other.txt
    """
    with importing():
        from luban.console import Show
        from luban.verbs.evaluate import evaluate as run

    evaluation = run(folder, list(data) or None, show=Show(), **options)
    for line in told_evaluation(evaluation):
        click.echo(line, err=as_json)
    if as_json:
        print_json({"status": "done", **evaluation.as_json()})


@luban.command(short_help="Answer rows: continue prompts, tell labels, translate.")
@click.argument("folder", metavar="MODEL_OR_RUN")
@click.argument("rows", nargs=-1, metavar="[ROW]...")
@click.option(
    "--input",
    "source",
    metavar="FILE",
    help="Rows in a file or folder of the task's formats, or one per line; - is standard input.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    help="Of a language model: tokens to write at most.  [default: 200]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0.0),
    help="Of a language model: how freely tokens are drawn; 0 takes the likeliest.  [default: 0.8]",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), help="Of a language model: draw from the k likeliest tokens."
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0.0, max=1.0, min_open=True),
    help="Of a language model: draw from the likeliest tokens that make up p.",
)
@click.option(
    "--min-p",
    type=click.FloatRange(min=0.0, max=1.0),
    help="Of a language model: drop tokens less likely than p times the likeliest.",
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0.0, min_open=True),
    help="Of a language model: above 1, tokens that came before become less likely.",
)
@click.option("--stop", multiple=True, help="Of a language model: end where this text comes.")
@click.option("--seed", type=int, help="Of a language model: another seed is another draw.  [default: 0]")
@click.option("--beam", type=click.IntRange(min=1), help="Of translation: hypotheses kept.")
@verb
def predict(folder: str, rows: tuple[str, ...], source: str | None, as_json: bool, **options: Any) -> None:
    """Answer rows, from arguments, a file, a folder or standard input. With --json, one line per row.

    A row is what the model's task reads: a prompt or a text, an object with the columns of a table, the path of a
    picture.

    \b
    Examples:
      luban predict runs/notes "Once upon a time"
      luban predict runs/customers '{"age": 39, "city": "Rome"}'
      luban predict runs/reviews --input new.csv
    """
    # Its bytes: what the terminal's encoding cannot read is one bad row, not the end.
    given: Any = sys.stdin.buffer if source == "-" or (source is None and not rows) else source
    if given is not source and sys.stdin.isatty() and source is None:
        raise click.UsageError("give a row, or --input FILE")
    settings = {name: value for name, value in options.items() if value is not None and value != ()}
    if len(rows) == 1 and given is None and not as_json and _stream(folder, rows[0], settings):
        return
    with importing():
        from luban.verbs.predict import predict as run

    any_answer = False
    for answer in run(folder, lines=rows, source=given, **settings):
        any_answer = True
        if as_json:
            print_json(answer)
        elif "error" in answer:
            click.echo(f"row {answer['row']}: {answer['error']}", err=True)
        else:
            click.echo(told(answer))
    if not any_answer:
        from luban.errors import InputError

        raise InputError("there is no row", fix='luban predict MODEL "a text", or --input FILE')


def _stream(folder: str, prompt: str, settings: Mapping[str, Any]) -> bool:
    """Print a language model's answer as it is made; False for a model that answers at once."""
    with importing():
        from luban.verbs.load import load

    model = load(folder)
    if not hasattr(model, "stream"):
        return False
    pieces = model.stream(prompt, **settings)
    click.echo(prompt, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()
    return True


@luban.command(short_help="Clean, tokenise and pack data for later runs.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", metavar="DIR", required=True, help="The folder to make.")
@verb
def prepare(recipe: str, overrides: tuple[str, ...], out: str, as_json: bool) -> None:
    """Clean, tokenise and pack a recipe's data into DIR, once for several runs.

    \b
    Examples:
      luban prepare text data.source=notes/ --out prepared
      luban train text data.source=prepared --out runs/notes

    A task on rows is given it as data.train=DIR.
    """
    from luban.console import Show, short
    from luban.verbs.prepare import prepare as run

    report = run(recipe, *overrides, out=out, show=Show())
    split = report["split"]
    for name in ("train", "validation", "test"):
        counts = {unit: count for unit, count in split.get(name, {}).items() if unit in _UNITS}
        if any(counts.values()):
            click.echo(f"{name:12}" + ", ".join(f"{short(n)} {unit}" for unit, n in counts.items()), err=True)
    bad = report["bad_rows"]["total"]
    click.echo(f"{'bad rows':12}{bad}{'; see ' + out + '/report.json' if bad else ''}", err=True)
    if as_json:
        print_json({"status": "done", "folder": out, "split": split, "bad_rows": report["bad_rows"]})


@luban.command(short_help="List what luban can train out of the box.")
@verb
def recipes(as_json: bool) -> None:
    """List the recipes that come with luban: what each makes, on what data, in what time."""
    from luban.recipe_reader import shipped

    found = shipped()
    if as_json:
        print_json({"recipes": {name: about.model_dump() for name, about in found.items()}})
        return
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for name, about in found.items():
        click.echo(click.style(name, bold=True))
        lines = f"  makes: {about.makes}\n  from:  {about.data}\n  in:    {about.time}\n"
        click.echo(wrapped(lines, columns) + "\n")


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
@verb
def quickstart(minutes: float, text: str | None, language: str, out: str | None, as_json: bool) -> None:
    """Make a language model from raw text in minutes: clean, tokenise, train, evaluate, write.

    \b
    Examples:
      luban quickstart
      luban quickstart --text notes/ --minutes 10
    """
    with importing():
        from luban.console import Show
        from luban.verbs.quickstart import quickstart as run

    outcome = run(minutes=minutes, text=text, language=language, out=out, show=Show())
    for sample in outcome.samples:
        click.echo(
            f"\n--- {sample['prompt'].strip()!r} continued:\n{sample['prompt']}{sample['text']}", err=True
        )
    click.echo("", err=True)
    tell_trained(str(outcome.folder), outcome.result, outcome.prompt)
    if as_json:
        print_json({**outcome.result, "run": str(outcome.folder)})


for command in (
    cli_plan.plan,
    cli_plan.rates,
    cli_tasks.new,
    cli_tasks.export,
    cli_runs.runs,
    cli_runs.resume,
    cli_runs.compare,
    cli_runs.report,
    cli_runs.doctor,
):
    luban.add_command(command)


def main() -> None:
    """Run the command line; usage errors end with 2, and with `--json` they too end in a line of JSON."""
    options = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
    try:
        code = luban(prog_name="luban", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
        if "--json" in options:
            print_json({"status": "error", "exit_code": code, "error": error.format_message()})
    except click.Abort:
        code = 75
    sys.exit(code)
