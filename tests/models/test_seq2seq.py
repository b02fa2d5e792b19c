"""The Transformer against torch.nn.Transformer's layers with the same weights, and against itself with a cache."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from luban.errors import InputError
from luban.models.counted import count_flops
from luban.models.seq2seq import Attention, DecoderCache, Seq2Seq, Seq2SeqConfig, sinusoids

SHAPE = {"layers": 2, "decoder_layers": 3, "width": 16, "heads": 4, "mlp_width": 24, "max_length": 12}
SOURCE = torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(1))
TARGET = torch.randint(0, 25, (3, 6), generator=torch.Generator().manual_seed(2))
MASK = torch.arange(7) < torch.tensor([7, 2, 5])[:, None]


def translator(**changes: object) -> Seq2Seq:
    """A Transformer with norms and biases away from one and zero."""
    torch.manual_seed(0)
    model = Seq2Seq(Seq2SeqConfig(20, 25, **({**SHAPE, "dropout": 0.0} | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def attention_weights(ours: Attention, name: str) -> dict[str, torch.Tensor]:
    parts = (ours.query, ours.key, ours.value)
    return {
        f"{name}.in_proj_weight": torch.cat([part.weight for part in parts]),
        f"{name}.in_proj_bias": torch.cat([part.bias for part in parts]),
        f"{name}.out_proj.weight": ours.output.weight,
        f"{name}.out_proj.bias": ours.output.bias,
    }


def layer_weights(layer: nn.Module, norms: list[nn.Module]) -> dict[str, torch.Tensor]:
    weights = attention_weights(layer.attention, "self_attn")
    for name, part in (("linear1", layer.mlp.up), ("linear2", layer.mlp.down)):
        weights |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
    for number, norm in enumerate(norms, 1):
        weights |= {f"norm{number}.weight": norm.weight, f"norm{number}.bias": norm.bias}
    return weights


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_equals_torch(norm: str) -> None:
    ours, before = translator(norm=norm).double(), norm == "pre"
    shape = {"dropout": 0.0, "batch_first": True, "norm_first": before, "dtype": torch.float64}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 24, **shape),
        2,
        ours.encoder_norm if before else None,
        enable_nested_tensor=False,
    )
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(16, 4, 24, **shape), 3, ours.decoder_norm if before else None
    )
    for mine, theirs in zip(ours.encoder, encoder.layers, strict=True):
        theirs.load_state_dict(layer_weights(mine, [mine.around_attention.norm, mine.around_mlp.norm]))
    for mine, theirs in zip(ours.decoder, decoder.layers, strict=True):
        norms = [mine.around_attention.norm, mine.around_source.norm, mine.around_mlp.norm]
        weights = layer_weights(mine, norms) | attention_weights(mine.source_attention, "multihead_attn")
        theirs.load_state_dict(weights)
    memory = encoder(ours.source(SOURCE), src_key_padding_mask=~MASK)
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)
    states = decoder(ours.target(TARGET), memory, tgt_mask=later, memory_key_padding_mask=~MASK)
    torch.testing.assert_close(ours.encode(SOURCE, MASK)[MASK], memory[MASK], atol=1e-5, rtol=1e-5)
    logits = F.linear(states, ours.output_weight)
    torch.testing.assert_close(ours(SOURCE, MASK, TARGET), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
@pytest.mark.parametrize("pieces", [[1] * 6, [4, 2], [1, 3, 2]])
def test_cache_changes_nothing(positions: str, pieces: list[int]) -> None:
    model = translator(positions=positions)
    memory, cache = model.encode(SOURCE, MASK), DecoderCache()
    parts = [model.decode(part, memory, MASK, cache) for part in TARGET.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), model.decode(TARGET, memory, MASK), atol=1e-5, rtol=1e-5)


def test_steps_are_the_whole_pass_and_rows_can_be_moved() -> None:
    model = translator()
    whole = model(SOURCE, MASK, TARGET).log_softmax(-1)
    state = model.start(SOURCE, MASK)
    log_probs, state = model.step(state, TARGET[:, 0])
    torch.testing.assert_close(log_probs, whole[:, 0], atol=1e-5, rtol=1e-5)
    rows = torch.tensor([2, 0, 0, 1])
    state = model.reorder(state, rows)
    for place in (1, 2):
        log_probs, state = model.step(state, TARGET[rows, place])
        torch.testing.assert_close(log_probs, whole[rows, place], atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing() -> None:
    model = translator()
    together = model(SOURCE, MASK, TARGET)
    for row, (source, target) in enumerate([(7, 6), (2, 3), (5, 1)]):
        alone = model(
            SOURCE[row : row + 1, :source], MASK[row : row + 1, :source], TARGET[row : row + 1, :target]
        )
        torch.testing.assert_close(together[row, :target], alone[0], atol=1e-5, rtol=1e-5)


def test_embeddings_are_shared_as_asked() -> None:
    def tables(**changes: bool) -> int:
        model = Seq2Seq(Seq2SeqConfig(25, 25, **SHAPE, **changes))
        return sum(parameter.shape == (25, 16) for parameter in model.parameters())

    assert tables(shared=True, tied=True) == 1
    assert tables(shared=False, tied=True) == tables(shared=True, tied=False) == 2
    assert tables(shared=False, tied=False) == 3


def test_sinusoids_by_the_paper_s_formula() -> None:
    table = sinusoids(50, 8)
    for place, dimension in [(0, 0), (3, 2), (49, 6)]:
        angle = torch.tensor(place / 10_000.0 ** (dimension / 8))
        torch.testing.assert_close(table[place, dimension], angle.sin(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(table[place, dimension + 1], angle.cos(), atol=1e-5, rtol=1e-5)


def test_every_pair_is_as_much_work() -> None:
    one = count_flops(translator(), SOURCE[:1], MASK[:1], TARGET[:1])
    assert count_flops(translator(), SOURCE, MASK, TARGET) == len(SOURCE) * one > 0


def test_wrong_shapes_and_lengths() -> None:
    with pytest.raises(InputError, match="one vocabulary"):
        Seq2SeqConfig(20, 25, shared=True)
    with pytest.raises(InputError, match="longer"):
        translator()(SOURCE, MASK, TARGET.repeat(1, 3))
