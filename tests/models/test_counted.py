"""Counted work against formulas by hand."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from luban.models.counted import FlopCounter, count_flops
from luban.models.decoder import Decoder, DecoderConfig
from luban.models.flops import forward_flops

GATES = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_recurrent_layers(kind: type[nn.RNNBase], batch_first: bool) -> None:
    layer = kind(5, 7, num_layers=2, bidirectional=True, batch_first=batch_first)
    x = torch.zeros(3, 11, 5)
    by_hand = 2 * (3 * 11) * GATES[kind] * 7 * 2 * ((5 + 7) + (14 + 7))
    with torch.no_grad(), FlopCounter() as counter:
        layer(x)
    assert count_flops(layer, x) == counter.flops == by_hand


def test_convolution() -> None:
    layer = nn.Conv2d(3, 8, 5, padding=2, stride=2)
    assert count_flops(layer, torch.zeros(4, 3, 16, 16)) == 2 * 4 * 8 * 8 * 8 * 3 * 25


def test_attention() -> None:
    class Mixing(nn.Module):
        def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(queries, keys, values)

    queries, keys = torch.zeros(2, 3, 7, 8), torch.zeros(2, 3, 9, 8)
    with FlopCounter() as counter:
        Mixing()(queries, keys, keys)
    assert count_flops(Mixing(), queries, keys, keys) == counter.flops == 2 * 2 * 3 * 7 * 9 * (8 + 8)


def test_decoder_as_its_formula_says() -> None:
    config = DecoderConfig(vocab_size=40, layers=2, width=32, heads=4, kv_heads=2)
    assert count_flops(Decoder(config), torch.zeros(2, 16, dtype=torch.int64)) == forward_flops(config, 2, 16)


def test_the_module_is_left_as_it_is() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))
    tied[3].weight = tied[0].weight
    before = {name: value.clone() for name, value in tied.state_dict().items()}
    assert count_flops(tied, torch.ones(3, 4)) == 2 * 2 * 3 * 4 * 4
    assert tied.training and tied[3].weight is tied[0].weight
    assert all(torch.equal(before[name], value) for name, value in tied.state_dict().items())


def test_what_torch_counts_is_counted_alike() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    x = torch.zeros(2, 3, 8, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as theirs:
        model(x)
    assert count_flops(model, x) == theirs.get_total_flops() > 0


def test_counting_imports_no_compiler() -> None:
    code = (
        "import sys, torch; from torch import nn; from luban.models.counted import count_flops; "
        "assert count_flops(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), torch.zeros(1, 1, 2, 2)) == 8; "
        "assert 'torch._dynamo' not in sys.modules and 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
