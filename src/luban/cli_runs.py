"""The verbs about runs that exist: runs, resume, compare, report, doctor."""

from __future__ import annotations

import shutil
import sys

import click

from luban.cli_answers import importing, print_json, tell_trained, verb


@click.command(short_help="List runs: live, finished, stopped, failed.")
@click.argument("folders", nargs=-1, metavar="[FOLDER]...")
@verb
def runs(folders: tuple[str, ...], as_json: bool) -> None:
    """List the runs below runs/, or below the folders given; a single RUN is shown on one screen.

    \b
    live      some process holds it
    finished  trained and evaluated
    stopped   asked to stop; can go on
    failed    ended with an error
    died      no end on record: killed
    broken    its files are damaged
    """
    import time
    from pathlib import Path

    from luban.evaluation.standing import as_json as told
    from luban.evaluation.standing import is_run
    from luban.verbs.runs import DEFAULT, overview, screen
    from luban.verbs.runs import runs as find

    found = find(folders)
    if as_json:
        now = time.time()
        print_json({"status": "done", "runs": [told(standing, now) for standing in found]})
        return
    columns = shutil.get_terminal_size().columns
    if len(found) == 1 and len(folders) == 1 and is_run(Path(folders[0])):
        lines = screen(found[0], width=columns)
    elif found:
        lines = overview(found, width=columns if sys.stdout.isatty() else None)
    else:
        where = " ".join(folders) or f"{DEFAULT}/"
        lines = [f"no runs in {where}; luban quickstart makes one"]
    click.echo("\n".join(lines))


@click.command(short_help="Go on with a run from its newest whole checkpoint.")
@click.argument("run", metavar="RUN")
@verb
def resume(run: str, as_json: bool) -> None:
    """Go on with a run that was stopped, killed, or failed; a finished one is left as it is.

    A run whose budget is steps or tokens ends with the same bytes as if nothing had happened.

    \b
    Example:
      luban resume runs/notes
    """
    with importing():
        from luban.console import Show
        from luban.signals import StopRequest
        from luban.verbs.resume import resume as go_on
        from luban.verbs.train import Tools

    tools = Tools(Show(), StopRequest())
    outcome = go_on(run, tools=tools)
    tell_trained(str(outcome.folder), outcome.result, outcome.prompt)
    if as_json and outcome.result:
        print_json({**outcome.result, "run": str(outcome.folder)})


@click.command(short_help="Write a run's report again.")
@click.argument("run", metavar="RUN")
@click.option("--out", metavar="FILE", help="Where to.  [default: RUN/report.html]")
@verb
def report(run: str, out: str | None, as_json: bool) -> None:
    """Write a run's report: also of one that trains, was stopped, failed, or lies where nothing can be written."""
    from pathlib import Path

    from luban.errors import InputError
    from luban.evaluation.report import write_report
    from luban.evaluation.standing import is_run

    if not is_run(Path(run)):
        raise InputError("there is no run", received=run, fix="luban runs lists the runs below runs/")
    path = write_report(Path(run), out=Path(out) if out else None, verify=True)
    click.echo(str(path), err=as_json)
    if as_json:
        print_json({"status": "done", "report": str(path)})


@click.command(short_help="Say what differs between runs.")
@click.argument("folders", nargs=-1, required=True, metavar="RUN RUN [RUN]...")
@click.option("--html", metavar="FILE", help="Write a page with the curves over each other.")
@verb
def compare(folders: tuple[str, ...], html: str | None, as_json: bool) -> None:
    """Compare runs with the first: settings, data, figures, speed.

    Two runs measured on the same held-out rows or text get a paired 95 % interval of their difference.

    \b
    Examples:
      luban compare runs/small runs/large
      luban compare runs/small runs/large --html compared.html
    """
    from luban.verbs.compare import compare as find
    from luban.verbs.compare import told

    found = find(folders, html=html)
    if as_json:
        print_json({"status": "done", **found.as_json(), "html": html})
        return
    click.echo("\n".join(told(found)))
    if html:
        click.echo(f"\n{html}", err=True)


@click.command(short_help="Check machine, installation and disk; say what each lack costs.")
@verb
def doctor(as_json: bool) -> None:
    """Look at the machine, the installation, the extras and the disk of this folder; nothing is left behind.

    Ends with 0 when everything that is needed is there, with 1 when something is not.
    """
    from luban.verbs import doctor as found

    findings = found.doctor()
    needed = found.broken(findings)
    if as_json:
        print_json(found.as_json(findings))
    else:
        click.echo("\n".join(found.lines(findings, shutil.get_terminal_size().columns)))
    if needed:
        sys.exit(1)
