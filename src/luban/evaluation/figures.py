"""The figures of a run: what stands at the head of the report, the machine, and what the run cost."""

from __future__ import annotations

from typing import Any

import numpy as np

from luban.catalogue import Both, both
from luban.evaluation import formats, page
from luban.evaluation.metric_names import metric_meaning, metric_name, metric_unit
from luban.evaluation.records import Floats, JsonObject, RunRecords, mapping, parameter_count, real, words

_BESIDE = (
    "perplexity",
    "bits_per_byte",
    "macro_f1",
    "roc_auc",
    "r2",
    "mae",
    "chrf",
    "entity_precision",
    "entity_recall",
)
_MOST = 3


def median(values: Floats) -> float | None:
    """Return the median of the finite values; None without any."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else None


def last(values: Floats) -> float | None:
    """Return the last finite value; None without any."""
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else None


def total(records: RunRecords, name: str) -> float | None:
    """Return `steps`, `tokens`, `seconds` or `flops` of the run: of its result, or else as logged so far."""
    if (told := real(records.result.get(name))) is not None:
        return told
    if name == "seconds":
        return last(records.timings["seconds"])
    steps = last(records.train["step"])
    if name == "steps":
        return steps
    if name == "tokens":
        return last(records.train["tokens"])
    per_step = real(records.plan.get("step_flops"))
    return per_step * steps if per_step is not None and steps is not None else None


def parameters(records: RunRecords) -> float | None:
    """Return how many parameters the model has, as the plan says."""
    return parameter_count(records.plan)


def _figure(
    value: Both, name: str, meaning: Both | None = None, *, unit: str | None = None
) -> dict[str, Any]:
    return {
        "value": value,
        "name": both(name),
        "unit": both(unit) if unit else None,
        "meaning": meaning,
        "note": None,
        "primary": False,
    }


def headline(records: RunRecords) -> list[dict[str, Any]]:
    """Return the key figures, the primary metric first: value, unit, name, meaning."""
    parts, unit = _metric_figures(records), records.unit
    seconds, tokens, steps, operations = (total(records, n) for n in ("seconds", "tokens", "steps", "flops"))
    if seconds is not None:
        meaning = both("report.figure.seconds_meaning")
        parts.append(_figure(formats.duration(seconds), "report.figure.seconds", meaning))
    if tokens is not None:
        meaning = both(f"report.figure.{unit}_meaning", steps=formats.whole(steps))
        parts.append(_figure(formats.count(tokens), f"report.figure.{unit}", meaning))
    if (speed := median(records.timings["tokens_per_second"])) is not None:
        meaning = both("report.figure.speed_meaning")
    elif tokens is not None and seconds:
        speed, meaning = tokens / seconds, both("report.figure.speed_mean")
    if speed is not None:
        parts.append(
            _figure(formats.count(speed), "report.figure.speed", meaning, unit=f"unit.{unit}_per_second")
        )
    peak, share = real(records.machine.get("peak_flops")), median(records.timings["peak_share"])
    if share is None and operations is not None and seconds and peak:
        share = operations / seconds / (peak * (real(records.plan.get("ranks")) or 1.0))
    if share is not None:
        key = "report.figure.share_meaning" if peak else "report.figure.share_meaning_bare"
        meaning = both(key, peak=formats.flops_per_second(peak))
        parts.append(_figure(formats.percent(share), "report.figure.share", meaning))
    if (memory := real(records.result.get("peak_rss_bytes"))) is not None:
        whole = real(records.machine.get("memory_bytes"))
        key = "report.figure.memory_of" if whole else "report.figure.memory_meaning"
        parts.append(
            _figure(formats.size(memory), "report.figure.memory", both(key, total=formats.size(whole)))
        )
    if operations is not None:
        meaning = both("report.figure.flops_meaning")
        parts.append(_figure(formats.flops(operations), "report.figure.flops", meaning))
    if (size := parameters(records)) is not None:
        meaning = both("report.figure.parameters_meaning")
        parts.append(_figure(formats.count(size), "report.figure.parameters", meaning))
    return parts


def _metric_figures(records: RunRecords) -> list[dict[str, Any]]:
    """The primary metric first, with its interval; then at most two that tell what it leaves out."""
    evaluated, told = mapping(records.evaluation.get("metrics")), mapping(records.result.get("metrics"))
    figures: list[dict[str, Any]] = []
    for name in dict.fromkeys([records.primary, *_BESIDE]):
        metric = mapping(evaluated.get(name))
        value, note = real(metric.get("value")), _interval(metric)
        if value is None:
            value = real(told.get(name))
        if (
            value is None
            and name in records.evaluations.names
            and (logged := last(records.evaluations[name])) is not None
        ):
            value, step = logged, formats.whole(last(records.evaluations["step"]))
            note = both("report.figure.latest", step=step)
        if value is None:
            continue
        figures.append(
            {
                "value": formats.number(value),
                "name": metric_name(name),
                "unit": metric_unit(name),
                "meaning": metric_meaning(name),
                "note": note,
                "primary": not figures,
            }
        )
    return figures[:_MOST]


def _interval(metric: JsonObject) -> Both | None:
    low, high = real(metric.get("low")), real(metric.get("high"))
    if low is None or high is None or high <= low:
        return None
    return both("report.figure.interval", low=formats.number(low), high=formats.number(high))


def machine_rows(records: RunRecords) -> list[dict[str, Any]]:
    """Return the machine as rows of name, value and note; text that machine.json says stays as it is."""
    machine, rows = records.machine, []

    def add(name: str, value: Both | str, note: Both | str | None = None) -> None:
        if value and value != formats.same(formats.DASH):
            rows.append({"name": both(f"report.machine.{name}"), "value": value, "note": note})

    cores, threads = real(machine.get("cores")), real(machine.get("threads"))
    add("name", words(machine.get("name"), 120))
    add("device", words(machine.get("device"), 40))
    if cores is not None and threads is not None:
        used = both("report.machine.threads", cores=formats.whole(cores), threads=formats.whole(threads))
        add("cores", used)
    add("memory", formats.size(real(machine.get("memory_bytes"))))
    dtype = words(records.plan.get("dtype") or machine.get("dtype"), 40)
    add("dtype", dtype, words(machine.get("why"), 400))
    switched = {True: "report.machine.on", False: "report.machine.off"}
    for name in ("kernels", "compile"):
        choice = records.plan.get(name)
        shown = both(switched[choice]) if isinstance(choice, bool) else words(choice)
        add(name, shown, words(records.plan.get(f"{name}_why"), 400))
    note = both("report.machine.peak_note", dtype=page.plain(dtype)) if dtype else None
    add("peak", formats.flops_per_second(real(machine.get("peak_flops"))), note)
    add("bandwidth", formats.bytes_per_second(real(machine.get("bandwidth"))))
    software = [
        f"{n} {v}" for n, k in (("torch", "torch"), ("Python", "python")) if (v := words(machine.get(k), 40))
    ]
    add("software", ", ".join([*software, *filter(None, [words(machine.get("platform"), 120)])]))
    return rows


def cost_rows(records: RunRecords) -> list[dict[str, Any]]:
    """Return what the run cost in seconds and FLOPs: rows of name, value, note."""
    rows: list[dict[str, Any]] = []
    seconds, steps, tokens, operations = (total(records, n) for n in ("seconds", "steps", "tokens", "flops"))
    if (size := parameters(records)) is not None:
        rows.append({"name": both("report.cost.parameters"), "value": formats.whole(size), "note": None})
    if seconds is not None:
        rows.append({"name": both("report.cost.training"), "value": formats.duration(seconds), "note": None})
    for kind in ("evaluation", "checkpoint"):
        if (pauses := records.pauses.get(kind)) and pauses.times:
            mean = formats.duration(pauses.seconds / pauses.times)
            each = both("report.cost.pauses", times=formats.whole(pauses.times), mean=mean)
            rows.append(
                {"name": both(f"report.cost.{kind}"), "value": formats.duration(pauses.seconds), "note": each}
            )
    if operations is not None:
        per = "report.cost.per_row" if records.unit == "rows" else "report.cost.per_token"
        note = both(per, flops=formats.flops(operations / tokens)) if tokens else None
        rows.append({"name": both("report.cost.total"), "value": formats.flops(operations), "note": note})
    if operations is not None and tokens and steps:
        speed = median(records.timings["tokens_per_second"])
        took = formats.duration(tokens / steps / speed if speed else None)
        step = both("report.cost.step_value", flops=formats.flops(operations / steps), seconds=took)
        rows.append({"name": both("report.cost.step"), "value": step, "note": None})
    return rows
