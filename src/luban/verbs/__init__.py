"""The verbs, in Python: each puts the parts of luban together to do one whole thing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luban.verbs.evaluate import evaluate
    from luban.verbs.load import load
    from luban.verbs.predict import predict
    from luban.verbs.prepare import prepare
    from luban.verbs.quickstart import quickstart
    from luban.verbs.train import train

__all__ = ["evaluate", "load", "predict", "prepare", "quickstart", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"luban.verbs.{name}"), name)
    raise AttributeError(f"module 'luban.verbs' has no attribute {name!r}")
