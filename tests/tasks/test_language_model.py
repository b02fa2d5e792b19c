"""What a language model's learner minimises."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from luban.conformance import write_rows
from luban.tasks.language_model import LanguageModel


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_torch_smoothed_as_asked(tmp_path: Path, smoothing: float) -> None:
    rows = write_rows(tmp_path / "rows", LanguageModel.sample(20, random.Random(0)))
    made = {**LanguageModel.example(rows), "objective": {"label_smoothing": smoothing}}
    made["train"] = {"steps": 1, "batch": 4, "learning_rate": 1e-3}
    recipe = LanguageModel.recipe.model_validate(made)
    data = LanguageModel.prepare(recipe, tmp_path / "data", stop=lambda: None, progress=lambda *_: None)
    learner = LanguageModel.learner(recipe, data)
    (batch,) = learner.batches(0, 0, 1)
    learner.model.eval()
    with torch.no_grad():
        hidden = learner.model.hidden(batch.inputs, positions=batch.positions, segments=batch.segments)
        logits = hidden @ learner.model.output_weight.T
        wanted = batch.targets.flatten()
        expected = F.cross_entropy(
            logits.flatten(0, 1), wanted, ignore_index=-100, reduction="sum", label_smoothing=smoothing
        )
        torch.testing.assert_close(learner.loss(batch), expected, rtol=1e-4, atol=1e-3)
