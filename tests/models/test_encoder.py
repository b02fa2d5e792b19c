"""The encoder against transformers' BERT, both ways; the modern one against transformers' Llama without its order."""

import pytest
import torch
from torch import nn

from luban.errors import InputError
from luban.models.encoder import Encoder, EncoderConfig, read_config, write_config
from luban.models.modern_encoder import ModernEncoder, ModernEncoderConfig

transformers = pytest.importorskip("transformers")

IDS = torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(1))
MASK = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
TYPES = torch.tensor([[0] * 3 + [1] * 6] * 3)


def shaken(model: nn.Module) -> nn.Module:
    """The model with norms and biases away from one and zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("per_token", [False, True])
def test_transformers_reads_ours(per_token: bool) -> None:
    torch.manual_seed(0)
    shape = {"layers": 2, "width": 16, "heads": 4, "mlp_width": 24, "max_length": 12}
    ours = shaken(Encoder(EncoderConfig(vocab_size=40, outputs=3, **shape, per_token=per_token)))
    fields = write_config(ours.config, ["a", "b", "c"])
    config = transformers.BertConfig.from_dict(fields)
    assert config.id2label == {0: "a", 1: "b", 2: "c"}
    theirs = getattr(transformers, fields["architectures"][0])(config).eval()
    theirs.load_state_dict(ours.state_dict())
    expected = theirs(input_ids=IDS, attention_mask=MASK.long(), token_type_ids=TYPES).logits
    compared = MASK if per_token else slice(None)
    torch.testing.assert_close(ours(IDS, MASK, TYPES)[compared], expected[compared], atol=1e-5, rtol=1e-5)
    assert read_config(fields, per_token=per_token, outputs=3) == ours.config


@pytest.mark.parametrize("per_token", [False, True])
def test_we_read_transformers(per_token: bool) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=10,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.3,
        num_labels=5,
    )
    name = "BertForTokenClassification" if per_token else "BertForSequenceClassification"
    theirs = shaken(getattr(transformers, name)(config))
    ours = Encoder(read_config(config.to_dict(), per_token=per_token, outputs=5)).eval()
    ours.load_state_dict(theirs.state_dict())
    assert (ours.config.dropout, ours.config.attention_dropout) == (0.2, 0.3)
    expected = theirs(input_ids=IDS, attention_mask=MASK.long()).logits
    compared = MASK if per_token else slice(None)
    torch.testing.assert_close(ours(IDS, MASK)[compared], expected[compared], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model_type": "roberta"},
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"num_hidden_layers": 0},
        {"hidden_size": "768"},
        {"num_attention_heads": 5},
    ],
)
def test_what_bert_cannot_be_is_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong)).replace("num_attention_heads", "heads")):
        read_config({"model_type": "bert"} | wrong, per_token=False, outputs=2)


def test_too_long_a_text() -> None:
    model = Encoder(EncoderConfig(vocab_size=40, outputs=2, layers=1, width=8, heads=2, max_length=8))
    with pytest.raises(InputError, match="longer"):
        model(IDS, MASK)


def test_modern_encoder_equals_a_llama_that_sees_everything() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "layers": 2, "width": 16, "heads": 4, "mlp_width": 24}
    ours = shaken(ModernEncoder(ModernEncoderConfig(**shape, outputs=3, per_token=True)))
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    theirs = transformers.LlamaModel(config).eval()
    weights = {name.replace("tokens.", "embed_tokens."): weight for name, weight in ours.state_dict().items()}
    theirs.load_state_dict({name: weight for name, weight in weights.items() if "output" not in name})
    seen = torch.where(MASK, 0.0, torch.finfo(torch.float32).min)[:, None, None].expand(3, 1, 9, 9)
    expected = theirs(input_ids=IDS, attention_mask=seen).last_hidden_state
    torch.testing.assert_close(ours.hidden(IDS, MASK)[MASK], expected[MASK], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(IDS, MASK)[MASK], ours.output(expected)[MASK], atol=1e-5, rtol=1e-5)


def test_modern_encoder_pools_by_the_mean() -> None:
    torch.manual_seed(0)
    model = shaken(ModernEncoder(ModernEncoderConfig(vocab_size=40, outputs=3, layers=1, width=16, heads=4)))
    states = model.hidden(IDS, MASK)
    means = torch.stack([row[real].mean(0) for row, real in zip(states, MASK, strict=True)])
    torch.testing.assert_close(model(IDS, MASK), model.output(means))
