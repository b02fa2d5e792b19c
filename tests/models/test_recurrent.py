"""Recurrent layers against torch's own on packed sequences; the written-out recurrences against torch's kernels."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from luban.errors import InputError
from luban.models.recurrent import AttentionPooling, Recurrent, RecurrentConfig, RecurrentLayers
from luban.models.recurrent_cells import CELLS, RecurrentLayer

LENGTHS = torch.tensor([6, 2, 1, 4])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_layers_equal_torch_on_packed_sequences(cell: str, bidirectional: bool) -> None:
    torch.manual_seed(0)
    ours = RecurrentLayers(cell, 3, 5, 2, bidirectional=bidirectional, dropout=0.0).double()
    theirs = CELLS[cell](3, 5, num_layers=2, bidirectional=bidirectional, batch_first=True).double()
    copied = {}
    for layer in range(2):
        for cells, suffix in ((ours.onward_layers, ""), (ours.backward_layers, "_reverse")):
            if len(cells):
                for name, weight in cells[layer].kernel.named_parameters():
                    copied[name.replace("l0", f"l{layer}{suffix}")] = weight
    theirs.load_state_dict(copied)
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    mask = torch.arange(6) < LENGTHS[:, None]
    packed, last = theirs(pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False))
    expected, _ = pad_packed_sequence(packed, batch_first=True)
    states = ours(x, mask)
    torch.testing.assert_close(states * mask[..., None], expected)
    hidden = last[0] if cell == "lstm" else last  # (layers * directions, batch, width)
    ends = torch.cat(tuple(hidden[-2:]), dim=-1) if bidirectional else hidden[-1]
    torch.testing.assert_close(ours.last(states, mask), ends)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("started", [False, True])
def test_written_out_recurrence_equals_the_kernel(cell: str, started: bool) -> None:
    torch.manual_seed(0)
    layer, x = RecurrentLayer(cell, 3, 5).double(), torch.randn(4, 6, 3, dtype=torch.float64)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    start = tuple(torch.randn(2 if cell == "lstm" else 1, 4, 5, dtype=torch.float64)) if started else None
    with torch.no_grad():
        torch.testing.assert_close(layer._scanned(x, start), layer(x, start))


def test_initial_weights() -> None:
    layer = RecurrentLayer("lstm", 3, 5).kernel
    for gate in layer.weight_hh_l0.detach().split(5):
        torch.testing.assert_close(gate @ gate.T, torch.eye(5))
    assert (layer.bias_ih_l0 + layer.bias_hh_l0).tolist() == [0.0] * 5 + [1.0] * 5 + [0.0] * 10


def test_attention_pooling_by_hand() -> None:
    torch.manual_seed(0)
    pool, states = AttentionPooling(4).double(), torch.randn(1, 5, 4, dtype=torch.float64)
    shares = [torch.exp(pool.query(torch.tanh(pool.key(state)))) for state in states[0, :3]]
    expected = sum(share * state for share, state in zip(shares, states[0], strict=False)) / sum(shares)
    torch.testing.assert_close(pool(states, torch.tensor([[True, True, True, False, False]]))[0], expected)


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_text_is_the_largest_or_the_mean_of_the_states_of_its_tokens(cell: str, pooling: str) -> None:
    torch.manual_seed(0)
    config = RecurrentConfig(
        vocab_size=9, outputs=2, cell=cell, embedding_width=3, width=5, bidirectional=False, pooling=pooling
    )
    model = Recurrent(config).double().eval()
    (cells,) = model.layers.onward_layers
    theirs = CELLS[cell](3, 5, batch_first=True).double()
    theirs.load_state_dict(dict(cells.kernel.named_parameters()))
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    expected = []
    for row, length in zip(ids, (4, 2), strict=True):
        states = theirs(model.tokens.weight[row[:length]][None])[0][0]  # (length, width)
        expected.append(states.amax(0) if pooling == "max" else states.mean(0))
    found = model(ids, torch.arange(4) < torch.tensor([[4], [2]]))
    torch.testing.assert_close(found, model.output(torch.stack(expected)))


def test_dropout_between_layers_and_around() -> None:
    torch.manual_seed(0)
    model = Recurrent(RecurrentConfig(vocab_size=9, outputs=2, layers=2, dropout=0.5))
    ids, mask = torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool)
    assert not torch.equal(model(ids, mask), model(ids, mask))
    model.eval()
    assert torch.equal(model(ids, mask), model(ids, mask))


def test_a_misspelt_cell_is_named() -> None:
    with pytest.raises(InputError, match="cell") as caught:
        RecurrentConfig(vocab_size=9, outputs=2, cell="ltsm")
    assert "did you mean lstm" in str(caught.value)
