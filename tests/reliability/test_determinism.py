"""The same run twice is the same run."""

import json
from functools import partial
from pathlib import Path

import determinism
import numpy as np
import toy


def test_twice_the_same_run_is_the_same(tmp_path: Path) -> None:
    outcomes = determinism.sweep(tmp_path, count=40, seed=0)
    assert [key for key in outcomes if key.startswith("BROKEN")] == []
    assert outcomes.total() == 40
    assert set(outcomes) == set(determinism.GOOD.values())


def test_two_ranks_pass_over_the_same_damage(tmp_path: Path) -> None:
    """Both find the newest checkpoint damaged, one of them sets it aside, and they go on together."""
    file, run = toy.recipe_file(tmp_path), tmp_path / "run"
    assert determinism.on_ranks(2, partial(toy.train, file, tmp_path / "whole")) == [0, 0]
    assert determinism.on_ranks(2, partial(determinism.stop_at, file, run, 7)) == [75, 75]
    newest = max(toy.kept(run))
    (run / "checkpoints" / f"step-{newest:08d}" / "model.safetensors").write_bytes(b"")
    assert determinism.on_ranks(2, partial(toy.train, file, run)) == [0, 0]
    assert (run / "checkpoints" / f"damaged-step-{newest:08d}").is_dir()
    assert toy.difference(run, tmp_path / "whole") is None


def test_losses_are_those_of_the_golden_file(tmp_path: Path) -> None:
    golden = json.loads(determinism.GOLDEN.read_text("utf-8"))
    made = determinism.golden(tmp_path)
    assert golden.keys() == made.keys()
    for name, losses in made.items():
        np.testing.assert_allclose(losses, golden[name], rtol=determinism.GOLDEN_TOLERANCE, err_msg=name)
