"""The report of a run: one self-contained HTML page, in English and Chinese, made of the run folder's files.

A run that is still going, was stopped or failed gets a report too, which says so. The same folder gives the
same bytes.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import yaml

from luban import catalogue
from luban.catalogue import Both, both
from luban.durable import DISK, FileSystem, write_text
from luban.errors import InputError
from luban.evaluation import formats, page
from luban.evaluation.charts import Scale, interval_bar
from luban.evaluation.curves import Curves, axis_name
from luban.evaluation.data_section import data_section, named
from luban.evaluation.figures import cost_rows, headline, machine_rows, median, parameters, total
from luban.evaluation.forecast import chosen_rows, forecast_rows
from luban.evaluation.metric_names import metric_meaning, metric_name, metric_unit, named_first
from luban.evaluation.records import (
    EVALUATION,
    MAX_EVENTS,
    JsonObject,
    RunRecords,
    mapping,
    objects,
    read_run,
    real,
    words,
)
from luban.evaluation.standing import Standing, next_command, standing_of
from luban.evaluation.task_sections import task_sections

REPORT = "report.html"
MAX_SAMPLES_SHOWN = 8
MAX_EVALUATIONS_SHOWN = 30
MAX_FIGURES_SHOWN = 8
MAX_PASSAGES = 5


def write_report(run: Path, fs: FileSystem = DISK, *, out: Path | None = None, verify: bool = False) -> Path:
    """Write `run/report.html` and return its path.

    Arguments:
        run: a run folder; any of its files may be absent.
        fs: the file system that durable writes go through.
        out: another file to write, for a run that can only be read.
        verify: read the newest checkpoint of a run that did not finish and compare it with its digests.

    Raises:
        InputError: when `run` is not a folder.
        StorageError: when the page cannot be written; an older one is intact then.
    """
    if not run.is_dir():
        raise InputError("there is no run to report on", received=str(run), fix="give the folder of a run")
    target = run / REPORT if out is None else out
    if not target.parent.is_dir():
        raise InputError("the folder for the report is not there", received=str(target))
    page_text = render_report(read_run(run), folder_name(run), standing_of(run, verify=verify))
    write_text(target, page_text, fs)
    return target


def folder_name(run: Path) -> str:
    """Return the path of `run` as commands write it: from the current folder if it lies there, else its name.

    A report is made to be passed on, so it does not say where on the machine the run lies.
    """
    whole = run.resolve()
    here = Path.cwd().resolve()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) and whole != here else whole.name or "."


def render_report(records: RunRecords, folder: str, standing: Standing) -> str:
    """Return the page. `folder` is what the commands of the page call the run folder."""
    curves = Curves(records)
    status, (unit, continues_text) = standing.state, records.said
    context = {
        "heading": _heading(records),
        "folder": page.plain(folder),
        "status": status,
        "notices": _notices(records, status),
        "ending": _ending(standing, folder),
        "figures": headline(records),
        "curves": curves,
        "read_out": curves.read_out() if curves else None,
        "medians": {
            "tokens_per_second": formats.count(median(records.timings["tokens_per_second"])),
            "peak_share": formats.percent(median(records.timings["peak_share"])),
        },
        "evaluations": _evaluations(records),
        "samples": _samples(records),
        "evaluation": _evaluation(records.evaluation),
        "shown": task_sections(records),
        "continues_text": continues_text,
        "tokens_name": axis_name("tokens", unit),
        "speed_unit": page.translate(f"unit.{unit}_per_second"),
        "primary_name": metric_name(records.primary),
        "data": data_section(records.data),
        "machine": machine_rows(records),
        "cost": cost_rows(records),
        "forecast": forecast_rows(records),
        "chosen": chosen_rows(records),
        "commands": _commands(folder, standing),
        "recipe": _recipe(records.recipe),
        "events": _events(records),
    }
    return page.render("report.html", ("page.css", "report.css"), ("page.js", "report.js"), **context)


def _data_name(records: RunRecords) -> Both:
    files = [words(file.get("name"), 120) for file in objects(records.data.get("files"))]
    settings = mapping(records.recipe.get("data"))
    source = settings.get("source", settings.get("train"))
    sources = (
        [words(s, 300) for s in source if isinstance(s, str)] if isinstance(source, list) else [words(source)]
    )
    found = [
        PurePath(page.plain(name)).name.removeprefix("builtin:")
        for name in (sources if any(sources) else files)
        if name
    ]
    if not any(found):
        return both("report.data_unknown")
    if len(found) == 1:
        return formats.same(found[0])
    return both("report.files", first=found[0], more=len(found) - 1)


def _heading(records: RunRecords) -> dict[str, Any]:
    name = records.task
    what = both(f"task.{name}" if catalogue.has(f"task.{name}") else "task.unknown")
    size, data = parameters(records), _data_name(records)
    key = "report.title" if size is not None else "report.title_no_size"
    details = []
    device = page.plain(words(records.machine.get("name") or records.machine.get("device"), 80))
    if (seconds := total(records, "seconds")) is not None and device:
        details.append(both("report.subtitle", seconds=formats.duration(seconds), device=device))
    if (steps := total(records, "steps")) is not None:
        details.append(both("report.steps", steps=formats.whole(steps)))
    if records.events and (begun := records.events[0].get("time")) is not None:
        details.append(both("report.begun", time=formats.moment(begun)))
    values = {"parameters": formats.count(size), "task": what}
    return {
        "plain": both(key, data=data, **values),
        "title": page.translate(key, data={k: page.user(v) for k, v in data.items()}, **values),
        "details": details,
    }


def _notices(records: RunRecords, status: str) -> list[tuple[str, dict[str, Any]]]:
    notices: list[tuple[str, dict[str, Any]]] = []
    steps = total(records, "steps")
    if status == "empty":
        notices.append(("report.notice.empty", {}))
    elif status == "broken":
        notices.append(("report.notice.broken", {}))
    elif status != "finished":
        early = "_early" if steps is None else ""
        notices.append((f"report.notice.{status}{early}", {"step": formats.whole(steps)}))
    for file, count in records.unreadable.items():
        key = "report.notice.lines" if count else "report.notice.unreadable"
        notices.append((key, {"file": page.user(file), "count": formats.whole(count)}))
    return notices


def _ending(standing: Standing, folder: str) -> dict[str, Any] | None:
    """What happened to a run that did not finish, what is safe, and the command that goes on."""
    if standing.state in ("finished", "empty"):
        return None
    safe, command = standing.safe, next_command(standing, page.plain(folder))
    if safe is None:
        found = both("report.ending.nothing" if standing.passed_over else "report.ending.no_checkpoint")
    else:
        key = "report.ending.verified" if safe.verified else "report.ending.unverified"
        found = both(key, step=formats.whole(safe.step), time=formats.moment(safe.written))
    passed = ", ".join(map(str, standing.passed_over))
    return {
        "why": words(standing.why if standing.state != "died" else "", 500),
        "fix": words(standing.fix, 500) if standing.state in ("failed", "broken") else "",
        "holder": words(standing.holder or "", 100),
        "safe": found,
        "passed_over": both("report.ending.passed_over", steps=passed) if passed else None,
        "repeats": standing.repeats,
        "command": None if command is None else formats.same(command),
    }


def _evaluations(records: RunRecords) -> dict[str, Any]:
    """The evaluations during training as a table: at most 30 rows, of at most 8 figures, the primary one first."""
    table = records.evaluations
    names = named_first(list(table.names[len(EVALUATION) :]), records.primary)[:MAX_FIGURES_SHOWN]
    columns = {name: table[name] for name in (*EVALUATION, *names)}
    rows = [
        {
            "step": formats.whole(float(columns["step"][i])),
            "tokens": formats.count(float(columns["tokens"][i])),
            "figures": [formats.number(float(columns[name][i])) for name in names],
        }
        for i in _spread(len(table), MAX_EVALUATIONS_SHOWN)
    ]
    return {"names": [metric_name(name) for name in names], "rows": rows}


def _spread(count: int, limit: int) -> list[int]:
    """At most `limit` positions of `count`, evenly spread, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, limit).tolist()}) if count else []


def _samples(records: RunRecords) -> dict[str, Any] | None:
    """The samples of at most 8 steps, spread over the run."""
    if not records.samples:
        return None
    steps = list(records.samples)
    at, loss = records.evaluations["step"], records.evaluations[records.validation]
    points = []
    for step in (steps[i] for i in _spread(len(steps), MAX_SAMPLES_SHOWN)):
        found = np.flatnonzero(at == step)
        known = float(loss[found[0]]) if found.size and math.isfinite(loss[found[0]]) else None
        texts = [_sample(prompt, text) for prompt, text in records.samples[step][:4]]
        points.append(
            {
                "step": formats.whole(step),
                "loss": None if known is None else formats.number(known),
                "texts": texts,
            }
        )
    return {
        "points": points,
        "shown": formats.whole(len(points)),
        "total": formats.whole(records.sample_steps),
    }


def _sample(prompt: str, text: str) -> dict[str, str]:
    """Show the prompt once, whether or not the text begins with it."""
    return {"prompt": prompt, "text": words(text.removeprefix(prompt), 1200)}


def _evaluation(evaluation: JsonObject) -> dict[str, Any] | None:
    metrics = {
        n: m for n, raw in list(mapping(evaluation.get("metrics")).items())[:30] if (m := mapping(raw))
    }
    if not metrics:
        return None
    primary = mapping(evaluation.get("primary")).get("name")
    counts = mapping(evaluation.get("counts"))
    widest = max((_relative_width(metric) for metric in metrics.values()), default=0.0)
    return {
        "documents": formats.whole(real(counts.get("documents"))) if "documents" in counts else None,
        "rows": formats.whole(real(counts.get("rows"))) if "rows" in counts else None,
        "folds": formats.whole(real(counts.get("folds"))) if "folds" in counts else None,
        "tokens": formats.count(real(counts.get("tokens"))),
        "bytes": formats.size(real(counts.get("bytes"))),
        "metrics": [_metric_row(name, metric, name == primary, widest) for name, metric in metrics.items()],
        "worst": [_passage(p) for p in objects(evaluation.get("worst"))[:MAX_PASSAGES]],
        "best": [_passage(p) for p in objects(evaluation.get("best"))[:MAX_PASSAGES]],
    }


def _relative_width(metric: JsonObject) -> float:
    """How far the interval reaches from the value, as a share of the value."""
    value, low, high = (real(metric.get(key)) for key in ("value", "low", "high"))
    if not value or low is None or high is None:
        return 0.0
    return min(max(abs(high - value), abs(value - low)) / abs(value), 10.0)


def _metric_row(name: str, metric: JsonObject, primary: bool, widest: float) -> dict[str, Any]:
    """One row of the table; the bars of all rows show relative widths and so can be compared."""
    value, low, high = (real(metric.get(key)) for key in ("value", "low", "high"))
    shown = metric_name(name)
    row: dict[str, Any] = {
        "name": shown,
        "unit": metric_unit(name),
        "meaning": metric_meaning(name),
        "value": formats.number(value),
        "primary": primary,
        "low": None,
    }
    if value is not None and low is not None and high is not None and high > low:
        row |= {"low": formats.number(low), "high": formats.number(high)}
        room = 1.25 * widest * abs(value) or high - low
        around = Scale(value - room, value + room, ())
        title = both(
            "report.evaluation.interval_chart",
            name=shown,
            value=row["value"],
            low=row["low"],
            high=row["high"],
        )
        row["bar"] = interval_bar(value, low, high, around, title)
    return row


def _passage(passage: JsonObject) -> dict[str, Any]:
    return {
        "text": words(passage.get("text"), 500),
        "bits": formats.number(real(passage.get("bits_per_byte")), 3),
    }


def _commands(folder: str, standing: Standing) -> list[dict[str, Any]]:
    model = shlex.quote(page.plain(f"{folder}/model"))
    commands = []
    if standing.state != "finished" and (go_on := next_command(standing, page.plain(folder))):
        commands.append({"name": both("report.next.resume"), "code": formats.same(go_on)})
    if standing.said.continues_text:
        prompts = {
            k: f"luban predict {model} {shlex.quote(v)}" for k, v in both("report.next.prompt").items()
        }
        commands.append({"name": both("report.next.predict"), "code": prompts})
    else:
        asked = formats.same(f"luban predict {model} --input FILE")
        commands.append({"name": both("report.next.predict_rows"), "code": asked})
    commands.append(
        {"name": both("report.next.evaluate"), "code": formats.same(f"luban evaluate {model} --data FILE")}
    )
    python = f"import luban\nmodel = luban.load({page.plain(folder + '/model')!r})"
    commands.append({"name": both("report.next.load"), "code": formats.same(python)})
    return commands


def _recipe(recipe: JsonObject) -> str | None:
    if not recipe:
        return None
    shown: str = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100)
    return words(shown, 50_000)


def _events(records: RunRecords) -> dict[str, Any] | None:
    if not records.events:
        return None
    rows = [
        {
            "time": formats.moment(event.get("time")),
            "event": named("event", event.get("event")),
            "message": words(event.get("message"), 500),
        }
        for event in records.events
    ]
    hidden = records.event_count - len(rows)
    return {
        "first": rows[: MAX_EVENTS // 2] if hidden else rows,
        "hidden": hidden,
        "last": rows[MAX_EVENTS // 2 :] if hidden else [],
    }
