"""The charts of a training run: loss, learning rate, gradient norm, speed; over steps, tokens and time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from luban.catalogue import Both, both
from luban.evaluation import formats
from luban.evaluation.charts import (
    Floats,
    Line,
    Scale,
    extremes,
    json_table,
    line_chart,
    nice_ticks,
    scale,
    smooth,
)
from luban.evaluation.metric_names import metric_name
from luban.evaluation.records import RunRecords

MAX_READ = 300
_SCALES_OF_LOSS = {"loss", "log_loss", "bits_per_byte", "nats_per_character", "perplexity"}
_UNITS = ((86400.0, "axis.days"), (3600.0, "axis.hours"), (60.0, "axis.minutes"), (1.0, "axis.seconds"))


@dataclass(frozen=True)
class Over:
    """One choice of horizontal axis and where every row of the three tables lies on it."""

    axis: str
    train: Floats
    evaluations: Floats
    timings: Floats
    scale: Scale
    tick: Callable[[float], Both]


Charts = list[tuple[str, Markup]]
"""The same chart over each axis: (axis, svg)."""


class Curves:
    """Everything the page draws of a run's logs; `charts` is empty when no step was logged.

    Arguments:
        records: what the run folder holds.
    """

    def __init__(self, records: RunRecords) -> None:
        self._records = records
        self._loss = records.train["loss"]
        self._smoothed = smooth(self._loss)
        self._validation = records.evaluations[records.validation]
        self._axes = self._all_axes()
        self.axes = {over.axis: axis_name(over.axis, records.unit) for over in self._axes}
        self._loss_scale = self._scale_of_loss()

    def __bool__(self) -> bool:
        return len(self._records.train) > 0

    def loss(self) -> Charts:
        """Training loss, raw and smoothed, and the validation points."""
        drawn = []
        for over in self._axes:
            lines = [
                Line("loss", over.train, self._loss, "c-loss", "faint"),
                Line("smoothed", over.train, self._smoothed, "c-loss"),
                Line("validation", over.evaluations, self._validation, "c-validation", "dots"),
            ]
            drawn.append(self._draw(over, lines, both("report.curve.loss_chart"), self._loss_scale, "train"))
        return drawn

    def primary(self) -> Charts:
        """The figure that counts, at every evaluation; nothing where it is the loss, or the loss on another scale."""
        name, drawn = self._records.primary, []
        values = self._records.evaluations[name]
        if name in _SCALES_OF_LOSS or not np.isfinite(values).any():
            return []
        up = scale([values], pad=0.06)
        title = both("report.curve.primary_chart", name=metric_name(name))
        for over in self._axes:
            lines = [Line("primary", over.evaluations, values, "c-primary", "dots")]
            drawn.append(self._draw(over, lines, title, up, "evaluations"))
        return drawn

    def learning_rate(self) -> Charts:
        """The learning rate of every step."""
        return self._of_train("learning_rate", "c-rate", "report.curve.rate_chart")

    def gradient_norm(self) -> Charts:
        """The gradient norm of every step, raw and smoothed."""
        return self._of_train("gradient_norm", "c-norm", "report.curve.norm_chart", smoothed=True)

    def speed(self) -> Charts:
        """Tokens, or rows, per second."""
        titles = {"tokens": "report.curve.speed_chart", "rows": "report.curve.speed_chart_rows"}
        return self._of_timings("tokens_per_second", "c-speed", titles[self._records.unit])

    def peak_share(self) -> Charts:
        """Share of the machine's measured peak."""
        return self._of_timings("peak_share", "c-share", "report.curve.share_chart", formats.percent)

    def loss_caption(self) -> Both:
        """What the loss chart shows, in sentences."""
        finite = self._smoothed[np.isfinite(self._smoothed)]
        steps = formats.whole(self._last_step())
        said = []
        if finite.size:
            first, last = (formats.number(float(v)) for v in (finite[0], finite[-1]))
            fell = finite[-1] < finite[0]
            key = "report.curve.loss_caption" if fell else "report.curve.loss_caption_plain"
            said.append(both(key, steps=steps, last=last, first=first))
        validation = self._validation
        if np.isfinite(validation).any():
            best = int(np.nanargmin(np.where(np.isfinite(validation), validation, np.nan)))
            step = formats.whole(float(self._records.evaluations["step"][best]))
            said.append(both("report.curve.best", loss=formats.number(float(validation[best])), step=step))
        above = int((self._loss > self._loss_scale.high).sum())
        if above:
            said.append(both("report.curve.cut", count=formats.whole(above)))
        broken = np.flatnonzero(~np.isfinite(self._loss))
        if broken.size:
            step = formats.whole(float(self._records.train["step"][broken[0]]))
            said.append(both("report.curve.not_numbers", count=formats.whole(broken.size), step=step))
        return formats.sentences(said)

    def read_out(self) -> dict[str, Any]:
        """What the read-out under the pointer says: name -> {column: values}, and each column's name."""
        kept = np.union1d(
            extremes(self._loss, MAX_READ), extremes(self._records.train["gradient_norm"], MAX_READ)
        )
        train = {over.axis: over.train[kept] for over in self._axes}
        train |= {
            "loss": self._loss[kept],
            "smoothed": self._smoothed[kept],
            "validation": self._validation_at(kept),
        }
        train |= {name: self._records.train[name][kept] for name in ("learning_rate", "gradient_norm")}
        timed = extremes(self._records.timings["tokens_per_second"], MAX_READ)
        timings = {over.axis: over.timings[timed] for over in self._axes}
        timings |= {name: self._records.timings[name][timed] for name in ("tokens_per_second", "peak_share")}
        evaluations = {over.axis: over.evaluations for over in self._axes}
        primary = self._records.primary
        evaluations["primary"] = self._records.evaluations[primary]
        tables = {"train": train, "timings": timings}
        if self.primary():
            tables["evaluations"] = evaluations
        names = dict.fromkeys(column for table in tables.values() for column in table)
        return {
            "names": {name: self._read_name(name) for name in names},
            "tables": {name: json_table(table) for name, table in tables.items()},
        }

    def _read_name(self, column: str) -> Both:
        if column == "primary":
            return metric_name(self._records.primary)
        if column == "validation":
            return self.validation_name()
        name = column.replace("tokens", self._records.unit)
        return both(f"report.read.{name}")

    def has_validation(self) -> bool:
        """Whether any evaluation has a validation loss; a regression or a tagger has none."""
        return bool(np.isfinite(self._validation).any())

    def validation_name(self) -> Both:
        """What the points beside the training loss are."""
        log_loss = self._records.validation == "log_loss"
        return both("report.read.validation_log_loss" if log_loss else "report.read.validation")

    def _validation_at(self, kept: Any) -> Floats:
        """The validation loss of the latest evaluation at or before each kept step."""
        steps, loss = self._records.evaluations["step"], self._validation
        at = np.searchsorted(steps, self._records.train["step"][kept], side="right") - 1
        return np.where(at >= 0, loss[np.maximum(at, 0)], np.nan) if loss.size else np.full(len(kept), np.nan)

    def _last_step(self) -> float | None:
        steps = self._records.train["step"]
        return float(steps[-1]) if steps.size else None

    def _all_axes(self) -> list[Over]:
        train, evaluations, timings = self._records.train, self._records.evaluations, self._records.timings
        steps = (train["step"], evaluations["step"], timings["step"])
        axes = [_over("step", steps)]
        for axis, known in (("tokens", train), ("seconds", timings)):
            values = known[axis]
            finite = np.isfinite(values)
            if finite.sum() > 1:
                places = [place(at, known["step"][finite], values[finite]) for at in steps]
                axes.append(_over(axis, (places[0], places[1], places[2])))
        return axes

    def _scale_of_loss(self) -> Scale:
        """Fit the smoothed and the validation loss, and the raw loss where it is not far above them."""
        validation = self._validation
        fitted = scale([self._smoothed, validation])
        raw = self._loss[np.isfinite(self._loss)]
        if not raw.size:
            return fitted
        ceiling = fitted.high + 0.15 * (fitted.high - fitted.low)
        return scale([self._smoothed, validation, np.minimum(raw, ceiling)], pad=0.02)

    def _of_train(self, column: str, colour: str, title: str, *, smoothed: bool = False) -> Charts:
        values = self._records.train[column]
        return self._small(values, colour, title, "train", smooth(values) if smoothed else None)

    def _of_timings(
        self, column: str, colour: str, title: str, tick: Callable[[float], Both] = formats.tick
    ) -> Charts:
        values = self._records.timings[column]
        return self._small(values, colour, title, "timings", smooth(values), tick)

    def _small(
        self,
        values: Floats,
        colour: str,
        title: str,
        table: str,
        smoothed: Floats | None,
        tick: Callable[[float], Both] = formats.tick,
    ) -> Charts:
        if not np.isfinite(values).any():
            return []
        up = scale([_tamed(values)], ticks=3, from_zero=True, pad=0.04)
        drawn = []
        for over in self._axes:
            x = over.train if table == "train" else over.timings
            lines = [Line(table, x, values, colour, "line" if smoothed is None else "faint")]
            if smoothed is not None:
                lines.append(Line(f"{table}-smoothed", x, smoothed, colour))
            drawn.append(self._draw(over, lines, both(title), up, table, tick, small=True))
        return drawn

    def _draw(
        self,
        over: Over,
        lines: list[Line],
        title: Both,
        up: Scale,
        table: str,
        tick: Callable[[float], Both] = formats.tick,
        *,
        small: bool = False,
    ) -> tuple[str, Markup]:
        ticks = over.scale.ticks[::2] if small and len(over.scale.ticks) > 4 else over.scale.ticks
        x = Scale(over.scale.low, over.scale.high, ticks)
        svg = line_chart(
            lines,
            title=title,
            x=x,
            y=up,
            x_axis=over.axis,
            table=table,
            x_tick=over.tick,
            y_tick=tick,
            small=small,
        )
        return over.axis, svg


def axis_name(axis: str, unit: str) -> Both:
    """Return what an axis is called; `tokens` are rows where `unit` says so."""
    name = axis.replace("tokens", unit)
    return both(f"report.axis.{name}")


def place(steps: Floats, known: Floats, values: Floats) -> Floats:
    """Return the values at `steps`, between those at the known steps."""
    return np.asarray(np.interp(steps, known, values), dtype=np.float64)


def _tamed(values: Floats) -> Floats:
    """Leave out what is far above nearly all values, so that one spike does not flatten a chart."""
    finite = values[np.isfinite(values)]
    limit = 4 * float(np.quantile(finite, 0.98))
    return finite[finite <= limit] if limit > 0 and (finite <= limit).any() else finite


def _over(axis: str, places: tuple[Floats, Floats, Floats]) -> Over:
    if axis != "seconds":
        return Over(axis, *places, scale(places, from_zero=True), formats.tick)
    return Over(axis, *places, *time_scale(places))


def time_scale(places: Sequence[Floats]) -> tuple[Scale, Callable[[float], Both]]:
    """Return a scale of seconds with ticks at round minutes, hours or days, and how they are written."""
    high = scale(places, from_zero=True).high
    unit, key = next((u for u in _UNITS if high >= 2.5 * u[0]), _UNITS[-1])
    ticks = tuple(value * unit for value in nice_ticks(0.0, high / unit))
    return Scale(0.0, high, ticks), lambda seconds: _time_tick(seconds, unit, key)


def _time_tick(seconds: float, unit: float, key: str) -> Both:
    return both(key, n=f"{seconds / unit:g}") if seconds > 0 and math.isfinite(seconds) else formats.same("0")
