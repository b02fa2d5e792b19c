"""`luban.load`: a run or a model folder as an object that answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luban import tasks
from luban.durable import member, read_json
from luban.errors import CheckpointError, InputError
from luban.model_folder import LUBAN
from luban.run import run_of


def model_folder_of(folder: Path) -> Path:
    """Return the model folder of a run, or `folder` itself when it is one.

    Raises:
        InputError: when there is neither.
    """
    run = run_of(folder)
    if run is not None:
        if not (run.model / "config.json").is_file():
            fix = f"go on with it first: luban train --resume {folder}"
            raise InputError("the run has no model yet: it did not finish", received=str(folder), fix=fix)
        return run.model
    if not (folder / "config.json").is_file():
        fix = "give a folder that luban train made, or one with config.json and model.safetensors"
        raise InputError("neither a run nor a model folder", received=str(folder), fix=fix)
    return folder


def task_of(folder: Path) -> str:
    """Return the name of the task that a model folder is of; one that luban did not write is a language model."""
    path = member(folder, LUBAN)
    if not path.is_file():
        return "language-model"
    written = read_json(path)
    state = written.get("task_state") if isinstance(written, dict) else None
    name = state.get("task", "language-model") if isinstance(state, dict) else None
    if not isinstance(name, str):
        raise CheckpointError(f"{path} names no task", received=name)
    return name


def load(folder: str | Path) -> Any:
    """Load a model from a run or a model folder.

    Of a language model, any folder of the Llama, Mistral, Qwen2, Qwen3 and GPT-2 layouts.

    Returns:
        The task's model (`luban.tasks.base.Model`): `predict(rows)` answers rows; a language model has `generate` and
        `stream` besides.

    Raises:
        InputError: when the folder is no model, has no tokenizer, or asks for what luban does not have.
    """
    path = model_folder_of(Path(folder))
    name = task_of(path)
    return tasks.find(name).load(path)
