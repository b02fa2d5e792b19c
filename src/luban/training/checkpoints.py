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

from luban.durable import DISK, FileSystem, new_folder, read_json, verify_folder, write_json
from luban.errors import CheckpointError
from luban.tensors import read_safetensors, write_safetensors

_NAME = re.compile(r"step-(\d{8,})")
FORMAT = 1


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
    """

    def __init__(
        self, folder: Path, *, keep: int, warn: Callable[[str], None], fs: FileSystem = DISK
    ) -> None:
        self.folder, self._keep, self._warn, self._fs = folder, keep, warn, fs

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
            write_safetensors(folder / "model.safetensors", checkpoint.model, {"format": "pt"}, self._fs)
            write_safetensors(
                folder / "optimizer.safetensors", checkpoint.optimizer, {"format": "pt"}, self._fs
            )
            write_json(folder / "state.json", dict(checkpoint.state), self._fs)
        verify_folder(path)
        for step in self.steps()[: -self._keep]:
            if step not in (best, checkpoint.step):
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
        return Checkpoint(
            step=step,
            model=read_safetensors(folder / "model.safetensors"),
            optimizer=read_safetensors(folder / "optimizer.safetensors"),
            state=read_json(folder / "state.json"),
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

    def _set_aside(self, steps: list[int]) -> None:
        """Keep damaged checkpoints for whoever wants to look, under a name that no rotation counts."""
        for step in steps:
            aside = self.folder / f"damaged-{self.path(step).name}"
            self._fs.remove(aside)
            self._fs.replace(self.path(step), aside)
