"""`luban quickstart`: from raw text to a model, a report and a folder other tools load, in about three minutes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luban.console import Show
from luban.errors import InputError
from luban.signals import StopRequest
from luban.verbs.train import Tools, train


@dataclass(frozen=True)
class Quickstart:
    """What the quickstart made."""

    folder: Path
    result: Mapping[str, Any]
    samples: Sequence[Mapping[str, str]]
    prompt: str


def quickstart(
    *,
    minutes: float = 3.0,
    text: str | None = None,
    language: str = "en",
    out: str | None = None,
    show: Show | None = None,
) -> Quickstart:
    """Train a small language model.

    Arguments:
        minutes: how long to train.
        text: a file or folder; the text that comes with the package when left out.
        language: `en` (plays of Shakespeare) or `zh` (Tang poems).
        out: the run's folder.
    """
    if text is not None and not Path(text).exists():
        raise InputError(
            "no such file or folder", received=text, fix="give the path of a text file or of a folder of them"
        )
    overrides = [f"train.minutes={minutes}"]
    if text is not None:
        # A JSON string is a YAML string, whatever characters the path has.
        overrides += [f"data.source={json.dumps(str(text))}", "evaluate.prompts=[]"]
    tools = Tools(show or Show(quiet=True), StopRequest())
    outcome = train(f"quickstart-{language}", *overrides, out=out, tools=tools)
    return Quickstart(outcome.folder, outcome.result, outcome.samples(), outcome.prompt or "Once")
