"""GPT-2: learned positions, LayerNorm, one matrix for queries, keys and values, a GELU MLP, biases
everywhere.

Called as `luban.models.decoder.Decoder` is. Parameters carry Hugging Face's names; its matrices stand
transposed there (`luban.models.layouts` turns them).

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.attention import attend, attention_mask
from luban.models.cache import Cache
from luban.models.dropout import dropout
from luban.models.head import Head
from luban.models.rope import last_position


@dataclass(frozen=True)
class GPT2Config:
    """GPT-2's shape.

    Arguments:
        mlp_width: width inside the MLP; 0 means 4 times `width`.
        max_length: how many positions are learned, so the longest text read at once, in tokens.
        tied: the output embedding is the input embedding, as in every GPT-2 that was published.
        dropout: share of the embedding and of what each block adds that is zeroed while training.
        init_std: standard deviation of the initial embeddings and matrices.
        zero_init_projections: start the matrices that write to the residual stream at zero.

    Raises:
        InputError: when the numbers do not fit each other.
    """

    vocab_size: int
    layers: int
    width: int
    heads: int
    layout: str = "gpt2"
    mlp_width: int = 0
    max_length: int = 1024
    norm_eps: float = 1e-5
    tied: bool = True
    dropout: float = 0.0
    init_std: float = 0.02
    zero_init_projections: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "width", "heads", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1", received=getattr(self, name))
        if self.width % self.heads:
            raise InputError(f"width is not a multiple of heads ({self.heads})", received=self.width)
        object.__setattr__(self, "mlp_width", self.mlp_width or 4 * self.width)

    @property
    def head_dim(self) -> int:
        """Dimensions of a head."""
        return self.width // self.heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: as many as of queries."""
        return self.heads


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, config.heads
        self.c_attn = nn.Linear(config.width, 3 * config.width)
        self.c_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """Mix each token with those it may see: (batch, length, width) -> (batch, length, width)."""
        fused = self.c_attn(x).view(*x.shape[:2], 3, self.heads, -1)  # (batch, length, 3, heads, head_dim)
        queries, keys, values = fused.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, head_dim)
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        mixed = attend(queries, keys, values, mask)
        out: Tensor = self.c_proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two matrices with a GELU, in its tanh form, between: Hendrycks, https://arxiv.org/abs/1606.08415."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.width, config.mlp_width)
        self.c_proj = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself: (batch, length, width) -> (batch, length, width)."""
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """Attention, then MLP; each reads the normed residual stream and adds to it."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, config.norm_eps)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = Mlp(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """One layer: (batch, length, width) -> (batch, length, width)."""
        x = x + dropout(self.attn(self.ln_1(x), mask, cache), self.dropout, self.training)
        return x + dropout(self.mlp(self.ln_2(x)), self.dropout, self.training)


class Stack(nn.Module):
    """Embeddings, blocks and final norm; its owner's `transformer` completes Hugging Face's names."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.width)
        self.wpe = nn.Embedding(config.max_length, config.width)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width, config.norm_eps)


class GPT2(nn.Module):
    """A causal language model in GPT-2's layout.

    Initial weights: normal with `init_std`, those that write to the residual stream divided by sqrt(2 *
    layers) or zero; norms one; biases zero. Draws come from torch's default generator.

    Example:
        >>> import torch
        >>> model = GPT2(GPT2Config(vocab_size=10, layers=1, width=8, heads=2))
        >>> model(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 10])
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.transformer = Stack(config)
        self.lm_head = None if config.tied else Head(config.width, config.vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights anew."""
        config = self.config
        depth = 0.0 if config.zero_init_projections else 1.0 / math.sqrt(2 * config.layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = depth if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(parameter, std=config.init_std * scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.ones_(parameter)

    @property
    def output_weight(self) -> Tensor:
        """The matrix from hidden states to logits: (vocab_size, width)."""
        return self.transformer.wte.weight if self.lm_head is None else self.lm_head.weight

    def hidden(
        self,
        ids: Tensor,
        *,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Return the states after the final norm: (batch, length, width). Arguments as of `Decoder.hidden`.

        Raises:
            InputError: for a position from `max_length` on.
        """
        if positions is None:
            positions = (Cache() if cache is None else cache).positions(ids.shape[1], ids.device)
            last = ids.shape[1] - 1 if cache is None else last_position(positions)
        else:
            last = last_position(positions)
        if last >= self.config.max_length:
            fix = f"give at most {self.config.max_length} tokens, the model's max_length"
            raise InputError("the text is longer than the model reads", received=last + 1, fix=fix)
        x = self.transformer.wte(ids) + self.transformer.wpe(positions)  # (batch, length, width)
        mask = attention_mask(ids, cache, segments)
        x = dropout(x, self.config.dropout, self.training)
        for block in self.transformer.h:
            x = block(x, mask, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        out: Tensor = self.transformer.ln_f(x)
        return out

    def forward(
        self,
        ids: Tensor,
        *,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Return logits, (batch, length, vocab_size); the arguments are those of `hidden`."""
        hidden = self.hidden(ids, cache=cache, positions=positions, segments=segments)
        return F.linear(hidden, self.output_weight)
