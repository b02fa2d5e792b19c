"""What padding is taken out of, and what is left."""

import hypothesis.strategies as st
import torch
from hypothesis import given

from luban.models.padding import keys_mask, last_token, masked_max, masked_mean, reverse_tokens

ROWS = st.lists(st.integers(1, 6), min_size=1, max_size=4)


def padded(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(lengths)
    x = torch.randn(len(lengths), length, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.arange(length) < torch.tensor(lengths)[:, None]


@given(ROWS)
def test_each_row_is_answered_as_if_alone(lengths: list[int]) -> None:
    x, mask = padded(lengths)
    for row, length in enumerate(lengths):
        tokens = x[row, :length]
        torch.testing.assert_close(masked_mean(x, mask)[row], tokens.mean(0))
        torch.testing.assert_close(masked_max(x, mask)[row], tokens.amax(0))
        torch.testing.assert_close(last_token(x, mask)[row], tokens[-1])
        torch.testing.assert_close(reverse_tokens(x, mask)[row, :length], tokens.flip(0))


@given(ROWS)
def test_turning_twice_changes_nothing(lengths: list[int]) -> None:
    x, mask = padded(lengths)
    assert torch.equal(reverse_tokens(reverse_tokens(x, mask), mask), x)


def test_empty_row() -> None:
    x, mask = torch.ones(2, 2, 1), torch.tensor([[True, False], [False, False]])
    assert masked_mean(x, mask).tolist() == masked_max(x, mask).tolist() == [[1.0], [0.0]]
    assert keys_mask(mask)[:, 0, 0].tolist() == [[True, False], [True, True]]
