"""What figures are called, and which way they are better."""

from __future__ import annotations

from luban import catalogue
from luban.catalogue import Both, both
from luban.evaluation import formats, page
from luban.evaluation.records import JsonObject, mapping, words
from luban.metrics.directions import LOWER_IS_BETTER


def metric_name(name: str) -> Both:
    """Return the catalogue's name of a figure, or the name as it is.

    Example:
        >>> metric_name("macro_f1")["en"], metric_name("my_own")["en"]
        ('Macro F1', 'my_own')
    """
    key = f"metric.{name}.name"
    return both(key) if catalogue.has(key) else formats.same(page.plain(words(name, 60)))


def metric_unit(name: str) -> Both | None:
    """Return the catalogue's unit of a figure; None where it has none."""
    key = f"metric.{name}.unit"
    return both(key) if catalogue.has(key) else None


def metric_meaning(name: str) -> Both | None:
    """Return what a figure means, in a sentence; None where the catalogue does not say it."""
    key = f"metric.{name}.meaning"
    return both(key) if catalogue.has(key) else None


def lower_is_better(name: str, primary: JsonObject | None = None) -> bool:
    """Whether a smaller value of a figure is better: as the run's primary figure says, else by its name."""
    told = mapping(primary)
    if told.get("name") == name and told.get("direction") in ("min", "max"):
        return bool(told["direction"] == "min")
    return name in LOWER_IS_BETTER


def named_first(names: list[str], primary: str) -> list[str]:
    """Return the names with the primary figure's before all others."""
    return sorted(names, key=lambda name: name != primary)
