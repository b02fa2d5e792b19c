"""The Transformer encoder in BERT's layout, with one answer per text or one per token.

What is notable:
- learned positions, token types for pairs of texts, and a norm behind each block instead of before it
- GELU in its exact form; biases everywhere
- a text's answer comes from the first token, [CLS], through a tanh layer
- parameters carry Hugging Face's names, so that a checkpoint's names are the module's: `BertForSequenceClassification`
  and, where `per_token`, `BertForTokenClassification`

Devlin et al., "BERT", https://arxiv.org/abs/1810.04805
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.attention import mix
from luban.models.attention_weights import AttentionWeights, rollout
from luban.models.config_checks import check_heads, check_shares, check_sizes
from luban.models.dropout import dropout
from luban.models.head import Head
from luban.models.padding import keys_mask


@dataclass(frozen=True)
class EncoderConfig:
    """The encoder's shape; the defaults but the sizes are BERT's.

    Arguments:
        outputs: classes, or figures to be told; labels where `per_token`.
        mlp_width: width inside the MLP; 0 means 4 times `width`.
        max_length: how many positions are learned, so the longest text read, in tokens.
        token_types: how many parts of an input are told apart; a pair of texts has two.
        per_token: answer for each token instead of once for the text.
        dropout: share of the embedding, of what each block adds, and of what the output layer reads, that is zeroed
            while training.
        attention_dropout: share of attention's weights that is zeroed while training.
        init_std: standard deviation of the initial embeddings and matrices.

    Raises:
        InputError: when the numbers do not fit each other.
    """

    vocab_size: int
    outputs: int
    layers: int = 12
    width: int = 768
    heads: int = 12
    mlp_width: int = 0
    max_length: int = 512
    token_types: int = 2
    per_token: bool = False
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init_std: float = 0.02

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "outputs", "layers", "width", "heads", "max_length", "token_types")
        check_shares(self, "dropout", "attention_dropout")
        check_heads(self.width, self.heads)
        object.__setattr__(self, "mlp_width", self.mlp_width or 4 * self.width)


class Embeddings(nn.Module):
    """A token is the sum of what it is, where it stands and which part it belongs to, normed."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width)
        self.position_embeddings = nn.Embedding(config.max_length, config.width)
        self.token_type_embeddings = nn.Embedding(config.token_types, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, config.norm_eps)
        self.dropout = config.dropout

    def forward(self, ids: Tensor, token_types: Tensor | None) -> Tensor:
        """Embed tokens: (batch, length) -> (batch, length, width)."""
        types = torch.zeros_like(ids) if token_types is None else token_types
        x = self.word_embeddings(ids) + self.token_type_embeddings(types)
        x = x + self.position_embeddings.weight[: ids.shape[1]]  # (batch, length, width)
        return dropout(self.LayerNorm(x), self.dropout, self.training)


class SelfAttention(nn.Module):
    """Every token sees every token of its text: Vaswani et al., https://arxiv.org/abs/1706.03762."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Mix tokens: (batch, length, width), (batch, 1, 1, length) -> (batch, length, width)."""
        split = (x.shape[0], x.shape[1], self.heads, -1)
        queries = self.query(x).view(split).transpose(1, 2)  # (batch, heads, length, head_dim)
        keys = self.key(x).view(split).transpose(1, 2)
        values = self.value(x).view(split).transpose(1, 2)
        share = self.dropout if self.training else 0.0
        if share:
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, dropout_p=share)
        else:
            mixed = mix(queries, keys, values, seen)
        return mixed.transpose(1, 2).flatten(2)


class Output(nn.Module):
    """What a block adds, and the norm behind it."""

    def __init__(self, inputs: int, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, config.norm_eps)
        self.dropout = config.dropout

    def forward(self, changed: Tensor, x: Tensor) -> Tensor:
        """Add `changed`, (batch, length, inputs), to `x`, (batch, length, width)."""
        out: Tensor = self.LayerNorm(x + dropout(self.dense(changed), self.dropout, self.training))
        return out


class Layer(nn.Module):
    """Attention, then MLP; the modules that hold them have no other purpose than Hugging Face's names."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(config), "output": Output(config.width, config)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.width, config.mlp_width)})
        self.output = Output(config.mlp_width, config)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """One layer: (batch, length, width) -> (batch, length, width)."""
        x = self.attention["output"](self.attention["self"](x, seen), x)
        out: Tensor = self.output(F.gelu(self.intermediate["dense"](x)), x)
        return out


class Layers(nn.Module):
    """One layer after the other."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """All layers: (batch, length, width) -> (batch, length, width)."""
        for layer in self.layer:
            x = layer(x, seen)
        return x


class Stack(nn.Module):
    """Embeddings, layers and, for one answer per text, the pooler; its owner's `bert` completes the names."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)
        dense = nn.ModuleDict({"dense": nn.Linear(config.width, config.width)})
        self.pooler = None if config.per_token else dense


class Encoder(nn.Module):
    """A classifier of texts or of tokens in BERT's layout.

    Initial weights, as BERT's: embeddings and matrices normal with `init_std`; norms one; biases zero. Draws come
    from torch's default generator.

    Example:
        >>> model = Encoder(EncoderConfig(vocab_size=10, outputs=3, layers=1, width=8, heads=2))
        >>> model(torch.tensor([[1, 2]]), torch.tensor([[True, True]])).shape
        torch.Size([1, 3])
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = Stack(config)
        self.classifier = Head(config.width, config.outputs)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=config.init_std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.ones_(parameter)

    def hidden(self, ids: Tensor, mask: Tensor, token_types: Tensor | None = None) -> Tensor:
        """Return the last layer's states, (batch, length, width); those at padding mean nothing.

        Raises:
            InputError: for a text longer than `max_length`.
        """
        if ids.shape[1] > self.config.max_length:
            fix = f"give at most {self.config.max_length} tokens, the model's max_length"
            raise InputError("the text is longer than the model reads", received=int(ids.shape[1]), fix=fix)
        x = self.bert.embeddings(ids, token_types)  # (batch, length, width)
        states: Tensor = self.bert.encoder(x, keys_mask(mask))
        return states

    @torch.no_grad()
    def attended(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return how much of each token reaches [CLS], which answers, (batch, length): attention rolled out."""
        with AttentionWeights() as seen:
            self.hidden(ids, mask)
        return rollout(seen.found)[:, 0]

    def forward(self, ids: Tensor, mask: Tensor, token_types: Tensor | None = None) -> Tensor:
        """Return logits, (batch, outputs), or (batch, length, outputs) where `per_token`.

        Arguments:
            ids: (batch, length) int64, for one answer per text with [CLS] first.
            mask: (batch, length) bool, True where a token is; any mask.
            token_types: (batch, length) int64, the part each token belongs to; None is part 0.
        """
        x = self.hidden(ids, mask, token_types)
        if self.bert.pooler is not None:
            x = torch.tanh(self.bert.pooler["dense"](x[:, 0]))  # (batch, width)
        out: Tensor = self.classifier(dropout(x, self.config.dropout, self.training))
        return out


# Keys of a config.json that change what BERT computes, with the value that luban's encoder has.
_FIXED: dict[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "max_position_embeddings": "max_length",
    "type_vocab_size": "token_types",
}
_NUMBERS = {
    "layer_norm_eps": "norm_eps",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "init_std",
}
_BERT_BASE = {
    "vocab_size": 30_522,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
}
_TEXTS, _TOKENS = "BertForSequenceClassification", "BertForTokenClassification"


def write_config(config: EncoderConfig, labels: Sequence[str]) -> dict[str, Any]:
    """Return the fields of the config.json that transformers builds the same model from.

    Arguments:
        labels: the name of each output, in order.

    Raises:
        InputError: when there are not as many labels as outputs.
    """
    if len(labels) != config.outputs:
        raise InputError(f"there are {config.outputs} outputs", received=f"{len(labels)} labels")
    sizes = {key: getattr(config, name) for key, name in (_SIZES | _NUMBERS).items()}
    return {
        "architectures": [_TOKENS if config.per_token else _TEXTS],
        "model_type": "bert",
        "hidden_act": "gelu",
        **sizes,
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def read_config(fields: Mapping[str, Any], *, per_token: bool, outputs: int) -> EncoderConfig:
    """Turn the fields of a BERT's config.json into the configuration of an encoder with our own outputs.

    Raises:
        InputError: naming the key, for what luban's encoder does not have or cannot be.

    Example:
        >>> read_config({"model_type": "bert", "hidden_size": 24}, per_token=True, outputs=5).mlp_width
        3072
    """
    for key, fixed in _FIXED.items():
        received = fields.get(key, fixed)
        if received not in (None, fixed):
            fix = "give a folder of plain BERT, as bert-base-uncased"
            raise InputError(f"{key} must be {fixed}", received=received, where="config.json", fix=fix)
    found: dict[str, Any] = {}
    for key, name in (_SIZES | _NUMBERS).items():
        value = fields.get(key, _BERT_BASE.get(key))
        if value is None:
            continue
        kinds = (int,) if key in _SIZES else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or value < (key in _SIZES):
            raise InputError(f"{key} is no number that can be", received=value, where="config.json")
        found[name] = value
    return EncoderConfig(outputs=outputs, per_token=per_token, **found)
