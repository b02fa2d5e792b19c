"""Hostile model folders: weights, their index, config.json, luban.json."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile_case import READ, Case, Payload, copy, edit, nested, put, safetensors

import luban
from luban.tensors import read_safetensors, write_safetensors
from luban.verbs.evaluate import evaluate

MODEL = "finished/model"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def load(folder: Path) -> None:
    """Load the model, and let it answer."""
    model = luban.load(folder / "model")
    assert isinstance(model.generate("the king", max_tokens=2), str)


def weights(content: bytes) -> Callable[[Path], object]:
    return lambda folder: put(copy(MODEL, folder) / WEIGHTS, content)


def config(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: edit(copy(MODEL, folder) / "config.json", **changes)


def file(name: str, content: bytes | str | Any) -> Callable[[Path], object]:
    return lambda folder: put(copy(MODEL, folder) / name, content)


def changed_tensors(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        path = copy(MODEL, folder) / WEIGHTS
        write_safetensors(path, change(read_safetensors(path)))

    return make


def without_weights(name: str, content: bytes) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        model = copy(MODEL, folder)
        (model / WEIGHTS).unlink()
        put(model / name, content)

    return make


def index(content: Any) -> Callable[[Path], object]:
    return without_weights(INDEX, content if isinstance(content, bytes) else json.dumps(content).encode())


def link(name: str, to: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        model = copy(MODEL, folder)
        whole = (model / name).read_bytes()
        place = folder.parent / "elsewhere" if to == "whole" else Path(to)
        if to == "whole":
            place.write_bytes(whole)
        (model / name).unlink()
        (model / name).symlink_to(place)

    return make


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def named(name: str, **more: Any) -> dict[str, Any]:
    return {name: entry(**more)}


def zip_checkpoint() -> bytes:
    import io
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload()))
    return out.getvalue()


SAFETENSORS: dict[str, bytes] = {
    "a pickle": pickle.dumps(Payload()),
    "a pickle of an old protocol": pickle.dumps(Payload(), 0),
    "a dict that names a callable": pickle.dumps({"weight": Payload(), "step": 1}),
    "a torch zip archive": zip_checkpoint(),
    "no bytes": b"",
    "seven bytes": b"\0" * 7,
    "only a length": struct.pack("<Q", 100),
    "a header of 2**63 bytes": safetensors({}, length=1 << 63),
    "a header of 2**64 - 1 bytes": safetensors({}, length=(1 << 64) - 1),
    "a header of more than 100 MB": safetensors({}, length=100_000_001),
    "a header longer than the file": safetensors({}, length=1000),
    "a header of no bytes": safetensors(b""),
    "a header that is a list": safetensors([]),
    "a header that is a number": safetensors(7),
    "a header that is null": safetensors(None),
    "a header that is not JSON": safetensors(b"{'a': 1}"),
    "a header that is not UTF-8": safetensors(b'{"\xff": 1}'),
    "a header with bytes behind its JSON": safetensors(b'{}{"a":1}'),
    "a header of nested lists": safetensors(('{"a":' + nested(100_000) + "}").encode()),
    "a header of nested objects": safetensors(('{"a":' * 100_000).encode()),
    "metadata that is no text": safetensors({"__metadata__": {"a": 1}}),
    "metadata that is a list": safetensors({"__metadata__": []}),
    "metadata a million entries long": safetensors(
        {"__metadata__": {str(n): "" for n in range(200_000)}}, b"x"
    ),
    "no tensors": safetensors({}),
    "an unknown dtype": safetensors(named("a", dtype="F33"), bytes(8)),
    "a dtype that is a number": safetensors({"a": entry() | {"dtype": 4}}, bytes(8)),
    "a dtype that is a callable's name": safetensors(named("a", dtype="os.system"), bytes(8)),
    "a negative dimension": safetensors(named("a", shape=[-2]), bytes(8)),
    "a fractional dimension": safetensors(named("a", shape=[2.5]), bytes(8)),
    "a dimension of 2**63": safetensors(named("a", shape=[1 << 63]), bytes(8)),
    "dimensions whose product overflows": safetensors(
        named("a", shape=[1 << 32, 1 << 32, 1 << 32]), bytes(8)
    ),
    "dimensions whose product overflows to the right size": safetensors(
        named("a", shape=[(1 << 62) + 1, 4, 2], offsets=[0, 32]), bytes(32)
    ),
    "a thousand dimensions": safetensors(named("a", shape=[1] * 1000, offsets=[0, 4]), bytes(4)),
    "offsets beyond the end": safetensors(named("a", offsets=[0, 800], shape=[200]), bytes(8)),
    "offsets that go backwards": safetensors(named("a", offsets=[8, 0]), bytes(8)),
    "negative offsets": safetensors(named("a", offsets=[-8, 0]), bytes(8)),
    "offsets of 2**64": safetensors(named("a", offsets=[0, 1 << 64]), bytes(8)),
    "one offset": safetensors(named("a", offsets=[0]), bytes(8)),
    "offsets at odds with the shape": safetensors(named("a", offsets=[0, 4]), bytes(4)),
    "tensors that overlap": safetensors({**named("a"), **named("b")}, bytes(8)),
    "tensors that overlap in part": safetensors({**named("a"), **named("b", offsets=[4, 12])}, bytes(12)),
    "a hole before a tensor": safetensors(named("a", offsets=[8, 16]), bytes(16)),
    "a hole between tensors": safetensors({**named("a"), **named("b", offsets=[16, 24])}, bytes(24)),
    "bytes behind the last tensor": safetensors(named("a"), bytes(4096)),
    "a tensor twice": safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
    "a tensor with a key too many": safetensors({"a": entry() | {"callable": "os.system"}}, bytes(8)),
    "a tensor without a shape": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "a name that is a path": safetensors(named("../../outside/secret"), bytes(8)),
    "a name of a megabyte": safetensors(named("a" * (1 << 20)), bytes(8)),
    "a name with NUL": safetensors(named("a\0b"), bytes(8)),
    "a name that is half a surrogate pair": safetensors(named("\ud800"), bytes(8)),
}

BIG = 10**9
CONFIGS: dict[str, dict[str, Any]] = {
    "a billion layers": {"num_hidden_layers": BIG},
    "no layers": {"num_hidden_layers": 0},
    "layers below zero": {"num_hidden_layers": -1},
    "layers as a fraction": {"num_hidden_layers": 1.0},
    "layers as text": {"num_hidden_layers": "1"},
    "layers as true": {"num_hidden_layers": True},
    "layers as a list": {"num_hidden_layers": [1]},
    "layers absent": {"num_hidden_layers": ...},
    "layers of a thousand digits": {"num_hidden_layers": 10**999},
    "a width of 10**12": {"hidden_size": 10**12},
    "a width of 10**8": {"hidden_size": 10**8},
    "a width below zero": {"hidden_size": -8},
    "a width of NaN": {"hidden_size": float("nan")},
    "an infinite width": {"hidden_size": float("inf")},
    "a vocabulary of 10**12": {"vocab_size": 10**12},
    "a vocabulary below the tokenizer's": {"vocab_size": 20},
    "a billion heads": {"num_attention_heads": BIG},
    "a billion heads of keys": {"num_key_value_heads": BIG},
    "heads of keys that do not divide": {"num_attention_heads": 2, "num_key_value_heads": 3},
    "a head of 10**12": {"head_dim": 10**12},
    "a head of odd size": {"head_dim": 3},
    "an MLP of 10**12": {"intermediate_size": 10**12},
    "an MLP below zero": {"intermediate_size": -1},
    "a length of text as text": {"max_position_embeddings": "long"},
    "a theta of zero": {"rope_theta": 0, "rope_parameters": None},
    "a theta of NaN": {"rope_theta": float("nan"), "rope_parameters": None},
    "a theta of 10**400": {"rope_theta": 10**400, "rope_parameters": None},
    "RoPE of text": {"rope_scaling": "os.system", "rope_parameters": None},
    "RoPE of an unknown kind": {"rope_scaling": {"rope_type": "luban_canary"}},
    "RoPE of nested kinds": {"rope_scaling": {"rope_type": {"a": 1}}},
    "RoPE of a kind that is a list": {"rope_scaling": {"rope_type": [1]}},
    "RoPE scaled by infinity": {"rope_scaling": {"rope_type": "llama3", "factor": float("inf")}},
    "an activation of a callable's name": {"hidden_act": "os.system"},
    "an activation that is a list": {"hidden_act": ["silu"]},
    "an eps below zero": {"rms_norm_eps": -1},
    "a window in some layers": {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["a", {"b": 1}]},
    "layer types that are numbers": {"use_sliding_window": True, "sliding_window": 8, "layer_types": [[1]]},
    "auto_map": {"auto_map": {"AutoModel": "luban_canary.Model"}},
    "experts": {"num_experts": 8},
    "quantization by a callable": {"quantization_config": {"quant_method": "luban_canary"}},
    "no family": {"model_type": ...},
    "a family that is a path": {"model_type": "../../outside/secret"},
    "a family that is a list": {"model_type": ["qwen3"]},
    "a family that is a module": {"model_type": "luban_canary"},
    "gpt2 with a billion positions": {
        "model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 10**11,
    },
    "gpt2 with heads that do not divide": {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 3},
    "tied as text": {"tie_word_embeddings": "yes"},
}  # fmt: skip
READ_CONFIGS: dict[str, dict[str, Any]] = {
    "trust_remote_code is passed over": {"trust_remote_code": True},
    "names of classes are passed over": {
        "architectures": ["luban_canary.Model"],
        "_name_or_path": "/etc/passwd",
    },
    "a length of 10**11 allocates nothing": {"max_position_embeddings": 10**11},
    "keys nobody knows are passed over": {"__class__": "luban_canary", "tokenizer_class": "luban_canary.T"},
}


def evaluates_nan(folder: Path) -> None:
    """NaN weights load; what they give is said to be NaN, not a number."""
    text = put(folder / "text.txt", "the king of a small house")
    evaluation = evaluate(folder / "model", str(text), bootstrap=10)
    assert all(value != value for value in evaluation.figures.values())


def with_nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}


def many_shards(folder: Path) -> None:
    index({"weight_map": {f"t{n}": f"shard-{n}.safetensors" for n in range(100_000)}})(folder)


CASES: list[Case] = [
    *(Case(f"weights: {name}", weights(content), load) for name, content in SAFETENSORS.items()),
    *(Case(f"config.json: {name}", config(**changes), load) for name, changes in CONFIGS.items()),
    *(Case(f"config.json: {name}", config(**changes), load, READ) for name, changes in READ_CONFIGS.items()),
    *(
        Case(f"{name}: {what}", file(name, content), load)
        for name in ("config.json", "luban.json", "tokenizer_config.json")
        for what, content in {
            "not JSON": b"\x80\x04",
            "a pickle": pickle.dumps(Payload()),
            "a list": [1],
            "a number": 7,
            "nested lists": nested(200_000),
            "a number of 5000 digits": '{"vocab_size": ' + "9" * 5000 + "}",
            "not UTF-8": b'{"a": "\xff"}',
            "no bytes": b"",
        }.items()
    ),
    *(
        Case(f"pickled weights: {name}", without_weights(name, pickle.dumps(Payload())), load)
        for name in (
            "pytorch_model.bin",
            "model.pt",
            "model.pth",
            "model.ckpt",
            "pytorch_model-00001-of-2.bin",
        )
    ),
    Case("weights: NaN everywhere is measured as NaN", changed_tensors(with_nan), evaluates_nan, READ),
    Case("weights: integers", changed_tensors(lambda t: {k: v.to(torch.int32) for k, v in t.items()}), load),
    Case("weights: another shape", changed_tensors(lambda t: {k: v[:1] for k, v in t.items()}), load),
    Case("weights: another name", changed_tensors(lambda t: {f"x.{k}": v for k, v in t.items()}), load),
    Case("weights: a tensor too many", changed_tensors(lambda t: {**t, "luban_canary": torch.ones(2)}), load),
    Case("luban.json: a later format", file("luban.json", {"format": 2, "task_state": {}}), load),
    Case("luban.json: no state", file("luban.json", {"format": 1}), load),
    Case(
        "luban.json: a length of text",
        file("luban.json", {"format": 1, "task_state": {"length": "x"}}),
        load,
        READ,
    ),
    *(
        Case(f"weights index: {name}", index(content), load)
        for name, content in {
            "leads out": {"weight_map": {"a": "../../outside/secret"}},
            "an absolute path": {"weight_map": {"a": "/etc/passwd"}},
            "a folder": {"weight_map": {"a": "."}},
            "an absent file": {"weight_map": {"a": "absent.safetensors"}},
            "itself": {"weight_map": {"a": INDEX}},
            "a name with NUL": {"weight_map": {"a": "a\0b"}},
            "a name of 10,000 characters": {"weight_map": {"a": "a" * 10_000}},
            "a name that is a number": {"weight_map": {"a": 1}},
            "no map": {},
            "an empty map": {"weight_map": {}},
            "a map that is a list": {"weight_map": ["a"]},
            "nested lists": nested(200_000).encode(),
            "not JSON": b"{",
        }.items()
    ),
    Case("weights index: 100,000 absent files", many_shards, load),
    *(
        Case(f"{name}: a link that leads out", link(name, "whole"), load)
        for name in (WEIGHTS, "config.json", "luban.json", "tokenizer.json", "tokenizer_config.json")
    ),
    Case("weights: a link to a device", link(WEIGHTS, "/dev/zero"), load),
    Case("config.json: a link to a device", link("config.json", "/dev/zero"), load),
    Case("config.json: a link to itself", link("config.json", "config.json"), load),
]
