"""What each held-out row counts towards a run's figures, kept so that two runs can be compared row by row.

The file is safetensors: `digest` of each row, one array for every figure that is a mean over rows, and of every figure,
a mean or not, what it is in each resample of the rows. It is read and written without torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
_RESAMPLED = "resampled/"


@dataclass(frozen=True)
class RowScores:
    """Figures of every held-out row.

    Attributes:
        digest: (rows,), of each row as it came. scores: figure -> (rows,); the mean over rows is the run's figure, or
            the sum over that of `FIGURE/of`, where there is one, such as entities found and wanted.
        resampled: figure -> (resamples,), what it is where rows are drawn with replacement; rows of the same digests
            are drawn alike, so that two runs are paired draw by draw.
    """

    digest: NDArray[np.int64]
    scores: Mapping[str, Floats]
    resampled: Mapping[str, Floats] = field(default_factory=dict)

    def write(self, path: Path, fs: FileSystem = DISK) -> None:
        """Write the file whole or not at all."""
        named = {**self.scores, **{f"{_RESAMPLED}{n}": values for n, values in self.resampled.items()}}
        arrays = {name: np.ascontiguousarray(values, np.float64) for name, values in named.items()}
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
        resampled = {
            name.removeprefix(_RESAMPLED): arrays.pop(name)
            for name in [*arrays]
            if name.startswith(_RESAMPLED)
        }
        fit = [values.shape == digest.shape for values in arrays.values()]
        fit += [values.ndim == 1 for values in resampled.values()]
        if not all(fit) or any(v.dtype != np.float64 for v in (*arrays.values(), *resampled.values())):
            raise CheckpointError(f"{path} holds arrays that do not fit each other")
        return cls(digest, arrays, resampled)


def digests_of(rows: Iterable[Mapping[str, Any]]) -> NDArray[np.int64]:
    """Return which rows these are: of each a digest that is the same wherever the row stands.

    Example:
        >>> first, second, again = digests_of([{"text": "a"}, {"text": "b"}, {"text": "a"}]).tolist()
        >>> first == again, first == second
        (True, False)
    """
    digests = bytearray()
    for row in rows:
        text = json.dumps(row, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
        digests += hashlib.blake2b(text, digest_size=8).digest()
    return np.frombuffer(bytes(digests), np.int64)
