"""What holds of every network that reads texts: padding changes nothing, work is counted, graphs keep their axes."""

import json
from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn

from luban.models.bag import Bag, BagConfig
from luban.models.counted import count_flops
from luban.models.encoder import Encoder, EncoderConfig
from luban.models.modern_encoder import ModernEncoder, ModernEncoderConfig
from luban.models.recurrent import Recurrent, RecurrentConfig
from luban.models.text_cnn import TextCnn, TextCnnConfig

SIZES = {"vocab_size": 30, "outputs": 3}
SMALL = {**SIZES, "layers": 2, "width": 8, "heads": 2, "dropout": 0.0}
CELLS = {**SIZES, "embedding_width": 5, "width": 6}
NETWORKS = {
    "bag": (Bag, BagConfig(**SIZES, width=6)),
    "bag of pairs": (Bag, BagConfig(**SIZES, width=6, bigram_buckets=50)),
    "cnn": (TextCnn, TextCnnConfig(**SIZES, width=5, filters=4, windows=(1, 3, 5))),
    "elman, last": (Recurrent, RecurrentConfig(**CELLS, cell="rnn", pooling="last")),
    "lstm, one direction": (Recurrent, RecurrentConfig(**CELLS, bidirectional=False, pooling="last")),
    "lstm, two layers": (Recurrent, RecurrentConfig(**CELLS, layers=2)),
    "gru, attention": (Recurrent, RecurrentConfig(**CELLS, cell="gru", layers=2, pooling="attention")),
    "lstm per token": (Recurrent, RecurrentConfig(**CELLS, layers=2, per_token=True)),
    "encoder": (Encoder, EncoderConfig(**SMALL, max_length=16)),
    "encoder per token": (Encoder, EncoderConfig(**SMALL, max_length=16, per_token=True)),
    "modern encoder": (ModernEncoder, ModernEncoderConfig(**SMALL)),
    "modern encoder per token": (ModernEncoder, ModernEncoderConfig(**SMALL, per_token=True)),
}


def network(name: str) -> nn.Module:
    """A network with no weight at zero, so that nothing is hidden by one."""
    torch.manual_seed(0)
    kind, config = NETWORKS[name]
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def texts(lengths: list[int], padding: int) -> tuple[Tensor, Tensor]:
    """Texts of these lengths, with `padding` places more than the longest, filled with any ids."""
    longest = max(lengths) + padding
    ids = torch.randint(0, 30, (len(lengths), longest))
    return ids, torch.arange(longest) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_changes_nothing(name: str) -> None:
    model, lengths = network(name), [1, 7, 2, 5]
    ids, mask = texts(lengths, 3)
    together = model(ids, mask)
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, :length], mask[row : row + 1, :length])[0]
        found = together[row, :length] if getattr(model.config, "per_token", False) else together[row]
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_empty_row_is_harmless(name: str) -> None:
    model = network(name)
    ids, mask = texts([4, 3], 0)
    mask[1] = False
    logits = model(ids, mask)
    assert bool(logits.isfinite().all())
    logits[0].sum().backward()
    assert all(
        bool(parameter.grad.isfinite().all())
        for parameter in model.parameters()
        if parameter.grad is not None
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_learns(name: str) -> None:
    model = network(name)
    ids, mask = texts([6, 4], 0)
    model(ids, mask).square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_row_is_as_much_work(name: str) -> None:
    model, (ids, mask) = network(name), texts([6, 4, 2], 1)
    assert count_flops(model, ids, mask) == 3 * count_flops(model, ids[:1], mask[:1]) > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_configuration_is_json(name: str) -> None:
    _, config = NETWORKS[name]
    assert type(config)(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize("name", ["bag of pairs", "cnn", "elman, last", "encoder"])
def test_exported_graph_keeps_batch_and_length_free(name: str) -> None:
    model, example = network(name), texts([7, 4, 2], 0)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=16)}
    with torch.no_grad():
        graph = torch.export.export(model, example, dynamic_shapes=(axes, axes)).module()
    for lengths in ([5], [2, 3], [9, 11, 1, 4]):
        ids, mask = texts(lengths, 1)
        torch.testing.assert_close(graph(ids, mask), model(ids, mask), atol=1e-5, rtol=1e-5)
