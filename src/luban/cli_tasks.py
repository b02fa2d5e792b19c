"""The verbs on tasks and finished models: a new task's file, and a model as a graph for other tools."""

from __future__ import annotations

import click

from luban.cli_answers import print_json, verb


@click.command(short_help="Write a task of your own: one file, with its test.")
@click.argument("kind", metavar="task", type=click.Choice(["task"]))
@click.argument("name")
@click.option("--out", metavar="DIR", default=".", show_default=True, help="Where the package is written.")
@verb
def new(kind: str, name: str, out: str, as_json: bool) -> None:
    """Write a package with one task in one file, its test, and the entry point by which luban finds it.

    \b
    Example:
      luban new task star-rating
    """
    from luban.verbs.new_task import new_task as write

    del kind  # a task is all that can be new so far
    made = write(name, out)
    for path in made.files:
        click.echo(f"  {path}", err=True)
    click.echo(f"\n  install   pip install -e {made.folder}\n  test      pytest {made.folder}", err=True)
    click.echo(f"  train     luban train {made.folder}/example.yaml", err=True)
    if as_json:
        print_json(
            {"status": "done", "folder": str(made.folder), "files": [str(path) for path in made.files]}
        )


@click.command(short_help="Write a model as an ONNX graph, with its parity.")
@click.argument("folder", metavar="MODEL_OR_RUN")
@click.option("--out", metavar="DIR", required=True, help="The folder to make.")
@verb
def export(folder: str, out: str, as_json: bool) -> None:
    """Write a model as a folder with model.onnx; `luban predict` and `luban evaluate` work on it too
    (of a language model `luban predict` alone).

    The graph is run on rows beside the model, and the largest difference is printed and kept.

    \b
    Examples:
      luban export runs/reviews --out exported
      luban predict exported --input new.csv
    """
    from luban.console import Show
    from luban.verbs.export import export as write

    made = write(folder, out, show=Show())
    click.echo(
        f"largest difference {made['parity']['max_abs']:.2g} on {made['parity']['rows']} rows; "
        f"{made['bytes']:,} bytes in {out}",
        err=True,
    )
    if as_json:
        print_json({"status": "done", **made})
