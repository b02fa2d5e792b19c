"""The dtype of a convolutional network is decided by its own steps, which leave no trace."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from luban.data.pictures import encode_png
from luban.machine import BFLOAT16_GAIN
from luban.tasks.base import Machine
from luban.tasks.image_classification import ImageClassification
from luban.tasks.row_learner import RowLearner
from luban.verbs import decisions
from luban.verbs.decisions import faster_dtype, measure_machine, settle


def pictures(folder: Path) -> RowLearner:
    for number, row in enumerate(ImageClassification.sample(40, random.Random(0))):
        (folder / row["label"]).mkdir(parents=True, exist_ok=True)
        (folder / row["label"] / f"{number}.png").write_bytes(encode_png(row["image"]))
    written = {
        "data": {"train": str(folder), "workers": 1},
        "model": {"network": "small", "widths": [4, 4, 4, 4]},
        "train": {"steps": 1, "batch": 8, "learning_rate": 0.01},
    }
    recipe = ImageClassification.recipe.model_validate(written)
    data = ImageClassification.prepare(
        recipe, folder.parent / "data", stop=lambda: None, progress=lambda *_: None
    )
    return ImageClassification.learner(recipe, data)


def test_measuring_a_networks_steps_leaves_it_as_it_was(tmp_path: Path) -> None:
    learner = pictures(tmp_path / "pictures")
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    faster_dtype(learner)
    after = learner.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in learner.model.parameters())


@pytest.mark.parametrize(
    ("seconds", "dtype"), [(1.0 / BFLOAT16_GAIN, "bfloat16"), (1.0, "float32"), (9.0, "float32")]
)
def test_bfloat16_is_taken_where_a_step_is_that_much_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, dtype: str
) -> None:
    learner, now, bfloat16 = pictures(tmp_path / "pictures"), [0.0], [False]
    own = learner.loss

    def loss(batch: Any) -> torch.Tensor:
        bfloat16[0] = torch.is_autocast_enabled("cpu")
        now[0] += seconds if bfloat16[0] else 1.0
        return own(batch)

    monkeypatch.setattr(learner, "loss", loss)
    monkeypatch.setattr(decisions.time, "perf_counter", lambda: now[0])
    assert faster_dtype(learner)[0] == dtype


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_a_dtype_that_is_named_is_taken(tmp_path: Path, wanted: str) -> None:
    report = measure_machine(pictures(tmp_path / "pictures"), wanted)
    assert (report.dtype, report.why) == (wanted, "as the recipe says")


def test_on_a_gpu_its_memory_bounds_what_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Machine] = []

    class Kind:
        @staticmethod
        def choose(recipe: Any, data: Any, machine: Machine, start: Any) -> dict[str, Any]:
            seen.append(machine)
            return {}

    monkeypatch.setattr(decisions, "matrix_rates", lambda: (2e11, 1e12))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (7_000, 9_000))
    settle(None, Kind, None, None)  # type: ignore[arg-type]
    assert seen == [Machine(1e12, 7_000)]
