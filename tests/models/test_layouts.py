"""What a config.json may say, and what is refused by name."""

import pytest
import torch

from luban.errors import InputError
from luban.models.decoder import DecoderConfig
from luban.models.gpt2 import GPT2Config
from luban.models.layouts import new_module, read_config, read_weights, write_config, write_weights

LLAMA = {
    "model_type": "llama",
    "vocab_size": 30,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 4}
SHAPE = {"vocab_size": 30, "layers": 2, "width": 16, "heads": 4}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "lama"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "model_type"),
        ({"num_experts": 8}, "num_experts"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "type"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": "8"}}, "factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"vocab_size": None}, "vocab_size"),
        ({"vocab_size": "30"}, "vocab_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"num_key_value_heads": 3}, "kv_heads"),
        (
            {
                "model_type": "qwen2",
                "num_key_value_heads": 4,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            "sliding",
        ),
    ],
)
def test_refused_by_name(changes: dict, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        read_config({**LLAMA, **changes})
    if named != "sliding" and changes.get(named) is not None:
        assert caught.value.received == changes[named]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"activation_function": "relu"}, "activation_function"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"n_head": 3}, "heads"),
    ],
)
def test_refused_of_gpt2(changes: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        read_config({**GPT2, **changes})


def test_a_close_family_is_named() -> None:
    with pytest.raises(InputError) as caught:
        read_config({**LLAMA, "model_type": "qwen"})
    assert "did you mean qwen" in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        DecoderConfig(**SHAPE, layout="llama", qk_norm=True),
        DecoderConfig(**SHAPE, layout="llama", qkv_bias=True),
        DecoderConfig(**SHAPE, layout="llama", sliding_window=4),
        DecoderConfig(**{**SHAPE, "width": 18}, head_dim=4, layout="llama"),
        DecoderConfig(**SHAPE, layout="mistral", qkv_bias=True),
        DecoderConfig(**SHAPE, layout="qwen2"),
        DecoderConfig(**SHAPE, layout="qwen2", qkv_bias=True, output_bias=True),
        DecoderConfig(**SHAPE, layout="qwen3"),
        DecoderConfig(**SHAPE, layout="qwen3", qk_norm=True, mlp_bias=True),
        DecoderConfig(**SHAPE, layout="falcon"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(config: DecoderConfig) -> None:
    with pytest.raises(InputError, match="cannot hold"):
        write_config(config)


def test_weights_of_a_base_model_and_with_stored_buffers() -> None:
    config = read_config(LLAMA)
    assert isinstance(config, DecoderConfig)
    assert not config.tied
    tied = read_config({**LLAMA, "tie_word_embeddings": True})
    state = new_module(tied).state_dict()
    bare = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    now, read = read_weights(config, bare)
    assert now == tied
    assert read.keys() == state.keys()
    _, read = read_weights(tied, {**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    assert read.keys() == state.keys()


def test_gpt2_matrices_stand_transposed() -> None:
    config = read_config(GPT2)
    assert config == GPT2Config(vocab_size=30, layers=2, width=16, heads=4)
    state = new_module(config).state_dict()
    written = write_weights(config, state)
    assert written["transformer.h.1.attn.c_attn.weight"].shape == (16, 48)
    assert all(tensor.is_contiguous() for tensor in written.values())
    bare = {name.removeprefix("transformer."): tensor for name, tensor in written.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    _, read = read_weights(config, bare)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)
