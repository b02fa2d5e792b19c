"""The perceptron against torch.nn and, without a hidden layer, against scikit-learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from luban.errors import InputError
from luban.models.mlp import Mlp, MlpConfig

MODULES = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


@pytest.mark.parametrize("activation", MODULES)
def test_equals_torch(activation: str) -> None:
    torch.manual_seed(0)
    model = Mlp(MlpConfig(inputs=5, outputs=3, hidden=(7, 4), activation=activation)).double()
    first, second, last = model.layers
    same = nn.Sequential(first, MODULES[activation](), second, MODULES[activation](), last)
    x = torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close(model(x), same(x))


def test_signals_keep_their_size_through_relu() -> None:
    torch.manual_seed(0)
    model = Mlp(MlpConfig(inputs=300, outputs=300, hidden=(300,) * 8))
    assert 0.8 < model(torch.randn(500, 300)).detach().square().mean().sqrt().item() < 1.25


def test_without_a_hidden_layer_it_is_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 4))
    y = (x @ generator.normal(size=(4, 3)) + generator.gumbel(size=(60, 3))).argmax(1)
    expected = linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(x, y).predict_log_proba(x)
    model = Mlp(MlpConfig(inputs=4, outputs=3)).double()
    rows, classes = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = (
            F.cross_entropy(model(rows), classes, reduction="sum")
            + 0.5 * model.layers[0].weight.square().sum()
        )
        total.backward()
        return total

    optimizer.step(loss)
    torch.testing.assert_close(model(rows).log_softmax(1), torch.from_numpy(expected), atol=1e-4, rtol=0.0)


def test_without_a_hidden_layer_it_is_linear_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 4))
    y = x @ generator.normal(size=4) + 2.0 + generator.normal(size=60)
    expected = linear_model.LinearRegression().fit(x, y).predict(x)
    model = Mlp(MlpConfig(inputs=4, outputs=1)).double()
    rows, targets = torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = (model(rows)[:, 0] - targets).square().mean()
        total.backward()
        return total

    optimizer.step(loss)
    torch.testing.assert_close(model(rows)[:, 0], torch.from_numpy(expected), atol=1e-4, rtol=0.0)


def test_dropout_is_for_training() -> None:
    torch.manual_seed(0)
    model, x = Mlp(MlpConfig(inputs=3, outputs=2, hidden=(50,), dropout=0.5)), torch.randn(1, 3)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("wrong", [{"hidden": (0,)}, {"activation": "rlu"}, {"dropout": 1.0}, {"outputs": 0}])
def test_wrong_shapes(wrong: dict) -> None:
    with pytest.raises(InputError):
        MlpConfig(**({"inputs": 2, "outputs": 2} | wrong))
