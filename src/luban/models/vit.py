"""ViT: a picture cut into patches, read by a transformer as a text is.

What is notable:
- a convolution as wide as its stride makes a token of each patch; a learned token before them gathers the answer
- learned positions, one for each patch: pictures have one size
- pre-norm blocks of LayerNorm, exact GELU, biases everywhere

Configurations and weights are those of transformers' ViTForImageClassification (`luban.models.image_layouts`).

Dosovitskiy et al., "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.errors import InputError
from luban.models.attention import mix
from luban.models.config_checks import check_heads, check_shares, check_sizes
from luban.models.dropout import dropout
from luban.models.head import Head


@dataclass(frozen=True)
class ViTConfig:
    """ViT's shape.

    Arguments:
        size: height and width of the pictures, in pixels. patch: of a patch.
        mlp_width: width inside the MLP; 0 means 4 times `width`.
        dropout: share of the tokens and of what each block adds that is zeroed while training.

    Raises:
        InputError: when the numbers do not fit each other.

    Example:
        >>> ViTConfig(classes=10, size=32, patch=4, layers=6, width=192, heads=3).tokens
        65
    """

    classes: int
    size: int
    patch: int
    layers: int
    width: int
    heads: int
    channels: int = 3
    mlp_width: int = 0
    qkv_bias: bool = True
    norm_eps: float = 1e-12
    dropout: float = 0.0
    init_std: float = 0.02

    def __post_init__(self) -> None:
        check_sizes(self, "classes", "size", "patch", "layers", "width", "heads", "channels")
        check_shares(self, "dropout")
        check_heads(self.width, self.heads)
        if self.size % self.patch:
            raise InputError(f"size is not a multiple of patch ({self.patch})", received=self.size)
        object.__setattr__(self, "mlp_width", self.mlp_width or 4 * self.width)

    @property
    def tokens(self) -> int:
        """How many tokens a picture is: its patches, and the one that gathers the answer."""
        return (self.size // self.patch) ** 2 + 1


class Attention(nn.Module):
    """Self-attention; every token sees every other."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.width, config.width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, config.width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, config.width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens: (batch, tokens, width) -> (batch, tokens, width)."""
        split = (*x.shape[:2], self.heads, -1)
        queries = self.q_proj(x).view(split).transpose(1, 2)  # (batch, heads, tokens, head_dim)
        keys = self.k_proj(x).view(split).transpose(1, 2)
        values = self.v_proj(x).view(split).transpose(1, 2)
        mixed = mix(queries, keys, values)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two matrices with an exact GELU between."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself: (batch, tokens, width) -> (batch, tokens, width)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention, then MLP; each reads the normed tokens and adds to them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.layernorm_after = nn.LayerNorm(config.width, config.norm_eps)
        self.mlp = Mlp(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """One layer: (batch, tokens, width) -> (batch, tokens, width)."""
        x = x + dropout(self.attention(self.layernorm_before(x)), self.dropout, self.training)
        return x + dropout(self.mlp(self.layernorm_after(x)), self.dropout, self.training)


class Embeddings(nn.Module):
    """Patches, the token before them, and positions."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.position_embeddings = nn.Parameter(torch.empty(1, config.tokens, config.width))
        self.projection = nn.Conv2d(config.channels, config.width, config.patch, stride=config.patch)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, size, size) -> (batch, tokens, width)."""
        patches = self.projection(images).flatten(2).transpose(1, 2)  # (batch, tokens - 1, width)
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        out: Tensor = tokens + self.position_embeddings
        return out


class Stack(nn.Module):
    """Embeddings, blocks and final norm; the name `vit` of its owner is part of transformers' names."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.layernorm = nn.LayerNorm(config.width, config.norm_eps)


class ViT(nn.Module):
    """A vision transformer that classifies pictures by the token before the patches.

    Initial weights: matrices, positions and that token normal with `init_std`, cut at two standard deviations;
    norms one; biases zero.

    Example:
        >>> model = ViT(ViTConfig(classes=10, size=8, patch=4, layers=1, width=16, heads=2))
        >>> model(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = Stack(config)
        self.classifier = Head(config.width, config.classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial weights anew."""
        std = self.config.init_std
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, classes), of pictures (batch, channels, size, size)."""
        x = dropout(self.vit.embeddings(images), self.config.dropout, self.training)  # (batch, tokens, width)
        for block in self.vit.layers:
            x = block(x)
        out: Tensor = self.classifier(self.vit.layernorm(x)[:, 0])
        return out
