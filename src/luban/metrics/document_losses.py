"""What each held-out document cost a model, kept so that two models can be compared document by document.

The file is safetensors: `digest` (of the text, so that models with different tokenizers are compared on the same
documents), `nats`, `tokens`, `bytes`, `characters`, one entry per document; and, where there are too few documents
for a bootstrap, `window_nats` and `window_tokens`. It is read and written without torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from luban.durable import DISK, FileSystem, write_bytes
from luban.errors import CheckpointError
from luban.metrics.text_loss import MIN_DOCUMENTS, TextLoss

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_BYTES = 1 << 30
_PER_DOCUMENT = {
    "digest": np.int64,
    "nats": np.float64,
    "tokens": np.int64,
    "bytes": np.int64,
    "characters": np.int64,
}
_PER_WINDOW = {"window_nats": np.float64, "window_tokens": np.int64}


@dataclass(frozen=True)
class DocumentLosses:
    """Sums of the loss of every held-out document, in the order of the held-out text.

    Attributes:
        digest: (documents,), of each text. nats, tokens, bytes, characters: (documents,).
        window_nats, window_tokens: (windows,), in order; empty where there are documents enough.
        token_digest: of all token ids: with the same one, windows and losses per token can be compared too.
    """

    digest: Integers
    nats: Floats
    tokens: Integers
    bytes: Integers
    characters: Integers
    window_nats: Floats
    window_tokens: Integers
    token_digest: str

    def __len__(self) -> int:
        return len(self.digest)

    def write(self, path: Path, fs: FileSystem = DISK) -> None:
        """Write the file whole or not at all; equal losses give equal bytes."""
        arrays = {
            name: np.ascontiguousarray(getattr(self, name), dtype)
            for name, dtype in (_PER_DOCUMENT | _PER_WINDOW).items()
        }
        write_bytes(path, save(arrays, {"token_digest": self.token_digest}), fs)

    @classmethod
    def read(cls, path: Path) -> DocumentLosses | None:
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
                names = set(file.keys())
                if names != (_PER_DOCUMENT | _PER_WINDOW).keys():
                    raise CheckpointError(f"{path} holds other arrays than it should", received=sorted(names))
                arrays = {name: file.get_tensor(name) for name in names}
                token_digest = (file.metadata() or {}).get("token_digest", "")
        except (OSError, SafetensorError, TypeError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        for group in (_PER_DOCUMENT, _PER_WINDOW):
            shapes = {arrays[name].shape for name in group}
            whole = all(arrays[name].dtype == dtype for name, dtype in group.items())
            if len(shapes) != 1 or len(next(iter(shapes))) != 1 or not whole:
                raise CheckpointError(f"{path} holds arrays that do not fit each other")
        return cls(**arrays, token_digest=token_digest)


def document_losses(measured: TextLoss, documents: Iterable[tuple[str, Iterable[int]]]) -> DocumentLosses:
    """Put together what was measured and which texts it was measured on.

    Arguments:
        measured: sums by document.
        documents: text and token ids of each measured document, in rising order of their numbers.
    """
    order = sorted(measured.tokens)
    ids_digest, digests = hashlib.blake2b(digest_size=16), bytearray()
    for _, (text, ids) in zip(order, documents, strict=True):
        digests += hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        ids_digest.update(np.asarray(ids, np.int64).tobytes())
    windows = measured.windows if len(order) < MIN_DOCUMENTS else []
    return DocumentLosses(
        digest=np.frombuffer(bytes(digests), np.int64),
        nats=np.array([measured.nats[d] for d in order], np.float64),
        tokens=np.array([measured.tokens[d] for d in order], np.int64),
        bytes=np.array([measured.bytes.get(d, 0) for d in order], np.int64),
        characters=np.array([measured.characters.get(d, 0) for d in order], np.int64),
        window_nats=np.array([nats for nats, _ in windows], np.float64),
        window_tokens=np.array([tokens for _, tokens in windows], np.int64),
        token_digest=ids_digest.hexdigest(),
    )
