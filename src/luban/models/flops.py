"""How much work a model is: parameters and floating-point operations, from its shape alone."""

from __future__ import annotations

from luban.models.decoder import DecoderConfig
from luban.models.gpt2 import GPT2Config


def parameters(config: DecoderConfig | GPT2Config) -> int:
    """Return how many numbers are learned; tied embeddings count once.

    Example:
        >>> parameters(DecoderConfig(vocab_size=512, layers=5, width=64, heads=8, kv_heads=4, mlp_width=172))
        260032
    """
    embeddings = config.vocab_size * config.width * (1 if config.tied else 2)
    if isinstance(config, GPT2Config):
        biases = 3 * config.width + config.width + config.mlp_width + config.width
        norms = 4 * config.width
        positions = config.max_length * config.width
        return (
            embeddings
            + positions
            + config.layers * (_matrix_weights(config) + biases + norms)
            + 2 * config.width
        )
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    biases = config.qkv_bias * (queries + 2 * keys) + config.output_bias * config.width
    biases += config.mlp_bias * (2 * config.mlp_width + config.width)
    norms = 2 * config.width + config.qk_norm * 2 * config.head_dim
    return embeddings + config.layers * (_matrix_weights(config) + biases + norms) + config.width


def _matrix_weights(config: DecoderConfig | GPT2Config) -> int:
    """Weights of the matrices of one layer."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = config.width * (2 * queries + 2 * keys)
    mlp = config.width * config.mlp_width * (2 if isinstance(config, GPT2Config) else 3)
    return attention + mlp


def forward_flops(config: DecoderConfig | GPT2Config, batch: int, length: int) -> int:
    """Return the floating-point operations of the matrix products of one forward pass, logits included.

    A product of (m, k) and (k, n) counts 2 m n k. Attention counts every pair of tokens, seen or masked, as
    `torch.utils.flop_counter` does: the causal half is not taken off.
    """
    per_token = 2 * (config.layers * _matrix_weights(config) + config.vocab_size * config.width)
    attention = (
        config.layers * 2 * 2 * length * config.heads * config.head_dim
    )  # scores, and mixing the values
    return batch * length * (per_token + attention)


def step_flops(config: DecoderConfig | GPT2Config, batch: int, length: int) -> int:
    """Return the floating-point operations of forward and backward over `batch` rows of `length` tokens.

    Backward is twice forward: each product has one for its input's gradient and one for its weight's. What
    fused attention computes a second time to save memory is not counted, nor is what is no matrix product.
    """
    return 3 * forward_flops(config, batch, length)
