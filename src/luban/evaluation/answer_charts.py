"""How answers lie against the truth: ROC, precision and recall, calibration, predicted against true, residuals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup

from luban.catalogue import Both, both
from luban.evaluation import formats, page
from luban.evaluation.charts import Bars, Floats, Line, Scale, scale, still_chart
from luban.evaluation.records import JsonObject, mapping, numbers, objects, points, real, words

MAX_CURVES = 8
MAX_READ = 500
MAX_BINS = 100
MAX_POINTS = 600
UNIT = Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))

Chart = dict[str, Any]
"""`svg`, `legend` [(CSS classes, name)], and what else the template says of it."""


def roc(classification: JsonObject) -> Chart | None:
    """The true positive rate over the false positive rate, one curve a class; None where there is none.

    Fawcett, An introduction to ROC analysis, 2006.
    """
    guide = Line("chance", np.array([0.0, 1.0]), np.array([0.0, 1.0]), "c-other", "guide")
    return _curves(classification.get("roc"), "auc", both("report.answers.roc_chart"), guide)


def precision_recall(classification: JsonObject) -> Chart | None:
    """Precision over recall, one curve a class; None where there is none."""
    title = both("report.answers.precision_recall_chart")
    return _curves(classification.get("precision_recall"), "average_precision", title, None)


def _curves(value: object, area: str, title: Both, guide: Line | None) -> Chart | None:
    """The curves of at most `MAX_CURVES` classes, those with the smallest area under them first."""
    found: list[tuple[float, str, Floats]] = []
    for entry in objects(value)[:MAX_READ]:
        at = points(entry.get("points"))
        if len(at) > 1:
            below = real(entry.get(area))
            label = page.plain(words(entry.get("label"), 60)) or formats.DASH
            found.append((math.inf if below is None else below, label, at))
    if not found:
        return None
    shown = sorted(found, key=lambda curve: curve[0])[:MAX_CURVES]
    lines = [
        Line(label, at[:, 0], at[:, 1], f"c-run-{number}") for number, (_, label, at) in enumerate(shown)
    ]
    legend = [
        (f"line c-run-{number}", page.user(label) + Markup(" <b>{}</b>").format(formats.number(below)["en"]))
        for number, (below, label, _) in enumerate(shown)
    ]
    return {
        "svg": still_chart([guide, *lines] if guide else lines, title=title, x=UNIT, y=UNIT, look="square"),
        "legend": legend,
        "shown": formats.whole(len(shown)),
        "classes": formats.whole(len(found)) if len(found) > len(shown) else None,
    }


def reliability(classification: JsonObject) -> Chart | None:
    """How often answers of each confidence are right, and how many there are; None where the file does not say.

    DeGroot and Fienberg, The Comparison and Evaluation of Forecasters, 1983; the calibration error by Guo et al.,
    On Calibration of Modern Neural Networks, 2017.
    """
    told = mapping(classification.get("reliability"))
    bins = [
        figures
        for entry in objects(told.get("bins"))[:MAX_BINS]
        if (figures := _bin(entry)) is not None and 0.0 <= figures[0] < figures[1] <= 1.0
    ]
    if not any(count > 0 for *_, count in bins):
        return None
    low, high, confidence, accuracy, count = np.array(bins, dtype=np.float64).T
    full = count > 0
    accuracy, confidence = np.where(full, accuracy, np.nan), np.where(full, confidence, np.nan)
    ranges = [f"{formats.tick(a)['en']} – {formats.tick(b)['en']}" for a, b, *_ in bins]
    hits = [
        f"{span}: {formats.percent(right)['en']} · {formats.whole(rows)['en']}"
        for span, right, rows in zip(ranges, accuracy.tolist(), count.tolist(), strict=True)
    ]
    guide = Line("calibrated", np.array([0.0, 1.0]), np.array([0.0, 1.0]), "c-other", "guide")
    means = Line("confidence", confidence, accuracy, "c-validation", "points")
    rows = [
        f"{span}: {formats.whole(number)['en']}" for span, number in zip(ranges, count.tolist(), strict=True)
    ]
    temperature = real(classification.get("temperature"))
    return {
        "svg": still_chart(
            [guide, means],
            title=both("report.answers.reliability_chart"),
            x=UNIT,
            y=UNIT,
            bars=[Bars(low, high, accuracy, "c-loss", hits)],
            look="square",
        ),
        "counts": still_chart(
            [],
            title=both("report.answers.confidence_chart"),
            x=UNIT,
            y=scale([count], ticks=3, from_zero=True, pad=0.05),
            bars=[Bars(low, high, np.where(full, count, np.nan), "c-other", rows)],
            look="small",
        ),
        "error": None if (error := real(told.get("ece"))) is None else formats.number(error, 3),
        "temperature": None if temperature is None else formats.number(temperature, 3),
    }


def _bin(entry: JsonObject) -> tuple[float, ...] | None:
    """Return low, high, confidence, accuracy and count; the middle two may be absent of an empty bin."""
    low, high, count = (real(entry.get(name)) for name in ("low", "high", "count"))
    if low is None or high is None or count is None:
        return None
    confidence, accuracy = (
        math.nan if (figure := real(entry.get(name))) is None else figure
        for name in ("confidence", "accuracy")
    )
    return low, high, confidence, accuracy, count


def predicted_against_true(regression: JsonObject) -> Markup | None:
    """Each answer over its target, with the line where they are equal; None without at least two."""
    pairs = points(regression.get("points"), MAX_POINTS)
    if len(pairs) < 2:
        return None
    both_ways = scale([pairs[:, 0], pairs[:, 1]], pad=0.04)
    ends = np.array([both_ways.low, both_ways.high])
    return still_chart(
        [
            Line("equal", ends, ends, "c-other", "guide"),
            Line("answers", pairs[:, 0], pairs[:, 1], "c-loss", "points"),
        ],
        title=both("report.answers.predicted_chart"),
        x=both_ways,
        y=both_ways,
        look="square",
    )


def residuals(regression: JsonObject) -> Markup | None:
    """How many answers are off by how much; None where the file does not say."""
    told = mapping(regression.get("residuals"))
    edges, counts = numbers(told.get("edges"), MAX_BINS + 1), numbers(told.get("counts"), MAX_BINS)
    if not counts or len(edges) != len(counts) + 1 or any(b <= a for a, b in zip(edges, edges[1:])):  # noqa: B905, RUF007
        return None
    said = [
        f"{formats.number(low, 3)['en']} – {formats.number(high, 3)['en']}: {formats.whole(count)['en']}"
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    heights = np.array(counts)
    return still_chart(
        [],
        title=both("report.answers.residuals_chart"),
        x=scale([np.array(edges)]),
        y=scale([heights], ticks=4, from_zero=True, pad=0.05),
        bars=[Bars(np.array(edges[:-1]), np.array(edges[1:]), heights, "c-loss", said)],
        look="square",
    )
