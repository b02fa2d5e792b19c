"""`luban plan` on the command line: what will happen, on one screen."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import click

from luban.cli_answers import importing, print_json, verb

_VIEW_CHARACTERS = 210


@click.command(short_help="Say what a recipe will do and cost, before it runs.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", metavar="DIR", help="Where the run would go: its disk is tried.  [default: runs/]")
@verb
def plan(recipe: str, overrides: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Say what a recipe will do: size, time, memory, disk, what the model sees; nothing is kept.

    The data is prepared in a folder that is removed again, and a few real steps, an evaluation and a checkpoint are
    made. For data that takes long to prepare: `luban prepare` first, then plan and train on that.

    \b
    Examples:
      luban plan text data.source=notes/ train.minutes=30
      luban plan notes.yaml
    """
    with importing():
        from luban.console import Show
        from luban.verbs.plan import plan as find_out

    found = find_out(recipe, *overrides, out=out, show=Show())
    if as_json:
        print_json({"status": "done", **found})
        return
    width = min(100, shutil.get_terminal_size().columns)
    for line in lines(found, width):
        click.echo(line)


@click.command(short_help="Find learning rates that a recipe can be trained with.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", metavar="DIR", help="Where the run would go: its disk is tried.  [default: runs/]")
@click.option("--steps", default=100, show_default=True, help="How many rates are tried, from 1e-6 to 1.")
@verb
def rates(recipe: str, overrides: tuple[str, ...], out: str | None, steps: int, as_json: bool) -> None:
    """Find learning rates that a recipe can be trained with: the range test of Smith (2017); nothing is kept.

    The rate rises from step to step on the run's own data and optimizer. Suggested is where the loss falls fastest, or
    a tenth of where it diverges, whichever is lower.

    \b
    Example:
      luban rates text data.source=notes/
    """
    with importing():
        from luban.console import Show
        from luban.verbs.rates import rates as find_out

    found = find_out(recipe, *overrides, out=out, steps=steps, show=Show())
    if as_json:
        print_json({"status": "done", **found})
        return
    for row in found["rows"][:: max(1, len(found["rows"]) // 20)]:
        loss = "not finite" if row["loss"] is None else f"{row['loss']:.4g}"
        click.echo(f"  {row['rate']:8.1e}  loss {loss}")
    if found["suggestion"] is None:
        click.echo(f"no suggestion: {found['why']}")
    else:
        click.echo(f"train.learning_rate={found['suggestion']:.2g}  ({found['why']}; now {found['now']:.2g})")


def lines(found: Mapping[str, Any], width: int) -> Iterator[str]:
    """Lay a plan out for a terminal of that many columns."""
    for name, text in (
        *_facts(found),
        *((f"sees {number}", _view(view)) for number, view in enumerate(found["views"], 1)),
    ):
        yield from textwrap.wrap(
            text,
            width,
            initial_indent=f"  {name:10}",
            subsequent_indent=" " * 12,
            break_on_hyphens=False,
        )


def _facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from luban.console import duration, short, switches

    plan, data, recipe = found["plan"], found["data"], found["recipe"]
    unit = plan["unit"]
    predicted, rehearsal, machine = plan["predicted"], plan["rehearsal"], found["machine"]
    yield "data", _data(data, unit)
    yield "model", f"{_shape(recipe.get('model', {}))}{short(plan['parameters'])} parameters"
    for why in dict.fromkeys(choice["why"] for choice in plan["chosen"].values()):
        keys = ", ".join(f"{k}={c['value']:g}" for k, c in plan["chosen"].items() if c["why"] == why)
        yield "chosen", f"{keys}: {why}"
    rate = rehearsal["step_flops"] / rehearsal["step_seconds"]
    yield (
        "step",
        f"{rehearsal['step_tokens']:,} {unit}, {short(rehearsal['step_flops'])}FLOP, "
        f"{rehearsal['step_seconds']:.3g} s: {rate / machine['peak_flops']:.0%} of the "
        f"{short(machine['peak_flops'])}FLOP/s measured",
    )
    yield (
        "run",
        f"{predicted['steps']:,} steps, {short(predicted['tokens'])} {unit}, {short(predicted['flops'])}FLOP; "
        f"{switches(plan)}",
    )
    evaluating = predicted["seconds"] - predicted["training_seconds"]
    yield (
        "time",
        f"{duration(data['preparation_seconds'] + predicted['seconds'])}: {duration(data['preparation_seconds'])} to "
        f"prepare, {duration(predicted['training_seconds'])} to train, {duration(evaluating)} to evaluate and write",
    )
    if folds := found.get("folds"):
        whole = data["preparation_seconds"] + predicted["seconds"]
        yield "folds", f"all this is one of {folds} folds; together about {duration(folds * whole)}"
    available = found["available"]
    yield (
        "memory",
        f"{short(predicted['peak_bytes'])}B at most; {short(available['memory_bytes'])}B are available",
    )
    yield (
        "disk",
        f"{short(predicted['disk_bytes'])}B, {short(rehearsal['checkpoint_bytes'])}B of them a checkpoint (one "
        f"took {rehearsal['checkpoint_seconds']:.2g} s to write and verify); "
        f"{short(available['disk_bytes'])}B are free",
    )
    for name, value in predicted["figures"].items():
        yield "expected", f"{value:.3f} {name.replace('_', ' ')} on held-out data"


def _data(data: Mapping[str, Any], unit: str) -> str:
    """Say how much there is, in the task's own unit where the data counts that, else in the first it does."""
    from luban.console import short

    train = data["train"]
    unit = unit if unit in train else next(iter(train))
    held_out = [
        f"{short(data[split][unit])} for {split}" for split in ("validation", "test") if data.get(split)
    ]
    text = f"{short(train['characters'])} characters are " if "characters" in train else ""
    return (
        f"{text}{short(train[unit])} training {unit}, read {data['epochs']:.3g} times; {', '.join(held_out)}"
    )


def _shape(model: Mapping[str, Any]) -> str:
    """Say the shape in the words of the recipe's model section."""
    kind = f"{model['network']}, " if model.get("network") else ""
    parts = [f"{name} {model[name]}" for name in ("layers", "width", "heads") if model.get(name)]
    return f"{kind}{', '.join(parts)}, " if parts else kind


def _view(view: str) -> str:
    shown = view.replace("\n", "⏎")
    return shown if len(shown) <= _VIEW_CHARACTERS else shown[:_VIEW_CHARACTERS] + " ..."
