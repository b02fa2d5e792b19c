"""A Transformer encoder for training from scratch on small data: the decoder's blocks, reading in both directions.

What is notable:
- the blocks are those of `luban.models.decoder`: norms before each block, rotary positions, SwiGLU, no biases.
  Only the mask differs: a token sees every token of its text
- a text's answer comes from the mean over its tokens: no [CLS] has to learn first what it is for

Norms before blocks: Xiong et al., https://arxiv.org/abs/2002.04745; rotary positions in an encoder, among others:
Warner et al., "ModernBERT", https://arxiv.org/abs/2412.13663
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luban.models.attention_weights import AttentionWeights, rollout
from luban.models.config_checks import check_shares, check_sizes
from luban.models.decoder import Block, DecoderConfig
from luban.models.dropout import dropout
from luban.models.head import Head
from luban.models.norm import RMSNorm
from luban.models.padding import keys_mask, masked_mean
from luban.models.rope import RotaryTables


@dataclass(frozen=True)
class ModernEncoderConfig:
    """The encoder's shape.

    Arguments:
        outputs: classes, or figures to be told; labels where `per_token`.
        mlp_width: width inside the MLP; 0 means 8/3 of `width`, rounded up to a multiple of 32.
        max_length: the longest text read, in tokens.
        per_token: answer for each token instead of once for the text.
        dropout: share of the embedding, of what each block adds, and of what the output layer reads, that is zeroed
            while training.

    Raises:
        InputError: when the numbers do not fit each other.
    """

    vocab_size: int
    outputs: int
    layers: int = 4
    width: int = 128
    heads: int = 4
    mlp_width: int = 0
    max_length: int = 2048
    per_token: bool = False
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_sizes(self, "outputs")
        check_shares(self, "dropout")
        object.__setattr__(self, "mlp_width", self.blocks.mlp_width)

    @property
    def blocks(self) -> DecoderConfig:
        """The shape of the blocks; it checks what does not fit."""
        return DecoderConfig(
            vocab_size=self.vocab_size,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            mlp_width=self.mlp_width,
            max_length=self.max_length,
            dropout=self.dropout,
        )


class ModernEncoder(nn.Module):
    """A classifier of texts or of tokens.

    Initial weights, as the decoder's: embeddings normal with standard deviation 1 / sqrt(width), matrices with
    1 / sqrt(inputs), zero for those that write to the residual stream; norms one; the output's bias zero. Draws come
    from torch's default generator.

    Example:
        >>> import torch
        >>> model = ModernEncoder(ModernEncoderConfig(vocab_size=10, outputs=3, layers=1, width=8, heads=2))
        >>> model(torch.tensor([[1, 2]]), torch.tensor([[True, True]])).shape
        torch.Size([1, 3])
    """

    def __init__(self, config: ModernEncoderConfig) -> None:
        super().__init__()
        self.config, shape = config, config.blocks
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(shape, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.width, shape.norm_eps)
        self.rotary = RotaryTables(shape.head_dim, config.max_length, shape.rope_theta)
        self.output = Head(config.width, config.outputs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights anew."""
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "bias")):
                nn.init.zeros_(parameter)
            elif (
                parameter.ndim == 2
            ):  # of embeddings and matrices alike the second size is what 1 / sqrt takes
                nn.init.normal_(parameter, std=1.0 / math.sqrt(parameter.shape[1]))
            else:
                nn.init.ones_(parameter)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the states after the final norm, (batch, length, width); those at padding mean nothing.

        Raises:
            InputError: for a text longer than `max_length`.
        """
        x = dropout(self.tokens(ids), self.config.dropout, self.training)  # (batch, length, width)
        cosines, sines = self.rotary(ids.shape[1])
        seen = keys_mask(mask)  # (batch, 1, 1, length)
        added = None
        for block in self.layers:
            x, added = block(x, added, cosines, sines, seen, None)
        out: Tensor = self.norm.after(x, added)[1]
        return out

    @torch.no_grad()
    def attended(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return how much of each token reaches the mean that answers, (batch, length): attention rolled out."""
        with AttentionWeights() as seen:
            self.hidden(ids, mask)
        return masked_mean(rollout(seen.found), mask)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits, (batch, outputs), or (batch, length, outputs) where `per_token`.

        Arguments:
            ids: (batch, length) int64. mask: (batch, length) bool, True where a token is; any mask.
        """
        x = self.hidden(ids, mask)
        if not self.config.per_token:
            x = masked_mean(x, mask)  # (batch, width)
        out: Tensor = self.output(dropout(x, self.config.dropout, self.training))
        return out
