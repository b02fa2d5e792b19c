"""The weights that are shown are those that a network mixes with: compared with torch and with transformers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from luban.models.attention_weights import AttentionWeights, rollout
from luban.models.encoder import Encoder, EncoderConfig, write_config
from luban.models.modern_encoder import ModernEncoder, ModernEncoderConfig
from luban.models.recurrent import Recurrent, RecurrentConfig
from luban.models.seq2seq import Seq2Seq, Seq2SeqConfig
from luban.models.seq2seq_rnn import RecurrentSeq2Seq, RecurrentSeq2SeqConfig


def texts(rows: int = 3, length: int = 7) -> tuple[Tensor, Tensor]:
    """Return ids and mask of texts of unequal lengths."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 10, (rows, length), generator=generator)
    return ids, torch.arange(length) < torch.tensor([length, 4, 1])[:rows, None]


@pytest.mark.parametrize("kind", ["plain", "causal", "mask", "bias", "grouped"])
def test_weights_mix_values_to_what_the_kernel_gives(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    heads = 2 if kind == "grouped" else 4
    query = torch.randn(2, 4, 5, 8, generator=generator)
    key, value = torch.randn(2, 2, heads, 5, 8, generator=generator)
    mask = torch.rand(2, 1, 5, 5, generator=generator)
    given = {
        "plain": {},
        "causal": {"is_causal": True},
        "mask": {"attn_mask": (mask > 0.5) | torch.eye(5, dtype=torch.bool)},
        "bias": {"attn_mask": mask},
        "grouped": {"enable_gqa": True, "scale": 0.7},
    }[kind]
    with AttentionWeights() as seen:
        mixed = F.scaled_dot_product_attention(query, key, value, **given)
    values = value.repeat_interleave(4 // heads, dim=1)
    torch.testing.assert_close(seen.found[0] @ values, mixed)


def test_weights_of_bert_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    model = Encoder(EncoderConfig(vocab_size=10, outputs=2, layers=2, width=8, heads=2, max_length=8)).eval()
    config = transformers.BertConfig(**write_config(model.config, ["a", "b"]), attn_implementation="eager")
    theirs = transformers.BertForSequenceClassification(config).eval()
    theirs.load_state_dict(model.state_dict())
    ids, mask = texts()
    with torch.no_grad():
        with AttentionWeights() as seen:
            model(ids, mask)
        wanted = theirs(ids, attention_mask=mask.long(), output_attentions=True).attentions
    for ours, other in zip(seen.found, wanted, strict=True):
        torch.testing.assert_close(ours[mask.any(1)], other, rtol=1e-5, atol=1e-6)


def test_rollout_hands_on_half_and_mixes_half() -> None:
    weights = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
    assert rollout([weights])[0].tolist() == [[0.5, 0.5], [0.25, 0.75]]
    twice = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    assert torch.equal(rollout([weights, weights])[0], twice @ twice)


@pytest.mark.parametrize("network", ["pooling", "mean", "first"])
def test_what_a_text_is_attended_by_adds_up_and_padding_counts_nothing(network: str) -> None:
    torch.manual_seed(0)
    model = {
        "pooling": lambda: Recurrent(RecurrentConfig(10, 2, 8, 8, pooling="attention")),
        "mean": lambda: ModernEncoder(ModernEncoderConfig(10, 2, layers=2, width=8, heads=2)),
        "first": lambda: Encoder(EncoderConfig(10, 2, layers=2, width=8, heads=2)),
    }[network]().eval()
    ids, mask = texts()
    found = model.attended(ids, mask).detach()  # with gradients on, as where a model is looked at by hand
    alone = model.attended(ids[1:2, :4], mask[1:2, :4]).detach()
    torch.testing.assert_close(found.sum(1), torch.ones(3))
    assert float(found[~mask].abs().max()) == 0.0
    torch.testing.assert_close(found[1, :4], alone[0])


def test_without_attention_there_is_nothing_to_show() -> None:
    assert Recurrent(RecurrentConfig(10, 2, 8, 8, pooling="max")).attended(*texts()) is None


def test_a_translation_looks_at_its_source_and_at_no_padding() -> None:
    torch.manual_seed(0)
    ids, mask = texts()
    target = torch.tensor([[1, 2, 3, 4]] * 3)
    for model in (
        Seq2Seq(Seq2SeqConfig(10, 10, layers=2, width=8, heads=2)).eval(),
        RecurrentSeq2Seq(RecurrentSeq2SeqConfig(10, 10, 8, 8)).eval(),
    ):
        with torch.no_grad():
            found = model.attended(ids, mask, target)
        assert found.shape == (3, 4, 7)
        torch.testing.assert_close(found.sum(2), torch.ones(3, 4))
        assert float(found.masked_select(~mask[:, None]).abs().max()) == 0.0


def test_the_last_decoder_layer_is_the_one_that_is_shown() -> None:
    torch.manual_seed(0)
    model = Seq2Seq(Seq2SeqConfig(10, 10, layers=2, width=8, heads=2)).eval()
    ids, mask = texts()
    target = torch.tensor([[1, 2, 3, 4]] * 3)
    with torch.no_grad():
        before = model.attended(ids, mask, target)
        model.decoder[1].source_attention.query.weight.zero_()
        model.decoder[1].source_attention.query.bias.zero_()
        after = model.attended(ids, mask, target)
    assert not torch.allclose(before, after)
    spread = mask / mask.sum(1, keepdim=True)  # queries of zero fit every key alike
    torch.testing.assert_close(after, spread[:, None].expand_as(after))
