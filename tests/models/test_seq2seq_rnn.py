"""The recurrent translator against its equations token by token, in float64."""

import pytest
import torch
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.seq2seq_rnn import RecurrentSeq2Seq, RecurrentSeq2SeqConfig

SOURCE = torch.randint(0, 20, (3, 6), generator=torch.Generator().manual_seed(1))
TARGET = torch.randint(0, 25, (3, 4), generator=torch.Generator().manual_seed(2))
LENGTHS = [6, 1, 4]
MASK = torch.arange(6) < torch.tensor(LENGTHS)[:, None]


def translator(**changes: object) -> RecurrentSeq2Seq:
    torch.manual_seed(0)
    shape = {"embedding_width": 5, "width": 4, "layers": 2, "dropout": 0.0} | changes
    return RecurrentSeq2Seq(RecurrentSeq2SeqConfig(20, 25, **shape)).double().eval()


def by_hand(model: RecurrentSeq2Seq, source: Tensor, target: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and attention of one pair, without padding, with torch's single cells."""
    width, layers = model.config.width, model.config.layers
    memory = model.encoder(model.source_tokens(source)[None], torch.ones(1, len(source), dtype=torch.bool))[0]
    ends = torch.cat((memory[-1, :width], memory[0, width:]))
    starts = torch.tanh(model.bridge.weight @ ends + model.bridge.bias).view(layers, width)
    kind = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}[model.config.cell]
    cells, states = [], []
    for number, layer in enumerate(model.decoder):
        cell = kind(layer.kernel.input_size, width).double()
        cell.load_state_dict({name[:-3]: weight for name, weight in layer.kernel.named_parameters()})
        cells.append(cell)
        states.append(
            (starts[number], torch.zeros(width).double()) if kind is nn.LSTMCell else starts[number]
        )
    logits, attention = [], []
    for token in target:
        x = model.target_tokens.weight[token]
        for number, cell in enumerate(cells):
            states[number] = cell(x, states[number])
            x = states[number][0] if kind is nn.LSTMCell else states[number]
        weights = torch.stack([x @ model.score.weight @ state for state in memory]).softmax(0)
        context = sum(weight * state for weight, state in zip(weights, memory, strict=True))
        hidden = torch.tanh(model.combine.weight @ torch.cat((context, x)))
        logits.append(model.output_weight @ hidden)
        attention.append(weights)
    return logits, attention


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_equals_the_equations(cell: str) -> None:
    model = translator(cell=cell)
    logits = model(SOURCE, MASK, TARGET)
    _, attention, _ = model.decode(TARGET, model.encode(SOURCE, MASK), MASK)
    for row, length in enumerate(LENGTHS):
        expected, weights = by_hand(model, SOURCE[row, :length], TARGET[row])
        torch.testing.assert_close(logits[row], torch.stack(expected))
        torch.testing.assert_close(attention[row, :, :length], torch.stack(weights))
        assert not attention[row, :, length:].any()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_steps_are_the_whole_pass_and_rows_can_be_moved(cell: str) -> None:
    model = translator(cell=cell)
    whole = model(SOURCE, MASK, TARGET).log_softmax(-1)
    log_probs, state = model.step(model.start(SOURCE, MASK), TARGET[:, 0])
    torch.testing.assert_close(log_probs, whole[:, 0])
    rows = torch.tensor([2, 0, 0, 1])
    state = model.reorder(state, rows)
    for place in (1, 2, 3):
        log_probs, state = model.step(state, TARGET[rows, place])
        torch.testing.assert_close(log_probs, whole[rows, place])


def test_tied_output() -> None:
    model = translator(tied=True, embedding_width=4)
    assert model.output_weight is model.target_tokens.weight
    with pytest.raises(InputError, match="tied"):
        RecurrentSeq2SeqConfig(20, 25, embedding_width=5, width=4, tied=True)
