"""The decoder: one model for the layouts of Llama, Mistral, Qwen2 and Qwen3.

What is notable:
- grouped-query attention: several heads of queries share one head of keys and values
- rotary positions, with Llama 3's scaling for long texts
- RMSNorm before each block and at the end; QK-norm per head where the layout has it
- a gated MLP (SwiGLU)
- input and output embedding tied or not
- parameters carry Hugging Face's names, so that a checkpoint's names are the module's
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.attention import attend, attention_mask
from luban.models.attention_products import MOST_KEYS, causal_by_kernels
from luban.models.cache import Cache
from luban.models.dropout import dropout
from luban.models.fused import LANES, fits, gated_products, heads_of, kernels_for, plain, product
from luban.models.gated import gated
from luban.models.head import Head
from luban.models.norm import RMSNorm
from luban.models.rope import Llama3Scaling, RotaryTables, rotate

if TYPE_CHECKING:
    from luban.kernels import Library


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder's shape.

    Arguments:
        layout: the family whose folder is written: llama, mistral, qwen2 or qwen3.
        kv_heads: heads of keys and values; 0 means as many as `heads`.
        head_dim: dimensions of a head; 0 means width / heads.
        mlp_width: width inside the MLP; 0 means 8/3 of `width`, rounded up to a multiple of 32.
        max_length: the longest text read at once, in tokens.
        sliding_window: how many tokens back, itself included, a token sees; None means all.
        tied: the output embedding is the input embedding.
        dropout: share of the embedding and of what each block adds that is zeroed while training.
        init_std: standard deviation of the initial embeddings.
        zero_init_projections: start the matrices that write to the residual stream at zero.

    Raises:
        InputError: when the numbers do not fit each other.

    Example:
        >>> DecoderConfig(vocab_size=512, layers=2, width=64, heads=4).mlp_width
        192
    """

    vocab_size: int
    layers: int
    width: int
    heads: int
    layout: str = "llama"
    kv_heads: int = 0
    head_dim: int = 0
    mlp_width: int = 0
    max_length: int = 2048
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Scaling | None = None
    norm_eps: float = 1e-6
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    tied: bool = True
    dropout: float = 0.0
    init_std: float = 0.02
    zero_init_projections: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "width", "heads", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1", received=getattr(self, name))
        if not self.head_dim and self.width % self.heads:
            fix = "set head_dim, or change width or heads"
            raise InputError(f"width is not a multiple of heads ({self.heads})", received=self.width, fix=fix)
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "head_dim", self.head_dim or self.width // self.heads)
        object.__setattr__(self, "mlp_width", self.mlp_width or -(-self.width * 8 // 96) * 32)
        if self.heads % self.kv_heads:
            raise InputError(f"heads is not a multiple of kv_heads ({self.kv_heads})", received=self.heads)
        if self.head_dim % 2:
            raise InputError("head_dim must be even: RoPE turns pairs of dimensions", received=self.head_dim)
        if self.sliding_window is not None and self.sliding_window < 1:
            raise InputError("sliding_window must be at least 1", received=self.sliding_window)


class Attention(nn.Module):
    """Causal self-attention with grouped queries.

    Ainslie et al., "GQA", https://arxiv.org/abs/2305.13245; QK-norm: Henry et al.,
    https://arxiv.org/abs/2010.04245
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.window = layer, config.head_dim, config.sliding_window
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.width, bias=config.output_bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.fits = fits(config.width, head_dim=config.head_dim)

    def forward(
        self, x: Tensor, cosines: Tensor, sines: Tensor, mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        """Mix each token with those it may see: (batch, length, width) -> (batch, length, width)."""
        if self._plainly_causal(x, cosines, mask, cache) and (library := kernels_for(x)):
            return self._by_kernels(library, x, cosines, sines)
        split = (*x.shape[:2], -1, self.head_dim)
        queries = self.q_norm(self.q_proj(x).view(split))  # (batch, length, heads, head_dim)
        keys = self.k_norm(self.k_proj(x).view(split))  # (batch, length, kv_heads, head_dim)
        values = self.v_proj(x).view(split).transpose(1, 2)  # (batch, kv_heads, length, head_dim)
        queries = rotate(queries, cosines, sines).transpose(1, 2)  # (batch, heads, length, head_dim)
        keys = rotate(keys, cosines, sines).transpose(1, 2)  # (batch, kv_heads, length, head_dim)
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
        mixed = attend(queries, keys, values, mask)  # (batch, heads, length, head_dim)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _plainly_causal(self, x: Tensor, cosines: Tensor, mask: Tensor | None, cache: Cache | None) -> bool:
        """Whether kernels serve: whole texts from position zero, matrices without biases, norms of heads or none."""
        whole = mask is None and cache is None and cosines.ndim == 3 and x.shape[1] <= MOST_KEYS
        normed = [isinstance(norm, RMSNorm) and norm.weight.dtype == torch.float32 for norm in self._norms]
        bare = [isinstance(norm, nn.Identity) for norm in self._norms]
        return (
            whole
            and self.fits
            and plain(self.q_proj, self.k_proj, self.v_proj)
            and (all(normed) or all(bare))
        )

    @property
    def _norms(self) -> tuple[nn.Module, nn.Module]:
        return self.q_norm, self.k_norm

    def _by_kernels(self, library: Library, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """What `forward` computes, in fewer passes over memory."""
        norms, eps = None, 0.0
        if isinstance(self.q_norm, RMSNorm) and isinstance(self.k_norm, RMSNorm):
            norms, eps = (self.q_norm.weight, self.k_norm.weight), self.q_norm.eps
        matrices = (self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        queries, keys, values = heads_of(library, x, matrices, norms, eps, cosines[:, 0], sines[:, 0])
        return product(library, causal_by_kernels(library, queries, keys, values), self.o_proj)


class Mlp(nn.Module):
    """The gated MLP, SwiGLU: Shazeer, "GLU Variants Improve Transformer", https://arxiv.org/abs/2002.05202."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself: (batch, length, width) -> (batch, length, width)."""
        if (
            self.gate_proj.out_features >= LANES
            and plain(self.gate_proj, self.up_proj)
            and (library := kernels_for(x))
        ):
            gates = gated_products(library, x, self.gate_proj.weight, self.up_proj.weight)
            return product(library, gates, self.down_proj)
        out: Tensor = self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))
        return out


class Block(nn.Module):
    """Attention, then MLP; each reads the normed residual stream and adds to it."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = Mlp(config)
        self.dropout = config.dropout

    def forward(
        self,
        x: Tensor,
        added: Tensor | None,
        cosines: Tensor,
        sines: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Tensor | None]:
        """One layer of the stream x + added to the next one's: two of (batch, length, width).

        With kernels what the MLP adds is left to the next norm, which adds it on its way.
        """
        x, normed = self.input_layernorm.after(x, added)
        mixed = self.self_attn(normed, cosines, sines, mask, cache)
        x, normed = self.post_attention_layernorm.after(x, dropout(mixed, self.dropout, self.training))
        changed = dropout(self.mlp(normed), self.dropout, self.training)
        return (x + changed, None) if kernels_for(x) is None else (x, changed)


class Stack(nn.Module):
    """Embedding, blocks and final norm; the name `model` of its owner completes Hugging Face's names."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)


class Decoder(nn.Module):
    """A causal language model.

    Initial weights: embeddings normal with `init_std`; matrices normal with 1 / sqrt(inputs), those that
    write to the residual stream divided by sqrt(2 * layers) or zero; norms one; biases zero. Draws come from
    torch's default generator, so `torch.manual_seed` before fixes them.

    Example:
        >>> import torch
        >>> model = Decoder(DecoderConfig(vocab_size=10, layers=1, width=8, heads=2))
        >>> model(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 10])
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Stack(config)
        self.rotary = RotaryTables(config.head_dim, config.max_length, config.rope_theta, config.rope_scaling)
        # All of a block: where only some of it does, it is not known to be faster than a compiler.
        reaches = config.sliding_window is not None and config.sliding_window < config.max_length
        biased = config.qkv_bias or config.mlp_bias or reaches
        self.takes_kernels = fits(config.width, head_dim=config.head_dim) and not biased
        self.lm_head = None if config.tied else Head(config.width, config.vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights anew."""
        config = self.config
        for name, parameter in self.named_parameters():
            if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                nn.init.normal_(parameter, std=config.init_std)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                depth = 0.0 if config.zero_init_projections else 1.0 / math.sqrt(2 * config.layers)
                nn.init.normal_(parameter, std=depth / math.sqrt(parameter.shape[1]))
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=1.0 / math.sqrt(parameter.shape[1]))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.ones_(parameter)

    @property
    def output_weight(self) -> Tensor:
        """The matrix from hidden states to logits: (vocab_size, width)."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def hidden(
        self,
        ids: Tensor,
        *,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Return the states after the final norm, which `output_weight` turns into logits.

        Arguments:
            ids: (batch, length) int64.
            cache: keys and values of the text before; it takes in this text's as well.
            positions: (length,) or (batch, length) int64; None counts on from the cache, or from zero.
            segments: (batch, length) int64; a token sees only tokens of its own number. Not with a cache.

        Shapes:
            returns (batch, length, width).
        """
        x = self.model.embed_tokens(ids)  # (batch, length, width)
        if positions is None and cache is not None:
            positions = cache.positions(ids.shape[1], ids.device)
        cosines, sines = self.rotary(ids.shape[1], positions)
        mask = attention_mask(ids, cache, segments, self.config.sliding_window)
        x = dropout(x, self.config.dropout, self.training)
        added = None
        for block in self.model.layers:
            x, added = block(x, added, cosines, sines, mask, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        out: Tensor = self.model.norm.after(x, added)[1]
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
