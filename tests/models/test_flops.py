"""Counts from the shape equal counts of the real model."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from luban.models.decoder import DecoderConfig
from luban.models.flops import forward_flops, parameters, step_flops
from luban.models.gpt2 import GPT2Config
from luban.models.layouts import new_module

SHAPE = {"vocab_size": 40, "layers": 3, "width": 32, "heads": 4, "max_length": 24}
CONFIGS = [
    DecoderConfig(**SHAPE),
    DecoderConfig(**SHAPE, kv_heads=2, head_dim=12, qk_norm=True, tied=False, mlp_width=50),
    DecoderConfig(**SHAPE, qkv_bias=True, output_bias=True, mlp_bias=True),
    GPT2Config(**SHAPE),
    GPT2Config(**SHAPE, tied=False, mlp_width=20),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters(config: DecoderConfig | GPT2Config) -> None:
    assert parameters(config) == sum(parameter.numel() for parameter in new_module(config).parameters())


@pytest.mark.parametrize("config", CONFIGS)
def test_step_flops(config: DecoderConfig | GPT2Config) -> None:
    module, ids = new_module(config), torch.randint(0, 40, (2, 16))
    # In its plain form attention is two products, so that the counter sees them forward and backward.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = module(ids)
        assert counter.get_total_flops() == forward_flops(config, 2, 16)
        F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    assert counter.get_total_flops() == step_flops(config, 2, 16)
