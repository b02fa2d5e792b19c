"""TabM: one MLP that is many, for tables of numbers and categories.

What is notable:
- numbers become vectors by piecewise-linear encoding: how far they are through each of their bins
- an ensemble for little more than the price of one: its members share all matrices; each multiplies the input by
  a vector of its own and has a head of its own (the paper's TabM-mini)
- members are trained together, each by its own loss, and answer together

Gorishniy, Kotelnikov and Babenko, "TabM", https://arxiv.org/abs/2410.24210 (ICLR 2025);
Gorishniy, Rubachev and Babenko, "On Embeddings for Numerical Features", https://arxiv.org/abs/2203.05556
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.config_checks import check_shares, check_sizes
from luban.models.dropout import dropout
from luban.models.one_hot import OneHot


@dataclass(frozen=True)
class TabMConfig:
    """TabM's shape, and the bins of its columns of numbers.

    Arguments:
        outputs: numbers that each member gives: classes, or targets.
        edges: for each column of numbers, the rising edges of its bins (`luban.data.statistics.quantile_bins`);
            one edge or none for a column that is constant or empty.
        categories: for each column of categories, how many there are.
        members: of the ensemble.
        number_width: width of a number's vector. category_width: of a category's.
        one_hot_limit: a column of at most so many categories is read as one-hot, one of more by learned vectors.
        layers, width: of the MLP. dropout: after each of its layers.

    Raises:
        InputError: when the numbers do not fit each other.
    """

    outputs: int
    edges: tuple[tuple[float, ...], ...] = ()
    categories: tuple[int, ...] = ()
    members: int = 32
    number_width: int = 16
    category_width: int = 16
    one_hot_limit: int = 32
    layers: int = 3
    width: int = 512
    dropout: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple(tuple(column) for column in self.edges))  # JSON gives lists
        object.__setattr__(self, "categories", tuple(self.categories))
        if not self.edges and not self.categories:
            raise InputError("a table needs a column", fix="give edges or categories")
        check_sizes(self, "outputs", "members", "number_width", "category_width", "layers", "width")
        check_shares(self, "dropout")
        if min(self.categories, default=1) < 1:
            raise InputError("a column of categories has at least one", received=self.categories)
        smallest, largest = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
        for number, column in enumerate(self.edges):
            risen = all(smallest <= right - left <= largest for left, right in pairwise(column))
            if not risen or not all(abs(edge) <= largest for edge in column):
                raise InputError(
                    f"the edges of column {number} must rise, and be finite in float32",
                    received=column,
                    fix="take those of luban.data.statistics.quantile_bins",
                )


class NumberEmbeddings(nn.Module):
    """Turns each number into a vector, by the bins of its column.

    The encoding of x has a part for each bin: 0 left of the bin, 1 right of it, the share of its width in between.

    ```
    edges      0      10     20     30
    x = 14        1      0.4     0        the sum, 1.4 of 3 bins, is the rank of x among the training rows
    ```

    The vector is `bias + rank * linear + parts @ weight`; the rank is moved and scaled so that uniform ranks have
    mean zero and variance one, and `weight` starts at zero, so that training starts from vectors linear in the
    rank. The paper on TabM does the same in two steps, numbers to ranks before and ranks to vectors in the model.
    A number beyond the outermost edges counts as the edge; a missing one (NaN) has neither parts nor rank, and
    adds the vector `missing` instead.

    Initial weights: `linear` and `bias` uniform within 1 / sqrt(width), the others zero.
    """

    def __init__(self, edges: tuple[tuple[float, ...], ...], width: int) -> None:
        super().__init__()
        columns, bins = len(edges), max(0, *(len(column) - 1 for column in edges))
        left, scale = torch.zeros(columns, bins), torch.zeros(columns, bins)
        low, high = torch.zeros(columns), torch.zeros(columns)
        slope, centre = torch.zeros(columns), torch.zeros(columns)
        for number, column in enumerate(edges):
            points = torch.tensor(column, dtype=torch.float64)
            count = len(column) - 1
            if count >= 0:
                low[number], high[number] = points[0], points[-1]
            if count >= 1:
                left[number, :count] = points[:-1]
                scale[number, :count] = 1.0 / points.diff()
                slope[number], centre[number] = math.sqrt(12) / count, math.sqrt(12) / 2
        # They are part of the configuration, so no checkpoint holds them; padding bins have scale zero.
        for name, values in {
            "left": left,
            "scale": scale,
            "low": low,
            "high": high,
            "slope": slope,
            "centre": centre,
        }.items():
            self.register_buffer(name, values, persistent=False)
        self.linear = nn.Parameter(torch.empty(columns, width))
        self.bias = nn.Parameter(torch.empty(columns, width))
        self.weight = nn.Parameter(torch.empty(columns, bins, width))
        self.missing = nn.Parameter(torch.empty(columns, width))
        self.reset_parameters()

    left: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    slope: Tensor
    centre: Tensor

    def reset_parameters(self) -> None:
        """Draw the initial weights anew."""
        bound = 1.0 / math.sqrt(self.linear.shape[1])
        nn.init.uniform_(self.linear, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.missing)

    def encode(self, numbers: Tensor) -> Tensor:
        """Return the parts of each number, (batch, columns, bins); all zero for NaN and for bins a column lacks."""
        # NaN passes through the bounds, and is the least: none of any bin.
        inside = torch.where(numbers.isnan(), self.low, numbers.clamp(self.low, self.high))
        return ((inside[..., None] - self.left) * self.scale).clamp(0.0, 1.0)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return the vectors: (batch, columns) -> (batch, columns, width)."""
        missing = numbers.isnan()[..., None].to(self.bias.dtype)  # (batch, columns, 1)
        parts = self.encode(numbers)  # (batch, columns, bins)
        rank = (parts.sum(-1) * self.slope - self.centre)[..., None] * (1.0 - missing)
        vectors = self.bias + rank * self.linear + missing * self.missing
        return vectors + torch.einsum("bcp,cpw->bcw", parts, self.weight)


class CategoryEmbeddings(nn.Module):
    """Turns categories into one-hot vectors, or into learned ones where a column has many.

    A number that no category has, -1 above all, is an unknown category and gives zeros.

    Initial weights: uniform within 1 / sqrt(width).
    """

    def __init__(self, categories: tuple[int, ...], width: int, one_hot_limit: int) -> None:
        super().__init__()
        few = [column for column, size in enumerate(categories) if size <= one_hot_limit]
        many = [column for column, size in enumerate(categories) if size > one_hot_limit]
        sizes = torch.tensor([categories[column] for column in many], dtype=torch.int64)
        self.one_hot = OneHot([categories[column] for column in few])
        for name, values in {
            "few": torch.tensor(few, dtype=torch.int64),
            "many": torch.tensor(many, dtype=torch.int64),
            "sizes": sizes,
            "first": sizes.cumsum(0) - sizes,  # the row of `weight` that is a column's first
        }.items():
            self.register_buffer(name, values, persistent=False)
        self.widths = [categories[column] for column in few] + [width] * len(many)
        self.weight = nn.Parameter(torch.empty(int(sizes.sum()), width))
        self.reset_parameters()

    few: Tensor
    many: Tensor
    sizes: Tensor
    first: Tensor

    def reset_parameters(self) -> None:
        """Draw the initial vectors anew."""
        bound = 1.0 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, categories: Tensor) -> Tensor:
        """Return the vectors side by side: (batch, columns) -> (batch, sum of `widths`)."""
        one_hot: Tensor = self.one_hot(categories[:, self.few]).to(self.weight.dtype)  # (batch, places)
        if not len(self.sizes):
            return one_hot
        codes = categories[:, self.many]  # (batch, columns of many)
        known = (codes >= 0) & (codes < self.sizes)
        rows = torch.where(known, codes, 0) + self.first
        vectors = F.embedding(rows, self.weight) * known[..., None].to(self.weight.dtype)
        return torch.cat([one_hot, vectors.flatten(1)], dim=1)


class TabM(nn.Module):
    """An ensemble of MLPs that share their matrices: each member reads the input times its own vector.

    The loss is the mean of the members' losses,
    `loss_sum(logits.flatten(0, 1), targets.repeat_interleave(members)) / members`; the answer is the mean of their
    probabilities (`mean_probabilities`), or of their numbers.

    Initial weights: matrices, heads and their biases uniform within 1 / sqrt(inputs). A member's vector is drawn
    once for each column and the same for all that the column became: normal, or -1 and 1 where there are no
    numbers.

    Example:
        >>> model = TabM(TabMConfig(outputs=3, edges=((0.0, 1.0, 5.0),), categories=(2,), members=4, width=8))
        >>> logits = model(torch.tensor([[0.5], [float("nan")]]), torch.tensor([[1], [0]]))
        >>> logits.shape, mean_probabilities(logits).shape
        (torch.Size([2, 4, 3]), torch.Size([2, 3]))
    """

    def __init__(self, config: TabMConfig) -> None:
        super().__init__()
        self.config = config
        self.numbers = NumberEmbeddings(config.edges, config.number_width) if config.edges else None
        self.categories = None
        if config.categories:
            self.categories = CategoryEmbeddings(
                config.categories, config.category_width, config.one_hot_limit
            )
        inputs = sum(self._column_widths())
        self.adapter = nn.Parameter(torch.empty(config.members, inputs))
        widths = [inputs, *[config.width] * config.layers]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))
        self.heads = nn.Parameter(torch.empty(config.members, config.width, config.outputs))
        self.head_biases = nn.Parameter(torch.empty(config.members, config.outputs))
        self.reset_parameters()

    def _column_widths(self) -> list[int]:
        """Return how many inputs of the MLP each column became, in their order."""
        numbers = [self.config.number_width] * len(self.config.edges)
        return numbers + (self.categories.widths if self.categories is not None else [])

    def reset_parameters(self) -> None:
        """Draw the initial weights anew."""
        bound = 1.0 / math.sqrt(self.config.width)
        nn.init.uniform_(self.heads, -bound, bound)
        nn.init.uniform_(self.head_biases, -bound, bound)
        for module in (self.numbers, self.categories, *self.layers):
            if isinstance(module, NumberEmbeddings | CategoryEmbeddings | nn.Linear):
                module.reset_parameters()
        widths = torch.tensor(self._column_widths(), device=self.adapter.device)
        drawn = torch.randn(self.config.members, len(widths), device=self.adapter.device)
        if self.numbers is None:
            drawn = drawn.sign()
        with torch.no_grad():
            self.adapter.copy_(drawn.repeat_interleave(widths, dim=1))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        """Return what each member says: (batch, members, outputs).

        Arguments:
            numbers: (batch, columns) float; NaN is missing.
            categories: (batch, columns) int64; -1 is unknown. Either has no columns where the table has none.
        """
        parts = []
        if self.numbers is not None:
            parts.append(self.numbers(numbers).flatten(1))
        if self.categories is not None:
            parts.append(self.categories(categories))
        x = torch.cat(parts, dim=1)[:, None, :] * self.adapter  # (batch, members, inputs)
        for layer in self.layers:
            x = dropout(F.relu(layer(x)), self.config.dropout, self.training)  # (batch, members, width)
        return torch.einsum("bmw,mwo->bmo", x, self.heads) + self.head_biases


def mean_probabilities(logits: Tensor) -> Tensor:
    """Return the mean of the members' probabilities: (batch, members, classes) -> (batch, classes)."""
    return logits.float().softmax(-1).mean(1)
