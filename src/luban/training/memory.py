"""Too little memory: how an allocation that failed is known, and what can be done about it.

An allocation fails with an error only where a limit is set (`ulimit -v`, a GPU) or one request is larger than
everything there is. Linux otherwise promises more than it has, and when that runs out its OOM killer sends
SIGKILL: then the run is just killed, as by `kill -9`, and goes on from its newest checkpoint with the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from luban.errors import OutOfMemory
from luban.machine import memory_available

_ALLOCATORS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory could not be had; torch's CPU allocator says so only in words.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _ALLOCATORS)


def bytes_left() -> int:
    """Return the bytes this process can still take: of the machine, its container and its own limit."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    left = memory_available()
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        left = min(left, max(0, limit - _address_space()))
    return left


def _address_space() -> int:
    """Return the bytes of this process's address space, 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return 0
    return pages * resource.getpagesize()


@contextlib.contextmanager
def memory_errors(doing: str, fix: str) -> Iterator[None]:
    """Turn an allocation that failed within the block into an `OutOfMemory` that says what was being done.

    Example:
        >>> try:
        ...     with memory_errors("measuring", "close other programs"):
        ...         raise MemoryError
        ... except OutOfMemory as error:
        ...     error.message
        'out of memory while measuring (... bytes free)'
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        short = f"out of memory while {doing} ({bytes_left():,} bytes free)"
        raise OutOfMemory(short, received=reason(error), fix=fix) from error


def reason(error: BaseException) -> str:
    """Return the first line of what an allocator said."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
