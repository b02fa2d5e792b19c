"""Runs `luban train` in this process, says what each part took until the first step was done, and ends there.

    python benchmarks/start_parts.py RECIPE KEY=VALUE ... --out DIR

start_training.py calls it; the parts are those of `luban.verbs.beginning`. Prints one JSON object, in
seconds. What is not a part of its own (recipe, plan, files) is `rest`.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

BEGAN = float(os.environ.get("BEGAN", time.monotonic()))

from luban.cli import main as luban  # noqa: E402

READ = time.monotonic()

from luban.cli_answers import importing  # noqa: E402

with importing():
    from luban.training.checkpoints import Checkpoints
    from luban.training.loop import Loop
    from luban.verbs import beginning, train  # noqa: F401

IMPORTED = time.monotonic()
NAMES = {
    "open_data": "data", "settle": "matrix rate, shape", "measure_machine": "probe of the machine",
    "decide": "rehearsal", "_build": "model",
}  # fmt: skip
took: dict[str, float] = {"interpreter, command line": READ - BEGAN, "imports": IMPORTED - READ}


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        before = time.monotonic()
        try:
            return function(*arguments, **named)
        finally:
            took[name] = took.get(name, 0.0) + time.monotonic() - before

    return call


def within_rehearsal(build: Callable[..., Any]) -> Callable[..., Any]:
    """Take apart what the rehearsal does with a learner: these are parts of `rehearsal`, not beside it."""

    @functools.wraps(build)
    def call(*arguments: Any, **named: Any) -> Any:
        learner = build(*arguments, **named)
        for attribute in ("rehearse_quick", "samples", "largest_evaluation"):
            setattr(learner, attribute, timed(f"rehearsal: {attribute}", getattr(learner, attribute)))
        return learner

    return call


def first_step(function: Callable[..., Any]) -> Callable[..., Any]:
    """End the process when the first step of the run itself, not of its rehearsal, is done."""

    @functools.wraps(function)
    def call(self: Loop, *arguments: Any) -> Any:
        before = time.monotonic()
        done = function(self, *arguments)
        if "rehearsal" not in took:
            took["rehearsal: steps"] = took.get("rehearsal: steps", 0.0) + time.monotonic() - before
        else:
            took["first step"] = time.monotonic() - before
            total = time.monotonic() - BEGAN
            took["rest"] = total - sum(seconds for name, seconds in took.items() if ":" not in name)
            print(json.dumps({"total": total, "parts": took}), flush=True)
            os._exit(0)
        return done

    return call


for attribute, part in NAMES.items():
    setattr(beginning, attribute, timed(part, getattr(beginning, attribute)))
beginning._build = within_rehearsal(beginning._build)
Checkpoints.save = timed("rehearsal: checkpoints", Checkpoints.save)  # type: ignore[method-assign]
Loop._step = first_step(Loop._step)  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.argv = ["luban", "train", *sys.argv[1:]]
    luban()
