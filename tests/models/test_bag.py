"""The bag against the same mean written out, in float64."""

import itertools

import pytest
import torch

from luban.errors import InputError
from luban.models.bag import Bag, BagConfig

TEXT = [3, 7, 7, 1, 0]


@pytest.mark.parametrize("padding", [0, 2])
def test_bag_is_the_mean_of_tokens_and_pairs(padding: int) -> None:
    torch.manual_seed(0)
    model = Bag(BagConfig(vocab_size=9, outputs=2, width=4, bigram_buckets=11)).double()
    torch.nn.init.normal_(model.output.weight)
    features = [model.tokens.weight[token] for token in TEXT]
    for left, right in itertools.pairwise(TEXT):
        features.append(model.bigrams.weight[(left * 116049371 + right) % 11])
    expected = model.output(torch.stack(features).mean(0))
    mask = torch.tensor([[True] * 5 + [False] * padding])
    found = model(torch.tensor([TEXT + [5] * padding]), mask)[0]
    torch.testing.assert_close(found, expected)


def test_bag_of_scattered_tokens_has_pairs_of_neighbours_only() -> None:
    model = Bag(BagConfig(vocab_size=9, outputs=2, width=4, bigram_buckets=11)).double()
    torch.nn.init.normal_(model.output.weight)
    mask = torch.tensor([[True, False, True, True, False]])
    features = [model.tokens.weight[token] for token in (3, 7, 1)]
    features.append(model.bigrams.weight[(7 * 116049371 + 1) % 11])
    expected = model.output(torch.stack(features).mean(0))
    torch.testing.assert_close(model(torch.tensor([TEXT]), mask)[0], expected)


def test_wrong_number_of_buckets() -> None:
    with pytest.raises(InputError, match="bigram_buckets"):
        BagConfig(vocab_size=5, outputs=2, bigram_buckets=-1)
