"""`luban resume`: go on with a run, and be clear about what it goes on with."""

from __future__ import annotations

import time
from pathlib import Path

from luban.durable import read_json
from luban.errors import InputError
from luban.evaluation.standing import Standing, is_run, next_command, reached, standing_of
from luban.verbs.runs import safety
from luban.verbs.train import Outcome, Tools, train


def resume(folder: str | Path, *, tools: Tools) -> Outcome:
    """Go on with a run from its newest whole checkpoint; a finished one is left as it is.

    Raises:
        InputError: when there is no run, somebody holds it, it would fail again as it did, or it is damaged.
        Stopped: when a signal asked for a stop; a checkpoint was saved.
    """
    path = Path(folder)
    if not is_run(path):
        fix = "check the path; `luban runs` lists the runs below runs/"
        raise InputError("there is no run to go on with", received=str(folder), fix=fix)
    standing = standing_of(path, verify=True)
    if standing.state == "finished" and standing.result:
        tools.show.line(f"{path} is finished; there is nothing left to do")
        return Outcome(path, read_json(path / "result.json"))
    refuse(standing)
    tools.show.line(f"{path}: {told(standing)}")
    return train(resume=path, tools=tools)


def refuse(standing: Standing) -> None:
    """Raise the reason why a run cannot be gone on with as it is, if there is one.

    Raises:
        InputError: see `resume`.
    """
    came = reached(standing)
    at = "" if came.step is None else f" at step {came.step:,.0f}"
    if standing.state == "live":
        fix = "wait for it to end, or stop it: it saves a checkpoint when asked with SIGTERM"
        raise InputError(f"the run {standing.folder} is live{at}: {standing.holder} holds it", fix=fix)
    if standing.state == "broken":
        raise InputError(
            f"the run {standing.folder} is damaged: {standing.why}",
            where=safety(standing, time.time()),
            fix=standing.fix,
        )
    if standing.repeats:
        raise InputError(
            f"the run {standing.folder} failed{at}: {standing.why}. "
            "Going on would do the same steps again and end the same way",
            where=safety(standing, time.time()),
            fix=f"start anew with something changed, for instance: {next_command(standing)}",
        )


def told(standing: Standing) -> str:
    """Say what a run that is gone on with ended with, and from where it goes on."""
    ended = {"stopped": "was stopped", "failed": "failed", "died": "ended without a word"}
    why = f" ({standing.why})" if standing.why and standing.state == "failed" else ""
    return f"{ended.get(standing.state, standing.state)}{why}; safe is {safety(standing, time.time())}"
