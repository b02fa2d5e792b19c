"""Checkpoints that are whole or absent.

A checkpoint is a folder `step-00000200` with `model.safetensors`, `optimizer.safetensors`, `state.json` and,
written last, `manifest.json` with the SHA-256 of each. It is made in a temporary folder, fsynced, renamed,
verified, and only then are older ones removed. The newest that verifies is loaded; order is by step, never by
time of writing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from luban.durable import (
    DISK,
    FileSystem,
    free_bytes,
    new_folder,
    read_json,
    storage_errors,
    verify_folder,
    write_json,
)
from luban.errors import CheckpointError, StorageError
from luban.tensors import read_safetensors, write_safetensors

_NAME = re.compile(r"step-(\d{8,})")
FORMAT = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_BESIDES = 1 << 20
"""Bytes for what is small in a checkpoint or a model folder: headers, state, manifest, tokenizer, card."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on as if it had never stopped."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Arguments:
        folder: where they lie; made on the first save.
        keep: how many of the newest stay; the best one stays besides.
        warn: told, in one line, about each checkpoint that does not verify.
        sets_aside: whether this process may move damaged ones; of several that train together, one may.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        warn: Callable[[str], None],
        fs: FileSystem = DISK,
        sets_aside: bool = True,
    ) -> None:
        self.folder, self._keep, self._warn, self._fs = folder, keep, warn, fs
        self._sets_aside = sets_aside

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint folder, oldest first, whether or not it verifies."""
        if not self.folder.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint of `step`."""
        return self.folder / f"step-{step:08d}"

    def save(self, checkpoint: Checkpoint, *, best: int | None = None) -> Path:
        """Write a checkpoint, verify it, then remove the old ones but not the step named `best`."""
        path = self.path(checkpoint.step)
        with new_folder(path, self._fs, extra={"format": FORMAT, "step": checkpoint.step}) as folder:
            write_safetensors(folder / MODEL, checkpoint.model, {"format": "pt"}, self._fs)
            write_safetensors(folder / OPTIMIZER, checkpoint.optimizer, {"format": "pt"}, self._fs)
            write_json(folder / STATE, dict(checkpoint.state), self._fs)
        verify_folder(path)
        for step in self.steps()[: -self._keep]:
            if step not in (best, checkpoint.step):
                with storage_errors(self.path(step)):
                    self._fs.remove(self.path(step))
        return path

    def load(self, step: int) -> Checkpoint:
        """Verify and read the checkpoint of `step`.

        Raises:
            CheckpointError: when it is absent, torn, altered, or of a later format.
        """
        folder = self.path(step)
        manifest = verify_folder(folder)
        if manifest.get("format") != FORMAT or manifest.get("step") != step:
            raise CheckpointError(
                f"{folder} is not a checkpoint of step {step} in format {FORMAT}",
                received={"format": manifest.get("format"), "step": manifest.get("step")},
                fix="use the version of luban that wrote it",
            )
        if unlisted := {MODEL, OPTIMIZER, STATE} - manifest["files"].keys():
            raise CheckpointError(f"the manifest of {folder} does not vouch for {min(unlisted)}")
        return Checkpoint(
            step=step,
            model=read_safetensors(folder / MODEL),
            optimizer=read_safetensors(folder / OPTIMIZER),
            state=_read_state(folder / STATE, step),
        )

    def newest(self) -> Checkpoint | None:
        """Read the newest checkpoint that verifies, with a warning for each newer one that does not.

        Raises:
            CheckpointError: when there are checkpoints and none verifies; starting over would hide the loss.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                found = self.load(step)
            except CheckpointError as error:
                self._warn(f"checkpoint of step {step} is not whole and was passed over: {error.message}")
            else:
                self._set_aside([later for later in steps if later > step])
                return found
        if steps:
            raise CheckpointError(
                f"none of the {len(steps)} checkpoints in {self.folder} is whole",
                fix="restore one from a backup, or move the folder away to start from step 0",
            )
        return None

    def best(self, step: int) -> Checkpoint | None:
        """Read the best checkpoint, that of `step`; None, with a warning, when it is gone or not whole."""
        try:
            return self.load(step)
        except CheckpointError as error:
            self._warn(f"the best checkpoint, of step {step}, cannot be used: {error.message}")
            return None

    def _set_aside(self, steps: list[int]) -> None:
        """Keep damaged checkpoints for whoever wants to look, under a name that no rotation counts."""
        if not (steps and self._sets_aside):
            return
        with storage_errors(self.folder):
            for step in steps:
                aside = self.folder / f"damaged-{self.path(step).name}"
                self._fs.remove(aside)
                self._fs.replace(self.path(step), aside)
            self._fs.sync_folder(self.folder)


def _read_state(path: Path, step: int) -> dict[str, Any]:
    """Read where the run stood; nothing in it is trusted to be of its kind."""
    state = read_json(path)
    state = state if isinstance(state, dict) else {}
    progress = state.get("progress")
    logs = progress.get("logs") if isinstance(progress, dict) else None
    if not (
        isinstance(progress, dict)
        and progress.get("step") == step
        and isinstance(logs, dict)
        and all(type(size) is int and size >= 0 for size in logs.values())
        and all(isinstance(value, int | float | None) for name, value in progress.items() if name != "logs")
        and all(isinstance(state.get(name), dict) for name in ("optimizer", "compile"))
    ):
        raise CheckpointError(f"{path} does not say where a run stood at step {step}")
    return state


def bytes_needed(model: int, optimizer: int, *, keep: int, best: bool) -> int:
    """Return the most bytes that a run's checkpoints and its model folder take at one time.

    A new checkpoint stands, verified, before an old one goes: so one more than are kept, and the best. The model
    folder comes after the last of them and takes no more than that one more.

    Arguments:
        model: bytes of the model's tensors.
        optimizer: bytes of the optimizer's (`Optimizer.state_bytes`).
        keep: how many checkpoints stay.
        best: whether the best one stays besides.

    Example:
        >>> bytes_needed(10**9, 2 * 10**9, keep=2, best=False) // 10**9
        9
    """
    return (model + optimizer + _BESIDES) * (keep + 1 + best)


def check_space(folder: Path, needed: int) -> None:
    """Refuse to start what could not be saved.

    Arguments:
        folder: of the checkpoints, there or not; what lies in it counts as room, for it is written anew.
        needed: bytes, from `bytes_needed`.

    Raises:
        StorageError: with the estimate and the bytes that are free.
    """
    with storage_errors(folder):
        held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        free = free_bytes(folder)
    if needed > held + free:
        raise StorageError(
            f"the disk has not the room that this run's checkpoints and model will take: "
            f"about {needed:,} bytes are needed, {held + free:,} are free",
            where=folder,
            fix=f"free {needed - held - free:,} bytes, choose another disk with --out, or lower train.keep",
        )
