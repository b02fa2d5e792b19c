"""safetensors files: written through `luban.durable`, so that a crash leaves all of a file or none.

The format is 8 bytes of header length (little-endian), a JSON header with each tensor's dtype, shape and
place, then the tensors' bytes: https://github.com/huggingface/safetensors#format. Nothing in such a file is
ever executed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from luban import durable
from luban.durable import DISK, FileSystem
from luban.errors import CheckpointError, InputError

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8
_FIX = "restore the file, or use another checkpoint"


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    fs: FileSystem = DISK,
) -> None:
    """Write `tensors` to `path` atomically; equal input gives equal bytes.

    Tensors stand in the mapping's order, wide dtypes first so that each is aligned, and are written one by
    one: memory holds one copy of one of them at most. Two names of one storage are written twice; name tied
    tensors once.

    Raises:
        InputError: for a dtype that the format or luban does not know.
        StorageError: when the disk refuses.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    header = _header(ordered, metadata)

    def fill(file: BinaryIO) -> None:
        fs.write(file, struct.pack("<Q", len(header)) + header)
        for tensor in ordered.values():
            if tensor.numel():
                fs.write(file, _bytes(tensor))

    size = 8 + len(header) + sum(tensor.numel() * tensor.element_size() for tensor in ordered.values())
    durable.write_file(path, fill, fs, needed=size)


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    start = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            fix = f"convert it to one of {', '.join(str(dtype) for dtype in _DTYPES)}"
            received = str(tensor.dtype)
            raise InputError(f"tensor {name} has a dtype that cannot be stored", received=received, fix=fix)
        end = start + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    return text + b" " * (-len(text) % _ALIGNMENT)


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file into memory of its own.

    The copy is on purpose: the library hands out views of the mapped file, which end the process when the
    file is cut.

    Raises:
        CheckpointError: naming the file that is absent, cut or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read {path}: {error}", fix=_FIX) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file; absent metadata is empty.

    Raises:
        CheckpointError: as `read_safetensors`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}", fix=_FIX) from error
