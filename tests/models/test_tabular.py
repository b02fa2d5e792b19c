"""TabM against an ensemble of separate networks; the encoding of numbers against its definition."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from luban.data.statistics import quantile_bins
from luban.errors import InputError
from luban.models.tabular import (
    CategoryEmbeddings,
    NumberEmbeddings,
    TabM,
    TabMConfig,
    mean_probabilities,
)

EDGES = ((0.0, 1.0, 5.0, 7.0), (-2.0, 3.0), (4.0,), ())
NAN = math.nan


def by_definition(x: float, edges: tuple[float, ...]) -> list[float]:
    """Equation 1 of the paper on embeddings, for a number within the edges; none of any bin where it is missing."""
    parts = []
    for left, right in pairwise(edges):
        if math.isnan(x) or x < left:
            parts.append(0.0)
        elif x >= right:
            parts.append(1.0)
        else:
            parts.append((x - left) / (right - left))
    return parts + [0.0] * (3 - len(parts))


@given(st.lists(st.floats(-10, 10, width=32) | st.just(NAN), min_size=4, max_size=4))
def test_the_encoding_is_the_paper_s(values: list[float]) -> None:
    module = NumberEmbeddings(EDGES, 2)
    expected = [by_definition(x, edges) for x, edges in zip(values, EDGES, strict=True)]
    torch.testing.assert_close(
        module.encode(torch.tensor([values])), torch.tensor([expected]), atol=1e-6, rtol=0
    )


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=4, max_size=4))
def test_no_number_is_too_large(values: list[float]) -> None:
    module = NumberEmbeddings(EDGES, 2)
    out = module(torch.tensor([values]))
    assert out.isfinite().all()
    assert out.abs().max() < 5.0


def test_any_bins_of_any_column_can_be_used() -> None:
    rng = np.random.default_rng(0)
    columns = [
        rng.normal(size=300) * 1e30,
        rng.integers(0, 2, 300),
        np.full(300, 7.0),
        np.full(300, NAN),
        np.exp(rng.normal(size=300) * 30),
        np.linspace(0, 1e-44, 300),
    ]
    edges = tuple(tuple(quantile_bins(column, 16).tolist()) for column in columns)
    module = NumberEmbeddings(TabMConfig(outputs=1, edges=edges).edges, 3)
    numbers = torch.from_numpy(np.stack(columns, 1)).float()
    parts = module.encode(numbers)
    assert parts.isfinite().all()
    assert parts.min() == 0.0 and parts.max() == 1.0
    # Of the columns with many values, as many rows are in one bin as in another.
    for column in (0, 4):
        inside = ((parts[:, column] > 0.0) & (parts[:, column] < 1.0)).sum(0)
        assert inside.min() >= 15 and inside.max() <= 20


def test_training_starts_from_vectors_linear_in_the_rank() -> None:
    torch.manual_seed(0)
    values = torch.randn(2000).exp().double()
    module = NumberEmbeddings((tuple(quantile_bins(values, 50).tolist()),), 4).double()
    vectors = module(values[:, None])[:, 0]
    rank = (vectors - module.bias) / module.linear
    assert abs(rank.mean()) < 0.01 and abs(rank.std() - 1.0) < 0.01
    uniform = values.argsort().argsort() / 1999 * math.sqrt(12) - math.sqrt(3)
    torch.testing.assert_close(rank[:, 0], uniform.double(), atol=0.1, rtol=0)


def test_a_missing_number_is_told_from_every_other() -> None:
    torch.manual_seed(0)
    module = NumberEmbeddings(EDGES, 2)
    torch.nn.init.normal_(module.missing)
    torch.nn.init.normal_(module.weight)
    torch.testing.assert_close(module(torch.full((1, 4), NAN))[0], module.bias + module.missing)
    module(torch.tensor([[NAN, 1.0, 2.0, 3.0]])).sum().backward()
    assert (module.missing.grad[0] == 1).all() and not module.missing.grad[1:].any()
    assert not module.weight.grad[0].any() and not module.linear.grad[0].any()


def test_categories_are_one_hot_or_looked_up() -> None:
    torch.manual_seed(0)
    module = CategoryEmbeddings((3, 40, 2, 50), 5, one_hot_limit=3)
    codes = torch.tensor([[2, 39, 0, 0], [0, 0, 1, 49]])
    out = module(codes)
    assert module.widths == [3, 2, 5, 5] and out.shape == (2, 15)
    assert torch.equal(out[:, :3], F.one_hot(codes[:, 0], 3).float())
    assert torch.equal(out[:, 3:5], F.one_hot(codes[:, 2], 2).float())
    assert torch.equal(out[:, 5:10], module.weight[:40][codes[:, 1]])
    assert torch.equal(out[:, 10:], module.weight[40:][codes[:, 3]])


@pytest.mark.parametrize("code", [-1, 60, -(2**62)])
def test_an_unknown_category_is_zero(code: int) -> None:
    module = CategoryEmbeddings((3, 40), 5, one_hot_limit=3)
    assert not module(torch.full((1, 2), code)).any()


def test_each_member_is_a_network_of_its_own() -> None:
    """Member by member, with its vector multiplied into the first matrix: a plain MLP and nothing shared."""
    torch.manual_seed(0)
    config = TabMConfig(
        outputs=3,
        edges=EDGES,
        categories=(3, 40),
        members=4,
        layers=2,
        width=16,
        dropout=0.0,
        one_hot_limit=5,
    )
    model = TabM(config).double()
    torch.nn.init.normal_(model.numbers.weight)
    numbers = torch.tensor([[0.5, 0.0, 4.0, NAN], [9.0, NAN, 1.0, 1.0]], dtype=torch.float64)
    codes = torch.tensor([[1, 7], [-1, 39]])
    x = torch.cat([model.numbers(numbers).flatten(1), model.categories(codes)], 1)
    members = []
    for member in range(4):
        first = model.layers[0].weight * model.adapter[member]
        hidden = F.relu(F.linear(x, first, model.layers[0].bias))
        hidden = F.relu(model.layers[1](hidden))
        members.append(hidden @ model.heads[member] + model.head_biases[member])
    out = model(numbers, codes)
    torch.testing.assert_close(out, torch.stack(members, 1))
    targets = torch.tensor([2, 0])
    together = F.cross_entropy(out.flatten(0, 1), targets.repeat_interleave(4), reduction="sum") / 4
    apart = sum(F.cross_entropy(logits, targets, reduction="sum") for logits in members) / 4
    torch.testing.assert_close(together, apart)
    average = sum(logits.softmax(-1) for logits in members) / 4
    torch.testing.assert_close(mean_probabilities(out), average.float())


def test_a_member_s_vector_is_drawn_once_for_each_column() -> None:
    torch.manual_seed(0)
    config = TabMConfig(
        outputs=1, edges=EDGES, categories=(3, 40), members=500, number_width=6, one_hot_limit=5
    )
    adapter = TabM(config).adapter
    blocks = adapter.split([6, 6, 6, 6, 3, 16], dim=1)
    for block in blocks:
        assert (block == block[:, :1]).all()
    drawn = torch.stack([block[:, 0] for block in blocks], 1)
    assert abs(drawn.mean()) < 0.1 and abs(drawn.std() - 1.0) < 0.1
    assert (torch.corrcoef(drawn.T) - torch.eye(6)).abs().max() < 0.2
    signs = TabM(TabMConfig(outputs=1, categories=(3,), members=8)).adapter
    assert (signs.abs() == 1).all()


def test_tables_of_numbers_or_categories_only() -> None:
    none = torch.zeros(2, 0)
    numbers = TabM(TabMConfig(outputs=2, edges=((0.0, 1.0),), members=3, width=4))
    assert numbers(torch.zeros(2, 1), none.long()).shape == (2, 3, 2)
    categories = TabM(TabMConfig(outputs=2, categories=(4,), members=3, width=4))
    assert categories(none, torch.ones(2, 1).long()).shape == (2, 3, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": ()}, "needs a column"),
        ({"edges": ((1.0, 1.0),)}, "must rise"),
        ({"edges": ((1.0, NAN),)}, "must rise"),
        ({"edges": ((0.0, 1e39),)}, "finite in float32"),
        ({"edges": ((0.0, 1e-45),)}, "must rise"),
        ({"categories": (0,)}, "at least one"),
        ({"dropout": 1.0}, "dropout"),
        ({"members": 0}, "members must be at least 1"),
    ],
)
def test_a_configuration_is_checked(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TabMConfig(**{"outputs": 1, "edges": ((0.0, 1.0),)} | change)


def test_a_configuration_comes_back_from_json() -> None:
    config = TabMConfig(outputs=1, edges=((0.0, 1.0),), categories=(2,))
    assert TabMConfig(outputs=1, edges=[[0.0, 1.0]], categories=[2]) == config  # type: ignore[arg-type]
