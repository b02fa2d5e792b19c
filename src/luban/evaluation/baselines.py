"""Whether a model is better than what costs next to nothing: by the primary figure and its interval."""

from __future__ import annotations

from typing import Any

from luban import catalogue
from luban.catalogue import both
from luban.evaluation import formats, page
from luban.evaluation.metric_names import lower_is_better, metric_name, named_first
from luban.evaluation.records import JsonObject, mapping, objects, real, words

MAX_BASELINES = 12
MAX_METRICS = 5


def verdict(model: JsonObject, baseline: float, *, lower: bool) -> str:
    """Say how the model stands to a baseline: `better`, `worse` or `open`, where the figures show no difference.

    Arguments:
        model: the model's `value`, and `low` and `high` of its 95 % interval where it has one.
        baseline: the same figure of the baseline.
        lower: whether a smaller figure is better.

    Example:
        >>> verdict({"value": 0.9, "low": 0.88, "high": 0.92}, 0.5, lower=False)
        'better'
        >>> verdict({"value": 0.9, "low": 0.88, "high": 0.92}, 0.91, lower=False)
        'open'
        >>> verdict({"value": 0.9, "low": None, "high": None}, 0.91, lower=False)
        'worse'
    """
    value, low, high = (real(model.get(key)) for key in ("value", "low", "high"))
    assert value is not None
    low, high = (value, value) if low is None or high is None or high <= low else (low, high)
    if low <= baseline <= high:
        return "open"
    return "better" if (baseline > high) == lower else "worse"


def baselines(evaluation: JsonObject, primary: str) -> dict[str, Any] | None:
    """Return the model and the baselines as rows, the best first, and the verdict; None without baselines."""
    entries = [
        one for one in objects(evaluation.get("baselines"))[:MAX_BASELINES] if mapping(one.get("metrics"))
    ]
    if not entries:
        return None
    metrics = mapping(evaluation.get("metrics"))
    lower = lower_is_better(primary, mapping(evaluation.get("primary")))
    named = [(_name(entry), mapping(entry["metrics"])) for entry in entries]
    names = list(dict.fromkeys(name for _, figures in named for name in list(figures)[:30]))
    names = named_first([name for name in names if name in metrics], primary)[:MAX_METRICS]
    own = {name: mapping(metrics.get(name)).get("value") for name in names}
    rows = [
        {
            "name": name,
            "model": figures is own,
            "figures": [formats.number(real(figures.get(figure))) for figure in names],
        }
        for name, figures in _ranked([(both("report.baselines.model"), own), *named], primary, lower)
    ]
    return {
        "names": [metric_name(name) for name in names],
        "rows": rows,
        "verdict": _said(mapping(metrics.get(primary)), named, primary, lower),
    }


def _name(entry: JsonObject) -> Any:
    name = words(entry.get("name"), 80)
    key = f"baseline.{name}"
    return page.translate(key) if catalogue.has(key) else page.user(name or formats.DASH)


def _ranked(named: list[tuple[Any, JsonObject]], primary: str, lower: bool) -> list[tuple[Any, JsonObject]]:
    """Order by the primary figure, the best first; what has none comes last."""

    def rank(entry: tuple[Any, JsonObject]) -> tuple[bool, float]:
        value = real(entry[1].get(primary))
        return value is None, 0.0 if value is None else value if lower else -value

    return sorted(named, key=rank)


def _said(
    model: JsonObject, named: list[tuple[Any, JsonObject]], primary: str, lower: bool
) -> dict[str, Any] | None:
    """Hold the model against the best baseline, in a sentence; None where either lacks the primary figure."""
    name, figures = _ranked(named, primary, lower)[0]
    best = real(figures.get(primary))
    if real(model.get("value")) is None or best is None:
        return None
    found = verdict(model, best, lower=lower)
    values = {
        "metric": metric_name(primary),
        "value": formats.number(real(model.get("value"))),
        "baseline": name,
        "best": formats.number(best),
    }
    return {"kind": found, "text": page.translate(f"report.baselines.{found}", **values)}
