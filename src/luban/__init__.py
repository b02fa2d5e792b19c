"""luban: one tool for the whole life of a large model, on the machine you have.

>>> import luban
>>> luban.__version__
'0.1.0'

`luban.train`, `luban.evaluate`, `luban.predict`, `luban.export` and `luban.load` are imported on first use, so that
`import luban` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luban.verbs.evaluate import evaluate
    from luban.verbs.export import export
    from luban.verbs.load import load
    from luban.verbs.predict import predict
    from luban.verbs.train import train

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "export", "load", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"luban.verbs.{name}"), name)
    raise AttributeError(f"module 'luban' has no attribute {name!r}")
