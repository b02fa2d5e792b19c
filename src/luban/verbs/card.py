"""The model card: README.md of a model folder, in the form the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luban import __version__
from luban.console import duration, short
from luban.recipe import Recipe
from luban.tasks.base import Evaluation


def model_card(recipe: Recipe, evaluation: Evaluation, result: Mapping[str, Any]) -> str:
    """Write what the model is, what it was measured at, and how to use it."""
    rows = "\n".join(
        f"| {name} | {value:.4f} | {low:.4f} to {high:.4f} |"
        for name, value in evaluation.figures.items()
        for low, high in [evaluation.intervals.get(name, (value, value))]
    )
    counts = ", ".join(f"{count:,} {name}" for name, count in evaluation.counts.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [luban, {recipe.task}]
---

# A {recipe.task.replace("-", " ")} trained with luban {__version__}

Trained for {result["steps"]:,} steps on {short(result["tokens"])} tokens in {duration(result["seconds"])}.

| measured on held-out data | value | 95 % interval |
|---|---:|---:|
{rows}

Held-out data: {counts}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("this folder")
model = AutoModelForCausalLM.from_pretrained("this folder")
```

The model has learned from the text it was given and from nothing else: it repeats that text's errors and
opinions, and what it says may be untrue.
"""
