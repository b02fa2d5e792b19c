"""How fast this machine multiplies matrices and copies memory right now, as JSON: what shares of the peak refer to."""

from __future__ import annotations

import json
import platform

import torch

from luban.machine import (
    device_name,
    emulates_bfloat16,
    measure_bandwidth,
    measure_matmul,
    memory_bytes,
    set_threads,
)

SIZES = (768, 1536, 3072)
REPEATS = 3


def rate(dtype: torch.dtype) -> float:
    """Return the best FLOP/s over a few sizes of square products: a neighbour can only make one slower.

    Of bfloat16 where it is emulated that of a small product: a large one takes half a minute.
    """
    if dtype is torch.bfloat16 and emulates_bfloat16("cpu"):
        return measure_matmul(dtype, 128)
    return max(measure_matmul(dtype, size) for size in SIZES for _ in range(REPEATS))


def main() -> None:
    threads = set_threads()
    probe = {
        "float32": rate(torch.float32), "bfloat16": rate(torch.bfloat16), "bandwidth": measure_bandwidth(),
        "name": device_name(), "threads": threads, "memory_bytes": memory_bytes(),
        "torch": torch.__version__, "python": platform.python_version(), "platform": platform.platform(),
    }  # fmt: skip
    print(json.dumps(probe))


if __name__ == "__main__":
    main()
