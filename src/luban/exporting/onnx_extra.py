"""The packages that the extra `onnx` brings: imported where they are used, and missed by name."""

from __future__ import annotations

import importlib

from luban.errors import MissingExtra


def require_onnx(purpose: str, *packages: str) -> None:
    """Import `packages`, so that what follows can rely on them.

    Arguments:
        purpose: what they are for, to go on after "is needed to".

    Raises:
        MissingExtra: naming the first that is not installed.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            raise MissingExtra(package, extra="onnx", purpose=purpose) from None
