"""Logits, folders and text equal those of transformers, family by family, in both directions."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from luban.data.tokenizer import train_tokenizer
from luban.model_folder import load_model, save_model
from luban.models.decoder import Decoder, DecoderConfig
from luban.models.generation import generate
from luban.models.gpt2 import GPT2Config
from luban.models.layouts import new_module, read_config, read_weights, write_config
from luban.models.rope import Llama3Scaling
from luban.models.sampling import Sampling, narrow, penalise_repetition

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GPT2_SMALL = {
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

FOREIGN = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama rope scaling": ("llama", {"rope_parameters": LLAMA3}),
    "llama head_dim": ("llama", {"head_dim": 12, "num_key_value_heads": 4}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window": ("mistral", {"sliding_window": 5, "head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied, window": (
        "qwen2",
        {
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 0,
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 tied, biases": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True, "attention_bias": True}),
    "gpt2": ("gpt2", {}),
    "gpt2 n_inner": ("gpt2", {"n_inner": 40, "activation_function": "gelu_pytorch_tanh"}),
}


def foreign_model(layout: str, changes: dict) -> torch.nn.Module:
    """A small random model of transformers, with norms and biases away from one and zero."""
    torch.manual_seed(0)
    base = GPT2_SMALL if layout == "gpt2" else SMALL
    config = transformers.AutoConfig.for_model(layout, **{**base, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    return scatter(model)


def scatter(model: torch.nn.Module) -> torch.nn.Module:
    """Move every parameter away from its initial value, so that none is untested."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def ids(rows: int = 2, length: int = 40) -> Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FOREIGN)
def test_logits_of_their_folder(name: str, tmp_path: Path) -> None:
    theirs = foreign_model(*FOREIGN[name])
    theirs.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.layout == FOREIGN[name][0]
    assert loaded.tokenizer is None
    with torch.no_grad():
        expected = theirs(ids()).logits
        actual = loaded.module(ids())
    assert expected.abs().max() > 1.0  # a model whose logits are all small would agree with anything
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


SHAPE = {"vocab_size": 300, "layers": 2, "width": 32, "heads": 4, "max_length": 64}
OURS: dict[str, DecoderConfig | GPT2Config] = {
    "llama": DecoderConfig(
        **SHAPE, layout="llama", kv_heads=2, mlp_width=48, rope_scaling=Llama3Scaling(4.0, 1.0, 4.0, 16)
    ),
    "llama biases": DecoderConfig(
        **SHAPE, layout="llama", tied=False, qkv_bias=True, output_bias=True, mlp_bias=True, norm_eps=1e-3
    ),
    "mistral": DecoderConfig(
        **SHAPE, layout="mistral", kv_heads=1, head_dim=12, sliding_window=7, rope_theta=500.0
    ),
    "qwen2": DecoderConfig(**SHAPE, layout="qwen2", qkv_bias=True, sliding_window=9),
    "qwen3": DecoderConfig(**SHAPE, layout="qwen3", qk_norm=True, kv_heads=2, head_dim=20, tied=False),
    "gpt2": GPT2Config(**SHAPE, mlp_width=48),
}


@pytest.mark.parametrize("name", OURS)
def test_our_folder_in_transformers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = scatter(new_module(OURS[name])).eval()
    tokenizer = train_tokenizer(
        "bpe", iter(["once upon a time there was a fox"]), vocab_size=300, byte_fallback=True
    )
    save_model(tmp_path / "model", module, tokenizer, task_state={"task": "language-model"}, card="# A model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager"
    )
    assert type(theirs).__name__ == write_config(module.config)["architectures"][0]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids()).logits, module(ids()), atol=1e-4, rtol=0)
    prompt = "once upon a fox"
    foreign_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert foreign_tokenizer(prompt)["input_ids"] == tokenizer.encode(prompt)
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == tokenizer.end_id
    again = load_model(tmp_path / "model")
    assert again.module.config == module.config
    assert again.task_state == {"task": "language-model"}
    with torch.no_grad():
        assert torch.equal(again.module(ids()), module(ids()))


def test_config_of_transformers_4() -> None:
    old = {
        "model_type": "llama",
        **SMALL,
        "rope_theta": 5000.0,
        "rope_scaling": {**LLAMA3, "rope_theta": None},
    }
    new = {"model_type": "llama", **SMALL, "rope_parameters": LLAMA3}
    assert read_config(old) == read_config(new)
    written = write_config(read_config(old))
    for left_out in ("rope_parameters", "rope_scaling"):  # version 4 ignores the first, version 5 prefers it
        kept = {key: value for key, value in written.items() if key != left_out}
        assert read_config(kept) == read_config(old)


def test_generation_equals_transformers() -> None:
    theirs = foreign_model("llama", {})
    config = read_config(theirs.config.to_dict())
    config, state = read_weights(config, theirs.state_dict())
    module = new_module(config)
    module.load_state_dict(state)
    prompt = ids(1, 9)
    for penalty in (1.0, 1.3):
        expected = theirs.generate(
            prompt, max_new_tokens=20, do_sample=False, repetition_penalty=penalty, eos_token_id=None
        )
        actual = generate(module, prompt.tolist(), max_tokens=20, temperature=0, repetition_penalty=penalty)
        assert actual[0] == expected[0, 9:].tolist()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(top_k=5),
        Sampling(top_k=500),
        Sampling(top_p=0.6),
        Sampling(top_p=1e-6),
        Sampling(min_p=0.2),
        Sampling(temperature=1.3, top_k=30, top_p=0.8, min_p=0.05),
    ],
)
def test_processors_equal_transformers(sampling: Sampling) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 61) * 3
    warpers = [transformers.TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        warpers.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p:
        warpers.append(transformers.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(transformers.MinPLogitsWarper(sampling.min_p))
    expected = logits
    for warper in warpers:
        expected = warper(torch.zeros(6, 1, dtype=torch.int64), expected)
    assert torch.equal(narrow(logits, sampling), expected)


def test_repetition_penalty_equals_transformers() -> None:
    logits, text = torch.randn(3, 61) * 3, ids(3, 7)
    seen = torch.zeros(3, 61, dtype=torch.bool).scatter(1, text, True)
    expected = transformers.RepetitionPenaltyLogitsProcessor(1.4)(text, logits.clone())
    assert torch.equal(penalise_repetition(logits, seen, 1.4), expected)


def stories(folder: Path) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """Read llama2.c's file: seven integers, then each kind of weight of all layers, RoPE interleaved."""
    raw = (folder / "stories260K.bin").read_bytes()
    width, mlp_width, layers, heads, kv_heads, vocab_size, max_length = struct.unpack("<7i", raw[:28])
    numbers, head_dim = torch.from_numpy(np.frombuffer(raw, "<f4", offset=28).copy()), width // heads
    at = 0

    def take(*shape: int) -> Tensor:
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return numbers[at - size : at].view(shape)

    def halves(weight: Tensor) -> Tensor:
        """From pairs of neighbours (0 1)(2 3) to pairs across the halves (0 2)(1 3)."""
        return weight.view(-1, head_dim // 2, 2, width).transpose(1, 2).reshape(-1, width)

    names = {"input_layernorm": (width,), "self_attn.q_proj": (width, width)}
    names |= {
        "self_attn.k_proj": (kv_heads * head_dim, width),
        "self_attn.v_proj": (kv_heads * head_dim, width),
    }
    names |= {"self_attn.o_proj": (width, width), "post_attention_layernorm": (width,)}
    names |= {
        "mlp.gate_proj": (mlp_width, width),
        "mlp.down_proj": (width, mlp_width),
        "mlp.up_proj": (mlp_width, width),
    }
    state = {"model.embed_tokens.weight": take(vocab_size, width)}
    for name, shape in names.items():
        for layer in range(layers):
            weight = take(*shape)
            turned = halves(weight) if name.endswith(("q_proj", "k_proj")) else weight
            state[f"model.layers.{layer}.{name}.weight"] = turned
    state["model.norm.weight"] = take(width)
    config = DecoderConfig(
        vocab_size=vocab_size,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        mlp_width=mlp_width,
        max_length=max_length,
        norm_eps=1e-5,
    )
    return config, state


def vocabulary(path: Path) -> list[bytes]:
    """Read llama2.c's vocabulary: the longest piece's size, then score, size and bytes of each piece."""
    raw, at, pieces = path.read_bytes(), 4, []
    while at < len(raw):
        _, size = struct.unpack("<fi", raw[at : at + 8])
        pieces.append(raw[at + 8 : at + 8 + size])
        at += 8 + size
    return pieces


def test_stories(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no stories260K in {shared_data}")
    config, state = stories(folder)
    module = Decoder(config)
    module.load_state_dict(state)
    begin = 1
    tokens = generate(module, [[begin]], max_tokens=200, temperature=0)[0]
    pieces = vocabulary(folder / "tok512.bin")
    text = b"".join(pieces[token] for token in tokens).decode()
    save_model(tmp_path / "model", module, None, task_state={}, card="")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected = theirs.generate(
        torch.tensor([[begin]]), max_new_tokens=200, do_sample=False, eos_token_id=None
    )
    assert tokens == expected[0, 1:].tolist()
    assert text.strip().startswith("Once upon a time, there was a little girl named Lily.")
