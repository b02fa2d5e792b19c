"""`luban plan` on the command line: what will happen, on one screen."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import click

from luban.cli_answers import print_json, verb

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
    """
    from luban.console import Show
    from luban.verbs.plan import plan as find_out

    found = find_out(recipe, *overrides, out=out, show=Show())
    if as_json:
        print_json({"status": "done", **found})
        return
    width = min(100, shutil.get_terminal_size().columns)
    for line in lines(found, width):
        click.echo(line)


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
    from luban.console import duration, short

    plan, data, recipe = found["plan"], found["data"], found["recipe"]
    predicted, rehearsal, machine = plan["predicted"], plan["rehearsal"], found["machine"]
    train, held_out = data["train"], data["validation"]
    yield (
        "data",
        f"{short(train['characters'])} characters are {short(train['tokens'])} training tokens, read "
        f"{data['epochs']:.3g} times; {short(held_out['tokens'])} held out",
    )
    model = recipe.get("model", {})
    shape = f"{model.get('layers')} layers of width {model.get('width')}, {model.get('heads')} heads, "
    yield "model", f"{shape}{short(plan['parameters'])} parameters"
    for why in dict.fromkeys(choice["why"] for choice in plan["chosen"].values()):
        keys = ", ".join(f"{k}={c['value']:g}" for k, c in plan["chosen"].items() if c["why"] == why)
        yield "chosen", f"{keys}: {why}"
    rate = rehearsal["step_flops"] / rehearsal["step_seconds"]
    yield (
        "step",
        f"{rehearsal['step_tokens']:,} tokens, {short(rehearsal['step_flops'])}FLOP, "
        f"{rehearsal['step_seconds']:.3g} s: {rate / machine['peak_flops']:.0%} of the "
        f"{short(machine['peak_flops'])}FLOP/s measured",
    )
    yield (
        "run",
        f"{predicted['steps']:,} steps, {short(predicted['tokens'])} tokens, {short(predicted['flops'])}FLOP; "
        f"compile {'on' if plan['compile'] else 'off'} ({plan['compile_why']})",
    )
    evaluating = predicted["seconds"] - predicted["training_seconds"]
    yield (
        "time",
        f"{duration(data['preparation_seconds'] + predicted['seconds'])}: {duration(data['preparation_seconds'])} to "
        f"prepare, {duration(predicted['training_seconds'])} to train, {duration(evaluating)} to evaluate and write",
    )
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


def _view(view: str) -> str:
    shown = view.replace("\n", "⏎")
    return shown if len(shown) <= _VIEW_CHARACTERS else shown[:_VIEW_CHARACTERS] + " ..."
