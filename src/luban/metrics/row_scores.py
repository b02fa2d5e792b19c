"""What each held-out row counts towards a run's figures, kept so that two runs can be compared row by row.

The file is safetensors: `digest` of each row, and one array for every figure that is a mean over rows. It is read and
written without torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from luban.durable import DISK, FileSystem, write_bytes
from luban.errors import CheckpointError

Floats = NDArray[np.float64]
MAX_BYTES = 1 << 30
_DIGEST = "digest"
OF = "/of"
"""What the name of a figure's denominators ends with."""


@dataclass(frozen=True)
class RowScores:
    """Figures of every held-out row.

    Attributes:
        digest: (rows,), of each row as it came. scores: figure -> (rows,); the mean over rows is the run's figure, or
            the sum over that of `FIGURE/of`, where there is one, such as entities found and wanted.
    """

    digest: NDArray[np.int64]
    scores: Mapping[str, Floats]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], scores: Mapping[str, Floats]) -> RowScores:
        """Put together which rows were measured and what each counted.

        Example:
            >>> found = RowScores.of([{"text": "a"}, {"text": "b"}], {"accuracy": np.array([1.0, 0.0])})
            >>> len(found.digest), found.scores["accuracy"].mean()
            (2, np.float64(0.5))
        """
        digests = bytearray()
        for row in rows:
            text = json.dumps(row, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
            digests += hashlib.blake2b(text, digest_size=8).digest()
        return cls(np.frombuffer(bytes(digests), np.int64), scores)

    def write(self, path: Path, fs: FileSystem = DISK) -> None:
        """Write the file whole or not at all."""
        arrays = {name: np.ascontiguousarray(values, np.float64) for name, values in self.scores.items()}
        write_bytes(path, save({_DIGEST: np.ascontiguousarray(self.digest), **arrays}), fs)

    @classmethod
    def read(cls, path: Path) -> RowScores | None:
        """Read what `write` wrote; None where there is no such file.

        Raises:
            CheckpointError: when it is damaged, or another thing.
        """
        if not path.is_file():
            return None
        try:
            if path.stat().st_size > MAX_BYTES:
                raise CheckpointError(f"{path} is larger than {MAX_BYTES:,} bytes")
            with safe_open(path, "numpy") as file:
                arrays = {name: file.get_tensor(name) for name in set(file.keys())}
        except (OSError, SafetensorError, TypeError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        digest = arrays.pop(_DIGEST, None)
        if digest is None or digest.dtype != np.int64 or digest.ndim != 1:
            raise CheckpointError(f"{path} has no digests of rows")
        if any(values.shape != digest.shape or values.dtype != np.float64 for values in arrays.values()):
            raise CheckpointError(f"{path} holds arrays that do not fit each other")
        return cls(digest, arrays)
