"""What a language model's learner reads and minimises."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from luban.conformance import write_rows
from luban.tasks.language_model import LanguageModel


def learner_of(folder: Path, **settings: Any) -> LanguageModel:
    rows = write_rows(folder / "rows", LanguageModel.sample(20, random.Random(0)))
    made = LanguageModel.example(rows)
    made["data"] |= settings
    made["train"] = {"steps": 9, "batch": 5, "learning_rate": 1e-3}
    recipe = LanguageModel.recipe.model_validate(made)
    data = LanguageModel.prepare(recipe, folder / "data", stop=lambda: None, progress=lambda *_: None)
    return LanguageModel.learner(recipe, data)


def test_short_steps_read_half_windows_and_the_others_go_on_behind_them(tmp_path: Path) -> None:
    plain, short = learner_of(tmp_path), learner_of(tmp_path / "short", short_steps=6)
    length = plain.batches(0, 0, 1)[0].inputs.shape[1]
    read: dict[str, list[torch.Tensor]] = {"plain": [], "short": []}
    for step in range(8):
        (own,) = short.batches(step, 0, 1)
        assert own.inputs.shape == (5, length // 2 if step < 6 else length)
        read["short"].append(own.inputs.flatten())
    for step in range(5):
        read["plain"].append(plain.batches(step, 0, 1)[0].inputs.flatten())
    assert torch.equal(torch.cat(read["short"]), torch.cat(read["plain"]))
    assert short.epoch(8) == plain.epoch(5)
    assert short.epoch(3) == pytest.approx(plain.epoch(1) * 8 / 5)  # 15 halves: windows begun count


def test_ranks_and_micro_batches_share_a_short_step(tmp_path: Path) -> None:
    learner = learner_of(tmp_path, short_steps=3)
    for step in range(5):
        (whole,) = learner.batches(step, 0, 1)
        shares = [batch for rank in range(3) for batch in learner.batches(step, rank, 3, 1)]
        assert torch.equal(torch.cat([batch.inputs for batch in shares]), whole.inputs)
        described = learner.batches(step, 0, 1)[0].describe()
        assert described["windows"] == (3 if step < 3 else 5)


def test_halving_an_odd_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"data.length \(31\) must be even"):
        learner_of(tmp_path, short_steps=3, length=31)


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
