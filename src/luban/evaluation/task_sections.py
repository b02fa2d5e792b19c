"""What a task adds to the report: notes on the data, baselines, folds, classes, curves, slices and errors.

All of it comes from evaluation.json, and any of it may be absent or broken.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from luban.catalogue import both
from luban.evaluation import formats
from luban.evaluation.answer_charts import (
    precision_recall,
    predicted_against_true,
    reliability,
    residuals,
    roc,
)
from luban.evaluation.baselines import baselines
from luban.evaluation.charts import Scale, amount_bar, interval_bar
from luban.evaluation.data_section import named
from luban.evaluation.error_gallery import gallery
from luban.evaluation.heat import confusion_matrix
from luban.evaluation.metric_names import lower_is_better, metric_name, named_first
from luban.evaluation.records import JsonObject, RunRecords, mapping, objects, real, words

MAX_NOTES = 12
MAX_CLASSES = 30
MAX_READ = 1000
MAX_SLICES = 60
MAX_FOLDS = 100
MAX_METRICS = 5
MAX_BESIDE = 2
"""Figures of a slice beside the primary one."""


def task_sections(records: RunRecords) -> dict[str, Any]:
    """Return what the templates show, by section; None or empty for what the task did not say."""
    evaluation = records.evaluation
    classes, regression = mapping(evaluation.get("classification")), mapping(evaluation.get("regression"))
    return {
        "notes": _notes(records),
        "baselines": baselines(evaluation, records.primary),
        "folds": _folds(evaluation, records.primary),
        "per_class": _per_class(classes.get("per_class")),
        "confusion": confusion_matrix(classes),
        "roc": roc(classes),
        "precision_recall": precision_recall(classes),
        "reliability": reliability(classes),
        "predicted": predicted_against_true(regression),
        "residuals": residuals(regression),
        "signatures": _signatures(mapping(evaluation.get("translation")).get("signature")),
        "per_type": _per_class(mapping(evaluation.get("entities")).get("per_type")),
        "slices": _slices(evaluation, records.primary),
        "errors": gallery(evaluation),
    }


def _signatures(value: object) -> list[str]:
    """How a figure of translation was computed: one text, or one by figure."""
    found = mapping(value).values() if isinstance(value, dict) else [value]
    return [text for one in list(found)[:MAX_METRICS] if (text := words(one, 300))]


def _notes(records: RunRecords) -> list[dict[str, Any]]:
    """What a person has to know before believing a figure: as the evaluation says, or before it the data report."""
    told = objects(records.evaluation.get("notes")) + objects(records.data.get("notes"))
    started = mapping(records.plan.get("started"))
    if detail := words(started.get("told"), 500):
        told.append({"kind": "start", "detail": f"{words(started.get('from'), 200)}: {detail}"})
    # The evaluation repeats what the data report says.
    once = dict.fromkeys((words(note.get("kind"), 60), words(note.get("detail"), 600)) for note in told)
    kept = [note for note in once if any(note)][:MAX_NOTES]
    return [{"kind": named("note", kind), "detail": detail} for kind, detail in kept]


def _per_class(value: object) -> dict[str, Any] | None:
    """Precision, recall and F1 of every class; of very many the worst by F1."""
    entries = objects(value)[:MAX_READ]
    if not entries:
        return None
    shown = entries
    if len(entries) > MAX_CLASSES:
        shown = sorted(entries, key=_by_f1)[:MAX_CLASSES]
    rows = [
        {
            "label": words(entry.get("label"), 80) or formats.DASH,
            "cells": [_share_cell(real(entry.get(name))) for name in ("precision", "recall", "f1")],
            "support": formats.whole(real(entry.get("support"))),
        }
        for entry in shown
    ]
    few = len(shown) < len(entries)
    return {
        "rows": rows,
        "shown": formats.whole(len(shown)),
        "classes": formats.whole(len(entries)) if few else None,
    }


def _by_f1(entry: JsonObject) -> float:
    found = real(entry.get("f1"))
    return 2.0 if found is None else found


def _share_cell(share: float | None) -> dict[str, Any]:
    bar = None if share is None else amount_bar(share, "c-loss")
    return {"value": formats.number(share, 3), "bar": bar}


def _slices(evaluation: JsonObject, primary: str) -> dict[str, Any] | None:
    """The figures of the rows of each value of a column, beside those of all rows."""
    entries = [
        entry for entry in objects(evaluation.get("slices"))[:MAX_SLICES] if mapping(entry.get("metrics"))
    ]
    if not entries:
        return None
    names = _shared_names([mapping(entry["metrics"]) for entry in entries], primary)[: 1 + MAX_BESIDE]
    main = names[0]
    whole = real(mapping(mapping(evaluation.get("metrics")).get(main)).get("value"))
    within = _around([mapping(mapping(entry["metrics"]).get(main)) for entry in entries], whole)
    lower = lower_is_better(main, mapping(evaluation.get("primary")))
    rows = []
    for entry in entries:
        metrics = mapping(entry["metrics"])
        figures = [formats.number(real(mapping(metrics.get(name)).get("value"))) for name in names[1:]]
        rows.append(
            {
                "column": words(entry.get("column"), 80),
                "value": words(entry.get("value"), 80) or formats.DASH,
                "count": formats.whole(real(entry.get("rows"))),
                "figures": figures,
                **_main_figure(main, mapping(metrics.get(main)), within, whole, lower),
            }
        )
    return {
        "main": metric_name(main),
        "names": [metric_name(name) for name in names[1:]],
        "rows": rows,
        "whole": None if whole is None else formats.number(whole),
    }


def _shared_names(metrics: Sequence[JsonObject], primary: str) -> list[str]:
    """The figures that most have, the primary one first."""
    counts: dict[str, int] = {}
    for one in metrics:
        for name in list(one)[:30]:
            counts[name] = counts.get(name, 0) + 1
    return named_first(
        [name for name, count in counts.items() if 2 * count >= len(metrics)] or list(counts), primary
    )


def _around(metrics: Sequence[JsonObject], whole: float | None) -> Scale | None:
    """A scale for the intervals of all slices; its tick is the figure of all rows."""
    known = [real(metric.get(key)) for metric in metrics for key in ("value", "low", "high")]
    values = [value for value in (*known, whole) if value is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high <= low:
        return None
    room = 0.04 * (high - low)
    return Scale(low - room, high + room, () if whole is None else (whole,))


def _main_figure(
    name: str, metric: JsonObject, within: Scale | None, whole: float | None, lower: bool
) -> dict[str, Any]:
    value, low, high = (real(metric.get(key)) for key in ("value", "low", "high"))
    shown: dict[str, Any] = {"main": formats.number(value), "low": None, "bar": None, "verdict": None}
    if value is None or low is None or high is None or high <= low or within is None:
        return shown
    shown |= {"low": formats.number(low), "high": formats.number(high)}
    titled = both(
        "report.evaluation.interval_chart",
        name=metric_name(name),
        value=shown["main"],
        low=shown["low"],
        high=shown["high"],
    )
    shown["bar"] = interval_bar(value, low, high, within, titled)
    if whole is not None and not low <= whole <= high:
        worse = (low > whole) == lower
        shown["verdict"] = both("report.slices.worse" if worse else "report.slices.better")
        shown["worse"] = worse
    return shown


def _folds(evaluation: JsonObject, primary: str) -> dict[str, Any] | None:
    """The figures of every fold, with their mean and standard deviation."""
    folds = [fold for fold in objects(evaluation.get("folds"))[:MAX_FOLDS] if mapping(fold.get("metrics"))]
    if len(folds) < 2:
        return None
    metrics = [mapping(fold["metrics"]) for fold in folds]
    names = _shared_names(metrics, primary)[:MAX_METRICS]
    columns = [[real(one.get(name)) for one in metrics] for name in names]
    known = [[value for value in column if value is not None] for column in columns]
    return {
        "names": [metric_name(name) for name in names],
        "rows": [
            {
                "fold": formats.whole(real(fold.get("fold"))),
                "figures": [formats.number(column[number]) for column in columns],
            }
            for number, fold in enumerate(folds)
        ],
        "means": [formats.number(statistics.fmean(column) if column else None) for column in known],
        "spreads": [
            formats.number(statistics.stdev(column) if len(column) > 1 else None, 2) for column in known
        ],
    }
