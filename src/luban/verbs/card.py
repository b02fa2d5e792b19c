"""The model card: README.md of a model folder, in the form the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luban import __version__
from luban.console import duration, short
from luban.recipe import Recipe
from luban.tasks.base import Evaluation, Usage


def model_card(recipe: Recipe, evaluation: Evaluation, result: Mapping[str, Any], usage: Usage) -> str:
    """Write what the model is, what it was measured at, and how to use it."""
    rows = "\n".join(
        f"| {name} | {value:.4f} | {_interval(evaluation.intervals.get(name))} |"
        for name, value in evaluation.figures.items()
    )
    counts = ", ".join(f"{count:,} {name}" for name, count in evaluation.counts.items())
    return f"""---
library_name: {usage.library}
pipeline_tag: {usage.pipeline}
tags: [luban, {recipe.task}]
---

# A {recipe.task.replace("-", " ")} trained with luban {__version__}

Trained for {result["steps"]:,} steps on {short(result["tokens"])} {usage.unit} in {duration(result["seconds"])}.

| measured on held-out data | value | 95 % interval |
|---|---:|---:|
{rows}

Held-out data: {counts}.

```python
{usage.code}
```

{usage.caution}
"""


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.4f} to {bounds[1]:.4f}"
