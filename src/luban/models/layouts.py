"""Hugging Face's layouts: a config.json's fields and a checkpoint's names, to luban's and back. Pure
functions.

Read are the families llama, mistral, qwen2, qwen3 and gpt2, as transformers 4 (`rope_theta`, `rope_scaling`)
and 5 (`rope_parameters`) write them; what is written loads in both. What a model would need and luban does
not have is
refused by name: better no model than a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from luban.errors import InputError, nearest
from luban.models.decoder import Decoder, DecoderConfig
from luban.models.gpt2 import GPT2, GPT2Config
from luban.models.rope import Llama3Scaling

ModelConfig = DecoderConfig | GPT2Config
LAYOUTS = ("llama", "mistral", "qwen2", "qwen3", "gpt2")

# What a family's class takes where its config.json is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32_768, "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
    },
    "gpt2": {},
}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
# Keys that change what the model computes, with the value that changes nothing.
_REFUSED: dict[str, Any] = {
    "quantization_config": None,
    "auto_map": None,
    "num_local_experts": None,
    "num_experts": None,
    "partial_rotary_factor": 1.0,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
_ROPE_TYPES = ("default", "llama3")
_TRANSPOSED = re.compile(r"transformer\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
_BUFFERS = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)")


def new_module(config: ModelConfig) -> Decoder | GPT2:
    """Build the model of a configuration, freshly initialised."""
    return GPT2(config) if isinstance(config, GPT2Config) else Decoder(config)


def read_config(fields: Mapping[str, Any], where: object = "config.json") -> ModelConfig:
    """Turn the fields of a config.json into luban's configuration; dropout is left off.

    Raises:
        InputError: naming the key, for a family or a feature that luban does not have.

    Example:
        >>> fields = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8}
        >>> fields |= {"num_hidden_layers": 1, "num_attention_heads": 2}
        >>> read_config({"model_type": "llama", **fields}).rope_theta
        10000.0
    """
    layout = fields.get("model_type")
    if not isinstance(layout, str) or layout not in LAYOUTS:
        close = nearest(str(layout), LAYOUTS)
        fix = (f"did you mean {close}? " if close else "") + f"luban reads {', '.join(LAYOUTS)}"
        raise InputError("model_type is not one that luban reads", received=layout, where=where, fix=fix)
    for key, harmless in _REFUSED.items():
        if fields.get(key, harmless) not in (None, harmless):
            fix = "luban runs no code from model folders" if key == "auto_map" else "use a model without it"
            raise InputError(f"{key} is not supported", received=fields[key], where=where, fix=fix)
    reader = _Fields({**_DEFAULTS[layout], **fields}, where)
    try:
        return _read_gpt2(reader) if layout == "gpt2" else _read_decoder(reader, layout)
    except InputError as error:
        error.where = error.where or where  # sizes that do not fit each other
        raise


class _Fields:
    """The fields of a config.json, each read with its type checked."""

    def __init__(self, fields: Mapping[str, Any], where: object) -> None:
        self.fields, self.where = fields, where

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer; without a default it must be there."""
        value = self.fields.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 40:
            raise InputError(f"{key} must be a positive integer", received=value, where=self.where)
        return value

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self.fields.get(key)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e300:
            raise InputError(f"{key} must be a positive number", received=value, where=self.where)
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.fields.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InputError(f"{key} must be true or false", received=value, where=self.where)
        return value

    def one_of(self, key: str, allowed: tuple[str, ...]) -> str:
        """One of a few words; absent is the first."""
        value = self.fields.get(key)
        if value is None:
            return allowed[0]
        if value not in allowed:
            fix = f"luban has {', '.join(allowed)}"
            raise InputError(f"{key} is not supported", received=value, where=self.where, fix=fix)
        return str(value)


def _read_gpt2(fields: _Fields) -> GPT2Config:
    fields.one_of("activation_function", ("gelu_new", "gelu_pytorch_tanh"))
    width = fields.integer("n_embd")
    return GPT2Config(
        vocab_size=fields.integer("vocab_size"),
        layers=fields.integer("n_layer"),
        width=width,
        heads=fields.integer("n_head"),
        mlp_width=fields.integer("n_inner", 4 * width),
        max_length=fields.integer("n_positions", 1024),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        tied=fields.flag("tie_word_embeddings", True),
        init_std=fields.number("initializer_range", 0.02),
    )


def _read_decoder(fields: _Fields, layout: str) -> DecoderConfig:
    fields.one_of("hidden_act", ("silu", "swish"))
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    layers = fields.integer("num_hidden_layers")
    max_length = fields.integer("max_position_embeddings")
    theta, scaling = _read_rope(fields, max_length)
    bias = fields.flag("attention_bias") and layout in ("llama", "qwen3")
    return DecoderConfig(
        layout=layout,
        vocab_size=fields.integer("vocab_size"),
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=fields.integer("head_dim", max(1, width // heads)),
        mlp_width=fields.integer("intermediate_size"),
        max_length=max_length,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        qk_norm=layout == "qwen3",
        qkv_bias=bias or layout == "qwen2",
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias") and layout == "llama",
        sliding_window=_read_window(fields, layout, layers),
        tied=fields.flag("tie_word_embeddings", False),
        init_std=fields.number("initializer_range", 0.02),
    )


def _read_rope(fields: _Fields, max_length: int) -> tuple[float, Llama3Scaling | None]:
    """Return RoPE's theta and scaling from either of the two forms."""
    rope = fields.fields.get("rope_scaling") or fields.fields.get("rope_parameters") or {}
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise InputError(
            "rope_parameters must be one mapping for all layers", received=rope, where=fields.where
        )
    inner = _Fields({"original_max_position_embeddings": max_length, **rope}, f"{fields.where}: RoPE")
    theta = inner.number("rope_theta", fields.number("rope_theta", 10_000.0))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError("partial_rotary_factor is not supported", received=rope, where=fields.where)
    key = "rope_type" if "rope_type" in rope else "type"
    if inner.one_of(key, _ROPE_TYPES) == "default":
        return theta, None
    scaling = Llama3Scaling(
        factor=inner.number("factor", 8.0),
        low_freq_factor=inner.number("low_freq_factor", 1.0),
        high_freq_factor=inner.number("high_freq_factor", 4.0),
        original_max_position_embeddings=inner.integer("original_max_position_embeddings"),
    )
    return theta, scaling


def _read_window(fields: _Fields, layout: str, layers: int) -> int | None:
    """Return the sliding window of all layers; one that only some layers have is refused."""
    if layout == "llama" or fields.fields.get("sliding_window") is None:
        return None
    window = fields.integer("sliding_window")
    if layout == "mistral":
        return window
    if not fields.flag("use_sliding_window"):
        return None
    first = fields.fields.get("max_window_layers", 28)
    kinds = fields.fields.get("layer_types")
    if not isinstance(kinds, list):
        if not isinstance(first, int):
            raise InputError("max_window_layers must be an integer", received=first, where=fields.where)
        kinds = [
            "sliding_attention" if layer >= first else "full_attention" for layer in range(min(layers, 4096))
        ]
    if all(kind == "full_attention" for kind in kinds):
        return None
    if not all(kind == "sliding_attention" for kind in kinds):
        fix = "use a model whose layers are all alike"
        raise InputError("a sliding window in some layers only is not supported", received=kinds, fix=fix)
    return window


def write_config(config: ModelConfig) -> dict[str, Any]:
    """Turn luban's configuration into the fields of a config.json, which transformers 4 and 5 read.

    Raises:
        InputError: when the family's layout cannot say what the model has.
    """
    if isinstance(config, DecoderConfig):
        _check_expressible(config)
    common = {
        "architectures": [_CLASSES[config.layout]],
        "model_type": config.layout,
        "vocab_size": config.vocab_size,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    if isinstance(config, GPT2Config):
        return {
            **common,
            "n_embd": config.width,
            "n_layer": config.layers,
            "n_head": config.heads,
            "n_inner": config.mlp_width,
            "n_positions": config.max_length,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": 0.0,
        }
    return {
        **common,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "attention_dropout": 0.0,
        **_family_fields(config),
        **_rope_fields(config),
    }


def _family_fields(config: DecoderConfig) -> dict[str, Any]:
    windowed = config.sliding_window is not None
    window = {"sliding_window": config.sliding_window, "use_sliding_window": windowed}
    window["max_window_layers"] = 0 if windowed else config.layers
    fields: dict[str, dict[str, Any]] = {
        "llama": {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias},
        "mistral": {"sliding_window": config.sliding_window},
        "qwen2": window,
        "qwen3": {"attention_bias": config.qkv_bias, **window},
    }
    return fields[config.layout]


def _rope_fields(config: DecoderConfig) -> dict[str, Any]:
    theta = config.rope_theta
    if config.rope_scaling is None:
        parameters = {"rope_type": "default", "rope_theta": theta}
        return {"rope_theta": theta, "rope_scaling": None, "rope_parameters": parameters}
    scaling = {"rope_type": "llama3", **asdict(config.rope_scaling)}
    return {"rope_theta": theta, "rope_scaling": scaling, "rope_parameters": {**scaling, "rope_theta": theta}}


def _check_expressible(config: DecoderConfig) -> None:
    """Raise where the family's classes in transformers would compute something else than this model does."""
    layout, families = config.layout, LAYOUTS[:-1]
    rules = [
        (layout in families, "layout", f"one of {', '.join(families)}"),
        (config.qk_norm == (layout == "qwen3"), "qk_norm", "true in qwen3 and nowhere else"),
        (layout != "mistral" or not config.qkv_bias, "qkv_bias", "false in mistral"),
        (layout != "qwen2" or config.qkv_bias, "qkv_bias", "true in qwen2"),
        (
            config.output_bias == (config.qkv_bias and layout in ("llama", "qwen3")),
            "output_bias",
            "as qkv_bias in llama and qwen3, false elsewhere",
        ),
        (layout == "llama" or not config.mlp_bias, "mlp_bias", "false outside llama"),
        (layout != "llama" or config.sliding_window is None, "sliding_window", "none in llama"),
        (layout != "llama" or config.width % config.heads == 0, "width", "a multiple of heads in llama"),
    ]
    for holds, name, rule in rules:
        if not holds:
            raise InputError(
                f"the {layout} layout cannot hold this model",
                received=f"{name} = {getattr(config, name)}",
                fix=f"{name} must be {rule}; change it, or choose another layout",
            )


def read_weights(config: ModelConfig, tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Turn a checkpoint's tensors into luban's, by name; return them with the configuration they belong to.

    Names without the leading `model.` or `transformer.` (a base model's), stored buffers, and an output
    embedding beside tied ones are taken care of. A model without output embedding is tied whatever its
    config.json says.
    """
    gpt2 = isinstance(config, GPT2Config)
    owner = "transformer." if gpt2 else "model."
    state = {}
    for name, tensor in tensors.items():
        if _BUFFERS.fullmatch(name):
            continue
        ours = name if name.startswith((owner, "lm_head.")) else owner + name
        state[ours] = tensor.t().contiguous() if gpt2 and _TRANSPOSED.fullmatch(ours) else tensor
    if "lm_head.weight" not in state:
        config = replace(config, tied=True)
    elif config.tied:
        del state["lm_head.weight"]
    return config, state


def write_weights(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn luban's tensors into those of the family's checkpoint, by name; contiguous, tied ones once."""
    gpt2 = isinstance(config, GPT2Config)
    return {
        name: (tensor.t() if gpt2 and _TRANSPOSED.fullmatch(name) else tensor).contiguous()
        for name, tensor in state.items()
    }
