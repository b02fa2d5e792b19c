"""The perceptron for tables: its inputs are those of scikit-learn's scaler and one-hot encoder."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.table_mlp import TableMlp, TableMlpConfig


class Inputs(nn.Module):
    """Stands in the place of the perceptron and returns what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def columns(rows: int = 40) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    numbers = draws.normal([3.0, -50.0], [0.1, 20.0], (rows, 2))
    return numbers, np.stack([draws.integers(0, 3, rows), draws.integers(0, 2, rows)], 1)


def inputs_of(model: TableMlp, numbers: np.ndarray, categories: np.ndarray) -> np.ndarray:
    model.mlp = Inputs()  # type: ignore[assignment]
    out = model(torch.from_numpy(numbers).float(), torch.from_numpy(categories))
    return out[:, 0].double().numpy()


def table(**changes: object) -> TableMlp:
    numbers, _ = columns()
    scale = {"means": numbers.mean(0).tolist(), "spreads": numbers.std(0).tolist(), "categories": (3, 2)}
    return TableMlp(TableMlpConfig(outputs=2, **{**scale, **changes}))  # type: ignore[arg-type]


def test_inputs_are_those_of_scikit_learn() -> None:
    numbers, categories = columns()
    found = inputs_of(table(), numbers, categories)
    scaled = StandardScaler().fit_transform(numbers)
    hot = OneHotEncoder(categories=[[0, 1, 2], [0, 1]], sparse_output=False).fit_transform(categories)
    expected = np.concatenate([scaled, np.zeros_like(scaled), hot], 1)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_is_missing_is_the_mean_with_a_flag_and_what_is_unknown_is_no_category() -> None:
    numbers, categories = columns(2)
    numbers[0, 1], categories[1, 0] = np.nan, -1
    found = inputs_of(table(), numbers, categories)
    assert found[0, 1:4].tolist() == [0.0, 0.0, 1.0]
    assert found[1, 4:7].tolist() == [0.0, 0.0, 0.0]
    assert found[1, 7:].sum() == 1.0


def test_without_hidden_layers_it_is_a_linear_model_of_its_inputs() -> None:
    numbers, categories = columns()
    model = table()
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter)
    linear = [p.detach().double().numpy() for p in model.parameters()]
    said = model(torch.from_numpy(numbers).float(), torch.from_numpy(categories))[:, 0].detach().numpy()
    inputs = inputs_of(table(), numbers, categories)
    np.testing.assert_allclose(said, inputs @ linear[0].T + linear[1], atol=1e-3)


def test_gradients_pass_by_what_is_missing() -> None:
    model = table(hidden=(4,))
    numbers = torch.tensor([[float("nan"), 1.0]], requires_grad=True)
    model(numbers, torch.tensor([[0, 0]])).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert numbers.grad is not None
    assert numbers.grad[0, 0] == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"means": (), "spreads": (), "categories": ()}, "a table needs a column"),
        ({"spreads": (1.0, 0.0)}, "a spread above 0"),
        ({"spreads": (1.0,)}, "a spread above 0"),
    ],
)
def test_a_table_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        table(**changes)
