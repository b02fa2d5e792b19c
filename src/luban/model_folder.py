"""Model folders: Hugging Face's, written so that others load them as they stand, and read whoever wrote them.

A folder holds config.json, generation_config.json, model.safetensors, the tokenizer's files, README.md (the
card) and luban.json (the task and what it remembers). Reading runs no code of the folder: tensors come from
safetensors only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luban.data.tokenizer import Tokenizer
from luban.data.tokenizer_file import BESIDE_TOKENIZER
from luban.durable import DISK, FileSystem, member, new_folder, read_json, write_json, write_text
from luban.errors import CheckpointError, InputError
from luban.models.decoder import Decoder
from luban.models.gpt2 import GPT2
from luban.models.layouts import (
    ModelConfig,
    new_module,
    read_config,
    read_weights,
    write_config,
    write_weights,
)
from luban.tensors import read_safetensors, write_safetensors

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
LUBAN = "luban.json"
GRAPH = "model.onnx"
CARD = "README.md"
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_SHOWN_NAMES = 5
FORMAT = 1
"""Of luban.json."""


@dataclass(frozen=True)
class LoadedModel:
    """What a model folder holds.

    Arguments:
        module: the model, in evaluation mode.
        tokenizer: None where the folder has none.
        layout: the family: llama, mistral, qwen2, qwen3 or gpt2.
        task_state: what the task remembered; empty for folders that luban did not write.
    """

    module: Decoder | GPT2
    tokenizer: Tokenizer | None
    layout: str
    task_state: dict[str, Any]


def save_model(
    folder: Path,
    module: Decoder | GPT2,
    tokenizer: Tokenizer | None,
    *,
    task_state: Mapping[str, Any],
    card: str,
    fs: FileSystem = DISK,
) -> None:
    """Write a model folder, whole or not at all; one that stands there is replaced.

    Arguments:
        task_state: what the task needs to go on elsewhere: `task` (its name) and JSON values.
        card: the model card, in Markdown.

    Raises:
        InputError: when the family's layout cannot hold the model, or the tokenizer has more tokens than it.
        StorageError: when the disk refuses.
    """
    config = module.config
    fields = write_config(config)
    special: dict[str, Any] = {}
    if tokenizer is not None:
        _check_tokenizer(tokenizer, config.vocab_size, folder)
        special = {
            "bos_token_id": tokenizer.begin_id,
            "eos_token_id": tokenizer.end_id,
            "pad_token_id": tokenizer.end_id,
        }
    with new_folder(folder, fs) as new:
        write_json(new / CONFIG, {**fields, **special}, fs)
        write_json(new / GENERATION_CONFIG, special, fs)
        write_safetensors(new / WEIGHTS, write_weights(config, module.state_dict()), {"format": "pt"}, fs)
        if tokenizer is not None:
            tokenizer.save(new, fs)
        write_json(new / LUBAN, {"format": FORMAT, "task_state": dict(task_state)}, fs)
        write_text(new / CARD, card, fs)


def load_model(folder: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Read a model folder of the families llama, mistral, qwen2, qwen3 and gpt2, in one file or in shards.

    Weights become float32 whatever they were stored as.

    Raises:
        InputError: for a folder that is no model, is of another family, or has no safetensors.
        CheckpointError: for files that are torn, or do not fit each other.
    """
    folder = Path(folder)
    if not _member(folder, CONFIG).is_file():
        fix = "give the folder of a model, for example RUN/model"
        raise InputError(f"{CONFIG} is missing: this is no model folder", received=str(folder), fix=fix)
    fields = _read_object(folder / CONFIG)
    config = read_config(fields, folder / CONFIG)
    tensors = read_tensors(folder)
    if config.layers > len(tensors):
        message = f"{CONFIG} says {config.layers} layers, the weights have {len(tensors)} tensors"
        raise CheckpointError(message, where=folder)
    config, state = read_weights(config, tensors)
    module = _filled(config, state, folder)
    for name in BESIDE_TOKENIZER:
        _member(folder, name)
    tokenizer = Tokenizer.load(folder) if _member(folder, TOKENIZER).is_file() else None
    if tokenizer is not None:
        _check_tokenizer(tokenizer, config.vocab_size, folder)
    return LoadedModel(module.to(device).eval(), tokenizer, config.layout, _read_task_state(folder))


def _member(folder: Path, name: str) -> Path:
    """Return `folder / name`, refusing a name or a link that leads out of the folder.

    One way out is taken: in a snapshot of Hugging Face's cache every file is a link to the blobs beside the
    snapshots.
    """
    place = folder.resolve()
    if place.parent.name == "snapshots" and Path(name).name == name:
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            if (folder / name).resolve().parent == place.parent.parent / "blobs":
                return folder / name
    return member(folder, name)


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object", received=value)
    return value


def _read_task_state(folder: Path) -> dict[str, Any]:
    if not _member(folder, LUBAN).is_file():
        return {}
    written = _read_object(folder / LUBAN)
    if written.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / LUBAN} is of format {written.get('format')}, this version of luban reads format {FORMAT}",
            fix="use the version of luban that wrote it",
        )
    state = written.get("task_state")
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder / LUBAN} has no task_state", received=state)
    return state


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read all weights of a folder, float32, from one file or from the shards that the index names."""
    files: Iterable[Path]
    if _member(folder, WEIGHTS).is_file():
        files = [folder / WEIGHTS]
    elif _member(folder, WEIGHTS_INDEX).is_file():
        weight_map = _read_object(folder / WEIGHTS_INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise CheckpointError(f"{folder / WEIGHTS_INDEX} has no weight_map", received=weight_map)
        files = (_member(folder, name) for name in sorted(set(weight_map.values())))
    else:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            fix = "convert it in an environment you trust: AutoModelForCausalLM.from_pretrained(...)"
            fix += ".save_pretrained(FOLDER, safe_serialization=True)"
            message = "the weights are pickled, and a pickle can run any code: luban reads safetensors only"
            raise InputError(message, received=pickles, where=folder, fix=fix)
        raise InputError(f"{WEIGHTS} is missing", where=folder, fix="give a folder with the model's weights")
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read_safetensors(file).items():
            if name in tensors:
                raise CheckpointError(f"two files hold the tensor {name}", where=file)
            if not tensor.is_floating_point():
                # The causal mask of old GPT-2 checkpoints, and the row of numbers of old BERTs.
                if tensor.dtype == torch.bool or name.endswith("position_ids"):
                    continue
                if name.endswith("num_batches_tracked"):
                    tensors[name] = tensor
                    continue
                fix = "use a checkpoint that is not quantized"
                message = f"tensor {name} holds {tensor.dtype}, not floating-point numbers"
                raise CheckpointError(message, where=file, fix=fix)
            tensors[name] = tensor.float()
    return tensors


def _filled(config: ModelConfig, state: dict[str, Tensor], folder: Path) -> Decoder | GPT2:
    """Build the model around these tensors, after checking their names and shapes."""
    with torch.device("meta"):
        module = new_module(config)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        parts = [f"missing {_shown(missing)}"] if missing else []
        parts += [f"unexpected {_shown(unexpected)}"] if unexpected else []
        raise CheckpointError(f"the weights do not fit {CONFIG}: {'; '.join(parts)}", where=folder)
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            message = f"tensor {name} has shape {list(state[name].shape)}, {CONFIG} says {list(shape)}"
            raise CheckpointError(message, where=folder)
    module.load_state_dict(state, assign=True)
    if isinstance(module, Decoder):
        module.rotary.reset()
    return module


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more


def _check_tokenizer(tokenizer: Tokenizer, vocab_size: int, folder: Path) -> None:
    if tokenizer.vocab_size > vocab_size:
        message = f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, the embedding {vocab_size} rows"
        raise InputError(message, where=folder, fix="use the tokenizer that the model was trained with")
