"""Differences are those that were put in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from luban.errors import InputError
from luban.exporting.onnx_module import OnnxModule
from luban.exporting.parity import parity


@pytest.fixture
def unchanged(tmp_path: Path) -> OnnxModule:
    """A file that returns x (batch, 3) as it came, and n (batch,) too."""
    x, n = ("x", TensorProto.FLOAT, ["batch", 3]), ("n", TensorProto.INT64, ["batch"])
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in "xn"]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in (x, n)],
        [helper.make_tensor_value_info(f"{name}_out", *rest) for name, *rest in (x, n)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    return OnnxModule(tmp_path / "model.onnx")


class Changed(nn.Module):
    """Adds `change` (3,) to x, and `step` to n, in evaluation mode only."""

    def __init__(self, change: list[float], step: int = 0) -> None:
        super().__init__()
        self.change, self.step = torch.tensor(change), step

    def forward(self, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        return (x, n) if self.training else (x + self.change, n + self.step)


def batch(rows: list[list[float]], whole: list[int]) -> dict[str, Tensor]:
    return {"x": torch.tensor(rows), "n": torch.tensor(whole)}


def test_equal_is_equal_also_where_it_is_infinite_or_no_number(unchanged: OnnxModule) -> None:
    rows = [[float("inf"), 1.0, -float("inf")], [float("nan"), 0.0, 2.0]]
    found = parity(Changed([0.0, 0.0, 0.0]), unchanged, [batch(rows, [1, 2]), batch(rows[:1], [3])])
    assert (found.max_abs, found.max_rel, found.agree) == (0.0, 0.0, 1.0)


def test_the_largest_difference_counts_and_choices_are_counted_over_batches(unchanged: OnnxModule) -> None:
    # The change of 0.5 to the last class overturns the second row of the first batch only.
    first = batch([[1.0, 0.0, 0.0], [1.0, 0.0, 0.75]], [1, 2])
    second = batch([[0.0, 4.0, 0.0]], [3])
    module = Changed([0.0, 0.0, 0.5]).train()
    found = parity(module, unchanged, [first, second])
    assert found.max_abs == 0.5
    assert found.max_rel == pytest.approx(0.5 / 1.25)
    assert found.agree == pytest.approx(5 / 6)  # of three rows two, of three whole numbers all
    assert module.training
    found = parity(Changed([0.0, 0.0, 0.0], step=1), unchanged, [first])
    assert (found.max_abs, found.agree) == (1.0, 0.5)


@pytest.mark.parametrize("change", [float("nan"), float("inf")])
def test_what_is_no_number_on_one_side_is_infinitely_far(unchanged: OnnxModule, change: float) -> None:
    found = parity(Changed([change, 0.0, 0.0]), unchanged, [batch([[1.0, 2.0, 3.0]], [1])])
    assert found.max_abs == found.max_rel == np.inf


def test_what_cannot_be_compared_is_said(unchanged: OnnxModule) -> None:
    class Single(nn.Module):
        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            return x

    class Wide(nn.Module):
        def forward(self, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
            return x.double(), n

    given = [batch([[1.0, 2.0, 3.0]], [1])]
    with pytest.raises(InputError, match="different numbers of outputs"):
        parity(Single(), unchanged, given)
    with pytest.raises(InputError, match="output x_out of the file is of another kind"):
        parity(Wide(), unchanged, given)
    with pytest.raises(InputError, match="nothing to compare"):
        parity(Single(), unchanged, [])
