"""Model folders of tasks that no other tool knows: config.json, weights, tokenizers, and the task's own state.

The same files as `luban.model_folder` writes for language models, and the same rules: reading runs no code of the
folder, weights come from safetensors only, and no name leads out of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luban.data.row_sets import read_tokenizers, write_tokenizers
from luban.data.tokenizer import Tokenizer
from luban.durable import DISK, FileSystem, member, new_folder, read_json, write_json, write_text
from luban.errors import CheckpointError
from luban.model_folder import CARD, CONFIG, FORMAT, GRAPH, LUBAN, WEIGHTS
from luban.tensors import read_safetensors, write_safetensors


@dataclass(frozen=True)
class TaskFolder:
    """What a task's model folder holds.

    Attributes:
        config: config.json. weights: by the names of the file; none where the folder holds a graph.
        tokenizers: by name, "" for the one at the top.
        task_state: what the task keeps: `task` (its name) and JSON values.
        files: what other tools look for besides: JSON by the name of its file; not read.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    tokenizers: Mapping[str, Tokenizer]
    task_state: Mapping[str, Any]
    files: Mapping[str, Any] = field(default_factory=dict)


def save_task_folder(folder: Path, content: TaskFolder, card: str, fs: FileSystem = DISK) -> None:
    """Write a model folder, whole or not at all; one that stands there is replaced."""
    with new_folder(folder, fs) as new:
        write_safetensors(new / WEIGHTS, content.weights, {"format": "pt"}, fs)
        write_beside(new, content, fs)
        write_text(new / CARD, card, fs)


def write_beside(folder: Path, content: TaskFolder, fs: FileSystem = DISK) -> None:
    """Write everything but the weights into a folder."""
    write_json(folder / CONFIG, dict(content.config), fs)
    for name, value in content.files.items():
        write_json(folder / name, value, fs)
    names = write_tokenizers(folder, content.tokenizers, fs)
    write_json(
        folder / LUBAN, {"format": FORMAT, "task_state": {**content.task_state, "tokenizers": names}}, fs
    )


def read_task_folder(folder: Path) -> TaskFolder:
    """Read a model folder that `save_task_folder` wrote.

    Raises:
        CheckpointError: a file is absent, or holds something else than it should.
    """
    graph = member(folder, GRAPH).is_file()
    for name in (CONFIG, LUBAN) if graph else (CONFIG, LUBAN, WEIGHTS):
        if not member(folder, name).is_file():
            raise CheckpointError(f"{folder / name} is missing: this is no whole model folder")
    config, written = read_json(folder / CONFIG), read_json(folder / LUBAN)
    state = written.get("task_state") if isinstance(written, dict) else None
    if not isinstance(config, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{folder} holds no model of a task", received=state)
    if written.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / LUBAN} is of format {written.get('format')}, this version of luban reads format {FORMAT}",
            fix="use the version of luban that wrote it",
        )
    tokenizers = read_tokenizers(folder, state.get("tokenizers", []))
    weights = {} if graph else read_safetensors(folder / WEIGHTS)
    return TaskFolder(config, weights, tokenizers, state)


def fill(module: nn.Module, weights: Mapping[str, Tensor], where: object) -> None:
    """Load weights into a module, after checking that names and shapes are its own.

    Raises:
        CheckpointError: naming the first that is not.
    """
    own = module.state_dict()
    if missing := sorted(own.keys() ^ weights.keys()):
        raise CheckpointError("the weights do not fit the model", received=missing[:5], where=where)
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            message = f"tensor {name} has shape {list(tensor.shape)}, the model says {list(own[name].shape)}"
            raise CheckpointError(message, where=where)
    module.load_state_dict(dict(weights))
